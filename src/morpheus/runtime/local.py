"""A chain is a fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain, groupby, islice, repeat
from operator import attrgetter

from morpheus.core.batch import Batch, Partition, RunMetrics
from morpheus.core.stage import Transform
from morpheus.runtime.dask_cluster import Cluster
from morpheus.runtime.pool import WorkerPool


def chain_stages(stages: Sequence[Transform], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass batches through stages, one behind the other."""
    return reduce(lambda stream, stage: stage(stream), stages, batches)


def chain_by_scope(
    stages: Sequence[Transform], batches: Iterator[Batch], *, unbounded: bool
) -> Iterator[Batch]:
    """Pass the whole stream through stages; those of scope `user` are called anew for each user.

    Where the input is endless users come again and again, and each stage is called once.
    """

    def passed(stream: Iterator[Batch], stage: Transform) -> Iterator[Batch]:
        if stage.scope != "keyed" or unbounded:
            return stage(stream)
        return chain.from_iterable(
            stage(group) for _, group in groupby(stream, key=attrgetter("user"))
        )

    return reduce(passed, stages, batches)


@dataclass(frozen=True)
class DropModel(Transform):
    """Make batches light enough to be handed from process to process.

    Whether there are processes or not, so that no stage behind can tell.
    """

    name = "light"
    takes = (Batch,)
    needs_model = False

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on without fingerprint and codes."""
        for batch in batches:
            yield replace(batch, fingerprint=None, encoded=None)


UserBatches = list[Batch]
"""All batches of one user."""

FIRST_BUNDLE_EVENTS, MAX_BUNDLE_EVENTS, BUNDLE_GROWTH = 4000, 24_000, 1.25
"""Events of the first task, about, of the largest, and how much each is larger than the last.

Small users travel together, for a task costs messages; but the first ones have to be small, or few
users would keep few workers busy.
"""
BUNDLE_EVENTS = 50_000
"""Events of a task, about, where a stage wants to see several users at a time."""


EncoderFactory = Callable[[Batch], Transform | None]
"""Of the first batch that comes out: what else can be done with all of them; see `Transform`."""


def run_in_workers(
    executor: WorkerPool | Cluster, segment: Sequence[Transform], groups: Iterable[UserBatches]
) -> Iterator[Batch]:
    """Pass each user's batches through the segment, on several processes, in the users' order.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    work = partial(run_bundle, segment)
    for batches in executor.map_shared(work, make_bundles(groups, users_per_bundle(segment))):
        yield from batches


def run_inline(segment: Sequence[Transform], groups: Iterable[UserBatches]) -> Iterator[Batch]:
    """The same in this process."""
    for task in make_bundles(groups, users_per_bundle(segment)):
        yield from run_bundle(segment, task)


def run_by_partition(
    pool: WorkerPool,
    segment: Sequence[Transform],
    partitions: Sequence[Partition],
    metrics: RunMetrics,
    encoder_factory: EncoderFactory,
) -> Iterator[Batch]:
    """Pass the users of each portion through the segment where the portion is read.

    The first is read here, to see what comes out, while the workers begin with the others.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    first, *others = partitions
    here = run_by_user(segment, first.events(metrics))
    begun = list(islice(here, 1))
    more = [encoder_factory(batch) for batch in begun]
    work = partial(run_partition, segment, [stage for stage in more if stage])
    elsewhere = pool.map(work, others)
    # Handed on, and not held until all is done.
    while begun:
        yield begun.pop()
    yield from here
    for batches, counted in elsewhere:
        metrics.add_read_stats(counted)
        yield from batches


def run_partition(
    segment: Sequence[Transform], more: Sequence[Transform], partition: Partition
) -> tuple[list[Batch], RunMetrics]:
    """Pass a portion's users through the segment, then all of them through more."""
    counted = RunMetrics()
    batches = chain_stages(more, run_by_user(segment, partition.events(counted)))
    return list(batches), counted


