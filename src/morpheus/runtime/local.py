"""The local runner: worker processes of this machine, or this process alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice, repeat
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from morpheus.core.batch import Batch, Partition, RowBuffer, RunMetrics
from morpheus.core.state import PARTS, SOURCE, StateKey, decode_state, encode_state, part_key
from morpheus.runtime.chain import Segment, UserBatches
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.base import Source
from morpheus.sources.source_state import PartitionState, SourceState

if TYPE_CHECKING:
    from morpheus.runtime.dask_cluster import Cluster
    from morpheus.runtime.states import SavedStates, StateStore

FIRST_BUNDLE_EVENTS, MAX_BUNDLE_EVENTS, BUNDLE_GROWTH = 4000, 24_000, 1.25
"""Events in the first bundle and in the largest, and the growth from one bundle to the next.

Small users share a bundle, because each task costs messages. The first bundles are small, so that
a few users keep all workers busy.
"""
BUNDLE_EVENTS = 50_000
"""Events in a bundle if a stage prepares several users together."""
MIN_PARALLEL_USERS, MIN_PARALLEL_EVENTS = 8, 100_000
"""With fewer users and events, the work is done before worker processes have started."""

MEMORY = "source-memory"
"""Name of what a source remembers about its whole input; its user is None."""

SMALL_USER_EVENTS = 128
"""Events of a user up to which the user is processed together with others: the cost is then that of
the calls."""
SMALL_USERS_EVENTS = 4096
"""Events of such users that are processed together."""

EncoderFactory = Callable[[Batch], Segment | None]
"""Takes the first output batch; returns stages to run on all output where it is produced, or None.
"""


class Bundle(msgspec.Struct, frozen=True):
    """Users that are passed to a worker together.

    Attributes:
        groups: Batches of each user.
        saved: Saved states of the users.
    """

    groups: list[UserBatches]
    saved: SavedStates = msgspec.field(default_factory=dict)


class BundleResult(msgspec.Struct, frozen=True):
    """The result of a bundle.

    Attributes:
        batches: Output batches, in the order of the users.
        changed: Encoded states of the users, if `Segment.saves`.
    """

    batches: list[Batch]
    changed: dict[StateKey, bytes]


class PartitionJob(msgspec.Struct, frozen=True):
    """A partition for a worker to read.

    Attributes:
        partition: The partition.
        saved: Saved states of the users.
    """

    partition: Partition
    saved: SavedStates = msgspec.field(default_factory=dict)


class PartitionResult(msgspec.Struct, frozen=True):
    """The result of a partition.

    Attributes:
        batches: Output batches, in the order of the users.
        metrics: Counts of the records that were read.
        changed: Encoded states of the users, if `Segment.saves`.
    """

    batches: list[Batch]
    metrics: RunMetrics
    changed: dict[StateKey, bytes]


class LocalRunner(msgspec.Struct, frozen=True):
    """Runs a segment for each user on this machine. The order of users is kept.

    Attributes:
        executor: The worker processes.
        store: Keeps states between runs; None to keep none.
    """

    executor: WorkerPool
    store: StateStore | None = None

    def run_partitions(
        self,
        segment: Segment,
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Generator[Batch, None, None]:
        """Run the segment for the users of each partition.

        Args:
            segment: The stages.
            partitions: Partitions with all users, in output order.
            metrics: Counts the records that are read.
            encoder_factory: Makes the encoder of the sink; see `Sink.encoder`.
        """
        cheap = not segment.is_cpu_bound and segment.users_per_bundle == 1
        if cheap and len(partitions) > 1 and self.executor.parallelism > 1:
            return self._run_by_partition(segment, partitions, metrics, encoder_factory)
        return self.run(segment, read_partitions(partitions, metrics, self.store))

    def run(self, segment: Segment, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Run the segment for each user of a stream that this process reads."""
        if segment.unbounded:
            return segment.open().run(batches, self.store)
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        if self.executor.parallelism > 1 and segment.is_cpu_bound:
            return self._run_parallel(segment, groups)
        if segment.users_per_bundle > 1:
            return run_inline(segment, groups, self.store)
        return run_by_user(segment, batches, self.store)

    def _run_parallel(
        self, segment: Segment, groups: Iterator[UserBatches]
    ) -> Generator[Batch, None, None]:
        """Run a few users in this process, and more in worker processes."""
        first = list(_take_few(groups))
        following = next(groups, None)
        if following is None:
            yield from run_inline(segment, first, self.store)
        else:
            groups = chain(first, [following], groups)
            yield from run_in_workers(self.executor, segment, groups, self.store)

    def _run_by_partition(
        self,
        segment: Segment,
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Generator[Batch, None, None]:
        """Run the segment where each partition is read.

        This process reads the first partition, because the encoder needs the columns of its
        output. Workers read the other partitions at the same time.

        Raises:
            TransientError: A worker was killed from outside, most often for lack of memory.
        """
        first, *rest = partitions
        batches = run_by_user(segment, read_partitions([first], metrics, self.store), self.store)
        head = list(islice(batches, 1))
        encoders = [encoder for batch in head if (encoder := encoder_factory(batch))]
        work = partial(run_partition, segment, encoders)
        jobs = (PartitionJob(each, load_states(self.store, each)) for each in rest)
        results = self.executor.map(work, jobs)
        # The list must not keep a batch alive that has been passed on.
        while head:
            yield head.pop()
        yield from batches
        for result in results:
            metrics.add_read_stats(result.metrics)
            save_states(self.store, result.changed)
            yield from result.batches


def run_by_user(
    segment: Segment, batches: Iterable[Batch], store: StateStore | None
) -> Generator[Batch, None, None]:
    """Run the segment for each user in this process, batch by batch, and small users together."""
    small = RowBuffer[Batch]()
    for user, group in groupby(batches, key=attrgetter("user")):
        head = list(islice(group, 2))
        if _is_small(head):
            small.add(head[0], head[0].table.height)
            if small.has(SMALL_USERS_EVENTS):
                yield from _run_small_users(segment, small.take(), store)
            continue
        yield from _run_small_users(segment, small.take(), store)
        opened = segment.open(None if store is None else store.load([user]))
        for batch in chain(head, group):
            yield from opened.push(batch)
        yield from opened.flush()
        save_states(store, opened.changed)
    yield from _run_small_users(segment, small.take(), store)


def _is_small(batches: Sequence[Batch]) -> bool:
    """Return whether a user with these batches is better processed together with others."""
    [first, *more] = batches
    history = getattr(first, "history", None)
    return not more and history is None and 0 < first.table.height <= SMALL_USER_EVENTS


def _divide_small_users(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Yield as many users as are processed together."""
    part = RowBuffer[Batch]()
    for batch in batches:
        part.add(batch, batch.table.height)
        if part.has(SMALL_USERS_EVENTS):
            yield part.take()
    if part.items:
        yield part.take()


def _run_small_users(
    segment: Segment, batches: Sequence[Batch], store: StateStore | None
) -> Generator[Batch, None, None]:
    """Run the segment for users of one batch each, in one pass."""
    if not batches:
        return
    saved = None if store is None else store.load([batch.user for batch in batches])
    opened = segment.open(saved)
    yield from opened.run_users(batches)
    save_states(store, opened.changed)


def run_in_workers(
    executor: WorkerPool | Cluster,
    segment: Segment,
    groups: Iterable[UserBatches],
    store: StateStore | None,
) -> Generator[Batch, None, None]:
    """Run the segment for each user in worker processes. The order of users is kept.

    Raises:
        TransientError: A worker was killed from outside, most often for lack of memory.
    """
    bundles = make_bundles(groups, segment.users_per_bundle, store)
    for result in executor.map_shared(partial(run_bundle, segment), bundles):
        save_states(store, result.changed)
        yield from result.batches


def run_inline(
    segment: Segment, groups: Iterable[UserBatches], store: StateStore | None
) -> Generator[Batch, None, None]:
    """Run the segment for each user in this process, bundle by bundle."""
    for bundle in make_bundles(groups, segment.users_per_bundle, store):
        result = run_bundle(segment, bundle)
        save_states(store, result.changed)
        yield from result.batches


def run_bundle(segment: Segment, bundle: Bundle) -> BundleResult:
    """Run the segment for the users of a bundle, one after the other.

    If a stage prefers several users together, it prepares all of them first.
    """
    opened = segment.open(bundle.saved)
    if segment.users_per_bundle > 1:
        opened.prepare(bundle.groups)
    batches: list[Batch] = []
    for small, groups in groupby(bundle.groups, key=_is_small):
        if small:
            for part in _divide_small_users(group[0] for group in groups):
                batches += opened.run_users(part)
            continue
        for group in groups:
            for batch in group:
                batches += opened.push(batch)
            batches += opened.flush_user(group[0].user)
    return BundleResult(batches, opened.changed)


def run_partition(
    segment: Segment, encoders: Sequence[Segment], job: PartitionJob
) -> PartitionResult:
    """Run the segment for the users of a partition, and then the encoder of a sink."""
    metrics = RunMetrics()
    store = None
    if segment.saves:
        from morpheus.runtime.states import MemoryStateStore  # noqa: PLC0415 - for --state only

        store = MemoryStateStore.from_states(job.saved)
    batches = run_by_user(segment, read_partitions([job.partition], metrics, store), store)
    for encoder in encoders:
        batches = encoder.open().run(batches)
    return PartitionResult(list(batches), metrics, store.changed() if store else {})


def make_bundles(
    groups: Iterable[UserBatches], max_users: int, store: StateStore | None = None
) -> Iterator[Bundle]:
    """Put users into bundles: of growing size, or as many as a stage prepares together.

    Args:
        groups: Batches of each user.
        max_users: How many users a stage prepares together. Its results can depend on which users
            these are, so the bundles are the same for every number of workers.
        store: Gives the saved states of the users.
    """
    remaining = iter(groups)
    most = math.inf if max_users == 1 else max_users
    for size in bundle_sizes() if max_users == 1 else repeat(BUNDLE_EVENTS):
        bundle: list[UserBatches] = []
        events = 0
        while events < size and len(bundle) < most and (group := next(remaining, None)) is not None:
            bundle.append(group)
            events += sum(num_events(batch) for batch in group)
        if not bundle:
            return
        users = [group[0].user for group in bundle]
        yield Bundle(bundle, {} if store is None else store.load(users))


def bundle_sizes() -> Iterator[float]:
    """Yield the sizes of bundles, in events."""
    size = float(FIRST_BUNDLE_EVENTS)
    while True:
        yield size
        size = min(size * BUNDLE_GROWTH, MAX_BUNDLE_EVENTS)


def num_events(batch: Batch) -> int:
    """Count the events of a batch and of its history."""
    history = getattr(batch, "history", None)
    return batch.table.height + (0 if history is None else history.height)


def load_states(store: StateStore | None, partition: Partition) -> SavedStates:
    """Load the saved states of a partition's users."""
    return {} if store is None else store.load(partition.user_names())


def save_states(store: StateStore | None, changed: SavedStates) -> None:
    """Save changed states, if there is a store."""
    if store is not None and changed:
        store.save(changed)


def read_partitions(
    partitions: Iterable[Partition], metrics: RunMetrics, store: StateStore | None
) -> Iterator[Batch]:
    """Read the events of partitions. With a store, restore and save the state of the source."""
    for partition in partitions:
        if store is None:
            yield from partition.events(metrics)
        else:
            state = restore_source(load_states(store, partition))
            yield from partition.events(metrics, state)
            save_source(store, state, partition.user_names())


def restore_source(saved: SavedStates) -> PartitionState:
    """Restore the state of a source for some users."""
    states: dict[str | None, SourceState] = {}
    parts: dict[str | None, dict[int, bytes]] = {}
    for key, data in saved.items():
        if key.stage == SOURCE:
            states[key.user] = decode_state(SourceState, data)
        elif key.stage.startswith(PARTS):
            parts.setdefault(key.user, {})[int(key.stage.removeprefix(PARTS))] = data
    return PartitionState.restore(states, parts)


def save_source(store: StateStore, state: PartitionState, users: Iterable[str | None]) -> None:
    """Save the state of a source for some users."""
    store.save(encode_source(state, users))


def encode_source(state: PartitionState, users: Iterable[str | None]) -> dict[StateKey, bytes]:
    """Return the encoded state of a source for some users."""
    states = state.snapshot(users)
    encoded = {StateKey(SOURCE, user): encode_state(each) for user, each in states.items()}
    for user, parts in state.take_parts(states).items():
        encoded |= {part_key(user, number): data for number, data in parts.items()}
    return encoded


def resume_source(source: Source, store: StateStore) -> Source:
    """Return the source that continues after the earlier runs of a state file."""
    return source.resume(store.load_stage(MEMORY).get(StateKey(MEMORY, None)))


def save_memory(store: StateStore, source: Source, metrics: RunMetrics) -> None:
    """Save what a source remembers about its whole input."""
    data = source.remember(metrics)
    if data is not None:
        store.save({StateKey(MEMORY, None): data})


def _take_few(groups: Iterator[UserBatches]) -> Iterator[UserBatches]:
    """Yield as many users as are not worth starting worker processes."""
    users = events = 0
    while users < MIN_PARALLEL_USERS and events < MIN_PARALLEL_EVENTS:
        group = next(groups, None)
        if group is None:
            return
        yield group
        users += 1
        events += sum(num_events(batch) for batch in group)
