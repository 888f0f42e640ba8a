"""Strict YAML: every complaint names its line, an unknown key its nearest known one.

``read_yaml`` keeps the line of every key and item. ``read_model`` checks a file against a pydantic model that derives
from ``Strict`` and turns what pydantic finds into ``InputError``s of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from catalogs.errors import InputError
from catalogs.names import nearest, nearest_file

MAX_BYTES = 8 * 1024 * 1024
MAX_NODES = 200_000
MAX_DEPTH = 60
MERGE_TAG = "tag:yaml.org,2002:merge"
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
Place = tuple[str | int | float, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Located:
    """What a YAML file says, and on which line it says it.

    Attributes:
        path: the file; relative paths inside it start at its folder.
        data: plain Python values.
        lines: line of each key (under its path from the root) and of each list item.
    """

    path: Path
    data: Any
    lines: Mapping[Place, int]

    def where(self, place: Sequence[str | int | float] = ()) -> str:
        """``file:line`` of the nearest place at or above ``place`` that the file holds."""
        for end in range(len(place), -1, -1):
            line = self.lines.get(tuple(place[:end]))
            if line is not None:
                return f"{self.path}:{line}"
        return f"{self.path}:1"


class Strict(BaseModel):
    """A frozen model that refuses unknown keys with the nearest known one.

    ``hints`` maps keys that people try to what they should write.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    hints: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = [f.alias or name for name, f in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise PydanticCustomError(
                        "unknown_key", "{what}", {"key": key, **_unknown(str(key), known, cls.hints)}
                    )
        return data


def _unknown(key: str, known: Sequence[str], hints: Mapping[str, str]) -> dict[str, str]:
    what = f"unknown key {key!r}"
    if key in hints:
        return {"what": what, "remedy": hints[key]}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or nearest(key, known, num=1)
    return {"what": what, "remedy": f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"}


def read_yaml(path: str | Path) -> Located:
    """Read a YAML file with the safe loader, keeping lines.

    Raises:
        InputError: unreadable, not YAML, empty, a key twice, or unreasonably large or deep.
    """
    source = Path(path)
    try:
        raw = source.read_bytes()
    except FileNotFoundError as error:
        remedy = nearest_file(source) or "`plan init` writes one to start from"
        raise InputError("no such file", where=str(source), remedy=remedy) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", where=str(source)) from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES // 2**20} MiB", where=str(source), remedy="is it a trace?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError("is not UTF-8 text", where=f"{source}:{line}") from error
    return parse_yaml(text, source)


def parse_yaml(text: str, path: Path) -> Located:
    """As ``read_yaml``, of text; ``path`` is what errors name."""
    lines: dict[Place, int] = {}
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        where = f"{path}:{text[: error.position].count(chr(10)) + 1}"
        raise InputError(f"is not YAML: character {error.character!r} is not allowed", where=where) from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise InputError("is empty", where=str(path), remedy="`plan init` writes one to start from")
        budget = [MAX_NODES]
        data = _build(loader, node, (), lines, budget, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"is not YAML: {error.problem or error.context}", where=where) from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"is not YAML: {str(error).splitlines()[0] if str(error) else 'too deep'}", where=str(path)
        ) from error
    finally:
        loader.dispose()
    return Located(path, data, lines)


def _build(
    loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], budget: list[int], path: Path
) -> Any:
    """Python values of a node; writes the line of each key and item."""
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    budget[0] -= 1
    if budget[0] < 0 or len(place) > MAX_DEPTH:
        raise InputError("is too large or too deep for a configuration", where=f"{path}:{line}")
    if isinstance(node, yaml.CollectionNode) and node.tag not in PLAIN_TAGS:
        raise InputError(f"is not YAML that is read here: tag {node.tag!r}", where=f"{path}:{line}")
    if isinstance(node, yaml.MappingNode):
        answer: dict[Any, Any] = {}
        for key, (key_node, value_node) in _entries(loader, node, path).items():
            lines[(*place, key)] = key_node.start_mark.line + 1
            answer[key] = _build(loader, value_node, (*place, key), lines, budget, path)
        return answer
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*place, i), lines, budget, path) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def parse_value(text: str, where: str) -> Any:
    """One value as YAML reads it: ``2``, ``[bf16, fp8]``, ``null``.

    Raises:
        InputError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise InputError(f"{text!r} is not a value", where=where, remedy="a number, a word, or a list") from error


def _entries(loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path) -> dict[Any, tuple[yaml.Node, yaml.Node]]:
    """A mapping's (key, value) nodes by key; its own keys override those that ``<<`` merges in."""
    num_own = sum(key_node.tag != MERGE_TAG for key_node, _ in node.value)
    loader.flatten_mapping(node)  # what is merged in now comes first
    num_merged = len(node.value) - num_own
    entries: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
    own: set[Any] = set()
    for index, (key_node, value_node) in enumerate(node.value):
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, (str, int, float)):
            raise InputError("a key must be a word", where=f"{path}:{line}")
        if key in own:
            first = entries[key][0].start_mark.line + 1
            raise InputError(f"key {key!r} is here twice (first in line {first})", where=f"{path}:{line}",
                             why="only one of the two could count", remedy="remove one")  # fmt: skip
        if index >= num_merged:
            own.add(key)
        entries[key] = (key_node, value_node)
    node.value = list(entries.values())  # an alias may bring this mapping again: its keys are then all its own
    return entries


