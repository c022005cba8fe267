"""Tasks given to the workers of a cluster.

What a task gives stays on its worker until another task, or this process, asks for it. What is lost
with a worker is made again from what it was made of. So tasks are pure, and what they write is
written whole, under a name of its own.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast
from uuid import uuid4

from morpheus.cluster.scheduler import connect, is_scheduler_address
from morpheus.cluster.task import TOPIC, TaskOutcome, run_task, to_cell_row
from morpheus.cluster.tidings import ClusterEvents
from morpheus.errors import TransientError, UsageError
from morpheus.turns import MAX_IN_FLIGHT

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
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
            self.parallelism = there if is_scheduler_address(self._scheduler) else max(there, self.parallelism)
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

    def map_shared(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
        """Do the jobs side by side, as a `WorkerPool` does; workers are given the work once each.

        Results come in the jobs' order.
        """
        given = self.scatter(work)
        begun = (self.submit(_apply, given, job) for job in jobs)
        waiting = deque(islice(begun, self.parallelism * MAX_IN_FLIGHT))
        while waiting:
            yield from self.results([waiting.popleft()])
            waiting += islice(begun, 1)

    def _client_submit(self, function: Callable[..., Any], *needs: object, **task_options: Any) -> Future[Any]:  # noqa: ANN401 - Dask's
        handle = self._client.submit(function, *needs, retries=MAX_RETRIES, pure=False, **task_options)
        return cast("Handle[Any]", handle)

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
