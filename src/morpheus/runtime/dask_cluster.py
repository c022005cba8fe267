"""What happens on a worker: a task is done, what it logs is kept, and its errors are sorted."""

from __future__ import annotations

import ctypes
import logging
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast
from uuid import uuid4

from morpheus.errors import MorpheusError, TransientError, UsageError
from morpheus.runtime.pool import MAX_IN_FLIGHT, BufferedLogHandler

if TYPE_CHECKING:
    from distributed import Client

ResultT = TypeVar("ResultT")

TOPIC = "morpheus"
_TRIM_BYTES, _MMAP_BYTES = 512 << 20, 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class TaskOutcome(Generic[ResultT]):
    """What a task gave, or why it could not; and what was logged meanwhile."""

    result: ResultT | None = None
    records: Sequence[logging.LogRecord] = field(default=(), repr=False)
    error: MorpheusError | None = None

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + _dask_sizeof(self.result)


def run_task(work: Callable[..., ResultT], level: int, *needs: object) -> TaskOutcome[ResultT]:
    """Do a task.

    What can only be mended by a person comes back as a value: to try it again would not help.

    Args:
        work: What is done.
        level: Least level of what is logged.
        needs: To what; what other tasks told is taken out.

    Raises:
        Unavailable: It may succeed when it is tried again.
    """
    keep_freed_memory()
    failed = next((one.error for one in needs if isinstance(one, TaskOutcome) and one.error), None)
    if failed is not None:
        return TaskOutcome(error=failed)
    with _capture_log(level) as records:
        try:
            result = work(*map(unwrap, needs))
        except TransientError:
            raise
        except MorpheusError as error:
            return TaskOutcome(None, records, error)
    return TaskOutcome(result, records)


def unwrap(value: Any) -> Any:  # noqa: ANN401 - whatever tasks need
    """What a task told, without the rest."""
    return value.result if isinstance(value, TaskOutcome) else value


def to_cell_row(cells: TaskOutcome[Sequence[Any]]) -> Any:  # noqa: ANN401 - numpy, imported where it is used
    """Cells as an array of shape (1, cells)."""
    import numpy as np  # noqa: PLC0415 - this module is read before numpy has its threads

    made = np.empty((1, len(cells.result or ())), dtype=object)
    made[0, :] = cells.result
    return made


def log_task_started(number: int) -> None:
    """Tell whoever listens that a task begins."""
    from distributed import get_worker  # noqa: PLC0415 - slow, and an extra

    get_worker().log_event(TOPIC, {"begun": number})


