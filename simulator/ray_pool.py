"""Runs tasks on a Ray cluster that is already there."""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from catalogs.errors import MissingError
from catalogs.extras import how_to_install
from simulator.tasks import Done, Failure, Function, attempt

RETRIES = 3  # of a task whose worker or node died
NUM_RETURNS_AT_ONCE = 64
KNOCK_S = 5.0
MOST_AT_ONCE = 16  # points that one Ray task plays


def run_ray(
    function: Function, tasks: Sequence[Any], numbers: Sequence[int], address: str, at_a_time: int | None
) -> Iterator[Done]:
    """As ``simulator.pool.run_tasks``; every node needs this project installed and the input files at the same paths.

    A task whose worker or node dies is tried again elsewhere, up to ``RETRIES`` times.

    Raises:
        MissingError: Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingError("Ray is not installed", where="--engine ray", remedy=how_to_install("ray")) from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise MissingError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}", where="--address",
                           remedy="ray start --head, then --address HOST:6379 or auto") from error  # fmt: skip
    try:
        yield from _run(ray, function, tasks, numbers, at_a_time)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an ``OSError`` when nobody listens, since Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _run(
    ray: Any, function: Function, tasks: Sequence[Any], numbers: Sequence[int], at_a_time: int | None
) -> Iterator[Done]:
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(attempt_all)
    waiting = deque(numbers)
    running: dict[Any, list[int]] = {}
    while waiting or running:
        limit = at_a_time or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < limit:
            # a few at once while there are many, one by one towards the end, so that all nodes end together
            share = max(1, min(MOST_AT_ONCE, len(waiting) // (4 * limit)))
            batch = [waiting.popleft() for _ in range(share)]
            running[remote.remote(function, [tasks[number] for number in batch])] = batch
        ready, _ = ray.wait(list(running), num_returns=1)
        more, _ = ray.wait(list(running), num_returns=min(len(running), NUM_RETURNS_AT_ONCE), timeout=0)
        for reference in {*ready, *more}:
            batch = running.pop(reference)
            results = _results(ray, reference)
            if isinstance(results, Failure) and len(batch) > 1:  # which of them it was shows when each runs alone
                for number in batch:
                    running[remote.remote(function, [tasks[number]])] = [number]
                continue
            each = [results] * len(batch) if isinstance(results, Failure) else results
            for number, result in zip(batch, each, strict=True):
                yield Done(number, result)


def attempt_all(function: Function, tasks: Sequence[Any]) -> list[Any]:
    """``attempt`` on each task."""
    return [attempt(function, task) for task in tasks]


def _results(ray: Any, reference: Any) -> list[Any] | Failure:
    try:
        found: list[Any] = ray.get(reference)
        return found
    except ray.exceptions.OutOfMemoryError:
        return Failure("out of memory on the node that ran it", "MemoryError")
    except ray.exceptions.RayTaskError as error:  # raised before the task ran: the project is not installed there
        return Failure(f"could not be run there: {str(error.cause).splitlines()[0]}", "RayTaskError")
    except ray.exceptions.RayError as error:
        return Failure(f"lost after {RETRIES} retries: {str(error).splitlines()[0]}", type(error).__name__)
