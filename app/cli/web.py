"""`plan web`: serve the web app."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys

import click

from catalogs.errors import InputError, MissingError
from catalogs.extras import how_to_install

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_UPLOAD_MB = 200


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--port", default=8501, show_default=True, type=click.IntRange(1, 65535), help="Port to serve on.")
def web(host: str, port: int) -> None:
    """Serve the web app, on this machine alone unless --host says otherwise.

    Elsewhere than on loopback a password is demanded: set it in PLAN_WEB_PASSWORD.

    \b
    Example:
      plan web --port 8600
    """
    if importlib.util.find_spec("streamlit") is None or importlib.util.find_spec("plotly") is None:
        raise MissingError("the web app's packages are not installed", remedy=how_to_install("web"))
    if host not in LOOPBACK:
        if not os.environ.get("PLAN_WEB_PASSWORD"):
            raise InputError(
                f"{host} is reachable from other machines and no password is set", where="--host",
                why="whoever reaches the app sees your traces, bills and plans",
                remedy="export PLAN_WEB_PASSWORD=..., or leave --host out",
            )  # fmt: skip
        click.echo(
            f"warning: serving on {host}: the password travels unencrypted; put TLS in front (a reverse proxy)",
            err=True,
        )
    click.echo(f"the app: http://{'127.0.0.1' if host in LOOPBACK else host}:{port}", err=True)
    with contextlib.suppress(io.UnsupportedOperation):  # a stdout that is no file
        os.dup2(sys.stdout.fileno(), 1)  # the server's own words go where ours did
    os.execv(sys.executable, [sys.executable, "-P", "-m", "app.web.serve", *server_flags(host, port)])


def server_flags(host: str, port: int) -> list[str]:
    """Streamlit's settings: no telemetry, no browser opened, bounded uploads, the theme of the app."""
    from app.web.style import theme_settings

    settings: dict[str, object] = {
        "server.address": host, "server.port": port, "server.headless": "true",
        "server.maxUploadSize": MAX_UPLOAD_MB, "server.fileWatcherType": "none", "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal", "client.showErrorDetails": "none", "client.showErrorLinks": "false",
        **theme_settings(),
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in settings.items()]
