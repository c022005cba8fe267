"""Do explanations name what an incident changed? Counted without the model that explains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

SELDOM = 0.01
"""A value that fewer of the user's events to learn from had is seldom."""
FIRST = 2
"""Reasons that an analyst reads."""


@dataclass(frozen=True)
class Explained:
    """Events that were scored and explained, and the incidents among them.

    Attributes:
        history: Events that were learnt from.
        output: Events that were scored, with what `add-scores` and `explain` added.
        user: Column that says whose event it is.
        columns: Feature columns.
        incident: Number of the incident of each row of `output`; negative if it is benign.
        label: The score that alerts are made of.
    """

    history: pl.DataFrame
    output: pl.DataFrame
    user: str
    columns: Sequence[str]
    incident: NDArray[np.int64]
    label: str = "risk"

    def named(self, caught: Collection[int]) -> dict[int, bool]:
        """Whether the first reasons for each incident caught name a column that it changed most.

        The reasons are those of its highest event. An incident that changes no column, or of a user
        without a score, has nothing to name and is left out.
        """
        return {
            number: bool({*self.reasons(number)[:FIRST]} & {*self.planted(number)})
            for number in caught
            if self.planted(number)
        }

    def reasons(self, number: int) -> list[str]:
        """Columns that the explanation of an incident's highest event names."""
        events = self.output.filter(pl.Series(self.incident == number))
        highest = events.sort(self.label, descending=True, nulls_last=True)["top_columns"][0]
        return highest.split(", ") if highest else []

    def planted(self, number: int) -> list[str]:
        """Columns that differ most in an incident.

        Those in which it brings values that its user seldom had most oftener than the user's own
        events do; several, where they do so equally.
        """
        more = self._changes[number]
        most = max(more.values())
        return [name for name, change in more.items() if change == most] if most > 0 else []

    @cached_property
    def _changes(self) -> Mapping[int, Mapping[str, float]]:
        return dict(self._changed())

    def _changed(self) -> Iterator[tuple[int, dict[str, float]]]:
        for number in np.unique(self.incident[self.incident >= 0]).tolist():
            its = pl.Series(self.incident == number)
            user = self.output.filter(its)[self.user][0]
            history = self.history.filter(pl.col(self.user) == user)
            own = self.output.filter((pl.col(self.user) == user) & pl.Series(self.incident < 0))
            events = self.output.filter(its)
            yield number, {
                name: _seldom(events[name], history[name]) - _seldom(own[name], history[name])
                for name in self.columns
                if name in self.output.columns and name in history.columns
            }


def _seldom(values: pl.Series, history: pl.Series) -> float:
    """Share of values that are seldom in a history."""
    counts = dict(history.cast(pl.String).value_counts(normalize=True).iter_rows())
    seldom = [counts.get(value, 0) < SELDOM for value in values.cast(pl.String)]
    return sum(seldom) / max(len(seldom), 1)
