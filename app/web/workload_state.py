"""The visitor's workload: the demo trace, an upload or a synthetic load; the URL names it, so it outlives a reload.

Files lie in a folder of this server, each in one of its own whose name is a keyed hash that nobody can guess.
"""

from __future__ import annotations

import atexit
import gzip
import hashlib
import io
import json
import re
import secrets
import shlex
import shutil
import tempfile
import zlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.web.parts import error, words
from app.web.work import MAX_REQUESTS
from catalogs.errors import InputError, PlanError
from catalogs.files import write_text

if TYPE_CHECKING:
    from simulator.workload.requests import Requests

SUFFIXES = (".csv", ".jsonl", ".parquet", ".gz")
MAX_UPLOAD_BYTES = 200 * 1024 * 1024
MAX_UNPACKED_BYTES = 1024 * 1024 * 1024  # what a compressed upload may grow to
MAX_LINE_BYTES = 8 * 1024 * 1024
DEMO_COMMAND = "plan init demo && cd demo"
IDENTITY = re.compile(r"[0-9a-f]{32}")


@st.cache_resource
def _store() -> tuple[Path, bytes]:
    """The server's folder of traces, which goes when the server does, and the key that makes names unguessable."""
    folder = Path(tempfile.mkdtemp(prefix="plan-web-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, secrets.token_bytes(16)


def private_file(name: str) -> Path:
    """A place in the server's folder, which goes when the server does."""
    return _store()[0] / name


def _demo(name: str) -> Path:
    return Path(str(files("app") / "demo" / name))


def demo_trace() -> Path:
    """The bundled demo trace."""
    return _demo("requests.csv")


def demo_answer() -> Path:
    """The bundled answer to the demo; `make docs` writes it."""
    return _demo("answer.json")


def described() -> dict[str, Any]:
    """What the visitor's workload is; empty: the demo. A trace that is lost is said.

    Keys: ``id``, ``name``; a trace has ``path`` and ``file`` (as commands call it), a synthetic load ``spec`` (a
    scenario's workload section) and ``seed``.
    """
    kept: dict[str, Any] = st.session_state.get("trace") or _from_address() or {}
    if "path" in kept and not Path(kept["path"]).exists():
        reset()
        st.warning("Your trace is no longer on this machine; this is the demo trace. Upload it again on Start.")
        return {}
    return kept


def _from_address() -> dict[str, Any]:
    """The workload that the URL names, where this server still has it."""
    identity = str(st.query_params.get("trace", ""))
    if not IDENTITY.fullmatch(identity):
        return {}
    note = _store()[0] / f"{identity}.json"
    if not note.exists():
        return {}
    st.session_state["trace"] = dict(json.loads(note.read_text()))
    return dict(st.session_state["trace"])


def reset() -> None:
    """Back to the demo trace."""
    st.session_state.pop("trace", None)
    if "trace" in st.query_params:
        del st.query_params["trace"]


def show_in_address() -> None:
    """Name the workload in the URL."""
    kept = st.session_state.get("trace")
    if kept:
        st.query_params["trace"] = kept["id"]


def is_demo() -> bool:
    """Whether the workload is the demo trace."""
    return not described()


def trace_name() -> str:
    """What the visitor calls it, with Markdown's signs made plain."""
    return words(str(described().get("name", "the demo trace")))


def workload_section() -> dict[str, Any]:
    """The ``workload`` section of a plan or scenario that means the visitor's requests."""
    kept = described()
    return dict(kept["spec"]) if "spec" in kept else {"trace": str(kept["path"] if kept else demo_trace())}


def seed() -> int:
    """The seed that a synthetic load is drawn with."""
    return int(described().get("seed", 0))


def trace_file() -> str:
    """The trace's file as commands name it."""
    return str(described().get("file", "load.csv" if "spec" in described() else "requests.csv"))


def with_trace(text: str) -> str:
    """A command on the trace, after what makes it; ``{trace}`` stands for the file."""
    kept = described()
    before = (
        DEMO_COMMAND + "\n" if not kept else synthesis_command(kept["spec"], kept["seed"]) if "spec" in kept else ""
    )
    return before + text.replace("{trace}", shlex.quote(trace_file()))


def on_file(settings: dict[str, Any], file: str, text: str) -> str:
    """A command on a plan or scenario file, which is written first; its workload is named as the visitor has it."""
    kept = described()
    workload = {**settings["workload"], **({} if "spec" in kept else {"trace": trace_file()})}
    before = "" if kept else DEMO_COMMAND + "\n"
    return f"{before}cat > {file} <<'END'\n{json.dumps({**settings, 'workload': workload}, indent=1)}\nEND\n{text}"


def synthesis_command(spec: dict[str, Any], seed: int) -> str:
    """The `plan trace synth` that makes the same requests."""
    text = json.dumps({"workload": spec}, indent=1)
    return f"cat > load.yaml <<'END'\n{text}\nEND\nplan trace synth load.yaml --seed {seed} -o load.csv\n"


def upload_field() -> None:
    """The field for a trace, and the way back to the demo; a new trace is the workload of every page at once."""
    uploaded = st.file_uploader(
        "Your trace", help="Arrival time, input and output tokens of each request: CSV, JSON lines or Parquet; "
        "Azure, Mooncake and BurstGPT forms are recognised. It stays on this machine.",
    )  # fmt: skip
    if uploaded is not None and st.session_state.get("upload_id") != uploaded.file_id:
        try:
            keep_upload(uploaded)
            st.session_state["upload_id"] = uploaded.file_id
            st.rerun()
        except PlanError as problem:
            error(problem)
    if not is_demo() and st.button("Back to the demo trace", icon=":material/undo:"):
        reset()
        st.rerun()


def keep_upload(uploaded: Any) -> None:
    """Make an upload (``name``, ``size``, ``getvalue``) the visitor's workload.

    Raises:
        InputError: a form of file that is not a trace, or too large, also once unpacked.
    """
    name = str(uploaded.name)
    suffix = "".join(s for s in Path(name).suffixes[-2:] if s.lower() in SUFFIXES).lower()
    if not suffix:
        raise InputError(
            "this is not a trace", where="upload", why="the form is recognised by the file's ending",
            remedy="a .csv, .jsonl or .parquet file, plain or .gz",
        )  # fmt: skip
    if uploaded.size > MAX_UPLOAD_BYTES:
        raise InputError(
            "the upload is larger than 200 MB", where="upload", remedy="`plan recommend` reads larger files"
        )
    data = uploaded.getvalue()
    if suffix.endswith(".gz"):
        check_unpacked(data)
    identity = _identity(data + name.encode())
    path = _store()[0] / identity / _own_name(name, suffix)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    _keep({"id": identity, "path": str(path), "name": name, "file": Path(name).name or f"trace{suffix}"})


def keep_synthetic(spec: dict[str, Any], seed: int) -> None:
    """Make a synthetic load (a scenario's workload section) the visitor's workload.

    Raises:
        InputError: what is wrong with the section.
    """
    if "spec" in described() and described()["spec"] == spec and described()["seed"] == seed:
        return
    synthetic(json.dumps(spec), seed)  # refuse it before it is kept
    identity = _identity(json.dumps([spec, seed]).encode())
    _keep({"id": identity, "name": "the synthetic load", "spec": spec, "seed": seed})


def _own_name(name: str, suffix: str) -> str:
    """An upload's name as errors about the file show it: plain letters only, so that it names no other place."""
    stem = Path(name).name[: -len(suffix)] if name.lower().endswith(suffix) else Path(name).name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80] + suffix


def _identity(content: bytes) -> str:
    return hashlib.blake2b(content, key=_store()[1], digest_size=16).hexdigest()


def _keep(kept: dict[str, Any]) -> None:
    write_text(_store()[0] / f"{kept['id']}.json", json.dumps(kept))
    st.session_state["trace"] = kept


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
    from simulator.workload.traces import read_trace

    return read_trace(path, sort=True, limit=MAX_REQUESTS)


@st.cache_data(show_spinner="Drawing the requests...", max_entries=8)
def synthetic(spec: str, seed: int) -> Requests:
    """The requests of a synthetic load, given as JSON.

    Raises:
        InputError: what is wrong with the section.
    """
    from catalogs.yaml_source import Located, check
    from simulator.workload.load import load_workload
    from simulator.workload.spec import WorkloadSpec

    return load_workload(check(Located(Path("the form"), json.loads(spec), {}), WorkloadSpec), seed)


def current() -> Requests:
    """The visitor's requests; a longer trace is cut, and the page says so."""
    kept = described()
    if "spec" in kept:
        return synthetic(json.dumps(kept["spec"]), kept["seed"])
    path = Path(kept["path"]) if kept else demo_trace()
    found = requests_of(str(path), path.stat().st_mtime_ns)
    if len(found) >= MAX_REQUESTS:
        st.warning(f"The page reads the first {MAX_REQUESTS:,} requests of the trace; `plan trace stats` reads all.")
    return found
