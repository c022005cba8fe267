"""Jobs done side by side: by other processes, and by this one where it would wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from threading import RLock
from typing import Generic, TypeVar

MAX_IN_FLIGHT = 2
"""Jobs begun for each worker whose results nobody has taken; more would only fill memory."""

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class CallerRunsExecutor(Generic[JobT, ResultT]):
    """Jobs, and what was done.

    Args:
        there: What another process does with a job.
        here: What this one does.
        jobs: What is to be done.
        pool: The other processes.
        others: How many they are.
    """

    def __init__(
        self,
        run_remote: Callable[[JobT], ResultT],
        run_local: Callable[[JobT], ResultT],
        jobs: Iterable[JobT],
        pool: ProcessPoolExecutor,
        num_remote: int,
    ) -> None:
        self._run_remote, self._run_local, self._jobs = run_remote, run_local, deque(jobs)
        self._pool, self._num_remote = pool, num_remote
        self._futures: deque[Future[ResultT]] = deque()
        self._busy = 0
        # A process that has done a job is given the next by a thread of the pool.
        self._lock = RLock()
        self._fill()

    def __iter__(self) -> Iterator[Future[ResultT]]:
        """What was done, in the order of the jobs."""
        while self._futures or self._jobs:
            while self._run_one_here():
                pass
            with self._lock:
                first = self._futures.popleft()
            self._fill()
            yield first

    def _fill(self) -> None:
        """Give each other process a job."""
        with self._lock, suppress(RuntimeError):  # where the pool is shut down, or a process died
            while self._busy < self._num_remote and self._can_start():
                future = self._pool.submit(self._run_remote, self._jobs[0])
                self._futures.append(future)
                self._jobs.popleft()
                self._busy += 1
                future.add_done_callback(self._on_done)

    def _on_done(self, _: Future[ResultT]) -> None:
        with self._lock:
            self._busy -= 1
            self._fill()

    def _can_start(self) -> bool:
        return bool(self._jobs) and len(self._futures) < MAX_IN_FLIGHT * (self._num_remote + 1)

    def _run_one_here(self) -> bool:
        """Do a job here, if there is one and the first result is not there yet."""
        with self._lock:
            if not self._can_start() or (self._futures and self._futures[0].done()):
                return False
            job, future = self._jobs.popleft(), Future[ResultT]()
            self._futures.append(future)
        try:
            future.set_result(self._run_local(job))
        except Exception as error:  # noqa: BLE001 - raised in its turn, as that of another process
            future.set_exception(error)
        return True
