"""Runs many independent tasks, on this machine's cores or on a Ray cluster; one that fails does not stop the rest.

The function must be importable (a module's own, not a lambda), since workers are fresh processes; where nearly all of a
task's time is the compiled loop's, which gives the interpreter free, threads of this process do as well and start at
once. Results come as they are ready; whoever needs an order sorts by the task's number, so that the number of workers
changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from catalogs.errors import InputError
from simulator.ray_pool import run_ray
from simulator.tasks import Done, Failure, Function, attempt

THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(function: Function, tasks: Sequence[Any], numbers: Sequence[int]) -> Iterator[Done]:
    """One after another, in this process."""
    for number in numbers:
        yield Done(number, attempt(function, tasks[number]))


def run_threads(function: Function, tasks: Sequence[Any], numbers: Sequence[int], workers: int) -> Iterator[Done]:
    """In ``workers`` threads of this process, in the order of the numbers."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda number: attempt(function, tasks[number]), numbers)
        yield from map(Done, numbers, results)


def run_processes(function: Function, tasks: Sequence[Any], numbers: Sequence[int], workers: int) -> Iterator[Done]:
    """In ``workers`` fresh processes.

    A worker that dies (killed, out of memory, a crash in compiled code) takes the pool with it; the tasks that were
    running are then tried again one by one, each in a process of its own, and the one that dies again has failed.
    """
    waiting = deque(numbers)
    while waiting:
        suspects: list[int] = []
        with _pool(workers) as pool:
            running: dict[Future[Any], int] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(attempt, function, tasks[waiting[0]])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        number = running[future]
                        result = future.result()
                        del running[future]
                        yield Done(number, result)
            except BrokenProcessPool:
                suspects = sorted(running.values())
            except GeneratorExit:
                _stop(pool)
                raise
            except KeyboardInterrupt:
                _stop(pool)
                raise
        for number in suspects:
            yield Done(number, _alone(function, tasks[number]))


def _alone(function: Function, task: Any) -> Any:
    with _pool(1) as pool:
        try:
            return pool.submit(attempt, function, task).result()
        except BrokenProcessPool:
            return Failure("the worker process died (killed, or out of memory)", "WorkerDied")


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """One thread a worker, and no traceback from each of them when the user stops the program."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in THREAD_LIMITS:
        os.environ[name] = "1"
    import pyarrow as pa

    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: a killed sweep leaves nobody behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers without waiting for what they do."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def run_tasks(
    function: Function,
    tasks: Sequence[Any],
    *,
    numbers: Sequence[int] | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    threads: bool = False,
) -> Iterator[Done]:
    """Run a function on every task and yield what is done as it is done.

    Args:
        function: importable; takes one task.
        tasks: picklable.
        numbers: which of the tasks; None: all.
        workers: processes on this machine; None: one a core, and 1: this process. On Ray: tasks at a time; None: two
            for each core of the cluster.
        ray_address: of a running Ray cluster; None: this machine.
        threads: workers are threads of this process: for tasks that are mostly compiled loop, and too short or too few
            to pay for the start of processes.

    Raises:
        MissingError: Ray is not installed, or no cluster answers.
    """
    chosen = range(len(tasks)) if numbers is None else numbers
    if ray_address is not None:
        yield from run_ray(function, tasks, chosen, ray_address, workers)
        return
    count = min(workers or cpu_count(), max(1, len(chosen)))
    if count == 1:
        yield from run_here(function, tasks, chosen)
    else:
        run = run_threads if threads else run_processes
        yield from run(function, tasks, chosen, count)


def results_of(
    function: Function, tasks: Sequence[Any], workers: int | None = None, *, threads: bool = False
) -> list[Any]:
    """Every task's result, in the order of the tasks, on this machine.

    Raises:
        InputError: a task was refused for its input. RuntimeError: a task failed otherwise.
    """
    found: dict[int, Any] = {}
    for done in run_tasks(function, tasks, workers=workers, threads=threads):
        if isinstance(done.result, Failure):
            raise (InputError if done.result.kind == "InputError" else RuntimeError)(done.result.what)
        found[done.number] = done.result
    return [found[number] for number in range(len(tasks))]
