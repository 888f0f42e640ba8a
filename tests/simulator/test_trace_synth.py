"""`plan trace synth` makes what its file or flags say, and the demo's trace is what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from catalogs.errors import InputError
from simulator.workload.trace_stats import describe_file
from simulator.workload.traces import read_trace

DEMO = Path(__file__).resolve().parents[2] / "app" / "demo"


def synth(*arguments: str) -> None:
    done = CliRunner().invoke(cli, ["trace", "synth", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def test_the_demo_trace_is_what_its_workload_makes(tmp_path: Path) -> None:
    synth(str(DEMO / "workload.yaml"), "--seed", "7", "-o", str(tmp_path / "t.csv"))
    made, bundled = describe_file(tmp_path / "t.csv"), describe_file(DEMO / "requests.csv")
    # the streams of numpy's random numbers may differ between its versions, the load may not
    assert made["num_requests"] == pytest.approx(bundled["num_requests"], rel=0.1)
    assert made["input_tokens"]["mean"] == pytest.approx(bundled["input_tokens"]["mean"], rel=0.05)
    assert 3000 <= bundled["num_requests"] <= 6000
    assert (DEMO / "requests.csv").stat().st_size < 300_000


def test_flags_alone_are_enough(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    synth(
        "--arrivals", "constant,rate_rps=10,num_requests=50", "--input-tokens", "fixed,value=100",
        "--output-tokens", "uniform,low=5,high=6", "--system-prompts", "tokens=256,num=2", "-o", str(out),
    )  # fmt: skip
    requests = read_trace(out)
    assert len(requests) == 50 and set(requests.input_tokens) == {356}
    assert requests.hash_ids is not None


def test_flags_replace_a_files_sections(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    arrivals = "poisson,rate_rps=5,num_requests=20"
    synth(str(DEMO / "workload.yaml"), "--arrivals", arrivals, "-o", str(out))
    assert len(read_trace(out)) == 20


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        synth(str(DEMO / "workload.yaml"), "--seed", "3", "-o", str(tmp_path / name))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "nothing says what to make"),
        (("--arrivals", "poisson,20"), "KEY=VALUE"),
        (("--arrivals", "poison,rate_rps=1,num_requests=2"), "poisson"),
        (("--arrivals", "poisson,rate_rps=1,num_requests=2"), "input_tokens"),
        (("--arrivals", "poisson,rate_rps=[,num_requests=2"), "not a value"),
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    with pytest.raises(InputError) as caught:
        synth(*arguments, "-o", str(tmp_path / "t.csv"))
    assert what in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_loop_cannot_be_written_as_a_trace(tmp_path: Path) -> None:
    load = ("--arrivals", "closed_loop,concurrency=4,num_requests=8", "--input-tokens", "fixed,value=1")
    with pytest.raises(InputError, match="closed loop"):
        synth(*load, "--output-tokens", "fixed,value=1", "-o", str(tmp_path / "t.csv"))


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.parquet"):
        synth(str(DEMO / "workload.yaml"), "-o", str(tmp_path / "t.xlsx"))
    with pytest.raises(InputError, match="cannot write there"):
        synth(str(DEMO / "workload.yaml"), "-o", str(tmp_path / "nowhere" / "t.csv"))
