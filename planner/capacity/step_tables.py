"""Step tables kept beside the capacities: what a question asks about again need not be summed up from kernels again.

A table is kept under all that it follows from: the replica, the profile and the state of the code that computes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

import calibrate
import catalogs
from calibrate.profiles import Profile
from calibrate.step import StepTable
from calibrate.step_time import step_table
from catalogs.schema import Replica
from planner.capacity.store import CapacityStore, state_of


@dataclass
class StepTables:
    """``calibrate.step_time.step_table``, which remembers on disk.

    Attributes:
        store: where it does.
    """

    store: CapacityStore
    _profiles: dict[int, str] = field(default_factory=dict)

    def __call__(self, replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> StepTable:
        """As ``step_table``, which see for what it raises."""
        key = self._key(replica, profile, max_tokens, max_seqs)
        body = self.store.get_body("step_table", key)
        if body is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):  # what is damaged is computed anew
                return unpacked(body)
        table = step_table(replica, profile, max_tokens, max_seqs)
        if table.skew is None:
            self.store.put_body("step_table", key, packed(table))
        return table

    def _key(self, replica: Replica, profile: Profile, max_tokens: int, max_seqs: int) -> str:
        if id(profile) not in self._profiles:
            self._profiles[id(profile)] = _digest(json.dumps(profile.__dict__, default=str, sort_keys=True))
        return _digest(f"{_code()} {self._profiles[id(profile)]} {max_tokens} {max_seqs} {replica!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """The state of the files that a step table follows from."""
    return state_of(calibrate, catalogs)


def packed(table: StepTable) -> bytes:
    """A table without skew as bytes: a line of JSON that says what each field is, then the arrays.

    numpy's own files of several arrays take 25 times as long to read: 0.4 s for the 86 tables of the bundled question.
    """
    arrays: list[Any] = []
    fields: dict[str, Any] = {}
    for name, value in table._asdict().items():
        if not isinstance(value, np.ndarray):
            fields[name] = None if value is None else float(value)
            continue
        at = next((i for i, known in enumerate(arrays) if known is value), len(arrays))
        if at == len(arrays):
            arrays.append(value)
        fields[name] = [at]
    head = {"fields": fields, "shapes": [a.shape for a in arrays]}
    return b"\n".join([json.dumps(head).encode(), b"".join(np.ascontiguousarray(a, np.float64).data for a in arrays)])


def unpacked(body: bytes) -> StepTable:
    """The table that ``packed`` wrote."""
    line, _, rest = body.partition(b"\n")
    head, arrays, offset = json.loads(line), [], 0
    for shape in head["shapes"]:
        size = int(np.prod(shape))
        arrays.append(np.frombuffer(rest, np.float64, size, offset).reshape(shape).copy())
        offset += 8 * size
    fields: dict[str, Any] = {n: arrays[v[0]] if isinstance(v, list) else v for n, v in head["fields"].items()}
    return StepTable(**fields)
