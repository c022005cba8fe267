"""Worker processes that give their results in the order of the work."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from threading import RLock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from morpheus.errors import TransientError

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


class BufferedLogHandler(logging.Handler):
    """Keeps what this thread logs: others may do other things.

    Attributes:
        records: What was logged, as text.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; what it was made of may be large, or stay behind in a process."""
        if record.thread != self._thread:
            return
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        self.records.append(record)


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

    def map_shared(
        self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]
    ) -> Iterator[ResultT]:
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
        self._pool = ProcessPoolExecutor(
            workers, context, initializer=_init_worker, initargs=(shared_work,)
        )
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
