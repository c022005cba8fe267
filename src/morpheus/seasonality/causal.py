"""Time-series anomalies judged by the past alone, as a stream has to.

The two-sided detector compares a bin with the time before and after it, so it cannot decide about
an event before the future is known. The two detectors here decide about each event when it arrives,
so that cutting the input does not change their flags. `CausalCounts` compares the events of a bin
so far with the pattern of the bins before it. `RateHistory` compares the events of the last seconds
to the last hour with the user's own rate at this hour of the week.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.seasonality.detector import (
    assign_bins,
    extract_windows,
    max_zscore,
    rebuild_windows,
    start_of_day,
    zscores,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Cells in one pass over many windows: their arrays stay within a processor's cache.
_CELLS = 1 << 15
_EXACT_COUNTS = 16
_GROWTH_DIVISOR = 8
_FEW_EVENTS = 8  # up to which events are counted one by one


def _check_counts() -> IntArray:
    """Counts at which a bin is checked: 2 to 16, then each time it has grown by an eighth.

    The first event of a bin is never a burst. In a large bin, one event more or less does not
    matter, and checking each of them would cost as much as all other stages together.
    """
    counts = list(range(2, _EXACT_COUNTS + 1))
    while counts[-1] < 1 << 40:
        counts.append(counts[-1] + max(1, counts[-1] // _GROWTH_DIVISOR))
    return np.array(counts, dtype=np.int64)


CHECK_COUNTS = _check_counts()
_CHECKED = frozenset(CHECK_COUNTS.tolist())


def _is_checked(count: int) -> bool:
    return count in _CHECKED


WINDOWS = np.array([10, 60, 300, 900, 3600])
"""Lengths of the windows in which `RateHistory` counts events, in seconds."""
MAX_PEAKS = 100
"""Maximum number of days whose peaks are kept."""
LEARNING_DAYS = 7.0
"""Days of a user's history that are needed before the first day is judged."""

_DAY_US, _HOUR_US, _SECOND_US = 86_400_000_000, 3_600_000_000, 1_000_000
_HOURS_PER_WEEK = 168
_THURSDAY = 3  # 1970 began on a Thursday; weekdays count from Monday.
_HALF_LIFE_DAYS = 56.0
# A longer pause counts as a week without events: a holiday is no reason to expect nothing.
_MAX_PAUSE_DAYS = 7
# Fewer events than this are no burst, however rare the user is.
_MIN_RATE_EVENTS = 4
# How many hours of the user's own a less specific rate is worth, when it fills in for the rate of
# an hour of the week, of an hour of the day, and of all hours. The last one falls back to one event
# an hour.
_HOUR_OF_DAY_WEIGHT, _OVERALL_WEIGHT, _PRIOR_WEIGHT, _PRIOR_RATE = 26.0, 14.0, 24.0, 1.0
_MIN_RATE = 1e-3
# Clustering of events in each window before a user's own is known, and how many expected events
# this prior is worth. See `RateHistory.clustering`.
_PRIOR_CLUSTERING = np.array([3.0, 2.5, 2.0, 1.8, 1.6])
_PRIOR_EXPECTED = np.array([2.0, 5.0, 10.0, 10.0, 10.0])
_CLUSTERING_RANGE = (1.02, 51.0)
# The tail of a benign day's highest statistic s, for a user with n events a day, is about
# _TAIL_SHARE * n * exp(-s / _TAIL_SCALE). Both were fitted to generated users with 10, 33 and 133
# events a day; see docs/quality.md for the flags on other users.
_TAIL_SHARE, _TAIL_SCALE = 0.15, 1.5
# The fixed tail counts as much as this number of the user's own days, and its prior scale as much
# as this number.
_TAIL_DAYS, _SCALE_DAYS = 50.0, 3.0
_SCALE_QUANTILE = 0.75


