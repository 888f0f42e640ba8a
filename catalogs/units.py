"""The only conversion factors of the project; conversions happen where data enters or leaves."""

from __future__ import annotations

SECONDS_PER_HOUR = 3600.0
HOURS_PER_MONTH = 730.0
HOURS_PER_YEAR = 8760.0
MILLISECONDS_PER_SECOND = 1e3
MICROSECONDS_PER_SECOND = 1e6
GIB = 1024**3
MIB = 1024**2
MHZ = 1e6
GB = 1e9
GBIT_BYTES = 1e9 / 8
TERA = 1e12
MILLION = 1e6

DTYPE_BYTES: dict[str, float] = {
    "fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "fp4": 0.5,
}  # fmt: skip
