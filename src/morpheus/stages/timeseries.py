"""`timeseries`: flag events in time bins with an unusual number of events.

Two modes: two-sided windows, which wait for later events, and `--causal`, which uses earlier events
only. The mathematics is in `morpheus.seasonality`.
"""

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

from morpheus.columns import TS_ANOMALY
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

# All bins of a window are in memory at once. This is 11 days of seconds, or two years of minutes.
_MAX_WINDOW_BINS = 1_000_000
# A single event is not a burst. In an almost empty window it would always be anomalous, so a user
# with one event a day would be flagged every day.
_MIN_BURST_EVENTS = 2
_PER_RUN = "windows reach past the end of a run. Use `timeseries --causal`."
_MINUTE, _HOUR = 60, 3600
_SUGGESTED_RESOLUTIONS = (
    *(1, 2, 5, 10, 15, 20, 30),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 20, 30)),
    *(n * _HOUR for n in (1, 2, 6)),
)


class TimeseriesState(State):
    """What `timeseries --causal` remembers about one user.

    The size grows with the number of bins in two --min_window, 24 bytes per bin.

    Attributes:
        counts: Number of events in each bin of the past.
        resolution: Width of the bins, in seconds; 0 before the first event.
    """

    max_bytes = 1 << 16

    counts: CausalCounts = msgspec.field(default_factory=CausalCounts)
    resolution: int = 0


