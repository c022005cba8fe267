"""The population: a sample of all users' histories, with which each user is compared.

`ValueUsage` counts who uses which values of a column. `Population` gives probabilities of codes
from it.
"""

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
"""Owner of a value that several users have."""
SMOOTHING = 0.1
"""Share of the probability that is spread equally over all values, also values never seen."""
_UNKNOWN_OWNER = -2
"""Number of a user without events in the sample."""


@dataclass(frozen=True)
class ValueUsage:
    """How often each user of a sample has each value of a column.

    Sizes: O users, V values, P pairs of a user and a value that the user has.

    Attributes:
        codes: Number of each value.
        owner: User of each pair, (P,).
        value: Value of each pair, (P,).
        share: Share of the user's events with the value, (P,).
        n_owners: O.

    >>> usage = ValueUsage.from_values(pl.Series(["a", "a", "b", "b"]), np.array([0, 0, 0, 1]))
    >>> usage.codes, usage.mean_share.round(2).tolist(), usage.exclusive_owner.tolist()
    ({'a': 0, 'b': 1}, [0.33, 0.67], [0, -1])
    """

    codes: Mapping[str | None, int]
    owner: NDArray[np.intp]
    value: NDArray[np.intp]
    share: NDArray[np.float64]
    n_owners: int

    @classmethod
    def from_values(cls, values: pl.Series, owners: NDArray[np.intp]) -> ValueUsage:
        """Count values.

        Args:
            values: Value of each event, (S,).
            owners: Number of the user of each event, (S,).
        """
        text = values.cast(pl.String).to_list()
        codes = {known: code for code, known in enumerate(dict.fromkeys(text))}
        coded = np.fromiter(map(codes.__getitem__, text), np.intp, len(text))
        pairs, counts = np.unique(owners * len(codes) + coded, return_counts=True)
        owner, value = np.divmod(pairs, max(len(codes), 1))
        events = np.bincount(owners)
        return cls(codes, owner, value, counts / events[owner], len(events))

    @cached_property
    def mean_share(self) -> NDArray[np.float64]:
        """Mean over users of each value's share, (V,)."""
        return np.asarray(np.bincount(self.value, self.share, len(self.codes)) / self.n_owners)

    def mean_share_of(self, value: str | None) -> float:
        """Mean over users of a value's share; 0 for a value that nobody has."""
        code = self.codes.get(value)
        return 0.0 if code is None else float(self.mean_share[code])

    @cached_property
    def exclusive_owner(self) -> NDArray[np.intp]:
        """The only user of each value, or `MULTIPLE_OWNERS`, (V,)."""
        owners = np.zeros(len(self.codes), dtype=np.intp)
        owners[self.value] = self.owner
        owners[np.bincount(self.value, minlength=len(owners)) > 1] = MULTIPLE_OWNERS
        return owners

    @cached_property
    def shared_rate(self) -> float:
        """Mean over users of the share of events with a value that another user has too."""
        shared = self.share * (self.exclusive_owner[self.value] == MULTIPLE_OWNERS)
        return float(np.bincount(self.owner, shared, self.n_owners).mean())

    def used_by_others(self, value: str | None, owner: int) -> bool:
        """Return whether any user except `owner` has a value."""
        code = self.codes.get(value)
        return code is not None and self.exclusive_owner[code] != owner

    def similarity(self, own: pl.Series) -> NDArray[np.float64]:
        """Compare a user with each user of the sample.

        Args:
            own: Values of the user's events, (events,).

        Returns:
            Overlap of the shares of values, (O,).
        """
        shares = np.zeros(len(self.codes))
        for value, count in Counter(own.cast(pl.String).to_list()).items():
            if value in self.codes:
                shares[self.codes[value]] = count / len(own)
        overlap = np.bincount(self.owner, self.share * shares[self.value], self.n_owners)
        return np.asarray(overlap, dtype=np.float64)


_EMPTY_USAGE = ValueUsage.from_values(pl.Series([None]), np.zeros(1, dtype=np.intp))
"""Usage of a column that the sample does not have."""


@dataclass(frozen=True)
class Population:
    """A sample of all users' histories.

    Attributes:
        users: User of each event, (S,).
        times: Time of each event, (S,).
        events: Feature columns, (S, columns), user after user, each in time order.
    """

    users: pl.Series
    times: pl.Series
    events: pl.DataFrame

    @classmethod
    def from_single_user(cls, user: str, events: pl.DataFrame, times: pl.Series) -> Population:
        """Return a population of one user, who is then compared with nobody else."""
        return cls(pl.repeat(user, events.height, eager=True), times, events)

    def prior(self, name: str, vocabulary: Sequence[str] | None) -> NDArray[np.float64]:
        """Return the probability of each code of a column in the population, (codes,).

        All users have the same weight. A part of the probability is kept for values that nobody
        had; UNKNOWN gets the probability of one such value.

        Args:
            name: The column.
            vocabulary: Its values in the order of their codes; None for a number column.
        """
        usage = self.value_usage.get(name, _EMPTY_USAGE)
        shares = np.zeros(FIRST_CODE + (1 if vocabulary is None else len(vocabulary)))
        shares[MISSING] = usage.mean_share_of(None)
        if vocabulary is None:
            shares[FIRST_CODE] = 1 - shares[MISSING]
        else:
            shares[FIRST_CODE:] = list(map(usage.mean_share_of, vocabulary))
        return np.asarray((1 - SMOOTHING) * shares + SMOOTHING / (len(usage.codes) + 1))

    def seen_by_others(
        self, name: str, vocabulary: Sequence[str] | None, user: str
    ) -> NDArray[np.float64]:
        """Return whether other users have each code of a column too, 0 or 1, (codes,).

        For UNKNOWN this is a probability: the mean share of events with a value that another user
        has too.

        Args:
            name: The column.
            vocabulary: Its values in the order of their codes; None for a number column.
            user: The user; all others are other users.
        """
        usage, owner = self.value_usage.get(name), self._number_by_user.get(user, _UNKNOWN_OWNER)
        seen = np.zeros(FIRST_CODE + (1 if vocabulary is None else len(vocabulary)))
        if usage is None:
            return seen
        seen[UNKNOWN] = usage.shared_rate
        seen[MISSING] = usage.used_by_others(None, owner)
        values = vocabulary if vocabulary is not None else [value for value in usage.codes if value]
        used = [usage.used_by_others(value, owner) for value in values]
        seen[FIRST_CODE:] = any(used) if vocabulary is None else used
        return seen

    @cached_property
    def value_usage(self) -> Mapping[str, ValueUsage]:
        """Usage of values, by column."""
        return {
            column.name: ValueUsage.from_values(column, self.owner_numbers)
            for column in self.events
        }

    @cached_property
    def owner_numbers(self) -> NDArray[np.intp]:
        """Number of the user of each event, (S,)."""
        numbers = self._number_by_user
        return np.fromiter(map(numbers.__getitem__, self.users.to_list()), np.intp, len(self.users))

    @cached_property
    def _number_by_user(self) -> Mapping[str, int]:
        return {user: number for number, user in enumerate(dict.fromkeys(self.users.to_list()))}
