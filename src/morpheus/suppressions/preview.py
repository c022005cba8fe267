"""What suppressions would have held back, had there been any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from morpheus.columns import OWNER, TIME
from morpheus.suppressions.rules import Suppression
from morpheus.suppressions.verdicts import Verdict

ENOUGH = 5
"""Values, none twice, that make a column one of ids."""


@dataclass(frozen=True)
class Hidden:
    """What a suppression would have held back of past events.

    Attributes:
        events: The events, as in `hidden`.
        judged: How many of them were judged harmless.
        dangerous: What was judged otherwise and has events among them.
        ids: Columns of the suppression in which no two past alerts have the same value.
    """

    events: pl.DataFrame
    judged: int
    dangerous: tuple[Verdict, ...]
    ids: tuple[str, ...] = ()

    @property
    def others(self) -> int:
        """Events that nobody has judged harmless."""
        return self.events.height - self.judged


def hidden(
    rule: Suppression,
    past: pl.DataFrame,
    harmless: Sequence[Verdict] = (),
    dangerous: Sequence[Verdict] = (),
) -> Hidden:
    """Look at what a suppression would have held back.

    Args:
        rule: The suppression.
        past: Events that have become alerts: columns as text, `OWNER`, and `TIME` as a datetime.
        harmless: The verdicts that the suppression comes from.
        dangerous: Verdicts that forbid it.
    """
    theirs = past.filter(pl.col(OWNER).is_in(rule.users) & (pl.col(TIME) < rule.until))
    events = theirs.filter(pl.Series(rule.fits(theirs), dtype=pl.Boolean))
    within = [one.covers(events) for one in harmless]
    judged = events.filter(pl.any_horizontal(*within)).height if within else 0
    met = tuple(one for one in dangerous if one.covers(events).any())
    ids = tuple(column for column in rule.where if _is_id(column, past))
    return Hidden(events, judged, met, ids)


def _is_id(column: str, past: pl.DataFrame) -> bool:
    values = past.get_column(column, default=pl.Series([], dtype=pl.String)).drop_nulls()
    return len(values) >= ENOUGH and values.is_unique().all()
