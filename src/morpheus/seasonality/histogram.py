"""Events over time in a few numbers: how many there were in each cell, and how high they scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

SECONDS_PER_HOUR = 3600
"""Seconds of a cell, to begin with."""


@dataclass(frozen=True)
class TimeHistogram:
    """One user's events, cell by cell; cells without events are left out.

    Attributes:
        buckets: Which cells, counted from 1970, ascending, (cells,).
        events: Events in each, (cells,).
        max_scores: The highest score in each, -inf where none has a score, (cells,).
        flagged: Events in each that break the user's rhythm, (cells,).
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
            seconds: When they happened, since 1970.
            scores: How unusual they are; NaN without a score.
            flagged: Whether they break the rhythm.
            bucket_seconds: Seconds of a cell.

        >>> cells = TimeHistogram.of(np.array([0.0, 10, 7300]), np.array([1, 5, np.nan]), np.zeros(3, bool))
        >>> cells.at.tolist(), cells.events.tolist(), cells.worst.tolist()
        ([0, 2], [2, 1], [5.0, -inf])
        """
        at = np.floor_divide(seconds, bucket_seconds).astype(np.int64)
        worst = np.where(np.isnan(scores), -np.inf, scores)
        return _merge_buckets(at, np.ones(len(at), np.int64), worst, flagged.astype(np.int64))

    @classmethod
    def empty(cls) -> TimeHistogram:
        """No events."""
        return cls.from_events(np.empty(0), np.empty(0), np.empty(0, np.bool_))

    def merge(self, other: TimeHistogram) -> TimeHistogram:
        """These events and others of the same user, in cells as wide."""
        return _merge_buckets(
            np.concatenate([self.buckets, other.buckets]),
            np.concatenate([self.events, other.events]),
            np.concatenate([self.max_scores, other.max_scores]),
            np.concatenate([self.flagged, other.flagged]),
        )

    def downsample(self, factor: int) -> TimeHistogram:
        """The same events in cells so many times as wide."""
        return _merge_buckets(self.buckets // factor, self.events, self.max_scores, self.flagged)


def _merge_buckets(
    buckets: NDArray[np.int64],
    events: NDArray[np.int64],
    max_scores: NDArray[np.float64],
    flagged: NDArray[np.int64],
) -> TimeHistogram:
    """Put together what lies in the same cell."""
    if not len(buckets):
        return TimeHistogram(buckets, events, max_scores, flagged)
    order = np.argsort(buckets, kind="stable")
    cells, starts = np.unique(buckets[order], return_index=True)
    return TimeHistogram(
        cells,
        np.add.reduceat(events[order], starts),
        np.maximum.reduceat(max_scores[order], starts),
        np.add.reduceat(flagged[order], starts),
    )


@dataclass
class UserHistograms:
    """The cells of many users, in bounded memory: where there are too many, all become wider.

    Attributes:
        max_buckets: Cells kept, about, of all users together.
        bucket_seconds: Seconds of a cell.
        users: The cells of each user.
    """

    max_buckets: int = 2_000_000
    bucket_seconds: int = SECONDS_PER_HOUR

    def __post_init__(self) -> None:
        self.users: dict[str | None, TimeHistogram] = {}
        self._pending: dict[str | None, list[TimeHistogram]] = {}
        self._n_buckets = 0

    def add(self, user: str | None, histogram: TimeHistogram) -> None:
        """Add events of a user, counted in cells of an hour."""
        if not len(histogram.buckets):
            return
        wide = (
            histogram
            if self.bucket_seconds == SECONDS_PER_HOUR
            else histogram.downsample(self.bucket_seconds // SECONDS_PER_HOUR)
        )
        self._pending.setdefault(user, []).append(wide)
        self._n_buckets += len(wide.buckets)
        if self._n_buckets > self.max_buckets:
            self.compact()

    def compact(self) -> None:
        """Join what was added; widen all cells until they are few enough."""
        if not self._pending:
            return
        for user, some in self._pending.items():
            known = [self.users[user]] if user in self.users else []
            self.users[user] = reduce(TimeHistogram.merge, [*known, *some])
        self._pending.clear()
        while (
            held := sum(len(cells.buckets) for cells in self.users.values())
        ) > self.max_buckets // 2:
            self.bucket_seconds *= 2
            self.users = {user: cells.downsample(2) for user, cells in self.users.items()}
        self._n_buckets = held

    @property
    def bucket_range(self) -> tuple[int, int] | None:
        """The first cell of anybody, and the one behind the last; call `settle` before."""
        if not self.users:
            return None
        return (
            min(int(cells.buckets[0]) for cells in self.users.values()),
            max(int(cells.buckets[-1]) for cells in self.users.values()) + 1,
        )
