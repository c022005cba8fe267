"""What a page looks at in every event: when it was, how high it scored, whether it is off beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import TS_ANOMALY, RISK, SCORE, TIME
from morpheus.rhythm.cells import TimeHistogram

RANKINGS = (RISK, "zscore", SCORE)
"""Scores that a page can go by, the best first."""


def ranking_of(columns: Sequence[str]) -> str | None:
    """The best of the scores that there are."""
    return next((name for name in RANKINGS if name in columns), None)


@dataclass(frozen=True)
class Look:
    """Some events, looked at, (rows,) each.

    Attributes:
        seconds: When, since 1970.
        scores: The best score that there is, NaN without one.
        flagged: Whether each breaks its user's rhythm.
        risks: The same scores if they are `risk`, else NaN.
    """

    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    risks: NDArray[np.float64]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """Look at events with `TIME` and what stages have added."""
        ranking, nothing = ranking_of(frame.columns), np.full(frame.height, np.nan)
        scores = nothing if ranking is None else _numbers(frame[ranking])
        seconds = frame[TIME].dt.epoch("us").to_numpy() / 1e6
        return cls(seconds, scores, _flags(frame), scores if ranking == RISK else nothing)

    @property
    def cells(self) -> TimeHistogram:
        """The events, cell by cell."""
        return TimeHistogram.from_events(self.seconds, self.scores, self.flagged)


def _numbers(column: pl.Series) -> NDArray[np.float64]:
    return column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _flags(frame: pl.DataFrame) -> NDArray[np.bool_]:
    if TS_ANOMALY not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    column = frame[TS_ANOMALY]
    if column.dtype != pl.Boolean:
        column = column.cast(pl.String).str.to_lowercase() == "true"
    return column.fill_null(value=False).to_numpy()
