"""`timeseries`: flag the events in time bins that break their user's rhythm."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RHYTHM, TIME
from morpheus.errors import UsageError
from morpheus.records import Batch, Losses, Scored
from morpheus.rhythm import bins, fourier
from morpheus.stage import Stage, option

Integers = NDArray[np.int64]

logger = logging.getLogger(__name__)

# The cells of one window are held at once: 11 days of seconds, two years of minutes.
_MOST_CELLS = 1_000_000
# One event is no burst. In a window that holds next to nothing else it would always stand out, and
# a user who does something once a day would be flagged every day.
_BURST = 2
_ROUND_SECONDS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 21600)


@dataclass(frozen=True)
class Timeseries(Stage):
    """Flag events in time bins that break their user's rhythm.

    Takes events with losses or scores and adds the column `ts_anomaly`, True or False. Time is
    cut into bins of `--resolution`. Each bin that holds events is compared with the `--min_window`
    before and after it: the strongest frequencies of that window are its rhythm, and a bin further
    from it than `--zscore_threshold` standard deviations is flagged, with all its events. A single
    event in a bin is never flagged.

    Example: `timeseries --resolution=10m --min_window="12 h" --zscore_threshold=8`
    """

    name = "timeseries"
    takes = (Losses, Scored)
    needs_fingerprint = False

    resolution: str = option("1 h", "Width of a bin: a number with a unit, such as `10m`.")
    min_window: str = option("12 h", "Time looked at on either side of a bin, such as `12 h`.")
    hot_start: bool = option(
        False,
        "Check bins from a user's first event on, as if nothing had happened before it. Otherwise "
        "checks begin one --min_window later.",
        flag=True,
    )
    cold_end: bool = option(
        False,
        "Stop checking one --min_window before a user's last event. Otherwise bins are checked to "
        "the end, as if nothing happened after it.",
        flag=True,
    )
    filter_percent: float = option(
        90.0, "Share of frequencies that are no rhythm, the weakest first.", low=0, high=100
    )
    zscore_threshold: float = option(
        8.0, "Distance from the rhythm, in standard deviations, that is flagged.", low=0
    )

    def check(self) -> None:
        """Refuse durations that are none; warn of settings that never flag anything."""
        rule = _Rule.of(self)
        if rule.cells > _MOST_CELLS:
            raise UsageError(
                f"--resolution: {rule.cells:,} bins of {self.resolution} in a window are more than "
                f"{_MOST_CELLS:,}. Use wider bins, such as `--resolution 10m`, or a shorter "
                f"--min_window."
            )
        if self.zscore_threshold > fourier.ceiling(rule.half):
            logger.warning(
                "timeseries can flag nothing: in a window of %d bins (--min_window %s on either "
                "side, --resolution %s) no z-score exceeds %.1f, and --zscore_threshold is %g. "
                "Use %s.",
                rule.cells,
                self.min_window,
                self.resolution,
                fourier.ceiling(rule.half),
                self.zscore_threshold,
                rule.remedy(),
            )

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Losses | Scored]:
        """Add the flags; batches are held until the windows of all their events are complete."""
        rule = _Rule.of(self)
        users: dict[str | None, _Rhythm] = {}
        for batch in batches:
            if batch.user not in users:
                users[batch.user] = _Rhythm(rule)
            yield from users[batch.user].take(batch)
        for rhythm in users.values():
            yield from rhythm.close()


@dataclass(frozen=True)
class _Rule:
    """How bins are judged: the stage's options as numbers."""

    resolution: int
    half: int
    hot_start: bool
    cold_end: bool
    filter_percent: float
    zscore: float

    @classmethod
    def of(cls, stage: Timeseries) -> _Rule:
        """Read the options."""
        resolution = bins.seconds(stage.resolution, option="--resolution")
        window = bins.seconds(stage.min_window, option="--min_window")
        return cls(
            resolution,
            math.ceil(window / resolution),
            stage.hot_start,
            stage.cold_end,
            stage.filter_percent,
            stage.zscore_threshold,
        )

    @property
    def cells(self) -> int:
        """Bins in a window."""
        return 2 * self.half + 1

    def remedy(self) -> str:
        """What to type so that a burst can reach the threshold, with a quarter to spare."""
        lower = math.floor(fourier.ceiling(self.half) / 1.25)
        fits = [
            width
            for width in _ROUND_SECONDS
            if fourier.ceiling(self.half * self.resolution // width) >= 1.25 * self.zscore
        ]
        threshold = f"`--zscore_threshold {lower}`"
        return f"`--resolution {_spelt(max(fits))}` or {threshold}" if fits else threshold


def _spelt(seconds: int) -> str:
    return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"


@dataclass
class _Rhythm:
    """One user's events over time: no more than windows still need.

    Attributes:
        rule: How bins are judged.
        start: Start of bin 0, in microseconds since 1970: the day of the first event.
        first: First bin with events.
        last: Last bin with events.
        decided: Bins below this one are judged.
        bins: Bins with events that are in reach of a bin yet to be judged, ascending.
        counts: Events in each of them.
        flagged: Bins found to break the rhythm that events may still ask for.
        waiting: Batches with events yet to be judged, and the bin of each event.
    """

    rule: _Rule
    start: int | None = None
    first: int = 0
    last: int = 0
    decided: int = 0
    bins: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    flagged: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    waiting: deque[tuple[Losses | Scored, Integers]] = field(default_factory=deque)

    def take(self, batch: Losses | Scored) -> Iterator[Losses | Scored]:
        """Count a batch's events; hand out the batches whose windows it completes."""
        where = self._place(batch)
        self.waiting.append((batch, where))
        if where.size:
            self._count(where)
            self._decide(self.last - self.rule.half)
        yield from self._done()

    def close(self) -> Iterator[Losses | Scored]:
        """Judge what is left: nothing more will come."""
        self._decide(self.last + 1)
        yield from self._done()

    def _place(self, batch: Batch) -> Integers:
        """Bin of each event."""
        times = batch.frame[TIME].dt.epoch("us").to_numpy()
        if not times.size:
            return times.astype(np.int64)
        first = self.start is None
        if self.start is None:
            self.start = bins.day_of(int(times.min()))
        where = bins.bin_of(times, start=self.start, resolution=self.rule.resolution)
        low, high = int(where.min()), int(where.max())
        self.first = low if first else min(low, self.first)
        self.last = high if first else max(high, self.last)
        self.decided = low if first else self.decided
        return where

    def _count(self, where: Integers) -> None:
        """Add events to their bins; one that comes after its bin was let go is not counted."""
        new, counts = np.unique(where, return_counts=True)
        held = new >= self.decided - self.rule.half
        every = np.concatenate([self.bins, new[held]])
        self.bins, place = np.unique(every, return_inverse=True)
        total = np.zeros(len(self.bins), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts[held]]))
        self.counts = total

    def _decide(self, end: int) -> None:
        """Judge the bins below `end`, and let go of those that no later window reaches."""
        if end <= self.decided:
            return
        found = fourier.unusual_centres(
            self.bins,
            self.counts,
            self._candidates(end),
            half=self.rule.half,
            filter_percent=self.rule.filter_percent,
            zscore=self.rule.zscore,
        )
        if found.size:
            logger.debug("Found anomalies: %s", [str(self._time(int(each))) for each in found])
        self.decided = end
        kept = np.searchsorted(self.bins, end - self.rule.half)
        self.bins, self.counts = self.bins[kept:], self.counts[kept:]
        self.flagged = np.concatenate([self.flagged, found])

    def _candidates(self, end: int) -> Integers:
        """Bins to be judged: those with a burst, and with all the window that is asked for."""
        low, high = self.decided, end
        if not self.rule.hot_start:
            low = max(low, self.first + self.rule.half)
        if self.rule.cold_end:
            high = min(high, self.last - self.rule.half + 1)
        return self.bins[(self.bins >= low) & (self.bins < high) & (self.counts >= _BURST)]

    def _done(self) -> Iterator[Losses | Scored]:
        """Hand out, in order, the batches whose events are all judged."""
        while self.waiting and self.waiting[0][1].max(initial=self.decided - 1) < self.decided:
            batch, where = self.waiting.popleft()
            flags = pl.Series(RHYTHM, np.isin(where, self.flagged), dtype=pl.Boolean)
            yield replace(batch, frame=batch.frame.with_columns(flags))
        if self.flagged.size:
            self.flagged = self.flagged[self.flagged >= self._oldest()]

    def _oldest(self) -> int:
        """Lowest bin whose flag can still be asked for."""
        reach = self.decided - self.rule.half
        return int(self.waiting[0][1].min(initial=reach)) if self.waiting else reach

    def _time(self, number: int) -> datetime:
        """Start of a bin."""
        start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.start or 0)
        return start + timedelta(seconds=number * self.rule.resolution)
