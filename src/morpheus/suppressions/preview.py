"""What suppressions would have held back, had there been any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.suppressions.rules import Suppression
from morpheus.suppressions.verdicts import Verdict

MIN_UNIQUE_FOR_ID = 5
"""Values, none twice, that make a column one of ids."""


@dataclass(frozen=True)
class SuppressionPreview:
    """What a suppression would have held back of past events.

    Attributes:
        events: The events, as in `preview_rule`.
        num_benign: How many of them were judged harmless.
        dangerous: What was judged otherwise and has events among them.
        id_columns: Columns of the suppression in which no two past alerts have the same value.
    """

    events: pl.DataFrame
    num_benign: int
    dangerous: tuple[Verdict, ...]
    id_columns: tuple[str, ...] = ()

    @property
    def num_unjudged(self) -> int:
        """Events that nobody has judged harmless."""
        return self.events.height - self.num_benign


def preview_rule(
    rule: Suppression,
    past_alerts: pl.DataFrame,
    benign: Sequence[Verdict] = (),
    dangerous: Sequence[Verdict] = (),
) -> SuppressionPreview:
    """Look at what a suppression would have held back.

    Args:
        rule: The suppression.
        past_alerts: Events that have become alerts: columns as text, `POPULATION_USER`, and `TIME` as a datetime.
        benign: The verdicts that the suppression comes from.
        dangerous: Verdicts that forbid it.
    """
    theirs = past_alerts.filter(pl.col(POPULATION_USER).is_in(rule.users) & (pl.col(TIME) < rule.until))
    events = theirs.filter(pl.Series(rule.matches(theirs), dtype=pl.Boolean))
    within = [one.covers(events) for one in benign]
    judged = events.filter(pl.any_horizontal(*within)).height if within else 0
    met = tuple(one for one in dangerous if one.covers(events).any())
    ids = tuple(column for column in rule.where if _is_id_column(column, past_alerts))
    return SuppressionPreview(events, judged, met, ids)


def _is_id_column(column: str, past_alerts: pl.DataFrame) -> bool:
    values = past_alerts.get_column(column, default=pl.Series([], dtype=pl.String)).drop_nulls()
    return len(values) >= MIN_UNIQUE_FOR_ID and values.is_unique().all()
