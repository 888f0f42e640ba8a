"""Plays a scenario and answers in the contract's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.profile_error import replica_error
from calibrate.techniques import technique_notes
from catalogs.errors import InputError
from catalogs.files import replacing
from catalogs.units import SECONDS_PER_HOUR
from simulator.engine import metrics
from simulator.engine.metrics import Latencies
from simulator.engine.records import COMPLETED, STATUS_NAMES, Records
from simulator.scenario.line_report import fleet_documents
from simulator.scenario.over_time import over_time
from simulator.scenario.roles import build_pools, by_role, has_roles, transfer_document
from simulator.scenario.technique_spec import describe_techniques
from simulator.workload.load import load_workload
from simulator.workload.requests import Requests

if TYPE_CHECKING:
    from simulator.fleet.state import FleetResult
    from simulator.scenario.replicas import Line
    from simulator.scenario.spec import Scenario

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        document: the contract's JSON; ``usd`` and what follows from it are None, since the simulator knows no dollar.
        requests, records, latencies: request by request.
        lines: the fleet as it was built.
        fleet: what a live fleet did; None for a fixed one.
    """

    document: dict[str, Any]
    requests: Requests
    records: Records
    latencies: Latencies
    lines: tuple[Line, ...]
    fleet: FleetResult | None = None

    @property
    def slo_ok(self) -> bool:
        """Whether every promise of the scenario is kept (also when it has none)."""
        return metrics.all_ok(self.document["slo"])


def simulate(
    scenario: Scenario, requests: Requests | None = None, *, series_interval_s: float | None = None, check: bool = False
) -> Result:
    """Play a scenario.

    Args:
        scenario: with resolved paths (as ``read_scenario`` gives it).
        requests: the workload, if it is in memory already.
        series_interval_s: sample the replicas this often.
        check: look for broken invariants, at the end and at instants in between (docs/invariants.md).

    Raises:
        InputError: a bad trace, an unknown name, a model that does not fit, settings that the engine refuses.
        MissingError: a profile that is not there. BrokenInvariantError: a fault of ours, with ``check``.
    """
    from simulator.engine.simulate import simulate_replicas
    from simulator.scenario.replicas import build_fleet, in_closed_loop

    lines = tuple(build_fleet(scenario))
    if requests is None:
        requests = load_workload(scenario.workload, scenario.seed)
    if lines[0].replica.model.kind != "decoder":
        requests = requests.answered_once()
    if has_roles(scenario):
        return _simulate_roles(scenario, tuple(by_role(lines)), requests, series_interval_s, check)
    if scenario.is_live:
        return _simulate_live(scenario, lines, requests, check)
    num_schedulers = sum(line.num_schedulers for line in lines)
    specs = [in_closed_loop(line, requests, num_schedulers) for line in lines for _ in range(line.num_engines)]
    records = simulate_replicas(
        requests, specs, router=scenario.router, seed=scenario.seed, series_interval_s=series_interval_s, check=check
    )
    latencies = Latencies.of(requests, records)
    document = describe_run(scenario, lines, requests, records, latencies)
    return Result(document, requests, records, latencies, lines)


def _simulate_roles(
    scenario: Scenario, lines: tuple[Line, ...], requests: Requests, series_interval_s: float | None, check: bool
) -> Result:
    from simulator.engine.disaggregation import simulate_disaggregated

    pools = build_pools(scenario, lines)
    records = simulate_disaggregated(
        requests, pools, scenario.router, scenario.seed, series_interval_s=series_interval_s, check=check
    )
    latencies = Latencies.of(requests, records)
    document = describe_run(scenario, lines, requests, records, latencies)
    document["kv_transfer"] = transfer_document(requests, records)
    return Result(document, requests, records, latencies, lines)


def _simulate_live(scenario: Scenario, lines: tuple[Line, ...], requests: Requests, check: bool) -> Result:
    from simulator.scenario.live_run import fleet_document, run_fleet, run_windows, token_seconds

    windows: list[tuple[float, float]] = []
    if scenario.control is not None and scenario.control.windows is not None:
        if check:
            why = "between the windows no request is followed"
            raise InputError("a check with control.windows", where="control.windows", why=why, remedy="without windows")
        records, requests, present, long = run_windows(scenario, lines, requests)
        fleet, windows = long.fleet, long.windows
    else:
        records, present, fleet = run_fleet(scenario, lines, requests, check)
    records = replace(records, series=fleet.series)
    latencies = Latencies.of(requests, records)
    document = describe_run(scenario, present, requests, records, latencies)
    document["gpu_hours"] = sum(u.gpu_hours for u in fleet.ledger.usage())
    token_s = token_seconds(present[0], requests, records, fleet)
    played = [{"start_s": start_s, "weight": weight} for start_s, weight in windows]
    document["live_fleet"] = fleet_document(fleet, token_s) | {"windows": played}
    return Result(document, requests, records, latencies, present, fleet)


