"""YAML is read strictly: every complaint names its line and the nearest thing that would work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from catalogs.errors import InputError
from catalogs.yaml_source import Strict, read_model, read_yaml


class Line(Strict):
    gpu: str
    count: Annotated[int, Field(ge=1)] = 1
    kind: Literal["big", "small"] = "big"
    hints: ClassVar[Mapping[str, str]] = {"replicas": "say `count`"}


class Fleet(Strict):
    fleet: Annotated[tuple[Line, ...], Field(min_length=1)]
    share: float = 0.5


def written(folder: Path, text: str) -> Path:
    path = folder / "f.yaml"
    path.write_text(text)
    return path


def test_values_and_their_lines_are_kept(tmp_path: Path) -> None:
    located = read_yaml(written(tmp_path, "# a comment\na:\n  - b: 1\n    c: two\n  - 3\nd: {e: 2.5}\n"))
    assert located.data == {"a": [{"b": 1, "c": "two"}, 3], "d": {"e": 2.5}}
    assert located.lines["a", 0, "c"] == 4
    assert located.where(("a", 1)).endswith("f.yaml:5")
    assert located.where(("d", "nowhere")).endswith("f.yaml:6")


def test_a_merged_mapping_may_be_overridden_and_merged_again(tmp_path: Path) -> None:
    text = "a: &a {gpu: L4, count: 1}\nb: &b\n  <<: *a\n  count: 2\nc: {<<: *b, gpu: T4}\n"
    located = read_yaml(written(tmp_path, text))
    assert located.data["b"] == {"gpu": "L4", "count": 2} and located.lines["b", "count"] == 4
    assert located.data["c"] == {"gpu": "T4", "count": 2}
    with pytest.raises(InputError, match=r"f.yaml:3: key 'count' is here twice"):
        read_yaml(written(tmp_path, "a: &a {count: 1}\nb: {<<: *a, count: 2,\n  count: 3}\n"))


def test_a_good_file_becomes_a_model(tmp_path: Path) -> None:
    fleet, _ = read_model(written(tmp_path, "fleet: [{gpu: L4, count: 2}]\nshare: 1e-1\n"), Fleet)
    assert fleet.fleet[0].count == 2 and fleet.share == 0.1


@pytest.mark.parametrize(
    ("text", "line", "what", "remedy"),
    [
        ("fleet:\n  - gpu: L4\n    cuont: 2\n", 3, "unknown key 'cuont'", "'count'"),
        ("fleet:\n  - gpu: L4\n    replicas: 2\n", 3, "unknown key 'replicas'", "`count`"),
        ("fleet:\n  - gpu: L4\n    kind: bigg\n", 3, "cannot be 'bigg'", "'big'"),
        ("fleet:\n  - gpu: L4\n    kind: xxxx\n", 3, "cannot be 'xxxx'", "big, small"),
        ("fleet:\n  - gpu: L4\n  - count: 0\n    gpu: L4\n", 3, "greater than or equal to 1", ""),
        ("share: 0.1\nfleet:\n  - gpu: L4\n  - count: 3\n", 4, "'gpu' is missing in fleet.1", ""),
        ("share: 0.1\n", 1, "'fleet' is missing", ""),
        ("fleet: []\n", 1, "at least 1 item", ""),
        ("fleet: [{gpu: L4}]\nshare: often\n", 2, "valid number", ""),
        ("fleet: [{gpu: L4}]\nshare: .inf\n", 2, "finite number", ""),
        ("fleet: [{gpu: L4}]\nshare: 1\nshare: 2\n", 3, "twice", "remove"),
        ("fleet: [{gpu: L4}\nshare: 1\n", 2, "not YAML", ""),
        ("a: 1\n\tb: 2\n", 2, "not YAML", ""),
        ("- 1\n- 2\n", 1, "not keys with values", ""),
        ("? [a, b]\n: 1\n", 1, "a key must be a word", ""),
        ("a: !!python/object/apply:os.system [id]\n", 1, "not YAML", ""),
        ("a: *b\n", 1, "not YAML", ""),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, text: str, line: int, what: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        read_model(written(tmp_path, text), Fleet)
    assert what in caught.value.what
    assert caught.value.where.endswith(f"f.yaml:{line}")
    assert remedy in caught.value.remedy


def test_several_faults_come_at_once_in_their_order(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_model(written(tmp_path, "shaer: 1\nfleet:\n  - gpu: L4\n    count: none\n"), Fleet)
    assert caught.value.where.endswith(":1")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"a: \xff\xfe\n", "UTF-8"),
        (b"a: " + b"[" * 5000, "not YAML"),
        (b"x" * (9 * 2**20), "larger"),
        (b"a: 2001-99-99\n", "not YAML"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, raw: bytes, what: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=what):
        read_yaml(path)


def test_aliases_that_explode_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    with pytest.raises(InputError, match="too large"):
        read_yaml(written(tmp_path, bomb))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "a: 1\n")
    with pytest.raises(InputError, match=r"did you mean .*f\.yaml"):
        read_yaml(tmp_path / "g.yaml")
    with pytest.raises(InputError):
        read_yaml(tmp_path)
