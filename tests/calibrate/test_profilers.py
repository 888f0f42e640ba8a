import gzip
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.main import cli
from calibrate.device.dcgm import against_roofline, read_counters
from calibrate.device.profilers import families, family_of, read_trace
from calibrate.server.prometheus_text import parse
from catalogs.errors import InputError, MissingError
from catalogs.load import find_gpu
from tests.calibrate.openai_server import Behaviour, openai_server

DCGM = """DCGM_FI_DEV_GPU_UTIL{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 99
DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 0.98
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 0.1
DCGM_FI_PROF_DRAM_ACTIVE{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 0.8
DCGM_FI_DEV_FB_USED{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 72000
DCGM_FI_DEV_FB_FREE{gpu="0",modelName="NVIDIA H100 80GB HBM3",Hostname="n"} 8000
"""


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128", "gemm"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "gemm"),
        ("void marlin::Marlin<...>", "gemm"),
        ("aten::addmm", "gemm"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "collective"),
        ("void vllm::fused_add_rms_norm_kernel", "norm"),
        ("fused_moe_kernel", "moe"),
        ("void at::native::vectorized_elementwise_kernel<4, silu>", "elementwise"),
        ("void vllm::reshape_and_cache_flash_kernel", "attention"),
        ("aten::convolution", "convolution"),
        ("something_else", "other"),
    ],
)
def test_kernel_names_tell_their_family(name: str, family: str) -> None:
    assert family_of(name) == family


def event(name: str, start: float, took: float, cat: str = "kernel", tid: int = 7) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": took, "pid": 0, "tid": tid}


def test_a_chrome_trace_becomes_families_and_idle_time(tmp_path: Path) -> None:
    kernels = [event("gemm", 0, 60), event("flash_fwd", 60, 20), event("Memcpy HtoD", 90, 10, "gpu_memcpy")]
    document = {"schemaVersion": 1, "deviceProperties": [{"name": "NVIDIA L4"}], "traceEvents": kernels}
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    trace = read_trace(path)
    rows = families(trace)
    assert trace.device == "NVIDIA L4" and trace.idle_share == pytest.approx(0.1)
    assert [(r["family"], round(r["share"], 3)) for r in rows] == [
        ("gemm", 0.667),
        ("attention", 0.222),
        ("copy", 0.111),
    ]


def test_operators_on_a_cpu_count_their_own_time_alone(tmp_path: Path) -> None:
    events = [event("aten::linear", 0, 100, "cpu_op"), event("aten::addmm", 10, 80, "cpu_op")]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}))
    assert sum(w.self_s for w in read_trace(path).work) == pytest.approx(100e-6)


def test_a_real_torch_profile_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.nn.functional.linear(torch.randn(64, 256), torch.randn(512, 256)).softmax(-1)
    path = tmp_path / "real.json"
    profile.export_chrome_trace(str(path))
    result = CliRunner().invoke(cli, ["calibrate", "profiler", str(path), "--format", "json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["device"] == "CPU" and {r["family"] for r in document["families"]} >= {"gemm", "sampling"}


def nsight(path: Path, version: str | None, kernels: bool = True) -> Path:
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
    base.execute("INSERT INTO StringIds VALUES (1, 'nvjet_hsh_64x8'), (2, 'flash_fwd_kernel')")
    if version:
        base.execute("CREATE TABLE META_DATA_EXPORT (name TEXT, value TEXT)")
        base.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', ?)", (version,))
    if kernels:
        base.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT, end INT, demangledName INT, shortName INT)")
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (0, 6000, 1, 1), (6000, 8000, 2, 2)")
        base.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INT, end INT)")
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (8000, 10000)")
        base.execute("CREATE TABLE TARGET_INFO_GPU (name TEXT)")
        base.execute("INSERT INTO TARGET_INFO_GPU VALUES ('NVIDIA H200')")
    base.commit()
    base.close()
    return path


