"""`Keep`: what came through a chain, for Python to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from morpheus.records import Batch, Rows, Scored
from morpheus.stage import Stage


@dataclass(frozen=True)
class Keep(Stage):
    """Keep what comes, in `kept`."""

    name = "keep"
    takes = (Scored, Rows)
    scope = "run"
    sink = True

    kept: list[Batch] = field(default_factory=list)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Keep each batch, and hand it on."""
        for batch in batches:
            self.kept.append(batch)
            yield batch
