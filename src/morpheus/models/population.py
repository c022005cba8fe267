"""Who has which values of a column, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.encoder import FIRST_CODE, MISSING, UNKNOWN

MULTIPLE_OWNERS = -1
"""Stands for the owner of a value that more than one has."""


@dataclass(frozen=True)
class ValueUsage:
    """How often each owner of a sample has each value of a column.

    Sizes: O owners, V values, P pairs of an owner and a value that the owner has.

    Attributes:
        codes: Number of each value.
        owner: Owner of each pair, (P,).
        value: Its value, (P,).
        share: Share of the owner's events that have it, (P,).
        n_owners: O.

    >>> owned = ValueUsage.of(pl.Series(["a", "a", "b", "b"]), np.array([0, 0, 0, 1]))
    >>> owned.codes, owned.mean.round(2).tolist(), owned.only.tolist()
    ({'a': 0, 'b': 1}, [0.33, 0.67], [0, -1])
    """

    codes: Mapping[str | None, int]
    owner: NDArray[np.intp]
    value: NDArray[np.intp]
    share: NDArray[np.float64]
    n_owners: int

    @classmethod
    def from_values(cls, values: pl.Series, owners: NDArray[np.intp]) -> ValueUsage:
        """Count the values, (S,), of each owner, by number, (S,)."""
        text = values.cast(pl.String).to_list()
        codes = {word: code for code, word in enumerate(dict.fromkeys(text))}
        coded = np.fromiter(map(codes.__getitem__, text), np.intp, len(text))
        pairs, counts = np.unique(owners * len(codes) + coded, return_counts=True)
        owner, value = np.divmod(pairs, max(len(codes), 1))
        events = np.bincount(owners)
        return cls(codes, owner, value, counts / events[owner], len(events))

    @cached_property
    def mean_share(self) -> NDArray[np.float64]:
        """Share of each value with the mean owner, (V,)."""
        return np.asarray(np.bincount(self.value, self.share, len(self.codes)) / self.n_owners)

    def mean_share_of(self, value: str | None) -> float:
        """Share of a value with the mean owner; 0 if nobody has it."""
        code = self.codes.get(value)
        return 0.0 if code is None else float(self.mean_share[code])

    @cached_property
    def exclusive_owner(self) -> NDArray[np.intp]:
        """The owner who alone has each value, or `MULTIPLE_OWNERS`, (V,)."""
        found = np.zeros(len(self.codes), dtype=np.intp)
        found[self.value] = self.owner
        found[np.bincount(self.value, minlength=len(found)) > 1] = MULTIPLE_OWNERS
        return found

    @cached_property
    def shared_rate(self) -> float:
        """Share of events, with the mean owner, whose value somebody else has too."""
        shared = self.share * (self.exclusive_owner[self.value] == MULTIPLE_OWNERS)
        return float(np.bincount(self.owner, shared, self.n_owners).mean())

    def used_by_others(self, value: str | None, owner: int) -> bool:
        """Whether anybody but an owner has a value."""
        code = self.codes.get(value)
        return code is not None and self.exclusive_owner[code] != owner

    def similarity(self, own: pl.Series) -> NDArray[np.float64]:
        """Share of a user's values, (events,), that the mean event of each owner has, (O,)."""
        shares = np.zeros(len(self.codes))
        for word, count in Counter(own.cast(pl.String).to_list()).items():
            if word in self.codes:
                shares[self.codes[word]] = count / len(own)
        found = np.bincount(self.owner, self.share * shares[self.value], self.n_owners)
        return np.asarray(found, dtype=np.float64)


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

    def seen_by_others(
        self, name: str, vocabulary: Sequence[str] | None, user: str
    ) -> NDArray[np.float64]:
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
        return {
            column.name: ValueUsage.from_values(column, self.owner_numbers)
            for column in self.events
        }

    @cached_property
    def owner_numbers(self) -> NDArray[np.intp]:
        """Number of the owner of each event, (S,)."""
        numbers = self._number_by_user
        return np.fromiter(map(numbers.__getitem__, self.users.to_list()), np.intp, len(self.users))

    @cached_property
    def _number_by_user(self) -> Mapping[str, int]:
        return {user: number for number, user in enumerate(dict.fromkeys(self.users.to_list()))}
