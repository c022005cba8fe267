"""The events that a page may have to show in full: as few as it has room for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from morpheus.columns import ExplanationColumns
from morpheus.report.look import Look

USER, SECONDS, LEVEL, FLAGGED, PLACE = "_user_", "_seconds_", "_level_", "_flagged_", "_place_"
OWN = (USER, SECONDS, LEVEL, FLAGGED, PLACE)
LONGEST = 4096
"""Signs of a value that are kept."""


@dataclass
class Candidates:
    """The highest events of a run, in bounded memory; the order in which they come does not matter.

    Attributes:
        most: Events kept.
        left_out: Events that were to be shown, and for which there was no room.
    """

    most: int = 5000
    left_out: int = 0
    _held: list[pl.DataFrame] = field(default_factory=list)
    _height: int = 0
    _floor: float = -1.0

    def add(
        self,
        user: str | None,
        frame: pl.DataFrame,
        look: Look,
        levels: NDArray[np.float64],
        meant: NDArray[np.bool_],
    ) -> None:
        """Take note of those events of a user that are meant and have a level, (rows,) each."""
        known = np.isfinite(levels) & meant
        high = known & (levels > self._floor)
        self.left_out += int((known & ~high).sum())
        if not high.any():
            return
        rows = np.flatnonzero(high)
        self._held.append(
            shortened(frame[rows]).with_columns(
                pl.lit(user, pl.String).alias(USER),
                pl.Series(SECONDS, look.seconds[rows]),
                pl.Series(LEVEL, levels[rows]),
                pl.Series(FLAGGED, look.flagged[rows]),
                pl.Series(PLACE, rows, dtype=pl.Int64),
            )
        )
        self._height += len(rows)
        if self._height > 2 * self.most:
            self._prune()

    def events(self) -> pl.DataFrame:
        """The highest events, by user and time."""
        if not self._held:
            return pl.DataFrame(schema={USER: pl.String, SECONDS: pl.Float64, LEVEL: pl.Float64})
        self._prune()
        return ordered(self._held[0])

    def _prune(self) -> None:
        every = pl.concat(self._held, how="diagonal_relaxed")
        kept = every.sort(LEVEL, SECONDS, USER, descending=[True, False, False]).head(self.most)
        if every.height > self.most:
            self.left_out += every.height - self.most
            self._floor = float(kept[LEVEL][-1])
        self._held, self._height = [kept], kept.height


def ordered(events: pl.DataFrame) -> pl.DataFrame:
    """By user and time; of one moment, as they came."""
    return events.sort(USER, SECONDS, PLACE, nulls_last=True, maintain_order=True)


def shortened(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut long values, but not what `explain` says, and say so behind them.

    >>> shortened(pl.DataFrame({"agent": ["x" * 5000]}))["agent"][0][-35:]
    'xxxxxxxx… (cut, 5,000 signs in all)'
    """
    words = ExplanationColumns.find_in(frame.columns) or ()
    texts = [name for name in frame.select(cs.string()).columns if name not in words]
    long = [name for name in texts if (frame[name].str.len_chars() > LONGEST).any()]
    return frame.with_columns(
        pl.col(name).map_elements(_shortened, return_dtype=pl.String) for name in long
    )


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… (cut, {len(text):,} signs in all)"
