"""Pruned models: what pruning leaves of the weights, and the smaller networks that some kinds of it make.

- Unstructured: zeros anywhere. The usual engines keep them as values, so that nothing gets smaller or faster; with
  ``storage: bitmask`` a bit a weight says which are there, and memory shrinks while steps take as long as before.
- 2:4: two of four neighbours are zero, which tensor cores since Ampere skip (NVIDIA A100 white paper, 2020).
- Layers and width: fewer or narrower layers are another network, and cost what that network costs.

A distilled model is another entry of the model catalogue, with quality rows of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from calibrate.physics.precisions import precision
from catalogs.errors import InputError
from catalogs.schema import Model

METHODS = ("unstructured", "2of4", "layers", "width")
UNQUOTED = {"2:4": "2of4", "124": "2of4"}  # YAML 1.1 reads a bare 2:4 as a number of base 60
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_kv_heads")


@dataclass(frozen=True)
class Compression:
    """How a model was pruned; ``2:4`` is another name of ``2of4``.

    Attributes:
        method: one of ``METHODS``.
        sparsity: of unstructured pruning, the share of weights that are zero.
        storage: of unstructured pruning: ``dense`` or ``bitmask``.
        num_layers: that are kept (``layers``). The others: new widths (``width``), head_dim stays.
    """

    method: str
    sparsity: float | None = None
    storage: str = "dense"
    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", UNQUOTED.get(str(self.method), self.method))


def compressed(model: Model, precision_name: str, spec: Compression, where: str = "") -> tuple[Model, str]:
    """The network and the storage format that a pruned model has.

    Raises:
        InputError: a method that is not known or lacks its number, or a size that the model cannot be pruned to.
    """
    if spec.method not in METHODS:
        raise InputError(f"no compression method {spec.method!r}", where=f"{where}.method", remedy=", ".join(METHODS))
    if model.kind == "vision":
        raise InputError(f"pruning of {model.name}", where=where, why="the layers of vision models are not known here",
                         remedy="a decoder or an encoder")  # fmt: skip
    _only_its_own(spec, where)
    if spec.method == "unstructured":
        return model, _unstructured(precision_name, spec, where)
    if spec.method == "2of4":
        if model.moe is not None:
            raise InputError(f"2:4 sparsity on {model.name}", where=where,
                             why="engines have no 2:4 kernels for experts", remedy="a dense model")  # fmt: skip
        return model, precision(f"{precision_name}-2of4", where).name
    if spec.method == "layers":
        return _with_fewer_layers(model, spec.num_layers, where), precision_name
    return _narrower(model, spec, where), precision_name


def _only_its_own(spec: Compression, where: str) -> None:
    """Refuse keys of another method."""
    own = {"unstructured": ("sparsity", "storage"), "layers": ("num_layers",), "width": WIDTHS}.get(spec.method, ())
    given = {"sparsity": spec.sparsity, "num_layers": spec.num_layers, **{w: getattr(spec, w) for w in WIDTHS}}
    if spec.storage != "dense":
        given["storage"] = 1
    wrong = [name for name, value in given.items() if value is not None and name not in own]
    if wrong:
        raise InputError(f"{wrong[0]} with method {spec.method}", where=where,
                         remedy=f"keys of {spec.method}: {', '.join(own) or 'none'}")  # fmt: skip


def _unstructured(precision_name: str, spec: Compression, where: str) -> str:
    if spec.sparsity is None or not 0.0 < spec.sparsity < 1.0:
        raise InputError(f"sparsity is {spec.sparsity}", where=f"{where}.sparsity", remedy="a share between 0 and 1")
    if spec.storage not in ("dense", "bitmask"):
        raise InputError(f"storage is {spec.storage!r}", where=f"{where}.storage", remedy="dense or bitmask")
    if spec.storage == "dense":
        return precision_name
    return precision(f"{precision_name}-bitmask{round(100 * spec.sparsity)}", where).name


def _with_fewer_layers(model: Model, num_layers: int | None, where: str) -> Model:
    if num_layers is None or not 1 <= num_layers < model.num_layers:
        raise InputError(f"num_layers is {num_layers}", where=f"{where}.num_layers",
                         remedy=f"1 to {model.num_layers - 1}, of {model.name}'s {model.num_layers}")  # fmt: skip
    share = num_layers / model.num_layers
    dense = min(model.moe.num_dense_layers, num_layers) if model.moe else 0
    return replace(
        model,
        name=f"{model.name} with {num_layers} layers",
        num_layers=num_layers,
        num_sliding_layers=round(share * model.num_sliding_layers),
        moe=replace(model.moe, num_dense_layers=dense) if model.moe else None,
        num_parameters=None,
    )


def _narrower(model: Model, spec: Compression, where: str) -> Model:
    widths: dict[str, Any] = {name: getattr(spec, name) for name in WIDTHS if getattr(spec, name) is not None}
    if not widths:
        raise InputError("width without a width", where=where, remedy=" or ".join(WIDTHS))
    for name, value in widths.items():
        if not 1 <= value <= getattr(model, name):
            raise InputError(f"{name} is {value}", where=f"{where}.{name}",
                             remedy=f"1 to {model.name}'s {getattr(model, name)}")  # fmt: skip
    found = replace(model, **widths, name=f"{model.name} narrowed", num_parameters=None)
    if found.num_attention_heads % found.num_kv_heads:
        raise InputError(
            f"{found.num_attention_heads} attention heads over {found.num_kv_heads} KV heads", where=where,
            why="each KV head serves as many query heads as the others", remedy="a multiple",
        )  # fmt: skip
    return found


def parse_compression(text: str, where: str) -> Compression:
    """``method=layers,num_layers=24`` as a ``Compression``.

    Raises:
        InputError: an unknown key, or a value that is no number where one is due.
    """
    values: dict[str, Any] = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        kind = _KINDS.get(key.strip())
        if kind is None or not equals:
            raise InputError(f"{pair!r}", where=where, remedy=f"KEY=VALUE with {', '.join(_KINDS)}")
        try:
            values[key.strip()] = kind(value.strip())
        except ValueError as error:
            raise InputError(f"{key} is {value!r}", where=where, remedy="a number") from error
    if "method" not in values:
        raise InputError("no method", where=where, remedy=f"method={' or method='.join(METHODS)}")
    return Compression(**values)


_KINDS: Mapping[str, Any] = {
    "method": str, "storage": str, "sparsity": float, "num_layers": int, **dict.fromkeys(WIDTHS, int),
}  # fmt: skip
