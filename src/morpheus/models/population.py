"""Everybody: a sample of all users' histories, which says what is common and who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_WORD, MISSING, UNSEEN
from morpheus.models.ownership import Ownership

ANYTHING = 0.1
"""Share of the population's guess that is spread over all values alike, also those never seen."""
_NOBODY = -2
"""Number of a user of whom nothing is in the sample."""
_NOTHING = Ownership.of(pl.Series([None]), np.zeros(1, dtype=np.intp))
"""A column that the sample does not have."""


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

    def shares(self, name: str, words: Sequence[str] | None) -> NDArray[np.float64]:
        """Probability that the population gives each code of a column, (codes,).

        Each user weighs alike. A little is kept for values that nobody had; an unseen value gets
        that of one of them.

        Args:
            name: The column.
            words: Its words, in the order of their codes; None for a column of numbers.
        """
        owned = self.ownership.get(name, _NOTHING)
        found = np.zeros(FIRST_WORD + (1 if words is None else len(words)))
        found[MISSING] = owned.common(None)
        if words is None:
            found[FIRST_WORD] = 1 - found[MISSING]
        else:
            found[FIRST_WORD:] = list(map(owned.common, words))
        return np.asarray((1 - ANYTHING) * found + ANYTHING / (len(owned.codes) + 1))

    def shared(self, name: str, words: Sequence[str] | None, user: str) -> NDArray[np.float64]:
        """Whether others than a user have each code of a column too, 0 or 1, (codes,).

        Of a value that the user never had nobody can say; it gets the share of events, with the
        mean user, whose value somebody else has too.

        Args:
            name: The column.
            words: Its words, in the order of their codes; None for a column of numbers.
            user: Who is not one of the others.
        """
        owned, owner = self.ownership.get(name), self._numbers.get(user, _NOBODY)
        found = np.zeros(FIRST_WORD + (1 if words is None else len(words)))
        if owned is None:
            return found
        found[UNSEEN] = owned.overlap
        found[MISSING] = owned.others(None, owner)
        known = words if words is not None else [word for word in owned.codes if word]
        there = [owned.others(word, owner) for word in known]
        found[FIRST_WORD:] = any(there) if words is None else there
        return found

    @cached_property
    def ownership(self) -> Mapping[str, Ownership]:
        """Who has which values, by column."""
        return {column.name: Ownership.of(column, self.owners) for column in self.events}

    @cached_property
    def owners(self) -> NDArray[np.intp]:
        """Number of the owner of each event, (S,)."""
        numbers = self._numbers
        return np.fromiter(map(numbers.__getitem__, self.owner.to_list()), np.intp, len(self.owner))

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {user: number for number, user in enumerate(dict.fromkeys(self.owner.to_list()))}
