"""The visitor's workload: the demo trace, an upload, or a synthetic load; kept for the session, named by the URL."""

from __future__ import annotations

import gzip
import hashlib
import io
import tempfile
import zlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app.web.parts import words
from catalogs.errors import InputError

if TYPE_CHECKING:
    from simulator.workload import Requests

SUFFIXES = (".csv", ".jsonl", ".parquet", ".gz")
MAX_UPLOAD_BYTES = 200 * 1024 * 1024
MAX_REQUESTS = 2_000_000
MAX_UNPACKED_BYTES = 1024 * 1024 * 1024  # what a compressed upload may grow to
MAX_LINE_BYTES = 8 * 1024 * 1024


def demo_trace() -> Path:
    """The bundled demo trace."""
    return Path(str(files("app") / "demo" / "requests.csv"))


def trace_path() -> Path:
    """The file of the visitor's workload: the upload if there is one, else the demo; a lost upload is said."""
    kept = st.session_state.get("trace_path")
    if kept and not Path(kept).exists():
        for key in ("trace_path", "trace_name"):
            st.session_state.pop(key, None)
        st.warning("Your trace is no longer on this machine; this is the demo trace. Upload it again on Start.")
        kept = None
    return Path(kept) if kept else demo_trace()


def trace_name() -> str:
    """What the visitor calls it, with Markdown's signs made plain."""
    trace_path()
    return words(str(st.session_state.get("trace_name", "the demo trace")))


def keep_upload(name: str, data: bytes) -> Path:
    """Write an upload into a folder of this session, under a name of our own making.

    Raises:
        InputError: a form of file that is not a trace, or too large, also once unpacked.
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
    if suffix.endswith(".gz"):
        check_unpacked(data)
    folder = st.session_state.setdefault("folder", tempfile.mkdtemp(prefix="plan-web-"))
    path = Path(folder) / f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    path.write_bytes(data)
    return path


def check_unpacked(data: bytes) -> None:
    """Unpack a gzipped upload piece by piece, holding one piece, to see that it stays within bounds.

    Raises:
        InputError: damaged, larger than ``MAX_UNPACKED_BYTES``, or with a line longer than ``MAX_LINE_BYTES``.
    """
    total, line = 0, 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(1 << 20):
                total += len(piece)
                last = piece.rfind(b"\n")
                line = line + len(piece) if last < 0 else len(piece) - last
                if total > MAX_UNPACKED_BYTES or line > MAX_LINE_BYTES:
                    raise InputError(
                        "the upload unpacks to more than a trace can be", where="upload",
                        why=f"at most {MAX_UNPACKED_BYTES >> 20} MiB, and {MAX_LINE_BYTES >> 20} MiB in a line",
                        remedy="`plan recommend` reads larger files",
                    )  # fmt: skip
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"the upload is not a whole gzip file: {error}", where="upload") from error


@st.cache_data(show_spinner="Reading the trace...", max_entries=8)
def requests_of(path: str, _mtime_ns: int) -> Requests:
    """The requests of a trace file, read once.

    Raises:
        InputError: what is wrong with the file, and on which line.
    """
    from simulator.traces import read_trace

    return read_trace(path, sort=True, limit=MAX_REQUESTS)


def current() -> Requests:
    """The visitor's requests; a longer trace is cut, and the page says so."""
    path = trace_path()
    found = requests_of(str(path), path.stat().st_mtime_ns)
    if len(found) >= MAX_REQUESTS:
        st.warning(f"The page reads the first {MAX_REQUESTS:,} requests of the trace; `plan trace stats` reads all.")
    return found
