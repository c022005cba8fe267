"""preprocess: events as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from morpheus.core.batch import Encoded, WithModel
from morpheus.core.stage import Transform


@dataclass(frozen=True)
class Preprocess(Transform):
    """Turn each event into numbers, as its user's fingerprint reads them.

    Takes what `train-ae` gives. Put `inf-pytorch` behind it.

    Example: `preprocess`
    """

    name = "preprocess"
    takes = (WithModel,)
    gives = Encoded

    def __call__(self, batches: Iterator[WithModel]) -> Iterator[Encoded]:
        """Encode each batch once; a user without a fingerprint has no numbers."""
        for batch in batches:
            known = batch.fingerprint
            encoded = None if known is None else known.encoder.encode(batch.frame, batch.dict_codes)
            yield batch.evolve(Encoded, encoded=encoded, dict_codes=None)
