"""Runs a device calibration: probe, plan, measure and resume, then check that the kernels predict the batches."""

from __future__ import annotations

import ctypes
import ctypes.util
import datetime
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from calibrate.device import compose
from calibrate.device.batches import Batches, free_memory, seeded
from calibrate.device.case import Case, make_case
from calibrate.device.kernels import NotSupportedError, build
from calibrate.device.measurements import (
    Measurement,
    MeasurementFile,
    append_lines,
    header_line,
    point_line,
    read_measurements,
    remark_line,
    skip_line,
)
from calibrate.device.probe import cpu_header, read_state, throttling
from calibrate.device.sweep import CPU_DTYPES, GPU_DTYPES, Rates, Scale, batch_cases, kernel_cases, predicted_s, thin
from calibrate.device.timing import Timer, Work
from catalogs.errors import InputError

Progress = Callable[[str, float], None]
BUSY_LOAD_PER_CORE = 0.3
BATCH_SHARE = 0.35  # of the time budget, for whole batches
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
QUICK_S = 30.0  # budget below which the probe keeps to small matrices
OVERRUN = 1.3  # times the budget after which the rest of the sweep is left out
_UNRUNNABLE = (NotSupportedError, RuntimeError, NotImplementedError, ValueError, AttributeError, TypeError)


@dataclass(frozen=True)
class Plan:
    """What a run will measure, what it leaves out to keep its budget, and the seconds it is expected to take."""

    header: dict[str, Any]
    kernels: tuple[Case, ...]
    batches: tuple[Case, ...]
    dropped: tuple[Case, ...]
    done: frozenset[str]
    cost_s: dict[str, float] = field(repr=False)

    @property
    def left(self) -> tuple[Case, ...]:
        """Cases that are still to be measured."""
        return tuple(c for c in (*self.kernels, *self.batches) if c.key not in self.done)

    @property
    def predicted_s(self) -> float:
        """Seconds that the cases still to be measured are expected to take."""
        return sum(self.cost_s[c.key] for c in self.left)


def choose_threads(wanted: int | None) -> int:
    """Threads for a CPU calibration: as asked, else all cores, or one where other work keeps the machine busy.

    Threads that wait for one another on a busy machine time the scheduler, not the kernels. Memory is kept from going
    back to the system between runs, as a server's allocator does: else large results would time page faults.
    """
    libc = ctypes.util.find_library("c")
    if libc and hasattr(ctypes.CDLL(libc), "mallopt"):
        ctypes.CDLL(libc).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        ctypes.CDLL(libc).mallopt(M_MMAP_MAX, 0)
    num_cores = os.cpu_count() or 1
    num = wanted or (num_cores if os.getloadavg()[0] < BUSY_LOAD_PER_CORE * num_cores else 1)
    torch.set_num_threads(num)
    return num


def device_header(device: torch.device) -> dict[str, Any]:
    """Name, memory, caches and software of a device."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        state = read_state("cuda", device.index or 0)
        header: dict[str, Any] = {
            "name": found.name,
            "device": "cuda",
            "num_sms": found.multi_processor_count,
            "memory_bytes": float(found.total_memory),
            "l2_bytes": float(found.L2_cache_size),
            "compute_capability": found.major + found.minor / 10,
            "max_clock_hz": state.max_clock_hz,
            "power_limit_w": state.power_limit_w,
            "num_gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    else:
        header = cpu_header() | {"num_threads": torch.get_num_threads()}
    return header | {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def probe(device: torch.device, scale: Scale, dtypes: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Achieved peak of each dtype and bandwidth, from a few large cases; and what the device cannot run, with why."""
    timer = Timer(device, target_s=0.1, max_samples=10)
    peaks, skipped = {}, []
    sizes = (1024, 8192) if device.type == "cuda" else (256, 1024)
    if scale.budget_s < QUICK_S:
        sizes = (128, 256)
    for dtype in dtypes:
        try:
            for size in sizes:  # the small one tells whether the large one would take too long
                case = make_case(
                    "gemm", dtype, {"m": size, "n": size, "k": size}, "weight_only" if dtype == "int4" else "dense"
                )
                took = timer.time(build(case, device), f"probe {case.key}", cold=False)
                peaks[dtype] = case.flops / took.best_s
                if took.best_s > 0.05:
                    break
        except _UNRUNNABLE as error:
            skipped.append(skip_line("gemm", dtype, "", reason(error)))
    moved = max(scale.bandwidth_bytes)
    bandwidth = (
        moved / timer.time(build(make_case("bandwidth", "int8", {"bytes": moved}, "copy"), device), "probe").best_s
    )
    return {"achieved_peak_flops": peaks, "achieved_bandwidth_bytes_per_s": bandwidth}, skipped


