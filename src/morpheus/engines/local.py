"""The local engine: this machine, one user after the other or several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import attrgetter

from morpheus.records import Batch
from morpheus.stage import Stage


@dataclass(frozen=True)
class Local:
    """Runs a segment of a chain for every user, in the order in which users come."""

    threads: int

    def run(
        self, segment: Sequence[Stage], batches: Iterator[Batch], *, endless: bool
    ) -> Iterator[Batch]:
        """Pass each user's batches through the segment; what comes out keeps the users' order."""
        if endless:
            yield from folded(segment, batches)
            return
        for _, group in groupby(batches, key=attrgetter("user")):
            yield from folded(segment, group)


def folded(segment: Sequence[Stage], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass batches through stages, one behind the other."""
    return reduce(lambda stream, stage: stage(stream), segment, batches)
