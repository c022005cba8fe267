"""Value frequencies as a baseline: how rare each value is for the user, with smoothing.

There are two scores. `sum` is the sum of the negative log probabilities of the values. `z` is the
maximum z-score over columns: the first two thirds of the history are counted, and the last third
gives the mean and the standard deviation.
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
"""Pseudo-count of each value, and of all unseen values together."""
FLOOR = 0.05
"""Minimum standard deviation of a z-score."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Counts of each column's values; null is a value."""

    columns: Sequence[pl.DataFrame]
    rows: int

    @classmethod
    def of(cls, events: pl.DataFrame) -> Counts:
        """Count the values."""
        return cls([events.group_by(name).len() for name in events.columns], events.height)

    def losses(self, events: pl.DataFrame) -> Floats:
        """Return the negative log probability of each value, shape (rows, columns)."""
        return np.stack(list(self._losses(events)), axis=1)

    def _losses(self, events: pl.DataFrame) -> Iterator[Floats]:
        for counts in self.columns:
            name = counts.columns[0]
            value = events.select(name)
            found = value.join(counts, on=name, how="left", nulls_equal=True, maintain_order="left")
            times = found["len"].fill_null(0).to_numpy().astype(np.float64)
            yield -np.log((times + PRIOR) / (self.rows + PRIOR * (counts.height + 1)))


def summed(case: Case, columns: Sequence[str]) -> Floats:
    """Return the sum over columns."""
    history = case.history.select(columns)
    return np.asarray(Counts.of(history).losses(case.scored.select(columns)).sum(axis=1))


def largest(case: Case, columns: Sequence[str]) -> Floats:
    """Return the maximum z-score over columns, from validation events."""
    history = case.history.select(columns)
    cut = int(history.height * COUNTED)
    usual = Counts.of(history[:cut]).losses(history[cut:])
    losses = Counts.of(history).losses(case.scored.select(columns))
    z = (losses - usual.mean(axis=0)) / np.maximum(usual.std(axis=0), FLOOR)
    return np.asarray(z.max(axis=1))


def scores(trial: Trial, seed: int, *, of: Callable[[Case, Sequence[str]], Floats]) -> Floats:
    """Return one of the two scores per row of `trial.scored`. It is deterministic."""
    del seed
    return np.concatenate([of(case, trial.columns) for case in trial.taught])
