"""`preprocess` and `inf-pytorch`: encode events, and compute their reconstruction losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.core.batch import Encoded, Losses, WithModel
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
            encoded = fingerprint.encoder.encode(batch.table.to_frame(), batch.dict_codes)
        yield batch.evolve(Encoded, encoded=encoded, dict_codes=None)


@dataclass(frozen=True)
class InfPytorch(Transform):
    """Reconstruct each event with its user's autoencoder and measure the loss of each column.

    Takes the output of `preprocess`. Put `add-scores` after it.

    Example: `inf-pytorch`
    """

    name = "inf-pytorch"
    takes = (Encoded,)
    gives = Losses
    needs = Requirements(model=True)

    def process(self, batch: Encoded, state: None) -> Iterator[Losses]:  # noqa: ARG002 - no state
        """Compute the losses of a batch. Each distinct row passes through the network once."""
        yield batch.evolve(Losses, losses=_compute_losses(batch))


def _compute_losses(batch: Encoded) -> NDArray[np.float32]:
    """Return the losses, shape (rows, columns); one column of NaN without a fingerprint."""
    if batch.fingerprint is None or batch.encoded is None:
        return np.full((batch.table.height, 1), np.nan, dtype=np.float32)
    return batch.fingerprint.losses(batch.encoded)[batch.encoded.inverse]
