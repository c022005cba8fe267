"""The ladder: what a user of little history is learnt from: their own, their peers', everyone's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.models.fingerprint import EVERYONE, PEERS
from morpheus.models.learning import History
from morpheus.models.population import Population

POOL = 2000
"""Events of everyone that stand for a user of whom nothing is known, at most."""
FEWEST = 2
"""Others that stand for a user, at least: one alone is nobody's measure."""
ALIKE_FROM = 20
"""Events of a user from which one can say who is alike."""


@dataclass(frozen=True)
class Ladder:
    """Fills short histories up with those of others.

    The others' events come first, user after user, so that the later part, which says what is
    usual, holds users that the earlier one has not: what tells one user from another is then new
    in it, and surprises nobody in a user who is new.

    Attributes:
        population: A sample of everybody's history.
        needed: Events of history that a fingerprint is learnt from.
        generic: Leave the peers out: everyone alone stands for a user of little history.
    """

    population: Population
    needed: int
    generic: bool = False

    def climbed(self, history: History) -> History | None:
        """The history that a user is learnt from; None where even everyone's is too short."""
        own = history.events.height
        if own >= self.needed:
            return history
        others = self._others(history.user)
        owners = self.population.owner[others].n_unique()
        if owners < FEWEST or own + len(others) < self.needed:
            return None
        if self.generic or own < ALIKE_FROM:
            return self._filled(history, _spread(others, POOL), EVERYONE)
        alike = others[np.argsort(-self._likeness(history)[others], kind="stable")]
        peers = np.sort(alike[: max(self.needed - own, 0)])
        return self._filled(history, peers, PEERS)

    def everyone(self) -> History | None:
        """The history that stands for a user of whom nothing is known."""
        nothing = self.population.events.clear()
        return self.climbed(History("", nothing, self.population.times.clear()))

    def _others(self, user: str) -> NDArray[np.intp]:
        return np.flatnonzero((self.population.owner != user).to_numpy())

    def _filled(self, history: History, borrowed: NDArray[np.intp], rung: str) -> History:
        events = pl.concat([self.population.events[borrowed], history.events], how="diagonal")
        times = pl.concat([self.population.times[borrowed], history.times])
        return History(history.user, events, times, rung, len(borrowed))

    def _likeness(self, history: History) -> NDArray[np.float64]:
        """How alike the owner of each event of the sample is to a user, (S,).

        The share of the user's own values that the owner's mean event has, over all columns.
        """
        alike = np.zeros(self._owners.max(initial=-1) + 1)
        for custom in self._customs:
            own = history.events.get_column(custom.name, default=None)
            if own is not None:
                alike += custom.likeness(own, len(alike))
        return np.asarray(alike[self._owners])

    @cached_property
    def _owners(self) -> NDArray[np.intp]:
        """Number of the owner of each event of the sample, (S,)."""
        return np.unique(self.population.owner.to_numpy(), return_inverse=True)[1]

    @cached_property
    def _customs(self) -> tuple[_Custom, ...]:
        return tuple(_Custom.of(values, self._owners) for values in self.population.events)


@dataclass(frozen=True)
class _Custom:
    """How often each owner of a sample has each value of a column; P pairs of both.

    Attributes:
        name: The column.
        codes: Number of each value.
        owner: Owner of each pair, (P,).
        value: Its value, (P,).
        share: Share of the owner's events that have it, (P,).
    """

    name: str
    codes: Mapping[str | None, int]
    owner: NDArray[np.intp]
    value: NDArray[np.intp]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, values: pl.Series, owners: NDArray[np.intp]) -> _Custom:
        """Count the values, (S,), of each owner, (S,)."""
        text = values.cast(pl.String)
        words = text.unique(maintain_order=True).to_list()
        codes = {word: code for code, word in enumerate(words)}
        coded = np.fromiter(map(codes.__getitem__, text.to_list()), np.intp, len(text))
        pairs, counts = np.unique(owners * len(words) + coded, return_counts=True)
        owner, value = np.divmod(pairs, max(len(words), 1))
        return cls(values.name, codes, owner, value, counts / np.bincount(owners)[owner])

    def likeness(self, own: pl.Series, owners: int) -> NDArray[np.float64]:
        """Share of a user's values, (events,), that the mean event of each owner has, (owners,)."""
        shares = np.zeros(len(self.codes))
        for word, count in Counter(own.cast(pl.String).to_list()).items():
            if word in self.codes:
                shares[self.codes[word]] = count / len(own)
        found = np.bincount(self.owner, self.share * shares[self.value], minlength=owners)
        return np.asarray(found, dtype=np.float64)


def _spread(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return np.asarray(rows[places])
