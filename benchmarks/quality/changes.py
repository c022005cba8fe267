"""Changes of a trial: users who drift, users with little history, and users who are alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quality.trial import Case, Trial

ACTION, AGENT, ADDRESS = "eventName", "userAgent", "sourceIPAddress"
ROLE = "requestParametersroleArn"
PERSONAL = ("userIdentity", ADDRESS, AGENT, "event")
"""Prefixes of columns that new work does not change, except `WORK`."""
WORK = (ACTION, "eventSource")
ERRORS = ("errorCode", "errorMessage")
NEW_ACTIONS, NEW_WORK = 3, 0.2
"""Number of actions that a user takes up, and the share of later events that they are."""
STARTS = 0.2, 0.6
"""Parts of the scored events before a change, which comes at a random time."""
NEWCOMERS = 3
"""One user of so many is new."""
SHORT = 10, 100
"""Numbers of events of a short history."""


@dataclass
class Drift:
    """A lasting change of a user, who is benign all the same.

    Attributes:
        random: Random generator.
        case: The user.
        donor: The user whose agents and work this one takes up.
        columns: Feature columns.
    """

    random: np.random.Generator
    case: Case
    donor: Case
    columns: Sequence[str]

    @cached_property
    def later(self) -> NDArray[np.bool_]:
        """The benign events after the change, shape (rows,)."""
        rows = len(self.case.marked)
        return ~self.case.marked & (np.arange(rows) >= self.random.uniform(*STARTS) * rows)

    def move(self) -> pl.DataFrame:
        """Return the scored events, with a new address in place of the usual one, or an agent."""
        events = self.case.scored
        name = str(self.random.choice([ADDRESS, AGENT]))
        agents = sorted(set(self.donor.history[AGENT].drop_nulls()) - set(self.case.history[AGENT]))
        agent = str(self.random.choice(agents)) if agents else "new agent"
        new = agent if name == AGENT else ".".join(map(str, self.random.integers(1, 255, 4)))
        usual = pl.col(name) == str(self.case.history[name].mode().sort()[0])
        change = pl.when(pl.lit(pl.Series(self.later)) & usual).then(pl.lit(new))
        return events.with_columns(change.otherwise(name).alias(name))

    def add_work(self) -> pl.DataFrame:
        """Return the scored events, some of them with actions that are new to the user."""
        events, work = self.case.scored, self._work()
        if not work.height:
            return events
        rows = self.later & (self.random.random(events.height) < NEW_WORK)
        drawn = work[self.random.integers(0, work.height, events.height).tolist()]
        names = [name for name in self.columns if name in WORK or not name.startswith(PERSONAL)]
        drawn = drawn.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in ERRORS)
        chosen = pl.lit(pl.Series(rows))
        return events.with_columns(
            pl.when(chosen).then(pl.lit(drawn[name])).otherwise(name).alias(name) for name in names
        )

    def _work(self) -> pl.DataFrame:
        """Return the donor's events of a few actions that are new to the user."""
        known = set(self.case.history[ACTION])
        work = self.donor.history.filter(pl.col(ROLE).is_null())
        counts = work[ACTION].value_counts().sort("count", ACTION, descending=[True, False])
        new = [name for name in counts[ACTION] if name not in known]
        return work.filter(pl.col(ACTION).is_in(new[:NEW_ACTIONS]))


def add_drift(trial: Trial, seed: int) -> Trial:
    """Let a third of the users change the address or the agent, a third take up other actions.

    The change comes at a random time of the scored period, and lasts. Incidents stay as they are.
    """
    cases = trial.cases
    events = []
    for number, case in enumerate(cases):
        change = Drift(
            np.random.default_rng([seed, number]), case, cases[number - 1], trial.columns
        )
        events.append((change.move, change.add_work, lambda case=case: case.scored)[number % 3]())
    return replace(trial, name=f"{trial.name}, drift", scored=pl.concat(events))


def cut_histories(trial: Trial, seed: int, *, unknown: bool = True) -> Trial:
    """Cut the history of a third of the users to their last events.

    Args:
        trial: The logs.
        seed: Random seed.
        unknown: Whether every second one of them has no history at all. The others keep as many
            events as `SHORT` says, at random.
    """
    random = np.random.default_rng(seed)
    kept = {
        user: int(random.integers(SHORT[0], SHORT[1] + 1)) if place % 2 == 0 or not unknown else 0
        for place, user in enumerate(list_newcomers(trial))
    }
    parts = [
        trial.history.filter(pl.col(trial.user) == user).tail(kept.get(user, trial.history.height))
        for user in trial.spans
    ]
    return replace(trial, name=f"{trial.name}, newcomers", history=pl.concat(parts))


def list_newcomers(trial: Trial) -> list[str]:
    """Return every third user."""
    return list(trial.spans)[::NEWCOMERS]


def iter_single_users(trial: Trial, users: int) -> Iterator[Trial]:
    """Yield the first users with incidents and benign events, each without the others."""
    attacked = [case.user for case in trial.cases if case.marked.any() and not case.marked.all()]
    for user in attacked[:users]:
        yield replace(trial.only([user]), name=f"{trial.name}, one user")
