"""A chain is a fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, groupby
from operator import attrgetter

from morpheus.records import Batch
from morpheus.stage import Transform


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
