"""Naive Bayes as a baseline: how much more likely an event is for the others than for its user.

`events` sums over columns the log of a value's share in the others' histories over its share in the
user's own. `sessions` is the mean of that over the user's session up to the event, `days` over the
whole day. `bigrams` uses one column, the action, given the action before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from quality.trial import Trial, times

SESSION_GAP = 3600.0
"""Seconds without an event that end a session."""
Floats = NDArray[np.float64]
PRIOR = 0.5
"""Pseudo-count of each value, and of all unseen values together."""
ACTIONS = ("eventName", "action")
"""Columns of the action, by trial; the first that exists is used."""
BEFORE, OWNER = "before", "owner"
"""Columns of the user's previous action, and of the user: a feature may have the user too."""


@dataclass(frozen=True)
class Shares:
    """Smoothed shares of a column's values in the histories, for a user and for the others.

    Attributes:
        trial: The trial.
        given: Columns that the shares are conditional on.
    """

    trial: Trial
    given: Sequence[str] = ()

    def ratio(self, history: pl.DataFrame, scored: pl.DataFrame, name: str) -> Floats:
        """Return ln of the others' share over the user's own share of each value, shape (rows,)."""
        owner, given = pl.col(self.trial.user).alias(OWNER), list(self.given)
        kinds = history[name].n_unique() + 1
        history, rows = (frame.select(owner, *given, name) for frame in (history, scored))
        own = self._counts(history, [OWNER, *given], name)
        everyone = self._counts(history, given, name)
        found = self._find(rows, own, [OWNER, *given], name)
        total = self._find(rows, everyone, given, name)
        mine = np.log((found[0] + PRIOR) / (found[1] + PRIOR * kinds))
        others = np.log((total[0] - found[0] + PRIOR) / (total[1] - found[1] + PRIOR * kinds))
        return np.asarray(others - mine)

    def _counts(
        self, history: pl.DataFrame, keys: list[str], name: str
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Count the events of each key and value, and of each key."""
        values = history.group_by([*keys, name]).agg(pl.len().alias("n"))
        if keys:
            return values, history.group_by(keys).agg(pl.len().alias("n"))
        return values, pl.DataFrame({"n": [history.height]})

    def _find(
        self,
        rows: pl.DataFrame,
        counts: tuple[pl.DataFrame, pl.DataFrame],
        keys: list[str],
        name: str,
    ) -> tuple[Floats, Floats]:
        """Return the counts of each row's key and value, and of its key, shape (rows,) each."""
        join = partial(rows.join, how="left", nulls_equal=True, maintain_order="left")
        values = join(counts[0], on=[*keys, name])["n"]
        if not keys:
            return _numbers(values), np.full(rows.height, float(counts[1]["n"][0]))
        return _numbers(values), _numbers(join(counts[1], on=keys)["n"])


def _numbers(counts: pl.Series) -> Floats:
    return counts.fill_null(0).to_numpy().astype(np.float64)


def events(trial: Trial) -> Floats:
    """Return the sum over columns for each row of `trial.scored`."""
    shares = Shares(trial)
    ratios = (shares.ratio(trial.history, trial.scored, name) for name in trial.columns)
    return np.asarray(np.sum(list(ratios), axis=0))


def sessions(trial: Trial) -> Floats:
    """Return the mean of `events` over each row's session, up to the row."""
    frame = pl.DataFrame({"score": events(trial), "user": trial.scored[trial.user]})
    pause = times(trial.scored).diff().dt.total_seconds() > SESSION_GAP
    new = pause | (frame["user"] != frame["user"].shift())
    frame = frame.with_columns(session=new.fill_null(value=True).cum_sum())
    mean = pl.col("score").cum_sum() / pl.int_range(1, pl.len() + 1)
    return frame.select(mean.over("session")).to_series().to_numpy()


def days(trial: Trial) -> Floats:
    """Return the mean of `events` over each row's day, the same for all rows of the day."""
    day = times(trial.scored).dt.date()
    frame = pl.DataFrame({"score": events(trial), "user": trial.scored[trial.user], "day": day})
    return frame.select(pl.col("score").mean().over("user", "day")).to_series().to_numpy()


def bigrams(trial: Trial) -> Floats:
    """Return the ratio of each row's action, given the user's action before it."""
    action = next(name for name in ACTIONS if name in trial.columns)
    before = pl.col(action).shift().over(trial.user).fill_null("").alias(BEFORE)
    history, scored = trial.history.with_columns(before), trial.scored.with_columns(before)
    return Shares(trial, (BEFORE,)).ratio(history, scored, action)


def scores(trial: Trial, seed: int, *, of: Callable[[Trial], Floats]) -> Floats:
    """Return one of the scores per row of `trial.scored`. It is deterministic."""
    del seed
    return of(trial)
