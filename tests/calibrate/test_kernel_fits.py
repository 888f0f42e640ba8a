"""Kernel fits: what they recover, that they keep to physics, and that the shipped ones are as exact as they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.fitting.families import FAMILIES, column, prefill_work
from calibrate.fitting.fit import accuracy, fit_family, form_of, held_out, predict
from calibrate.fitting.importers.aiconfigurator import expert_matrices, read_frames
from calibrate.fitting.shipping import CARRIED, FITTED
from calibrate.physics import gemm, moe, residual
from calibrate.physics.attention import Heads, decode_time_s, prefill_time_s
from calibrate.physics.precisions import on_gpu, support
from calibrate.physics.roofline import clock_hz, peak_flops
from calibrate.profile_error import error_at, measured_accuracy, replica_error, served_error
from calibrate.profiles import SHIPPED, best_profile, shipped_profiles
from catalogs.load import find_gpu, find_model, gpus
from catalogs.schema import Engine, Replica
from tests.shared_data import shared_data

HEADS = Heads(32, 8, 128, 128, 256, 2.0)


def test_a_correction_recovers_a_smooth_function_and_holds_beyond_its_knots():
    rng = np.random.default_rng(0)
    x, y = 2.0 ** rng.uniform(0, 10, 800), 2.0 ** rng.uniform(0, 6, 800)
    target = 0.1 * np.log2(x) - 0.05 * np.log2(y)
    knots = {"x": [1, 4, 32, 256, 1024], "y": [1, 8, 64]}
    found = residual.fit_residual(knots, {"x": x, "y": y}, target, 1e-4, 1e-4)
    assert np.abs(residual.evaluate(found, {"x": x, "y": y}) - target).max() < 0.02
    edge = residual.evaluate(found, {"x": np.array([1024.0, 1e9]), "y": np.array([8.0, 8.0])})
    assert edge[0] == edge[1]


def test_the_split_is_fixed_and_takes_whole_groups():
    n, k = np.meshgrid([128, 256, 512, 1024, 4096], [128, 512, 2048, 8192], indexing="ij")
    frame = pd.DataFrame({"m": np.arange(60) % 3, "n": np.repeat(n.ravel(), 3), "k": np.repeat(k.ravel(), 3)})
    unseen = held_out(frame, ("n", "k"))
    assert 0.05 < unseen.mean() < 0.45
    assert frame.assign(unseen=unseen).groupby(["n", "k"])["unseen"].nunique().max() == 1
    assert (held_out(frame.sample(frac=1, random_state=1), ("n", "k")).sum()) == unseen.sum()


def test_a_fit_finds_the_roofline_that_made_the_times():
    gpu = find_gpu("A10G")
    grid = [(m, n, k) for m in (1, 16, 64, 256, 1024, 4096) for n in (512, 2048, 4096, 8192) for k in (512, 2048, 8192)]
    frame = pd.DataFrame(grid, columns=["m", "n", "k"]).astype(float)
    work = 2 * frame["m"] * frame["n"] * frame["k"] / (0.7 * gpu.peak_flops["bf16"])
    moved = 2 * (frame["n"] * frame["k"] + frame["m"] * (frame["n"] + frame["k"]))
    frame["time_s"] = np.maximum(work, moved / (0.8 * gpu.memory_bandwidth_bytes_per_s)) + 5e-6
    _, error = fit_family("gemm", "bf16", gpu, frame)
    assert error["basis"] == "held-out shapes" and error["median"] < 0.15


@pytest.mark.parametrize("name", sorted(gpus()))
def test_every_catalogue_gpu_has_a_profile_that_says_what_it_rests_on(name):
    profile = best_profile(Replica(find_model("llama-3.1-8b"), find_gpu(name)))
    assert profile.gpu == name and profile.source and profile.method
    error = profile.error["gemm"]["bf16"]
    assert error["median"] < 0.25 and error["basis"]
    assert name in CARRIED or name in {gpu for gpu, *_ in FITTED.values()}


def test_shipped_profiles_are_small_and_hold_no_tables():
    for path in (Path(gemm.__file__).parent / "shipped").glob("*.json"):
        assert path.stat().st_size < 300_000
    for profile in shipped_profiles().values():
        assert not profile.tables


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(gpus())),
    kind=st.sampled_from(["bf16", "fp8", "int4-awq"]),
    n=st.integers(16, 300_000),
    k=st.integers(16, 100_000),
)
def test_gemm_time_never_falls_with_tokens_nor_beats_the_peak(name, kind, n, k):
    gpu = find_gpu(name)
    if support(kind, gpu) == "refused":
        return
    form, profile = on_gpu(kind, gpu), best_profile(Replica(find_model("llama-3.1-8b"), gpu))
    m = np.unique(np.concatenate([np.arange(1, 600), np.geomspace(600, 3e5, 80).round()]))
    time = gemm.gemm_time_s(profile.family("gemm", form.gemm), gpu, form, m, n, k)
    assert (np.diff(time) >= 0).all()
    assert (time >= 2.0 * m * n * k / peak_flops(gpu, form.compute) * (1 - 1e-9)).all()


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(FITTED)),
    m=st.integers(1, 200_000),
    n=st.integers(65_536, 1_000_000),
    k=st.integers(65_536, 1_000_000),
)
def test_beyond_its_shapes_a_linear_layer_takes_longer_the_larger_it_is(name, m, n, k):
    gpu, profile = find_gpu(FITTED[name][0]), shipped_profiles()[name]
    form, fit = on_gpu("bf16", gpu), profile.family("gemm", "bf16")
    wider, deeper = ((m, n, k), (m, n * 1.3, k), (m, n * 2.0, k)), ((m, n, k), (m, n, k * 1.3), (m, n, k * 2.0))
    for path in (wider, deeper):
        shapes = tuple(np.asarray(values, dtype=float) for values in zip(*path, strict=True))
        time = gemm.raw_time_s(fit, gpu, form, shapes, cold=True)
        assert (np.diff(time) >= 0).all()
        assert (time >= 2.0 * np.prod(shapes, axis=0) / peak_flops(gpu, "bf16") * (1 - 1e-9)).all()


@pytest.mark.parametrize(
    ("name", "ghz"),
    [("T4", 1.59), ("V100", 1.53), ("A100-80GB", 1.41), ("L40S", 2.52), ("L4", 2.04), ("H100-SXM", 1.98)],
)
def test_the_data_sheets_peak_implies_the_boost_clock(name, ghz):
    """Boost clocks: NVIDIA's data sheets and architecture white papers."""
    assert clock_hz(find_gpu(name)) == pytest.approx(ghz * 1e9, rel=0.01)


