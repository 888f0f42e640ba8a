"""The project's exceptions, as a tree; each carries the exit code of the command line.

Exception
└── PlanError                  a fault outside the program, said in words
    ├── InputError (2)         wrong usage or input; also a ValueError
    ├── MissingError (3)       missing data, profile, price, credentials or an optional package; also a LookupError
    └── GateError (1)          a gate failed: no feasible plan, SLO missed, over budget, drift found
"""

from __future__ import annotations


class PlanError(Exception):
    """Says where, what is wrong, why it matters and the nearest thing that would work.

    Args:
        what: what is wrong.
        where: file and line (``plan.yaml:7``) or flag (``--gpu``).
        why: why it matters.
        remedy: the nearest thing that would work.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        for label, part in (("why", self.why), ("try", self.remedy)):
            if part:
                text += f"\n  {label}: {part}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.why, self.remedy)


def _rebuild(kind: type[PlanError], what: str, where: str, why: str, remedy: str) -> PlanError:
    return kind(what, where=where, why=why, remedy=remedy)


class InputError(PlanError, ValueError):
    """Wrong usage or input."""

    exit_code = 2


class MissingError(PlanError, LookupError):
    """Missing data, profile, price, credentials or an optional package."""

    exit_code = 3


class GateError(PlanError):
    """A gate failed: no feasible plan, SLO missed, over budget, drift found."""

    exit_code = 1
