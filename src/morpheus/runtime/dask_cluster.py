"""A Dask cluster: connecting, tasks, events and results.

A task runs on a worker through `run_task`, which captures log records and turns errors that a
person must fix into values, because retrying them would not help. `Cluster` submits tasks, moves
data between workers, and fetches results in order.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast
from uuid import uuid4

import msgspec

from morpheus.errors import MorpheusError, TransientError, UsageError
from morpheus.runtime.pool import MAX_IN_FLIGHT, BufferedLogHandler, keep_freed_memory
from morpheus.storage.atomic import files_are_shared, set_file_policy
from morpheus.storage.spill import SpillDir

if TYPE_CHECKING:
    from distributed import Client

ResultT = TypeVar("ResultT")

TOPIC = "morpheus"


class TaskContext(msgspec.Struct, frozen=True):
    """Settings of this process that a task needs on its worker.

    Attributes:
        log_level: Minimum level of log records.
        shared_files: Whether new files are readable for the group; see `set_file_policy`.
    """

    log_level: int
    shared_files: bool

    @classmethod
    def from_process(cls) -> Self:
        """Read the settings of this process."""
        return cls(logging.getLogger("morpheus").getEffectiveLevel(), files_are_shared())


@dataclass(frozen=True)
class TaskOutcome(Generic[ResultT]):
    """Result of a task, or the error that a person must fix, with the task's log records."""

    result: ResultT | None = None
    records: Sequence[logging.LogRecord] = field(default=(), repr=False)
    error: MorpheusError | None = None

    def __sizeof__(self) -> int:
        """Size in bytes, for the memory limits of the worker that holds it."""
        return object.__sizeof__(self) + _dask_sizeof(self.result)


def run_task(
    work: Callable[..., ResultT], context: TaskContext, *arguments: object
) -> TaskOutcome[ResultT]:
    """Run a task on a worker.

    Errors that a person must fix are returned, because Dask would retry a task that raises.

    Args:
        work: Function to call.
        context: Settings of the process that submitted the task.
        arguments: Its arguments. Outcomes of other tasks are replaced by their results.

    Raises:
        TransientError: A retry may succeed.
    """
    keep_freed_memory()
    set_file_policy(shared=context.shared_files)
    outcomes = (value for value in arguments if isinstance(value, TaskOutcome))
    failed = next((outcome.error for outcome in outcomes if outcome.error), None)
    if failed is not None:
        return TaskOutcome(error=failed)
    with _capture_log(context.log_level) as records:
        try:
            result = work(*map(unwrap, arguments))
        except TransientError:
            raise
        except MorpheusError as error:
            return TaskOutcome(None, records, error)
    return TaskOutcome(result, records)


def unwrap(value: Any) -> Any:  # noqa: ANN401 - any argument of a task
    """Return the result of an outcome; any other value is returned as it is."""
    return value.result if isinstance(value, TaskOutcome) else value


def to_cell_row(cells: TaskOutcome[Sequence[Any]]) -> Any:  # noqa: ANN401 - numpy, imported where it is used
    """Return the cells of an outcome as an array of objects, shape (1, cells)."""
    import numpy as np  # noqa: PLC0415 - this module is imported before numpy's threads are set

    row = np.empty((1, len(cells.result or ())), dtype=object)
    row[0, :] = cells.result
    return row


def log_task_started(number: int) -> None:
    """Publish on the cluster that a task has started; see `ClusterEvents`."""
    from distributed import get_worker  # noqa: PLC0415 - slow, and an extra

    get_worker().log_event(TOPIC, {"begun": number})


