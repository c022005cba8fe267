"""`preprocess`: encode events as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from morpheus.core.batch import Encoded, WithModel
from morpheus.core.stage import Requirements, Transform


@dataclass(frozen=True)
class Preprocess(Transform):
    """Encode each event as numbers, with the encoder of its user's fingerprint.

    Takes the output of `train-ae`. Put `inf-pytorch` after it.

    Example: `preprocess`
    """

    name = "preprocess"
    takes = (WithModel,)
    gives = Encoded
    needs = Requirements(model=True)

    def process(self, batch: WithModel, state: None) -> Iterator[Encoded]:  # noqa: ARG002 - no state
        """Encode a batch, if its user has a fingerprint."""
        fingerprint = batch.fingerprint
        encoded = None
        if fingerprint is not None:
            encoded = fingerprint.encoder.encode(batch.frame, batch.dict_codes)
        yield batch.evolve(Encoded, encoded=encoded, dict_codes=None)
