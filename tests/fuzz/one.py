"""Coverage-guided fuzzing of one reader: ``python -m tests.fuzz.one NAME SECONDS FOLDER``; leaves by libFuzzer's code.

Anything but an answer or a refusal in words is a crash; so are ten seconds or 2 GiB on one input.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app", "calibrate", "catalogs", "planner", "simulator"]):
    from catalogs.errors import PlanError
    from tests.readers import READERS


def main() -> None:
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    reader = READERS[name]
    corpus, found = folder / "corpus", folder / "found"
    for place in (corpus, found):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    work = folder / "work"  # the last input stays there, for a hang or an end by memory
    work.mkdir(exist_ok=True)
    reader.prepare(work)
    path = work / reader.file
    warnings.simplefilter("error")

    def test_one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader.read(path)
        except PlanError as refusal:
            assert str(refusal).strip()
        except BaseException:  # libFuzzer keeps what breaks it only where its runtime is complete
            (found / f"{hashlib.sha256(data).hexdigest()[:16]}-{reader.file.replace('/', '-')}").write_bytes(data)
            raise

    flags = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=10", "-max_len=8192",
             f"-artifact_prefix={found}/", "-verbosity=0", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], test_one_input)
    atheris.Fuzz()


main()
