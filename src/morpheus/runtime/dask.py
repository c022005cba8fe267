"""The Dask runner: the users of each partition pass through the segment on a cluster worker.

Also the progress line of such a run.
"""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nlargest
from itertools import chain, groupby, islice
from operator import attrgetter
from sys import getsizeof
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import msgspec

from morpheus.core.batch import Batch, ClusterStats, Partition, RunMetrics, Table
from morpheus.core.stage import find_output_folders
from morpheus.core.state import StateKey
from morpheus.errors import UsageError
from morpheus.runtime.chain import Segment
from morpheus.runtime.dask_cluster import Cluster, Future, log_task_started
from morpheus.runtime.local import (
    EncoderFactory,
    LocalRunner,
    load_states,
    read_partitions,
    run_in_workers,
    save_states,
)
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.states import MemoryStateStore, SavedStates, StateStore
from morpheus.storage.spill import SpillDir, SpilledTable, spill_to_memory
from morpheus.text import escape_control

if TYPE_CHECKING:
    from rich.text import Text

MAX_SLOWEST = 3
"""Number of slowest users to report."""
GPU, MEMORY = "GPU", "MEMORY"
"""Resources that workers can declare: `dask worker --resources "GPU=1 MEMORY=16e9"`."""
INLINE_ROWS = 250_000
"""Rows of a task's output that are kept as they are; later ones are compressed."""
BYTES_PER_EVENT = 10_000
"""Approximate memory per event during a task; measured in docs/scaling.md."""
# Tasks with this priority release memory, so they run before all others.
_HIGH_PRIORITY = 1 << 40

ResultT = TypeVar("ResultT")
Clock = Callable[[], float]


