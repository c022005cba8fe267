"""The local runner: worker processes of this machine, or this process alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice, repeat
from operator import attrgetter

from morpheus.core.batch import Batch, Partition, RunMetrics
from morpheus.core.state import StateKey, decode_state, encode_state
from morpheus.runtime.chain import Chain, Segment, UserBatches
from morpheus.runtime.dask_cluster import Cluster
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.states import MemoryStateStore, SavedStates, StateStore
from morpheus.sources.source_state import PartitionState, SourceState

FIRST_BUNDLE_EVENTS, MAX_BUNDLE_EVENTS, BUNDLE_GROWTH = 4000, 24_000, 1.25
"""Events of the first bundle, of the largest, and how much each is larger than the last.

Small users travel together, because a task costs messages. The first bundles are small, or few
users would keep few workers busy.
"""
BUNDLE_EVENTS = 50_000
"""Events of a bundle where a stage prepares several users together."""
MIN_PARALLEL_USERS, MIN_PARALLEL_EVENTS = 8, 100_000
"""Below both, the work is done before worker processes would have started."""

SOURCE = "source"
"""Name of the source, which keys its states."""

EncoderFactory = Callable[[Batch], Segment | None]
"""Given the first batch that comes out: what else can be done with all of them where they are."""


@dataclass(frozen=True)
class Bundle:
    """Users who are passed to a worker together.

    Attributes:
        groups: Batches of each.
        saved: Their saved states.
    """

    groups: list[UserBatches]
    saved: SavedStates = field(default_factory=dict)


@dataclass(frozen=True)
class BundleResult:
    """What a bundle of users has become.

    Attributes:
        batches: What came out, in the order of the users.
        changed: Their states, if they are saved.
    """

    batches: list[Batch]
    changed: dict[StateKey, bytes]


@dataclass(frozen=True)
class PartitionJob:
    """A partition for a worker to read.

    Attributes:
        partition: The users.
        saved: Their saved states.
    """

    partition: Partition
    saved: SavedStates = field(default_factory=dict)


@dataclass(frozen=True)
class PartitionResult:
    """What a partition has become.

    Attributes:
        batches: What came out, in the order of the users.
        metrics: What was counted while the partition was read.
        changed: States of its users, if they are saved.
    """

    batches: list[Batch]
    metrics: RunMetrics
    changed: dict[StateKey, bytes]


@dataclass(frozen=True)
class LocalRunner:
    """Runs a segment for every user on this machine, in the order in which users come.

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
    ) -> Iterator[Batch]:
        """Run the segment for the users of each partition.

        Args:
            segment: The stages.
            partitions: All users, in the order in which they come out.
            metrics: Counts what is found while partitions are read.
            encoder_factory: What else can be done where a partition is read; see `Sink.encoder`.
        """
        cheap = not segment.is_cpu_bound and segment.users_per_bundle == 1
        if cheap and len(partitions) > 1 and self.executor.parallelism > 1:
            return self._run_by_partition(segment, partitions, metrics, encoder_factory)
        return self.run(segment, read_partitions(partitions, metrics, self.store))

    def run(self, segment: Segment, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Run the segment for each user of a stream that this process reads."""
        if segment.unbounded:
            return run_chain(segment.open(), batches, self.store)
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        if self.executor.parallelism > 1 and segment.is_cpu_bound:
            return self._run_parallel(segment, groups)
        if segment.users_per_bundle > 1:
            return run_inline(segment, groups, self.store)
        return run_by_user(segment, batches, self.store)

    def _run_parallel(self, segment: Segment, groups: Iterator[UserBatches]) -> Iterator[Batch]:
        first = list(_take_few(groups))
        following = next(groups, None)
        if following is None:
            yield from run_inline(segment, first, self.store)
        else:
            every = chain(first, [following], groups)
            yield from run_in_workers(self.executor, segment, every, self.store)

    def _run_by_partition(
        self,
        segment: Segment,
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Iterator[Batch]:
        """Run the segment where each partition is read.

        The first partition is read here, to see what comes out, while workers read the others.

        Raises:
            TransientError: A worker was killed from outside, most often for lack of memory.
        """
        first, *others = partitions
        batches = run_by_user(segment, read_partitions([first], metrics, self.store), self.store)
        begun = list(islice(batches, 1))
        encoders = [encoder for batch in begun if (encoder := encoder_factory(batch))]
        work = partial(run_partition, segment, encoders)
        jobs = (PartitionJob(each, load_states(self.store, each)) for each in others)
        results = self.executor.map(work, jobs)
        # Each batch is released when it has been passed on.
        while begun:
            yield begun.pop()
        yield from batches
        for result in results:
            metrics.add_read_stats(result.metrics)
            save_states(self.store, result.changed)
            yield from result.batches


def run_chain(opened: Chain, batches: Iterable[Batch], store: StateStore | None) -> Iterator[Batch]:
    """Run an open chain over a whole stream in this process."""
    restored: set[str | None] = set()
    for batch in batches:
        if store is not None and batch.user not in restored:
            restored.add(batch.user)
            opened.states.saved = store.load([batch.user])
        yield from opened.push(batch)
    yield from opened.flush()
    save_states(store, opened.changed)


def run_by_user(
    segment: Segment, batches: Iterable[Batch], store: StateStore | None
) -> Iterator[Batch]:
    """Run the segment for one user after the other in this process, batch by batch."""
    for user, group in groupby(batches, key=attrgetter("user")):
        opened = segment.open(None if store is None else store.load([user]))
        yield from opened.run(group)
        save_states(store, opened.changed)


def run_in_workers(
    executor: WorkerPool | Cluster,
    segment: Segment,
    groups: Iterable[UserBatches],
    store: StateStore | None,
) -> Iterator[Batch]:
    """Run the segment for each user in worker processes; the order of users is kept.

    Raises:
        TransientError: A worker was killed from outside, most often for lack of memory.
    """
    bundles = make_bundles(groups, segment.users_per_bundle, store)
    for result in executor.map_shared(partial(run_bundle, segment), bundles):
        save_states(store, result.changed)
        yield from result.batches


def run_inline(
    segment: Segment, groups: Iterable[UserBatches], store: StateStore | None
) -> Iterator[Batch]:
    """Run the segment for each user in this process, bundle by bundle."""
    for bundle in make_bundles(groups, segment.users_per_bundle, store):
        result = run_bundle(segment, bundle)
        save_states(store, result.changed)
        yield from result.batches


def run_bundle(segment: Segment, bundle: Bundle) -> BundleResult:
    """Run the segment for the users of a bundle, one after the other.

    Where a stage prefers several users together, it prepares them all first.
    """
    opened = segment.open(bundle.saved)
    if segment.users_per_bundle > 1:
        opened.prepare(bundle.groups)
    batches: list[Batch] = []
    for group in bundle.groups:
        for batch in group:
            batches += opened.push(batch)
        batches += opened.flush_user(group[0].user)
    return BundleResult(batches, opened.changed)


def run_partition(
    segment: Segment, encoders: Sequence[Segment], job: PartitionJob
) -> PartitionResult:
    """Run the segment for the users of a partition, and then the encoder of a sink."""
    metrics = RunMetrics()
    store = MemoryStateStore.from_states(job.saved) if segment.saves else None
    batches = run_by_user(segment, read_partitions([job.partition], metrics, store), store)
    for encoder in encoders:
        batches = encoder.open().run(batches)
    return PartitionResult(list(batches), metrics, store.changed() if store else {})


def make_bundles(
    groups: Iterable[UserBatches], max_users: int, store: StateStore | None = None
) -> Iterator[Bundle]:
    """Put users into bundles: ever more of them, or as many as a stage prepares together.

    Args:
        groups: Batches of each user.
        max_users: How many users a stage prepares together. Its results may depend on who they are,
            so bundles are the same with one process and with several.
        store: Gives the users' saved states.
    """
    coming = iter(groups)
    most = math.inf if max_users == 1 else max_users
    for enough in bundle_sizes() if max_users == 1 else repeat(BUNDLE_EVENTS):
        bundle: list[UserBatches] = []
        events = 0
        while events < enough and len(bundle) < most and (group := next(coming, None)) is not None:
            bundle.append(group)
            events += sum(num_events(batch) for batch in group)
        if not bundle:
            return
        users = [group[0].user for group in bundle]
        yield Bundle(bundle, {} if store is None else store.load(users))


def bundle_sizes() -> Iterator[float]:
    """Sizes of bundles, in events."""
    size = float(FIRST_BUNDLE_EVENTS)
    while True:
        yield size
        size = min(size * BUNDLE_GROWTH, MAX_BUNDLE_EVENTS)


def num_events(batch: Batch) -> int:
    """Events of a batch, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)


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
    """Read the events of partitions, with the state of the source where there is a store."""
    for partition in partitions:
        if store is None:
            yield from partition.events(metrics)
        else:
            state = restore_source(load_states(store, partition))
            yield from partition.events(metrics, state)
            save_source(store, state, partition.user_names())


def restore_source(saved: SavedStates) -> PartitionState:
    """Restore what a source remembers of some users."""
    states = {
        key.user: decode_state(SourceState, data)
        for key, data in saved.items()
        if key.stage == SOURCE
    }
    return PartitionState.restore(states)


def save_source(store: StateStore, state: PartitionState, users: Iterable[str | None]) -> None:
    """Save what a source remembers of some users."""
    states = state.snapshot(users)
    store.save({StateKey(SOURCE, user): encode_state(each) for user, each in states.items()})


def _take_few(groups: Iterator[UserBatches]) -> Iterator[UserBatches]:
    users = events = 0
    while users < MIN_PARALLEL_USERS and events < MIN_PARALLEL_EVENTS:
        group = next(groups, None)
        if group is None:
            return
        yield group
        users += 1
        events += sum(num_events(batch) for batch in group)