def make_plan(device: torch.device, scale: Scale, path: Path, batches: bool = True) -> Plan:
    """Probe the device (or read an interrupted run's probe), list the cases, thin them to the budget.

    Writes the header if the file is new.

    Raises:
        InputError: the file holds measurements of another device.
    """
    is_cuda = device.type == "cuda"
    header, done = _open(device, scale, path, CPU_DTYPES if not is_cuda else GPU_DTYPES)
    peaks = header["achieved_peak_flops"]
    if scale.main_dtype not in peaks:  # a V100 has no bf16
        scale = replace(scale, main_dtype="fp16" if "fp16" in peaks else "fp32")
    rates = Rates(peaks, header["achieved_bandwidth_bytes_per_s"])
    flush_s = 2.0 * header["l2_bytes"] / rates.bytes_per_s

    def cost_s(case: Case) -> float:
        return predicted_s(case, rates, scale, flush_s)

    dtypes = [d for d in (GPU_DTYPES if is_cuda else CPU_DTYPES) if d in peaks]
    whole = batch_cases(scale, is_cuda) if batches else []
    share = BATCH_SHARE if batches else 0.0
    kept_batches, dropped_batches = thin(whole, cost_s, share * scale.budget_s)
    kernels, dropped = thin(kernel_cases(scale, dtypes, is_cuda), cost_s, (1 - share) * scale.budget_s)
    cases = [*kernels, *kept_batches]
    return Plan(
        header=header,
        kernels=tuple(kernels),
        batches=tuple(kept_batches),
        dropped=(*dropped, *dropped_batches),
        done=frozenset(done),
        cost_s={c.key: cost_s(c) for c in cases},
    )


