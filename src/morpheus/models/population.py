"""Everybody: a sample of all users' histories, which says what is common and who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_CODE, MISSING, UNKNOWN
from morpheus.models.ownership import ValueUsage

SMOOTHING = 0.1
"""Share of the population's guess that is spread over all values alike, also those never seen."""
_UNKNOWN_OWNER = -2
"""Number of a user of whom nothing is in the sample."""
_EMPTY_USAGE = ValueUsage.from_values(pl.Series([None]), np.zeros(1, dtype=np.intp))
"""A column that the sample does not have."""


@dataclass(frozen=True)
class Population:
    """A sample of all users' histories.

    Attributes:
        users: Whose each event is, (S,).
        times: When it was, (S,).
        events: Feature columns, (S, columns), user after user, each in time order.
    """

    users: pl.Series
    times: pl.Series
    events: pl.DataFrame

    @classmethod
    def from_single_user(cls, user: str, events: pl.DataFrame, times: pl.Series) -> Population:
        """A population of one user, who is then compared with nobody else."""
        return cls(pl.repeat(user, events.height, eager=True), times, events)

    def prior(self, name: str, vocabulary: Sequence[str] | None) -> NDArray[np.float64]:
        """Probability that the population gives each code of a column, (codes,).

        Each user weighs alike. A little is kept for values that nobody had; an unseen value gets
        that of one of them.

        Args:
            name: The column.
            vocabulary: Its words, in the order of their codes; None for a column of numbers.
        """
        owned = self.value_usage.get(name, _EMPTY_USAGE)
        found = np.zeros(FIRST_CODE + (1 if vocabulary is None else len(vocabulary)))
        found[MISSING] = owned.mean_share_of(None)
        if vocabulary is None:
            found[FIRST_CODE] = 1 - found[MISSING]
        else:
            found[FIRST_CODE:] = list(map(owned.mean_share_of, vocabulary))
        return np.asarray((1 - SMOOTHING) * found + SMOOTHING / (len(owned.codes) + 1))

    def seen_by_others(self, name: str, vocabulary: Sequence[str] | None, user: str) -> NDArray[np.float64]:
        """Whether others than a user have each code of a column too, 0 or 1, (codes,).

        Of a value that the user never had nobody can say; it gets the share of events, with the
        mean user, whose value somebody else has too.

        Args:
            name: The column.
            vocabulary: Its words, in the order of their codes; None for a column of numbers.
            user: Who is not one of the others.
        """
        owned, owner = self.value_usage.get(name), self._number_by_user.get(user, _UNKNOWN_OWNER)
        found = np.zeros(FIRST_CODE + (1 if vocabulary is None else len(vocabulary)))
        if owned is None:
            return found
        found[UNKNOWN] = owned.shared_rate
        found[MISSING] = owned.used_by_others(None, owner)
        known = vocabulary if vocabulary is not None else [word for word in owned.codes if word]
        there = [owned.used_by_others(word, owner) for word in known]
        found[FIRST_CODE:] = any(there) if vocabulary is None else there
        return found

    @cached_property
    def value_usage(self) -> Mapping[str, ValueUsage]:
        """Who has which values, by column."""
        return {column.name: ValueUsage.from_values(column, self.owner_numbers) for column in self.events}

    @cached_property
    def owner_numbers(self) -> NDArray[np.intp]:
        """Number of the owner of each event, (S,)."""
        numbers = self._number_by_user
        return np.fromiter(map(numbers.__getitem__, self.users.to_list()), np.intp, len(self.users))

    @cached_property
    def _number_by_user(self) -> Mapping[str, int]:
        return {user: number for number, user in enumerate(dict.fromkeys(self.users.to_list()))}
