"""The ladder: what a user of little history is learnt from: their own, their peers', everyone's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.models.fingerprint import SCOPE_GLOBAL, SCOPE_PEER_GROUP
from morpheus.models.learning import UserHistory
from morpheus.models.population import Population

MAX_POOL = 2000
"""Events of everyone that stand for a user of whom nothing is known, at most."""
MIN_PEERS = 2
"""Others that stand for a user, at least: one alone is nobody's measure."""
MIN_EVENTS_FOR_PEERS = 20
"""Events of a user from which one can say who is alike."""


@dataclass(frozen=True)
class TrainingDataBackoff:
    """Fills short histories up with those of others.

    The others' events come first, user after user, so that the later part, which says what is
    usual, holds users that the earlier one has not: what tells one user from another is then new
    in it, and surprises nobody in a user who is new.

    Attributes:
        population: A sample of everybody's history.
        min_events: Events of history that a fingerprint is learnt from.
        global_only: Leave the peers out: everyone alone stands for a user of little history.
    """

    population: Population
    min_events: int
    global_only: bool = False

    def resolve(self, history: UserHistory) -> UserHistory | None:
        """The history that a user is learnt from; None where even everyone's is too short."""
        own = history.events.height
        if own >= self.min_events:
            return history
        others = self._other_users(history.user)
        owners = self.population.users[others].n_unique()
        if owners < MIN_PEERS or own + len(others) < self.min_events:
            return None
        if self.global_only or own < MIN_EVENTS_FOR_PEERS:
            return self._fill(history, _sample_evenly(others, MAX_POOL), SCOPE_GLOBAL)
        alike = others[np.argsort(-self._similarity(history)[others], kind="stable")]
        peers = np.sort(alike[: max(self.min_events - own, 0)])
        return self._fill(history, peers, SCOPE_PEER_GROUP)

    def resolve_global(self) -> UserHistory | None:
        """The history that stands for a user of whom nothing is known."""
        nothing = self.population.events.clear()
        return self.resolve(UserHistory("", nothing, self.population.times.clear()))

    def _other_users(self, user: str) -> NDArray[np.intp]:
        return np.flatnonzero((self.population.users != user).to_numpy())

    def _fill(self, history: UserHistory, borrowed: NDArray[np.intp], scope: str) -> UserHistory:
        events = pl.concat([self.population.events[borrowed], history.events], how="diagonal")
        times = pl.concat([self.population.times[borrowed], history.times])
        return UserHistory(history.user, events, times, scope, len(borrowed))

    def _similarity(self, history: UserHistory) -> NDArray[np.float64]:
        """How alike the owner of each event of the sample is to a user, (S,).

        The share of the user's own values that the owner's mean event has, over all columns.
        """
        alike = np.zeros(self.population.owner_numbers.max(initial=-1) + 1)
        for name, owned in self.population.value_usage.items():
            own = history.events.get_column(name, default=None)
            if own is not None:
                alike += owned.similarity(own)
        return np.asarray(alike[self.population.owner_numbers])


def _sample_evenly(rows: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    places = np.linspace(0, len(rows) - 1, min(len(rows), limit)).round().astype(int)
    return np.asarray(rows[places])
