"""Time-series anomalies: event counts that the periodic pattern does not explain.

The rule is upstream's. The strongest frequencies of a window of counts are kept, the window is
rebuilt from them, and a bin is anomalous if its distance from the rebuilt window has a high
z-score. This module also reads durations, assigns events to bins, and keeps histograms of the
events of each user in bounded memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import reduce

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.errors import UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MICROSECONDS_PER_DAY = 86_400_000_000
"""Microseconds in a day."""

_MAX_DAYS = 146_000
"""Longest duration, 400 years: several of them before now are still times that can be counted."""
# Bins in one pass over many windows, so that their arrays stay within the processor's cache.
_CELLS_PER_PASS = 1 << 15
# Share of the highest count below which a standard deviation is only rounding error.
_ROUNDING_TOLERANCE = 1e-12

_MICROSECONDS_PER_SECOND = 1_000_000
_SECONDS_PER_UNIT = {
    "w": 604_800.0,
    "week": 604_800.0,
    "d": 86_400.0,
    "day": 86_400.0,
    "h": 3_600.0,
    "hr": 3_600.0,
    "hour": 3_600.0,
    "m": 60.0,
    "t": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "ms": 1e-3,
    "l": 1e-3,
    "milli": 1e-3,
    "millisecond": 1e-3,
    "us": 1e-6,
    "u": 1e-6,
    "micro": 1e-6,
    "microsecond": 1e-6,
}
_PART_PATTERN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]+)\s*,?\s*", re.ASCII)
_CLOCK_PATTERN = re.compile(r"\s*(\d{1,4}):([0-5]\d)(?::([0-5]\d))?\s*", re.ASCII)


def parse_duration(text: str, *, option: str) -> int:
    """Parse a duration in the syntax of pandas, as whole seconds.

    Fractions of a second are rounded. The shortest duration is one second.

    Args:
        text: Numbers with units (`10m`, `1h30m`, `2 days`), or a clock time (`01:30:00`).
        option: Name of the option, for the error message.

    Raises:
        UsageError: `text` is not a duration, is shorter than a second, or is longer than centuries.

    >>> [parse_duration(text, option="--resolution") for text in ("10m", "1 h", "1h30m", "2 days")]
    [600, 3600, 5400, 172800]
    """
    total = _parse_seconds(text)
    if total is None:
        raise UsageError(
            f"{option}: {text!r} is not a duration. "
            f"Give a number with a unit, such as `{option} 10m`, `1h30m` or `12 h`."
        )
    if total < 1:
        raise UsageError(
            f"{option}: {text!r} is shorter than can be counted. Give a second or more, such as "
            f"`{option} 10m`."
        )
    if total > _MAX_DAYS * _SECONDS_PER_UNIT["d"]:
        raise UsageError(
            f"{option}: {text!r} is longer than can be counted. Give {_MAX_DAYS}d or less."
        )
    return round(total)


def _parse_seconds(text: str) -> float | None:
    """Return the seconds, or None if `text` is not a duration."""
    if clock := _CLOCK_PATTERN.fullmatch(text):
        hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(hours * 3600 + minutes * 60 + seconds)
    parts = _PART_PATTERN.findall(text)
    if not parts or "".join(match[0] for match in _PART_PATTERN.finditer(text)) != text:
        return None
    sizes = [_unit_seconds(unit) for _, unit in parts]
    if None in sizes:
        return None
    return sum(float(number) * (size or 0) for (number, _), size in zip(parts, sizes, strict=True))


def _unit_seconds(word: str) -> float | None:
    """Return the seconds in a unit. `M` is a month in pandas, which has no fixed length."""
    word = "" if word == "M" else word.lower()
    singular = word.removesuffix("s") if len(word) > len("ms") else word
    return _SECONDS_PER_UNIT.get(word, _SECONDS_PER_UNIT.get(singular))


def start_of_day(microseconds: int) -> int:
    """Return the start of the day in UTC, in microseconds since 1970."""
    return microseconds // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY


def assign_bins(microseconds: IntArray, *, start: int, resolution: int) -> IntArray:
    """Return the bin of each event.

    Bins are half-open: an event at 10:00:00 is in the bin that starts then.

    Args:
        microseconds: Times since 1970, (N,); rounded to whole seconds, as upstream does.
        start: Start of bin 0, in microseconds since 1970.
        resolution: Length of a bin in seconds.

    Returns:
        Bin numbers, (N,); negative before `start`.

    >>> assign_bins(np.array([0, 599_499_999, 599_500_000]), start=0, resolution=600).tolist()
    [0, 0, 1]
    """
    return (
        (microseconds - start + _MICROSECONDS_PER_SECOND // 2)
        // _MICROSECONDS_PER_SECOND
        // resolution
    )


def detect_anomalous_bins(
    counts: NDArray[np.number], *, filter_percent: float = 90.0, zscore: float = 8.0
) -> IntArray:
    """Find the bins of one window that its periodic pattern does not explain.

    Args:
        counts: Events per bin, (n,), in time order. An empty bin is 0, never left out.
        filter_percent: Percentage of frequencies to drop, the weakest first, 0 to 100.
        zscore: Threshold in standard deviations of the distance from the rebuilt window.

    Returns:
        Positions in `counts`, (K,), ascending; none if all bins have the same distance from the
        rebuilt window.

    >>> weeks = np.tile([0, 5, 9, 5], 42)
    >>> weeks[50] = 90
    >>> detect_anomalous_bins(weeks).tolist()
    [50]
    """
    if not len(counts):
        return np.empty(0, np.int64)
    window = np.asarray(counts, dtype=np.float64)[None, :]
    distance = compute_distances(window, filter_percent=filter_percent)
    return np.flatnonzero(zscores(distance, window)[0] >= zscore)


def detect_anomalous_centres(  # noqa: PLR0913 - the window's cells, and the rule's settings
    bins: IntArray,
    counts: IntArray,
    centres: IntArray,
    *,
    half_width: int,
    filter_percent: float = 90.0,
    zscore: float = 8.0,
) -> IntArray:
    """Find the bins that do not fit the periodic pattern of the window around them.

    Each bin is judged as the centre of 2 * half_width + 1 bins, by the rule of
    `detect_anomalous_bins`. The cost grows with the number of centres, not with the time that they
    span.

    Args:
        bins: Numbers of the bins with events, (B,), ascending.
        counts: Events in each, (B,).
        centres: Bins to judge, (C,), ascending, each one of `bins`.
        half_width: Bins on either side.
        filter_percent: As for `detect_anomalous_bins`.
        zscore: As for `detect_anomalous_bins`.

    Returns:
        The anomalous ones of `centres`, ascending.

    >>> bins, counts = np.arange(200), np.tile([3, 7], 100)
    >>> counts[120] = 60
    >>> detect_anomalous_centres(bins, counts, bins[50:150], half_width=50).tolist()
    [120]
    """
    step = max(1, _CELLS_PER_PASS // (2 * half_width + 1))
    hits = [centres[:0]]
    for start in range(0, len(centres), step):
        batch = centres[start : start + step]
        windows = extract_windows(bins, counts, batch, half_width=half_width)
        hits.append(batch[_centre_zscores(windows, filter_percent) >= zscore])
    return np.concatenate(hits)


def _centre_zscores(windows: FloatArray, filter_percent: float) -> FloatArray:
    """Z-score of the middle bin of each window, (W,)."""
    half = windows.shape[1] // 2
    z = zscores(compute_distances(windows, filter_percent=filter_percent), windows)[:, half]
    # In a window with one non-empty bin all frequencies are equally strong, and rounding would
    # select some of them. Nothing recurs there, so the bin has the highest z-score.
    z[np.count_nonzero(windows, axis=1) == 1] = max_zscore(half)
    return z


def extract_windows(
    bins: IntArray, counts: IntArray, centres: IntArray, *, half_width: int
) -> FloatArray:
    """Return the window around each centre.

    Args:
        bins: Numbers of the bins with events, (B,), ascending.
        counts: Events in each, (B,).
        centres: The centres, (C,), ascending, each one of `bins`.
        half_width: Bins on either side.

    Returns:
        Events per bin, (C, 2 * half_width + 1); 0 for a bin without events.

    >>> bins, counts = np.array([3, 4, 9]), np.array([2, 5, 1])
    >>> extract_windows(bins, counts, np.array([4]), half_width=1).tolist()
    [[2.0, 5.0, 0.0]]
    """
    first, last = np.searchsorted(bins, (centres[0] - half_width, centres[-1] + half_width + 1))
    bins, counts = bins[first:last], counts[first:last]
    # Shorten gaps to the width of a window: no window reaches across them.
    gaps = np.minimum(np.diff(bins, prepend=bins[0]), 2 * half_width + 1)
    positions = np.cumsum(gaps) + half_width
    cells = np.zeros(positions[-1] + half_width + 1)
    cells[positions] = counts
    starts = positions[np.searchsorted(bins, centres)] - half_width
    windows: FloatArray = np.lib.stride_tricks.sliding_window_view(cells, 2 * half_width + 1)[
        starts
    ]
    return windows


def compute_distances(windows: FloatArray, *, filter_percent: float) -> FloatArray:
    """Return the distance of each bin from its window as rebuilt from the strongest frequencies.

    Args:
        windows: Events per bin, (W, n).
        filter_percent: Percentage of frequencies to drop, the weakest first, 0 to 100.

    Returns:
        Absolute distances in events, (W, n).
    """
    return np.abs(rebuild_windows(windows, filter_percent=filter_percent) - windows)


def rebuild_windows(windows: FloatArray, *, filter_percent: float) -> FloatArray:
    """Rebuild windows from their strongest frequencies.

    Args:
        windows: Events per cell, shape (W, n).
        filter_percent: Share of frequencies to drop, the weakest first, 0 to 100.

    Returns:
        Expected events per cell, shape (W, n).
    """
    spectrum = np.fft.rfft(windows, axis=1)  # (W, n // 2 + 1)
    power = _power_spectrum(windows)
    spectrum[power < _percentile(power, filter_percent)] = 0.0
    rebuilt: FloatArray = np.fft.irfft(spectrum, windows.shape[1], axis=1)
    return rebuilt


def _power_spectrum(windows: FloatArray) -> FloatArray:
    """Power of each frequency of the standardised windows, (W, n // 2 + 1)."""
    width = windows.shape[1]
    std = windows.std(axis=1, keepdims=True)
    std[std == 0] = 1.0
    standardised = (windows - windows.mean(axis=1, keepdims=True)) / std
    # A full transform although half is enough: the two round differently, and if frequencies
    # tie, upstream's result depends on the rounding.
    spectrum = np.fft.fft(standardised, axis=1)[:, : width // 2 + 1]
    power: FloatArray = np.abs(spectrum) ** 2 / width
    return power


def _percentile(power: FloatArray, percent: float) -> FloatArray:
    """Percentile of each row, linearly interpolated, (W, 1), without a full sort."""
    position = percent / 100 * (power.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    partitioned = np.partition(power, (low, high), axis=1)
    below, above = partitioned[:, low, None], partitioned[:, high, None]
    interpolated: FloatArray = below + (position - low) * (above - below)
    return interpolated


def zscores(distance: FloatArray, windows: FloatArray) -> FloatArray:
    """Z-score of each bin's distance within its window, (W, n); NaN if all distances are equal."""
    std = distance.std(axis=1, keepdims=True)
    std[std <= _ROUNDING_TOLERANCE * windows.max(axis=1, keepdims=True)] = np.nan
    z: FloatArray = (distance - distance.mean(axis=1, keepdims=True)) / std
    return z


def max_zscore(half_width: int) -> float:
    """Highest z-score that one of 2 * half_width + 1 bins can have if all other bins are equal.

    >>> round(max_zscore(12), 2)
    4.9
    """
    return math.sqrt(2 * half_width)


SECONDS_PER_HOUR = 3600
"""Width of a bucket at first, in seconds."""


class TimeHistogram(msgspec.Struct, frozen=True):
    """Events of one user per bucket. Buckets without events are left out.

    Attributes:
        buckets: Numbers of the buckets, counted from 1970, ascending, (buckets,).
        events: Events in each, (buckets,).
        max_scores: Highest score in each, -inf without a score, (buckets,).
        flagged: Time-series anomalies in each, (buckets,).
    """

    buckets: IntArray
    events: IntArray
    max_scores: FloatArray
    flagged: IntArray

    @classmethod
    def from_events(
        cls,
        seconds: FloatArray,
        scores: FloatArray,
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
    buckets: IntArray,
    events: IntArray,
    max_scores: FloatArray,
    flagged: IntArray,
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
