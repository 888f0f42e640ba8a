"""A profile's JSON as text that people can read and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dump(document: Mapping[str, Any]) -> str:
    """JSON with one parameter a line and long lists on one."""

    def text(value: Any, indent: int) -> str:
        if not isinstance(value, Mapping) or not value:
            return json.dumps(value, separators=(",", ":") if isinstance(value, list) else None)
        pad = " " * (indent + 1)
        lines = [f"{pad}{json.dumps(k)}: {text(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"

    return text(document, 0) + "\n"
