"""A chain is a fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

from morpheus.records import Batch
from morpheus.stage import Stage


def folded(stages: Sequence[Stage], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Pass batches through stages, one behind the other."""
    return reduce(lambda stream, stage: stage(stream), stages, batches)
