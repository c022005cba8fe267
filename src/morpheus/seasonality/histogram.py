"""Histograms of events over time, in bounded memory.

A bucket holds the number of events, the highest score, and the number of time-series anomalies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

SECONDS_PER_HOUR = 3600
"""Width of a bucket at first, in seconds."""


@dataclass(frozen=True)
class TimeHistogram:
    """Events of one user per bucket. Buckets without events are left out.

    Attributes:
        buckets: Numbers of the buckets, counted from 1970, ascending, (buckets,).
        events: Events in each, (buckets,).
        max_scores: Highest score in each, -inf without a score, (buckets,).
        flagged: Time-series anomalies in each, (buckets,).
    """

    buckets: NDArray[np.int64]
    events: NDArray[np.int64]
    max_scores: NDArray[np.float64]
    flagged: NDArray[np.int64]

    @classmethod
    def from_events(
        cls,
        seconds: NDArray[np.float64],
        scores: NDArray[np.float64],
        flagged: NDArray[np.bool_],
        bucket_seconds: int = SECONDS_PER_HOUR,
    ) -> TimeHistogram:
        """Count events, (rows,) each.

        Args:
            seconds: Times, in seconds since 1970.
            scores: Scores; NaN for an event without one.
            flagged: Whether an event is a time-series anomaly.
            bucket_seconds: Width of a bucket.

        >>> seconds, scores = np.array([0.0, 10, 7300]), np.array([1, 5, np.nan])
        >>> histogram = TimeHistogram.from_events(seconds, scores, np.zeros(3, bool))
        >>> histogram.buckets.tolist(), histogram.events.tolist(), histogram.max_scores.tolist()
        ([0, 2], [2, 1], [5.0, -inf])
        """
        buckets = np.floor_divide(seconds, bucket_seconds).astype(np.int64)
        known = np.where(np.isnan(scores), -np.inf, scores)
        return _merge_buckets(
            buckets, np.ones(len(buckets), np.int64), known, flagged.astype(np.int64)
        )

    @classmethod
    def empty(cls) -> TimeHistogram:
        """Return a histogram without events."""
        return cls.from_events(np.empty(0), np.empty(0), np.empty(0, np.bool_))

    def merge(self, other: TimeHistogram) -> TimeHistogram:
        """Add the events of another histogram of the same user and bucket width."""
        return _merge_buckets(
            np.concatenate([self.buckets, other.buckets]),
            np.concatenate([self.events, other.events]),
            np.concatenate([self.max_scores, other.max_scores]),
            np.concatenate([self.flagged, other.flagged]),
        )

    def downsample(self, factor: int) -> TimeHistogram:
        """Return the same events in buckets that are `factor` times as wide."""
        return _merge_buckets(self.buckets // factor, self.events, self.max_scores, self.flagged)


def _merge_buckets(
    buckets: NDArray[np.int64],
    events: NDArray[np.int64],
    max_scores: NDArray[np.float64],
    flagged: NDArray[np.int64],
) -> TimeHistogram:
    """Combine entries of the same bucket."""
    if not len(buckets):
        return TimeHistogram(buckets, events, max_scores, flagged)
    order = np.argsort(buckets, kind="stable")
    merged, starts = np.unique(buckets[order], return_index=True)
    return TimeHistogram(
        merged,
        np.add.reduceat(events[order], starts),
        np.maximum.reduceat(max_scores[order], starts),
        np.add.reduceat(flagged[order], starts),
    )


@dataclass
class UserHistograms:
    """The histograms of many users, in bounded memory.

    If there are too many buckets, all of them become wider.

    Attributes:
        max_buckets: Approximate maximum number of buckets of all users together.
        bucket_seconds: Width of a bucket.
        users: Histogram of each user.
    """

    max_buckets: int = 2_000_000
    bucket_seconds: int = SECONDS_PER_HOUR

    def __post_init__(self) -> None:
        self.users: dict[str | None, TimeHistogram] = {}
        self._pending: dict[str | None, list[TimeHistogram]] = {}
        self._n_buckets = 0

    def add(self, user: str | None, histogram: TimeHistogram) -> None:
        """Add events of a user, counted in buckets of an hour."""
        if not len(histogram.buckets):
            return
        resampled = (
            histogram
            if self.bucket_seconds == SECONDS_PER_HOUR
            else histogram.downsample(self.bucket_seconds // SECONDS_PER_HOUR)
        )
        self._pending.setdefault(user, []).append(resampled)
        self._n_buckets += len(resampled.buckets)
        if self._n_buckets > self.max_buckets:
            self.compact()

    def compact(self) -> None:
        """Merge what was added, and widen all buckets until there are few enough."""
        if not self._pending:
            return
        for user, histograms in self._pending.items():
            merged = [self.users[user]] if user in self.users else []
            self.users[user] = reduce(TimeHistogram.merge, [*merged, *histograms])
        self._pending.clear()
        self._n_buckets = self._count_buckets()
        # Half of the maximum, so that the next events do not widen the buckets again at once.
        while self._n_buckets > self.max_buckets // 2:
            self.bucket_seconds *= 2
            self.users = {user: histogram.downsample(2) for user, histogram in self.users.items()}
            self._n_buckets = self._count_buckets()

    def _count_buckets(self) -> int:
        return sum(len(histogram.buckets) for histogram in self.users.values())

    @property
    def bucket_range(self) -> tuple[int, int] | None:
        """First bucket of all users, and the one after the last; call `compact` before."""
        if not self.users:
            return None
        return (
            min(int(histogram.buckets[0]) for histogram in self.users.values()),
            max(int(histogram.buckets[-1]) for histogram in self.users.values()) + 1,
        )
