"""`timeseries`: flag events in time bins with an unusual number of events.

Two detectors. The Fourier one, upstream's, has two modes: two-sided windows, which wait for later
events, and `--causal`, which uses earlier events only. The rate detector always does. The
mathematics is in `morpheus.seasonality`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RATE_PVALUE, TIME, TS_ANOMALY
from morpheus.core.batch import Batch, Losses, Scored, Table
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.seasonality.causal import (
    CausalCounts,
    CausalRule,
    RateHistory,
    RateRule,
    to_local_hours,
)
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


FOURIER, RATE = "fourier", "rate"
"""Values of `timeseries --detector`."""
_DAYS_PER_WEEK = 7


class TimeseriesState(State, tag=FOURIER):
    """What `timeseries --causal` remembers about one user.

    The size grows with the number of bins in two --min_window, 24 bytes per bin.

    Attributes:
        counts: Number of events in each bin of the past.
        resolution: Width of the bins, in seconds; 0 before the first event.
    """

    max_bytes = 1 << 16

    counts: CausalCounts = msgspec.field(default_factory=CausalCounts)
    resolution: int = 0


class RateState(State, tag=RATE):
    """What `timeseries --detector=rate` remembers about one user.

    Attributes:
        history: The user's rate and past days; None before the first batch.
    """

    max_bytes = 1 << 16

    history: RateHistory | None = None


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

    With `--detector=rate`, the events of the last 10 seconds, 1, 5, 15 and 60 minutes are compared
    with the user's own rate at that hour of the week, in the time zone of `--timezone`. It starts
    from the training history, learns on, and never uses later events. It also adds `rate_pvalue`:
    the probability that a benign day of the user has a burst as strong as the one that ends with
    the event. There is none in the first week of a user without history.

    Example: `timeseries --resolution=10m --min_window="12 h" --zscore_threshold=8`

    Example: `timeseries --detector=rate --flags_per_week=0.25`
    """

    name = "timeseries"
    takes = (Losses, Scored)

    detector: str = option(
        FOURIER,
        "How to find anomalies: by the periodic pattern of a window, as NVIDIA Morpheus does, or "
        "by the user's own rate of events.",
        choices=(FOURIER, RATE),
    )
    flags_per_week: float = option(
        0.25,
        "For --detector=rate: number of benign days on which a user may be flagged, per user and "
        "week, on average. All flagged events of a day count as one.",
        min=0,
        max=_DAYS_PER_WEEK,
    )
    resolution: str = option("1 h", "Width of a time bin: a number with a unit, such as `10m`.")
    min_window: str = option(
        "12 h", "Length of the window before a bin and after it, such as `12 h`."
    )
    hot_start: bool = option(
        False,
        "Check bins from a user's first event on, as if the time before it had no events. By "
        "default checks start one --min_window later; with --detector=rate, once a week of the "
        "user is known.",
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
        self._reject_options_of_other_detector()
        if self._is_rate:
            return
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
                config.suggest_fix(parse_duration(self.min_window, option="--min_window")),
            )

    @property
    def needs(self) -> Requirements:
        """Two-sided windows need the end of the input, so their state is not kept between runs."""
        is_two_sided = not (self.causal or self._is_rate)
        return Requirements(
            per_run=_PER_RUN if is_two_sided else "",
            holds_events=is_two_sided,
            state_options=self._list_state_options(),
        )

    def _list_state_options(self) -> Mapping[str, object]:
        """Return the options that counts and rates depend on."""
        if self._is_rate:
            return {"--detector": RATE, "--flags_per_week": self.flags_per_week}
        if not self.causal:
            return {}  # no state is kept
        config = _DetectorConfig.from_stage(self)
        window = config.half_window * config.resolution
        return {
            "--detector": FOURIER,
            "--resolution": f"{config.resolution} s",
            "--min_window": f"{window} s",
        }

    def open(self, context: StageContext) -> _AnyState:  # noqa: ARG002 - starts empty
        """Start without events."""
        if self._is_rate:
            return RateState()
        if self.causal:
            return TimeseriesState()
        return _UserSeasonalityState(_DetectorConfig.from_stage(self))

    def process(self, batch: Losses | Scored, state: _AnyState) -> Iterator[Losses | Scored]:
        """Add the flags. Two-sided, a batch waits until the windows of its events are complete."""
        if isinstance(state, RateState):
            yield self._judge_rates(batch, state)
            return
        if isinstance(state, _UserSeasonalityState):
            yield from state.add(batch)
            return
        flags = self._judge_bins(batch.table.times_us, state, self._causal_rule())
        column = pl.Series(TS_ANOMALY, flags, dtype=pl.Boolean)
        yield replace(batch, table=batch.table.with_columns([column]))

    def process_users(
        self, batches: Sequence[Losses | Scored], states: Sequence[_AnyState]
    ) -> Iterator[list[Losses | Scored]]:
        """Add the flags to batches of several users."""
        tables = [batch.table for batch in batches]
        if not self.causal or self._is_rate or not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        rule, whole, start = self._causal_rule(), Table.concat(tables), 0
        times, flags = whole.times_us, np.zeros(whole.height, dtype=np.bool_)
        for table, state in zip(tables, states, strict=True):
            assert isinstance(state, TimeseriesState)  # noqa: S101 - the options say so
            rows = slice(start, start + table.height)
            flags[rows] = self._judge_bins(times[rows], state, rule)
            start = rows.stop
        column = pl.Series(TS_ANOMALY, flags, dtype=pl.Boolean)
        added = whole.with_columns([column]).split(table.height for table in tables)
        yield from ([batch.change(table=each)] for batch, each in zip(batches, added, strict=True))

    def _judge_bins(
        self, times: IntArray, state: TimeseriesState, rule: CausalRule
    ) -> NDArray[np.bool_]:
        """Return which events are in an anomalous bin, shape (rows,).

        Raises:
            UsageError: The state has bins of another width.
        """
        if state.resolution not in {0, rule.resolution}:
            raise UsageError(
                f"timeseries: the state file has counts of bins of {state.resolution} seconds, and "
                f"--resolution is {self.resolution}. Use the same --resolution, or give another "
                "--state file."
            )
        state.resolution = rule.resolution
        return state.counts.add(times, rule)

    def flush(self, state: _AnyState) -> Iterator[Losses | Scored]:
        """Evaluate the remaining bins, as if no events came after them."""
        return state.flush() if isinstance(state, _UserSeasonalityState) else iter(())

    @property
    def _is_rate(self) -> bool:
        return self.detector.lower() == RATE

    def _reject_options_of_other_detector(self) -> None:
        """Reject options that the detector does not have.

        Raises:
            UsageError: An option would have no effect.
        """
        fourier = ("resolution", "min_window", "cold_end", "filter_percent", "zscore_threshold")
        other, owner = (fourier, FOURIER) if self._is_rate else (("flags_per_week",), RATE)
        for each in fields(self):
            if each.name in other and getattr(self, each.name) != each.default:
                raise UsageError(
                    f"timeseries: --{each.name} is an option of --detector={owner}, and the "
                    f"detector is {self.detector.lower()}. Leave it out, or use "
                    f"`--detector={owner}`."
                )

    def _judge_rates(self, batch: Losses | Scored, state: RateState) -> Losses | Scored:
        """Add the flags and p-values of the rate detector."""
        if state.history is None:
            state.history = _start_history(batch, self.options.timezone)
        time = batch.table[TIME].dt.convert_time_zone(self.options.timezone)
        local = time.dt.replace_time_zone(None).dt.epoch("us").to_numpy()
        rule = RateRule(self.flags_per_week / _DAYS_PER_WEEK, self.hot_start)
        pvalues = state.history.add(batch.table.times_us, local, rule)
        columns = [
            pl.Series(TS_ANOMALY, pvalues <= rule.max_pvalue, dtype=pl.Boolean),
            pl.Series(RATE_PVALUE, pvalues.round(6), dtype=pl.Float64).fill_nan(None),
        ]
        return replace(batch, table=batch.table.with_columns(columns))

    def _causal_rule(self) -> CausalRule:
        config = _DetectorConfig.from_stage(self)
        return CausalRule(
            config.resolution,
            2 * config.half_window,
            config.hot_start,
            config.filter_percent,
            config.zscore_threshold,
        )