def test_floors_are_cycles_and_power_bounds_the_peak():
    gpu = find_gpu("L40S")
    fit = {"tile_128x128": 0.9, "sm_bytes_per_flop": 1.0, "eff_bandwidth": 0.8, "launch_s": 2e-5, "wave_s": 1e-9,
           "split_s": 1.0, "l2_copies": 6.0, "l2_bytes_per_flop": 1.0, "latency_clock_hz": 2e9}  # fmt: skip
    tiny, large = (np.array([1.0]), 16.0, 16.0), (np.array([16384.0]), 8192.0, 8192.0)
    form = on_gpu("bf16", gpu)
    floor = gemm.physics_s(fit, gpu, form, tiny, cold=True)[0]
    assert floor == pytest.approx(2e-5 * 2e9 / clock_hz(gpu), rel=0.1)
    free = gemm.physics_s(fit, gpu, form, large, cold=True)[0]
    held = gemm.physics_s({**fit, "joules_per_flop": 2e-12}, gpu, form, large, cold=True)[0]
    at_peak_w = 2e-12 * (clock_hz(gpu) / 2e9) ** 2 * gpu.peak_flops["bf16"]
    assert held / free == pytest.approx((at_peak_w / gpu.tdp_w) ** (1 / 3), rel=0.02)


def test_a_benchmarks_host_time_is_found_and_not_charged_to_a_served_model():
    gpu, form = find_gpu("H100-SXM"), on_gpu("fp8-block", find_gpu("H100-SXM"))
    device = {**{name: start for name, (start, _, _) in FAMILIES["gemm"].start.items()}, "latency_clock_hz": 2e9}
    grid = [(m, n, k) for m in (1, 64, 1024, 8192) for n in (512, 2048, 8192, 32768) for k in (512, 2048, 8192, 16384)]
    frame = pd.DataFrame(grid, columns=["m", "n", "k"]).astype(float)
    frame["time_s"] = np.maximum(90e-6, FAMILIES["gemm"].physics(device, gpu, form, frame))
    fit, _ = fit_family("gemm", "fp8_block", gpu, frame)
    assert fit["host_s"] == pytest.approx(90e-6, rel=0.1)
    small, large = (np.array([16.0]), 512.0, 512.0), (np.array([8192.0]), 32768.0, 16384.0)
    assert (
        gemm.raw_time_s(fit, gpu, form, small, cold=True)[0] < 30e-6 < 80e-6 < gemm.raw_time_s(fit, gpu, form, small)[0]
    )
    served, timed = gemm.raw_time_s(fit, gpu, form, large, cold=True)[0], gemm.raw_time_s(fit, gpu, form, large)[0]
    assert served == pytest.approx(timed, rel=0.05)


