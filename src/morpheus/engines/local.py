"""The local engine: this machine, one user after the other or several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import attrgetter

from morpheus.engines.fold import folded
from morpheus.engines.workers import Group, run_in_workers, weight
from morpheus.records import Batch
from morpheus.stage import Stage

FEW_USERS, FEW_EVENTS = 8, 100_000
"""Below both, the work is done before worker processes would have started."""


@dataclass(frozen=True)
class Local:
    """Runs a segment of a chain for every user, in the order in which users come."""

    threads: int

    def run(
        self, segment: Sequence[Stage], batches: Iterator[Batch], *, endless: bool
    ) -> Iterator[Batch]:
        """Pass each user's batches through the segment; what comes out keeps the users' order."""
        if endless:
            return folded(segment, batches)
        by_user = (group for _, group in groupby(batches, key=attrgetter("user")))
        together = max((stage.together() for stage in segment), default=1)
        if together > 1:
            return _in_parties(segment, (list(group) for group in by_user), together)
        if self.threads == 1 or not any(stage.costly() for stage in segment):
            return chain.from_iterable(folded(segment, group) for group in by_user)
        return self._side_by_side(segment, (list(group) for group in by_user))

    def _side_by_side(self, segment: Sequence[Stage], groups: Iterator[Group]) -> Iterator[Batch]:
        first = list(_few(groups))
        following = next(groups, None)
        if following is None:
            for group in first:
                yield from folded(segment, iter(group))
        else:
            everybody: Iterable[Group] = chain(first, [following], groups)
            yield from run_in_workers(self.threads, segment, everybody)


def _in_parties(
    segment: Sequence[Stage], groups: Iterator[Group], together: int
) -> Iterator[Batch]:
    """Pass several users at a time; a stage may mix them, so they are put in order again."""
    while party := list(islice(groups, together)):
        order = {group[0].user: place for place, group in enumerate(party)}
        passed = folded(segment, chain.from_iterable(party))
        yield from sorted(passed, key=lambda batch: order[batch.user])


def _few(groups: Iterator[Group]) -> Iterator[Group]:
    users = events = 0
    while users < FEW_USERS and events < FEW_EVENTS:
        group = next(groups, None)
        if group is None:
            return
        yield group
        users += 1
        events += sum(weight(batch) for batch in group)