def dask_setup(worker: object) -> None:  # noqa: ARG001 - Dask calls it so, where this is a preload
    """Leave Ctrl+C to the process at the prompt, which decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep memory that will be needed again.

    Dask's nannies set MALLOC_TRIM_THRESHOLD_ to 64 kB, so that each array's memory goes back to the
    system and has to be fetched again: training takes up to three times as long. Where there is no
    such library there is no such trouble.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


@contextmanager
def _capture_log(level: int) -> Iterator[list[logging.LogRecord]]:
    logger, kept = logging.getLogger("morpheus"), BufferedLogHandler()
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(kept)
    try:
        yield kept.records
    finally:
        logger.removeHandler(kept)


def _dask_sizeof(value: object) -> int:
    from dask.sizeof import sizeof  # noqa: PLC0415 - an extra

    return int(sizeof(value))


@dataclass
class ClusterEvents:
    """What is heard from the workers while tasks run.

    Attributes:
        task_starts: How often each task was begun, by its number.
        lost_workers: Workers that were lost.

    >>> tidings = ClusterEvents()
    >>> for task in (7, 8, 7):
    ...     tidings.on_task_started((0.0, {"begun": task}))
    >>> tidings.retries
    1
    """

    task_starts: Counter[int] = field(default_factory=Counter)
    lost_workers: int = 0

    @property
    def retries(self) -> int:
        """How often a task had to be begun again."""
        return self.task_starts.total() - len(self.task_starts)

    def on_task_started(self, event: tuple[float, Any]) -> None:
        """A worker has begun a task."""
        self.task_starts[event[1]["begun"]] += 1

    def on_worker_event(self, event: tuple[float, Any]) -> None:
        """A worker has come or gone."""
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
"""Words for cluster classes, and the package that brings each."""
SCHEDULER_SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
CONNECT_TIMEOUT = 30
"""Seconds in which a scheduler must answer, and the first worker be there."""
_DASK_CONFIG = {
    # What stages know of everybody, some 25 MB, goes with the graph, once; Dask warns from 10 on.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
    # It looks at each task a hundred times a second, for a page that nobody opens here.
    "distributed.worker.profile.enabled": False,
}
"""How Dask is to be here; workers of others have settings of their own."""
SHUTDOWN_TIMEOUT = 10
"""Seconds that workers of our own have to end."""
_SCHEDULER_HINT = (
    "Give an address such as `--scheduler=tcp://10.0.0.7:8786`, one of "
    f"{', '.join(f'`{word}`' for word in CLUSTER_CLASSES)}, or a cluster class by its name, such as "
    "`--scheduler=dask_jobqueue:SGECluster`. Without --scheduler, workers are started here."
)


def check_scheduler(scheduler: str | None) -> None:
    """Refuse what cannot be a scheduler, before anything is started.

    Raises:
        UsageError: Dask or the package of a cluster class is missing, or it is no such name.
    """
    try:
        import_module("distributed")
    except ImportError as error:
        raise UsageError(
            "--engine dask: Dask is not installed. Type `pip install 'morpheus[dask]'`, on every "
            "machine of the cluster."
        ) from error
    if scheduler is not None and not is_scheduler_address(scheduler):
        find_cluster_class(scheduler)


def is_scheduler_address(scheduler: str | None) -> bool:
    """Whether it is the address of a scheduler that runs already."""
    return scheduler is not None and scheduler.startswith(SCHEDULER_SCHEMES)


@contextmanager
def connect(scheduler: str | None, num_workers: int) -> Iterator[Client]:
    """Connect to a scheduler; what was started for it ends with the `with` block.

    Args:
        scheduler: Its address; or a cluster class, by name or by a word, which is started with
            what Dask's own configuration says; None for workers on this machine.
        num_workers: How many workers are started, but where the scheduler has its own.

    Raises:
        UsageError: It is none of these.
        Unavailable: Nobody answers, no worker comes, or a worker has not this morpheus.
    """
    import dask  # noqa: PLC0415 - slow, and an extra
    import distributed  # noqa: PLC0415 - as above

    _silence_logs()
    with dask.config.set(_DASK_CONFIG), _open_scheduler(scheduler, num_workers) as place:
        try:
            client = distributed.Client(place, timeout=CONNECT_TIMEOUT, set_as_default=True)
        except (OSError, TimeoutError, ValueError) as error:
            raise TransientError(
                f"--scheduler: nobody answers at `{scheduler}` ({error or 'no answer'}). "
                f"Is it running? `dask scheduler` starts one, and says where. {_SCHEDULER_HINT}"
            ) from error
        with client:
            _check_workers(client, scheduler)
            yield client


def find_cluster_class(name: str) -> Callable[..., Any]:
    """Find a cluster class by a word or as `package.module:Class`.

    >>> find_cluster_class("distributed:LocalCluster").__name__
    'LocalCluster'

    Raises:
        UsageError: There is none; says what to install, or what would do.
    """
    path, package = CLUSTER_CLASSES.get(
        name.lower(), (name, name.partition(":")[0].partition(".")[0])
    )
    module, colon, called = path.partition(":")
    if not colon:
        module, _, called = path.rpartition(".")
    if not module or not called.isidentifier():
        raise UsageError(f"--scheduler: `{name}` is no scheduler. {_SCHEDULER_HINT}")
    try:
        found = getattr(import_module(module), called, None)
    except ImportError as error:
        raise UsageError(
            f"--scheduler: `{name}` needs the package `{package}`, which is not installed "
            f"({error}). Type `pip install '{package}'`."
        ) from error
    if not callable(found):
        raise UsageError(f"--scheduler: `{module}` has no class `{called}`. {_SCHEDULER_HINT}")
    made: Callable[..., Any] = found
    return made


@contextmanager
def _open_scheduler(scheduler: str | None, num_workers: int) -> Iterator[Any]:
    if is_scheduler_address(scheduler):
        yield scheduler
        return
    cluster = (
        _start_local_cluster(num_workers)
        if scheduler is None
        else _start_cluster(scheduler, num_workers)
    )
    try:
        yield cluster
    finally:
        # Processes that have not ended by then end with this one.
        with suppress(TimeoutError):
            cluster.close(timeout=SHUTDOWN_TIMEOUT)


def _start_local_cluster(num_workers: int) -> Any:  # noqa: ANN401 - Dask's own
    import distributed  # noqa: PLC0415 - as above

    return distributed.LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        preload=["morpheus.runtime.dask_cluster"],
        # Read by polars when it is imported: one worker, one thread.
        env={"POLARS_MAX_THREADS": "1"},
    )


def _start_cluster(scheduler: str, num_workers: int) -> Any:  # noqa: ANN401 - the same
    try:
        cluster = find_cluster_class(scheduler)()
        cluster.scale(num_workers)
    except UsageError:
        raise
    except Exception as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` could not be started ({type(error).__name__}: {error}). "
            "Its settings are those of Dask's own configuration files."
        ) from error
    return cluster


def _check_workers(client: Client, scheduler: str | None) -> None:
    """Wait for the first worker, and see that all have this morpheus."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT)
        theirs = client.run(installed_version)
    except TimeoutError as error:
        raise TransientError(
            f"--scheduler: `{scheduler}` has no workers. Start some: "
            f"`dask worker {scheduler}`, in an environment that has morpheus."
        ) from error
    except (ImportError, AttributeError) as error:
        raise TransientError(
            f"--scheduler: a worker of `{scheduler}` has no morpheus ({error}). "
            "Type `pip install 'morpheus[dask]'` on every machine of the cluster."
        ) from error
    for worker, found in theirs.items():
        if found != installed_version():
            raise TransientError(
                f"--scheduler: worker {worker} has morpheus {found}, but this is {installed_version()}. "
                "Results depend on the version: install the same one everywhere."
            )


