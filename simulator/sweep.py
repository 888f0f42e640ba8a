"""Many simulations: a scenario with values replaced, over a grid or a list; results stream into Parquet.

Rows are written in parts beside the output as they come, so that a sweep that was killed goes on where it stopped. At
the end the parts become one file, in the order of the points, whatever the number of workers was. A point is known by
the hash of all that it depends on (scenario, replaced values, input files, version), so a sweep that grew runs only
what is new.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from catalogs.errors import InputError
from catalogs.files import replacing
from catalogs.yaml_source import Located, Strict, check, parse_yaml, read_model
from simulator.pool import run_tasks
from simulator.scenario.spec import Scenario, set_at
from simulator.tasks import Failure

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH_ROWS = 64
FLUSH_S = 5.0
MAX_POINTS = 1_000_000
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
Values = Annotated[list[Any], Field(min_length=1)]


class SweepSpec(Strict):
    """What `plan sweep` reads: a scenario (a file, or written out) and the values to replace in it.

    ``grid`` gives lists by dotted place and every combination is a point; ``points`` lists combinations one by one,
    each crossed with the grid.
    """

    scenario: Path | dict[str, Any]
    grid: dict[str, Values] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)

    hints: ClassVar[Mapping[str, str]] = {"base": "say `scenario`", "seeds": "`grid: {seed: [0, 1, 2]}`"}

    @model_validator(mode="after")
    def _not_too_many(self) -> SweepSpec:
        num = max(1, len(self.points))
        for values in self.grid.values():
            num *= len(values)
        if num > MAX_POINTS:
            raise ValueError(f"the sweep has {num:,} points, {MAX_POINTS:,} is the most")
        return self

    def overrides(self) -> list[dict[str, Any]]:
        """The replaced values of each point, in order: points outermost, then the grid as it is written."""
        names = list(self.grid)
        combinations = [dict(zip(names, c, strict=True)) for c in itertools.product(*self.grid.values())]
        return [{**point, **combination} for point in self.points or [{}] for combination in combinations]


@dataclass(frozen=True)
class Point:
    """One simulation of a sweep; picklable, and all that a worker needs.

    Attributes:
        number: its place in the sweep.
        key: hash of all that its answer depends on.
        overrides: values replaced, by dotted place.
        scenario: YAML text of the base scenario; folder: where its file names start; source: its name, for errors.
    """

    number: int
    key: str
    overrides: dict[str, Any]
    scenario: str
    folder: str
    source: str

    def read(self) -> Scenario:
        """The scenario with its values replaced.

        Raises:
            InputError: anything wrong with it.
        """
        located = copy.deepcopy(_parsed(self.scenario, self.source))
        for place, value in self.overrides.items():
            set_at(located, place, value)
        return check(located, Scenario).resolved(Path(self.folder))


@lru_cache(maxsize=2)
def _parsed(text: str, source: str) -> Located:
    """A worker's last base scenario: every point of a sweep has the same one."""
    return parse_yaml(text, Path(source))


def read_sweep(path: str | Path) -> list[Point]:
    """The points of a sweep file.

    Raises:
        InputError: anything wrong with the file, with its line; faults of single points come when they run.
    """
    spec, located = read_model(path, SweepSpec)
    folder = Path(path).parent
    if isinstance(spec.scenario, Path):
        source = spec.scenario if spec.scenario.is_absolute() else folder / spec.scenario
        try:
            text = source.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            where = located.where(("scenario",))
            raise InputError(f"scenario {source} cannot be read", where=where) from error
        folder = source.parent
    else:
        source, text = Path(path), json.dumps(located.data["scenario"])
    data = parse_yaml(text, source).data
    if not isinstance(data, dict):
        raise InputError("is not a scenario", where=str(source))
    base = [_version(), hashlib.sha256(text.encode()).hexdigest(), _file_hashes(_strings(data), folder)]
    points: dict[str, Point] = {}
    for number, overrides in enumerate(spec.overrides()):
        all_of_it = [base, overrides, _file_hashes(_strings(overrides), folder)]
        try:
            digest = json.dumps(all_of_it, sort_keys=True, default=str)
        except TypeError as error:  # keys that cannot be sorted
            raise InputError(f"point {number} has keys that are not text: {overrides}", where=str(path)) from error
        key = hashlib.sha256(digest.encode()).hexdigest()[:24]
        if key in points:
            raise InputError(f"point {number} is point {points[key].number} again: {overrides}", where=str(path),
                             remedy="take a value out that stands twice")  # fmt: skip
        points[key] = Point(number, key, overrides, text, str(folder), str(source))
    return list(points.values())


