"""What a scorer's scores of a trial are worth: the same figures, the same way, for every scorer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from figures.ranking import area, average_precision, recall
from numpy.typing import NDArray

from morpheus.models.calibration import SESSION_GAP
from quality.trial import NOBODY, Trial, times

Floats = NDArray[np.float64]
FIGURES = {
    "AUC": "probability that an event of an incident ranks above a benign event of the same user, "
    "mean over users",
    "AP": "average precision within a user, mean over users",
    "recall at 1 %": "share of the incidents' events found with false alarms on 1 % of the user's "
    "benign events",
    "at 0.1 %": "the same with 0.1 %",
    "AUC by day": "AUC of a user's days, each ranked by its most unusual event",
    "AP of all": "average precision of one ranking of all users' events",
    "caught": "share of incidents detected with a budget of one alert per user and week, each as "
    "if it were the only one. An incident is detected if one of its events, within a week of its "
    "first event, is above the threshold at which the benign events of all users raise that many "
    "alerts. An alert is a session of a user: events without a pause of an hour, as `filter "
    "--alerts_per_day` counts them",
    "caught by user": "share of incidents with an event that is the most unusual one in a week of "
    "its user",
}
IN_TIME = np.timedelta64(7, "D")


@dataclass(frozen=True)
class Verdict:
    """A trial, and when and whose its events are, as far as some of the users are concerned."""

    trial: Trial
    users: Collection[str]

    @cached_property
    def rows(self) -> NDArray[np.bool_]:
        """Rows of `scored` that count."""
        return self.trial.scored[self.trial.user].is_in(list(self.users)).to_numpy()

    @cached_property
    def calendar(self) -> pl.DataFrame:
        """Run, day and week of each row that counts, as numbers that no two users share."""
        when = times(self.trial.scored)
        user = pl.col("user").rank("dense").cast(pl.Int64)
        day = pl.col("when").dt.epoch("d").cast(pl.Int64)
        week = (day + 3) // 7  # the epoch was a Thursday
        frame = pl.DataFrame({"user": self.trial.scored[self.trial.user], "when": when})
        pause = pl.col("when").diff() > pl.duration(seconds=SESSION_GAP)
        new = (pause | (pl.col("user") != pl.col("user").shift())).fill_null(value=True)
        frame = frame.with_columns(
            run=new.cum_sum(), day=user * 1_000_000 + day, week=user * 1_000_000 + week, date=day
        )
        return frame.filter(pl.Series(self.rows))

    @cached_property
    def incident(self) -> NDArray[np.int64]:
        """The incident of each row that counts."""
        return self.trial.incident[self.rows]

    @cached_property
    def in_time(self) -> NDArray[np.bool_]:
        """Whether each row is an incident's, and of its first week."""
        when = self.calendar["when"].to_numpy()
        early = np.zeros(len(when), dtype=np.bool_)
        for number in np.unique(self.incident[self.incident != NOBODY]):
            its = self.incident == number
            early |= its & (when < when[its].min() + IN_TIME)
        return early

    @cached_property
    def budget(self) -> int:
        """One alert for each week in which a user did something; part of a week is part of one."""
        date = self.calendar["date"].to_numpy()
        first, last = date.min(), date.max()
        week = (date + 3) // 7
        monday = week * 7 - 3
        inside = pl.Series(np.minimum(monday + 6, last) - np.maximum(monday, first) + 1)
        weeks = self.calendar.select("week", inside.alias("inside")).unique("week")
        return int(weeks["inside"].sum() / 7)

    def figures(self, scores: Floats) -> Mapping[str, float]:
        """All figures of the scores of `trial.scored`; an event without a score comes last.

        A user without a benign event is left out of the means of users, and one without a benign
        day out of that of the days.

        Raises:
            ValueError: No user has an incident.
        """
        known = np.where(np.isnan(scores), np.nanmin(scores) - 1, scores)
        users = list(self._attacked())
        if not users:
            raise ValueError(f"{self.trial.name}: none of {len(self.users)} users has an incident")
        each = np.ma.masked_invalid([self._of_user(known, user) for user in users])
        means = each.mean(axis=0).filled(np.nan)
        mine, marked = known[self.rows], self.incident != NOBODY
        rest = [
            average_precision(mine, marked),
            self.caught(mine),
            self.caught_by_user(mine),
        ]
        return dict(zip(FIGURES, [*means.tolist(), *rest], strict=True))

    def caught(self, scores: Floats) -> float:
        """Share of incidents caught where everybody shares one threshold."""
        return self._share(self.alerts(scores).astype(np.float64))

    def alerts(self, scores: Floats) -> NDArray[np.bool_]:
        """Which rows are alerts where everybody shares one threshold."""
        ranked = self.calendar.select("run", score=scores, benign=self.incident == NOBODY)
        peaks = ranked.filter("benign").group_by("run").agg(pl.col("score").max())["score"]
        limits = np.concatenate([[np.inf], np.sort(peaks.to_numpy())[::-1], [-np.inf]])
        return np.asarray(scores > limits[min(self.budget, len(peaks) + 1)])

    def caught_by_user(self, scores: Floats) -> float:
        """Share of incidents caught by the top of each user's weeks; of equal tops, their share."""
        top = pl.col("score") == pl.col("score").max().over("week")
        ranked = self.calendar.select("week", score=scores).with_columns(top=top)
        chance = ranked.select(pl.col("top") / pl.col("top").sum().over("week"))
        return self._share(chance.to_series().to_numpy())

    def _share(self, alerted: Floats) -> float:
        """Share of incidents with an alert in time, given the chance that each row is one."""
        numbers = np.unique(self.incident[self.incident != NOBODY])
        found = [alerted[(self.incident == n) & self.in_time].sum() for n in numbers]
        return float(np.minimum(found, 1).mean())

    def _attacked(self) -> Iterator[str]:
        for case in self.trial.cases:
            if case.user in self.users and case.marked.any() and not case.marked.all():
                yield case.user

    def _of_user(self, scores: Floats, user: str) -> list[float]:
        span = self.trial.spans[user]
        mine, marked = scores[span], self.trial.incident[span] != NOBODY
        days = times(self.trial.scored[span]).dt.date()
        by_day = pl.DataFrame({"day": days, "score": mine, "marked": marked}).group_by("day").max()
        return [
            area(mine, marked),
            average_precision(mine, marked),
            recall(mine, marked, 0.01),
            recall(mine, marked, 0.001),
            area(by_day["score"].to_numpy(), by_day["marked"].to_numpy()),
        ]
