"""What is remembered of a user's events, and what it adds to the risk of the next ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from morpheus.models.context import TemporalContext, RecentCounter, EventAnomaly, FloatArray, ContextualRisk
from morpheus.models.evidence import ANOMALY_DECIMALS
from morpheus.models.explanation import MIN_REPORTED, ContextContribution, round_decimals
from morpheus.models.twins import deduplicate_columns


@dataclass
class HistoryState:
    """What is remembered of a user's earlier events; fed in time order, in pieces of any size."""

    context: TemporalContext = field(default_factory=TemporalContext)
    recent_anomalies: RecentCounter = field(default_factory=RecentCounter)
    recent_by_column: defaultdict[int, RecentCounter] = field(default_factory=lambda: defaultdict(RecentCounter))

    def update(
        self,
        anomaly: EventAnomaly,
        shared_anomaly: EventAnomaly,
        marked: NDArray[np.bool_],
        seconds: FloatArray,
        short_ema_baseline: float,
    ) -> PrecedingContext:
        """Look back from some events.

        Args:
            anomaly: How strange they are.
            shared_anomaly: The same, by way of values that others have too.
            marked: Which of them are strange enough to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).
            short_ema_baseline: As in `TemporalContext.compute_contributions`.
        """
        columns = marked[:, None] & (anomaly.columns >= MIN_REPORTED)
        each = [self.recent_by_column[c].count_before(column, seconds) for c, column in enumerate(columns.T)]
        weighed = self.context.compute_contributions(anomaly, shared_anomaly, seconds, short_ema_baseline)
        return PrecedingContext(weighed, self.recent_anomalies.count_before(marked, seconds), np.stack(each, axis=-1))


@dataclass(frozen=True)
class ColumnContribution:
    """What a column adds to the risk of an event; as in `explanation.Fact`.

    Attributes:
        column: Its place.
        risk: Its part of the event's risk.
        dominant_contribution: Its part of the largest of own, hour and month.
        anomalous_before: Strange events before in which it was strange.
        redundant_columns: Columns that say the same.
    """

    column: int
    risk: float
    dominant_contribution: float
    anomalous_before: int
    redundant_columns: tuple[int, ...]


@dataclass(frozen=True)
class PrecedingContext:
    """What came before each of some events.

    Attributes:
        contextual_risk: The risk, and what each column, now and before, adds to it.
        anomaly_counts: Strange events in the hour and in the month before, (2, rows).
        column_counts: Those in which each column was strange, (2, rows, C).
    """

    contextual_risk: ContextualRisk
    anomaly_counts: NDArray[np.int64]
    column_counts: NDArray[np.int64]

    def summarise_event(self, event: int) -> ContextContribution:
        """The same of one event; what it is made of adds up in decimals."""
        risk = round_decimals(self.contextual_risk.risk[event])
        hour, month = (round_decimals(part.sum()) for part in self.contextual_risk.contributions[1:, event])
        own, strange = round_decimals(risk - (hour + month)), self.anomaly_counts[:, event].tolist()
        return ContextContribution(risk, own, hour, month, *strange)

    def rank_columns(self, event: int, redundant_columns: Sequence[int], max_columns: int | None) -> list[ColumnContribution]:
        """What the columns add to an event, the largest part first.

        Args:
            event: Its place.
            redundant_columns: For each column the first one that says the same.
            max_columns: So many columns, as far as they add anything and leaving out those that say the
                same as one before; None for all columns.
        """
        loudest = self.summarise_event(event).dominant_index
        parts = self.contextual_risk.contributions[:, event].round(ANOMALY_DECIMALS)
        order = np.argsort(-parts[loudest], kind="stable").tolist()
        leads = dict(deduplicate_columns([c for c in order if parts[loudest, c] > 0], redundant_columns))
        risks = self.contextual_risk.contributions[:, event].sum(0)
        return [
            ColumnContribution(
                column=c,
                risk=round_decimals(risks[c]),
                dominant_contribution=float(parts[loudest, c]),
                anomalous_before=int(self.column_counts[loudest - 1, event, c]) if loudest else 0,
                redundant_columns=tuple(leads.get(c, ())),
            )
            for c in (order if max_columns is None else islice(leads, max_columns))
        ]
