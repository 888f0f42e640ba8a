"""Prefill and decode replicas that are bought together: what such a pool is, and what it cannot exceed.

A pool of p prefill and d decode replicas on whole machines counts as one replica elsewhere in the planner: capacity is
requests a second of one pool, and n pools are simulated as n p prefill and n d decode replicas that share their work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from simulator.engine.pools import Pools
from simulator.engine.records import Records
from simulator.scenario.replicas import Line
from simulator.scenario.roles import pools_of
from simulator.scenario.sections import DisaggregationSpec
from simulator.scenario.technique_spec import demand_fitting_role
from simulator.workload.requests import Requests


@dataclass(frozen=True)
class PoolLine(Line):
    """A pool as the planner's simulations see it; ``spec`` is that of each of its replicas.

    Attributes:
        pools: the replicas of one pool by role, their links and how KV is handed over.
    """

    pools: Pools = field(kw_only=True)

    def times(self, num: int) -> Pools:
        """So many pools as one."""
        links, num_prefill = self.pools.link_bytes_per_s, len(self.pools.prefill)
        return replace(
            self.pools, prefill=self.pools.prefill * num, decode=self.pools.decode * num,
            link_bytes_per_s=links[:num_prefill] * num + links[num_prefill:] * num,
        )  # fmt: skip


def pool_line(line: Line, instance: str, num_prefill: int, num_decode: int, spec: DisaggregationSpec) -> PoolLine:
    """The pool of so many replicas like ``line``'s, on machines of one type.

    Raises:
        InputError: such replicas cannot hand KV over, or the link between them is not known.
    """
    for role in ("prefill", "decode"):
        demand_fitting_role(line.replica.engine.options, role, "candidates.disaggregated")
    lines = [
        replace(line, role="prefill", count=num_prefill, number=0),
        replace(line, role="decode", count=num_decode, number=1),
    ]
    known = {f.name: getattr(line, f.name) for f in fields(Line)}
    return PoolLine(**known, pools=pools_of(spec, lines, [instance, instance]))


def simulate_line(line: Line, requests: Requests, num_replicas: int, router: str, seed: int) -> Records:
    """Serve requests with so many replicas of a line: an engine for each rank and stage, or both roles of a pool."""
    # the compiled engine takes a second to load, which answers from what is kept can spare
    from simulator.engine.disaggregation import simulate_disaggregated
    from simulator.engine.simulate import simulate_replicas

    if isinstance(line, PoolLine):
        return simulate_disaggregated(requests, line.times(num_replicas), router, seed)
    return simulate_replicas(requests, [line.spec] * (num_replicas * line.num_engines), router, seed)


def pool_bound_rps(line: PoolLine, prompts_rps: float, answers_rps: float, mean_input: float) -> float:
    """A rate that one pool cannot exceed: prompts take prefill replicas' time, answers decode replicas', KV the links.

    Args:
        prompts_rps, answers_rps: of one replica that only computes prompts, and of one that only decodes, perfectly
            packed (``bounds.rate_bound_rps``).
        mean_input: tokens whose KV moves, less what may move while the prompt is computed.
    """
    pools, num_prefill = line.pools, len(line.pools.prefill)
    num_bytes = max(mean_input, 1.0) / line.spec.block_size * pools.block_bytes * (1 - pools.hidden_share)
    links = pools.link_bytes_per_s
    moved_rps = min(sum(links[:num_prefill]), sum(links[num_prefill:])) / num_bytes
    return min(prompts_rps * num_prefill, answers_rps * len(pools.decode), moved_rps)


def pool_key(line: Line) -> list[object]:
    """What a line is beside its engine's settings, for keys by content; empty where it has no roles."""
    if not isinstance(line, PoolLine):
        return []
    pools = line.pools
    return [
        len(pools.prefill), len(pools.decode), pools.link_bytes_per_s, pools.block_bytes, pools.latency_s,
        pools.first_token, pools.hidden_share, pools.decode_router,
    ]  # fmt: skip
