"""Worker processes that give their results in the order of the work."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Self, TypeVar

from morpheus.errors import Unavailable
from morpheus.kept_log import KeptLog
from morpheus.turns import AHEAD, Turns

ONE_THREAD = {
    "POLARS_MAX_THREADS": "1",
    # What one thread has freed, the next one takes. Freed memory goes back to the system after a
    # second: later would be too much of it, sooner takes a tenth of the time, as the next portion
    # asks for it again.
    "_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:1000",
    # Those of numpy take a tenth of a second to start, and networks are too small to gain by them.
    "OPENBLAS_NUM_THREADS": "1",
}
"""What polars and numpy read in the environment when they are imported: each process of a run does
its work in one thread, for there are as many processes as are asked for."""

Job = TypeVar("Job")
Result = TypeVar("Result")
Done = tuple[Result, list[logging.LogRecord]]
Begun = Future[Done[Result]]


class Crew:
    """Some worker processes, started with the first jobs; with fewer than two, this process.

    Leaving the `with` block ends them; leaving it with an exception ends them at once.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        self._end(wait=kind is None)
        if kind is not None:
            for child in set(active_children()) - self._others:
                child.terminate()

    def map(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Do the jobs side by side; results, and the first error, come in the jobs' order.

        This process is one of the workers: it does a job where it would wait for a result. The
        first jobs are begun at once, before a result is asked for. What is logged on the way is
        logged here, each message once.

        Args:
            work: What is done.
            jobs: To what.

        Raises:
            Unavailable: A worker was killed from outside, most often for want of memory.
        """
        if self.workers < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        others = self.workers - 1
        pool = self._pool or self._started(others, None)
        there, here = partial(_do, work, _level()), partial(_do_here, work)
        return map(self._result, Turns(there, here, jobs, pool, others))

    def map_given(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """As `map`, where the work is large: workers are started anew, and given it once each.

        This process is none of them. Jobs are taken from their iterator as they are begun.
        """
        if self.workers < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        self._end(wait=True)
        pool = self._started(self.workers, bytes(ForkingPickler.dumps(work)))
        begun = (pool.submit(_do_given, _level(), job) for job in jobs)
        return self._results(deque(islice(begun, self.workers * AHEAD)), begun)

    def _results(
        self, waiting: deque[Begun[Result]], begun: Iterator[Begun[Result]]
    ) -> Iterator[Result]:
        for job in begun:
            waiting.append(job)
            yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _started(self, workers: int, given: bytes | None) -> ProcessPoolExecutor:
        # Spawned, never forked: polars runs threads that a fork would leave half-alive.
        self._others = set(active_children())
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(given,))
        return self._pool

    def _end(self, *, wait: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)

    def _result(self, future: Begun[Result]) -> Result:
        try:
            result, records = future.result()
        except BrokenProcessPool as error:
            raise Unavailable(
                "A worker process was killed, most often for want of memory. "
                "Use fewer workers: `morpheus run --num_threads=1 ...`."
            ) from error
        for record in records:
            if record.msg not in self._told:
                self._told.add(record.msg)
                logging.getLogger(record.name).handle(record)
        return result


_GIVEN: list[Callable[..., Any]] = []
"""In a worker: what it was given to do when it was started."""


def _begin(given: bytes | None) -> None:
    atexit.register(gc.freeze)  # as in `morpheus.__main__`
    # The terminal sends Ctrl+C to every process of the job; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(ONE_THREAD)
    if given is not None:
        # As `multiprocessing` would, but not before the lines above.
        _GIVEN.append(ForkingPickler.loads(given))


def _do(work: Callable[[Job], Result], level: int, job: Job) -> Done[Result]:
    kept = KeptLog()
    logger = logging.getLogger("morpheus")
    logger.handlers, logger.propagate = [kept], False
    logger.setLevel(level)
    return work(job), kept.records


def _do_given(level: int, job: Job) -> Done[Any]:
    return _do(_GIVEN[0], level, job)


def _do_here(work: Callable[[Job], Result], job: Job) -> Done[Result]:
    logger = logging.getLogger("morpheus")
    handlers, propagate = logger.handlers, logger.propagate
    try:
        return _do(work, logger.level, job)
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _level() -> int:
    return logging.getLogger("morpheus").getEffectiveLevel()
