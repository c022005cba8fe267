"""The later days held out, where there is only one set of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Events
from morpheus.stage import Transform

HELD_OUT = 0.25
"""Share of the days that have events, the last ones, that are held out; at least one day."""


@dataclass(frozen=True)
class HoldOut(Transform):
    """Keep the last days as events, and the days before as history.

    Takes events whose history is the same files' again.
    """

    name = "hold-out"
    takes = (Events,)
    gives = Events

    cut: datetime | None = None

    def needs_population(self) -> bool:
        """When the last days begin is seen on everybody's."""
        return True

    def with_population(self, population: pl.DataFrame | None) -> HoldOut:
        """Choose the days to hold out."""
        if population is None or population.is_empty():
            return self
        return replace(self, cut=cut_of(population[TIME]))

    def __call__(self, batches: Iterator[Events]) -> Iterator[Events]:
        """Divide what each batch brings; a user's first one brings the history."""
        for batch in batches if self.cut else ():
            history = batch.history
            past = None if history is None else history.filter(pl.col(TIME) < self.cut)
            events = batch.frame.filter(pl.col(TIME) >= self.cut)
            yield replace(batch, frame=events, history=past)


def cut_of(times: pl.Series) -> datetime:
    """When the held-out days begin.

    >>> from morpheus.testing import events_at
    >>> str(cut_of(events_at([day * 86400 + 3600 for day in range(8)])["event_dt"]))
    '2021-10-15 00:00:00+00:00'
    """
    days = times.dt.truncate("1d").unique().sort()
    first: datetime = days[-max(1, int(len(days) * HELD_OUT))]
    return first


def before(everybody: pl.DataFrame) -> pl.DataFrame:
    """Those of everybody's events that are not held out."""
    return everybody.filter(pl.col(TIME) < cut_of(everybody[TIME]))
