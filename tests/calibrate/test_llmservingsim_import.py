"""Profiles from LLMServingSim tables: read, and composed into step times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.fitting.importers.llmservingsim import import_profile
from calibrate.kernel_tables import _between_edges, _surplus
from calibrate.profiles import profile_from_dict, profile_to_dict
from calibrate.step_time import step_table
from catalogs.errors import InputError, MissingError
from catalogs.load import find_gpu, find_model
from catalogs.schema import Engine, Replica

ENGINE = Engine(max_num_seqs=8, max_num_batched_tokens=64)


def write_tables(folder: Path, layers: dict[str, float], moe: bool = False, degree: int = 1) -> Path:
    """Tables in which a token-wise layer takes ``us`` a token, a head 10 us, and attention 1 us a sequence and key."""
    (folder / "meta.yaml").write_text("gpu: NVIDIA RTX PRO 6000\nhardware: RTXPRO6000\nmodel: m\nvariant: bf16\n")
    place = folder / f"tp{degree}"
    place.mkdir()
    dense = [f"{name},{tokens},{us * tokens}" for name, us in layers.items() for tokens in (1, 64)]
    (place / "dense.csv").write_text("\n".join(["layer,tokens,time_us", *dense]))
    (place / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,10\nlm_head,8,10\n")
    rows = [
        f"{chunk},{history},{n},{kv},{chunk * (history + chunk / 2) / 100 + n * kv / 100}"
        for chunk in (0, 16, 64) for history in (0, 64) for n in (0, 1, 8) for kv in (0, 16, 64)
        if (chunk or n) and (history == 0 or chunk) and (kv == 0) == (n == 0)
    ]  # fmt: skip
    (place / "attention.csv").write_text("\n".join(["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", *rows]))
    if moe:
        rows = [f"{tokens},{experts},{experts}" for tokens in (1, 64) for experts in (1, 128)]
        (place / "moe.csv").write_text("\n".join(["tokens,activated_experts,time_us", *rows]))
    return folder


def replica(model: str, **kw: int) -> Replica:
    return Replica(find_model(model), find_gpu("RTX-PRO-6000"), engine=ENGINE, **kw)


def test_a_step_sums_layers_with_two_norms_each_and_one_embedding(tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"embedding": 1.0, "layernorm": 2.0, "qkv_proj": 3.0}))
    table = step_table(replica("llama-3.1-8b"), profile, 64, 8)
    assert table.decode_tokens_s[8] == pytest.approx(8e-6 * (1.0 + 32 * (2 * 2.0 + 3.0)))
    assert table.sampled_s[3] == pytest.approx(10e-6)
    assert table.mixed_tokens_s[8] > table.decode_tokens_s[8]


def test_attention_is_tabled_by_the_mean_keys_of_a_prompt_token(tmp_path: Path) -> None:
    table = step_table(replica("llama-3.1-8b"), import_profile(write_tables(tmp_path, {"qkv_proj": 1.0})), 64, 8)
    c = int(np.flatnonzero(table.prefill_tokens_axis == 64)[0])
    p = int(np.flatnonzero(table.prefill_context_axis == 32)[0])
    assert table.attention_s[c, p, 0, 0] == pytest.approx(32 * 1e-6 * 64 * 32 / 100)
    d = int(np.flatnonzero(table.num_decode_axis == 8)[0])
    k = int(np.flatnonzero(table.decode_context_axis == 64)[0])
    assert table.attention_s[0, 0, d, k] == pytest.approx(32 * 1e-6 * 8 * 64 / 100)


def test_decode_steps_run_as_graphs_of_captured_sizes(tmp_path: Path) -> None:
    table = step_table(replica("llama-3.1-8b"), import_profile(write_tables(tmp_path, {"qkv_proj": 1.0})), 64, 8)
    assert table.decode_tokens_s[9] == table.decode_tokens_s[16] > table.decode_tokens_s[8]


def test_experts_take_the_time_of_those_that_the_tokens_reach(tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"qkv_proj": 0.0}, moe=True))
    table = step_table(replica("qwen3-30b-a3b"), profile, 64, 8)
    reached = 128 * (1 - (1 - 8 / 128) ** 8)
    assert table.decode_tokens_s[8] == pytest.approx(48 * 1e-6 * reached, rel=1e-6)


def test_ranks_that_share_experts_are_timed_at_the_tokens_of_all(tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"qkv_proj": 1.0}, moe=True))
    table = step_table(replica("qwen3-30b-a3b", data_parallel_size=2, expert_parallel_size=2), profile, 64, 8)
    assert table.decode_tokens_s[8] == pytest.approx(48 * 8e-6)  # a rank's own layers
    assert table.experts_s is not None
    reached = 64 * (1 - (1 - 8 / 128) ** 16)
    assert table.experts_s[16] > 48 * 1e-6 * reached  # and the exchange


def test_sliced_experts_need_the_kernel_of_their_slice(tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"qkv_proj": 1.0}, moe=True))
    ranks = replica("qwen3-30b-a3b", data_parallel_size=2)  # vLLM without --enable-expert-parallel
    with pytest.raises(MissingError, match=r"no tp2/moe\.csv"):
        step_table(ranks, profile, 64, 8)
    profile = import_profile(write_tables(tmp_path, {"qkv_proj": 1.0}, moe=True, degree=2))
    table = step_table(ranks, profile, 64, 8)
    reached = 128 * (1 - (1 - 8 / 128) ** 16)
    assert table.experts_s is not None and table.experts_s[16] > 48 * 1e-6 * reached  # of all experts, and the exchange
    assert table.decode_tokens_s[8] == pytest.approx(48 * 8e-6)


def test_tensor_parallel_tables_fall_back_on_one_gpu_for_layers_that_do_not_change(tmp_path: Path) -> None:
    write_tables(tmp_path, {"qkv_proj": 2.0, "layernorm": 1.0})
    write_tables(tmp_path, {"qkv_proj": 1.0}, degree=2)
    table = step_table(replica("llama-3.1-8b", tensor_parallel_size=2), import_profile(tmp_path), 64, 8)
    assert table.decode_tokens_s[8] > 8e-6 * 32 * (1.0 + 2 * 1.0)  # and the all-reduces


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = import_profile(write_tables(tmp_path, {"qkv_proj": 1.0}))
    assert profile_from_dict(profile_to_dict(profile)) == profile
    assert profile.gpu == "RTX-PRO-6000"


def test_a_folder_may_be_the_one_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "RTXPRO6000" / "llama-3.1-8b" / "bf16"
    place.mkdir(parents=True)
    write_tables(place, {"qkv_proj": 1.0})
    (place / "meta.yaml").unlink()
    monkeypatch.chdir(place)
    profile = import_profile(".")
    assert (profile.gpu, profile.model, profile.precision) == ("RTX-PRO-6000", "llama-3.1-8b", "bf16")


@pytest.mark.parametrize("meta", [b"gpu: \xff\n", b"skew_fit: [1]\n", b"skew_fit: {enabled: true, per_tp: {1: 2}}\n"])
def test_broken_notes_of_the_profiler_are_refused(meta: bytes, tmp_path: Path) -> None:
    write_tables(tmp_path, {"qkv_proj": 1.0})
    (tmp_path / "meta.yaml").write_bytes(meta)
    (tmp_path / "tp1" / "skew_fit.csv").write_text("")
    with pytest.raises(InputError, match=r"meta\.yaml"):
        import_profile(tmp_path)


def test_missing_and_broken_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder"):
        import_profile(tmp_path / "nowhere")
    write_tables(tmp_path, {"qkv_proj": 1.0})
    profile = import_profile(tmp_path)
    with pytest.raises(MissingError, match="tensor_parallel_size 4"):
        step_table(replica("llama-3.1-8b", tensor_parallel_size=4), profile, 64, 8)
    (tmp_path / "tp1" / "attention.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks prefill_chunk"):
        import_profile(tmp_path)
    (tmp_path / "tp1" / "attention.csv").unlink()
    with pytest.raises(MissingError, match=r"no .*attention\.csv"):
        import_profile(tmp_path)


def test_skew_between_swept_points_follows_a_line_in_the_logarithm() -> None:
    edges, alpha = _between_edges(np.array([4.0, 64.0, 1e12]), np.array([[0.0, 0.4, 0.9]]), 1)
    assert edges.tolist() == pytest.approx([4.0, 8.0, 16.0, 32.0, 64.0])
    assert alpha[0].tolist() == pytest.approx([0.0, 0.05, 0.15, 0.25, 0.35])
    assert _between_edges(np.array([64.0]), np.array([0.4]), 0)[1].tolist() == [0.4]


def test_only_a_share_of_mixed_attentions_surplus_is_paid() -> None:
    attention = np.zeros((2, 2, 2, 2))  # chunk, history, decodes, context
    attention[1, :, :, :] += 10.0
    attention[:, :, 1, :] += 4.0
    attention[1, :, 1, :] += 5.0
    paid = _surplus(attention, 0.6)
    assert paid[1, 0, 1, 0] == pytest.approx(10.0 + 4.0 + 0.6 * 5.0)
    assert (paid[0] == attention[0]).all() and (paid[:, :, 0] == attention[:, :, 0]).all()
    assert (_surplus(attention, 1.0) == attention).all()