def installed_version() -> str:
    """The version of morpheus that is installed here."""
    try:
        return version_of("morpheus")
    except PackageNotFoundError:
        return "not installed"


def _silence_logs() -> None:
    """What Dask logs of workers that come and go is told by the summary; `--debug` shows it."""
    if logging.getLogger("morpheus").getEffectiveLevel() > logging.DEBUG:
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


JobT = TypeVar("JobT")
T_co = TypeVar("T_co", covariant=True)  # noqa: PLC0105 - it is one word everywhere

_TOPICS = TOPIC, "all"
_POLL_INTERVAL = 0.01
"""Seconds until one looks again."""
MAX_RETRIES = 3
"""How often a task is tried again; so many workers may be lost with it, too."""


class Future(Protocol[T_co]):
    """What a task will have given, where it lies: Dask's `Future`; let go of, it is forgotten."""

    key: Any

    def done(self) -> bool:
        """Whether it has come to an end, good or bad."""

    def result(self) -> Any:  # noqa: ANN401 - what the task tells
        """Wait for it, and fetch it."""


class Cluster:
    """Workers of a Dask cluster.

    Entering the `with` block connects, or starts workers; leaving it lets go of all that was asked
    for, whether it is done or not.

    Args:
        scheduler: Where; see `scheduler.connected`.
        parallelism: How many workers are started, but where the scheduler has its own.

    Attributes:
        parallelism: How many tasks run at a time.
        events: What is heard from the workers.
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
            there = sum(self._client.nthreads().values())
            # Of those that are started for this run, most may still be on their way.
            self.parallelism = (
                there if is_scheduler_address(self._scheduler) else max(there, self.parallelism)
            )
            heard = self.events.on_task_started, self.events.on_worker_event
            for topic, hear in zip(_TOPICS, heard, strict=True):
                self._client.subscribe_topic(topic, hear)
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
        """How many workers there are now."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def resource_capacity(self, resource: str) -> float:
        """The most of a resource that any worker says it has: `dask worker --resources`."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return max((one["resources"].get(resource, 0) for one in workers), default=0)

    def check_shared_folder(self, folder: Path) -> None:
        """Refuse a folder that a worker does not see.

        Raises:
            UsageError: It is on this machine alone.
        """
        for worker, seen in self._client.run(_folder_exists, str(folder)).items():
            if not seen:
                raise UsageError(
                    f"--engine dask: worker {worker} does not see the folder `{folder.parent}`, "
                    "which workers write into. Name one that all machines share."
                )

    def submit(
        self,
        work: Callable[..., ResultT],
        *needs: object,
        priority: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Begin a task, as soon as what it needs is there.

        Args:
            work: What is done.
            needs: To what; of other tasks, what they give.
            priority: How much work it is: of tasks that can be begun, the heaviest is.
            resources: What it takes of what workers have declared.
        """
        level = logging.getLogger("morpheus").getEffectiveLevel()
        # Of tasks of one name Dask expects that they take as long as the last ones did.
        about = {"key": f"{_function_name(work)}-{uuid4().hex}", "resources": resources or None}
        return self._client_submit(run_task, work, level, *needs, priority=priority, **about)

    def scatter(self, value: ResultT, *, broadcast: bool = False) -> Future[ResultT]:
        """Hand a value to the scheduler, once for all tasks that need it.

        Args:
            value: What.
            broadcast: And to each worker, once they all are there. Else tasks would go where the
                value is, and wait there for the events that they are about.
        """
        given = self.submit(_identity, value)
        near = map(_prefer_worker, self._client.nthreads() if broadcast else ())
        self.wait([self._client_submit(_discard, given, **where) for where in near])
        return given

    def wait(self, futures: Sequence[Future[Any]]) -> None:
        """Wait until tasks are done, or cannot be: who then asks for what they give is told why."""
        from distributed import wait  # noqa: PLC0415 - slow, and an extra

        with suppress(CancelledError):
            wait(list(futures))

    def wait_started(self, number: int, future: Future[Any]) -> None:
        """Wait until a task that announces itself by a number has begun, or cannot be done."""
        while number not in self.events.task_starts and not future.done():
            time.sleep(_POLL_INTERVAL)

    def shuffle(self, rows: Sequence[Future[Sequence[Any]]], num_columns: int) -> list[Future[Any]]:
        """Turn rows of cells into columns, so that what belongs together comes together.

        It is Dask's own P2P shuffle: a matrix whose chunks are rows gets chunks that are columns.

        Args:
            rows: Tasks that give `columns` cells each.
            num_columns: How many.

        Returns:
            For each column an array of shape (rows, 1), in the order of the rows.
        """
        import dask.array as da  # noqa: PLC0415 - slow, and an extra
        import numpy as np  # noqa: PLC0415 - with Dask
        from dask import delayed  # noqa: PLC0415 - the same
        from distributed import futures_of  # noqa: PLC0415 - the same

        shape, empty = (1, num_columns), np.empty((0, 0), dtype=object)
        cells = [delayed(self._client_submit(to_cell_row, one)) for one in rows]
        blocks = [da.from_delayed(one, shape, dtype=object, meta=empty) for one in cells]
        matrix = da.concatenate(blocks, axis=0)
        turned = matrix.rechunk(((len(rows),), (1,) * num_columns), method="p2p")
        held = self._client.persist(turned, retries=MAX_RETRIES, optimize_graph=False)
        futures = {future.key: future for future in futures_of(held)}
        return [futures[key] for [key] in zip(*held.__dask_keys__(), strict=True)]

    def results(self, futures: list[Future[ResultT]], *, eager: bool = True) -> Iterator[ResultT]:
        """Fetch what tasks give, in the order of the tasks, and let go of it there.

        What was logged is logged here, each message once.

        Args:
            futures: Of the tasks; the list is emptied.
            eager: Fetch at once what is ready, which then cannot be lost any more; else each only
                in its turn, so that little is held here.

        Raises:
            MorpheusError: A task could not be done; the first one in their order.
            Unavailable: Workers were lost with it, again and again, or the scheduler was.
        """
        place = {handle.key: at for at, handle in enumerate(futures)}
        arriving = self._iter_arriving(futures, eager=eager)
        come: dict[int, TaskOutcome[ResultT]] = {}
        for turn in range(len(place)):
            while turn not in come:
                key, told = next(arriving)
                come[place[key]] = told
            yield self._unwrap(come.pop(turn))

    def map_shared(
        self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]
    ) -> Iterator[ResultT]:
        """Do the jobs side by side, as a `WorkerPool` does; workers are given the work once each.

        Results come in the jobs' order.
        """
        given = self.scatter(work)
        begun = (self.submit(_apply, given, job) for job in jobs)
        waiting = deque(islice(begun, self.parallelism * MAX_IN_FLIGHT))
        while waiting:
            yield from self.results([waiting.popleft()])
            waiting += islice(begun, 1)

    def _client_submit(
        self, function: Callable[..., Any], *needs: object, **task_options: Any
    ) -> Future[Any]:  # noqa: ANN401 - Dask's
        handle = self._client.submit(
            function, *needs, retries=MAX_RETRIES, pure=False, **task_options
        )
        return cast("Future[Any]", handle)

    def _iter_arriving(
        self, futures: list[Future[ResultT]], *, eager: bool
    ) -> Iterator[tuple[Any, TaskOutcome[ResultT]]]:
        from distributed import as_completed  # noqa: PLC0415 - slow, and an extra
        from distributed.scheduler import KilledWorker  # noqa: PLC0415 - the same

        try:
            if eager:
                ready = as_completed(futures, with_results=True)
                futures.clear()
                for handle, told in ready:
                    if isinstance(told, CancelledError):
                        raise told
                    yield handle.key, told
            while futures:
                handle = futures.pop(0)
                yield handle.key, handle.result()
        except CancelledError as error:
            raise _cancelled_error(error) from error
        except KilledWorker as error:
            raise TransientError(
                f"Workers were lost {MAX_RETRIES + 1} times with the same task, most often for want of "
                "memory. Give them more, or fewer threads: `dask worker --nthreads=1 "
                "--memory-limit=...`, or here `morpheus run --num_threads=1 ...`."
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
    """What to say where the scheduler lets go of tasks that it was asked for."""
    if getattr(error, "reason", "") == "lost dependencies":
        return UsageError(
            "--engine dask: the scheduler cannot read what it was given, most often because a "
            "package, or the file of a --plugin, is here but not there. Install the same versions "
            "on the scheduler and all workers; its log names what is missing."
        )
    return TransientError(
        "The scheduler was lost, and with it all that was under way. Start it again, and "
        "then the run: fingerprints that were in use before still are."
    )


def _function_name(work: Callable[..., Any]) -> str:
    """The name of a function, or of the one that it is given to call."""
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
    """What a task needs stays where it ran."""


def _prefer_worker(worker: str) -> dict[str, Any]:
    """Where a task is to run, if that worker is not lost meanwhile."""
    return {"workers": [worker], "allow_other_workers": True}
