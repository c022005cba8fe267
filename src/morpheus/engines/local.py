"""The local engine: this machine, one user after the other or several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import attrgetter

from morpheus.engines.fold import folded
from morpheus.engines.workers import (
    Beforehand,
    Group,
    by_user,
    run_by_portion,
    run_here,
    run_in_workers,
    together,
    weight,
)
from morpheus.processes import Crew
from morpheus.records import Batch, Portion, Summary
from morpheus.stage import Stage

FEW_USERS, FEW_EVENTS = 8, 100_000
"""Below both, the work is done before worker processes would have started."""


@dataclass(frozen=True)
class Local:
    """Runs a segment of a chain for every user, in the order in which users come."""

    crew: Crew

    def run_portions(
        self,
        segment: Sequence[Stage],
        portions: Sequence[Portion],
        summary: Summary,
        beforehand: Beforehand,
    ) -> Iterator[Batch]:
        """Pass the users of each portion through the segment, where the portion is read.

        Args:
            segment: What is done with each user.
            portions: All users, in the order in which they come out.
            summary: Counted into as portions are read.
            beforehand: What else can be done where a portion is read; see `Stage.beforehand`.
        """
        cheap = not any(stage.costly() for stage in segment) and together(segment) == 1
        if cheap and len(portions) > 1 and self.crew.workers > 1:
            return run_by_portion(self.crew, segment, portions, summary, beforehand)
        batches = chain.from_iterable(portion.events(summary) for portion in portions)
        return self.run(segment, batches, endless=False)

    def run(
        self, segment: Sequence[Stage], batches: Iterator[Batch], *, endless: bool
    ) -> Iterator[Batch]:
        """Pass each user's batches through the segment; what comes out keeps the users' order."""
        if endless:
            return folded(segment, batches)
        groups = (list(group) for _, group in groupby(batches, key=attrgetter("user")))
        if self.crew.workers > 1 and any(stage.costly() for stage in segment):
            return self._side_by_side(segment, groups)
        if together(segment) > 1:
            return run_here(segment, groups)
        return by_user(segment, batches)

    def _side_by_side(self, segment: Sequence[Stage], groups: Iterator[Group]) -> Iterator[Batch]:
        first = list(_few(groups))
        following = next(groups, None)
        if following is None:
            yield from run_here(segment, first)
        else:
            everybody: Iterable[Group] = chain(first, [following], groups)
            yield from run_in_workers(self.crew, segment, everybody)


def _few(groups: Iterator[Group]) -> Iterator[Group]:
    users = events = 0
    while users < FEW_USERS and events < FEW_EVENTS:
        group = next(groups, None)
        if group is None:
            return
        yield group
        users += 1
        events += sum(weight(batch) for batch in group)