class CausalRule(msgspec.Struct, frozen=True):
    """How bins are judged.

    Attributes:
        resolution: Width of a bin, in seconds.
        past_bins: Bins before a bin that it is compared with.
        hot_start: Check from the first event on; otherwise once there are `past_bins` bins.
        filter_percent: Share of frequencies to drop, the weakest first, 0 to 100.
        zscore_threshold: Threshold, in standard deviations of the distance from the pattern.
    """

    resolution: int
    past_bins: int
    hot_start: bool
    filter_percent: float
    zscore_threshold: float


class CausalCounts(msgspec.Struct):
    """What the detector remembers about one user: at most 24 bytes for each bin of the past.

    Attributes:
        start: Start of bin 0, in microseconds since 1970: the day of the first event.
        first: First bin with events.
        last: Last bin with events.
        bins: Bins with events that later bins are compared with, ascending.
        counts: Events in each of them.
        flagged: Those of them that were found to be a burst.
    """

    start: int | None = None
    first: int = 0
    last: int = 0
    bins: NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    counts: NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    flagged: NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, microseconds: IntArray, rule: CausalRule) -> NDArray[np.bool_]:
        """Count events and flag those that make their bin a burst.

        An event is flagged if its bin, up to and with this event, exceeds the pattern of the bins
        before it by more than the threshold, or if an earlier event of the bin was flagged.

        Args:
            microseconds: Times since 1970 in the order of arrival, shape (rows,). An event that is
                older than the past of the latest one is neither counted nor flagged.
            rule: How bins are judged.

        Returns:
            The flags, shape (rows,).

        >>> rule = CausalRule(60, 20, hot_start=False, filter_percent=90.0, zscore_threshold=4.0)
        >>> usual = np.arange(100) * 30_000_000
        >>> burst = np.full(9, usual[-1] + 1)
        >>> CausalCounts().add(np.concatenate([usual, burst]), rule).nonzero()[0].tolist()
        [102, 103, 104, 105, 106, 107, 108]
        """
        flags = np.zeros(len(microseconds), dtype=np.bool_)
        if not len(microseconds):
            return flags
        if self.start is None:
            self.start = start_of_day(int(microseconds[0]))
            first = assign_bins(microseconds[:1], start=self.start, resolution=rule.resolution)
            self.first = self.last = int(first[0])
        where = assign_bins(microseconds, start=self.start, resolution=rule.resolution)
        if len(where) <= _FEW_EVENTS:
            for row, bin_number in enumerate(where.tolist()):
                flags[row] = self._add_one(bin_number, rule)
            return flags
        for part in _ascending_parts(where):
            # In ascending order only events before the latest bin can be too old.
            recent = where[part] >= self.last - rule.past_bins
            if recent.any():
                rows = np.arange(part.start, part.stop)[recent]
                flags[rows] = self._add_ascending(where[rows], rule)
        return flags

    def _add_one(self, number: int, rule: CausalRule) -> bool:
        """Count and flag one event. Most are in the latest bin, or start the next one."""
        last = int(self.bins[-1]) if len(self.bins) else None
        if number < self.last - rule.past_bins:
            return False
        if number == last == self.last and number not in self.flagged:
            count = int(self.counts[-1]) + 1
            judged = rule.hot_start or number >= self.first + rule.past_bins
            if not (judged and _is_checked(count)):
                self.counts = self.counts.copy()
                self.counts[-1] = count
                return False
        elif last == self.last < number:
            self.bins, self.counts = np.append(self.bins, number), np.append(self.counts, 1)
            self.last = number
            self._forget(number - rule.past_bins)
            return False
        return bool(self._add_ascending(np.array([number]), rule)[0])

    def _add_ascending(self, where: IntArray, rule: CausalRule) -> NDArray[np.bool_]:
        """Count and flag events whose bins do not descend."""
        bins, starts, added = np.unique(where, return_index=True, return_counts=True)
        before = self._counts_of(bins)
        known = np.isin(bins, self.flagged)
        self._count(bins, added)
        candidates = ~known
        if not rule.hot_start:
            candidates &= bins >= self.first + rule.past_bins
        limits = self._find_limits(bins, before, added, candidates, rule)
        limits[known] = 0
        self.flagged = np.union1d(self.flagged, bins[limits < np.iinfo(np.int64).max])
        self.last = max(self.last, int(bins[-1]))
        self._forget(self.last - rule.past_bins)
        bin_of = np.repeat(np.arange(len(bins)), added)
        running = before[bin_of] + np.arange(len(where)) - starts[bin_of] + 1
        return np.asarray(running >= limits[bin_of])

    def _find_limits(
        self,
        bins: IntArray,
        before: IntArray,
        added: IntArray,
        candidates: NDArray[np.bool_],
        rule: CausalRule,
    ) -> IntArray:
        """Return the count from which on each bin is a burst, shape (B,); the maximum for none."""
        limits = np.full(len(bins), np.iinfo(np.int64).max)
        low = np.searchsorted(CHECK_COUNTS, before, side="right")
        high = np.searchsorted(CHECK_COUNTS, before + added, side="right")
        checks = np.where(candidates, high - low, 0)
        place = np.repeat(np.arange(len(bins)), checks)
        step = np.arange(len(place)) - np.repeat(np.cumsum(checks) - checks, checks)
        counts = CHECK_COUNTS[low[place] + step]
        at_once = max(1, _CELLS // (2 * rule.past_bins + 1))
        for start in range(0, len(place), at_once):
            part = slice(start, start + at_once)
            hits = self._is_burst(bins[place[part]], counts[part], rule)
            np.minimum.at(limits, place[part][hits], counts[part][hits])
        return limits

    def _is_burst(self, bins: IntArray, counts: IntArray, rule: CausalRule) -> NDArray[np.bool_]:
        """Compare a count of each bin with the bins before it, shape (K,)."""
        windows = extract_windows(self.bins, self.counts, bins, half_width=rule.past_bins)
        windows = windows[:, : rule.past_bins + 1].copy()
        windows[:, -1] = counts
        rebuilt = rebuild_windows(windows, filter_percent=rule.filter_percent)
        z = zscores(np.abs(rebuilt - windows), windows)[:, -1]
        # With one filled bin all frequencies are equally strong, and rounding would choose among
        # them. Nothing recurs there, so nothing explains the bin.
        z[np.count_nonzero(windows, axis=1) == 1] = max_zscore(rule.past_bins // 2)
        return np.asarray((z >= rule.zscore_threshold) & (counts > rebuilt[:, -1]))

    def _counts_of(self, bins: IntArray) -> IntArray:
        """Events counted so far in each bin."""
        place = np.searchsorted(self.bins, bins)
        found = np.zeros(len(bins), dtype=np.int64)
        inside = place < len(self.bins)
        inside[inside] = self.bins[place[inside]] == bins[inside]
        found[inside] = self.counts[place[inside]]
        return found

    def _count(self, bins: IntArray, added: IntArray) -> None:
        every, place = np.unique(np.concatenate([self.bins, bins]), return_inverse=True)
        total = np.zeros(len(every), np.int64)
        np.add.at(total, place, np.concatenate([self.counts, added]))
        self.bins, self.counts = every, total

    def _forget(self, oldest: int) -> None:
        kept = self.bins >= oldest
        self.bins, self.counts = self.bins[kept], self.counts[kept]
        self.flagged = self.flagged[self.flagged >= oldest]


def _ascending_parts(where: IntArray) -> Iterator[slice]:
    """Cut positions where the bins descend, which late events cause."""
    edges = [0, *(np.flatnonzero(np.diff(where) < 0) + 1).tolist(), len(where)]
    for start, end in itertools.pairwise(edges):
        yield slice(start, end)


class RateRule(msgspec.Struct, frozen=True):
    """How `RateHistory` judges.

    Attributes:
        max_pvalue: P-value up to which an event is flagged.
        hot_start: Judge from the first event on; otherwise once `LEARNING_DAYS` are known.
    """

    max_pvalue: float
    hot_start: bool


class RateHistory(msgspec.Struct):
    """What is remembered about one user's rate of events: at most about 50 kilobytes.

    A day is judged by what was known at the end of the day before. Days and hours are those of the
    user's clock. Flagged events do not raise the expected rate, but their day counts among the
    user's days, so that a burst that comes again and again is no longer flagged.

    Attributes:
        counts: Events in each hour of the week, (168,). Old ones fade with a half-life of 8 weeks.
        hours: How often each hour of the week was observed, faded alike, (168,).
        known_days: Days observed, pauses of more than a week shortened.
        neighbours: Events in each window before an event, added up over events, (windows,).
        expected: How many were expected, (windows,).
        peaks: Highest exceedance of each past day, the oldest first, (days,).
        day: The current day, in days since 1970; None before the first event.
        today: Events of the current day in each hour of the week that were not flagged, (168,).
        today_neighbours: `neighbours` of these.
        today_expected: `expected` of these.
        today_peak: Highest exceedance of the current day; None before it is judged.
        last: Latest second with an event.
        seconds: Seconds of the last hour with events, ascending.
        events: Events in each of these.
    """

    counts: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(_HOURS_PER_WEEK))
    hours: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(_HOURS_PER_WEEK))
    known_days: float = 0.0
    neighbours: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(len(WINDOWS)))
    expected: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(len(WINDOWS)))
    peaks: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.empty(0))
    day: int | None = None
    today: NDArray[np.int64] = msgspec.field(
        default_factory=lambda: np.zeros(_HOURS_PER_WEEK, np.int64)
    )
    today_neighbours: NDArray[np.int64] = msgspec.field(
        default_factory=lambda: np.zeros(len(WINDOWS), np.int64)
    )
    today_expected: NDArray[np.float64] = msgspec.field(
        default_factory=lambda: np.zeros(len(WINDOWS))
    )
    today_peak: float | None = None
    last: int = 0
    seconds: NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(0, np.int64))
    events: NDArray[np.int32] = msgspec.field(default_factory=lambda: np.empty(0, np.int32))

    @classmethod
    def from_training(cls, counts: FloatArray, weeks: float) -> RateHistory:
        """Start from the events of the training history.

        Args:
            counts: Events in each hour of the week, (168,).
            weeks: Number of weeks that they span.
        """
        return cls(counts, np.full(_HOURS_PER_WEEK, weeks), 7.0 * weeks)

    def add(self, microseconds: IntArray, local: IntArray, rule: RateRule) -> FloatArray:
        """Judge events and count them.

        Args:
            microseconds: Times since 1970 in the order of arrival, (rows,).
            local: The same as the user's clock shows them, (rows,).
            rule: How to judge.

        Returns:
            The probability that a benign day of the user has a burst as strong as the one that
            ends with each event, (rows,). NaN for an event before the user is known, and for one
            that arrives more than an hour late, which is not counted either.

        >>> times = np.arange(0, 10 * 86_400, 1800) * 1_000_000
        >>> times = np.concatenate([times, times[-1] + np.arange(8) * 1_000_000])
        >>> pvalues = RateHistory().add(times, times, RateRule(0.01, hot_start=False))
        >>> np.isnan(pvalues).sum(), np.flatnonzero(pvalues <= 0.01).tolist()
        (np.int64(336), [482, 483, 484, 485, 486, 487])
        """
        pvalues = np.full(len(microseconds), np.nan)
        seconds = microseconds // _SECOND_US
        for part in _ascending_parts(seconds):
            for rows in self._split_days(local, part):
                recent = rows[seconds[rows] > self.last - WINDOWS[-1]]
                if recent.size:
                    pvalues[recent] = self._add_part(seconds[recent], local[recent], rule)
        return pvalues

    def rates(self) -> FloatArray:
        """Return the expected events in each hour of the week, (168,).

        A rate that rests on few hours is drawn to that of the hour of the day, this one to the
        overall rate, and that one to one event an hour.
        """
        counts, hours = self.counts.reshape(7, 24), self.hours.reshape(7, 24)
        overall = self.mean_rate()
        by_hour = (counts.sum(axis=0) + _OVERALL_WEIGHT * overall) / (
            hours.sum(axis=0) + _OVERALL_WEIGHT
        )
        by_week = (counts + _HOUR_OF_DAY_WEIGHT * by_hour) / (hours + _HOUR_OF_DAY_WEIGHT)
        return np.asarray(np.maximum(by_week, _MIN_RATE).ravel())

    def mean_rate(self) -> float:
        """Return the expected events in an hour."""
        events = float(self.counts.sum()) + _PRIOR_WEIGHT * _PRIOR_RATE
        return events / (float(self.hours.sum()) + _PRIOR_WEIGHT)

    def clustering(self) -> FloatArray:
        """Return how many times more events precede an event than expected, by window, (windows,).

        It is 1 if events come independently of each other. For a negative binomial count of mean m
        and variance m + m^2 / k, it is 1 + 1 / k.
        """
        ratio = (self.neighbours + _PRIOR_EXPECTED * _PRIOR_CLUSTERING) / (
            self.expected + _PRIOR_EXPECTED
        )
        return np.asarray(np.clip(ratio, *_CLUSTERING_RANGE))

    def pvalue(self, exceedances: FloatArray) -> FloatArray:
        """Return the probability of a benign day with at least this exceedance, (rows,).

        It is an empirical Bayes estimate. The user's past days count as they are. The tail of other
        users, exp(-exceedance), counts as 50 more days. It is stretched for users whose days are
        usually more uneven; their upper quartile says so, which a few attacks do not move.
        """
        days = len(self.peaks)
        at_least = days - np.searchsorted(np.sort(self.peaks), exceedances)
        scale = 1.0
        if days:
            quartile = float(np.quantile(self.peaks, _SCALE_QUANTILE))
            own = quartile / -math.log(1 - _SCALE_QUANTILE)
            scale = max(1.0, (_SCALE_DAYS + days * own) / (_SCALE_DAYS + days))
        tail = np.exp(-exceedances / scale)
        return np.asarray((at_least + _TAIL_DAYS * tail) / (days + _TAIL_DAYS))

    def _split_days(self, local: IntArray, part: slice) -> Iterator[IntArray]:
        """Yield the rows of each day, and close a day before the rows of the next one."""
        # A clock that is set back past midnight does not open an old day again.
        days = np.maximum.accumulate(local[part] // _DAY_US)
        starts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
        for start, end in itertools.pairwise(starts):
            if start < end:
                day = int(days[start])
                if self.day is None:
                    self.day = day
                elif day > self.day:
                    self._close_day(day)
                yield np.arange(part.start + start, part.start + end)

    def _add_part(self, seconds: IntArray, local: IntArray, rule: RateRule) -> FloatArray:
        """Judge and count events of one day in ascending order."""
        hours = _hour_of_week(local)
        counts, means = self._count_in_windows(seconds), self._expect_in_windows(hours, local)
        exceedances = self._exceedances(counts, means)
        judged = rule.hot_start or self.known_days >= LEARNING_DAYS
        pvalues = self.pvalue(exceedances) if judged else np.full(len(seconds), np.nan)
        usual = ~(pvalues <= rule.max_pvalue)
        self.today = self.today + np.bincount(hours[usual], minlength=_HOURS_PER_WEEK)
        self.today_neighbours = self.today_neighbours + (counts[usual] - 1).sum(axis=0)
        # Added one by one, so that the sum does not depend on how the events are cut.
        self.today_expected = np.add.accumulate(np.vstack([self.today_expected, means[usual]]))[-1]
        if judged:
            self.today_peak = max(self.today_peak or 0.0, float(exceedances.max()))
        self._keep_last_hour(seconds)
        return pvalues

    def _count_in_windows(self, seconds: IntArray) -> IntArray:
        """Count the events in each window up to and with each event, (rows, windows)."""
        starts = seconds[:, None] - WINDOWS
        before = np.concatenate([[0], np.cumsum(self.events, dtype=np.int64)])
        until = before[np.searchsorted(self.seconds, seconds, side="right")]
        earlier = until[:, None] - before[np.searchsorted(self.seconds, starts, side="right")]
        here = np.arange(1, len(seconds) + 1)[:, None]
        return np.asarray(earlier + here - np.searchsorted(seconds, starts, side="right"))

    def _expect_in_windows(self, hours: IntArray, local: IntArray) -> FloatArray:
        """Return the events expected in each window up to each event, (rows, windows).

        A window that begins in the hour before has the rate of that hour for this part.
        """
        rates = self.rates() / 3600
        in_hour = (local % _HOUR_US // _SECOND_US + 1)[:, None]
        here = np.minimum(in_hour, WINDOWS)
        before = rates[hours - 1][:, None] * (WINDOWS - here)
        return np.asarray(rates[hours][:, None] * here + before)

    def _exceedances(self, counts: IntArray, means: FloatArray) -> FloatArray:
        """Return how far the most unusual window up to each event is in the tail, (rows,).

        The statistic of a window is Chernoff's bound of -ln P(count or more) for a negative
        binomial. The exceedance is -ln of the usual tail of a day's highest statistic.
        """
        shape = 1 / (self.clustering() - 1)
        count = counts.astype(np.float64)
        deviance = count * np.log(count / means) + (count + shape) * np.log(
            (means + shape) / (count + shape)
        )
        burst = (counts >= _MIN_RATE_EVENTS) & (count > means)
        statistic = np.where(burst, deviance, 0.0).max(axis=1)
        usual = math.log(max(1.0, _TAIL_SHARE * 24 * self.mean_rate()))
        return np.asarray(np.maximum(statistic / _TAIL_SCALE - usual, 0.0))

    def _keep_last_hour(self, seconds: IntArray) -> None:
        """Remember events for later windows."""
        self.last = max(self.last, int(seconds[-1]))
        merged, place = np.unique(np.concatenate([self.seconds, seconds]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, place, np.concatenate([self.events, np.ones(len(seconds), np.int64)]))
        kept = merged > self.last - WINDOWS[-1]
        self.seconds, self.events = merged[kept], total[kept].astype(np.int32)

    def _close_day(self, next_day: int) -> None:
        """Learn from the current day and open the next one with events."""
        first = next_day if self.day is None else self.day
        days = min(next_day - first, _MAX_PAUSE_DAYS)
        fading = 0.5 ** (days / _HALF_LIFE_DAYS)
        self.neighbours = fading * self.neighbours + self.today_neighbours
        self.expected = fading * self.expected + self.today_expected
        weekdays = (np.arange(first, first + days) + _THURSDAY) % 7
        observed = np.repeat(np.bincount(weekdays, minlength=7), 24)
        self.counts, self.hours = fading * self.counts + self.today, fading * self.hours + observed
        if self.today_peak is not None:
            self.peaks = np.append(self.peaks, self.today_peak)[-MAX_PEAKS:]
        self.known_days += days
        self.day, self.today_peak = next_day, None
        self.today = np.zeros(_HOURS_PER_WEEK, np.int64)
        self.today_neighbours = np.zeros(len(WINDOWS), np.int64)
        self.today_expected = np.zeros(len(WINDOWS))


def _hour_of_week(local: IntArray) -> IntArray:
    """Return the hours since Monday, 00:00, of times on the user's clock."""
    return np.asarray((local // _HOUR_US + 24 * _THURSDAY) % _HOURS_PER_WEEK)


def to_local_hours(counts: FloatArray, offset_seconds: float) -> FloatArray:
    """Return counts by hour of the week in UTC as counts by hour of another clock, (168,).

    Args:
        counts: Events in each hour of the week in UTC, (168,).
        offset_seconds: How far the clock is ahead of UTC. An hour that it divides is shared.

    >>> counts = np.zeros(168)
    >>> counts[0] = 4
    >>> to_local_hours(counts, 5.5 * 3600)[4:8].tolist()
    [0.0, 2.0, 2.0, 0.0]
    """
    hours, part = divmod(offset_seconds / 3600, 1)
    shifted = np.roll(counts, int(hours))
    return np.asarray((1 - part) * shifted + part * np.roll(shifted, 1))
