"""The ladder: what a user of little history is learnt from: their own, their peers', everyone's."""

from __future__ import annotations

from dataclasses import dataclass

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
        alike = np.zeros(self.population.owners.max(initial=-1) + 1)
        for name, owned in self.population.ownership.items():
            own = history.events.get_column(name, default=None)
            if own is not None:
                alike += owned.likeness(own)
        return np.asarray(alike[self.population.owners])


def _spread(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return np.asarray(rows[places])
