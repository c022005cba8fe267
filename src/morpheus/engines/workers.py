"""The same segment of a chain in several processes, for several users side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice, repeat
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
PARTY = 50_000
"""Events of a task, about, where a stage wants to see several users at a time."""


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
    for batches in crew.map_given(work, tasks(groups, together(segment))):
        yield from batches


def run_here(segment: Sequence[Stage], groups: Iterable[Group]) -> Iterator[Batch]:
    """The same in this process."""
    for task in tasks(groups, together(segment)):
        yield from passed(segment, task)


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


def together(segment: Sequence[Stage]) -> int:
    """How many users the segment would rather see at a time."""
    return max((stage.together() for stage in segment), default=1)


def passed(segment: Sequence[Stage], task: list[Group]) -> list[Batch]:
    """Pass the users of a task through the segment, one after the other.

    Where a stage would rather see several at a time, it sees them all; it may mix them, so they are
    put in order again.
    """
    if together(segment) == 1:
        return [batch for group in task for batch in folded(segment, iter(group))]
    order = {group[0].user: place for place, group in enumerate(task)}
    mixed = folded(segment, chain.from_iterable(task))
    return sorted(mixed, key=lambda batch: order[batch.user])


def tasks(groups: Iterable[Group], users: int) -> Iterator[list[Group]]:
    """Put users together: ever more of them, or those that a stage sees at a time.

    Args:
        groups: The users.
        users: How many a stage would rather see at a time. What it makes of them may hang on who
            they are, so that is the same with one process and with several.
    """
    coming = iter(groups)
    most = math.inf if users == 1 else users
    for enough in growing() if users == 1 else repeat(PARTY):
        task: list[Group] = []
        events = 0
        while events < enough and len(task) < most and (group := next(coming, None)) is not None:
            task.append(group)
            events += sum(weight(batch) for batch in group)
        if not task:
            return
        yield task


def growing() -> Iterator[float]:
    """Sizes of tasks, in events."""
    size = float(EVENTS)
    while True:
        yield size
        size = min(size * GROWTH, MOST)


def weight(batch: Batch) -> int:
    """Events that a batch brings, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)
