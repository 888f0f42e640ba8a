"""This machine's measurements into a profile that the simulator can use."""

import json
from pathlib import Path

from click.testing import CliRunner

from app.cli.main import cli
from calibrate.device.measurements import Measurement, header_line, point_line
from calibrate.device.probe import cpu_header
from calibrate.profiles import load_profile
from calibrate.step_time import step_table
from catalogs.load import find_gpu, find_model
from catalogs.schema import Replica

PEAK, BANDWIDTH = 2e11, 2e10


def measured(path: Path) -> Path:
    """A file as `plan calibrate run` writes it, of a device that keeps to a roofline."""
    header = cpu_header() | {
        "achieved_peak_flops": {"fp32": PEAK, "bf16": PEAK}, "achieved_bandwidth_bytes_per_s": BANDWIDTH,
    }  # fmt: skip
    points = []
    for m in (1, 16, 128, 1024):
        for n in (256, 1024, 4096):
            for k in (256, 1024, 4096):
                time_s = max(2.0 * m * n * k / PEAK, 2.0 * (n * k + m * (n + k)) / BANDWIDTH) / 0.8 + 1e-5
                shape = {"m": m, "n": n, "k": k}
                points.append(Measurement("gemm", "bf16", shape, time_s, time_s, time_s, 5, "dense"))
    for batch in (1, 4, 16):
        for context in (128, 512, 2048):
            heads = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 64}
            time_s = batch * context * 8 * 64 * 4.0 / BANDWIDTH / 0.6 + 2e-5
            shape = {"batch": batch, "context": context, "max_context": context, **heads}
            points.append(Measurement("decode_attention", "bf16", shape, time_s, time_s, time_s, 5, "paged"))
    lines = [header_line(header), *map(point_line, points)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_measurements_become_a_profile_with_its_own_errors_and_lent_families(tmp_path: Path) -> None:
    output = tmp_path / "mine.json"
    source = measured(tmp_path / "measurements.jsonl")
    done = CliRunner().invoke(cli, ["calibrate", "fit", str(source), "-o", str(output), "--format", "json"])
    assert done.exit_code == 0, done.output
    profile = load_profile(output)
    assert profile.name == "measurements" and profile.device["memory_bandwidth_bytes_per_s"] == BANDWIDTH
    assert profile.error["gemm"]["bf16"]["median"] < 0.2
    assert "taken from profile" in profile.error["prefill_attention"]["bf16"]["basis"]
    replica = Replica(find_model("llama-3.1-8b"), find_gpu("L4"))
    assert (step_table(replica, profile, 64, 8).decode_tokens_s > 0).all()


def test_a_file_without_kernels_or_a_missing_one_is_said(tmp_path: Path) -> None:
    runner, output = CliRunner(), str(tmp_path / "p.json")
    empty = measured(tmp_path / "m.jsonl")
    empty.write_text(empty.read_text().splitlines()[0] + "\n")
    done = runner.invoke(cli, ["calibrate", "fit", str(empty), "-o", output])
    assert done.exception is not None and "no kernels" in str(done.exception)
    done = runner.invoke(cli, ["calibrate", "fit", str(tmp_path / "none.jsonl"), "-o", output])
    assert "no such measurements file" in str(done.exception)
