"""The same segment of a chain in several processes, for several users side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from morpheus.engines.fold import folded
from morpheus.processes import Crew
from morpheus.records import Batch
from morpheus.stage import Stage

Group = list[Batch]
"""All batches of one user."""

EVENTS = 4000
"""Events of a task, about: small users travel together."""


def run_in_workers(
    workers: int, segment: Sequence[Stage], groups: Iterable[Group]
) -> Iterator[Batch]:
    """Pass each user's batches through the segment, on so many processes, in the users' order.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    with Crew(workers) as crew:
        for batches in crew.map(partial(passed, segment), tasks(groups)):
            yield from batches


def passed(segment: Sequence[Stage], task: list[Group]) -> list[Batch]:
    """Pass users through the segment, one after the other."""
    batches = (batch for group in task for batch in folded(segment, iter(group)))
    return [batch.without_fingerprint() for batch in batches]


def tasks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Put users together until they have EVENTS events."""
    task: list[Group] = []
    events = 0
    for group in groups:
        task.append(group)
        events += sum(weight(batch) for batch in group)
        if events >= EVENTS:
            yield task
            task, events = [], 0
    if task:
        yield task


def weight(batch: Batch) -> int:
    """Events that a batch brings, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)
