"""Every reader under the coverage-guided fuzzer, one after another: ``make fuzz SECONDS=600 READERS="plan.yaml dcgm"``.

An input that breaks a reader is kept in the folder and named; put it into tests/test_broken_inputs.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for all readers together")
    parser.add_argument("--folder", type=Path, default=Path("out/fuzz"), help="corpora and inputs that broke something")
    parser.add_argument("readers", nargs="*", help=f"of: {', '.join(READERS)}")
    given = parser.parse_args()
    names = given.readers or list(READERS)
    each = max(1, given.seconds // len(names))
    broken = 0
    for name in names:
        folder = given.folder / re.sub(r"[^a-z.]+", "-", name)
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, str(each), str(folder)],
            capture_output=True, text=True, check=False, errors="replace",
        )  # fmt: skip
        executed = re.search(r"number_of_executed_units: *(\d+)", ran.stderr)
        print(f"{name:22s} {each} s, {executed.group(1) if executed else '?'} inputs: ", end="")
        if ran.returncode:
            broken += 1
            print(
                f"BROKEN, see {folder}/found, or {folder}/work for the last input\n{_said(ran.stdout + ran.stderr)}",
                flush=True,
            )
        else:
            print("ok", flush=True)
    return 1 if broken else 0


def _said(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith(("INFO", "#", "stat::", "MS:", "WARNING:"))]
    return "\n".join("    " + line[:200] for line in lines[-12:])


sys.exit(main())
