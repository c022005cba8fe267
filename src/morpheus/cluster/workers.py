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

from morpheus.cluster.scheduler import connected, is_address
from morpheus.cluster.task import TOPIC, Told, done, row
from morpheus.cluster.tidings import Tidings
from morpheus.errors import Unavailable, UsageError
from morpheus.turns import AHEAD

Job = TypeVar("Job")
Result = TypeVar("Result")
Given = TypeVar("Given", covariant=True)  # noqa: PLC0105 - it is one word everywhere

_TOPICS = TOPIC, "all"
_SOON = 0.01
"""Seconds until one looks again."""
RETRIES = 3
"""How often a task is tried again; so many workers may be lost with it, too."""


class Handle(Protocol[Given]):
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
        workers: How many workers are started, but where the scheduler has its own.

    Attributes:
        workers: How many tasks run at a time.
        tidings: What is heard from the workers.
    """

    def __init__(self, scheduler: str | None, workers: int) -> None:
        self.workers = workers
        self.tidings = Tidings()
        self._scheduler = scheduler
        self._stack = ExitStack()
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._client = stack.enter_context(connected(self._scheduler, self.workers))
            there = sum(self._client.nthreads().values())
            # Of those that are started for this run, most may still be on their way.
            self.workers = there if is_address(self._scheduler) else max(there, self.workers)
            heard = self.tidings.of_task, self.tidings.of_workers
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
    def nodes(self) -> int:
        """How many workers there are now."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def declared(self, resource: str) -> float:
        """The most of a resource that any worker says it has: `dask worker --resources`."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return max((one["resources"].get(resource, 0) for one in workers), default=0)

    def check_shared(self, folder: Path) -> None:
        """Refuse a folder that a worker does not see.

        Raises:
            UsageError: It is on this machine alone.
        """
        for worker, seen in self._client.run(_sees, str(folder)).items():
            if not seen:
                raise UsageError(
                    f"--engine dask: worker {worker} does not see the folder `{folder.parent}`, "
                    "which workers write into. Name one that all machines share."
                )

    def begin(
        self,
        work: Callable[..., Result],
        *needs: object,
        weight: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> Handle[Result]:
        """Begin a task, as soon as what it needs is there.

        Args:
            work: What is done.
            needs: To what; of other tasks, what they give.
            weight: How much work it is: of tasks that can be begun, the heaviest is.
            resources: What it takes of what workers have declared.
        """
        level = logging.getLogger("morpheus").getEffectiveLevel()
        # Of tasks of one name Dask expects that they take as long as the last ones did.
        about = {"key": f"{_name(work)}-{uuid4().hex}", "resources": resources or None}
        return self._submit(done, work, level, *needs, priority=weight, **about)

    def give(self, value: Result, *, everywhere: bool = False) -> Handle[Result]:
        """Hand a value to the scheduler, once for all tasks that need it.

        Args:
            value: What.
            everywhere: And to each worker, once they all are there. Else tasks would go where the
                value is, and wait there for the events that they are about.
        """
        given = self.begin(_itself, value)
        near = map(_near, self._client.nthreads() if everywhere else ())
        self.wait([self._submit(_seen, given, **where) for where in near])
        return given

    def wait(self, handles: Sequence[Handle[Any]]) -> None:
        """Wait until tasks are done, or cannot be: who then asks for what they give is told why."""
        from distributed import wait  # noqa: PLC0415 - slow, and an extra

        with suppress(CancelledError):
            wait(list(handles))

    def wait_begun(self, number: int, handle: Handle[Any]) -> None:
        """Wait until a task that announces itself by a number has begun, or cannot be done."""
        while number not in self.tidings.begun and not handle.done():
            time.sleep(_SOON)

    def turned(self, rows: Sequence[Handle[Sequence[Any]]], columns: int) -> list[Handle[Any]]:
        """Turn rows of cells into columns, so that what belongs together comes together.

        It is Dask's own P2P shuffle: a matrix whose chunks are rows gets chunks that are columns.

        Args:
            rows: Tasks that give `columns` cells each.
            columns: How many.

        Returns:
            For each column an array of shape (rows, 1), in the order of the rows.
        """
        import dask.array as da  # noqa: PLC0415 - slow, and an extra
        import numpy as np  # noqa: PLC0415 - with Dask
        from dask import delayed  # noqa: PLC0415 - the same
        from distributed import futures_of  # noqa: PLC0415 - the same

        shape, empty = (1, columns), np.empty((0, 0), dtype=object)
        cells = [delayed(self._submit(row, one)) for one in rows]
        blocks = [da.from_delayed(one, shape, dtype=object, meta=empty) for one in cells]
        matrix = da.concatenate(blocks, axis=0)
        turned = matrix.rechunk(((len(rows),), (1,) * columns), method="p2p")
        held = self._client.persist(turned, retries=RETRIES, optimize_graph=False)
        futures = {future.key: future for future in futures_of(held)}
        return [futures[key] for [key] in zip(*held.__dask_keys__(), strict=True)]

    def results(self, handles: list[Handle[Result]], *, ahead: bool = True) -> Iterator[Result]:
        """Fetch what tasks give, in the order of the tasks, and let go of it there.

        What was logged is logged here, each message once.

        Args:
            handles: Of the tasks; the list is emptied.
            ahead: Fetch at once what is ready, which then cannot be lost any more; else each only
                in its turn, so that little is held here.

        Raises:
            MorpheusError: A task could not be done; the first one in their order.
            Unavailable: Workers were lost with it, again and again, or the scheduler was.
        """
        place = {handle.key: at for at, handle in enumerate(handles)}
        arriving = self._arriving(handles, ahead=ahead)
        come: dict[int, Told[Result]] = {}
        for turn in range(len(place)):
            while turn not in come:
                key, told = next(arriving)
                come[place[key]] = told
            yield self._result(come.pop(turn))

    def map_given(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Do the jobs side by side, as a `Crew` does; workers are given the work once each.

        Results come in the jobs' order.
        """
        given = self.give(work)
        begun = (self.begin(_applied, given, job) for job in jobs)
        waiting = deque(islice(begun, self.workers * AHEAD))
        while waiting:
            yield from self.results([waiting.popleft()])
            waiting += islice(begun, 1)

    def _submit(self, function: Callable[..., Any], *needs: object, **about: Any) -> Handle[Any]:  # noqa: ANN401 - Dask's
        handle = self._client.submit(function, *needs, retries=RETRIES, pure=False, **about)
        return cast("Handle[Any]", handle)

    def _arriving(
        self, handles: list[Handle[Result]], *, ahead: bool
    ) -> Iterator[tuple[Any, Told[Result]]]:
        from distributed import as_completed  # noqa: PLC0415 - slow, and an extra
        from distributed.scheduler import KilledWorker  # noqa: PLC0415 - the same

        try:
            if ahead:
                ready = as_completed(handles, with_results=True)
                handles.clear()
                for handle, told in ready:
                    if isinstance(told, CancelledError):
                        raise told
                    yield handle.key, told
            while handles:
                handle = handles.pop(0)
                yield handle.key, handle.result()
        except CancelledError as error:
            raise _cancelled(error) from error
        except KilledWorker as error:
            raise Unavailable(
                f"Workers were lost {RETRIES + 1} times with the same task, most often for want of "
                "memory. Give them more, or fewer threads: `dask worker --nthreads=1 "
                "--memory-limit=...`, or here `morpheus run --num_threads=1 ...`."
            ) from error

    def _result(self, told: Told[Result]) -> Result:
        for record in told.records:
            if record.msg not in self._said:
                self._said.add(record.msg)
                logging.getLogger(record.name).handle(record)
        if told.error is not None:
            raise told.error
        return cast("Result", told.result)


def _cancelled(error: CancelledError) -> UsageError | Unavailable:
    """What to say where the scheduler lets go of tasks that it was asked for."""
    if getattr(error, "reason", "") == "lost dependencies":
        return UsageError(
            "--engine dask: the scheduler cannot read what it was given, most often because a "
            "package, or the file of a --plugin, is here but not there. Install the same versions "
            "on the scheduler and all workers; its log names what is missing."
        )
    return Unavailable(
        "The scheduler was lost, and with it all that was under way. Start it again, and "
        "then the run: fingerprints that were in use before still are."
    )


def _name(work: Callable[..., Any]) -> str:
    """The name of a function, or of the one that it is given to call."""
    while isinstance(work, partial):
        work = next(filter(callable, work.args), work.func)
    return str(getattr(work, "__name__", type(work).__name__))


def _sees(folder: str) -> bool:
    return Path(folder).is_dir()


def _applied(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def _itself(value: Result) -> Result:
    return value


def _seen(_: object) -> None:
    """What a task needs stays where it ran."""


def _near(worker: str) -> dict[str, Any]:
    """Where a task is to run, if that worker is not lost meanwhile."""
    return {"workers": [worker], "allow_other_workers": True}
