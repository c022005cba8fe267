"""The local engine: this machine, one user after the other or several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter

from morpheus.engines.fold import chain_stages
from morpheus.engines.workers import (
    EncoderFactory,
    UserBatches,
    run_by_user,
    run_by_partition,
    run_inline,
    run_in_workers,
    users_per_bundle,
    num_events,
)
from morpheus.processes import WorkerPool
from morpheus.records import Batch, Partition, RunMetrics
from morpheus.stage import Transform

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
        cheap = not any(stage.is_cpu_bound() for stage in segment) and users_per_bundle(segment) == 1
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

    def _run_parallel(self, segment: Sequence[Transform], groups: Iterator[UserBatches]) -> Iterator[Batch]:
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
