"""Published tables into profiles: general, usable, and clear about what is wrong with a table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from app.cli.main import cli
from calibrate.fitting.importers import import_tables
from calibrate.profiles import load_profile
from calibrate.step import StepShape
from calibrate.step_time import step_model, step_table
from catalogs.errors import InputError, MissingError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Replica
from tests.shared_data import shared_data


def gemm_rows(device: str = "NVIDIA L4", unit: float = 1e3) -> pd.DataFrame:
    gpu = find_gpu("L4")
    grid = [(m, n, k) for m in (1, 32, 256, 2048) for n in (512, 1024, 4096, 8192) for k in (512, 1024, 4096, 8192)]
    frame = pd.DataFrame(grid, columns=["m", "n", "k"])
    moved = 2.0 * (frame.n * frame.k + frame.m * (frame.n + frame.k))
    work = 2.0 * frame.m * frame.n * frame.k / (0.6 * gpu.peak_flops["bf16"])
    time_s = np.maximum(work, moved / (0.8 * gpu.memory_bandwidth_bytes_per_s)) + 4e-6
    return frame.assign(device=device, gemm_dtype="bfloat16", latency=time_s * unit)


def write(folder: Path, rows: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "gemm_perf.parquet")
    return folder


def test_a_table_of_another_gpu_becomes_a_profile_that_the_simulator_can_use(tmp_path: Path) -> None:
    folder = write(tmp_path / "vllm-0.30.0", gemm_rows())
    output = tmp_path / "p.json"
    done = CliRunner().invoke(
        cli, ["calibrate", "import", "--format", "aiconfigurator", str(folder), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    profile = load_profile(output)
    assert profile.gpu == "L4" and profile.framework == "vllm"
    assert profile.error["gemm"]["bf16"]["median"] < 0.15
    assert "not measured here" in profile.error["decode_attention"]["bf16"]["basis"]
    replica = Replica(find_model("llama-3.1-8b"), find_gpu("L4"))
    assert step_table(replica, profile, 256, 16).decode_tokens_s[1] > 0
    floor = 15e9 / find_gpu("L4").memory_bandwidth_bytes_per_s
    assert floor < step_model(replica, profile).step_time_s(StepShape(0, 0, 1, 100, 1)) < 2 * floor


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", gemm_rows().drop(columns=["k", "latency"]))
    with pytest.raises(InputError, match=r"k, latency missing"):
        import_tables("aiconfigurator", folder)


@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_another_unit_is_recognised(tmp_path: Path, unit: float) -> None:
    with pytest.raises(InputError, match="column latency") as caught:
        import_tables("aiconfigurator", write(tmp_path / "t", gemm_rows(unit=unit)))
    assert "milliseconds" in str(caught.value)


def test_times_that_are_none_are_refused(tmp_path: Path) -> None:
    rows = gemm_rows()
    rows.loc[3, "latency"] = -1.0
    with pytest.raises(InputError, match="first in data row 4"):
        import_tables("aiconfigurator", write(tmp_path / "t", rows))


def test_an_unknown_device_an_empty_folder_and_a_broken_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--gpu"):
        import_tables("aiconfigurator", write(tmp_path / "t", gemm_rows(device="Frobnicator 9000")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no kernel tables"):
        import_tables("aiconfigurator", tmp_path / "empty")
    with pytest.raises(MissingError, match="no folder"):
        import_tables("vidur", tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "gemm_perf.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="cannot be read"):
        import_tables("aiconfigurator", tmp_path / "bad")


def test_several_backends_must_be_chosen_from(tmp_path: Path) -> None:
    write(tmp_path / "vllm-1.0", gemm_rows())
    write(tmp_path / "trtllm-1.0", gemm_rows())
    with pytest.raises(MissingError, match="several backends"):
        import_tables("aiconfigurator", tmp_path)


def test_vidur_tables_become_a_profile(tmp_path: Path) -> None:
    rows = pd.read_csv(shared_data("kernels/vidur/a100/Llama-2-7b-hf/mlp.csv")).iloc[::6]
    (tmp_path / "a100").mkdir()
    rows.to_csv(tmp_path / "a100" / "mlp.csv", index=False)
    document = import_tables("vidur", tmp_path / "a100")
    assert document["gpu"] == "A100-80GB"
    assert document["error"]["gemm"]["bf16"]["median"] < 0.10
    assert document["families"]["elementwise"]["default"]["launch_s"] < 1e-4


def test_a_vidur_table_without_a_column_names_it(tmp_path: Path) -> None:
    rows = pd.read_csv(shared_data("kernels/vidur/a100/Llama-2-7b-hf/mlp.csv")).drop(columns=["n_embd"])
    (tmp_path / "a100").mkdir()
    rows.to_csv(tmp_path / "a100" / "mlp.csv", index=False)
    with pytest.raises(InputError, match="n_embd missing"):
        import_tables("vidur", tmp_path / "a100")


def test_list_and_show_speak_all_forms() -> None:
    run = CliRunner().invoke
    listed = run(cli, ["calibrate", "list", "--format", "json"])
    assert listed.exit_code == 0
    assert {p["gpu"] for p in json.loads(listed.output)["profiles"]} >= {"T4", "H100-SXM", "B300"}
    for form in ("table", "csv", "md", "json"):
        assert run(cli, ["calibrate", "show", "l40s", "--format", form]).exit_code == 0


def test_an_unknown_or_newer_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="h100-sxm"):
        load_profile("no-such-profile")
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(InputError, match="newer"):
        load_profile(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a profile"):
        load_profile(path)