@dataclass(frozen=True)
class Timeseries(Transform):
    """Flag time-series anomalies: events in time bins with an unusual number of events.

    Takes events with losses or scores and adds the boolean column `ts_anomaly`. Time is divided
    into bins of `--resolution`. Each bin with events is compared with a window: the `--min_window`
    before and after it. The strongest frequencies of the window are the expected pattern. If a bin
    differs from it by more than `--zscore_threshold` standard deviations, all events of the bin are
    flagged. A single event in a bin is never flagged.

    With `--causal`, the window is the two `--min_window` before the event. Results then do not
    depend on later events.

    Example: `timeseries --resolution=10m --min_window="12 h" --zscore_threshold=8`
    """

    name = "timeseries"
    takes = (Losses, Scored)

    resolution: str = option("1 h", "Width of a time bin: a number with a unit, such as `10m`.")
    min_window: str = option(
        "12 h", "Length of the window before a bin and after it, such as `12 h`."
    )
    hot_start: bool = option(
        False,
        "Check bins from a user's first event on, as if the time before it had no events. By "
        "default checks start one --min_window later.",
        flag=True,
    )
    cold_end: bool = option(
        False,
        "Stop checks one --min_window before a user's last event. By default bins are checked to "
        "the end, as if the time after the last event had no events.",
        flag=True,
    )
    filter_percent: float = option(
        90.0, "Percentage of frequencies to ignore, the weakest first.", min=0, max=100
    )
    zscore_threshold: float = option(
        8.0,
        "Distance from the expected pattern, in standard deviations, above which a bin is flagged.",
        min=0,
    )
    causal: bool = option(
        False,
        "Compare each event with the two --min_window before it, when it arrives. Only bursts are "
        "flagged. Needed if results must not depend on how the input is divided, as with --state.",
        flag=True,
    )

    def validate(self) -> None:
        """Reject invalid durations; warn about options that never flag an event."""
        if self.causal and self.cold_end:
            raise UsageError(
                "timeseries: --cold_end is about events after a bin, and --causal uses only those "
                "before it. Use only one of the two."
            )
        config = _DetectorConfig.from_stage(self)
        if config.window_bins > _MAX_WINDOW_BINS:
            raise UsageError(
                f"--resolution: a window has {config.window_bins:,} bins of {self.resolution}, and "
                f"the maximum is {_MAX_WINDOW_BINS:,}. Use wider bins, such as `--resolution 10m`, "
                "or a shorter --min_window."
            )
        if self.zscore_threshold > max_zscore(config.half_window):
            logger.warning(
                "timeseries cannot flag any event: in a window of %d bins (--min_window %s on each "
                "side, --resolution %s) no z-score exceeds %.1f, and --zscore_threshold is %g. "
                "Use %s.",
                config.window_bins,
                self.min_window,
                self.resolution,
                max_zscore(config.half_window),
                self.zscore_threshold,
                config.suggest_fix(),
            )

    @property
    def needs(self) -> Requirements:
        """Two-sided windows need the end of the input, so their state is not kept between runs."""
        return Requirements(per_run="" if self.causal else _PER_RUN)

    def open(self, context: StageContext) -> TimeseriesState | _UserSeasonalityState:  # noqa: ARG002 - starts empty
        """Start without events."""
        if self.causal:
            return TimeseriesState()
        return _UserSeasonalityState(_DetectorConfig.from_stage(self))

    def process(
        self, batch: Losses | Scored, state: TimeseriesState | _UserSeasonalityState
    ) -> Iterator[Losses | Scored]:
        """Add the flags. Two-sided, a batch waits until the windows of its events are complete."""
        if isinstance(state, _UserSeasonalityState):
            yield from state.add(batch)
            return
        times, rule = batch.table.times_us, self._causal_rule()
        if state.resolution not in {0, rule.resolution}:
            raise UsageError(
                f"timeseries: the state file has counts of bins of {state.resolution} seconds, and "
                f"--resolution is {self.resolution}. Use the same --resolution, or give another "
                "--state file."
            )
        state.resolution = rule.resolution
        flags = state.counts.add(times, rule)
        column = pl.Series(TS_ANOMALY, flags, dtype=pl.Boolean)
        yield replace(batch, table=batch.table.with_columns([column]))

    def flush(self, state: TimeseriesState | _UserSeasonalityState) -> Iterator[Losses | Scored]:
        """Evaluate the remaining bins, as if no events came after them."""
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
    """The options of the stage as numbers.

    Attributes:
        resolution: Width of a bin, in seconds.
        half_window: Bins on each side of the evaluated one.
        hot_start: Evaluate bins from the first event on.
        cold_end: Stop half a window before the last event.
        filter_percent: Percentage of frequencies to ignore.
        zscore_threshold: Z-score above which a bin is flagged.
    """

    resolution: int
    half_window: int
    hot_start: bool
    cold_end: bool
    filter_percent: float
    zscore_threshold: float

    @classmethod
    def from_stage(cls, stage: Timeseries) -> _DetectorConfig:
        """Parse the options."""
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
        """Number of bins in a window."""
        return 2 * self.half_window + 1

    def suggest_fix(self) -> str:
        """Return options with which a burst can exceed the threshold by a quarter."""
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
    """One user's events over time, as far as windows still need them.

    Attributes:
        config: The options.
        start: Start of bin 0, in microseconds since 1970: the day of the first event.
        first_bin: First bin with events.
        last_bin: Last bin with events.
        evaluated_until: Bins below this one are evaluated.
        bins: Bins with events that a window still needs, ascending.
        counts: Number of events in each of these bins.
        flagged: Anomalous bins that events of pending batches can be in.
        pending: Batches with events that are not evaluated, and the bin of each event.
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
        """Count a batch's events, and yield the batches whose windows it completes."""
        bins = self._assign_bins(batch)
        self.pending.append((batch, bins))
        if bins.size:
            self._add_counts(bins)
            self._evaluate(self.last_bin - self.config.half_window)
        yield from self._emit_evaluated()

    def flush(self) -> Iterator[Losses | Scored]:
        """Evaluate the remaining bins."""
        self._evaluate(self.last_bin + 1)
        yield from self._emit_evaluated()

    def _assign_bins(self, batch: Batch) -> IntArray:
        """Return the bin of each event."""
        times = batch.table.times_us
        if not times.size:
            return times.astype(np.int64)
        first = self.start is None
        if self.start is None:
            self.start = start_of_day(int(times.min()))
        bins = assign_bins(times, start=self.start, resolution=self.config.resolution)
        low, high = int(bins.min()), int(bins.max())
        self.first_bin = low if first else min(low, self.first_bin)
        self.last_bin = high if first else max(high, self.last_bin)
        self.evaluated_until = low if first else self.evaluated_until
        return bins

    def _add_counts(self, bin_numbers: IntArray) -> None:
        """Add events to their bins. Events of bins that were released are not counted."""
        new, counts = np.unique(bin_numbers, return_counts=True)
        current = new >= self.evaluated_until - self.config.half_window
        merged = np.concatenate([self.bins, new[current]])
        self.bins, inverse = np.unique(merged, return_inverse=True)
        total = np.zeros(len(self.bins), np.int64)
        np.add.at(total, inverse, np.concatenate([self.counts, counts[current]]))
        self.counts = total

    def _evaluate(self, end: int) -> None:
        """Evaluate the bins below `end`, and release those that no later window needs."""
        if end <= self.evaluated_until:
            return
        anomalous = detect_anomalous_centres(
            self.bins,
            self.counts,
            self._candidate_bins(end),
            half_width=self.config.half_window,
            filter_percent=self.config.filter_percent,
            zscore=self.config.zscore_threshold,
        )
        if anomalous.size:
            starts = [str(self._bin_start(int(each))) for each in anomalous]
            logger.debug("Found anomalies: %s", starts)
        self.evaluated_until = end
        first = np.searchsorted(self.bins, end - self.config.half_window)
        self.bins, self.counts = self.bins[first:], self.counts[first:]
        self.flagged = np.concatenate([self.flagged, anomalous])

    def _candidate_bins(self, end: int) -> IntArray:
        """Return the bins to evaluate: those with a burst, and with a complete window if needed."""
        low, high = self.evaluated_until, end
        if not self.config.hot_start:
            low = max(low, self.first_bin + self.config.half_window)
        if self.config.cold_end:
            high = min(high, self.last_bin - self.config.half_window + 1)
        return self.bins[
            (self.bins >= low) & (self.bins < high) & (self.counts >= _MIN_BURST_EVENTS)
        ]

    def _emit_evaluated(self) -> Iterator[Losses | Scored]:
        """Yield, in order, the batches whose events are all evaluated."""
        while (
            self.pending
            and self.pending[0][1].max(initial=self.evaluated_until - 1) < self.evaluated_until
        ):
            batch, bins = self.pending.popleft()
            flags = pl.Series(TS_ANOMALY, np.isin(bins, self.flagged), dtype=pl.Boolean)
            yield replace(batch, table=batch.table.with_columns([flags]))
        if self.flagged.size:
            self.flagged = self.flagged[self.flagged >= self._oldest_needed_bin()]

    def _oldest_needed_bin(self) -> int:
        """Return the lowest bin whose flag a batch can still need."""
        oldest = self.evaluated_until - self.config.half_window
        return int(self.pending[0][1].min(initial=oldest)) if self.pending else oldest

    def _bin_start(self, number: int) -> datetime:
        """Return the start of a bin."""
        start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.start or 0)
        return start + timedelta(seconds=number * self.config.resolution)
