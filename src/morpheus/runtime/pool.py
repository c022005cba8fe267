"""Worker processes that give results in the order of the jobs.

This process works too, few results wait in memory, large work is sent once to each worker, log
messages come back, and Ctrl+C ends all processes at once. A worker ends when this process ends,
even if this process is killed. A worker that is killed at any moment fails the run and never blocks
it. Why not a library: docs/decisions/013-libraries.md.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from threading import RLock
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from morpheus.errors import TransientError
from morpheus.storage.atomic import files_are_shared, set_file_policy

MAX_IN_FLIGHT = 2
"""Started jobs per worker whose results have not been consumed. More would only fill memory."""
_TRIM_BYTES, _MMAP_BYTES = 128 << 20, 32 << 20
"""Freed memory that glibc keeps, and size of a block from which it returns it."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of the parameters of mallopt

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
        pool: WorkerGroup,
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

_END_SECONDS = 5
"""Time that a worker has to end by itself before it is killed."""


class WorkerLostError(Exception):
    """A worker process ended before it returned a result.

    Args:
        started: Whether it had started, so that it may have been working.
        exit_code: Its exit code; negative for a signal, None if it is unknown.
    """

    def __init__(self, *, started: bool, exit_code: int | None) -> None:
        self.started = started
        killed = exit_code is not None and exit_code < 0
        super().__init__(f"signal {-(exit_code or 0)}" if killed else f"exit code {exit_code}")