def describe_run(
    scenario: Scenario, lines: Sequence[Line], requests: Requests, records: Records, latencies: Latencies
) -> dict[str, Any]:
    """The contract's JSON, and more keys after its own."""
    completed = records.status == COMPLETED
    start_s = float(records.arrival_s.min())
    duration_s = max(float(records.end_s) - start_s, 1e-9)
    output_tokens = int(requests.output_tokens[completed].sum())
    input_tokens = int(requests.input_tokens[completed].sum())
    queries = int(records.prefix_queries.sum())
    num_gpus = sum(line.count * line.replica.num_gpus for line in lines)
    iterations = int(records.iterations.sum())
    profiles = [_profile_document(line) for line in lines]
    slo = metrics.check_slos(scenario.slos, requests, latencies)
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": metrics.status_counts(records),
        **{f"{name}_s": metrics.summary(latencies.of_metric(name)) for name in metrics.METRICS},
        "duration_s": duration_s,
        "requests_per_s": int(completed.sum()) / duration_s,
        "output_tokens_per_s": output_tokens / duration_s,
        "total_tokens_per_s": (input_tokens + output_tokens) / duration_s,
        "gpu_hours": num_gpus * duration_s / SECONDS_PER_HOUR,
        "usd": None,
        "usd_per_million_output_tokens": None,
        "engine": {
            "num_gpu_blocks": int(records.num_gpu_blocks[0]),
            "iterations": iterations,
            "preemptions": int(records.preemptions.sum()),
            "prefix_cache_hit_rate": int(records.prefix_hits.sum()) / queries if queries else 0.0,
            **describe_techniques([x.spec for x in lines], records.counts, queries, int(records.prefix_hits.sum())),
        },
        "profile": profiles[0],
        "seed": scenario.seed,
        "model": lines[0].replica.model.name,
        "itl_s": {"mean": metrics.inter_token_latency_mean(requests, records)},
        "slo": slo,
        "goodput_rps": metrics.goodput_share(scenario.slos, requests, latencies) * len(requests) / duration_s,
        "steady_state": metrics.steady_state(latencies, records.arrival_s),
        "overload": metrics.overload(requests, records, latencies),
        "rejections": metrics.rejections(requests, records, [line.spec for line in lines]),
        "by_class": metrics.by_class(requests, records, latencies),
        "over_time": None if scenario.is_live else over_time(lines, requests, records),
        "time_breakdown": time_breakdown(latencies, lines, records, duration_s),
        "fleet": fleet_documents(lines, requests, records, duration_s),
        "techniques": list(dict.fromkeys(note for line in lines for note in technique_notes(line.replica))),
        "profiles": profiles,
    }


def _profile_document(line: Line) -> dict[str, Any]:
    profile = line.profile
    return {"name": profile.name, "source": profile.source, "error": replica_error(line.replica, profile)}


def time_breakdown(latencies: Latencies, lines: Sequence[Line], records: Records, duration_s: float) -> dict[str, Any]:
    """Shares of the requests' time (queue, prefill, decode) and of the engines' (step, copy, overhead, idle).

    Copy is by how much swapped or offloaded KV and LoRA adapters made steps longer.
    """
    done = latencies.completed & ~np.isnan(latencies.ttft)
    queue = float(latencies.queue[done].sum())
    prefill = float(latencies.ttft[done].sum()) - queue
    decode = float((latencies.e2e - latencies.ttft)[done].sum())
    stall = 0.0 if records.stall_s is None else min(float(records.stall_s[done].sum()), decode)
    total = max(queue + prefill + decode, 1e-12)
    moving = {}
    if records.handover is not None:  # between the computed prompt and a seat on the decode replica
        moved = done & ~np.isnan(records.handover.decode_scheduled_s)
        way = float((records.handover.decode_scheduled_s - records.handover.prefill_end_s)[moved].sum())
        prefill = float((records.handover.prefill_end_s - records.scheduled_s)[done].sum())
        decode = total - queue - prefill - way
        moving = {"kv_transfer": way / total}
    tables = [line.spec.step_table for line in lines for _ in range(line.num_engines)]
    engine_time = len(tables) * duration_s
    overhead = sum(t.overhead_s * int(n) for t, n in zip(tables, records.iterations, strict=True)) / engine_time
    busy = float(records.busy_s.sum()) / engine_time
    copy = 0.0 if records.copied_s is None else float(records.copied_s.sum()) / engine_time
    return {
        "request": {
            "queue": queue / total,
            "prefill": prefill / total,
            **moving,
            "decode": (decode - stall) / total,
            "stall": stall / total,
        },
        "engine": {
            "step": max(0.0, busy - overhead - copy),
            "copy": copy,
            "overhead": min(overhead, busy),
            "idle": max(0.0, 1.0 - busy),
        },
    }


def write_requests(path: str | Path, requests: Requests, records: Records) -> None:
    """Write one row a request, as the contract has it; an instant that was never reached is an empty cell.

    Raises:
        InputError: the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.csv

    def seconds(values: Any) -> Any:
        return pa.array(np.round(values, 9), from_pandas=True)

    columns = {
        "request_id": np.arange(len(requests)),
        "arrival_s": seconds(records.arrival_s),
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
        "scheduled_s": seconds(records.scheduled_s),
        "first_token_s": seconds(records.first_token_s),
        "finish_s": seconds(records.finish_s),
        "replica": records.replica,
        "status": pa.DictionaryArray.from_arrays(pa.array(records.status), list(STATUS_NAMES)).cast(pa.string()),
    }
    if records.handover is not None:
        way = records.handover
        columns |= {
            "prefill_replica": way.prefill_replica,
            "prefill_end_s": seconds(way.prefill_end_s),
            "kv_transfer_start_s": seconds(way.start_s),
            "kv_transfer_end_s": seconds(way.end_s),
            "kv_transfer_bytes": way.num_bytes.astype(np.int64),
            "decode_scheduled_s": seconds(way.decode_scheduled_s),
        }
    _write_csv(path, pa.table(columns))


def write_series(path: str | Path, records: Records) -> None:
    """Write the time series of a run, a column each.

    Raises:
        InputError: the folder cannot be written.
    """
    import pyarrow as pa

    _write_csv(path, pa.table(dict(records.series)))


def _write_csv(path: str | Path, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.csv

    with replacing(path) as temporary, pa.output_stream(str(temporary)) as out:
        out.write((",".join(table.column_names) + "\n").encode())
        pa.csv.write_csv(table, out, pa.csv.WriteOptions(include_header=False, quoting_style="none"))
