"""What could be bought: every instance type x parallelism x precision x engine setting that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from catalogs.schema import Replica


@dataclass(frozen=True)
class Offer:
    """What a machine costs in one purchase form."""

    usd_per_hour: float
    source: str
    as_of: str
    confidence: str = ""
    upfront_usd: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """One way to serve the model on one instance type.

    Attributes:
        instance_type, gpu: catalogue names, or the capacity table's.
        num_gpus: of the instance.
        gpus_per_replica, tensor_parallel_size, precision, framework: of a replica.
        replica: what to simulate; None for a GPU known from a capacity table only.
        offers: by purchase form.
        score: share of the unquantized model's score that is kept; None: unknown.
    """

    instance_type: str
    gpu: str
    num_gpus: int
    gpus_per_replica: int
    tensor_parallel_size: int
    precision: str
    framework: str
    replica: Replica | None
    offers: Mapping[str, Offer] = field(default_factory=dict)
    score: float | None = None
    setting: str = ""  # engine settings that differ from the defaults, in words

    @property
    def replicas_per_instance(self) -> int:
        """Replicas that fit one machine."""
        return max(1, self.num_gpus // self.gpus_per_replica)

    @property
    def config(self) -> str:
        """The replica, in words; the same on every instance type with this GPU."""
        more = f" {self.setting}" if self.setting else ""
        tp = f" tp{self.tensor_parallel_size}" if self.tensor_parallel_size > 1 else ""
        return f"{self.gpu}{tp} {self.precision} {self.framework}{more}"

    @property
    def label(self) -> str:
        """Unique among candidates."""
        return f"{self.instance_type}: {self.config}"
