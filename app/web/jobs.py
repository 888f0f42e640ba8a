"""Long work outside the script thread: it survives a page change, shows its progress and can be cancelled."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from catalogs.errors import PlanError

Progress = Callable[[str, float], None]
KEEP_FINISHED_S = 3600.0


class CancelledError(Exception):
    """The visitor stopped the job."""


@dataclass
class Job:
    """One piece of work of one visitor."""

    job_id: str
    slot: str
    title: str
    future: Future[Any] | None = None
    text: str = "waiting for its turn"
    share: float = 0.0
    started_at_s: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def stopped(self) -> bool:
        """Whether the visitor stopped it."""
        return self._stop.is_set()

    @property
    def done(self) -> bool:
        """Whether it ended: well, badly or cancelled."""
        return self.future is not None and self.future.done()

    def cancel(self) -> None:
        """Stop it: at its next report of progress, which a worker's process need not make itself."""
        self._stop.set()
        if self.future is not None:
            self.future.cancel()

    def report(self, text: str, share: float) -> None:
        """What the work calls: what is being done and the share done.

        Raises:
            CancelledError: the visitor stopped the job.
        """
        if self._stop.is_set():
            raise CancelledError
        self.text, self.share = text, min(1.0, max(0.0, share))


class Jobs:
    """The jobs of all visitors, each found by its own unguessable id; two run at a time."""

    def __init__(self, max_workers: int = 2) -> None:
        self._waiting: SimpleQueue[tuple[Job, Future[Any], Callable[[Progress], Any]]] = SimpleQueue()
        for number in range(max_workers):  # daemons: a server that is stopped does not wait for work
            threading.Thread(target=self._work, name=f"job-{number}", daemon=True).start()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, slot: str, title: str, work: Callable[[Progress], Any]) -> Job:
        """Begin ``work(progress)`` for a page's slot; its result or exception is in ``job.future``."""
        job = Job(uuid.uuid4().hex, slot, title)
        with self._lock:
            self._forget_old()
            self._jobs[job.job_id] = job
        job.future = Future()
        self._waiting.put((job, job.future, work))
        return job

    def find(self, slot: str, job_id: str | None) -> Job | None:
        """The slot's job of this id, while it is kept."""
        with self._lock:
            job = self._jobs.get(job_id or "")
        return job if job is not None and job.slot == slot else None

    def _work(self) -> None:
        while True:
            job, future, work = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(_run(job, work))
            except BaseException as problem:
                future.set_exception(problem)

    def _forget_old(self) -> None:
        now = time.monotonic()
        for job_id in [j.job_id for j in self._jobs.values() if j.done and now - j.started_at_s > KEEP_FINISHED_S]:
            del self._jobs[job_id]


def _run(job: Job, work: Callable[[Progress], Any]) -> Any:
    job.report("starting", 0.0)
    try:
        return work(job.report)
    except (PlanError, CancelledError):
        raise
    except Exception:
        logging.getLogger(__name__).exception("%s failed", job.title)
        raise