def _version() -> str:
    try:
        return importlib.metadata.version("gpu-capacity-planner")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _file_hashes(strings: Iterator[str], folder: Path) -> dict[str, str]:
    """Hashes of the files that a scenario names (any string in it that is a file)."""
    files = [name for name in sorted(set(strings)) if _is_file(folder / name)]
    return {name: _file_hash(str(folder / name), *_stamp(folder / name)) for name in files}


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=4096)
def _file_hash(path: str, modified_ns: int, size: int) -> str:
    del modified_ns, size  # only there for the cache
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def play_point(point: Point) -> dict[str, Any]:
    """The answer of one point: the JSON of `plan simulate`."""
    from simulator.run import simulate

    scenario = point.read()
    spec = scenario.workload.model_dump_json()
    stamps = tuple(_stamp(Path(name)) for name in sorted(_strings(json.loads(spec))) if _is_file(Path(name)))
    return simulate(scenario, _workload(spec, scenario.seed, stamps)).document


@lru_cache(maxsize=2)
def _workload(spec: str, seed: int, stamps: tuple[tuple[int, int], ...]) -> Any:
    """A worker's last workloads, since most points of a sweep share one."""
    del stamps  # only there for the cache
    from simulator.workload.load import load_workload
    from simulator.workload.spec import WorkloadSpec

    return load_workload(WorkloadSpec.model_validate_json(spec), seed)


@dataclass(frozen=True)
class _Row:
    """What a worker hands back of a point: its row, whose long answer is text already when it is sent.

    Attributes:
        answer: plays a point.
    """

    answer: Callable[[Point], dict[str, Any]]

    def __call__(self, point: Point) -> dict[str, Any]:
        return row_of(point, self.answer(point))


def row_of(point: Point, result: Any) -> dict[str, Any]:
    """A row of the results: the point, how it ended, the main figures, and the whole answer as JSON."""
    failed = isinstance(result, Failure)
    answer: Mapping[str, Any] = {} if failed else result
    row: dict[str, Any] = {
        "point": point.number,
        "key": point.key,
        "overrides": json.dumps(point.overrides, sort_keys=True, default=str),
        "status": "failed" if failed else "ok",
        "error": result.what if failed else None,
    }
    for metric in ("ttft", "tpot", "e2e", "queue"):
        part = answer.get(f"{metric}_s") or {}
        row |= {f"{metric}_{statistic}_s": part.get(statistic) for statistic in STATISTICS}
    counts, engine = answer.get("requests") or {}, answer.get("engine") or {}
    row |= {f"requests_{name}": counts.get(name) for name in ("completed", "rejected", "failed")}
    for name in ("duration_s", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_rps"):
        row[name] = answer.get(name)
    row |= {name: answer.get(name) for name in ("gpu_hours", "usd", "usd_per_million_output_tokens")}
    row |= {name: engine.get(name) for name in ("num_gpu_blocks", "iterations", "preemptions", "prefix_cache_hit_rate")}
    row["slo_ok"] = None if failed else _slo_ok(answer.get("slo") or {})
    row["answer"] = None if failed else json.dumps(answer, allow_nan=False)
    return row


def _slo_ok(verdicts: Mapping[str, Any]) -> bool:
    from simulator.engine.metrics import all_ok

    return all_ok(verdicts)


def schema() -> pa.Schema:
    """The columns of the results."""
    import pyarrow as pa

    whole = {"point", "requests_completed", "requests_rejected", "requests_failed", "num_gpu_blocks", "iterations",
             "preemptions"}  # fmt: skip
    text = {"key", "overrides", "status", "error", "answer"}
    names = row_of(Point(0, "", {}, "", "", ""), Failure("", ""))
    kinds = {**dict.fromkeys(whole, pa.int64()), **dict.fromkeys(text, pa.string()), "slo_ok": pa.bool_()}
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in names])


