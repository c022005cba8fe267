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

from morpheus.errors import TransientError
from morpheus.kept_log import BufferedLogHandler
from morpheus.turns import MAX_IN_FLIGHT, CallerRunsExecutor

SINGLE_THREAD_ENV = {
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

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
TaskResult = tuple[ResultT, list[logging.LogRecord]]
TaskFuture = Future[TaskResult[ResultT]]


class WorkerPool:
    """Some worker processes, started with the first jobs; with fewer than two, this process.

    Leaving the `with` block ends them; leaving it with an exception ends them at once.

    Args:
        parallelism: How many.
    """

    def __init__(self, parallelism: int) -> None:
        self.parallelism = parallelism
        self._pool: ProcessPoolExecutor | None = None
        self._other_children: set[BaseProcess] = set()
        self._logged_messages: set[str] = set()

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
        self._shut_down(wait=kind is None)
        if kind is not None:
            for child in set(active_children()) - self._other_children:
                child.terminate()

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
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
        if self.parallelism < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        others = self.parallelism - 1
        pool = self._pool or self._start_pool(others, None)
        there, here = partial(_run_job, work, _log_level()), partial(_run_job_inline, work)
        return map(self._unwrap, CallerRunsExecutor(there, here, jobs, pool, others))

    def map_shared(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
        """As `map`, where the work is large: workers are started anew, and given it once each.

        This process is none of them. Jobs are taken from their iterator as they are begun.
        """
        if self.parallelism < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        self._shut_down(wait=True)
        pool = self._start_pool(self.parallelism, bytes(ForkingPickler.dumps(work)))
        begun = (pool.submit(_run_shared_job, _log_level(), job) for job in jobs)
        return self._iter_results(deque(islice(begun, self.parallelism * MAX_IN_FLIGHT)), begun)

    def _iter_results(
        self, waiting: deque[TaskFuture[ResultT]], futures: Iterator[TaskFuture[ResultT]]
    ) -> Iterator[ResultT]:
        for job in futures:
            waiting.append(job)
            yield self._unwrap(waiting.popleft())
        while waiting:
            yield self._unwrap(waiting.popleft())

    def _start_pool(self, workers: int, shared_work: bytes | None) -> ProcessPoolExecutor:
        # Spawned, never forked: polars runs threads that a fork would leave half-alive.
        self._other_children = set(active_children())
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=(shared_work,))
        return self._pool

    def _shut_down(self, *, wait: bool) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=wait, cancel_futures=True)

    def _unwrap(self, future: TaskFuture[ResultT]) -> ResultT:
        try:
            result, records = future.result()
        except BrokenProcessPool as error:
            raise TransientError(
                "A worker process was killed, most often for want of memory. "
                "Use fewer workers: `morpheus run --num_threads=1 ...`."
            ) from error
        for record in records:
            if record.msg not in self._logged_messages:
                self._logged_messages.add(record.msg)
                logging.getLogger(record.name).handle(record)
        return result


_SHARED_WORK: list[Callable[..., Any]] = []
"""In a worker: what it was given to do when it was started."""


def _init_worker(shared_work: bytes | None) -> None:
    atexit.register(gc.freeze)  # as in `morpheus.__main__`
    # The terminal sends Ctrl+C to every process of the job; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(SINGLE_THREAD_ENV)
    if shared_work is not None:
        # As `multiprocessing` would, but not before the lines above.
        _SHARED_WORK.append(ForkingPickler.loads(shared_work))


def _run_job(work: Callable[[JobT], ResultT], level: int, job: JobT) -> TaskResult[ResultT]:
    kept = BufferedLogHandler()
    logger = logging.getLogger("morpheus")
    logger.handlers, logger.propagate = [kept], False
    logger.setLevel(level)
    return work(job), kept.records


def _run_shared_job(level: int, job: JobT) -> TaskResult[Any]:
    return _run_job(_SHARED_WORK[0], level, job)


def _run_job_inline(work: Callable[[JobT], ResultT], job: JobT) -> TaskResult[ResultT]:
    logger = logging.getLogger("morpheus")
    handlers, propagate = logger.handlers, logger.propagate
    try:
        return _run_job(work, logger.level, job)
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _log_level() -> int:
    return logging.getLogger("morpheus").getEffectiveLevel()