def test_each_gpu_of_a_group_passes_over_all_pairs_of_the_groups_tokens():
    gpu, form = find_gpu("H100-SXM"), on_gpu("bf16", find_gpu("H100-SXM"))
    fit = shipped_profiles()["h100-sxm"].family("moe", "bf16")
    rows, hit = np.array([64.0, 4096.0]), np.array([8.0, 8.0])
    experts = moe.Experts(256, 8, 8, 4096, 2048)
    alone = moe.experts_physics_s(fit, gpu, form, experts, moe.Load(rows, hit, rows), cold=True)
    shared = moe.experts_physics_s(fit, gpu, form, experts, moe.Load(rows, hit, 32 * rows), cold=True)
    added = fit["pair_bytes"] * 31 * rows * (4096 + 3 * 2048) / gpu.memory_bandwidth_bytes_per_s
    assert shared - alone == pytest.approx(added)


def test_experts_without_a_gate_have_two_matrices():
    table = pd.DataFrame(
        {"inter_size": [1856, 768, 512], "num_experts": [128, 128, 64], "topk": [6, 8, 2],
         "kernel_source": ["fused", "fused", "moe_torch_flow_nongated"]}
    )  # fmt: skip
    assert expert_matrices(table) == [2.0, 3.0, 2.0]


@pytest.mark.parametrize("name", sorted(gpus()))
def test_attention_stays_below_peak_and_above_the_bandwidth_floor(name):
    gpu = find_gpu(name)
    profile = best_profile(Replica(find_model("llama-3.1-8b"), gpu))
    tokens, keys = np.meshgrid(2.0 ** np.arange(15), 2.0 ** np.arange(4, 18), indexing="ij")
    prefill = prefill_time_s(profile.family("prefill_attention", "bf16"), gpu, HEADS, tokens, keys)
    assert (prefill >= 4.0 * tokens * keys * 32 * 128 / peak_flops(gpu, "bf16") * (1 - 1e-9)).all()
    decode = decode_time_s(profile.family("decode_attention", "bf16"), gpu, HEADS, tokens, keys)
    moved = tokens * keys * 8 * 256 * 2.0
    assert (decode >= 0.9 * moved / gpu.memory_bandwidth_bytes_per_s)[moved > 1e9].all()


def test_outside_its_range_a_profile_widens_its_error_and_says_so():
    profile = shipped_profiles()["h100-sxm"]
    inside = error_at(profile, "gemm", "bf16", {"n": 4096, "k": 4096})
    outside = error_at(profile, "gemm", "bf16", {"n": 4 * 65536, "k": 4096})
    assert outside["median"] == pytest.approx(2.0 * inside["median"])
    assert not inside["outside"] and "n 262144 is outside" in outside["outside"][0]


def test_a_replicas_error_is_that_of_the_kernels_it_uses():
    replica = Replica(
        find_model("qwen3-30b-a3b"), find_gpu("H100-SXM"), tensor_parallel_size=2, precision="fp8",
        kv_cache_dtype="fp8", engine=Engine(max_model_len=8192),
    )  # fmt: skip
    error = replica_error(replica, best_profile(replica))
    assert error["gemm"]["variant"] == "fp8" and error["decode_attention"]["variant"] == "fp8"
    assert {"moe", "all_reduce"} <= set(error)


def test_prefill_work_counts_chunks_contexts_and_windows():
    rows = pd.DataFrame(
        {"batch": [2, 1, 1], "query_tokens": [100, 50, 1000], "context_tokens": [0, 150, 0], "window": [0, 0, 100]}
    )
    tokens, keys = prefill_work(rows)
    assert list(tokens) == [200, 50, 1000]
    assert keys[0] == 50 and keys[1] == 175
    assert keys[2] == pytest.approx((100 * 50 + 900 * 100) / 1000)


