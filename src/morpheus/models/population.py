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
    def of_one(cls, user: str, events: pl.DataFrame, times: pl.Series) -> Population:
        """A population of one user, who is then compared with nobody else."""
        return cls(pl.repeat(user, events.height, eager=True), times, events)

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

    def shared(self, name: str, words: Sequence[str] | None, user: str) -> NDArray[np.float64]:
        """Whether others than a user have each code of a column too, 0 or 1, (codes,).

        Of a value that the user never had nobody can say; it gets the share of events, with the
        mean user, whose value somebody else has too.

        Args:
            name: The column.
            words: Its words, in the order of their codes; None for a column of numbers.
            user: Who is not one of the others.
        """
        owners, overlap = self._owners.get(name, ({}, 0.0))
        found = np.zeros(FIRST_WORD + (1 if words is None else len(words)))
        found[UNSEEN] = overlap
        found[MISSING] = owners.get(None, user) != user
        if words is None:
            found[FIRST_WORD] = any(owner != user for value, owner in owners.items() if value)
        else:
            found[FIRST_WORD:] = [owners.get(word, user) != user for word in words]
        return found

    @cached_property
    def _owners(self) -> Mapping[str, tuple[Mapping[str | None, str | None], float]]:
        """Of each column: who has each value, None if several do; and how often several do."""
        return {column.name: _owners(column, self.owner) for column in self.events}

    @cached_property
    def _known(self) -> Mapping[str, Mapping[str | None, float]]:
        """Value -> its share with the mean user, for each column."""
        rows = pl.DataFrame({"owner": self.owner}).select(1 / pl.len().over("owner")).to_series()
        weights = rows / self.users
        return {column.name: _shares(column, weights) for column in self.events}


def _shares(column: pl.Series, weights: pl.Series) -> dict[str | None, float]:
    values = column.cast(pl.String).rename("value").to_frame()
    known = values.unique(maintain_order=True).with_row_index("code")
    coded = values.join(known, on="value", how="left", nulls_equal=True, maintain_order="left")
    # One after the other: in groups of polars the sum would depend on the number of threads.
    summed = np.bincount(coded["code"].to_numpy(), weights.to_numpy(), known.height)
    return dict(zip(known["value"], summed.tolist(), strict=True))


def _owners(column: pl.Series, owner: pl.Series) -> tuple[Mapping[str | None, str | None], float]:
    rows = pl.DataFrame({"value": column.cast(pl.String), "owner": owner})
    several = pl.col("owner").n_unique() > 1
    only = pl.when(several).then(None).otherwise(pl.col("owner").first())
    owners = rows.group_by("value", maintain_order=True).agg(only.alias("owner"))
    apart = (
        rows.select("owner", shared=several.over("value"))
        .group_by("owner", maintain_order=True)
        .mean()
    )
    return dict(owners.iter_rows()), float(np.mean(apart["shared"].to_numpy()))
