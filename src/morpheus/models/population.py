"""Everybody: a sample of all users' histories, which says what is common and who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_WORD, MISSING, UNSEEN

ANYTHING = 0.1
"""Share of the population's guess that is spread over all values alike, also those never seen."""


@dataclass(frozen=True)
class Population:
    """A sample of all users' histories.

    Attributes:
        owner: Whose each event is, (S,).
        times: When it was, (S,).
        events: Feature columns, (S, columns), user after user, each in time order.
    """

    owner: pl.Series
    times: pl.Series
    events: pl.DataFrame

    @classmethod
    def of_one(cls, events: pl.DataFrame, times: pl.Series) -> Population:
        """A population of one user, who is then compared with nobody else."""
        return cls(pl.repeat("", events.height, eager=True), times, events)

    @property
    def users(self) -> int:
        """How many users the sample is of."""
        return self.owner.n_unique()

    def shares(self, name: str, words: Sequence[str] | None) -> NDArray[np.float64]:
        """Probability that the population gives each code of a column, (codes,).

        Each user weighs alike. A little is kept for values that nobody had; an unseen value gets
        that of one of them.

        Args:
            name: The column.
            words: Its words, in the order of their codes; None for a column of numbers.
        """
        known = self._known.get(name, {None: 1.0})
        anything = 1 / (len(known) + 1)
        found = np.zeros(FIRST_WORD + (1 if words is None else len(words)))
        found[MISSING] = known.get(None, 0.0)
        if words is None:
            found[FIRST_WORD] = 1 - found[MISSING]
        else:
            found[FIRST_WORD:] = [known.get(word, 0.0) for word in words]
        found[UNSEEN] = 0
        return np.asarray((1 - ANYTHING) * found + ANYTHING * anything)

    @cached_property
    def _known(self) -> Mapping[str, Mapping[str | None, float]]:
        """Value -> its share with the mean user, for each column."""
        rows = pl.DataFrame({"owner": self.owner}).select(1 / pl.len().over("owner")).to_series()
        weights = rows / self.users
        return {column.name: _shares(column, weights) for column in self.events}


def _shares(column: pl.Series, weights: pl.Series) -> dict[str | None, float]:
    frame = pl.DataFrame({"value": column.cast(pl.String), "weight": weights})
    summed = frame.group_by("value", maintain_order=True).agg(pl.col("weight").sum())
    return dict(summed.iter_rows())
