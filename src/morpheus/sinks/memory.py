"""`CollectSink`: keeps batches in memory, for tests and the Python API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Transform


@dataclass(frozen=True)
class CollectSink(Transform):
    """Keep all batches in `batches`, and pass them on."""

    name = "keep"
    takes = (Scored, OutputRows)
    scope = "global"
    is_sink = True

    batches: list[Batch] = field(default_factory=list)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Keep each batch, and hand it on."""
        for batch in batches:
            self.batches.append(batch)
            yield batch
