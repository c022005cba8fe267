"""The same segment of a chain in several processes, for several users side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice
from operator import attrgetter

from morpheus.cluster.workers import Cluster
from morpheus.engines.fold import folded
from morpheus.processes import Crew
from morpheus.records import Batch, Portion, Summary
from morpheus.stage import Stage

Group = list[Batch]
"""All batches of one user."""

EVENTS, MOST, GROWTH = 4000, 24_000, 1.25
"""Events of the first task, about, of the largest, and how much each is larger than the last.

Small users travel together, for a task costs messages; but the first ones have to be small, or few
users would keep few workers busy.
"""


Beforehand = Callable[[Batch], Stage | None]
"""Of the first batch that comes out: what else can be done with all of them; see `Stage`."""


def run_in_workers(
    crew: Crew | Cluster, segment: Sequence[Stage], groups: Iterable[Group]
) -> Iterator[Batch]:
    """Pass each user's batches through the segment, on several processes, in the users' order.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    work = partial(passed, segment)
    for batches in crew.map_given(work, tasks(groups)):
        yield from batches


def run_by_portion(
    crew: Crew,
    segment: Sequence[Stage],
    portions: Sequence[Portion],
    summary: Summary,
    beforehand: Beforehand,
) -> Iterator[Batch]:
    """Pass the users of each portion through the segment where the portion is read.

    The first is read here, to see what comes out, while the workers begin with the others.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    first, *others = portions
    here = by_user(segment, first.events(summary))
    begun = list(islice(here, 1))
    more = [beforehand(batch) for batch in begun]
    work = partial(passed_portion, segment, [stage for stage in more if stage])
    elsewhere = crew.map(work, others)
    # Handed on, and not held until all is done.
    while begun:
        yield begun.pop()
    yield from here
    for batches, counted in elsewhere:
        summary.add_readings(counted)
        yield from batches


def passed_portion(
    segment: Sequence[Stage], more: Sequence[Stage], portion: Portion
) -> tuple[list[Batch], Summary]:
    """Pass a portion's users through the segment, then all of them through more."""
    counted = Summary()
    batches = folded(more, by_user(segment, portion.events(counted)))
    return list(batches), counted


def by_user(segment: Sequence[Stage], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass each user's batches through the segment, one user after the other."""
    groups = groupby(batches, key=attrgetter("user"))
    return chain.from_iterable(folded(segment, group) for _, group in groups)


def passed(segment: Sequence[Stage], task: list[Group]) -> list[Batch]:
    """Pass users through the segment, one after the other."""
    return [batch for group in task for batch in folded(segment, iter(group))]


def tasks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Put users together, ever more of them."""
    task: list[Group] = []
    events, enough = 0, float(EVENTS)
    for group in groups:
        task.append(group)
        events += sum(weight(batch) for batch in group)
        if events >= enough:
            yield task
            task, events, enough = [], 0, min(enough * GROWTH, MOST)
    if task:
        yield task


def weight(batch: Batch) -> int:
    """Events that a batch brings, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)
