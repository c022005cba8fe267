"""Counting, the rival to beat: how rare each value is among the user's own, smoothed.

Two scores. `sum`: minus the logarithms of the values' probabilities, added up. `z`: of each column
its distance above what is usual on later events, in their spreads, the largest: the history's first
two thirds are counted, and its last third says what is usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quality.trial import Case, Trial

COUNTED = 2 / 3
PRIOR = 0.5
"""Events that each value, and all that were never seen together, are counted beforehand."""
FLOOR = 0.05
"""Least spread that a distance is measured in."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """How often each value of each column was there; null is a value."""

    columns: Sequence[pl.DataFrame]
    rows: int

    @classmethod
    def of(cls, events: pl.DataFrame) -> Counts:
        """Count."""
        return cls([events.group_by(name).len() for name in events.columns], events.height)

    def losses(self, events: pl.DataFrame) -> Floats:
        """Minus the logarithm of each value's probability, shape (rows, columns)."""
        return np.stack(list(self._losses(events)), axis=1)

    def _losses(self, events: pl.DataFrame) -> Iterator[Floats]:
        for counts in self.columns:
            name = counts.columns[0]
            value = events.select(name)
            found = value.join(counts, on=name, how="left", nulls_equal=True, maintain_order="left")
            times = found["len"].fill_null(0).to_numpy().astype(np.float64)
            yield -np.log((times + PRIOR) / (self.rows + PRIOR * (counts.height + 1)))


def summed(case: Case, columns: Sequence[str]) -> Floats:
    """The sum over columns."""
    history = case.history.select(columns)
    return np.asarray(Counts.of(history).losses(case.scored.select(columns)).sum(axis=1))


def largest(case: Case, columns: Sequence[str]) -> Floats:
    """The largest held-out distance of a column."""
    history = case.history.select(columns)
    cut = int(history.height * COUNTED)
    usual = Counts.of(history[:cut]).losses(history[cut:])
    losses = Counts.of(history).losses(case.scored.select(columns))
    z = (losses - usual.mean(axis=0)) / np.maximum(usual.std(axis=0), FLOOR)
    return np.asarray(z.max(axis=1))


def scores(trial: Trial, seed: int, *, of: Callable[[Case, Sequence[str]], Floats]) -> Floats:
    """One of the two, of each row of `trial.scored`; nothing is random."""
    del seed
    return np.concatenate([of(case, trial.columns) for case in trial.cases])
