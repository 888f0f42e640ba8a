"""What the code never does: run text as code, unpickle, start a shell, or write a file that may be left half done."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("catalogs", "calibrate", "simulator", "planner", "app")
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
NEVER_CALLED = {
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load",
    "pd.read_pickle", "subprocess.getoutput", "tempfile.mktemp",
}  # fmt: skip
WRITES = {"write_text", "write_bytes"}
# who may write a path directly: it is a temporary one that `replacing` gave, or a scratch file of one process
WRITERS = {
    "catalogs/files.py", "app/cli/runs.py", "app/web/reports.py", "app/web/workload_state.py",
    "app/report/schedule.py",
    "calibrate/server/server_process.py", "app/cli/main.py",
    "app/web/work.py",  # an upload, into a temporary folder of its own
    "calibrate/device/measurements.py",  # a record a line; its reader forgives a last line that is cut off
}  # fmt: skip


def calls() -> Iterator[tuple[str, ast.Call]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield place, node


def test_no_code_runs_text_or_pickles_or_a_shell() -> None:
    for place, call in calls():
        assert ast.unparse(call.func) not in NEVER_CALLED, f"{place}:{call.lineno}"
        for keyword in call.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
            assert keyword.arg not in ("shell", "allow_pickle") or off, f"{place}:{call.lineno}"
        if ast.unparse(call.func).endswith("np.load"):
            assert any(k.arg == "allow_pickle" for k in call.keywords), f"{place}:{call.lineno}"


def test_no_module_that_unpickles_is_imported() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {n.split(".")[0] for n in names} & NEVER_IMPORTED, f"{path}:{getattr(node, 'lineno', 0)}"


def test_files_are_written_whole_or_not_at_all() -> None:
    """By ``catalogs.files``, so that a kill leaves the old file or the new one."""
    for place, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens_to_write = name == "open" and any(set(w) <= set("wxab+t") and set(w) & set("wxa") for w in words)
        if name in WRITES or opens_to_write:
            by_helper = isinstance(call.func, ast.Name)  # catalogs.files.write_text
            assert by_helper or place in WRITERS, f"{place}:{call.lineno}: write by catalogs.files"
