"""What came just before: somebody else at the keyboard stays there for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SHORT_HALF_LIFE, LONG_HALF_LIFE = 3600.0, 30 * 86400.0
"""Seconds after which an event counts half in the mean."""
SHORT_EMA_WEIGHT, LONG_EMA_WEIGHT = 6.0, 4.0
"""Weights of these means, where that of the event itself is 1; see docs/decisions/005-risk.md."""
CHUNK_HALF_LIVES = 40.0
"""Half-lives computed at a time: so far, powers of two are exact enough in a double."""

FloatArray = NDArray[np.float64]


@dataclass
class ExponentialMovingAverage:
    """Mean of the events so far, each of which counts half as much after every `half` seconds."""

    half_life: float
    weighted_sum: FloatArray | float = 0.0
    total_weight: float = 0.0
    last_time: float = -np.inf

    def update(self, values: FloatArray, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The means as each event found them, itself included, and its weight in them.

        Args:
            values: Of each event, (rows, quantities).
            seconds: When it happened, (rows,).

        Returns:
            The means, (rows, quantities), and the weights, (rows,).
        """
        clock = (
            np.maximum.accumulate(np.maximum(seconds, self.last_time * self.half_life))
            / self.half_life
        )
        means, weights, start = np.empty(values.shape), np.empty(len(values)), 0
        while start < len(values):
            end = int(np.searchsorted(clock, clock[start] + CHUNK_HALF_LIVES, side="right"))
            piece = slice(start, end)
            means[piece], weights[piece] = self._update_chunk(values[piece], clock[piece])
            start = end
        return means, weights

    def _update_chunk(self, values: FloatArray, clock: FloatArray) -> tuple[FloatArray, FloatArray]:
        fade, growth = 0.5 ** (clock[0] - self.last_time), 2.0 ** (clock - clock[0])
        totals = fade * self.weighted_sum + np.cumsum(values * growth[:, None], axis=0)
        weights = fade * self.total_weight + np.cumsum(growth)
        self.weighted_sum, self.total_weight = totals[-1] / growth[-1], weights[-1] / growth[-1]
        self.last_time = clock[-1]
        return totals / weights[:, None], growth / weights


@dataclass(frozen=True)
class EventAnomaly:
    """How strange events are.

    Attributes:
        total: Each event, (rows,).
        columns: What each column adds to it, (rows, C); with C = 0 nothing is divided.
    """

    total: FloatArray
    columns: FloatArray

    @classmethod
    def from_columns(cls, columns: FloatArray) -> EventAnomaly:
        """Add up columns, (rows, C)."""
        return cls(columns.sum(1), columns)

    @classmethod
    def from_totals(cls, total: FloatArray) -> EventAnomaly:
        """Say nothing of columns."""
        return cls(total, np.empty((len(total), 0)))

    def take(self, rows: NDArray[np.intp]) -> EventAnomaly:
        """Some of the events, or some of them several times."""
        return EventAnomaly(self.total[rows], self.columns[rows])


@dataclass(frozen=True)
class ContextualRisk:
    """Events, weighed with what came before them.

    Attributes:
        risk: Of each event, (rows,).
        contributions: What each column adds to it, (3, rows, C): first by way of the event itself, as if
            nothing strange had happened before; then by way of earlier events, in the mean of the
            last hour and of the last month.
    """

    risk: FloatArray
    contributions: FloatArray


