import json
from pathlib import Path

import pytest

from calibrate.device.measurements import (
    Measurement,
    append_lines,
    header_line,
    point_line,
    read_measurements,
    remark_line,
    skip_line,
)
from calibrate.device.probe import measured_gpu
from catalogs.errors import InputError

POINT = Measurement("gemm", "bf16", {"m": 8, "n": 64, "k": 32}, 1e-5, 0.9e-5, 1.2e-5, 7, "dense")


def written(path: Path, *lines: dict[str, object]) -> Path:
    append_lines(path, lines or [header_line({"name": "x", "device": "cpu"}), point_line(POINT)])
    return path


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl")
    append_lines(path, [skip_line("gemm", "fp8", "", "no units"), remark_line("warm")])
    held = read_measurements(path)
    assert held.points == (POINT,)
    assert held.skipped[0]["reason"] == "no units" and held.remarks == ("warm",)
    assert held.family("gemm", "bf16") == (POINT,) and held.family("gemm", "fp8") == ()


def test_a_torn_last_line_is_left_out_but_one_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl")
    with path.open("a") as out:
        out.write('{"kind": "poi')
    assert len(read_measurements(path).points) == 1
    with path.open("a") as out:
        out.write("\n" + json.dumps(point_line(POINT)) + "\n")
    with pytest.raises(InputError, match=r"m\.jsonl:3"):
        read_measurements(path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([point_line(POINT)], "header"),
        ([header_line({}) | {"schema_version": 99}], "schema 99"),
        ([header_line({}), {"kind": "point", "family": "gemm", "shape": {"m": 1}}], "lacks n, k, dtype"),
        ([header_line({}), point_line(POINT) | {"family": "gem"}], "unknown family"),
        ([header_line({}), point_line(POINT) | {"median_s": 0.0}], "must be > 0"),
        ([header_line({}), {"kind": "other"}, point_line(POINT)], "not a measurement record"),
        ([header_line({}), point_line(POINT) | {"family": ["gemm"]}], "unknown family"),
        ([header_line({}), point_line(POINT) | {"median_s": "fast"}], "median_s is 'fast', not a number"),
        ([header_line({}), point_line(POINT) | {"shape": {"m": "8", "n": 64, "k": 32}}], "m is '8', not a number"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, lines: list[dict[str, object]], said: str) -> None:
    path = written(tmp_path / "m.jsonl", *lines)
    with pytest.raises(InputError) as caught:
        read_measurements(path)
    assert said in str(caught.value) and "m.jsonl:" in str(caught.value)


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such measurements file") as caught:
        read_measurements(tmp_path / "none.jsonl")
    assert "plan calibrate run" in str(caught.value)


def test_a_header_that_describes_no_device_is_refused(tmp_path: Path) -> None:
    held = read_measurements(written(tmp_path / "m.jsonl"))
    with pytest.raises(InputError, match=r"m\.jsonl.*no 'num_sms'"):
        measured_gpu(held.header, held.path)
