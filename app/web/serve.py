"""Serves the app: Streamlit on the main thread, and what a first visit needs imported and read behind it."""

from __future__ import annotations

import gc
import socket
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
    gc.collect()
    gc.freeze()  # Streamlit collects garbage after each script: what lives as long as the server is passed over


def answer_at_once() -> None:
    """Make every server socket's connections send what they have (TCP_NODELAY, which accepted sockets inherit).

    Streamlit listens on a socket without it, so the body of each small file waits for the other side's delayed
    acknowledgement of its header: 40 ms a file, for some seventy files and for every message to the page.
    """
    listen = socket.socket.listen

    def listen_without_delay(self: socket.socket, *backlog: int) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listen(self, *backlog)

    socket.socket.listen = listen_without_delay  # type: ignore[method-assign,assignment]


def serve(flags: list[str]) -> None:
    """Run the server until it is stopped.

    Args:
        flags: Streamlit's settings, ``--server.port=8501``.
    """
    from streamlit.web import cli

    answer_at_once()
    threading.Thread(target=prepare, name="prepare", daemon=True).start()
    cli.main(["run", str(Path(__file__).with_name("main.py")), *flags])


if __name__ == "__main__":
    serve(sys.argv[1:])
