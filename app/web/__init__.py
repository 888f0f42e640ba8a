"""The web app: thin Streamlit pages over the packages; every number on them comes from there."""
