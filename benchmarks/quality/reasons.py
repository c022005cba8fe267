"""Do explanations name what an incident changed, and can a person read them?

Counted independently of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from figures.table import Table

from morpheus.stages.explain import Explain
from quality import chain
from quality.judge import Verdict
from quality.trial import BENIGN, Trial

SELDOM = 0.01
"""A value with a smaller share of the user's training events is rare."""
READ = 2
"""Number of columns in a reason."""
SHOWN = 20.0
"""Risk from which the text of a reason is measured."""
LEADING = frozenset({"eventName", "sourceIPAddress", "userAgent"})
"""Columns of the action, the source and the agent."""
NEARLY = 0.9
"""A column with this share of the largest change counts as changed nearly as much."""


def table() -> Table:
    """Return an empty table."""
    return Table(
        f"Do the first {READ} reasons name what the incident changed?",
        [
            *("logs", "incidents caught", "column changed most", "changed nearly as much"),
            *("rare in that event", "random columns"),
        ],
        note=f"Share of detected incidents whose first {READ} reasons name the column that the "
        "incident changed most, a column that it changed nearly as much, or a column with a rare "
        "value in that event. Random columns: the same for a column changed nearly as much, if "
        "columns are drawn at random.",
    )


def texts_table() -> Table:
    """Return an empty table of what reasons look like."""
    return Table(
        "How long are reasons, and with what do they begin?",
        [
            *("logs", "reasons", "median length", "longest"),
            *("begin with action, source or agent", "one of these is unusual"),
        ],
        note=f"Reasons of all events with a risk of at least {SHOWN:.0f}. Lengths are in "
        "characters. A reason begins with the event's action, even if the source, the agent or "
        "another column is what is unusual; the last column counts the reasons that name an "
        "unusual action, source or agent.",
    )


def explain(trials: Iterable[Trial], label: str = "risk") -> list[Explained]:
    """Score and explain trials."""
    return [
        Explained(trial, chain.output(trial, [label], seed=seed, behind=[Explain()]), label)
        for seed, trial in enumerate(trials, start=1)
    ]


def add(table: Table, name: str, trials: Iterable[Explained]) -> None:
    """Add a row: how many reasons of detected incidents name the change."""
    found = [trial.named(number) for trial in trials for number in trial.caught]
    table.add(name, len(found), *(f"{share:.1%}" for share in np.mean(found, axis=0)))


def add_texts(table: Table, name: str, trials: Iterable[Explained]) -> None:
    """Add a row: the lengths of reasons, and how many begin with action, source or agent."""
    rows = pl.concat(trial.shown for trial in trials)
    lengths = rows["reason"].str.len_chars().to_numpy()
    begins = np.mean([begins_well(row) for row in rows.iter_rows(named=True)])
    tops = rows["top_columns"].str.split(", ").to_list()
    names = np.mean([bool(LEADING & set(top)) for top in tops])
    median = f"{np.median(lengths):.0f}"
    table.add(name, rows.height, median, int(lengths.max()), f"{begins:.1%}", f"{names:.1%}")


def begins_well(row: Mapping[str, str | None]) -> bool:
    """Return whether the reason in a row begins with its action, or names source or agent first.

    >>> begins_well({"reason": "`GetUser`, new in 9 days.", "eventName": "GetUser"})
    True
    >>> begins_well({"reason": "Max results `9`, new in 9 days.", "eventName": "GetUser"})
    False
    """
    reason, action = row["reason"] or "", row["eventName"] or ""
    start = reason[1:].partition("`")[0].partition("…")[0]
    is_action = reason.startswith("`") and bool(start) and action.startswith(start)
    return is_action or reason.startswith(("Address ", "Agent "))


@dataclass(frozen=True)
class Explained:
    """A trial with scores and explanations.

    Attributes:
        trial: The logs.
        output: Output of the pipeline, one row per row of `trial.scored`.
        label: The score for alerts.
    """

    trial: Trial
    output: pl.DataFrame
    label: str = "risk"

    @property
    def shown(self) -> pl.DataFrame:
        """Return the events with a risk that is worth a look, with their reasons."""
        names = ["eventName", "reason", "top_columns"]
        return self.output.filter(pl.col(self.label).cast(pl.Float64) >= SHOWN).select(names)

    @cached_property
    def caught(self) -> list[int]:
        """Return the detected incidents with one threshold for all users."""
        verdict = Verdict(self.trial, tuple(self.trial.spans))
        scores = self.output[self.label].cast(pl.Float64).to_numpy()[verdict.rows]
        alerted = verdict.incident[verdict.alerts(scores) & verdict.in_time]
        return [int(incident) for incident in np.unique(alerted[alerted != BENIGN])]

    def named(self, number: int) -> tuple[bool, bool, bool, float]:
        """Say whether the first reasons name what an incident changed.

        Returns:
            Whether they name the column that changed most, or one with an equal change. Whether
            they name one that changed nearly as much. Whether they name one with a value of that
            event that is due to the incident. The probability that as many random columns
            include one that changed nearly as much.
        """
        changes = self.changes(number)
        most = max(changes.values())
        first = {name for name, change in changes.items() if change == most}
        nearly = {name for name, change in changes.items() if change >= NEARLY * most}
        others, reasons = len(changes) - len(nearly), set(self.reasons(number))
        missed = [max(others - drawn, 0) / (len(changes) - drawn) for drawn in range(READ)]
        here = {name for name in self.brought(number) if changes[name] > 0}
        chance = 1 - float(np.prod(missed))
        return bool(reasons & first), bool(reasons & nearly), bool(reasons & here), chance

    def reasons(self, number: int) -> list[str]:
        """Return the first columns of the explanation of an incident's highest event."""
        highest = self.output["top_columns"][self.highest(number)]
        return highest.split(", ")[:READ] if highest else []

    def highest(self, number: int) -> int:
        """Return the row of an incident's highest event."""
        scores = self.output[self.label].cast(pl.Float64).fill_null(-np.inf).to_numpy()
        return int(np.argmax(np.where(self.trial.incident == number, scores, -np.inf)))

    def brought(self, number: int) -> list[str]:
        """Return columns of an incident's highest event with a value that is rare for the user."""
        event = self.trial.scored[self.highest(number)]
        user = pl.col(self.trial.user) == event[self.trial.user][0]
        history = self.trial.history.filter(user)
        return [name for name in self.trial.columns if _seldom(event[name], history[name])]

    def changes(self, number: int) -> Mapping[str, float]:
        """Return how much more often an incident has rare values than the user, per column.

        The share of the incident's events minus the share of the user's own scored events.
        """
        trial, its = self.trial, pl.Series(self.trial.incident == number)
        events = trial.scored.filter(its)
        user = pl.col(trial.user) == events[trial.user][0]
        history = trial.history.filter(user)
        own = trial.scored.filter(user & pl.Series(trial.incident == BENIGN))
        return {
            name: _seldom(events[name], history[name]) - _seldom(own[name], history[name])
            for name in trial.columns
        }


def _seldom(values: pl.Series, history: pl.Series) -> float:
    """Return the share of values that are rare in a history."""
    shares = dict(history.cast(pl.String).value_counts(normalize=True).iter_rows())
    seldom = [shares.get(value, 0) < SELDOM for value in values.cast(pl.String)]
    return float(sum(seldom) / max(len(seldom), 1))