@dataclass
class TemporalContext:
    """The decayed past of one user; fed in time order, in pieces of any size."""

    short_ema: ExponentialMovingAverage = field(
        default_factory=lambda: ExponentialMovingAverage(SHORT_HALF_LIFE)
    )
    long_ema: ExponentialMovingAverage = field(
        default_factory=lambda: ExponentialMovingAverage(LONG_HALF_LIFE)
    )

    def compute_risk(
        self,
        event_anomaly: FloatArray,
        shared_anomaly: FloatArray,
        seconds: FloatArray,
        short_ema_baseline: float = 0.0,
    ) -> FloatArray:
        """Weigh each event with what came before it, (rows,).

        Roots are averaged, and the mean is squared, so that what lasts weighs more than what is
        over: ten odd events in an hour count for more than a single one of ten times the oddness.
        Of the hour, only what is above the user's usual one counts: some always come in bursts. Of
        the month, only what others have too: new things that nobody else has are rather a change
        of habits than somebody else.

        Args:
            event_anomaly: Of each event, (rows,).
            shared_anomaly: The same, by way of values that others have too, (rows,).
            seconds: When it happened, since any fixed moment, (rows,).
            short_ema_baseline: What the hour's mean of roots usually stays below.

        >>> nothing, seconds = np.zeros(3), np.array([0.0, 1.0, 1e9])
        >>> TemporalContext().risk(np.array([9.0, 0.0, 0.0]), nothing, seconds).round(2).tolist()
        [63.0, 13.5, 0.0]
        """
        strange, lasting = (
            EventAnomaly.from_totals(event_anomaly),
            EventAnomaly.from_totals(shared_anomaly),
        )
        return self.compute_contributions(strange, lasting, seconds, short_ema_baseline).risk

    def compute_contributions(
        self,
        anomaly: EventAnomaly,
        shared_anomaly: EventAnomaly,
        seconds: FloatArray,
        short_ema_baseline: float = 0.0,
    ) -> ContextualRisk:
        """The same, divided among columns.

        Each event divides its root among its columns as they divide its surprise; the means divide
        like the events in them, and the square of a mean like the mean.

        Args:
            anomaly: Events.
            shared_anomaly: The same, by way of values that others have too.
            seconds: When they happened, since any fixed moment, (rows,).
            short_ema_baseline: What the hour's mean of roots usually stays below.
        """
        hour = EmaContribution.from_ema(self.short_ema, anomaly, seconds, short_ema_baseline)
        month = EmaContribution.from_ema(self.long_ema, shared_anomaly, seconds, 0.0)
        own = anomaly.columns + SHORT_EMA_WEIGHT * hour.current + LONG_EMA_WEIGHT * month.current
        past = SHORT_EMA_WEIGHT * hour.earlier, LONG_EMA_WEIGHT * month.earlier
        risk = anomaly.total + SHORT_EMA_WEIGHT * hour.total + LONG_EMA_WEIGHT * month.total
        return ContextualRisk(risk, np.stack([own, *past]))


@dataclass(frozen=True)
class EmaContribution:
    """What a mean of the last events adds to each.

    Attributes:
        total: In all, (rows,).
        current: By way of the event itself, as if nothing had come before, (rows, C).
        earlier: By way of those before it, (rows, C).
    """

    total: FloatArray
    current: FloatArray
    earlier: FloatArray

    @classmethod
    def from_ema(
        cls,
        ema: ExponentialMovingAverage,
        anomaly: EventAnomaly,
        seconds: FloatArray,
        baseline: float,
    ) -> EmaContribution:
        """Feed a mean with roots, and square what it is above the usual."""
        roots = np.sqrt(anomaly.total)[:, None]
        divided = np.hstack([roots, anomaly.columns / np.where(roots > 0, roots, 1)])
        means, share = ema.update(divided, seconds)
        alone = share[:, None] * divided
        whole, own = (
            _excess_square_per_unit(one[:, :1], baseline) * one[:, 1:] for one in (means, alone)
        )
        return cls(np.maximum(means[:, 0] - baseline, 0) ** 2, own, np.maximum(whole - own, 0))


def _excess_square_per_unit(level: FloatArray, baseline: float) -> FloatArray:
    """The square of what a level is above the usual, for each unit of the level."""
    return np.asarray(np.maximum(level - baseline, 0) ** 2 / np.where(level > 0, level, 1))


@dataclass
class RecentCounter:
    """Marked events of the last month; fed in time order, in pieces of any size."""

    seconds: FloatArray = field(default_factory=lambda: np.empty(0))

    def count_before(self, marked: NDArray[np.bool_], seconds: FloatArray) -> NDArray[np.int64]:
        """How many marked events came in the hour and in the month before each, (2, rows).

        Args:
            marked: Which of these events are to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).

        >>> RecentCounter().before(np.array([True, True, False]), np.array([0.0, 9.0, 4000.0])).tolist()
        [[0, 1, 0], [0, 1, 2]]
        """
        if not len(seconds):
            return np.zeros((2, 0), dtype=np.int64)
        clock = np.maximum.accumulate(np.maximum(seconds, self.seconds[-1:].max(initial=-np.inf)))
        known = np.concatenate([self.seconds, clock[marked]])
        upto = len(self.seconds) + np.cumsum(marked) - marked
        counts = [
            upto - np.searchsorted(known, clock - span)
            for span in (SHORT_HALF_LIFE, LONG_HALF_LIFE)
        ]
        self.seconds = known[known >= clock[-1] - LONG_HALF_LIFE]
        return np.stack(counts)
