"""inf-pytorch: the losses of encoded events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.core.batch import Encoded, Losses
from morpheus.core.stage import Transform


@dataclass(frozen=True)
class InfPytorch(Transform):
    """Guess each event back with its user's network, and see how far off the guess is.

    Takes what `preprocess` gives. Put `add-scores` behind it.

    Example: `inf-pytorch`
    """

    name = "inf-pytorch"
    takes = (Encoded,)
    gives = Losses

    def __call__(self, batches: Iterator[Encoded]) -> Iterator[Losses]:
        """Pass each distinct row through the network once."""
        for batch in batches:
            yield batch.evolve(Losses, losses=_compute_losses(batch))


def _compute_losses(batch: Encoded) -> NDArray[np.float32]:
    if batch.fingerprint is None or batch.encoded is None:
        return np.full((batch.frame.height, 1), np.nan, dtype=np.float32)
    return batch.fingerprint.losses(batch.encoded)[batch.encoded.inverse]