TARGETS = {  # (profile, family, variant): (median, p90) that the held-out shapes must keep; measured, rounded up
    ("a100-80gb", "gemm", "bf16"): (0.031, 0.10),
    ("a100-80gb", "decode_attention", "bf16"): (0.06, 0.20),
    ("a100-80gb", "prefill_attention", "bf16"): (0.06, 0.20),
}


def check_profile(name: str, only: set[tuple[str, str]] | None = None) -> None:
    """The held-out errors that a shipped profile states are what its tables give."""
    gpu_name, system, backend, _ = FITTED[name]
    gpu, profile = find_gpu(gpu_name), shipped_profiles()[name]
    _, frames = read_frames(shared_data(f"kernels/aiconfigurator/{system}"), gpu, backend)
    for (family, variant), frame in frames.items():
        if only is not None and (family, variant) not in only:
            continue
        kernels = FAMILIES[family]
        rows = pd.DataFrame(frame.groupby(list(kernels.columns), as_index=False)["time_s"].median())
        unseen = rows[held_out(rows, kernels.split)]
        fit, form = profile.families[family][variant], form_of(family, variant)
        error = accuracy(predict(kernels, gpu, form, unseen, fit), column(unseen, "time_s"))
        said = profile.error[family][variant]
        assert error["median"] == pytest.approx(said["median"], abs=0.005), (family, variant)
        limits = TARGETS.get((name, family, variant))
        if limits:
            assert error["median"] <= limits[0] and error["p90"] <= limits[1]


def test_the_a100_profile_is_as_exact_as_it_says():
    check_profile("a100-80gb", {(family, variant) for _, family, variant in TARGETS})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTED))
def test_every_fitted_profile_is_as_exact_as_it_says(name):
    check_profile(name)


# (median, p90) of 16-bit linear layers that each GPU's held-out shapes must keep; the project's target is 3 and 10 %.
# What is above it is noise for the most part: docs/profiles.md.
GEMM_16_BIT = {"a100-80gb": (0.031, 0.10), "h100-sxm": (0.03, 0.10), "h200": (0.03, 0.10), "b200": (0.04, 0.12),
               "l40s": (0.055, 0.175)}  # fmt: skip


def stated_errors():
    """The errors that shipped profiles state, by profile, kernel family and type."""
    return {(profile.name, family, variant): error
            for profile in shipped_profiles().values()
            for family, variants in profile.error.items()
            for variant, error in variants.items() if "median" in error}  # fmt: skip


def test_stated_errors_meet_the_projects_targets():
    rows = stated_errors()
    for (name, family, variant), row in rows.items():
        if row.get("basis") != "held-out shapes":
            continue
        limits = {"gemm": GEMM_16_BIT[name] if (variant, name in GEMM_16_BIT) == ("bf16", True) else (0.06, 0.20),
                  "decode_attention": (0.06, 0.20), "prefill_attention": (0.06, 0.20)}.get(family)  # fmt: skip
        if limits and (name, variant) != ("h100-sxm-tensorrt-llm", "bf16-window"):  # 4 and 24 %
            assert row["median"] <= limits[0] and row["p90"] <= limits[1], (name, family, variant)
        if family == "moe" and variant != "mxfp4":  # two models and two kernels of one format: 10 to 12 %
            assert row["median"] <= 0.08 and row["p90"] <= 0.52, (name, variant)


def test_each_gpu_left_out_is_predicted_from_its_data_sheet():
    document = json.loads((SHIPPED / "shared.json").read_text())
    by_gpu = document["error"]["gemm"]["bf16"]["by_gpu"]
    assert len(by_gpu) == 5 and max(error["median"] for error in by_gpu.values()) <= 0.12
    rows = stated_errors()
    assert max(rows[name, "gemm", "bf16"]["median"] for name in ("t4", "v100", "a10g")) <= 0.12


@pytest.mark.parametrize(("model", "least"), [("llama-3.1-8b", 0.05), ("gpt-oss-120b", 0.5), ("bert-large", 0.05)])
def test_the_error_of_served_steps_is_the_validation_reports(model: str, least: float) -> None:
    error = served_error(find_model(model))
    assert error is not None and error >= least
    assert error in {r[figure] for r in measured_accuracy() if r["fit"] == "unseen" for figure in ("median", "p90")}
