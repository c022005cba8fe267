"""Fingerprints let go of, once nobody needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from morpheus.records import Batch
from morpheus.stage import Transform


@dataclass(frozen=True)
class DropModel(Transform):
    """Make batches light enough to be handed from process to process.

    Whether there are processes or not, so that no stage behind can tell.
    """

    name = "light"
    takes = (Batch,)
    needs_model = False

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Hand batches on without fingerprint and codes."""
        for batch in batches:
            yield replace(batch, fingerprint=None, encoded=None)
