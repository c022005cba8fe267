"""Derived columns of events: right across files, rounds, and the history before the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import polars as pl

from morpheus.columns import TIME
from morpheus.features.derived import NOVELTY_PREFIX, NOVELTY_TTL, USER, DerivedColumn, is_new_value

_POSITION = "_at_"
_FIRST_TIME = "_earlier_"
_LATE_WINDOW = timedelta(days=2)
"""Late events may still come for so long; what counts within a day is remembered meanwhile."""


def resolve_derived(names: Iterable[str], available: Mapping[str, DerivedColumn]) -> dict[str, DerivedColumn]:
    """The derived columns among some names, each behind those that it is made of."""
    found: dict[str, DerivedColumn] = {}
    for name in names:
        one = available.get(name)
        if one is None and name.startswith(NOVELTY_PREFIX):
            one = is_new_value(name.removeprefix(NOVELTY_PREFIX))
        if one is not None:
            found |= {**resolve_derived(one.inputs, available), name: one}
    return found


def list_input_columns(derived: Mapping[str, DerivedColumn]) -> tuple[str, ...]:
    """The columns of the log that derived columns are made of."""
    needs = dict.fromkeys(need for one in derived.values() for need in one.inputs)
    return tuple(need for need in needs if need not in derived)


@dataclass
class DerivedFeatures:
    """Derives columns of the events of some users after the others.

    Args:
        user: Column of the user.
        derived_columns: What to derive, in this order.
        unbounded: Whether later events of the same users may come.
    """

    user: str
    derived_columns: Mapping[str, DerivedColumn]
    unbounded: bool = False
    seen_rows: pl.DataFrame | None = field(default=None, init=False)

    def add(self, events: pl.DataFrame, history: pl.DataFrame | None = None) -> pl.DataFrame:
        """Add the derived columns to events, in front of `TIME`.

        A day that begins in the history goes on in the events. Of the history only what lies
        before a user's first event counts: files may be learnt from and scored.

        Args:
            events: Of some users, those of each in time order.
            history: Of the same users; may overlap.
        """
        derived = {name: one for name, one in self.derived_columns.items() if self._can_derive(name, events)}
        if not derived:
            return events
        now, earlier = self._select_inputs(events), self._select_earlier_rows(events, history)
        rows = pl.concat([earlier, now]).with_row_index(_POSITION).sort(TIME, maintain_order=True)
        for name, one in derived.items():
            rows = rows.with_columns(one.compute(rows).alias(name))
        if self.unbounded:
            self._remember(rows.select(now.columns))
        mine = rows.filter(pl.col(_POSITION) >= earlier.height).sort(_POSITION)
        names = [name for name in events.columns if name not in derived and name != TIME]
        return events.select(names).hstack(mine.select(*derived, TIME))

    def _can_derive(self, name: str, events: pl.DataFrame) -> bool:
        """Whether a column can be derived; else one of that name in the log stays as it is."""
        needs = self.derived_columns[name].inputs
        there = {*events.columns, *self.derived_columns}
        return name not in events.columns or not needs or not there.isdisjoint(needs)

    def _select_inputs(self, frame: pl.DataFrame) -> pl.DataFrame:
        def column(name: str) -> pl.Expr:
            there = name in frame.columns
            return pl.col(name) if there else pl.lit(None, pl.String).alias(name)

        return frame.select(pl.col(self.user).alias(USER), TIME, *map(column, list_input_columns(self.derived_columns)))

    def _select_earlier_rows(self, events: pl.DataFrame, history: pl.DataFrame | None) -> pl.DataFrame:
        first = events.group_by(pl.col(self.user).alias(USER)).agg(
            pl.col(TIME).min().alias(_FIRST_TIME)
        )
        earlier = self._select_inputs(events.clear())
        if history is not None:
            past = self._select_inputs(history).join(
                first, on=USER, nulls_equal=True, maintain_order="left"
            )
            earlier = past.filter(pl.col(TIME) < pl.col(_FIRST_TIME)).drop(_FIRST_TIME)
        if self.seen_rows is None:
            return earlier
        known = self.seen_rows.join(first, on=USER, how="semi", nulls_equal=True, maintain_order="left")
        new = earlier.join(known, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        return pl.concat([new, known])

    def _remember(self, rows: pl.DataFrame) -> None:
        """Keep, of each user seen, what later events may be compared with."""
        others = self.seen_rows
        if others is not None:
            others = others.join(rows, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        age = pl.col(TIME).max().over(USER) - pl.col(TIME)
        values = [pl.col(TIME).max().over(USER, need) for need in list_input_columns(self.derived_columns)]
        latest = [(last == pl.col(TIME)) & (age <= NOVELTY_TTL) for last in values]
        first = pl.col(TIME) == pl.col(TIME).min().over(USER)
        kept = rows.filter(pl.any_horizontal(age <= _LATE_WINDOW, first, *latest))
        self.seen_rows = kept if others is None else pl.concat([others, kept])