def run_by_user(segment: Sequence[Transform], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass each user's batches through the segment, one user after the other."""
    groups = groupby(batches, key=attrgetter("user"))
    return chain.from_iterable(chain_stages(segment, group) for _, group in groups)


def users_per_bundle(segment: Sequence[Transform]) -> int:
    """How many users the segment would rather see at a time."""
    return max((stage.users_per_bundle() for stage in segment), default=1)


def run_bundle(segment: Sequence[Transform], bundle: list[UserBatches]) -> list[Batch]:
    """Pass the users of a task through the segment, one after the other.

    Where a stage would rather see several at a time, it sees them all; it may mix them, so they are
    put in order again.
    """
    if users_per_bundle(segment) == 1:
        return [batch for group in bundle for batch in chain_stages(segment, iter(group))]
    order = {group[0].user: place for place, group in enumerate(bundle)}
    mixed = chain_stages(segment, chain.from_iterable(bundle))
    return sorted(mixed, key=lambda batch: order[batch.user])


def make_bundles(groups: Iterable[UserBatches], max_users: int) -> Iterator[list[UserBatches]]:
    """Put users together: ever more of them, or those that a stage sees at a time.

    Args:
        groups: The users.
        max_users: How many a stage would rather see at a time. What it makes of them may hang on who
            they are, so that is the same with one process and with several.
    """
    coming = iter(groups)
    most = math.inf if max_users == 1 else max_users
    for enough in bundle_sizes() if max_users == 1 else repeat(BUNDLE_EVENTS):
        task: list[UserBatches] = []
        events = 0
        while events < enough and len(task) < most and (group := next(coming, None)) is not None:
            task.append(group)
            events += sum(num_events(batch) for batch in group)
        if not task:
            return
        yield task


def bundle_sizes() -> Iterator[float]:
    """Sizes of tasks, in events."""
    size = float(FIRST_BUNDLE_EVENTS)
    while True:
        yield size
        size = min(size * BUNDLE_GROWTH, MAX_BUNDLE_EVENTS)


def num_events(batch: Batch) -> int:
    """Events that a batch brings, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)


MIN_PARALLEL_USERS, MIN_PARALLEL_EVENTS = 8, 100_000
"""Below both, the work is done before worker processes would have started."""


@dataclass(frozen=True)
class LocalRunner:
    """Runs a segment of a chain for every user, in the order in which users come."""

    executor: WorkerPool

    def run_partitions(
        self,
        segment: Sequence[Transform],
        partitions: Sequence[Partition],
        metrics: RunMetrics,
        encoder_factory: EncoderFactory,
    ) -> Iterator[Batch]:
        """Pass the users of each portion through the segment, where the portion is read.

        Args:
            segment: What is done with each user.
            partitions: All users, in the order in which they come out.
            metrics: Counted into as portions are read.
            encoder_factory: What else can be done where a portion is read; see `Transform.encoder`.
        """
        cheap = (
            not any(stage.is_cpu_bound() for stage in segment) and users_per_bundle(segment) == 1
        )
        if cheap and len(partitions) > 1 and self.executor.parallelism > 1:
            return run_by_partition(self.executor, segment, partitions, metrics, encoder_factory)
        batches = chain.from_iterable(portion.events(metrics) for portion in partitions)
        return self.run(segment, batches, unbounded=False)

    def run(
        self, segment: Sequence[Transform], batches: Iterator[Batch], *, unbounded: bool
    ) -> Iterator[Batch]:
        """Pass each user's batches through the segment; what comes out keeps the users' order."""
        if unbounded:
            return chain_stages(segment, batches)
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        if self.executor.parallelism > 1 and any(stage.is_cpu_bound() for stage in segment):
            return self._run_parallel(segment, groups)
        if users_per_bundle(segment) > 1:
            return run_inline(segment, groups)
        return run_by_user(segment, batches)

    def _run_parallel(
        self, segment: Sequence[Transform], groups: Iterator[UserBatches]
    ) -> Iterator[Batch]:
        first = list(_take_few(groups))
        following = next(groups, None)
        if following is None:
            yield from run_inline(segment, first)
        else:
            everybody: Iterable[UserBatches] = chain(first, [following], groups)
            yield from run_in_workers(self.executor, segment, everybody)


def _take_few(groups: Iterator[UserBatches]) -> Iterator[UserBatches]:
    users = events = 0
    while users < MIN_PARALLEL_USERS and events < MIN_PARALLEL_EVENTS:
        group = next(groups, None)
        if group is None:
            return
        yield group
        users += 1
        events += sum(num_events(batch) for batch in group)
