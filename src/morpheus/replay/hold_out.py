"""The later days of each user held out, where there is only one set of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events
from morpheus.stage import Stage

HELD_OUT = 0.25
"""Share of a user's active days, the last ones, that are held out; at least one day."""


@dataclass(frozen=True)
class HoldOut(Stage):
    """Keep a user's last days as events, and the days before as history.

    Takes events whose history is the same files' again.
    """

    name = "hold-out"
    takes = (Events,)
    gives = Events

    def __call__(self, batches: Iterator[Events]) -> Iterator[Events]:
        """Divide what each batch brings; a user's first one brings the history."""
        cut: datetime | None = None
        for batch in batches:
            history = batch.history
            if history is not None:
                cut = cut_of(history[TIME]) if history.height else None
                history = history.filter(pl.col(TIME) < cut) if cut else history
            events = batch.frame if cut is None else batch.frame.filter(pl.col(TIME) >= cut)
            yield replace(batch, frame=events, history=history)


def cut_of(times: pl.Series) -> datetime:
    """When the held-out days begin.

    >>> from morpheus.testing import events_at
    >>> str(cut_of(events_at([day * 86400 + 3600 for day in range(8)])["event_dt"]))
    '2021-10-15 00:00:00+00:00'
    """
    days = times.dt.truncate("1d").unique().sort()
    first: datetime = days[-max(1, int(len(days) * HELD_OUT))]
    return first