def test_an_nsight_export_becomes_families(tmp_path: Path) -> None:
    trace = read_trace(nsight(tmp_path / "r.sqlite", "3.24.14"))
    rows = families(trace)
    assert trace.device == "NVIDIA H200" and trace.idle_share == pytest.approx(0.0)
    assert [(r["family"], r["total_s"]) for r in rows[:1]] == [("gemm", pytest.approx(6e-6))]


@pytest.mark.parametrize(("version", "said"), [(None, "schema unknown"), ("9.1.0", "schema 9.1.0")])
def test_an_unknown_nsight_version_is_refused_in_words(tmp_path: Path, version: str | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(nsight(tmp_path / "r.sqlite", version))
    assert said in str(caught.value) and "nsys export" in caught.value.remedy


def test_bad_traces_are_refused_in_words(tmp_path: Path) -> None:
    def saved(text: str, name: str = "t.json") -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name}"
        path.write_text(text)
        return path

    for path, said in (
        (saved("{"), "not a trace"),
        (saved("[]"), "no traceEvents"),
        (saved('{"traceEvents": []}'), "schema None"),
        (saved('{"schemaVersion": 7, "traceEvents": []}'), "schema 7"),
        (saved('{"schemaVersion": 1, "traceEvents": []}'), "neither kernels nor operators"),
        (saved("x", "r.nsys-rep"), "cannot be read"),
        (tmp_path / "none.json", "no such file"),
        (nsight(tmp_path / "k.sqlite", "3.1", kernels=False), "no CUDA kernels"),
    ):
        with pytest.raises(InputError) as caught:
            read_trace(path)
        assert said in str(caught.value) and caught.value.remedy, path
    broken = tmp_path / "b.sqlite"
    broken.write_bytes(b"SQLite format 3\x00" + b"\x00" * 200)
    with pytest.raises(InputError, match="Nsight"):
        read_trace(broken)


def test_counters_are_set_against_the_roofline() -> None:
    (counters,) = read_counters(parse(DCGM))
    sheet = find_gpu(counters.model)
    assert sheet.name == "H100-SXM"
    answer = against_roofline(counters, sheet)
    assert answer["bound_by"] == "memory bandwidth" and "80%" in answer["because"]
    assert answer["dram_bytes_per_s"] == pytest.approx(0.8 * sheet.memory_bandwidth_bytes_per_s)
    assert answer["intensity_flops_per_byte"] < answer["ridge_flops_per_byte"]
    assert answer["memory_share"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"tensor_active": 0.85}, "compute"),
        ({"dram_active": 0.2, "engine_active": 0.2}, "no work"),
        ({"dram_active": 0.2, "memory_free_bytes": 1e6}, "memory capacity"),
        ({"dram_active": 0.2, "memory_free_bytes": 0.0}, "memory capacity"),
        ({"dram_active": 0.2, "nvlink_tx_bytes_per_s": 90e9}, "interconnect"),
        ({"dram_active": 0.2}, "launch overhead"),
    ],
)
def test_each_bound_is_named_with_its_numbers(changes: dict[str, float], bound: str) -> None:
    (counters,) = read_counters(parse(DCGM))
    counters.values.update(changes)
    answer = against_roofline(counters, find_gpu("H100-SXM"))
    assert answer["bound_by"] == bound and "%" in answer["because"]


def test_the_command_reads_counters_from_a_file_or_a_url(tmp_path: Path) -> None:
    path = tmp_path / "dcgm.txt"
    path.write_text(DCGM)
    result = CliRunner().invoke(cli, ["calibrate", "profiler", "--dcgm", str(path), "--format", "json"])
    assert json.loads(result.stdout)["gpus"][0]["bound_by"] == "memory bandwidth"
    with openai_server(Behaviour()) as url:
        wrong = CliRunner().invoke(cli, ["calibrate", "profiler", "--dcgm", f"{url}/metrics"])
        absent = CliRunner().invoke(cli, ["calibrate", "profiler", "--dcgm", f"{url}/nothing"])
    assert isinstance(wrong.exception, InputError) and "no DCGM_FI_*" in str(wrong.exception)
    assert isinstance(absent.exception, MissingError) and "HTTP 404" in str(absent.exception)
