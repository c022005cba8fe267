"""Do explanations name what an incident changed? Counted without the model that explains."""

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
from quality.trial import NOBODY, Trial

SELDOM = 0.01
"""A value that fewer of the user's events to learn from had is seldom."""
READ = 2
"""Reasons that an analyst reads."""
NEARLY = 0.9
"""Share of the largest change from which another column counts as changed nearly as much."""


def table() -> Table:
    """An empty table."""
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


def add(table: Table, name: str, trials: Iterable[Trial], label: str = "risk") -> None:
    """Explain trials, and add a row: in how many incidents caught the reasons name it."""
    found: list[tuple[bool, bool, bool, float]] = []
    for seed, trial in enumerate(trials, start=1):
        output = chain.output(trial, [label], seed=seed, behind=[Explain(top=READ)])
        explained = Explained(trial, output, label)
        found += [explained.named(number) for number in explained.caught]
    table.add(name, len(found), *(f"{share:.1%}" for share in np.mean(found, axis=0)))


@dataclass(frozen=True)
class Explained:
    """A trial that was scored and explained.

    Attributes:
        trial: The logs.
        output: What the chain wrote, one row for each of `trial.scored`.
        label: The score that alerts are made of.
    """

    trial: Trial
    output: pl.DataFrame
    label: str = "risk"

    @cached_property
    def caught(self) -> list[int]:
        """Incidents caught as the judge says, where everybody shares one threshold."""
        verdict = Verdict(self.trial, tuple(self.trial.spans))
        scores = self.output[self.label].cast(pl.Float64).to_numpy()[verdict.rows]
        alerted = verdict.incident[verdict.alerts(scores) & verdict.in_time]
        return [int(incident) for incident in np.unique(alerted[alerted != NOBODY])]

    def named(self, number: int) -> tuple[bool, bool, bool, float]:
        """Whether the first reasons name what an incident changed.

        Returns:
            Whether they name the column that changed most, or one of those equal to it; whether
            they name one that changed nearly as much; whether they name one whose value in that
            very event is of the incident's making; and the chance that as many columns drawn at
            random name one of those that changed nearly as much.
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
        """Columns that the explanation of an incident's highest event names first."""
        highest = self.output["top_columns"][self.highest(number)]
        return highest.split(", ")[:READ] if highest else []

    def highest(self, number: int) -> int:
        """Row of an incident's highest event."""
        scores = self.output[self.label].cast(pl.Float64).fill_null(-np.inf).to_numpy()
        return int(np.argmax(np.where(self.trial.incident == number, scores, -np.inf)))

    def brought(self, number: int) -> list[str]:
        """Columns of an incident's highest event with a value that its user seldom had."""
        event = self.trial.scored[self.highest(number)]
        user = pl.col(self.trial.user) == event[self.trial.user][0]
        history = self.trial.history.filter(user)
        return [name for name in self.trial.columns if _seldom(event[name], history[name])]

    def changes(self, number: int) -> Mapping[str, float]:
        """How much oftener an incident brings values that its user seldom had than the user does.

        Shares of the incident's events less those of the user's own events in the part that is
        scored, for each column.
        """
        trial, its = self.trial, pl.Series(self.trial.incident == number)
        events = trial.scored.filter(its)
        user = pl.col(trial.user) == events[trial.user][0]
        history = trial.history.filter(user)
        own = trial.scored.filter(user & pl.Series(trial.incident == NOBODY))
        return {
            name: _seldom(events[name], history[name]) - _seldom(own[name], history[name])
            for name in trial.columns
        }


def _seldom(values: pl.Series, history: pl.Series) -> float:
    """Share of values that are seldom in a history."""
    shares = dict(history.cast(pl.String).value_counts(normalize=True).iter_rows())
    seldom = [shares.get(value, 0) < SELDOM for value in values.cast(pl.String)]
    return float(sum(seldom) / max(len(seldom), 1))
