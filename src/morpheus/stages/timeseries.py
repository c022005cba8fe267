"""`timeseries`: flag the events in time bins that break their user's rhythm."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import TIME, TS_ANOMALY
from morpheus.core.batch import Batch, Losses, Scored
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.seasonality.causal import CausalCounts, CausalRule
from morpheus.seasonality.detector import (
    assign_bins,
    detect_anomalous_centres,
    max_zscore,
    parse_duration,
    start_of_day,
)

IntArray = NDArray[np.int64]

logger = logging.getLogger(__name__)

# The cells of one window are held at once: 11 days of seconds, two years of minutes.
_MAX_WINDOW_BINS = 1_000_000
# One event is no burst. In a window that holds next to nothing else it would always stand out, and
# a user who does something once a day would be flagged every day.
_MIN_BURST_EVENTS = 2
_SUGGESTED_RESOLUTIONS = (
    1,
    2,
    5,
    10,
    15,
    20,
    30,
    60,
    120,
    300,
    600,
    900,
    1200,
    1800,
    3600,
    7200,
    21600,
)


class TimeseriesState(State):
    """What `timeseries --causal` remembers about one user: events per bin of the past.

    The size grows with the number of bins in two --min_window, 24 bytes for each.
    """

    max_bytes = 1 << 16

    counts: CausalCounts = msgspec.field(default_factory=CausalCounts)


@dataclass(frozen=True)
class Timeseries(Transform):
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
        90.0, "Share of frequencies that are no rhythm, the weakest first.", min=0, max=100
    )
    zscore_threshold: float = option(
        8.0, "Distance from the rhythm, in standard deviations, that is flagged.", min=0
    )

    causal: bool = option(
        False,
        "Judge each event when it arrives, by the two --min_window before it. Only bursts are "
        "flagged. Needed where results must not depend on how the input is cut, as with --state.",
        flag=True,
    )

    def validate(self) -> None:
        """Reject durations that are not valid; warn about settings that never flag anything."""
        if self.causal and self.cold_end:
            raise UsageError(
                "timeseries: --cold_end is about what comes after an event, and --causal looks at "
                "what came before. Use only one of the two."
            )
        rule = _DetectorConfig.from_stage(self)
        if rule.window_bins > _MAX_WINDOW_BINS:
            raise UsageError(
                f"--resolution: {rule.window_bins:,} bins of {self.resolution} in a window are more than "
                f"{_MAX_WINDOW_BINS:,}. Use wider bins, such as `--resolution 10m`, or a shorter "
                f"--min_window."
            )
        if self.zscore_threshold > max_zscore(rule.half_window):
            logger.warning(
                "timeseries can flag nothing: in a window of %d bins (--min_window %s on either "
                "side, --resolution %s) no z-score exceeds %.1f, and --zscore_threshold is %g. "
                "Use %s.",
                rule.window_bins,
                self.min_window,
                self.resolution,
                max_zscore(rule.half_window),
                self.zscore_threshold,
                rule.suggest_fix(),
            )

    @property
    def needs(self) -> Requirements:
        """Two-sided windows need the end of the input, so their state is not kept between runs."""
        return Requirements(per_run=not self.causal)

    def open(self, context: StageContext) -> TimeseriesState | _UserSeasonalityState:  # noqa: ARG002 - starts empty
        """Start without events."""
        if self.causal:
            return TimeseriesState()
        return _UserSeasonalityState(_DetectorConfig.from_stage(self))

    def process(
        self, batch: Losses | Scored, state: TimeseriesState | _UserSeasonalityState
    ) -> Iterator[Losses | Scored]:
        """Add the flags; two-sided, a batch waits until the windows of its events are complete."""
        if isinstance(state, _UserSeasonalityState):
            yield from state.add(batch)
            return
        times = batch.frame[TIME].dt.epoch("us").to_numpy()
        flags = state.counts.add(times, self._causal_rule())
        column = pl.Series(TS_ANOMALY, flags, dtype=pl.Boolean)
        yield replace(batch, frame=batch.frame.with_columns(column))

    def flush(self, state: TimeseriesState | _UserSeasonalityState) -> Iterator[Losses | Scored]:
        """Judge the bins that still wait, as if nothing came after them."""
        return state.flush() if isinstance(state, _UserSeasonalityState) else iter(())

    def _causal_rule(self) -> CausalRule:
        config = _DetectorConfig.from_stage(self)
        return CausalRule(
            config.resolution,
            2 * config.half_window,
            config.hot_start,
            config.filter_percent,
            config.zscore_threshold,
        )


@dataclass(frozen=True)
class _DetectorConfig:
    """How bins are judged: the stage's options as numbers."""

    resolution: int
    half_window: int
    hot_start: bool
    cold_end: bool
    filter_percent: float
    zscore_threshold: float

    @classmethod
    def from_stage(cls, stage: Timeseries) -> _DetectorConfig:
        """Read the options."""
        resolution = parse_duration(stage.resolution, option="--resolution")
        window = parse_duration(stage.min_window, option="--min_window")
        return cls(
            resolution,
            math.ceil(window / resolution),
            stage.hot_start,
            stage.cold_end,
            stage.filter_percent,
            stage.zscore_threshold,
        )

    @property
    def window_bins(self) -> int:
        """Bins in a window."""
        return 2 * self.half_window + 1

    def suggest_fix(self) -> str:
        """What to type so that a burst can reach the threshold, with a quarter to spare."""
        lower = math.floor(max_zscore(self.half_window) / 1.25)
        fits = [
            width
            for width in _SUGGESTED_RESOLUTIONS
            if max_zscore(self.half_window * self.resolution // width)
            >= 1.25 * self.zscore_threshold
        ]
        threshold = f"`--zscore_threshold {lower}`"
        return f"`--resolution {_format_seconds(max(fits))}` or {threshold}" if fits else threshold


def _format_seconds(seconds: int) -> str:
    return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"


@dataclass
class _UserSeasonalityState:
    """One user's events over time: no more than windows still need.

    Attributes:
        config: How bins are judged.
        start: Start of bin 0, in microseconds since 1970: the day of the first event.
        first_bin: First bin with events.
        last_bin: Last bin with events.
        evaluated_until: Bins below this one are judged.
        bins: Bins with events that are in reach of a bin yet to be judged, ascending.
        counts: Events in each of them.
        flagged: Bins found to break the rhythm that events may still ask for.
        pending: Batches with events yet to be judged, and the bin of each event.
    """

    config: _DetectorConfig
    start: int | None = None
    first_bin: int = 0
    last_bin: int = 0
    evaluated_until: int = 0
    bins: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    flagged: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    pending: deque[tuple[Losses | Scored, IntArray]] = field(default_factory=deque)

    def add(self, batch: Losses | Scored) -> Iterator[Losses | Scored]:
        """Count a batch's events; hand out the batches whose windows it completes."""
        where = self._assign_bins(batch)
        self.pending.append((batch, where))
        if where.size:
            self._add_counts(where)
            self._evaluate(self.last_bin - self.config.half_window)
        yield from self._emit_evaluated()

    def flush(self) -> Iterator[Losses | Scored]:
        """Judge what is left: nothing more will come."""
        self._evaluate(self.last_bin + 1)
        yield from self._emit_evaluated()

    def _assign_bins(self, batch: Batch) -> IntArray:
        """Bin of each event."""
        times = batch.frame[TIME].dt.epoch("us").to_numpy()
        if not times.size:
            return times.astype(np.int64)
        first = self.start is None
        if self.start is None:
            self.start = start_of_day(int(times.min()))
        where = assign_bins(times, start=self.start, resolution=self.config.resolution)
        low, high = int(where.min()), int(where.max())
        self.first_bin = low if first else min(low, self.first_bin)
        self.last_bin = high if first else max(high, self.last_bin)
        self.evaluated_until = low if first else self.evaluated_until
        return where

    def _add_counts(self, bin_numbers: IntArray) -> None:
        """Add events to their bins; one that comes after its bin was let go is not counted."""
        new, counts = np.unique(bin_numbers, return_counts=True)
        held = new >= self.evaluated_until - self.config.half_window
        every = np.concatenate([self.bins, new[held]])
        self.bins, place = np.unique(every, return_inverse=True)
        total = np.zeros(len(self.bins), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, counts[held]]))
        self.counts = total

    def _evaluate(self, end: int) -> None:
        """Judge the bins below `end`, and let go of those that no later window reaches."""
        if end <= self.evaluated_until:
            return
        found = detect_anomalous_centres(
            self.bins,
            self.counts,
            self._candidate_bins(end),
            half_width=self.config.half_window,
            filter_percent=self.config.filter_percent,
            zscore=self.config.zscore_threshold,
        )
        if found.size:
            logger.debug("Found anomalies: %s", [str(self._bin_start(int(each))) for each in found])
        self.evaluated_until = end
        kept = np.searchsorted(self.bins, end - self.config.half_window)
        self.bins, self.counts = self.bins[kept:], self.counts[kept:]
        self.flagged = np.concatenate([self.flagged, found])

    def _candidate_bins(self, end: int) -> IntArray:
        """Bins to be judged: those with a burst, and with all the window that is asked for."""
        low, high = self.evaluated_until, end
        if not self.config.hot_start:
            low = max(low, self.first_bin + self.config.half_window)
        if self.config.cold_end:
            high = min(high, self.last_bin - self.config.half_window + 1)
        return self.bins[
            (self.bins >= low) & (self.bins < high) & (self.counts >= _MIN_BURST_EVENTS)
        ]

    def _emit_evaluated(self) -> Iterator[Losses | Scored]:
        """Hand out, in order, the batches whose events are all judged."""
        while (
            self.pending
            and self.pending[0][1].max(initial=self.evaluated_until - 1) < self.evaluated_until
        ):
            batch, where = self.pending.popleft()
            flags = pl.Series(TS_ANOMALY, np.isin(where, self.flagged), dtype=pl.Boolean)
            yield replace(batch, frame=batch.frame.with_columns(flags))
        if self.flagged.size:
            self.flagged = self.flagged[self.flagged >= self._oldest_needed_bin()]

    def _oldest_needed_bin(self) -> int:
        """Lowest bin whose flag can still be asked for."""
        reach = self.evaluated_until - self.config.half_window
        return int(self.pending[0][1].min(initial=reach)) if self.pending else reach

    def _bin_start(self, number: int) -> datetime:
        """Start of a bin."""
        start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.start or 0)
        return start + timedelta(seconds=number * self.config.resolution)
