"""Real torch on this CPU, at tiny sizes; nothing here asserts how long something takes."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from app.cli.calibrate import calibrate  # noqa: E402
from app.cli.main import cli  # noqa: E402
from calibrate.device import device_run, sweep  # noqa: E402
from calibrate.device.case import make_case, step_chunks  # noqa: E402
from calibrate.device.compose import KernelTimes, batch_parts  # noqa: E402
from calibrate.device.measurements import SHAPES, Measurement, read_measurements  # noqa: E402
from calibrate.device.paged_decoder import PagedDecoder, Step, make_step  # noqa: E402
from calibrate.device.probe import DeviceState, measured_gpu, slowdown_reasons, throttling  # noqa: E402
from catalogs.errors import GateError, InputError, MissingError  # noqa: E402

CPU = torch.device("cpu")
SCALE = dataclasses.replace(
    sweep.quick_scale(), num_tokens=(1, 16, 64), static_batches=(1, 2), contexts=(32, 64), target_s=0.001, max_samples=3
)


def quiet(_text: str, _share: float) -> None:
    return None


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    device_run.choose_threads(1)
    path = tmp_path_factory.mktemp("run") / "m.jsonl"
    plan = device_run.make_plan(CPU, SCALE, path)
    device_run.run(plan, CPU, SCALE, path, quiet, time.process_time)  # a busy machine cuts nothing short
    return path


def test_a_run_measures_every_family_and_says_why_it_skipped_the_rest(measured: Path) -> None:
    held = read_measurements(measured)
    assert {p.family for p in held.points} == set(SHAPES) - {"all_reduce", "send_recv"}
    assert all(p.p10_s <= p.median_s <= p.p90_s for p in held.points)
    skipped = {(s["dtype"] if s["family"] == "gemm" else s["family"]): s["reason"] for s in held.skipped}
    assert "tensor cores" in skipped["tf32"] and "CUDA graphs need CUDA" in skipped["launch"]


def test_a_finished_run_has_nothing_left_and_a_cut_one_resumes_where_it_was(measured: Path, tmp_path: Path) -> None:
    assert device_run.make_plan(CPU, SCALE, measured).left == ()
    cut = tmp_path / "cut.jsonl"
    lines = measured.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:40]) + lines[40][:25])
    plan = device_run.make_plan(CPU, SCALE, cut)
    done = {p.key for p in read_measurements(cut).points}
    assert done and not done & {c.key for c in plan.left}
    few = dataclasses.replace(plan, kernels=plan.left[:3], batches=())
    held = device_run.run(few, CPU, SCALE, cut, quiet, device_run.now_s)
    assert {c.key for c in few.kernels} <= {p.key for p in held.points} | {s.get("case") for s in held.skipped}


def test_another_devices_file_is_refused(measured: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    head, rest = measured.read_text().split("\n", 1)
    other.write_text(json.dumps(json.loads(head) | {"name": "NVIDIA H100"}) + "\n" + rest)
    with pytest.raises(InputError, match="NVIDIA H100"):
        device_run.make_plan(CPU, SCALE, other)


def test_out_of_memory_shrinks_the_sweep_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    plan = device_run.make_plan(CPU, SCALE, path, batches=False)
    gemms = sorted((c for c in plan.kernels if c.family == "gemm" and c.dtype == "fp32"), key=lambda c: c.num_bytes)
    limit = gemms[3].num_bytes
    real = device_run.build

    def build(case: object, device: object) -> object:
        if case.num_bytes >= limit:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(case, device)  # type: ignore[arg-type]

    monkeypatch.setattr(device_run, "build", build)
    held = device_run.run(dataclasses.replace(plan, kernels=tuple(gemms)), CPU, SCALE, path, quiet, device_run.now_s)
    assert len(held.points) == 3
    assert any("out of memory" in text and "larger ones are left out" in text for text in held.remarks)
    assert {s["reason"] for s in held.skipped if s.get("case")} == {
        "out of memory",
        "larger than one that ran out of memory",
    }


def test_a_run_slower_than_planned_stops_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    plan = device_run.make_plan(CPU, SCALE, path, batches=False)
    ticks = iter(range(0, 10**6, 100))
    held = device_run.run(plan, CPU, SCALE, path, quiet, lambda: float(next(ticks)))
    assert len(held.points) < len(plan.kernels) and any("slower than planned" in text for text in held.remarks)


def test_a_smaller_budget_leaves_dear_cases_out_but_no_family() -> None:
    cases = sweep.kernel_cases(sweep.cpu_scale(), ["fp32", "bf16"], is_cuda=False)
    kept, dropped = sweep.thin(cases, lambda c: 1e-3 + c.flops / 1e11, 5.0)
    assert dropped and {c.family for c in kept} == {c.family for c in cases}
    assert max(c.flops for c in kept) <= max(c.flops for c in dropped)


def test_every_batch_is_predicted_from_kernels_alone(measured: Path) -> None:
    held = read_measurements(measured)
    rows = device_run.check_batches(held, SCALE)
    assert {r["family"] for r in rows} == {"step", "encoder_batch", "vision_batch"}
    assert all(0.05 < r["predicted_s"] / r["measured_s"] < 20 for r in rows)


def test_a_step_consists_of_the_decoders_gemms_once_a_layer() -> None:
    case = sweep.step_case(SCALE, (32, 0), (8, 64))
    parts = batch_parts(case, SCALE.decoder, SCALE.encoder)
    flops = sum(num * part.flops for part, num in parts if part.family == "gemm")
    lm_head = 2.0 * 9 * SCALE.decoder.vocab_size * SCALE.decoder.hidden_size
    assert flops == pytest.approx(case.flops + lm_head)


def test_prefill_chunks_and_decode_agree_on_the_next_token() -> None:
    torch.manual_seed(0)
    decoder = PagedDecoder(SCALE.decoder, CPU, torch.float32, num_blocks=16)
    ids, table = torch.randint(0, SCALE.decoder.vocab_size, (20,)), torch.tensor([7, 3])

    def step(begin: int, end: int, decode: bool = False) -> Step:
        at = torch.arange(begin, end)
        slots = table[at // 16] * 16 + at % 16
        chunks = [] if decode else [(end - begin, begin, table)]
        tables, contexts = (table[None], torch.tensor([end])) if decode else (table[None][:0], torch.tensor([]))
        return Step(ids[begin:end], at, slots, chunks, tables, contexts, torch.tensor([end - begin - 1]))

    with torch.inference_mode():
        whole = decoder(step(0, 20))
        decoder(step(0, 12))
        chunked = decoder(step(12, 20))
        decoder(step(0, 19))
        decoded = decoder(step(19, 20, decode=True))
    assert whole == chunked == decoded


def test_a_step_beyond_the_cache_is_refused() -> None:
    decoder = PagedDecoder(SCALE.decoder, CPU, torch.float32, num_blocks=2)
    with pytest.raises(ValueError, match="more KV blocks"):
        make_step(decoder, [(64, 0)], [])


def test_a_step_case_knows_its_chunk() -> None:
    assert step_chunks(sweep.step_case(SCALE, (32, 64), (0, 0)).shape) == [(32, 64)]
    assert step_chunks(sweep.step_case(SCALE, (0, 0), (4, 64)).shape) == []


def test_a_roofline_device_is_recovered_from_its_own_times() -> None:
    points = []
    for m in (1, 4, 16, 64, 256, 1024):
        for n in (512, 2048):
            case = make_case("gemm", "bf16", {"m": m, "n": n, "k": 1024}, "dense")
            took = max(case.flops / 5e13, case.num_bytes / 8e11) + 3e-6
            points.append(Measurement("gemm", "bf16", case.shape, took, took, took, 5, "dense"))
    times = KernelTimes(points)
    new = make_case("gemm", "bf16", {"m": 2048, "n": 4096, "k": 4096}, "dense")
    assert times.time_s(new) == pytest.approx(new.flops / 5e13 + 3e-6, rel=0.02)
    with pytest.raises(MissingError, match="no norm kernels"):
        times.time_s(make_case("norm", "bf16", {"tokens": 1, "width": 8}, "rms_norm"))


def test_the_measured_device_is_a_data_sheet(measured: Path) -> None:
    gpu = measured_gpu(read_measurements(measured).header)
    assert gpu.peak_flops["fp32"] > 0 and gpu.memory_bandwidth_bytes_per_s > 0 and gpu.name.startswith("CPU")


def test_throttling_is_told_by_the_drivers_reason_or_a_falling_clock() -> None:
    assert throttling([DeviceState(clock_hz=1.9e9)] * 9) == []
    said = throttling([DeviceState(clock_hz=1.9e9)] * 9 + [DeviceState(clock_hz=1.2e9, slowed_by=("power cap",))])
    assert "power cap in 1 of 10" in said[0] and "1200 MHz" in said[1]
    assert slowdown_reasons("0x0000000000000021") == ("software thermal slowdown",)
    assert slowdown_reasons("[N/A]") == ()


def test_the_command_prints_the_plan_and_resumes_a_finished_file(measured: Path) -> None:
    runner = CliRunner()
    planned = runner.invoke(calibrate, ["run", "--quick", "--plan-only", "-o", str(measured), "--format", "json"])
    assert planned.exit_code == 0, planned.output
    document = json.loads(planned.stdout)
    assert document["expected_s"] > 0 and {row["family"] for row in document["plan"]} >= {"gemm", "step"}


def test_a_device_that_is_absent_is_exit_code_3(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    result = CliRunner().invoke(cli, ["calibrate", "run", "--device", "cuda", "-o", str(tmp_path / "m.jsonl")])
    assert isinstance(result.exception, MissingError) and result.exception.exit_code == 3


def test_without_torch_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util as util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    result = CliRunner().invoke(cli, ["calibrate", "run", "-o", str(tmp_path / "m.jsonl")])
    assert isinstance(result.exception, MissingError) and "pip install torch" in str(result.exception)


def test_a_directory_that_does_not_exist_is_refused() -> None:
    result = CliRunner().invoke(cli, ["calibrate", "run", "--device", "cpu", "-o", "/no/such/dir/m.jsonl"])
    assert isinstance(result.exception, InputError) and "no directory" in str(result.exception)


def test_a_fitted_profile_is_checked_on_whole_steps_it_did_not_see(measured: Path, tmp_path: Path) -> None:
    profile = tmp_path / "cpu.json"
    runner = CliRunner()
    fitted = runner.invoke(cli, ["calibrate", "fit", str(measured), "-o", str(profile)])
    assert fitted.exit_code == 0, fitted.exception
    result = runner.invoke(cli, ["calibrate", "batches", str(measured), str(profile), "--format", "json"])
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    assert len(document["steps"]) == len(read_measurements(measured).family("step"))
    assert all(step["predicted_s"] > 0 for step in document["steps"])
    gated = runner.invoke(cli, ["calibrate", "batches", str(measured), str(profile), "--max-error", "0"])
    assert isinstance(gated.exception, GateError)
    held = ["calibrate", "validate", str(profile), str(measured), "--limit", "1e9", "--format", "json"]
    kernels = runner.invoke(cli, held)  # on a device that no catalogue knows
    assert kernels.exit_code == 0, kernels.exception
    assert {s["metric"] for s in json.loads(kernels.stdout)["summary"]} >= {"gemm_s", "decode_attention_s"}


def test_a_file_without_whole_steps_cannot_check_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    device_run.make_plan(CPU, SCALE, path, batches=False)
    result = CliRunner().invoke(cli, ["calibrate", "batches", str(path), "h100-sxm"])
    assert isinstance(result.exception, MissingError) and "no whole steps" in str(result.exception)
