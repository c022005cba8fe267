"""Worker processes that give results in the order of the jobs.

`WorkerPool` adds to `concurrent.futures` what its executors lack: this process works too, few
results wait in memory, large work is sent once to each worker, log messages come back, and Ctrl+C
ends all processes at once. Why not a library: docs/decisions/013-libraries.md.
"""

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
from morpheus.storage.atomic import files_are_shared, set_file_policy

MAX_IN_FLIGHT = 2
"""Started jobs per worker whose results have not been consumed. More would only fill memory."""

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class CallerRunsExecutor(Generic[JobT, ResultT]):
    """Runs jobs in other processes, and in this one while it would wait for a result.

    Args:
        run_remote: Runs a job in another process.
        run_local: Runs a job in this process.
        jobs: The jobs.
        pool: The other processes.
        num_remote: Number of other processes.
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
        # A thread of the pool calls `_on_done`, which submits the next job.
        self._lock = RLock()
        self._fill()

    def __iter__(self) -> Iterator[Future[ResultT]]:
        """Yield a finished future for each job, in the order of the jobs."""
        while self._futures or self._jobs:
            while self._run_one_here():
                pass
            with self._lock:
                first = self._futures.popleft()
            self._fill()
            yield first

    def _fill(self) -> None:
        """Submit jobs until every other process has one."""
        with self._lock, suppress(RuntimeError):  # the pool is shut down, or a process died
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
        """Run a job here if one is left and the next result is not ready; return whether it ran."""
        with self._lock:
            if not self._can_start() or (self._futures and self._futures[0].done()):
                return False
            job, future = self._jobs.popleft(), Future[ResultT]()
            self._futures.append(future)
        try:
            future.set_result(self._run_local(job))
        except Exception as error:  # noqa: BLE001 - raised in order, like an error of another process
            future.set_exception(error)
        return True


class BufferedLogHandler(logging.Handler):
    """Keeps the log records of the thread that created it.

    Attributes:
        records: The records. Messages are formatted, and arguments and tracebacks dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text: its arguments may be large, or tied to this process."""
        if record.thread != self._thread:
            return
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        self.records.append(record)


SINGLE_THREAD_ENV = {
    "POLARS_MAX_THREADS": "1",
    # One arena for all threads: memory that one thread frees is reused by the next. Freed memory
    # returns to the system after a second. Later would hold too much of it; sooner costs a tenth
    # of the time, because the next partition asks for it again.
    "_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:1000",
    # Threads of numpy take a tenth of a second to start; our networks are too small to gain.
    "OPENBLAS_NUM_THREADS": "1",
}
"""Environment of a worker, read by polars and numpy when they are imported.

Each process works in one thread, because the number of processes is the requested parallelism."""

TaskResult = tuple[ResultT, list[logging.LogRecord]]
TaskFuture = Future[TaskResult[ResultT]]


class WorkerPool:
    """Worker processes, started with the first jobs.

    Leaving the `with` block ends them; leaving it with an exception kills them.

    Args:
        parallelism: Number of processes, this one included. With 1, all work is done here.
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
        """Run jobs in parallel; results and the first error come in the order of the jobs.

        This process is one of the workers: it runs a job instead of waiting for a result. The first
        jobs start at once, before a result is consumed. Log messages of workers are logged here,
        each text once.

        Args:
            work: Function to call. It must be picklable.
            jobs: Its arguments.

        Raises:
            TransientError: A worker was killed, most often because memory ran out.
        """
        if self.parallelism < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        num_remote = self.parallelism - 1
        pool = self._pool or self._start_pool(num_remote, None)
        remote, local = partial(_run_job, work, _log_level()), partial(_run_job_inline, work)
        return map(self._unwrap, CallerRunsExecutor(remote, local, jobs, pool, num_remote))

    def map_shared(
        self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]
    ) -> Iterator[ResultT]:
        """Run jobs in parallel as `map` does, for a function that is large when pickled.

        Workers are restarted and each receives the function once. This process does not work.
        Jobs are taken from the iterator as they start.
        """
        if self.parallelism < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        self._shut_down(wait=True)
        pool = self._start_pool(self.parallelism, bytes(ForkingPickler.dumps(work)))
        futures = (pool.submit(_run_shared_job, _log_level(), job) for job in jobs)
        first = deque(islice(futures, self.parallelism * MAX_IN_FLIGHT))
        return self._iter_results(first, futures)

    def _iter_results(
        self, waiting: deque[TaskFuture[ResultT]], futures: Iterator[TaskFuture[ResultT]]
    ) -> Iterator[ResultT]:
        for future in futures:
            waiting.append(future)
            yield self._unwrap(waiting.popleft())
        while waiting:
            yield self._unwrap(waiting.popleft())

    def _start_pool(self, workers: int, shared_work: bytes | None) -> ProcessPoolExecutor:
        # Spawned, never forked: a fork would copy the locks of polars, but not its threads.
        self._other_children = set(active_children())
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(
            workers,
            context,
            initializer=_init_worker,
            initargs=(shared_work, files_are_shared()),
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
                "A worker process was killed, most often because memory ran out. "
                "Use fewer workers: `morpheus run --num_threads=1 ...`."
            ) from error
        for record in records:
            if record.msg not in self._logged_messages:
                self._logged_messages.add(record.msg)
                logging.getLogger(record.name).handle(record)
        return result


_SHARED_WORK: list[Callable[..., Any]] = []
"""In a worker: the function that it received when it started; see `WorkerPool.map_shared`."""


def _init_worker(shared_work: bytes | None, shared_files: bool) -> None:  # noqa: FBT001 - sent by position
    atexit.register(gc.freeze)  # a faster exit, as in `morpheus.__main__`
    # The terminal sends Ctrl+C to every process of the job; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(SINGLE_THREAD_ENV)
    set_file_policy(shared=shared_files)
    if shared_work is not None:
        # Not unpickled by `multiprocessing`: it would import polars before the environment is set.
        _SHARED_WORK.append(ForkingPickler.loads(shared_work))


def _run_job(work: Callable[[JobT], ResultT], level: int, job: JobT) -> TaskResult[ResultT]:
    handler = BufferedLogHandler()
    logger = logging.getLogger("morpheus")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
    return work(job), handler.records


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
