"""Jobs done side by side: by other processes, and by this one where it would wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from threading import RLock
from typing import Generic, TypeVar

AHEAD = 2
"""Jobs begun for each worker whose results nobody has taken; more would only fill memory."""

Job = TypeVar("Job")
Done = TypeVar("Done")


class Turns(Generic[Job, Done]):
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
        there: Callable[[Job], Done],
        here: Callable[[Job], Done],
        jobs: Iterable[Job],
        pool: ProcessPoolExecutor,
        others: int,
    ) -> None:
        self._there, self._here, self._jobs = there, here, deque(jobs)
        self._pool, self._others = pool, others
        self._begun: deque[Future[Done]] = deque()
        self._busy = 0
        # A process that has done a job is given the next by a thread of the pool.
        self._lock = RLock()
        self._fill()

    def __iter__(self) -> Iterator[Future[Done]]:
        """What was done, in the order of the jobs."""
        while self._begun or self._jobs:
            while self._help():
                pass
            with self._lock:
                first = self._begun.popleft()
            self._fill()
            yield first

    def _fill(self) -> None:
        """Give each other process a job."""
        with self._lock, suppress(RuntimeError):  # where the pool is shut down, or a process died
            while self._busy < self._others and self._more():
                future = self._pool.submit(self._there, self._jobs[0])
                self._begun.append(future)
                self._jobs.popleft()
                self._busy += 1
                future.add_done_callback(self._end)

    def _end(self, _: Future[Done]) -> None:
        with self._lock:
            self._busy -= 1
            self._fill()

    def _more(self) -> bool:
        return bool(self._jobs) and len(self._begun) < AHEAD * (self._others + 1)

    def _help(self) -> bool:
        """Do a job here, if there is one and the first result is not there yet."""
        with self._lock:
            if not self._more() or (self._begun and self._begun[0].done()):
                return False
            job, future = self._jobs.popleft(), Future[Done]()
            self._begun.append(future)
        try:
            future.set_result(self._here(job))
        except Exception as error:  # noqa: BLE001 - raised in its turn, as that of another process
            future.set_exception(error)
        return True
