"""What came of the trials: caught or not, and by what margin."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from morpheus.columns import TIME
from morpheus.records import Batch
from morpheus.replay.trials import GRADE, HELD, POINTS, TECHNIQUE
from morpheus.sources.times import DEFAULT_TIME_FORMAT

A_WEEK = 1 / 7
"""Alerts a day for each user, where no other budget is given."""
USER, CAUGHT, HIDDEN = "user", "caught", "hidden_by"
SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        USER: pl.String(),
        GRADE: pl.String(),
        CAUGHT: pl.Boolean(),
        "rank": pl.Int64(),
        "events_of_day": pl.Int64(),
        "seconds_to_catch": pl.Float64(),
        POINTS: pl.Float64(),
        "threshold": pl.Float64(),
        "start": pl.String(),
        HIDDEN: pl.String(),
    }
)


@dataclass(frozen=True)
class Outcome:
    """What came of a drill.

    Attributes:
        trials: One row for each technique, user and grade. `caught` is null where the technique
            could not be placed; `rank` is that of its most unusual event among the `events_of_day`
            of the user's own, 1 for the most unusual of all; `seconds_to_catch` go from its first
            event to the first that raises an alert; `hidden_by` is the suppression that holds all
            alerts of the technique back, where one does.
        allowed: Alerts that the budget allows on the users' own events.
        raised: Alerts that these events do raise.
        untried: Users on whom nothing could be tried, with the reason.
    """

    trials: pl.DataFrame
    allowed: int
    raised: int
    untried: dict[str | None, str]

    @property
    def recall(self) -> float | None:
        """Share of trials caught; None where there was none."""
        share = self.trials[CAUGHT].mean()
        return share if isinstance(share, float) else None

    def share(self, *by: str) -> pl.DataFrame:
        """Caught and tried, for each of the values of some columns."""
        caught = pl.col(CAUGHT)
        return self.trials.group_by(by, maintain_order=True).agg(
            caught.sum().alias(CAUGHT), caught.count().alias("tried")
        )


def judged(batches: Iterable[Batch], alerts_per_day: float | None = None) -> Outcome:
    """Judge the scored events of all users, as `Trials` gives them.

    A user's own events may raise as many alerts as the budget allows in the days from the first to
    the last of them: the highest of their scores that raises none is the user's threshold.

    Args:
        batches: One for each user.
        alerts_per_day: For all users tried together; None for one for each user and week.
    """
    batches = list(batches)
    tried = [batch for batch in batches if batch.frame.height]
    untried = {one.user: one.unscored_reason or "" for one in batches if not one.frame.height}
    daily = A_WEEK if alerts_per_day is None else alerts_per_day / max(1, len(tried))
    users = [_user(batch, daily) for batch in tried]
    trials = pl.concat([SCHEMA.to_frame(), *(user.trials for user in users)])
    return Outcome(
        trials.sort(TECHNIQUE, USER, maintain_order=True),
        sum(user.allowed for user in users),
        sum(user.raised for user in users),
        untried,
    )


def threshold(scores: pl.Series, allowed: int) -> float:
    """The score above which at most so many of these lie.

    >>> threshold(pl.Series([1.0, 5.0, 3.0, 3.0]), 1), threshold(pl.Series([1.0]), 1)
    (3.0, -inf)
    """
    ordered = scores.sort(descending=True)
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def _user(batch: Batch, daily: float) -> Outcome:
    """What came of one user's trials."""
    is_own = pl.col(TECHNIQUE).is_null()
    own, injected = batch.frame.filter(is_own), batch.frame.filter(~is_own)
    allowed = math.floor(daily * _days(own[TIME].to_list()) + 1e-9)
    limit = threshold(own[POINTS], allowed)
    trials = [
        {USER: batch.user, "threshold": limit, **_trial(part, own, limit)}
        for part in injected.partition_by(TECHNIQUE, GRADE, maintain_order=True)
    ]
    raised = own.filter((pl.col(POINTS) > limit) & pl.col(HELD).is_null()).height
    return Outcome(pl.DataFrame(trials, schema=SCHEMA), allowed, raised, {})


def _days(times: list[datetime]) -> int:
    """Days from the first event to the last, both counted."""
    return (max(times).date() - min(times).date()).days + 1


def _trial(events: pl.DataFrame, own: pl.DataFrame, limit: float) -> dict[str, Any]:
    """What came of one trial, but for what all trials of the user share."""
    named = {TECHNIQUE: events[TECHNIQUE][0], GRADE: events[GRADE][0]}
    if events[TIME].has_nulls():
        return named
    times: list[datetime] = events[TIME].to_list()
    scores: list[float] = events[POINTS].to_list()
    days = times[0].date(), times[-1].date()
    of_day = own.filter(pl.col(TIME).dt.date().is_between(*days))[POINTS]
    alarming = events.filter(pl.col(POINTS) > limit)
    alerts: list[datetime] = alarming.filter(pl.col(HELD).is_null())[TIME].to_list()
    return named | {
        CAUGHT: bool(alerts),
        "rank": 1 + int((of_day >= max(scores)).sum()),
        "events_of_day": len(of_day),
        "seconds_to_catch": (alerts[0] - times[0]).total_seconds() if alerts else None,
        POINTS: max(scores),
        "start": times[0].strftime(DEFAULT_TIME_FORMAT),
        HIDDEN: None if alerts or alarming.is_empty() else alarming[HELD][0],
    }