def _start_history(batch: Batch, timezone: str) -> RateHistory:
    """Start from the training history of the user, as far as the fingerprint knows it."""
    card = batch.card
    if card is None or card.summary is None or card.user != batch.user or not card.last:
        return RateHistory()
    counts = np.array(card.summary.hours, dtype=np.float64)
    last = datetime.fromisoformat(card.last)
    known = last if last.tzinfo else last.replace(tzinfo=UTC)
    offset = known.astimezone(ZoneInfo(timezone)).utcoffset() or timedelta()
    return RateHistory.from_training(
        to_local_hours(counts, offset.total_seconds()), card.summary.weeks
    )


class _DetectorConfig(msgspec.Struct, frozen=True):
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

    def suggest_fix(self, window: int) -> str:
        """Return options with which a burst can exceed the threshold by a quarter.

        Args:
            window: Length of the window on each side, in seconds. With wide bins, `half_window`
                bins are longer.
        """
        lower = math.floor(max_zscore(self.half_window) / 1.25)
        fits = [
            width
            for width in _SUGGESTED_RESOLUTIONS
            if max_zscore(math.ceil(window / width)) >= 1.25 * self.zscore_threshold
        ]
        threshold = f"`--zscore_threshold {lower}`"
        return f"`--resolution {_format_seconds(max(fits))}` or {threshold}" if fits else threshold


def _format_seconds(seconds: int) -> str:
    return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"


class _UserSeasonalityState(msgspec.Struct):
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
    bins: IntArray = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    counts: IntArray = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    flagged: IntArray = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    pending: deque[tuple[Losses | Scored, IntArray]] = msgspec.field(default_factory=deque)

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


_AnyState = TimeseriesState | RateState | _UserSeasonalityState
