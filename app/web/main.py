"""The app's entry: the door (a password where one is set), then the pages."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import streamlit as st

from app.web.style import style_sheet
from app.web.workload_state import show_in_address

NAME = "GPU capacity planner"
VIEWS = Path(__file__).resolve().parent / "views"
# file, title, icon; the order is the order of the menu
MENU: tuple[tuple[str, str, str], ...] = (
    ("start", "Start", ":material/home:"),
    ("workload", "Workload", ":material/show_chart:"),
    ("recommend", "Recommend", ":material/shopping_cart:"),
    ("simulate", "Simulate", ":material/timer:"),
    ("spend", "Spend and commitments", ":material/payments:"),
    ("calibration", "Calibration", ":material/tune:"),
    ("advise", "Advise", ":material/stairs:"),
    ("runs", "Runs and compare", ":material/history:"),
    ("export", "Export and reports", ":material/ios_share:"),
)


def door() -> bool:
    """Whether the visitor may enter: always on loopback, else with the password of PLAN_WEB_PASSWORD."""
    wanted = os.environ.get("PLAN_WEB_PASSWORD")
    if not wanted or st.session_state.get("entered"):
        return True
    st.title(NAME)
    given = st.text_input("Password", type="password")
    if given and hmac.compare_digest(given.encode(), wanted.encode()):
        st.session_state["entered"] = True
        st.rerun()
    elif given:
        st.error("That is not the password.")
    return False


st.set_page_config(page_title=NAME, page_icon=str(VIEWS.parent / "icon.svg"), layout="wide")
st.html(style_sheet())
if door():
    pages = [
        st.Page(VIEWS / f"{file}.py", title=title, icon=icon, url_path=file, default=file == "start")
        for file, title, icon in MENU
        if (VIEWS / f"{file}.py").exists()
    ]
    page = st.navigation(pages)
    st.set_page_config(page_title=NAME if page.url_path == "" else f"{page.title} · {NAME}")
    kept = f"view-{page.url_path}"
    if not st.query_params and kept in st.session_state:  # back by the menu: the page as it was left
        st.query_params.from_dict(st.session_state[kept])
    try:
        page.run()
    finally:
        show_in_address()
        st.session_state[kept] = st.query_params.to_dict()
