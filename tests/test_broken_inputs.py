"""Inputs that would break a careless reader: each is refused in words, soon and in little memory."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catalogs.errors import PlanError
from tests.readers import AZURE, BENCH, CHROME, FOCUS, GUIDELLM, PLAN, READERS, SCENARIO, TRACE

DEEP = b"[" * 200_000
LAUGHS = b"a: &a [l, l, l, l, l, l, l, l, l]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)
)
ZEROS = gzip.compress(bytes(1 << 24)) * 64  # 1 GiB in a megabyte
BOMBS: dict[str, tuple[tuple[str, ...], bytes]] = {
    "deep": (("trace.jsonl", "profile.json", "config.json", "benchmark.json", "benchmark.yaml", "measurements.jsonl",
              "chrome trace", "certificate", "availability", "plan.yaml"), DEEP),
    "deep objects": (("profile.json", "config.json", "benchmark.json", "certificate"), b'{"a":' * 200_000),
    "billion laughs": (("plan.yaml", "scenario.yaml", "sweep.yaml", "schedule.yaml", "benchmark.yaml"), LAUGHS),
    "zip bomb": (("trace.gz", "bill.csv.gz", "chrome trace"), ZEROS),
    "nothing": (tuple(n for n in READERS if n not in ("metrics", "step table")), b""),
    "NUL bytes": (tuple(n for n in READERS if n not in ("metrics", "step table")), bytes(4096)),
}  # fmt: skip


@pytest.mark.parametrize(("bomb", "name"), [(b, n) for b, (names, _) in BOMBS.items() for n in names])
def test_a_bomb_is_refused(bomb: str, name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    path = tmp_path / reader.file
    path.write_bytes(BOMBS[bomb][1])
    started = time.process_time()
    with pytest.raises(PlanError):
        reader.read(path)
    assert time.process_time() - started < 30  # a hang is minutes


def test_a_zip_bomb_needs_little_memory(tmp_path: Path) -> None:
    """In a process of its own, held to 4 GiB of address space."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(TRACE)[:-8] + ZEROS)
    code = (
        "import sys; from pathlib import Path; from tests.readers import READERS;"
        "READERS['trace.gz'].read(Path(sys.argv[1]))"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, preexec_fn=limit,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "InputError" in done.stderr and "MemoryError" not in done.stderr


MALFORMED: dict[str, tuple[str, bytes]] = {
    "a key of no text": ("benchmark.yaml", b"null: 1\n"),
    "a NUL in YAML": ("benchmark.yaml", json.dumps(GUIDELLM).encode()[:-1] + bytes(9) + b"}"),
    "a bill cut off inside gzip": ("bill.csv.gz", gzip.compress(FOCUS)[:-20] + b"\x07" * 20),
    "a single probe": ("availability", b'{"metadata": {"gap_seconds": 60}, "data": [1]}'),
    "a word where a size belongs": (
        "kernel table.csv", b"device,gemm_dtype,m,n,k,latency\nNVIDIA L4,bfloat16,W,512,512,0.01\n",
    ),
    "a table not in UTF-8": ("step table", b"layer,tokens,time_us\nqkv\xff,1,3\n"),
    "a row cut short": ("step table", b"layer,tokens,time_us\nqkv_proj,1\n"),
    "a price path not in UTF-8": ("price paths", b"start_s,zone,usd_per_hour\n0,\xff,1\n"),
    "an infinite price": ("price paths", b"start_s,zone,usd_per_hour\n0,a,inf\n"),
    "a price at no time": ("price paths", b"start_s,zone,usd_per_hour\nnan,a,1\n"),
    "a trace cut off inside gzip": ("chrome trace", gzip.compress(json.dumps(CHROME).encode())[:-9]),
    "tokens beyond all integers": ("trace.csv", TRACE.replace(b"10", b"9" * 400)),
    "tokens by the billion": ("trace.csv", TRACE.replace(b"10", b"1e30")),
    "a benchmark of no number": ("benchmark.json", json.dumps({**BENCH, "request_throughput": 10**400}).encode()),
    "a billion requests": ("scenario.yaml", SCENARIO.replace(b"num_requests: 5", b"num_requests: 1.0e+9999")),
    "a share beyond all": ("plan.yaml", PLAN.replace(b"scale: 2", b"scale: .inf")),
    "a date beyond the calendar": ("trace stats", AZURE.replace(b"2023-11-16", b"99999-99-99")),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused_in_words(what: str, tmp_path: Path) -> None:
    name, raw = MALFORMED[what]
    reader = READERS[name]
    reader.prepare(tmp_path)
    path = tmp_path / reader.file
    path.write_bytes(raw)
    with pytest.raises(PlanError) as refusal:
        reader.read(path)
    assert str(refusal.value).strip()
