"""How people reach it: the command line, the web app and the reports."""
