"""A trial: what everybody did, what they did next, and where somebody else did it for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import polars as pl
from numpy.typing import NDArray

EVENT = "eventID"
"""Column of an event's name, no two of a trial alike."""
WHEN = "eventTime"
"""Column of an event's time, as CloudTrail writes it, in UTC."""
STAMP = "%Y-%m-%dT%H:%M:%SZ"
NOBODY = -1
"""Number of the incident that a benign event belongs to."""


@dataclass(frozen=True)
class Case:
    """One user of a trial.

    Attributes:
        user: Whose events.
        history: To learn from, in the order of time.
        scored: To score, in the order of time.
        incident: Of each event to score, the number of its incident; `NO_USER` if it is benign.
    """

    user: str
    history: pl.DataFrame
    scored: pl.DataFrame
    incident: NDArray[np.int64]

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Whether each event to score belongs to an incident."""
        return np.asarray(self.incident != NOBODY)


@dataclass(frozen=True)
class Trial:
    """The logs of a population, and the incidents in the part that is scored.

    All users are learnt and scored in one run: what a scorer knows of the population, it may know
    from `history` alone.

    Attributes:
        name: Which trial.
        user: Column that says whose event it is.
        columns: Feature columns, text, null where there is no value.
        history: Events to learn from, by user, then time.
        scored: Events to score, by user, then time.
        incidents: Number of the incident of each event that belongs to one, by the event's name.
        kinds: What sort of incident each is.
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
        """The incident of each row of `scored`; `NO_USER` if it is benign."""
        names = self.scored[EVENT].to_list()
        return np.array([self.incidents.get(name, NOBODY) for name in names], dtype=np.int64)

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Each user who has events to score, in the order of `scored`."""
        return tuple(self._cases())

    @cached_property
    def spans(self) -> Mapping[str, slice]:
        """Where each user's rows of `scored` are."""
        counts = self.scored.group_by(self.user, maintain_order=True).len()
        ends = counts["len"].cum_sum().to_list()
        starts = [0, *ends[:-1]]
        users = counts[self.user].to_list()
        return {user: slice(*ends) for user, *ends in zip(users, starts, ends, strict=True)}

    def only(self, users: Collection[str]) -> Trial:
        """The same logs, of some of the users."""
        its = pl.col(self.user).is_in(list(users))
        return replace(self, history=self.history.filter(its), scored=self.scored.filter(its))

    def _cases(self) -> Iterator[Case]:
        histories = self.history.partition_by(self.user, maintain_order=True, as_dict=True)
        none = self.history.clear()
        for user, span in self.spans.items():
            scored = self.scored[span]
            yield Case(user, histories.get((user,), none), scored, self.incident[span])


def together(trials: Sequence[Trial]) -> Trial:
    """One trial with all events of trials that share their history."""
    first = trials[0]
    scored = pl.concat([trial.scored for trial in trials])
    scored = scored.unique(EVENT, keep="first", maintain_order=True).sort(
        first.user, maintain_order=True
    )
    incidents = {name: n for trial in trials for name, n in trial.incidents.items()}
    return replace(first, scored=scored, incidents=incidents)


def of_part(whole: Trial, scores: NDArray[np.float64], part: Trial) -> NDArray[np.float64]:
    """The scores of a part's rows, out of those of the whole's."""
    place = {name: n for n, name in enumerate(whole.scored[EVENT].to_list())}
    return scores[[place[name] for name in part.scored[EVENT].to_list()]]


def times(frame: pl.DataFrame) -> pl.Series:
    """The events' times as datetimes, in UTC."""
    return frame[WHEN].str.to_datetime(STAMP, time_unit="us", time_zone="UTC")


def half(user: str) -> str:
    """Which half of the users one is in, `A` or `B`: settings are chosen on A, never on B.

    >>> half("u_08fc6b22")
    'A'
    """
    return "AB"[sha256(user.encode()).digest()[0] & 1]
