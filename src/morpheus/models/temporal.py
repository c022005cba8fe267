"""How earlier events of a user raise the risk of an event.

An intruder who has taken over an account is usually active for a while. Two exponential moving
averages of the anomaly, one with a half-life of an hour and one of thirty days, are added to the
anomaly of the event itself: docs/decisions/005-risk.md.

The classes that are fed batch by batch (`ExponentialMovingAverage`, `TemporalContext` and
`RecentCounter`) are a user's state. They are msgspec structs of numbers and arrays, so that a
checkpoint can store them, and their result does not depend on how the events are cut into batches.
Times are seconds since any fixed moment, and ascending; an earlier time counts as the latest so
far.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

SHORT_HALF_LIFE, LONG_HALF_LIFE = 3600.0, 30 * 86400.0
"""Half-lives of the two averages, in seconds."""
SHORT_EMA_WEIGHT, LONG_EMA_WEIGHT = 6.0, 4.0
"""Weights of the two averages in the risk. The weight of the event itself is 1; see
docs/decisions/005-risk.md."""
CHUNK_HALF_LIVES = 40.0
"""Half-lives computed in one pass. Within this range powers of two are exact enough in a double."""

MAX_COUNTED = 100_000
"""Largest number of marked events that `RecentCounter` counts and remembers."""

FloatArray = NDArray[np.float64]


class ExponentialMovingAverage(msgspec.Struct):
    """Average of the events so far. The weight of an event halves every `half_life` seconds.

    Its size is one number for each averaged quantity, and three more.

    Attributes:
        half_life: Seconds in which a weight halves.
        weighted_sum: Sum of the weighted values at `last_time`, (quantities,); (1,) before the
            first event.
        total_weight: Sum of the weights at `last_time`.
        last_time: Time of the last event, in half-lives; -inf before the first.
    """

    half_life: float
    weighted_sum: FloatArray = msgspec.field(default_factory=lambda: np.zeros(1))
    total_weight: float = 0.0
    last_time: float = float("-inf")

    def update(self, values: FloatArray, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Add events, and return the average at each event.

        Args:
            values: Values of each event, (rows, quantities).
            seconds: Time of each event, (rows,).

        Returns:
            The average at each event, that event included, (rows, quantities), and the share of
            that event's weight in it, (rows,).
        """
        clock = (
            np.maximum.accumulate(np.maximum(seconds, self.last_time * self.half_life))
            / self.half_life
        )
        means, weights, start = np.empty(values.shape), np.empty(len(values)), 0
        while start < len(values):
            end = int(np.searchsorted(clock, clock[start] + CHUNK_HALF_LIVES, side="right"))
            chunk = slice(start, end)
            means[chunk], weights[chunk] = self._update_chunk(values[chunk], clock[chunk])
            start = end
        return means, weights

    def _update_chunk(self, values: FloatArray, clock: FloatArray) -> tuple[FloatArray, FloatArray]:
        # Weights relative to the first event of the chunk: later events have larger ones.
        decay, growth = 0.5 ** (clock[0] - self.last_time), 2.0 ** (clock - clock[0])
        totals = decay * self.weighted_sum + np.cumsum(values * growth[:, None], axis=0)
        weights = decay * self.total_weight + np.cumsum(growth)
        self.weighted_sum = totals[-1] / growth[-1]
        self.total_weight = float(weights[-1] / growth[-1])
        self.last_time = float(clock[-1])
        return totals / weights[:, None], growth / weights


@dataclass(frozen=True)
class EventAnomaly:
    """Anomaly of some events.

    Attributes:
        total: Anomaly of each event, (rows,).
        columns: Part of each column in it, (rows, C). With C = 0 risks are not divided among
            columns.
    """

    total: FloatArray
    columns: FloatArray

    @classmethod
    def from_columns(cls, columns: FloatArray) -> EventAnomaly:
        """Add up the anomaly of columns, (rows, C)."""
        return cls(columns.sum(1), columns)

    @classmethod
    def from_totals(cls, total: FloatArray) -> EventAnomaly:
        """Use the anomaly of events, (rows,), without columns."""
        return cls(total, np.empty((len(total), 0)))

    def take(self, rows: NDArray[np.intp]) -> EventAnomaly:
        """Select events by position; a position can occur several times."""
        return EventAnomaly(self.total[rows], self.columns[rows])


@dataclass(frozen=True)
class ContextualRisk:
    """Risk of some events, with their context.

    Attributes:
        risk: Risk of each event, (rows,).
        contributions: Contribution of each column, (3, rows, C): first of the event itself, as if
            nothing anomalous had happened before; then of earlier events through the short average,
            and through the long one.
    """

    risk: FloatArray
    contributions: FloatArray


