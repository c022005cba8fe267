"""What the events were like that `filter` leaves out, for a sink that shows everybody's days."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.models.portrait import count_exceedances
from morpheus.records import Batch, DroppedStats
from morpheus.report.look import Look


def summarise_dropped(batch: Batch, dropped: NDArray[np.bool_]) -> DroppedStats:
    """Add some of a batch's events to what is known of those left out before.

    Args:
        batch: Events, those to be left out among them.
        dropped: Which these are, (rows,).
    """
    look = Look.of(batch.frame.filter(pl.Series(dropped)))
    portrait = None if batch.card is None else batch.card.portrait
    seen = DroppedStats(look.cells, count_exceedances(portrait, look.risks))
    return seen if batch.dropped_stats is None else batch.dropped_stats.merge(seen)
