"""Serves the app: Streamlit on the main thread, and what a first visit needs imported and read behind it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path


def prepare() -> None:
    """Import what pages import and read the catalogues, so that no visitor waits for it."""
    import pandas
    import plotly.graph_objects

    import app.cli.recommend
    import app.cli.simulate
    import app.web.answer_charts
    import planner.recommend
    import simulator.run
    from catalogs.load import gpus, instances, models, prices

    assert pandas and plotly and app and planner and simulator
    for read in (gpus, models, instances, prices):
        read()


def serve(flags: list[str]) -> None:
    """Run the server until it is stopped.

    Args:
        flags: Streamlit's settings, ``--server.port=8501``.
    """
    from streamlit.web import cli

    threading.Thread(target=prepare, name="prepare", daemon=True).start()
    cli.main(["run", str(Path(__file__).with_name("main.py")), *flags])


if __name__ == "__main__":
    serve(sys.argv[1:])