def read_model(path: str | Path, kind: type[M]) -> tuple[M, Located]:
    """Read a YAML file into a model.

    Raises:
        InputError: all that ``read_yaml`` raises, and whatever does not fit the model; the first fault is the error,
            further ones follow in its text.
    """
    located = read_yaml(path)
    return check(located, kind), located


def check(located: Located, kind: type[M], at: Place = ()) -> M:
    """Check what a file says (the part of it at ``at``) against a model; see ``read_model``."""
    data = located.data
    for key in at:
        data = data[key]
    if not isinstance(data, Mapping):
        raise InputError(f"holds {_shown(data)}, not keys with values", where=located.where(at))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _as_input_error(error, located, at) from error


def _as_input_error(error: ValidationError, located: Located, at: Place) -> InputError:
    faults = []
    seen = set()
    details = error.errors(include_url=False)
    for detail in details:
        inside = any(d["loc"][: len(detail["loc"])] == detail["loc"] for d in details if d is not detail)
        if detail["type"] == "too_short" and inside:
            continue  # the items that were refused, not a short list
        what, remedy, place = _words(detail, located, at)
        where = located.where(place)
        if (where, what) not in seen:
            seen.add((where, what))
            faults.append((int(where.rpartition(":")[2]), where, what, remedy))
    faults.sort(key=lambda fault: fault[0])
    _, where, what, remedy = faults[0]
    also = "".join(f"\n  also: {w}: {t}" + (f" ({r})" if r else "") for _, w, t, r in faults[1:6])
    return InputError(what + also, where=where, remedy=remedy)


def _words(detail: ErrorDetails, located: Located, at: Place) -> tuple[str, str, Place]:
    """What is wrong, what to do, and where, in words that name keys as the file does."""
    kind, value, context = detail["type"], detail.get("input"), detail.get("ctx") or {}
    place: Place = (*at, *_present(detail["loc"], located, at))
    name = ".".join(str(p) for p in place) or "the file"
    if kind == "unknown_key":
        return str(context["what"]), str(context["remedy"]), (*place, context["key"])
    if kind == "missing":
        key = next((str(p) for p in reversed(detail["loc"]) if isinstance(p, str)), "")
        inside = f" in {name}" if place else ""
        return f"{key!r} is missing{inside}", "", place
    if kind in ("literal_error", "enum"):
        expected = [e.strip(" '") for e in str(context.get("expected", "")).replace(" or ", ",").split(",")]
        close = nearest(str(value), expected, num=1)
        remedy = f"did you mean {close[0]!r}?" if close else "one of " + ", ".join(expected)
        return f"{name} cannot be {_shown(value)}", remedy, place
    if kind in ("value_error", "assertion_error"):
        cause = context.get("error")
        if isinstance(cause, InputError):
            if cause.where and (*place, cause.where) in located.lines:  # a key inside what was being checked
                return cause.what, cause.remedy, (*place, cause.where)
            return f"{name}: {cause.what}" if place else cause.what, cause.remedy, place
        return f"{name}: {cause or detail['msg']}", "", place
    if kind == "path_type":
        return f"{name} is {_shown(value)}: should be the path of a file", "", place
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name} is {_shown(value)}: {message.replace('input ', '')}", "", place


def _present(loc: Sequence[str | int], located: Located, at: Place) -> Place:
    """The part of pydantic's location that the file has (union tags and model names fall out)."""
    found: list[str | int | float] = []
    for part in loc:
        if (*at, *found, part) in located.lines:
            found.append(part)
    return tuple(found)


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, Mapping) else "a mapping"
    return text if len(text) <= 60 else text[:57] + "..."