def _open(device: torch.device, scale: Scale, path: Path, dtypes: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    found = device_header(device)
    if path.exists() and path.stat().st_size:
        held = read_measurements(path)
        if held.header.get("name") != found["name"] or held.header.get("decoder") != scale.decoder.name:
            raise InputError(
                f"holds measurements of {held.header.get('name')} at scale {held.header.get('decoder')}; "
                f"this is {found['name']} at scale {scale.decoder.name}",
                where=str(path),
                why="one file describes one device and one sweep",
                remedy="give another file with -o, or remove this one",
            )
        skipped = {case for record in held.skipped if (case := record.get("case"))}
        return dict(held.header), {p.key for p in held.points} | skipped
    measured, skipped_lines = probe(device, scale, dtypes)
    header = found | measured | {"decoder": scale.decoder.name, "encoder": scale.encoder.name}
    header["decoder_model"] = {k: v for k, v in asdict(scale.decoder).items() if isinstance(v, (str, int, float))}
    append_lines(path, [header_line(header), *skipped_lines])
    return header, set()


def run(
    plan: Plan, device: torch.device, scale: Scale, path: Path, progress: Progress, clock: Callable[[], float]
) -> MeasurementFile:
    """Measure what is left of a plan, a line a case as it is done; then note throttling.

    A case that runs out of memory is skipped together with the larger ones of its family; a case that the device
    cannot run is skipped with its reason; past ``OVERRUN`` times the budget the rest is left out, and said so.
    """
    scale = replace(scale, main_dtype=plan.batches[0].dtype if plan.batches else scale.main_dtype)
    timer = Timer(device, scale.target_s, scale.max_samples)
    batches = Batches(scale, device)
    too_large: dict[tuple[str, str], float] = {}
    begin_s, spent, total = clock(), 0.0, max(plan.predicted_s, 1e-9)
    seeded(0)
    for case in plan.left:
        progress(f"{case.family} {case.dtype} {case.variant}", min(spent / total, 1.0))
        spent += plan.cost_s[case.key]
        if clock() - begin_s > OVERRUN * max(scale.budget_s, total):
            append_lines(path, [remark_line(f"stopped after {clock() - begin_s:.0f} s: slower than planned")])
            break
        group = (case.family, case.dtype)
        if case.num_bytes >= too_large.get(group, float("inf")):
            append_lines(path, [_skip(case, "larger than one that ran out of memory")])
            continue
        try:
            line = _measure(case, timer, device, batches)
        except (torch.OutOfMemoryError, MemoryError):
            too_large[group] = case.num_bytes
            free_memory(device)
            text = f"{case.family} {case.dtype}: out of memory at {dict(case.shape)}; larger ones are left out"
            line = _skip(case, "out of memory")
            append_lines(path, [remark_line(text)])
        except _UNRUNNABLE as error:
            line = _skip(case, reason(error))
        append_lines(path, [line])
    append_lines(path, [remark_line(text) for text in throttling(timer.states)])
    return read_measurements(path)


def _measure(case: Case, timer: Timer, device: torch.device, batches: Batches) -> dict[str, Any]:
    with torch.inference_mode():
        work: Work = (
            batches.build(case) if case.family in ("step", "encoder_batch", "vision_batch") else build(case, device)
        )
        took = timer.time(work, case.key, cold=_reads_cold(case, device))
    runs = case.shape["num_kernels"] if case.family == "launch" else 1
    state = timer.states[-1] if timer.states else None
    return point_line(
        Measurement(
            family=case.family,
            dtype=case.dtype,
            variant=case.variant,
            shape=case.shape,
            median_s=took.median_s / runs,
            p10_s=took.p10_s / runs,
            p90_s=took.p90_s / runs,
            num_samples=took.num_samples,
            clock_hz=state.clock_hz if state else None,
            temperature_c=state.temperature_c if state else None,
        )
    )


def _reads_cold(case: Case, device: torch.device) -> bool:
    """Whether serving finds the case's operands outside the cache: weights, KV and convolutions' kernels, yes.

    Pointwise work and prompts' attention read what the kernel before them wrote. A CPU's dense weights are cold by
    themselves (``kernels.py`` uses many in turn).
    """
    if case.family == "gemm":
        return device.type == "cuda" or case.dtype not in ("fp32", "bf16", "fp16")
    return case.family in ("decode_attention", "conv", "bandwidth")


def _skip(case: Case, why: str) -> dict[str, Any]:
    return skip_line(case.family, case.dtype, case.variant, why) | {"case": case.key}


def reason(error: BaseException) -> str:
    """The first line of what went wrong, short enough for a table."""
    first = str(error).strip().splitlines()
    return (first[0] if first else type(error).__name__)[:160]


def check_batches(held: MeasurementFile, scale: Scale) -> list[dict[str, Any]]:
    """Predicted and measured seconds of every batch in a file, from its kernels alone."""
    families = ("step", "encoder_batch", "vision_batch")
    times = compose.KernelTimes(p for p in held.points if p.family not in families)
    launches = {p.variant: p.median_s for p in held.family("launch")}
    is_cuda = held.header["device"] == "cuda"
    rows = []
    for point in held.points:
        if point.family not in families:
            continue
        case = Case(point.family, point.dtype, point.shape, point.variant)
        launch_s = 0.0 if point.variant.endswith("/graph") else launches.get("eager", 0.0)
        parts = compose.batch_parts(case, scale.decoder, scale.encoder)
        told = compose.predicted_batch_s(case, parts, times, launch_s, is_cuda)
        rows.append(
            {
                "batch": describe(case),
                "family": point.family,
                "measured_s": point.median_s,
                "p10_s": point.p10_s,
                "p90_s": point.p90_s,
                "predicted_s": told,
                "error": told / point.median_s - 1.0,
            }
        )
    return rows


def describe(case: Case) -> str:
    """A batch in words."""
    shape = {name: int(value) for name, value in case.shape.items()}
    if case.family != "step":
        return f"{case.variant} batch {shape['batch']}"
    parts = []
    if shape["num_prefill_tokens"]:
        past = int(shape["prefill_mean_context"] - shape["num_prefill_tokens"] / 2)
        parts.append(f"prefill {shape['num_prefill_tokens']}" + (f" after {past}" if past else ""))
    if shape["num_decode"]:
        parts.append(f"decode {shape['num_decode']} x {shape['decode_mean_context']}")
    return " + ".join(parts) + (" graph" if case.variant.endswith("/graph") else "")


def now_s() -> float:
    """Seconds of a clock that only goes forward."""
    return time.monotonic()