@dataclass
class Progress:
    """Progress of a run on a cluster.

    Attributes:
        tasks: Number of tasks.
        retries: Returns the number of restarted tasks.
        clock: Returns the time in seconds.
        tasks_done: Number of finished tasks.
        users: Number of finished users.
        events: Number of events in the output.
        slowest_users: The slowest users and their seconds.

    >>> clock = iter([0.0, 2.0]).__next__
    >>> progress = Progress(3, lambda: 1, clock)
    >>> progress.add({"ann": 0.25, "bob": 1.5}, events=300)
    >>> progress.status_line()
    '1 of 3 tasks, 2 users, 150 events/s, 1 restarted; slowest: bob 1.5 s, ann 0.2 s'
    """

    tasks: int
    retries: Callable[[], int]
    clock: Clock = time.monotonic
    tasks_done: int = 0
    users: int = 0
    events: int = 0
    slowest_users: list[tuple[str | None, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, seconds: Mapping[str | None, float], events: int) -> None:
        """Count the users and events of a finished task.

        Args:
            seconds: Time of each user.
            events: Number of events in the output.
        """
        self.tasks_done += 1
        self.users += len(seconds)
        self.events += events
        candidates = [*self.slowest_users, *seconds.items()]
        self.slowest_users = nlargest(
            MAX_SLOWEST, candidates, key=lambda item: (item[1], item[0] or "")
        )

    def status_line(self) -> str:
        """Return the progress line, with control characters escaped."""
        elapsed = self.clock() - self.started
        pace = self.events / elapsed if elapsed else 0.0
        retries = f", {self.retries():,} restarted" if self.retries() else ""
        tasks = f"{self.tasks_done:,} of {self.tasks:,} tasks"
        text = f"{tasks}, {self.users:,} users, {pace:,.0f} events/s{retries}"
        names = ", ".join(
            f"{user or '(no user)'} {took:.1f} s" for user, took in self.slowest_users
        )
        return escape_control(text + (f"; slowest: {names}" if names else ""))

    def __rich__(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - only a terminal needs it

        return Text(self.status_line(), no_wrap=True, overflow="ellipsis")

    @contextmanager
    def display(self) -> Iterator[None]:
        """Show the line until the block ends, if standard error is a terminal."""
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.live import Live  # noqa: PLC0415 - as above

        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        with Live(self, console=console, refresh_per_second=4, transient=True):
            yield


@runtime_checkable
class RemotePartition(Partition, Protocol):
    """A partition whose events are on a worker."""

    @property
    def weight(self) -> int:
        """Amount of work, in events."""

    def submit(
        self,
        work: Callable[..., ResultT],
        *needs: object,
        resources: Mapping[str, float] | None = None,
    ) -> Future[ResultT]:
        """Submit a task on the partition to its worker; see `Cluster.submit`."""


@dataclass(frozen=True)
class CompressedBatch:
    """A compressed batch, so that the output of a very large user fits into memory.

    Attributes:
        header: The batch without its rows.
        rows: The rows.
    """

    header: Batch
    rows: SpilledTable = field(repr=False)

    @classmethod
    def from_batch(cls, batch: Batch) -> CompressedBatch:
        """Compress a batch."""
        return cls(
            replace(batch, table=batch.table.clear()), spill_to_memory(batch.table.to_frame())
        )

    def to_batch(self) -> Batch:
        """Decompress the batch."""
        return replace(self.header, table=Table(self.rows.read()))


@dataclass(frozen=True)
class PartitionResult:
    """The result of a partition.

    Attributes:
        outputs: Output batches, in the order of the users.
        metrics: Counts of the records that were read.
        user_seconds: Time of each user.
        changed: Encoded states of the users, if `Segment.saves`.
    """

    outputs: list[Batch | CompressedBatch] = field(repr=False)
    metrics: RunMetrics = field(repr=False)
    user_seconds: dict[str | None, float]
    changed: dict[StateKey, bytes] = field(default_factory=dict, repr=False)

    def __sizeof__(self) -> int:
        """Return the size in bytes; Dask asks for it."""
        return object.__sizeof__(self) + sum(map(_size_in_bytes, self.outputs))

    def iter_batches(self) -> Iterator[Batch]:
        """Yield the output batches, decompressed."""
        for output in self.outputs:
            yield output.to_batch() if isinstance(output, CompressedBatch) else output


class DaskRunner(msgspec.Struct, frozen=True):
    """Runs a segment for each user on the workers of a cluster. The order of users is kept.

    The largest partitions start first, so that the run does not end with one long task.

    Attributes:
        executor: The cluster.
        store: Keeps states between runs; None to keep none.
    """

    executor: Cluster
    store: StateStore | None = None

    def run_partitions(
        self,
        segment: Segment,
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Generator[Batch, None, None]:
        """Run the segment for the users of each partition, on the worker that has the partition.

        Args:
            segment: The stages.
            partitions: Partitions with all users, in output order.
            metrics: Counts the records that are read.
            encoder_factory: Makes the encoder of the sink; see `Sink.encoder`.
        """
        remote = [each for each in partitions if isinstance(each, RemotePartition)]
        if len(remote) < len(partitions):
            yield from self.run(segment, read_partitions(partitions, metrics, self.store))
            return
        for folder in find_output_folders(segment.stages):
            with SpillDir(folder) as probe:
                self.executor.check_shared_folder(probe.folder)
        futures = self._submit_all(segment, remote)
        progress = Progress(len(futures), lambda: self.executor.events.retries)
        with progress.display():
            first = self._peek_first(futures)
            encoder = None if first is None else encoder_factory(first)
            if first is not None and encoder is not None:
                # The sink needs the columns before it gets formatted rows.
                yield first
                scattered = self.executor.scatter(encoder)
                futures = [
                    self.executor.submit(
                        encode_on_worker, future, scattered, priority=_HIGH_PRIORITY
                    )
                    for future in futures
                ]
            for result in self.executor.results(futures, eager=encoder is not None):
                metrics.add_read_stats(result.metrics)
                save_states(self.store, result.changed)
                progress.add(result.user_seconds, sum(map(_num_rows, result.outputs)))
                yield from result.iter_batches()
        metrics.cluster_stats = self._cluster_stats(progress)

    def run(self, segment: Segment, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Run the segment for the users of a stream that this process reads, on the workers."""
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        return run_in_workers(self.executor, segment, groups, self.store)

    def _submit_all(
        self, segment: Segment, partitions: Sequence[RemotePartition]
    ) -> list[Future[PartitionResult]]:
        broadcast = len(partitions) >= self.executor.parallelism
        scattered = self.executor.scatter(segment, broadcast=broadcast)
        total = sum(partition.weight for partition in partitions)
        futures: dict[int, Future[PartitionResult]] = {}
        for number in sorted(range(len(partitions)), key=lambda i: -partitions[i].weight):
            partition = partitions[number]
            resources = self._task_resources(segment, partition.weight)
            saved = load_states(self.store, partition)
            futures[number] = partition.submit(
                process_partition, scattered, number, INLINE_ROWS, saved, resources=resources
            )
            if partition.weight > total / (2 * self.executor.parallelism):
                # While the events of a large partition are transferred, its worker would start a
                # partition that it already has. A partition of half a worker's share must not be
                # late, so wait for its start.
                self.executor.wait_started(number, futures[number])
        return [futures[number] for number in range(len(partitions))]

    def _task_resources(self, segment: Segment, weight: int) -> dict[str, float]:
        """Return the resources of a task: those of its stages, and memory if workers declare it."""
        resources = dict(ChainMap(*(dict(stage.needs.resources) for stage in segment.stages)))
        for name in resources:
            if not self.executor.resource_capacity(name):
                raise UsageError(
                    f"--engine=dask: no worker declares the resource {name}. Start workers that "
                    f'have one with `dask worker --resources "{name}=1" ...`, or use '
                    "--device=auto."
                )
        if memory := self.executor.resource_capacity(MEMORY):
            resources[MEMORY] = min(memory, float(weight * BYTES_PER_EVENT))
        return resources

    def _peek_first(self, futures: Sequence[Future[PartitionResult]]) -> Batch | None:
        """Return the first output batch without its rows; None if there is no output."""
        for future in futures:
            peek = self.executor.submit(peek_schema, future, priority=_HIGH_PRIORITY)
            for batch in self.executor.results([peek]):
                if batch is not None:
                    return batch
        return None

    def _cluster_stats(self, progress: Progress) -> ClusterStats:
        events, slowest = self.executor.events, tuple(progress.slowest_users)
        return ClusterStats(
            self.executor.num_workers, events.lost_workers, progress.tasks, events.retries, slowest
        )


def process_partition(
    partition: Partition, segment: Segment, number: int, inline_rows: int, saved: SavedStates
) -> PartitionResult:
    """Run the segment for the users of a partition, as on one machine.

    Args:
        partition: The partition.
        segment: The stages.
        number: Number of the task.
        inline_rows: Rows of the output that are kept as they are; later ones are compressed.
        saved: Saved states of the users.
    """
    log_task_started(number)
    metrics, seconds = RunMetrics(), dict[str | None, float]()
    store = MemoryStateStore.from_states(saved) if segment.saves else None
    events = read_partitions([partition], metrics, store)
    events = chain(list(islice(events, 1)), events)
    batches = _time_users(LocalRunner(WorkerPool(1), store).run(segment, events), seconds)
    outputs = list(_compress_large(batches, inline_rows))
    return PartitionResult(outputs, metrics, seconds, store.changed() if store else {})


def encode_on_worker(result: PartitionResult, encoder: Segment) -> PartitionResult:
    """Format rows with the encoder of the sink."""
    return replace(result, outputs=list(encoder.open().run(result.iter_batches())))


def peek_schema(result: PartitionResult) -> Batch | None:
    """Return the first output batch without rows and counts; None if there is no output."""
    for batch in result.iter_batches():
        table = batch.table.clear()
        return replace(batch, table=table, card=None, filtered=0, candidates=None, new_values=None)
    return None


def _compress_large(
    batches: Iterator[Batch], inline_rows: int
) -> Iterator[Batch | CompressedBatch]:
    rows = 0
    for batch in batches:
        rows += batch.table.height
        yield CompressedBatch.from_batch(batch) if rows > inline_rows else batch


def _num_rows(batch: Batch | CompressedBatch) -> int:
    return batch.rows.num_rows if isinstance(batch, CompressedBatch) else batch.table.height


def _size_in_bytes(batch: Batch | CompressedBatch) -> int:
    return getsizeof(batch.rows) if isinstance(batch, CompressedBatch) else batch.table.size


def _time_users(batches: Iterator[Batch], seconds: dict[str | None, float]) -> Iterator[Batch]:
    """Add the time from one batch to the next to the time of its user."""
    start = time.perf_counter()
    for batch in batches:
        elapsed = time.perf_counter() - start
        seconds[batch.user] = seconds.get(batch.user, 0.0) + elapsed
        yield batch
        start = time.perf_counter()