def dask_setup(worker: object) -> None:  # noqa: ARG001 - the signature that Dask expects of a preload module
    """Ignore Ctrl+C in a worker: the process at the prompt decides what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _capture_log(level: int) -> Iterator[list[logging.LogRecord]]:
    logger, handler = logging.getLogger("morpheus"), BufferedLogHandler()
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


def _dask_sizeof(value: object) -> int:
    from dask.sizeof import sizeof  # noqa: PLC0415 - an extra

    return int(sizeof(value))


class ClusterEvents(msgspec.Struct):
    """Counts events of a cluster while tasks run.

    Attributes:
        task_starts: Number of starts of each task, by the number of the task.
        lost_workers: Number of workers that were lost.

    >>> events = ClusterEvents()
    >>> for task in (7, 8, 7):
    ...     events.on_task_started((0.0, {"begun": task}))
    >>> events.retries
    1
    """

    task_starts: Counter[int] = msgspec.field(default_factory=Counter)
    lost_workers: int = 0

    @property
    def retries(self) -> int:
        """Number of times that a task was started again."""
        return self.task_starts.total() - len(self.task_starts)

    def on_task_started(self, event: tuple[float, Any]) -> None:
        """Count a task that a worker has started. Called by Dask with (time, message)."""
        self.task_starts[event[1]["begun"]] += 1

    def on_worker_event(self, event: tuple[float, Any]) -> None:
        """Count a worker that was lost. Called by Dask with (time, message)."""
        self.lost_workers += event[1].get("action") == "remove-worker"


CLUSTER_CLASSES = {
    "kubernetes": ("dask_kubernetes.operator:KubeCluster", "dask-kubernetes"),
    "slurm": ("dask_jobqueue:SLURMCluster", "dask-jobqueue"),
    "pbs": ("dask_jobqueue:PBSCluster", "dask-jobqueue"),
    "yarn": ("dask_yarn:YarnCluster", "dask-yarn"),
    "gateway": ("dask_gateway:GatewayCluster", "dask-gateway"),
    "fargate": ("dask_cloudprovider.aws:FargateCluster", "dask-cloudprovider[aws]"),
    "ec2": ("dask_cloudprovider.aws:EC2Cluster", "dask-cloudprovider[aws]"),
}
"""Names of cluster classes for `--scheduler`: the class, and the package to install."""
SCHEDULER_SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
CONNECT_TIMEOUT = 30
"""Seconds until the scheduler must answer, and until the first worker must be there."""
_DASK_CONFIG = {
    # The population statistics of stages, about 25 MB, go with the graph once; Dask warns from 10.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # The profiler samples each task a hundred times a second, for a dashboard that is off here.
    "distributed.worker.profile.enabled": False,
}
"""Dask configuration of this process. Workers of a running cluster have their own."""
SHUTDOWN_TIMEOUT = 10
"""Seconds that workers started here have to end."""
_SCHEDULER_HINT = (
    "Give an address such as `--scheduler=tcp://10.0.0.7:8786`, one of "
    f"{', '.join(f'`{word}`' for word in CLUSTER_CLASSES)}, or a cluster class, such as "
    "`--scheduler=dask_jobqueue:SGECluster`. Without --scheduler, workers start on this machine."
)


def check_scheduler(scheduler: str | None) -> None:
    """Reject an invalid `--scheduler` before anything is started.

    Raises:
        UsageError: Dask or the package of a cluster class is missing, or there is no such class.
    """
    try:
        import_module("distributed")
    except ImportError as error:
        raise UsageError(
            "--engine dask: Dask is not installed. Type `pip install 'morpheus-dfp[dask]'` on "
            "every machine of the cluster."
        ) from error
    if scheduler is not None and not is_scheduler_address(scheduler):
        find_cluster_class(scheduler)


def is_scheduler_address(scheduler: str | None) -> bool:
    """Return whether it is the address of a running scheduler."""
    return scheduler is not None and scheduler.startswith(SCHEDULER_SCHEMES)


@contextmanager
def connect(scheduler: str | None, num_workers: int) -> Iterator[Client]:
    """Connect to a scheduler. A cluster that was started for it ends with the `with` block.

    Args:
        scheduler: Address of a running scheduler; or a cluster class, by its name or a name of
            `CLUSTER_CLASSES`, which is started with Dask's own configuration; None for workers on
            this machine.
        num_workers: Number of workers to start. A running scheduler has its own.

    Raises:
        UsageError: There is no such cluster class.
        TransientError: The scheduler does not answer, no worker registers, or a worker has another
            version of morpheus.
    """
    import dask  # noqa: PLC0415 - slow, and an extra
    import distributed  # noqa: PLC0415 - slow, and an extra

    _silence_logs()
    with dask.config.set(_DASK_CONFIG), _open_scheduler(scheduler, num_workers) as target:
        try:
            client = distributed.Client(target, timeout=CONNECT_TIMEOUT, set_as_default=True)
        except (OSError, TimeoutError, ValueError) as error:
            raise TransientError(
                f"--scheduler: `{scheduler}` does not answer ({error or 'no answer'}). "
                f"Is it running? `dask scheduler` starts one and prints its address. "
                f"{_SCHEDULER_HINT}"
            ) from error
        with client:
            _check_workers(client, scheduler)
            yield client


def find_cluster_class(name: str) -> Callable[..., Any]:
    """Find a cluster class by a name of `CLUSTER_CLASSES` or as `package.module:Class`.

    >>> find_cluster_class("distributed:LocalCluster").__name__
    'LocalCluster'

    Raises:
        UsageError: There is none. The message says what to install, or which names are valid.
    """
    path, package = CLUSTER_CLASSES.get(
        name.lower(), (name, name.partition(":")[0].partition(".")[0])
    )
    module, colon, class_name = path.partition(":")
    if not colon:
        module, _, class_name = path.rpartition(".")
    if not module or not class_name.isidentifier():
        raise UsageError(f"--scheduler: `{name}` is not a scheduler. {_SCHEDULER_HINT}")
    try:
        cluster_class = getattr(import_module(module), class_name, None)
    except ImportError as error:
        raise UsageError(
            f"--scheduler: `{name}` needs the package `{package}`, which is not installed "
            f"({error}). Type `pip install '{package}'`."
        ) from error
    if not callable(cluster_class):
        raise UsageError(f"--scheduler: `{module}` has no class `{class_name}`. {_SCHEDULER_HINT}")
    return cast("Callable[..., Any]", cluster_class)


@contextmanager
def _open_scheduler(scheduler: str | None, num_workers: int) -> Iterator[Any]:
    if is_scheduler_address(scheduler):
        yield scheduler
        return
    with SpillDir() as spill_dir:
        cluster = (
            _start_local_cluster(num_workers, spill_dir.folder)
            if scheduler is None
            else _start_cluster(scheduler, num_workers)
        )
        try:
            yield cluster
        finally:
            # Processes that are still running after the timeout end with this one.
            with suppress(TimeoutError):
                cluster.close(timeout=SHUTDOWN_TIMEOUT)


def _start_local_cluster(num_workers: int, spill_dir: Path) -> Any:  # noqa: ANN401 - untyped in Dask
    import dask  # noqa: PLC0415 - slow, and an extra
    import distributed  # noqa: PLC0415 - slow, and an extra

    try:
        # Private (mode 0700), unlike Dask's own choice: workers spill events there.
        with dask.config.set({"temporary-directory": str(spill_dir)}):
            return distributed.LocalCluster(
                n_workers=num_workers,
                threads_per_worker=1,
                dashboard_address=None,
                local_directory=str(spill_dir),
                silence_logs=logging.CRITICAL,
                preload=["morpheus.runtime.dask_cluster"],
                # Polars reads it when it is imported: one thread per worker.
                env={"POLARS_MAX_THREADS": "1"},
            )
    except (RuntimeError, OSError, TimeoutError) as error:
        raise TransientError(
            "--engine=dask: a worker process ended while it started, most often because memory ran "
            f"out ({error}). Use fewer workers: `morpheus run --num_threads=1 ...`."
        ) from error


def _start_cluster(scheduler: str, num_workers: int) -> Any:  # noqa: ANN401 - untyped in Dask
    try:
        cluster = find_cluster_class(scheduler)()
        cluster.scale(num_workers)
    except UsageError:
        raise
    except Exception as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` failed to start ({type(error).__name__}: {error}). "
            "It is configured by Dask's own configuration files."
        ) from error
    return cluster


def _check_workers(client: Client, scheduler: str | None) -> None:
    """Wait for the first worker, and check that all have this version of morpheus."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT)
        versions = client.run(installed_version)
    except TimeoutError as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` has no workers. Start some: "
            f"`dask worker {scheduler}`, in an environment that has morpheus."
        ) from error
    except (ImportError, AttributeError) as error:
        raise TransientError(
            f"--scheduler: a worker of `{scheduler}` does not have morpheus ({error}). "
            "Type `pip install 'morpheus-dfp[dask]'` on every machine of the cluster."
        ) from error
    for worker, version in versions.items():
        if version != installed_version():
            raise TransientError(
                f"--scheduler: worker {worker} has morpheus {version}, but this is "
                f"{installed_version()}. Results depend on the version: install the same on all "
                "machines."
            )


def installed_version() -> str:
    """Return the version of morpheus that is installed here."""
    try:
        return version_of("morpheus-dfp")
    except PackageNotFoundError:
        return "not installed"


def _silence_logs() -> None:
    """Hide Dask's messages on workers, which the summary reports, unless `--debug` is set."""
    debugging = logging.getLogger("morpheus").getEffectiveLevel() <= logging.DEBUG
    for name in ("distributed", "distributed.client", "distributed.gc"):
        logger = logging.getLogger(name)
        # Dask's own handlers write to stderr.
        logger.handlers.clear()
        logger.propagate = True
        if not debugging:
            logger.setLevel(logging.CRITICAL)


JobT = TypeVar("JobT")
T_co = TypeVar("T_co", covariant=True)

_TOPICS = TOPIC, "all"
_POLL_INTERVAL = 0.01
"""Seconds between two checks whether a task has started."""
MAX_RETRIES = 3
"""Retries of a task. As many workers may be lost while it runs."""


class Future(Protocol[T_co]):
    """The result of a task, on its worker: Dask's `Future`. Without references it is released."""

    key: Any

    def done(self) -> bool:
        """Return whether the task has ended, with a result or an error."""

    def result(self) -> Any:  # noqa: ANN401 - the outcome of the task
        """Wait for the task, and fetch its outcome."""


class Cluster:
    """Workers of a Dask cluster.

    Entering the `with` block connects, or starts workers. Leaving it releases all tasks, finished
    or not.

    Args:
        scheduler: Scheduler; see `connect`.
        num_workers: Number of workers to start. A running scheduler has its own.

    Attributes:
        parallelism: Number of tasks that run at a time.
        events: Counts of task starts and lost workers.
    """

    def __init__(self, scheduler: str | None, num_workers: int) -> None:
        self.parallelism = num_workers
        self.events = ClusterEvents()
        self._scheduler = scheduler
        self._stack = ExitStack()
        self._logged_messages: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._client = stack.enter_context(connect(self._scheduler, self.parallelism))
            threads = sum(self._client.nthreads().values())
            # Of the workers that were started for this run, most may not have registered yet.
            self.parallelism = (
                threads if is_scheduler_address(self._scheduler) else max(threads, self.parallelism)
            )
            handlers = self.events.on_task_started, self.events.on_worker_event
            for topic, handler in zip(_TOPICS, handlers, strict=True):
                self._client.subscribe_topic(topic, handler)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client.status == "running":
            for topic in _TOPICS:
                self._client.unsubscribe_topic(topic)
        self._stack.__exit__(kind, error, trace)

    @property
    def num_workers(self) -> int:
        """Number of workers now."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def resource_capacity(self, resource: str) -> float:
        """Return the largest amount of a resource on any worker: `dask worker --resources`."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return max((worker["resources"].get(resource, 0) for worker in workers), default=0)

    def check_shared_folder(self, folder: Path) -> None:
        """Reject a folder that is missing on a worker.

        Raises:
            UsageError: The folder is not shared by all machines.
        """
        for worker, exists in self._client.run(_folder_exists, str(folder)).items():
            if not exists:
                raise UsageError(
                    f"--engine dask: worker {worker} does not see the folder `{folder.parent}`, "
                    "into which workers write. Choose a folder that all machines share."
                )

    def submit(
        self,
        work: Callable[..., ResultT],
        *arguments: object,
        priority: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Submit a task. It starts when its arguments are ready.

        Args:
            work: Function to call.
            arguments: Its arguments; futures are replaced by their results.
            priority: Amount of work. Larger tasks start first.
            resources: Amounts of the workers' resources that the task needs.
        """
        context = TaskContext.from_process()
        # Dask estimates the duration of a task from earlier tasks of the same name.
        about = {"key": f"{_function_name(work)}-{uuid4().hex}", "resources": resources or None}
        return self._client_submit(run_task, work, context, *arguments, priority=priority, **about)

    def scatter(self, value: ResultT, *, broadcast: bool = False) -> Future[ResultT]:
        """Send a value to the cluster, once for all tasks that need it.

        Args:
            value: The value.
            broadcast: Copy it to every worker. Else tasks run on the worker that holds the value,
                and their events are moved there.
        """
        future = self.submit(_identity, value)
        targets = map(_prefer_worker, self._client.nthreads() if broadcast else ())
        self.wait([self._client_submit(_discard, future, **target) for target in targets])
        return future

    def wait(self, futures: Sequence[Future[Any]]) -> None:
        """Wait until tasks have ended. Errors are raised when their results are fetched."""
        from distributed import wait  # noqa: PLC0415 - slow, and an extra

        with suppress(CancelledError):
            wait(list(futures))

    def wait_started(self, number: int, future: Future[Any]) -> None:
        """Wait until a task that logs its number has started, or has failed."""
        while number not in self.events.task_starts and not future.done():
            time.sleep(_POLL_INTERVAL)

    def shuffle(self, rows: Sequence[Future[Sequence[Any]]], num_columns: int) -> list[Future[Any]]:
        """Transpose rows of cells into columns, so that the cells of one partition meet.

        Uses Dask's P2P shuffle: a matrix with one chunk per row is rechunked to one per column.

        Args:
            rows: Tasks that give `num_columns` cells each.
            num_columns: Number of columns.

        Returns:
            A future per column: an array of shape (rows, 1), in the order of the rows.
        """
        import dask.array as da  # noqa: PLC0415 - slow, and an extra
        import numpy as np  # noqa: PLC0415 - this module is imported before numpy's threads are set
        from dask import delayed  # noqa: PLC0415 - slow, and an extra
        from distributed import futures_of  # noqa: PLC0415 - slow, and an extra

        shape, empty = (1, num_columns), np.empty((0, 0), dtype=object)
        cells = [delayed(self._client_submit(to_cell_row, row)) for row in rows]
        blocks = [da.from_delayed(row, shape, dtype=object, meta=empty) for row in cells]
        matrix = da.concatenate(blocks, axis=0)
        columns = matrix.rechunk(((len(rows),), (1,) * num_columns), method="p2p")
        persisted = self._client.persist(columns, retries=MAX_RETRIES, optimize_graph=False)
        futures = {future.key: future for future in futures_of(persisted)}
        return [futures[key] for [key] in zip(*persisted.__dask_keys__(), strict=True)]

    def results(self, futures: list[Future[ResultT]], *, eager: bool = True) -> Iterator[ResultT]:
        """Fetch the results of tasks in the order of the tasks, and release them on the workers.

        Log messages of tasks are logged here, each text once.

        Args:
            futures: The tasks. The list is emptied.
            eager: Fetch results as soon as they are ready, so that they cannot be lost with a
                worker. Else fetch each in its turn, which holds little here.

        Raises:
            MorpheusError: A task failed; the first in the order of the tasks.
            TransientError: Workers were lost with the same task repeatedly, or the scheduler was.
        """
        positions = {future.key: position for position, future in enumerate(futures)}
        arriving = self._iter_arriving(futures, eager=eager)
        outcomes: dict[int, TaskOutcome[ResultT]] = {}
        for position in range(len(positions)):
            while position not in outcomes:
                key, outcome = next(arriving)
                outcomes[positions[key]] = outcome
            yield self._unwrap(outcomes.pop(position))

    def map_shared(
        self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]
    ) -> Iterator[ResultT]:
        """Run jobs in parallel, as `WorkerPool.map_shared` does; workers receive the work once.

        Results come in the order of the jobs.
        """
        shared = self.scatter(work)
        futures = (self.submit(_apply, shared, job) for job in jobs)
        waiting = deque(islice(futures, self.parallelism * MAX_IN_FLIGHT))
        while waiting:
            yield from self.results([waiting.popleft()])
            waiting += islice(futures, 1)

    def _client_submit(
        self, function: Callable[..., Any], *arguments: object, **task_options: object
    ) -> Future[Any]:
        future = self._client.submit(
            function, *arguments, retries=MAX_RETRIES, pure=False, **task_options
        )
        return cast("Future[Any]", future)

    def _iter_arriving(
        self, futures: list[Future[ResultT]], *, eager: bool
    ) -> Iterator[tuple[Any, TaskOutcome[ResultT]]]:
        from distributed import as_completed  # noqa: PLC0415 - slow, and an extra
        from distributed.scheduler import KilledWorker  # noqa: PLC0415 - slow, and an extra

        try:
            if eager:
                ready = as_completed(futures, with_results=True)
                futures.clear()
                for future, outcome in ready:
                    if isinstance(outcome, CancelledError):
                        raise outcome
                    yield future.key, outcome
            while futures:
                next_future = futures.pop(0)
                yield next_future.key, next_future.result()
        except CancelledError as error:
            raise _cancelled_error(error) from error
        except KilledWorker as error:
            raise TransientError(
                f"Workers were lost {MAX_RETRIES + 1} times with the same task, most often because "
                "memory ran out. Give them more memory, or fewer threads: `dask worker "
                "--nthreads=1 --memory-limit=...`, or here `morpheus run --num_threads=1 ...`."
            ) from error

    def _unwrap(self, outcome: TaskOutcome[ResultT]) -> ResultT:
        for record in outcome.records:
            if record.msg not in self._logged_messages:
                self._logged_messages.add(record.msg)
                logging.getLogger(record.name).handle(record)
        if outcome.error is not None:
            raise outcome.error
        return cast("ResultT", outcome.result)


