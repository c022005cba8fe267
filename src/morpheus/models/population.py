"""The population: a sample of all users' histories, with which each user is compared.

`ValueUsage` counts who uses which values of a column. `Population` gives probabilities of codes
from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.features.encoder import FIRST_CODE, MISSING
from morpheus.models.scoring import (
    NOVELTY_DECAY,
    count_distinct,
    number_days,
    number_sessions,
)

SMOOTHING = 0.1
"""Share of the probability that is spread equally over all values, also values never seen."""
OWNERS_PER_GROUP = 8
"""Number of users of the sample for each peer group, in the mean."""
MAX_PEER_GROUPS = 32
_GROUPING_STEPS = 5
"""Steps of the search for peer groups (Lloyd, 1982); few users change their group later."""
_MIN_SQUARE = 1e-24
"""Square of the smallest length: users can share no value with any other."""
_UNKNOWN_OWNER = -2
"""Number of a user without events in the sample."""


class ValueUsage(msgspec.Struct, frozen=True, dict=True):
    """How often each user of a sample has each value of a column.

    Sizes: O users, V values, P pairs of a user and a value that the user has.

    Attributes:
        codes: Number of each value.
        owner: User of each pair, ascending, (P,).
        value: Value of each pair, (P,).
        share: Share of the user's events with the value, (P,).
        n_owners: O.
        novelty: Mean over users of the share of a day's events with a value that is new to the
            user.

    >>> days = np.array([0, 0, 1, 2])
    >>> values = pl.Series(["a", "a", "b", "b"])
    >>> usage = ValueUsage.from_values(values, np.array([0, 0, 0, 1]), days)
    >>> usage.codes, usage.mean_share.round(2).tolist(), usage.novelty
    ({'a': 0, 'b': 1}, [0.33, 0.67], 1.0)
    """

    codes: Mapping[str | None, int]
    owner: NDArray[np.intp]
    value: NDArray[np.intp]
    share: NDArray[np.float64]
    n_owners: int
    novelty: float

    @classmethod
    def from_values(
        cls, values: pl.Series, owners: NDArray[np.intp], sessions: NDArray[np.intp]
    ) -> ValueUsage:
        """Count values.

        Args:
            values: Value of each event, (S,).
            owners: Number of the user of each event, ascending, (S,).
            sessions: Number of the user's day of each event, ascending, (S,).
        """
        text = values.cast(pl.String).to_list()
        codes = {known: code for code, known in enumerate(dict.fromkeys(text))}
        coded = np.fromiter(map(codes.__getitem__, text), np.intp, len(text))
        days, kinds, events = (
            int(sessions.max(initial=0)) + 1,
            max(len(codes), 1),
            np.bincount(owners),
        )
        cells, counts = count_distinct(
            (owners * kinds + coded) * days + sessions, len(events) * kinds * days
        )
        pairs, session = np.divmod(cells, days)
        first = np.flatnonzero(np.diff(pairs, prepend=-1))
        owner, value = np.divmod(pairs[first], kinds)
        totals = np.add.reduceat(counts, first) if len(first) else counts
        novelty = _measure_novelty(owners, sessions, session[first], counts[first], len(events))
        return cls(codes, owner, value, totals / events[owner], len(events), novelty)

    @cached_property
    def mean_share(self) -> NDArray[np.float64]:
        """Mean over users of each value's share, (V,)."""
        return np.asarray(np.bincount(self.value, self.share, len(self.codes)) / self.n_owners)

    def mean_share_of_others(self, values: Sequence[str | None], owner: int) -> NDArray[np.float64]:
        """Return the mean share of values over all users except one, (values,).

        Args:
            values: The values.
            owner: Number of the user who is left out; any other number to count all users.

        >>> values, owners = pl.Series(["a", "a", "b", "b"]), np.array([0, 0, 0, 1])
        >>> usage = ValueUsage.from_values(values, owners, np.array([0, 0, 0, 1]))
        >>> usage.mean_share_of_others(["a", "b", "c"], 1).round(2).tolist()
        [0.67, 0.33, 0.0]
        """
        first, end = self.owner.searchsorted([owner, owner + 1]).tolist()
        others = self.n_owners - (end > first)
        own = dict(zip(self.value[first:end].tolist(), self.share[first:end].tolist(), strict=True))
        total, codes = self._total_share, self.codes
        found = (codes.get(value, -1) for value in values)
        sums = [0.0 if code < 0 else total[code] - own.get(code, 0.0) for code in found]
        return np.asarray(np.maximum(sums, 0.0) / max(others, 1))

    @cached_property
    def _total_share(self) -> list[float]:
        """Sum over users of each value's share, (V,)."""
        total: list[float] = (self.mean_share * self.n_owners).tolist()
        return total

    def similarity(self, own: pl.Series) -> NDArray[np.float64]:
        """Compare a user with each user of the sample.

        Args:
            own: Values of the user's events, (events,).

        Returns:
            Overlap of the shares of values, (O,).
        """
        return self.compare(self.measure_shares(own)[:, None])[:, 0]

    def measure_shares(self, own: pl.Series) -> NDArray[np.float64]:
        """Return the share of each value in the events of a user, (V,)."""
        shares = np.zeros(len(self.codes))
        for value, count in Counter(own.cast(pl.String).to_list()).items():
            if value in self.codes:
                shares[self.codes[value]] = count / len(own)
        return shares

    def compare(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the overlap of each user with each of some shares, (V, G), as (O, G)."""
        overlap = np.zeros((self.n_owners, shares.shape[1]))
        for group, own in enumerate(shares.T):
            overlap[:, group] = np.bincount(self.owner, self.share * own[self.value], self.n_owners)
        return overlap

    def drop_private(self) -> ValueUsage:
        """Leave out the values that only one user has.

        >>> values, owners = pl.Series(["a", "b", "a", "c"]), np.array([0, 0, 1, 1])
        >>> usage = ValueUsage.from_values(values, owners, owners).drop_private()
        >>> usage.codes, usage.owner.tolist(), usage.share.tolist()
        ({'a': 0}, [0, 1], [0.5, 0.5])
        """
        kept = np.bincount(self.value, minlength=len(self.codes)) > 1
        numbers, pairs = kept.cumsum() - 1, kept[self.value]
        return replace(
            self,
            codes={value: int(numbers[code]) for value, code in self.codes.items() if kept[code]},
            owner=self.owner[pairs],
            value=numbers[self.value[pairs]],
            share=self.share[pairs],
        )

    def average(self, groups: NDArray[np.intp], count: int) -> NDArray[np.float64]:
        """Return the mean share of each value in each group of users, (V, G).

        Args:
            groups: Group of each user, (O,).
            count: G.
        """
        cells = self.value * count + groups[self.owner]
        sums = np.bincount(cells, self.share, len(self.codes) * count).reshape(-1, count)
        return np.asarray(sums / np.maximum(np.bincount(groups, minlength=count), 1))


def _measure_novelty(
    owners: NDArray[np.intp],
    sessions: NDArray[np.intp],
    first_sessions: NDArray[np.intp],
    counts: NDArray[np.intp],
    n_owners: int,
) -> float:
    """Return the mean over users of the share of a day's events with a new value.

    It is NaN if no user has two days. As in `models.daily_usage.decay_shares`, later days count
    more, and the first day does not.

    Args:
        owners: User of each event, ascending, (S,).
        sessions: Day of each event, ascending, (S,).
        first_sessions: First day of each pair of a user and a value, (P,).
        counts: Number of events of the pair on that day, (P,).
        n_owners: Number of users.
    """
    starts = np.flatnonzero(np.diff(sessions, prepend=-1))
    of_day, sizes = owners[starts], np.diff(np.append(starts, len(sessions)))
    is_first = np.diff(of_day, prepend=-1) != 0
    last = np.searchsorted(of_day, of_day, side="right") - 1
    weights = NOVELTY_DECAY ** (last - np.arange(len(of_day))) * ~is_first
    new = np.bincount(first_sessions, counts, len(of_day)) / np.maximum(sizes, 1)
    sums, days = (
        np.bincount(of_day, part * weights, n_owners) for part in (new, np.ones(len(new)))
    )
    known = days > 0
    return float((sums[known] / days[known]).mean()) if known.any() else math.nan


_EMPTY_USAGE = ValueUsage.from_values(pl.Series([None]), *np.zeros((2, 1), dtype=np.intp))
"""Usage of a column that the sample does not have."""


class PeerGroups(msgspec.Struct, frozen=True):
    """Groups of similar users of a sample: k-means by the cosine of their shares of values.

    The groups depend on the sample alone, so that each process finds the same.

    Attributes:
        usage: Usage of the values that several users have, by column.
        centers: Mean share of each value in each group, divided by the length of all shares of the
            group, by column, (V, G).
        owners: Group of each user, (O,).
    """

    usage: Mapping[str, ValueUsage]
    centers: Mapping[str, NDArray[np.float64]]
    owners: NDArray[np.intp]

    @classmethod
    def from_usage(cls, values: Mapping[str, ValueUsage]) -> PeerGroups:
        """Group the users of a sample.

        Args:
            values: Usage of values, by column; at least one.
        """
        usage = {name: each.drop_private() for name, each in values.items()}
        total = next(iter(usage.values())).n_owners
        count = min(max(total // OWNERS_PER_GROUP, 1), MAX_PEER_GROUPS)
        centers = _choose_centers(usage, total, count)
        owners = _compare(usage, centers).argmax(axis=1)
        for _ in range(_GROUPING_STEPS):
            centers = _find_centers(usage, owners, count)
            before, owners = owners, _compare(usage, centers).argmax(axis=1)
            if np.array_equal(before, owners):
                break
        return cls(usage, centers, owners)

    def find(self, events: pl.DataFrame) -> int:
        """Return the group that a user is most similar to, by the user's events."""
        similarity = np.zeros(next(iter(self.centers.values())).shape[1])
        for name, center in self.centers.items():
            own = events.get_column(name, default=None)
            if own is not None:
                similarity += self.usage[name].measure_shares(own) @ center
        return int(similarity.argmax())

    def order_users(self, group: int) -> NDArray[np.intp]:
        """Return the users of a group, and then all others, the most similar ones first, (O,)."""
        center = {name: each[:, [group]] for name, each in self.centers.items()}
        return np.lexsort((-_compare(self.usage, center)[:, 0], self.owners != group))


def _choose_centers(
    usage: Mapping[str, ValueUsage], total: int, count: int
) -> dict[str, NDArray[np.float64]]:
    """Return the shares of users that differ, to begin with."""
    squares = [np.bincount(each.owner, each.share**2, total) for each in usage.values()]
    lengths = np.sqrt(np.maximum(np.sum(squares, axis=0), _MIN_SQUARE))[:, None]
    mean = _find_centers(usage, np.zeros(total, dtype=np.intp), 1)
    user, closest = int((_compare(usage, mean) / lengths).argmax()), np.zeros(total)
    chosen: list[dict[str, NDArray[np.float64]]] = []
    while True:
        groups = np.ones(total, dtype=np.intp)  # the rest is a group that is left out
        groups[user] = 0
        center = {name: each[:, :1] for name, each in _find_centers(usage, groups, 2).items()}
        chosen.append(center)
        if len(chosen) == count:
            return {name: np.hstack([each[name] for each in chosen]) for name in usage}
        # Next is the user who is least like the present ones.
        np.maximum(closest, (_compare(usage, center) / lengths)[:, 0], out=closest)
        closest[user] = np.inf
        user = int(closest.argmin())


def _find_centers(
    usage: Mapping[str, ValueUsage], owners: NDArray[np.intp], count: int
) -> dict[str, NDArray[np.float64]]:
    """Return the mean shares of each group, divided by their length, by column, (V, G)."""
    means = {name: each.average(owners, count) for name, each in usage.items()}
    squares = np.sum([(mean**2).sum(axis=0) for mean in means.values()], axis=0)
    length = np.sqrt(np.maximum(squares, _MIN_SQUARE))
    return {name: mean / length for name, mean in means.items()}


def _compare(
    usage: Mapping[str, ValueUsage], centers: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the similarity of each user and each group, (O, G)."""
    parts = [usage[name].compare(center) for name, center in centers.items()]
    return np.asarray(np.sum(parts, axis=0))


class Population(msgspec.Struct, frozen=True, dict=True):
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

    def others(self, name: str, vocabulary: Sequence[str] | None, user: str) -> NDArray[np.float64]:
        """Return the share of each code of a column among other users, (codes,).

        All users have the same weight. A part is spread over all values alike, also values that
        nobody had; UNKNOWN gets the share of one such value. Without other users all values are
        alike.

        Args:
            name: The column.
            vocabulary: Its values in the order of their codes; None for a number column.
            user: The user; all others are other users.
        """
        usage, owner = self.value_usage.get(name, _EMPTY_USAGE), self.find_owner(user)
        shares = np.zeros(FIRST_CODE + (1 if vocabulary is None else len(vocabulary)))
        kinds = len(usage.codes) + 1
        if usage.n_owners == (owner != _UNKNOWN_OWNER):
            return np.full(len(shares), 1 / kinds)
        found = usage.mean_share_of_others([None, *(vocabulary or ())], owner)
        shares[MISSING], shares[FIRST_CODE : FIRST_CODE + len(found) - 1] = found[0], found[1:]
        if vocabulary is None:
            shares[FIRST_CODE] = 1 - shares[MISSING]
        return np.asarray((1 - SMOOTHING) * shares + SMOOTHING / kinds)

    def novelty(self, name: str) -> float:
        """Return the rate of new values of a column, the mean over users.

        It is the share of a day's events with a value that is new to the user; NaN if no user has
        two days.
        """
        return self.value_usage.get(name, _EMPTY_USAGE).novelty

    @cached_property
    def value_usage(self) -> Mapping[str, ValueUsage]:
        """Usage of values, by column."""
        return {
            column.name: ValueUsage.from_values(column, self.owner_numbers, self._sessions)
            for column in self.events
        }

    @cached_property
    def peer_groups(self) -> PeerGroups:
        """Groups of similar users."""
        return PeerGroups.from_usage(self.value_usage)

    @cached_property
    def _sessions(self) -> NDArray[np.intp]:
        """Number of the user's day of each event, (S,)."""
        return number_sessions(number_days(self.times), self.owner_numbers)

    @cached_property
    def owner_numbers(self) -> NDArray[np.intp]:
        """Number of the user of each event, (S,)."""
        numbers = self._number_by_user
        return np.fromiter(map(numbers.__getitem__, self.users.to_list()), np.intp, len(self.users))

    def count_others(self, user: str) -> tuple[int, int]:
        """Return the number of other users than one, and of their events."""
        owner, events = self.find_owner(user), self._events_of_owners
        known = owner >= 0
        return len(events) - known, len(self.users) - (int(events[owner]) if known else 0)

    def find_owner(self, user: str) -> int:
        """Return the number of a user; a negative one for a user without events in the sample."""
        return self._number_by_user.get(user, _UNKNOWN_OWNER)

    @cached_property
    def _events_of_owners(self) -> NDArray[np.intp]:
        return np.bincount(self.owner_numbers)

    @cached_property
    def _number_by_user(self) -> Mapping[str, int]:
        return {user: number for number, user in enumerate(dict.fromkeys(self.users.to_list()))}