class Task(NamedTuple):
    """A call for a worker process.

    Attributes:
        future: Gets the result.
        function: Function to call. It must be picklable.
        arguments: Its arguments.
    """

    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class WorkerGroup:
    """Worker processes. A thread for each process sends it tasks and receives the results.

    Each process has its own connection, so that the death of a process ends the connection even in
    the middle of a message. What is given to a process when it starts is small: the system buffers
    it, and nothing waits for a process that dies before it reads.

    Args:
        workers: Number of processes.
        shared_work: Pickled function that each process receives once; None for none.

    Raises:
        TransientError: The system cannot start another process.
    """

    def __init__(self, workers: int, shared_work: bytes | None) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._lost: WorkerLostError | None = None
        self._closed = False
        # Spawned, never forked: a fork would copy the locks of polars, but not its threads.
        context = get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(workers):
                self._start_worker(context, shared_work)
        except OSError as error:
            self.kill()
            raise TransientError(
                f"A worker process cannot be started ({error.strerror or error}). "
                "Use fewer workers: `morpheus run --num_threads=1 ...`."
            ) from error

    def submit(self, function: Callable[..., ResultT], *arguments: object) -> Future[ResultT]:
        """Call a function in a worker process.

        Raises:
            RuntimeError: A process was lost, or the group is closed.
        """
        if self._closed or self._lost is not None:
            raise RuntimeError("the worker processes have ended")
        future: Future[ResultT] = Future()
        self._tasks.put(Task(future, function, arguments))
        if self._lost is not None:
            self._fail_waiting()  # the process was lost after the check above
        return future

    def close(self) -> None:
        """Let the processes finish the tasks that they have, and end them."""
        self._closed = True
        self._cancel_waiting()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.join(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the processes at once, whatever they do."""
        self._closed = True
        self._cancel_waiting()
        for _ in self._threads:
            self._tasks.put(None)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_SECONDS)

    def _start_worker(self, context: SpawnContext, shared_work: bytes | None) -> None:
        connection, other_end = context.Pipe()
        process = context.Process(
            target=_serve_tasks,
            args=(other_end, files_are_shared(), shared_work is not None),
            daemon=True,
        )
        process.start()
        # Only the process holds its end now, so the connection closes when the process dies.
        other_end.close()
        self._processes.append(process)
        thread = threading.Thread(
            target=self._run_tasks, args=(process, connection, shared_work), daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def _run_tasks(
        self, process: SpawnProcess, connection: Connection, shared_work: bytes | None
    ) -> None:
        """Run tasks in a process until the group is closed or the process dies."""
        started = False
        with connection:
            while (task := self._tasks.get()) is not None:
                future = task.future
                try:
                    if not started:
                        if shared_work is not None:
                            connection.send_bytes(shared_work)
                        connection.recv_bytes()
                        started = True
                    _exchange(connection, task)
                except (EOFError, OSError):
                    process.join(_END_SECONDS)
                    self._lost = WorkerLostError(started=started, exit_code=process.exitcode)
                    future.set_exception(self._lost)
                    self._fail_waiting()
                    return
                del task, future  # the result must not stay in memory until the next task

    def _fail_waiting(self) -> None:
        for task in self._take_waiting():
            task.future.set_exception(self._lost)

    def _cancel_waiting(self) -> None:
        for task in self._take_waiting():
            task.future.cancel()

    def _take_waiting(self) -> Iterator[Task]:
        with suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    yield task


def _exchange(connection: Connection, task: Task) -> None:
    """Send a task to a worker, and receive its result.

    Raises:
        EOFError, OSError: The worker has died.
    """
    try:
        message = ForkingPickler.dumps((task.function, task.arguments))
    except Exception as error:  # noqa: BLE001 - raised where the result is used
        task.future.set_exception(error)
        return
    connection.send_bytes(message)
    del message
    answer = connection.recv_bytes()
    try:
        result, failure = ForkingPickler.loads(answer)
    except Exception as error:  # noqa: BLE001 - as above
        result, failure = None, error
    del answer
    if failure is None:
        task.future.set_result(result)
    else:
        task.future.set_exception(failure)


class WorkerPool:
    """Worker processes, started with the first jobs.

    Leaving the `with` block ends them; leaving it with an exception kills them.

    Args:
        parallelism: Number of processes, this one included. With 1, all work is done here.
    """

    def __init__(self, parallelism: int) -> None:
        self.parallelism = parallelism
        self._pool: WorkerGroup | None = None
        self._logged_messages: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if kind is None:
                pool.close()
            else:
                pool.kill()

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
        """Run jobs in parallel; results and the first error come in the order of the jobs.

        This process is one of the workers: it runs a job instead of waiting for a result. The first
        jobs start at once, before a result is consumed. A process runs all its jobs with the same
        copy of the function, which can keep what they have in common. Log messages of workers are
        logged here, each text once.

        Args:
            work: Function to call. It must be picklable.
            jobs: Its arguments.

        Raises:
            TransientError: A worker was killed, most often because memory ran out.
        """
        if self.parallelism < 2:  # noqa: PLR2004 - one worker is this process
            return map(work, jobs)
        num_remote = self.parallelism - 1
        self._pool = pool = self._pool or WorkerGroup(num_remote, None)
        # Pickled before this process calls it: what it computes then stays here.
        pickled = bytes(ForkingPickler.dumps(partial(_run_job, work, _log_level())))
        remote, local = partial(_run_pickled, pickled), partial(_run_job_inline, work)
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
        if self._pool is not None:
            self._pool.close()
        shared_work = bytes(ForkingPickler.dumps(work))
        self._pool = pool = WorkerGroup(self.parallelism, shared_work)
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

    def _unwrap(self, future: TaskFuture[ResultT]) -> ResultT:
        try:
            result, records = future.result()
        except WorkerLostError as error:
            when = "was killed" if error.started else "ended while it started"
            raise TransientError(
                f"A worker process {when} ({error}), most often because memory ran out. "
                "Use fewer workers: `morpheus run --num_threads=1 ...`."
            ) from error
        for record in records:
            if record.msg not in self._logged_messages:
                self._logged_messages.add(record.msg)
                logging.getLogger(record.name).handle(record)
        return result


_SHARED_WORK: list[Callable[..., Any]] = []
"""In a worker: the function that it received when it started; see `WorkerPool.map_shared`."""


def _serve_tasks(connection: Connection, shared_files: bool, has_shared_work: bool) -> None:  # noqa: FBT001 - sent by position
    """Run in a worker process: answer tasks until the connection closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    atexit.register(gc.freeze)  # a faster exit, as in `morpheus.__main__`
    # The terminal sends Ctrl+C to every process of the job; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(SINGLE_THREAD_ENV)
    keep_freed_memory()
    set_file_policy(shared=shared_files)
    logging.captureWarnings(capture=True)
    with suppress(EOFError, OSError):  # the other process has closed the connection
        failed = _receive_shared_work(connection) if has_shared_work else None
        connection.send_bytes(b"")  # started
        while True:
            connection.send_bytes(_answer(connection.recv_bytes(), failed))


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory that will be needed again.

    By default, it returns the memory of large blocks, such as decompressed files, to the system,
    and requests it again for the next ones. Dask's nannies set MALLOC_TRIM_THRESHOLD_ to 64 kB, so
    that this happens for each array: training takes up to three times as long. Other C libraries do
    not have this problem.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


def _end_with_parent() -> None:
    """End this process when its parent ends, however the parent ends and whatever runs here."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _receive_shared_work(connection: Connection) -> Exception | None:
    """Receive the function of `WorkerPool.map_shared`; return the error if that fails."""
    # Not an argument of the process: it would be unpickled before the environment is set.
    message = connection.recv_bytes()
    try:
        _SHARED_WORK.append(ForkingPickler.loads(message))
    except Exception as error:  # noqa: BLE001 - sent to the parent with the first task
        return error
    return None


def _answer(message: bytes, failed: Exception | None) -> memoryview:
    """Run a task, and return its pickled result and error."""
    result: object = None
    if failed is None:
        try:
            function, arguments = ForkingPickler.loads(message)
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - polars panics with a BaseException
            failed = _make_picklable(error)
    try:
        return ForkingPickler.dumps((result, failed))
    except Exception as error:  # noqa: BLE001 - sent in place of the result
        return ForkingPickler.dumps((None, _make_picklable(error)))


def _make_picklable(error: BaseException) -> Exception:
    """Return an error that can be sent, with the traceback of this process as a note."""
    trace = traceback.format_exc()
    copied: object = None
    with suppress(Exception):  # any class of a plugin or a library
        copied = ForkingPickler.loads(ForkingPickler.dumps(error))
    if not isinstance(copied, Exception):
        copied = RuntimeError(f"{type(error).__name__}: {error}")
    copied.add_note(f"In a worker process:\n{trace}")
    return copied


_KNOWN_WORK: dict[bytes, Callable[..., Any]] = {}
"""In a worker: the function of the latest job of `WorkerPool.map`, by its pickled form."""


def _run_pickled(pickled: bytes, job: object) -> Any:  # noqa: ANN401 - what the function returns
    """Run a job of `WorkerPool.map` with a function that is read once."""
    if pickled not in _KNOWN_WORK:
        _KNOWN_WORK.clear()
        _KNOWN_WORK[pickled] = ForkingPickler.loads(pickled)
    return _KNOWN_WORK[pickled](job)


def _run_job(work: Callable[[JobT], ResultT], level: int, job: JobT) -> TaskResult[ResultT]:
    handler = BufferedLogHandler()
    # Messages of libraries too: the parent process decides what to do with them.
    logging.root.handlers = [handler]
    return _run_logged(handler, work, level, job)


def _run_logged(
    handler: BufferedLogHandler, work: Callable[[JobT], ResultT], level: int, job: JobT
) -> TaskResult[ResultT]:
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
        return _run_logged(BufferedLogHandler(), work, logger.level, job)
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _log_level() -> int:
    return logging.getLogger("morpheus").getEffectiveLevel()
