"""Worker processes that give their results in the order of the work."""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Self, TypeVar

from morpheus.errors import Unavailable

AHEAD = 2
"""Jobs that wait for each worker; more would only fill memory."""

Job = TypeVar("Job")
Result = TypeVar("Result")
Begun = Future[tuple[Result, list[logging.LogRecord]]]


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

    def map(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int = AHEAD
    ) -> Iterator[Result]:
        """Do the jobs side by side; results, and the first error, come in the jobs' order.

        The first jobs are begun at once, before a result is asked for. What is logged on the way is
        logged here, each message once.

        Args:
            work: What is done.
            jobs: To what.
            ahead: Jobs that wait for each worker.

        Raises:
            Unavailable: A worker was killed from outside, most often for want of memory.
        """
        if self.workers < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        pool = self._pool or self._started(None)
        level = logging.getLogger("morpheus").getEffectiveLevel()
        return self._done((pool.submit(_do, work, job, level) for job in jobs), ahead)

    def map_given(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int = AHEAD
    ) -> Iterator[Result]:
        """As `map`, where the work is large: workers are started anew, and given it once each."""
        if self.workers < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        self._end(wait=True)
        pool = self._started(bytes(ForkingPickler.dumps(work)))
        level = logging.getLogger("morpheus").getEffectiveLevel()
        return self._done((pool.submit(_do_given, job, level) for job in jobs), ahead)

    def _done(self, begun: Iterator[Begun[Result]], ahead: int) -> Iterator[Result]:
        waiting = deque(islice(begun, self.workers * ahead))
        return self._results(waiting, begun)

    def _results(
        self, waiting: deque[Begun[Result]], begun: Iterator[Begun[Result]]
    ) -> Iterator[Result]:
        for job in begun:
            waiting.append(job)
            yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _started(self, given: bytes | None) -> ProcessPoolExecutor:
        # Spawned, never forked: polars runs threads that a fork would leave half-alive.
        self._others = set(active_children())
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(
            self.workers, context, initializer=_begin, initargs=(given,)
        )
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
    # The terminal sends Ctrl+C to every process of the job; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Read by polars when it is imported, which is with the first job: one worker, one thread, and
    # freed memory goes back to the system after a second: later would be too much of it, sooner
    # takes a tenth of the time, as the next portion asks for it again.
    os.environ["POLARS_MAX_THREADS"] = "1"
    os.environ["_RJEM_MALLOC_CONF"] = "dirty_decay_ms:1000,muzzy_decay_ms:1000"
    # The same for numpy, whose threads take a tenth of a second to start.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if given is not None:
        # As `multiprocessing` would, but not before the lines above.
        _GIVEN.append(ForkingPickler.loads(given))


def _do(
    work: Callable[[Job], Result], job: Job, level: int
) -> tuple[Result, list[logging.LogRecord]]:
    kept = _Kept()
    logger = logging.getLogger("morpheus")
    logger.handlers, logger.propagate = [kept], False
    logger.setLevel(level)
    return work(job), kept.records


def _do_given(job: Job, level: int) -> tuple[Any, list[logging.LogRecord]]:
    return _do(_GIVEN[0], job, level)


class _Kept(logging.Handler):
    """Keeps what is logged, for the parent to say in the jobs' order."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        self.records.append(record)
