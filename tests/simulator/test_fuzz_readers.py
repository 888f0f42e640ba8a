"""Whatever bytes a trace, a scenario or a sweep holds, reading ends with an answer or with words: no crash, no hang."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalogs.errors import PlanError
from simulator.scenario.spec import read_scenario
from simulator.sweep import read_sweep
from simulator.workload.requests import Requests
from simulator.workload.trace_stats import describe_file
from simulator.workload.trace_writing import write_trace
from simulator.workload.traces import read_lengths, read_trace

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.one_of(
    st.integers(-5, 10**20).map(str), st.floats().map(repr), st.text(max_size=6),
    st.sampled_from(["", "1 2 3", "nan", '"', "2023-11-16", "\x00", "é"]),
)  # fmt: skip
HEADERS = st.sampled_from(
    [
        "arrival_s,input_tokens,output_tokens",
        "arrival_s,input_tokens,output_tokens,hash_ids,request_class,session",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    ]
)
GOOD = b"arrival_s,input_tokens,output_tokens,hash_ids\n" + b"".join(
    b"%d.5,%d,7,1 2 %d\n" % (i, i + 1, i) for i in range(9)
)
MOONCAKE = b"".join(
    b'{"timestamp": %d, "input_length": 9, "output_length": 3, "hash_ids": [0, %d]}\n' % (i, i) for i in range(9)
)
SCENARIO = b"""\
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 20, num_requests: 100}
  input_tokens: {distribution: lognormal, mean: 1000, cv: 0.9}
  output_tokens: {distribution: fixed, value: 256}
fleet:
  - {gpu: H100-SXM, engine: {framework: vllm, max_num_seqs: 256}}
slo: {ttft_p95_s: 1.0}
seed: 0
"""


def survives(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    for read in (read_trace, describe_file, read_lengths):
        try:
            read(path)
        except PlanError as error:
            assert str(path) in str(error)


def damaged(raw: bytes, seed: int) -> bytes:
    """A few bytes changed, dropped, doubled or cut off."""
    rng = random.Random(seed)
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        what = rng.randrange(4)
        if what == 0 and data:
            data[at] = rng.choice(b'\x00\xff,."\n-0{}[]:e&*!' + bytes([rng.randrange(256)]))
        elif what == 1:
            del data[at : at + rng.randint(1, 20)]
        elif what == 2:
            data[at:at] = data[at : at + rng.randint(1, 20)]
        else:
            del data[max(at, 1) :]
    return bytes(data)


@QUICK
@given(header=HEADERS, rows=st.lists(st.lists(CELLS, max_size=7), max_size=6))
def test_any_table_is_read_or_refused(tmp_path: Path, header: str, rows: list[list[str]]) -> None:
    text = header + "\n" + "".join(",".join(row) + "\n" for row in rows)
    survives(tmp_path / "t.csv", text.encode("utf-8", errors="replace"))


@QUICK
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes) -> None:
    survives(tmp_path / "t.csv", raw)


@pytest.mark.parametrize("form", ["csv", "json", "gzip", "parquet"])
def test_a_damaged_trace_is_read_or_refused(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        num = 50
        requests = Requests(np.arange(num) * 1.0, np.arange(1, num + 1), np.ones(num, dtype=np.int64),
                            np.arange(num + 1), np.arange(num))  # fmt: skip
        write_trace(requests, tmp_path / "good.parquet")
        good = (tmp_path / "good.parquet").read_bytes()
    else:
        good = {"csv": GOOD, "json": MOONCAKE, "gzip": gzip.compress(GOOD)}[form]
    for seed in range(80):
        survives(tmp_path / "t", damaged(good, seed))


def test_a_damaged_scenario_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for seed in range(120):
        path.write_bytes(damaged(SCENARIO, seed))
        for read in (read_scenario, read_sweep):
            try:
                read(path)
            except PlanError as error:
                assert "s.yaml" in str(error)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
PLACES = [("model",), ("workload",), ("workload", "arrivals"), ("workload", "arrivals", "rate_rps"), ("fleet",),
          ("workload", "input_tokens"), ("fleet", 0), ("fleet", 0, "engine"), ("slo",), ("seed",)]  # fmt: skip


@QUICK
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_anywhere_is_read_or_refused(tmp_path: Path, place: tuple[str | int, ...], value: object) -> None:
    data = yaml.safe_load(SCENARIO)
    at = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8", errors="replace")
    try:
        read_scenario(path)
    except PlanError as error:
        assert "s.yaml" in str(error)
