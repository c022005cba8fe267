"""A trial: training events, scored events, and the incidents in the latter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import polars as pl
from numpy.typing import NDArray

EVENT = "eventID"
"""Column of an event's name, unique in a trial."""
WHEN = "eventTime"
"""Column of an event's time, in UTC, in CloudTrail's format."""
STAMP = "%Y-%m-%dT%H:%M:%SZ"
BENIGN = -1
"""Incident number of benign events."""
LEAST = 50
"""Minimum number of training events of a user. Users with fewer learn from everybody's events."""
MOST_SHARED = 2000
"""Maximum number of everybody's events that such a user learns from."""


@dataclass(frozen=True)
class Case:
    """One user of a trial.

    Attributes:
        user: The user.
        history: Training events, by time.
        scored: Events to score, by time.
        incident: Incident number of each event to score; `BENIGN` for a benign event.
    """

    user: str
    history: pl.DataFrame
    scored: pl.DataFrame
    incident: NDArray[np.int64]

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Whether each scored event belongs to an incident."""
        return np.asarray(self.incident != BENIGN)


@dataclass(frozen=True)
class Trial:
    """The logs of a population, and the incidents in the scored part.

    All users are trained and scored in one run. A scorer may only use `history` to learn about the
    population.

    Attributes:
        name: Name of the trial.
        user: Column of the user.
        columns: Feature columns: text, or null for no value.
        history: Training events, by user, then time.
        scored: Events to score, by user, then time.
        incidents: Incident number of each event of an incident, by the event's name.
        kinds: Kind of each incident.
    """

    name: str
    user: str
    columns: tuple[str, ...]
    history: pl.DataFrame
    scored: pl.DataFrame
    incidents: Mapping[str, int]
    kinds: Mapping[int, str]

    @cached_property
    def incident(self) -> NDArray[np.int64]:
        """Incident number of each row of `scored`; `BENIGN` for a benign event."""
        names = self.scored[EVENT].to_list()
        return np.array([self.incidents.get(name, BENIGN) for name in names], dtype=np.int64)

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Each user with events to score, in the order of `scored`."""
        return tuple(self._cases())

    @cached_property
    def taught(self) -> tuple[Case, ...]:
        """The cases, with a sample of all users' events as history where there are too few own.

        It is for detectors that learn from the events of one user only, and need some.
        """
        step = max(1, -(-self.history.height // MOST_SHARED))
        shared = self.history.gather_every(step)
        return tuple(
            case if case.history.height >= LEAST else replace(case, history=shared)
            for case in self.cases
        )

    @cached_property
    def spans(self) -> Mapping[str, slice]:
        """Positions of each user's rows in `scored`."""
        counts = self.scored.group_by(self.user, maintain_order=True).len()
        ends = counts["len"].cum_sum().to_list()
        starts = [0, *ends[:-1]]
        users = counts[self.user].to_list()
        return {user: slice(*ends) for user, *ends in zip(users, starts, ends, strict=True)}

    def only(self, users: Collection[str]) -> Trial:
        """Return the logs of some of the users."""
        its = pl.col(self.user).is_in(list(users))
        return replace(self, history=self.history.filter(its), scored=self.scored.filter(its))

    def _cases(self) -> Iterator[Case]:
        histories = self.history.partition_by(self.user, maintain_order=True, as_dict=True)
        none = self.history.clear()
        for user, span in self.spans.items():
            scored = self.scored[span]
            yield Case(user, histories.get((user,), none), scored, self.incident[span])


def merge_trials(trials: Sequence[Trial]) -> Trial:
    """Merge trials with the same history into one."""
    first = trials[0]
    scored = pl.concat([trial.scored for trial in trials])
    scored = scored.unique(EVENT, keep="first", maintain_order=True).sort(
        first.user, maintain_order=True
    )
    incidents = {name: n for trial in trials for name, n in trial.incidents.items()}
    return replace(first, scored=scored, incidents=incidents)


def of_part(whole: Trial, scores: NDArray[np.float64], part: Trial) -> NDArray[np.float64]:
    """Select the scores of a part's rows from those of the whole."""
    place = {name: n for n, name in enumerate(whole.scored[EVENT].to_list())}
    return scores[[place[name] for name in part.scored[EVENT].to_list()]]


def times(frame: pl.DataFrame) -> pl.Series:
    """Return the times of events as datetimes in UTC."""
    return frame[WHEN].str.to_datetime(STAMP, time_unit="us", time_zone="UTC")


def half(user: str) -> str:
    """Return the half of a user, `A` or `B`. Settings are chosen on A, never on B.

    >>> half("u_08fc6b22")
    'A'
    """
    return "AB"[sha256(user.encode()).digest()[0] & 1]