def _cancelled_error(error: CancelledError) -> UsageError | TransientError:
    """Explain why the scheduler cancelled tasks."""
    if getattr(error, "reason", "") == "lost dependencies":
        return UsageError(
            "--engine dask: the scheduler cannot read the tasks, most often because a package, or "
            "the file of a --plugin, is missing on it. Install the same versions on the scheduler "
            "and all workers; the scheduler's log names what is missing."
        )
    return TransientError(
        "The scheduler was lost, and with it all tasks of this run. Restart the scheduler, then "
        "the run. Fingerprints that were in use before are unchanged."
    )


def _function_name(work: Callable[..., Any]) -> str:
    """Return the name of a function; of a partial, the name of the function that it calls."""
    while isinstance(work, partial):
        work = next(filter(callable, work.args), work.func)
    return str(getattr(work, "__name__", type(work).__name__))


def _folder_exists(folder: str) -> bool:
    return Path(folder).is_dir()


def _apply(work: Callable[[JobT], ResultT], job: JobT) -> ResultT:
    return work(job)


def _identity(value: ResultT) -> ResultT:
    return value


def _discard(_: object) -> None:
    """Do nothing: the argument stays on the worker of the task."""


def _prefer_worker(worker: str) -> dict[str, Any]:
    """Return the task options that prefer a worker, but allow others if it is lost."""
    return {"workers": [worker], "allow_other_workers": True}
