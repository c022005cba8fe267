"""Derived columns of events: right across files, rounds, and the history before the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import polars as pl

from morpheus.columns import TIME
from morpheus.features.derived import NEW, REMEMBERED, USER, Derived, first_seen

_AT = "_at_"
_EARLIER = "_earlier_"
_KEPT = timedelta(days=2)
"""Late events may still come for so long; what counts within a day is remembered meanwhile."""


def wanted(names: Iterable[str], known: Mapping[str, Derived]) -> dict[str, Derived]:
    """The derived columns among some names, each behind those that it is made of."""
    found: dict[str, Derived] = {}
    for name in names:
        one = known.get(name)
        if one is None and name.startswith(NEW):
            one = first_seen(name.removeprefix(NEW))
        if one is not None:
            found |= {**wanted(one.needs, known), name: one}
    return found


def logged(derived: Mapping[str, Derived]) -> tuple[str, ...]:
    """The columns of the log that derived columns are made of."""
    needs = dict.fromkeys(need for one in derived.values() for need in one.needs)
    return tuple(need for need in needs if need not in derived)


@dataclass
class Deriving:
    """Derives columns of the events of some users after the others.

    Args:
        user: Column of the user.
        derived: What to derive, in this order.
        endless: Whether later events of the same users may come.
    """

    user: str
    derived: Mapping[str, Derived]
    endless: bool = False
    seen: pl.DataFrame | None = field(default=None, init=False)

    def add(self, events: pl.DataFrame, history: pl.DataFrame | None = None) -> pl.DataFrame:
        """Add the derived columns to events, in front of `TIME`.

        A day that begins in the history goes on in the events. Of the history only what lies
        before a user's first event counts: files may be learnt from and scored.

        Args:
            events: Of some users, those of each in time order.
            history: Of the same users; may overlap.
        """
        derived = {name: one for name, one in self.derived.items() if self._tellable(name, events)}
        if not derived:
            return events
        now, earlier = self._needed(events), self._earlier(events, history)
        rows = pl.concat([earlier, now]).with_row_index(_AT).sort(TIME, maintain_order=True)
        for name, one in derived.items():
            rows = rows.with_columns(one.make(rows).alias(name))
        if self.endless:
            self._remember(rows.select(now.columns))
        mine = rows.filter(pl.col(_AT) >= earlier.height).sort(_AT)
        names = [name for name in events.columns if name not in derived and name != TIME]
        return events.select(names).hstack(mine.select(*derived, TIME))

    def _tellable(self, name: str, events: pl.DataFrame) -> bool:
        """Whether a column can be derived; else one of that name in the log stays as it is."""
        needs = self.derived[name].needs
        there = {*events.columns, *self.derived}
        return name not in events.columns or not needs or not there.isdisjoint(needs)

    def _needed(self, frame: pl.DataFrame) -> pl.DataFrame:
        def column(name: str) -> pl.Expr:
            there = name in frame.columns
            return pl.col(name) if there else pl.lit(None, pl.String).alias(name)

        return frame.select(pl.col(self.user).alias(USER), TIME, *map(column, logged(self.derived)))

    def _earlier(self, events: pl.DataFrame, history: pl.DataFrame | None) -> pl.DataFrame:
        first = events.group_by(pl.col(self.user).alias(USER)).agg(
            pl.col(TIME).min().alias(_EARLIER)
        )
        earlier = self._needed(events.clear())
        if history is not None:
            past = self._needed(history).join(
                first, on=USER, nulls_equal=True, maintain_order="left"
            )
            earlier = past.filter(pl.col(TIME) < pl.col(_EARLIER)).drop(_EARLIER)
        if self.seen is None:
            return earlier
        known = self.seen.join(first, on=USER, how="semi", nulls_equal=True, maintain_order="left")
        new = earlier.join(known, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        return pl.concat([new, known])

    def _remember(self, rows: pl.DataFrame) -> None:
        """Keep, of each user seen, what later events may be compared with."""
        others = self.seen
        if others is not None:
            others = others.join(rows, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        age = pl.col(TIME).max().over(USER) - pl.col(TIME)
        values = [pl.col(TIME).max().over(USER, need) for need in logged(self.derived)]
        latest = [(last == pl.col(TIME)) & (age <= REMEMBERED) for last in values]
        first = pl.col(TIME) == pl.col(TIME).min().over(USER)
        kept = rows.filter(pl.any_horizontal(age <= _KEPT, first, *latest))
        self.seen = kept if others is None else pl.concat([others, kept])
