"""How an engine forms its steps: numbers for compiled code, names for users; loads without the compiler."""

from __future__ import annotations

CONTINUOUS, PREFILL_FIRST, STATIC = range(3)
POLICIES = {"continuous": CONTINUOUS, "prefill_first": PREFILL_FIRST, "static": STATIC, "dynamic": STATIC}