class Results:
    """Rows that are written in parts as they come, and as one file in the end."""

    def __init__(self, output: Path, points: Sequence[Point], *, restart: bool, retry_failed: bool) -> None:
        self.output, self.parts = output, output.with_name(output.name + ".parts")
        self._points = {p.key: p.number for p in points}
        self._buffer: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        self.rows: dict[str, dict[str, Any]] = {}
        if restart:
            shutil.rmtree(self.parts, ignore_errors=True)
        else:
            self._load(retry_failed)
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write there: {error.strerror}", where=str(output)) from error
        self._num_parts = len(list(self.parts.glob("*.parquet")))

    def _load(self, retry_failed: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = sorted(self.parts.glob("part-*.parquet"))
        for path in [self.output, *found] if self.output.is_file() else found:
            try:
                table = pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    "is not a result of a sweep", where=str(path), remedy="--restart, or another -o"
                ) from error
            if "key" not in table.column_names:
                raise InputError("is not a result of a sweep", where=str(path), remedy="another -o")
            for row in table.to_pylist():
                number = self._points.get(row["key"])
                if number is not None and not (retry_failed and row["status"] == "failed"):
                    self.rows[row["key"]] = {**row, "point": number}

    def add(self, row: dict[str, Any]) -> None:
        """Take a row; it is on the disk after ``FLUSH_S`` or ``FLUSH_ROWS`` at the latest."""
        self.rows[row["key"]] = row
        self._buffer.append(row)
        if len(self._buffer) >= FLUSH_ROWS or time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is in the buffer as a part."""
        if self._buffer:
            while (path := self.parts / f"part-{self._num_parts:06d}.parquet").exists():
                self._num_parts += 1
            _write_parquet(path, self._buffer)
            self._buffer = []
        self._flushed_at = time.monotonic()

    def finish(self) -> list[dict[str, Any]]:
        """Write all rows in the points' order as one file and remove the parts."""
        rows = sorted(self.rows.values(), key=lambda row: int(row["point"]))
        _write_parquet(self.output, rows)
        shutil.rmtree(self.parts, ignore_errors=True)
        return rows


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), temporary, compression="zstd")


def run_sweep(
    points: Sequence[Point],
    output: str | Path,
    *,
    function: Callable[[Point], dict[str, Any]] = play_point,
    workers: int | None = None,
    ray_address: str | None = None,
    restart: bool = False,
    retry_failed: bool = False,
    progress: Callable[[str, float], None] = lambda _text, _share: None,
) -> tuple[list[dict[str, Any]], int]:
    """Play every point that is not yet in the output.

    Args:
        function: plays a point; importable.
        workers, ray_address: see ``simulator.pool.run_tasks``.
        restart: forget earlier results. retry_failed: play points again that failed earlier.

    Returns:
        All rows in the points' order, and how many of them were there before.

    Raises:
        InputError: an output that cannot be written or is something else. MissingError: no Ray cluster.
    """
    results = Results(Path(output), points, restart=restart, retry_failed=retry_failed)
    num_before = len(results.rows)
    left = [p.number for p in points if p.key not in results.rows]
    if len(left) > 1 and ray_address is None:
        from simulator.warm import warm

        warm()  # compiled once, before the workers would each compile for themselves
    try:
        for done in run_tasks(_Row(function), points, numbers=left, workers=workers, ray_address=ray_address):
            failed = isinstance(done.result, Failure)
            results.add(row_of(points[done.number], done.result) if failed else done.result)
            progress(f"{len(results.rows)} of {len(points)} points", len(results.rows) / len(points))
    finally:
        results.flush()
    return results.finish(), num_before
