"""Many arrays behind one pointer, so that compiled functions pass a word and not each array's seven.

A ``Pack`` holds a named tuple of arrays (and of such tuples) and a header in memory: each array's address and shape.
Compiled code writes ``w.requests[i].phase`` as Python would; the array is put together from the header where it is
used, and no reference is counted. What is packed must therefore outlive the call, which the ``Pack`` sees to.
"""
# numba's extension interface is not typed
# mypy: disable-error-code="misc, no-untyped-call, no-untyped-def, untyped-decorator, override, no-any-return"

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import NativeValue, register_model, unbox
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.np.arrayobj import populate_array


class Member(NamedTuple):
    """One array or nested tuple of a pack: its numba type, and where in the header (in words) it stands."""

    kind: Any
    place: int


class PackType(types.Type):
    """What the compiler knows of a pack: the members by name, and how many words its header has."""

    def __init__(self, members: dict[str, Member], words: int) -> None:
        self.members, self.words = members, words
        inside = ", ".join(f"{name}: {member.kind}" for name, member in members.items())
        super().__init__(name=f"Pack({inside})")


def layout(arrays: Any) -> PackType:
    """The type of a named tuple of C-contiguous arrays."""
    members, words = {}, 0
    for name, value in zip(arrays._fields, arrays, strict=True):
        kind = numba.typeof(value) if isinstance(value, np.ndarray) else layout(value)
        assert isinstance(kind, PackType) or kind.layout == "C", f"{name} is not contiguous"
        members[name] = Member(kind, words)
        words += kind.words if isinstance(kind, PackType) else 1 + kind.ndim
    return PackType(members, words)


class Pack:
    """A named tuple of arrays, ready for compiled code.

    Attributes:
        arrays: the tuple; its arrays are shared, not copied.
        address: of the header.
    """

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays
        self._header = np.array(list(_words(arrays)), np.int64)
        self.address = self._header.ctypes.data
        self._numba_type_ = layout(arrays)


def _words(arrays: Any) -> Any:
    for value in arrays:
        if isinstance(value, np.ndarray):
            yield value.ctypes.data
            yield from value.shape
        else:
            yield from _words(value)


@register_model(PackType)
class _PackModel(models.OpaqueModel):
    """A pointer to the header."""


@unbox(PackType)
def _unbox(typ: Any, obj: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(obj, "address")
    pointer = c.pyapi.long_as_voidptr(address)
    c.pyapi.decref(address)
    return NativeValue(pointer, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _PackAttributes(AttributeTemplate):
    key = PackType

    def generic_resolve(self, typ: PackType, attr: str) -> Any:
        return typ.members[attr].kind if attr in typ.members else None


@lower_getattr_generic(PackType)
def _get(context: Any, builder: Any, typ: PackType, value: Any, attr: str) -> Any:
    """The array (or nested pack) of that name, from the header."""
    kind, place = typ.members[attr]
    word = ir.IntType(64)
    header = builder.bitcast(value, word.as_pointer())

    def address(offset: int) -> Any:
        return builder.gep(header, [ir.Constant(ir.IntType(32), place + offset)])

    def load(offset: int) -> Any:
        loaded = builder.load(address(offset))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))  # a header never changes
        return loaded

    if isinstance(kind, PackType):
        return builder.bitcast(address(0), value.type)
    array = context.make_array(kind)(context, builder)
    shape = [load(1 + axis) for axis in range(kind.ndim)]
    item_bytes = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [item_bytes]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    data = builder.inttoptr(load(0), array.data.type)
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=item_bytes, meminfo=None)
    return array._getvalue()
