"""Long work in a process of its own, which a stop ends at once, whatever the work is in the middle of.

A server keeps its workers for the next piece of work, so that imports and compiled loops are paid for once. Both ends
of the connection are ours: nothing that a visitor sends is unpickled.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from catalogs.errors import PlanError

Progress = Callable[[str, float], None]
POLL_S = 0.1  # how soon a stop is seen
SETTINGS = "PLAN_"  # environment variables that a worker takes over anew with each piece of work


class Worker:
    """A process that runs one piece of work at a time.

    Attributes:
        process: it.
    """

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        number = theirs.fileno()
        command = [sys.executable, "-P", "-m", "app.web.worker", str(number)]
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(command, pass_fds=[number], env={**os.environ, "PYTHONPATH": path})
        theirs.close()

    def run(self, name: str, args: tuple[Any, ...], progress: Progress) -> Any:
        """The result of ``WORK[name](progress, *args)``.

        Raises:
            RuntimeError: the process ended, or the work failed by a fault of ours; the log has it.
            Exception: what ``progress`` raises (a stop), what the work raises of PlanError.
        """
        settings = {k: v for k, v in os.environ.items() if k.startswith(SETTINGS)}
        text, share = "starting", 0.0
        try:
            self._connection.send((name, args, settings))
            while True:
                progress(text, share)
                if not self._connection.poll(POLL_S):
                    continue
                kind, value = self._connection.recv()
                if kind == "progress":
                    text, share = value
                elif kind == "done":
                    return value
                else:
                    raise value
        except (EOFError, OSError) as error:
            raise RuntimeError("the work's process ended before it did") from error

    def end(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self._connection.close()


_idle: list[Worker] = []


def apart(name: str, *args: Any) -> Callable[[Progress], Any]:
    """``app.web.work.WORK[name]`` on some arguments, as work that a job runs in a process of its own."""
    return partial(_run, name, args)


def _run(name: str, args: tuple[Any, ...], progress: Progress) -> Any:
    worker = _idle_worker() or Worker()
    try:
        found = worker.run(name, args, progress)
    except PlanError:
        _idle.append(worker)
        raise
    except BaseException:
        worker.end()
        raise
    _idle.append(worker)
    return found


def _idle_worker() -> Worker | None:
    """A worker that is done with earlier work and still there."""
    while _idle:
        worker = _idle.pop()
        if worker.process.poll() is None:
            return worker
        worker.end()
    return None


def main(number: int) -> None:
    """Run what the server sends, until the server closes its end or is gone."""
    from app.web.work import WORK

    connection: Connection[Any, Any] = Connection(number)
    asked: SimpleQueue[tuple[str, tuple[Any, ...], dict[str, str]]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()

    def progress(text: str, share: float) -> None:
        connection.send(("progress", (text, share)))

    while True:
        name, args, settings = asked.get()
        for key in [k for k in os.environ if k.startswith(SETTINGS)]:
            del os.environ[key]
        os.environ.update(settings)
        try:
            connection.send(("done", WORK[name](progress, *args)))
        except PlanError as problem:
            connection.send(("failed", problem))
        except Exception as problem:
            logging.getLogger(__name__).exception("%s failed", name)
            connection.send(("failed", RuntimeError(f"{type(problem).__name__}: {problem}")))


def _listen(connection: Connection[Any, Any], asked: SimpleQueue[Any]) -> None:
    """Hand on what is asked; without a server there is nothing left to do, not even the work at hand."""
    try:
        while True:
            asked.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
