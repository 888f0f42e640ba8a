"""What a device is and how it fares while it is measured: names, clocks, temperature, throttling. No torch here.

NVIDIA devices are read through ``nvidia-smi`` (its ``--query-gpu`` fields), the CPU through ``/proc`` and ``/sys``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from catalogs.errors import InputError
from catalogs.schema import Gpu
from catalogs.tables import scaled
from catalogs.units import MHZ, MIB

THROTTLED_CLOCK_SHARE = 0.9  # of the median clock; below it a sample counts as slowed down
_QUERY = (
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
    "power.limit",
    "clocks_event_reasons.active",
)
# NVML's nvmlClocksEventReasons bits that mean "slower than asked for"; idle and application clocks are not among them.
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class DeviceState:
    """One reading of a device. Hz, degrees Celsius, watts; None where it cannot be read."""

    clock_hz: float | None = None
    max_clock_hz: float | None = None
    temperature_c: float | None = None
    power_limit_w: float | None = None
    slowed_by: tuple[str, ...] = ()


def read_state(device: str, index: int = 0) -> DeviceState:
    """The device's clocks, temperature and power now; ``device`` is ``cuda`` or ``cpu``."""
    return _cuda_state(index) if device == "cuda" else _cpu_state()


def _cuda_state(index: int) -> DeviceState:
    row = nvidia_smi_query(_QUERY, index)
    if row is None:  # drivers before 535 call the last field by another name
        old = (*_QUERY[:-1], "clocks_throttle_reasons.active")
        row = nvidia_smi_query(old, index)
    if row is None:
        return DeviceState()
    clock, maximum, temperature, limit = (_number(cell) for cell in row[:4])
    return DeviceState(
        clock_hz=scaled(clock, MHZ),
        max_clock_hz=scaled(maximum, MHZ),
        temperature_c=temperature,
        power_limit_w=limit,
        slowed_by=slowdown_reasons(row[4]),
    )


def slowdown_reasons(bits: str) -> tuple[str, ...]:
    """The reasons in nvidia-smi's hexadecimal bit field that slow a device down; unreadable: none."""
    try:
        mask = int(bits.strip(), 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in _REASONS.items() if mask & bit)


def nvidia_smi_query(fields: Sequence[str], index: int = 0) -> list[str] | None:
    """One device's row of ``nvidia-smi --query-gpu``; None where the tool is absent or refuses a field."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--id={index}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    cells = [cell.strip() for cell in done.stdout.strip().split(",")]
    return cells if done.returncode == 0 and len(cells) == len(fields) else None


def _cpu_state() -> DeviceState:
    clocks = [_number(line.split(":")[1]) for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    known = [c for c in clocks if c]
    zones = [_number(_text(p)) for p in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    hottest = max((z for z in zones if z), default=None)
    return DeviceState(
        clock_hz=median(known) * MHZ if known else None,
        temperature_c=scaled(hottest, 1e-3),  # the kernel gives millidegrees
    )


def cpu_header() -> dict[str, Any]:
    """The CPU's name, cores, memory and caches."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "name": f"CPU {names[0] if names else platform.processor() or platform.machine()}",
        "device": "cpu",
        "num_sms": os.cpu_count() or 1,
        "memory_bytes": float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "l2_bytes": last_level_cache_bytes(),
        "compute_capability": 0.0,
        "load_average": os.getloadavg()[0],
    }


def last_level_cache_bytes() -> float:
    """The size of the CPU's last cache; 32 MiB where the system does not say."""
    sizes = [_text(p) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    in_bytes = [float(s[:-1]) * (1024 if s.endswith("K") else MIB) for s in sizes if s[:-1].isdigit()]
    return max(in_bytes, default=32.0 * MIB)


def throttling(states: Sequence[DeviceState]) -> list[str]:
    """Sentences that say whether the device slowed down while it was measured; none: it did not, or cannot be read.

    Two signs: the driver names a reason, or the clock of some samples under load falls below
    ``THROTTLED_CLOCK_SHARE`` of the median.
    """
    said: list[str] = []
    if not states:
        return said
    reasons: dict[str, int] = {}
    for state in states:
        for reason in state.slowed_by:
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, num in reasons.items():
        said.append(f"throttled by {reason} in {num} of {len(states)} readings: figures are below the device's best")
    clocks = [s.clock_hz for s in states if s.clock_hz]
    if len(clocks) >= 4:
        slow = [c for c in clocks if c < THROTTLED_CLOCK_SHARE * median(clocks)]
        if slow:
            said.append(
                f"the clock fell to {min(slow) / MHZ:.0f} MHz in {len(slow)} of {len(clocks)} readings "
                f"(median {median(clocks) / MHZ:.0f} MHz)"
            )
    return said


def measured_gpu(header: Mapping[str, Any], where: str = "") -> Gpu:
    """The device as a data sheet made of what was measured on it: achieved peaks in place of nominal ones.

    Args:
        header: of a measurements file; ``achieved_peak_flops`` (by dtype) and
            ``achieved_bandwidth_bytes_per_s`` come from its probe.
        where: the file, for the error.

    Raises:
        InputError: the header lacks a field, or a number is none.
    """
    try:
        return Gpu(
            name=str(header["name"]),
            architecture=str(header.get("architecture", header["device"])),
            # a CPU has none: what it runs is what it was measured in, so none of the GPUs' bars may stop it
            compute_capability=float(header.get("compute_capability") or 10.0),
            num_sms=int(header["num_sms"]),
            peak_flops={str(k): float(v) for k, v in header["achieved_peak_flops"].items()},
            memory_bytes=float(header["memory_bytes"]),
            memory_bandwidth_bytes_per_s=float(header["achieved_bandwidth_bytes_per_s"]),
            l2_bytes=float(header["l2_bytes"]),
            nvlink_bytes_per_s=None,
            pcie_bytes_per_s=float(header.get("pcie_bytes_per_s") or 16e9),
            tdp_w=float(header.get("power_limit_w") or 0.0),
            source="measured by plan calibrate run",
            as_of=str(header.get("date", "")),
            confidence="measured",
            notes="peaks are achieved rates, not the data sheet's",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the header does not describe a device: {f'no {error}' if isinstance(error, KeyError) else error}",
            where=where,
            why="times are set against the device's peaks",
            remedy="pass a file that `plan calibrate run` wrote",
        ) from None


def _lines(path: str) -> list[str]:
    return _text(Path(path)).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # nvidia-smi says [N/A] for what a card does not report
        return None
