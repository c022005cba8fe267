"""`CollectSink`: keeps batches in memory, for tests and the Python API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Requirements, Sink


@dataclass(frozen=True)
class CollectSink(Sink):
    """Keep all batches in `batches`, and pass them on."""

    name = "keep"
    takes = (Scored, OutputRows)
    needs = Requirements(model=True)

    batches: list[Batch] = field(default_factory=list)

    def process(self, batch: Batch, state: None) -> Iterator[Batch]:  # noqa: ARG002 - no state
        """Keep a batch."""
        self.batches.append(batch)
        yield batch
