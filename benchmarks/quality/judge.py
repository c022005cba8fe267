"""Detection figures of a scorer's scores, computed in the same way for every scorer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from figures.ranking import area, average_precision, recall
from numpy.typing import NDArray

from quality.trial import BENIGN, Trial, times

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
    "AP of days": "average precision of one ranking of all users' days. A day's score is its "
    "highest event score, unless the scorer has a score of days; a day counts as unusual if it has "
    "an event of an incident",
    "caught": "share of incidents detected with a budget of one alert per user and week, each as "
    "if it were the only one. An incident is detected if one of its events, within a week of its "
    "first event, is above the threshold at which the benign events of all users raise that many "
    "alerts. An alert is a day of a user, in UTC",
    "caught by user": "share of incidents with an event that is the most unusual one in a week of "
    "its user",
}
IN_TIME = np.timedelta64(7, "D")


@dataclass(frozen=True)
class Verdict:
    """Times and users of a trial's events, for some of the users."""

    trial: Trial
    users: Collection[str]

    @cached_property
    def rows(self) -> NDArray[np.bool_]:
        """Rows of `scored` that are evaluated."""
        return self.trial.scored[self.trial.user].is_in(list(self.users)).to_numpy()

    @cached_property
    def calendar(self) -> pl.DataFrame:
        """Day and week of each row, as numbers that are unique to a user, and the date."""
        when = times(self.trial.scored)
        user = pl.col("user").rank("dense").cast(pl.Int64)
        day = pl.col("when").dt.epoch("d").cast(pl.Int64)
        week = (day + 3) // 7  # the epoch was a Thursday
        frame = pl.DataFrame({"user": self.trial.scored[self.trial.user], "when": when})
        frame = frame.with_columns(
            day=user * 1_000_000 + day, week=user * 1_000_000 + week, date=day
        )
        return frame.filter(pl.Series(self.rows))

    @cached_property
    def incident(self) -> NDArray[np.int64]:
        """The incident of each row."""
        return self.trial.incident[self.rows]

    @cached_property
    def in_time(self) -> NDArray[np.bool_]:
        """Whether each row belongs to an incident and to its first week."""
        when = self.calendar["when"].to_numpy()
        early = np.zeros(len(when), dtype=np.bool_)
        for number in np.unique(self.incident[self.incident != BENIGN]):
            its = self.incident == number
            early |= its & (when < when[its].min() + IN_TIME)
        return early

    @cached_property
    def budget(self) -> int:
        """One alert per user and active week; a part of a week counts in proportion."""
        date = self.calendar["date"].to_numpy()
        first, last = date.min(), date.max()
        week = (date + 3) // 7
        monday = week * 7 - 3
        inside = pl.Series(np.minimum(monday + 6, last) - np.maximum(monday, first) + 1)
        weeks = self.calendar.select("week", inside.alias("inside")).unique("week")
        return int(weeks["inside"].sum() / 7)

    def figures(self, scores: Floats, days: Floats | None = None) -> Mapping[str, float]:
        """Return all figures of the scores of `trial.scored`. Events without a score rank last.

        Users without a benign event are left out of means over users. Users without a benign day
        are left out of the mean over days.

        Args:
            scores: Score of each event, (rows,).
            days: Score of each event's day, if the scorer has one: the highest of a day counts. It
                may be the same for all events of a day, or grow during the day.

        Raises:
            ValueError: If no user has an incident.
        """
        known = _ranked_last(scores)
        users = list(self._attacked())
        if not users:
            raise ValueError(f"{self.trial.name}: none of {len(self.users)} users has an incident")
        each = np.ma.masked_invalid([self._of_user(known, user) for user in users])
        means = each.mean(axis=0).filled(np.nan)
        mine, marked = known[self.rows], self.incident != BENIGN
        of_days = None if days is None else _ranked_last(days)[self.rows]
        rest = [
            average_precision(mine, marked),
            self.precision_of_days(mine if of_days is None else of_days),
            self.caught(mine, of_days),
            self.caught_by_user(mine),
        ]
        return dict(zip(FIGURES, [*means.tolist(), *rest], strict=True))

    def precision_of_days(self, scores: Floats) -> float:
        """Return the average precision of one ranking of all user-days; NaN without benign days."""
        rows = self.calendar.select("day", score=scores, marked=self.incident != BENIGN)
        by_day = rows.group_by("day").max()
        if by_day["marked"].all():
            return float("nan")
        return average_precision(by_day["score"].to_numpy(), by_day["marked"].to_numpy())

    def caught(self, scores: Floats, days: Floats | None = None) -> float:
        """Return the share of detected incidents with one threshold for all users.

        A score of days covers the events of an incident and the benign events beside them. So it
        is compared with days without an incident; NaN if there are none.
        """
        if days is None:
            return self._share(self.alerts(scores).astype(np.float64))
        if not self.benign_days.any():
            return float("nan")
        return self._share((days > self._limit(days, self.benign_days)).astype(np.float64))

    def alerts(self, scores: Floats) -> NDArray[np.bool_]:
        """Return which rows are alerts with one threshold for all users."""
        return np.asarray(scores > self._limit(scores, self.incident == BENIGN))

    @cached_property
    def benign_days(self) -> NDArray[np.bool_]:
        """Whether each row's day has no event of an incident."""
        rows = self.calendar.select("day", marked=self.incident != BENIGN)
        return ~rows.select(pl.col("marked").any().over("day")).to_series().to_numpy()

    def _limit(self, scores: Floats, benign: NDArray[np.bool_]) -> float:
        """Return the threshold at which some rows' days raise as many alerts as the budget."""
        ranked = self.calendar.select("day", score=scores).filter(pl.Series(benign))
        peaks = ranked.group_by("day").agg(pl.col("score").max())["score"]
        limits = np.concatenate([[np.inf], np.sort(peaks.to_numpy())[::-1], [-np.inf]])
        return float(limits[min(self.budget, len(peaks) + 1)])

    def caught_by_user(self, scores: Floats) -> float:
        """Return the share of incidents that rank first in a user's week; ties count in part."""
        top = pl.col("score") == pl.col("score").max().over("week")
        ranked = self.calendar.select("week", score=scores).with_columns(top=top)
        chance = ranked.select(pl.col("top") / pl.col("top").sum().over("week"))
        return self._share(chance.to_series().to_numpy())

    def _share(self, alerted: Floats) -> float:
        """Return the share of incidents with a timely alert, given each row's alert probability."""
        numbers = np.unique(self.incident[self.incident != BENIGN])
        found = [alerted[(self.incident == n) & self.in_time].sum() for n in numbers]
        return float(np.minimum(found, 1).mean())

    def _attacked(self) -> Iterator[str]:
        for case in self.trial.cases:
            if case.user in self.users and case.marked.any() and not case.marked.all():
                yield case.user

    def _of_user(self, scores: Floats, user: str) -> list[float]:
        span = self.trial.spans[user]
        mine, marked = scores[span], self.trial.incident[span] != BENIGN
        days = times(self.trial.scored[span]).dt.date()
        by_day = pl.DataFrame({"day": days, "score": mine, "marked": marked}).group_by("day").max()
        return [
            area(mine, marked),
            average_precision(mine, marked),
            recall(mine, marked, 0.01),
            recall(mine, marked, 0.001),
            area(by_day["score"].to_numpy(), by_day["marked"].to_numpy()),
        ]


def _ranked_last(scores: Floats) -> Floats:
    """Return scores with missing ones below all others."""
    return np.where(np.isnan(scores), np.nanmin(scores) - 1, scores)
