"""Which replica a request goes to. Routers see snapshots, which may be stale, and never a request's output length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catalogs.errors import InputError
from catalogs.names import nearest
from simulator.engine.compiled import inner

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

ROUND_ROBIN, RANDOM, LEAST_LOADED, POWER_OF_TWO, LEAST_KV, PREFIX_AFFINITY, SESSION_AFFINITY, WEIGHTED = range(8)
ROUTERS: dict[str, int] = {
    "round_robin": ROUND_ROBIN,
    "random": RANDOM,
    "least_loaded": LEAST_LOADED,  # fewest outstanding requests for its weight
    "power_of_two": POWER_OF_TWO,  # the less loaded of two at random
    "least_kv": LEAST_KV,  # smallest share of KV blocks in use
    "prefix_affinity": PREFIX_AFFINITY,  # by the first prefix block, unless that replica is overloaded
    "session_affinity": SESSION_AFFINITY,  # by session
    "weighted": WEIGHTED,  # smooth weighted round robin, by request group
}
# These look at nothing that replicas do, so that each replica can be simulated by itself.
BLIND = (ROUND_ROBIN, RANDOM, SESSION_AFFINITY, WEIGHTED)
OVERLOAD = 1.5  # prefix affinity gives way beyond this multiple of the mean load, plus one


@dataclass(frozen=True)
class RouterOptions:
    """What a router may know beyond the snapshots.

    Attributes:
        weights: (r,) or (groups, r) relative rates of the replicas; None: equal.
        groups: (n,) group of each request (a size bucket, a tenant), for ``weights`` of two dimensions.
        staleness_s: snapshots are taken this often; 0: at each arrival.
    """

    weights: F64 | None = None
    groups: I64 | None = None
    staleness_s: float = 0.0


class Router(NamedTuple):
    """A router's state.

    Attributes:
        kind: (1,) one of ``ROUTERS``.
        weights, credit: (groups, r).
        group, key: (n,) of each request; ``key`` is its session or first prefix block, or -1.
        alive: (r,) 1 where requests may be sent.
        load, kv_share: (r,) the last snapshot.
        taken_s: (1,) when it was taken; staleness_s: (1,).
        turn: (1,) of round robin.
        random: (1,) state of the random numbers.
    """

    kind: I64
    weights: F64
    credit: F64
    group: I64
    key: I64
    alive: I64
    load: F64
    kv_share: F64
    taken_s: F64
    staleness_s: F64
    turn: I64
    random: NDArray[np.uint64]


def new_router(name: str, num_replicas: int, keys: I64, options: RouterOptions, seed: int) -> Router:
    """A router at its start; raises ``InputError`` for a name that is not known or weights that do not fit."""
    if name not in ROUTERS:
        raise InputError(
            f"no router {name!r}", where="router", remedy=" or ".join(nearest(name, list(ROUTERS), num=2) or ROUTERS)
        )
    weights = np.ones((1, num_replicas)) if options.weights is None else np.atleast_2d(options.weights).astype(float)
    if weights.shape[1] != num_replicas or not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError(
            f"router weights of shape {weights.shape} for {num_replicas} replicas",
            where="router",
            remedy="one weight >= 0 a replica",
        )
    groups = np.zeros(len(keys), np.int64) if options.groups is None else np.asarray(options.groups, np.int64)
    return Router(
        np.array([ROUTERS[name]]), weights, np.zeros_like(weights), groups, keys, np.ones(num_replicas, np.int64),
        np.zeros(num_replicas), np.zeros(num_replicas), np.array([-np.inf]), np.array([options.staleness_s]),
        np.zeros(1, np.int64), np.array([(2 * seed + 1) % 2**64], np.uint64),
    )  # fmt: skip


def with_replica(router: Router, weight: float) -> Router:
    """The router with one more replica, alive and empty."""

    def column(array: F64, value: float) -> F64:
        return np.concatenate([array, np.full((*array.shape[:-1], 1), value)], axis=-1)

    return router._replace(
        weights=column(router.weights, weight),
        credit=column(router.credit, 0.0),
        alive=np.append(router.alive, 1),
        load=np.append(router.load, 0.0),
        kv_share=np.append(router.kv_share, 0.0),
    )


@inner
def next_random(router: Any) -> float:
    """A uniform number in [0, 1): splitmix64 (Steele, Lea and Flood, 2014)."""
    router.random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = router.random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inner
def scrambled(key: int) -> int:
    """A non-negative hash of a key."""
    z = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((z ^ (z >> np.uint64(32))) >> np.uint64(1))  # type: ignore[return-value]


@inner
def _nth_alive(router: Any, nth: int) -> int:
    for r in range(len(router.alive)):
        if router.alive[r]:
            if nth == 0:
                return r
            nth -= 1
    return -1


@inner
def _least(router: Any, values: Any, group: int) -> int:
    best, lowest = -1, np.inf
    for r in range(len(router.alive)):
        weight = router.weights[group, r]
        if router.alive[r] and weight > 0.0 and values[r] / weight < lowest:
            best, lowest = r, values[r] / weight
    return best


@inner
def _weighted(router: Any, group: int) -> int:
    best, total = -1, 0.0
    for r in range(len(router.alive)):
        if router.alive[r]:
            weight = router.weights[group, r]
            total += weight
            router.credit[group, r] += weight
            if weight > 0.0 and (best < 0 or router.credit[group, r] > router.credit[group, best]):
                best = r
    if best >= 0:
        router.credit[group, best] -= total
    return best


@inner
def _affine(router: Any, i: int, num_alive: int) -> int:
    home = _nth_alive(router, scrambled(router.key[i]) % num_alive)
    if router.kind[0] == PREFIX_AFFINITY:
        total = 0.0  # of whole numbers: exact, so that a load at the threshold is on the same side everywhere
        for r in range(len(router.alive)):
            if router.alive[r]:
                total += router.load[r]
        if router.load[home] > OVERLOAD * (total / num_alive) + 1.0:
            return _least(router, router.load, router.group[i])
    return home


@inner
def choose(router: Any, i: int) -> int:
    """The replica that request i goes to, or -1 where none is alive."""
    num_alive = router.alive.sum()
    if num_alive == 0:
        return -1
    kind, group = router.kind[0], router.group[i]
    if kind == LEAST_LOADED:
        return _least(router, router.load, group)
    if kind == LEAST_KV:
        return _least(router, router.kv_share, group)
    if kind == WEIGHTED:
        return _weighted(router, group)
    if kind == RANDOM:
        return _nth_alive(router, int(next_random(router) * num_alive))
    if kind == POWER_OF_TWO and num_alive > 1:
        first = int(next_random(router) * num_alive)
        second = int(next_random(router) * (num_alive - 1))
        a, b = _nth_alive(router, first), _nth_alive(router, second + (1 if second >= first else 0))
        return b if router.load[b] * router.weights[group, a] < router.load[a] * router.weights[group, b] else a
    if kind in (PREFIX_AFFINITY, SESSION_AFFINITY) and router.key[i] >= 0:
        return _affine(router, i, num_alive)
    router.turn[0] += 1
    return _nth_alive(router, (router.turn[0] - 1) % num_alive)
