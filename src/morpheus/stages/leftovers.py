"""What the events were like that `filter` leaves out, for a sink that shows everybody's days."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.models.portrait import tally
from morpheus.records import Batch, Picture
from morpheus.report.look import Look


def picture(batch: Batch, left_out: NDArray[np.bool_]) -> Picture:
    """Add some of a batch's events to what is known of those left out before.

    Args:
        batch: Events, those to be left out among them.
        left_out: Which these are, (rows,).
    """
    look = Look.of(batch.frame.filter(pl.Series(left_out)))
    portrait = None if batch.card is None else batch.card.portrait
    seen = Picture(look.cells, tally(portrait, look.risks))
    return seen if batch.picture is None else batch.picture.joined(seen)
