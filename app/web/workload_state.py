"""The visitor's workload: the demo trace, an upload, or a synthetic load; kept for the session, named by the URL."""

from __future__ import annotations

import hashlib
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from catalogs.errors import InputError

if TYPE_CHECKING:
    from simulator.workload import Requests

SUFFIXES = (".csv", ".jsonl", ".parquet", ".gz")
MAX_UPLOAD_BYTES = 200 * 1024 * 1024
MAX_REQUESTS = 2_000_000


def demo_trace() -> Path:
    """The bundled demo trace."""
    return Path(str(files("app") / "demo" / "requests.csv"))


def trace_path() -> Path:
    """The file of the visitor's workload: the upload if there is one, else the demo."""
    kept = st.session_state.get("trace_path")
    return Path(kept) if kept and Path(kept).exists() else demo_trace()


def trace_name() -> str:
    """What the visitor calls it."""
    return str(st.session_state.get("trace_name", "the demo trace"))


def keep_upload(name: str, data: bytes) -> Path:
    """Write an upload into a folder of this session, under a name of our own making.

    Raises:
        InputError: a form of file that is not a trace, or too large.
    """
    suffix = "".join(s for s in Path(name).suffixes[-2:] if s.lower() in SUFFIXES).lower()
    if not suffix:
        raise InputError(
            "this is not a trace", where="upload", why="the form is recognised by the file's ending",
            remedy="a .csv, .jsonl or .parquet file, plain or .gz",
        )  # fmt: skip
    if len(data) > MAX_UPLOAD_BYTES:
        raise InputError(
            "the upload is larger than 200 MB", where="upload", remedy="`plan recommend` reads larger files"
        )
    folder = st.session_state.setdefault("folder", tempfile.mkdtemp(prefix="plan-web-"))
    path = Path(folder) / f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    path.write_bytes(data)
    return path


@st.cache_data(show_spinner="Reading the trace...", max_entries=8)
def requests_of(path: str, _mtime_ns: int) -> Requests:
    """The requests of a trace file, read once.

    Raises:
        InputError: what is wrong with the file, and on which line.
    """
    from simulator.traces import read_trace

    return read_trace(path, sort=True, limit=MAX_REQUESTS)


def current() -> Requests:
    """The visitor's requests."""
    path = trace_path()
    return requests_of(str(path), path.stat().st_mtime_ns)