class TemporalContext(msgspec.Struct):
    """The moving averages of one user. Its size is 2 (C + 1) numbers for C columns.

    Attributes:
        short_ema: Average over about an hour, of the square roots of the anomaly.
        long_ema: Average over about thirty days, of the square roots of the anomaly in values that
            other users have too.
    """

    short_ema: ExponentialMovingAverage = msgspec.field(
        default_factory=lambda: ExponentialMovingAverage(SHORT_HALF_LIFE)
    )
    long_ema: ExponentialMovingAverage = msgspec.field(
        default_factory=lambda: ExponentialMovingAverage(LONG_HALF_LIFE)
    )

    def compute_risk(
        self,
        event_anomaly: FloatArray,
        shared_anomaly: FloatArray,
        seconds: FloatArray,
        short_ema_baseline: float = 0.0,
    ) -> FloatArray:
        """Compute the risk of each event with its context, (rows,).

        The averages are of square roots, and are squared. So lasting anomaly has a larger effect
        than a single peak: ten anomalous events in an hour have a higher risk than one event with
        ten times the anomaly. Of the short average, only the excess over the user's baseline
        counts, because some users always work in bursts. The long average covers only values that
        other users have too, because a new value that nobody else has is more often a change of the
        user's own habits.

        Args:
            event_anomaly: Anomaly of each event, (rows,).
            shared_anomaly: The part of it in values that other users have too, (rows,).
            seconds: Time of each event, (rows,).
            short_ema_baseline: Level that the short average usually stays below.

        >>> anomaly, seconds = np.array([9.0, 0.0, 0.0]), np.array([0.0, 1.0, 1e9])
        >>> TemporalContext().compute_risk(anomaly, np.zeros(3), seconds).round(2).tolist()
        [63.0, 13.5, 0.0]
        """
        anomaly, shared = (
            EventAnomaly.from_totals(event_anomaly),
            EventAnomaly.from_totals(shared_anomaly),
        )
        return self.compute_contributions(anomaly, shared, seconds, short_ema_baseline).risk

    def compute_contributions(
        self,
        anomaly: EventAnomaly,
        shared_anomaly: EventAnomaly,
        seconds: FloatArray,
        short_ema_baseline: float = 0.0,
    ) -> ContextualRisk:
        """Compute the risk of each event, and the contribution of each column to it.

        The square root of an event's anomaly is divided among its columns in proportion to their
        anomaly. An average divides like the events in it, and the square of an average divides like
        the average.

        Args:
            anomaly: Anomaly of the events.
            shared_anomaly: The part of it in values that other users have too.
            seconds: Time of each event, (rows,).
            short_ema_baseline: Level that the short average usually stays below.
        """
        short = EmaContribution.from_ema(self.short_ema, anomaly, seconds, short_ema_baseline)
        long = EmaContribution.from_ema(self.long_ema, shared_anomaly, seconds, 0.0)
        own = anomaly.columns + SHORT_EMA_WEIGHT * short.current + LONG_EMA_WEIGHT * long.current
        earlier = SHORT_EMA_WEIGHT * short.earlier, LONG_EMA_WEIGHT * long.earlier
        risk = anomaly.total + SHORT_EMA_WEIGHT * short.total + LONG_EMA_WEIGHT * long.total
        return ContextualRisk(risk, np.stack([own, *earlier]))


@dataclass(frozen=True)
class EmaContribution:
    """Contribution of one moving average to the risk.

    Attributes:
        total: Contribution to each event, (rows,).
        current: The part due to the event itself, as if nothing had come before, (rows, C).
        earlier: The part due to earlier events, (rows, C).
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
        """Add events to an average, and square its excess over a baseline."""
        roots = np.sqrt(anomaly.total)[:, None]
        values = np.hstack([roots, anomaly.columns / np.where(roots > 0, roots, 1)])
        means, weight = ema.update(values, seconds)
        alone = weight[:, None] * values  # The average if all earlier events were 0.
        whole, current = (
            _excess_square_per_unit(level[:, :1], baseline) * level[:, 1:]
            for level in (means, alone)
        )
        total = np.maximum(means[:, 0] - baseline, 0) ** 2
        return cls(total, current, np.maximum(whole - current, 0))


def _excess_square_per_unit(level: FloatArray, baseline: float) -> FloatArray:
    """Return the squared excess of a level over a baseline, per unit of the level."""
    return np.asarray(np.maximum(level - baseline, 0) ** 2 / np.where(level > 0, level, 1))


class RecentCounter(msgspec.Struct):
    """Times of the marked events in the last thirty days, to count them.

    It holds at most `MAX_COUNTED` times of 8 bytes; counts stop at that number.

    Attributes:
        seconds: Times of the marked events, ascending, (events,).
    """

    seconds: FloatArray = msgspec.field(default_factory=lambda: np.empty(0))

    def count_before(self, marked: NDArray[np.bool_], seconds: FloatArray) -> NDArray[np.int64]:
        """Count the marked events in the hour and in the thirty days before each event.

        Args:
            marked: Which events are counted, (rows,).
            seconds: Time of each event, (rows,).

        Returns:
            Counts, (2, rows).

        >>> marked, seconds = np.array([True, True, False]), np.array([0.0, 9.0, 4000.0])
        >>> RecentCounter().count_before(marked, seconds).tolist()
        [[0, 1, 0], [0, 1, 2]]
        """
        if not len(seconds):
            return np.zeros((2, 0), dtype=np.int64)
        clock = np.maximum.accumulate(np.maximum(seconds, self.seconds[-1:].max(initial=-np.inf)))
        times = np.concatenate([self.seconds, clock[marked]])
        n_before = len(self.seconds) + np.cumsum(marked) - marked
        counts = [
            n_before - np.searchsorted(times, clock - span)
            for span in (SHORT_HALF_LIFE, LONG_HALF_LIFE)
        ]
        # The latest MAX_COUNTED are enough for counts that stop there, wherever batches are cut.
        self.seconds = times[times >= clock[-1] - LONG_HALF_LIFE][-MAX_COUNTED:].copy()
        return np.minimum(np.stack(counts), MAX_COUNTED)
