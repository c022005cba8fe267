"""Time as numbered bins: durations as people type them, and which bin an event falls into."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from morpheus.errors import UsageError

IntArray = NDArray[np.int64]

MICROSECONDS_PER_DAY = 86_400_000_000
"""Microseconds in a day."""

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
    """Read a duration, in pandas' spelling, as whole seconds.

    Parts of a second are rounded; there is no bin shorter than a second.

    Args:
        text: Numbers with units (`10m`, `1h30m`, `2 days`), or a clock (`01:30:00`).
        option: The option that it was given to, for the message.

    Raises:
        UsageError: `text` is not a duration, or it is shorter than a second.

    >>> [parse_duration(text, option="--resolution") for text in ("10m", "1 h", "1h30m", "2 days")]
    [600, 3600, 5400, 172800]
    """
    total = _parse_seconds(text)
    if total is None:
        raise UsageError(
            f"{option}: {text!r} is not a duration. "
            f"Give a number with a unit, such as `{option} 10m`, `1h30m` or `12 h`."
        )
    if (
        not 1 <= total <= MICROSECONDS_PER_DAY
    ):  # as many seconds as a day has microseconds: 2,700 years
        raise UsageError(
            f"{option}: {text!r} is {'shorter' if total < 1 else 'longer'} than can be counted. "
            f"Give a second or more, such as `{option} 10m`."
        )
    return round(total)


def _parse_seconds(text: str) -> float | None:
    """Seconds, None for what is not a duration."""
    if clock := _CLOCK_PATTERN.fullmatch(text):
        hours, minutes, rest = (int(part or 0) for part in clock.groups())
        return float(hours * 3600 + minutes * 60 + rest)
    parts = _PART_PATTERN.findall(text)
    if not parts or "".join(match[0] for match in _PART_PATTERN.finditer(text)) != text:
        return None
    sizes = [_unit_seconds(unit) for _, unit in parts]
    if None in sizes:
        return None
    return sum(float(number) * (size or 0) for (number, _), size in zip(parts, sizes, strict=True))


def _unit_seconds(word: str) -> float | None:
    """Seconds in a unit; `M` is a month to pandas, which has no fixed length."""
    word = "" if word == "M" else word.lower()
    return _SECONDS_PER_UNIT.get(
        word, _SECONDS_PER_UNIT.get(word.removesuffix("s")) if len(word) > 2 else None
    )  # noqa: PLR2004 - `ds` is no plural


def start_of_day(microseconds: int) -> int:
    """Start of the day, in UTC, both in microseconds since 1970."""
    return microseconds // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY


def assign_bins(microseconds: IntArray, *, start: int, resolution: int) -> IntArray:
    """Bin of each event. Bins are half-open: an event at 10:00:00 opens the 10 o'clock bin.

    Args:
        microseconds: Times since 1970, shape (N,); rounded to whole seconds, as upstream does.
        start: Start of bin 0, in microseconds since 1970.
        resolution: Seconds in a bin.

    Returns:
        Bin numbers, shape (N,); negative before `start`.

    >>> assign_bins(np.array([0, 599_499_999, 599_500_000]), start=0, resolution=600).tolist()
    [0, 0, 1]
    """
    return (
        (microseconds - start + _MICROSECONDS_PER_SECOND // 2)
        // _MICROSECONDS_PER_SECOND
        // resolution
    )


FloatArray = NDArray[np.float64]

# Cells in one pass over many windows: their arrays stay within a processor's cache.
_CELLS_PER_PASS = 1 << 15
# Share of the highest count that rounding leaves where all cells are equally far.
_ROUNDING_TOLERANCE = 1e-12


def detect_anomalous_bins(
    counts: NDArray[np.number], *, filter_percent: float = 90.0, zscore: float = 8.0
) -> IntArray:
    """Find the cells of one window that its own rhythm does not explain.

    Args:
        counts: Events per bin, shape (n,), in time order. An empty bin is 0, never missing.
        filter_percent: Share of frequencies to leave out, the weakest first, 0 to 100.
        zscore: Threshold, in standard deviations of the distance from the rebuilt window.

    Returns:
        Positions in `counts`, shape (K,), ascending; none where all cells are equally far from
        the rebuilt window.

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
    """Find the bins that break the rhythm of the window around them.

    Each bin is judged as the centre of 2 * half + 1 cells, by the rule of `detect_anomalous_bins`. The cost
    grows with the number of centres, not with the time they span.

    Args:
        bins: Numbers of the bins that hold events, shape (B,), ascending.
        counts: Events in each, shape (B,).
        centres: Bins to judge, shape (C,), ascending, each one of `bins`.
        half_width: Cells on either side.
        filter_percent: As for `detect_anomalous_bins`.
        zscore: As for `detect_anomalous_bins`.

    Returns:
        Those of `centres` that stand out, ascending.

    >>> bins, counts = np.arange(200), np.tile([3, 7], 100)
    >>> counts[120] = 60
    >>> detect_anomalous_centres(bins, counts, bins[50:150], half=50).tolist()
    [120]
    """
    step = max(1, _CELLS_PER_PASS // (2 * half_width + 1))
    hits = [centres[:0]]
    for at in range(0, len(centres), step):
        some = centres[at : at + step]
        windows = extract_windows(bins, counts, some, half_width=half_width)
        hits.append(some[_centre_zscores(windows, filter_percent) >= zscore])
    return np.concatenate(hits)


def _centre_zscores(windows: FloatArray, filter_percent: float) -> FloatArray:
    """Z-score of the middle cell of each window, shape (W,)."""
    half = windows.shape[1] // 2
    z = zscores(compute_distances(windows, filter_percent=filter_percent), windows)[:, half]
    # In a window with one filled cell all frequencies are equally strong, and rounding would choose
    # among them. Nothing recurs there, so nothing explains the cell.
    z[np.count_nonzero(windows, axis=1) == 1] = max_zscore(half)
    return z


def extract_windows(
    bins: IntArray, counts: IntArray, centres: IntArray, *, half_width: int
) -> FloatArray:
    """Lay out the window around each centre.

    Returns:
        Events per cell, shape (C, 2 * half + 1); 0 where a bin holds none.

    >>> extract_windows(np.array([3, 4, 9]), np.array([2, 5, 1]), np.array([4]), half=1).tolist()
    [[2.0, 5.0, 0.0]]
    """
    first, last = np.searchsorted(bins, (centres[0] - half_width, centres[-1] + half_width + 1))
    bins, counts = bins[first:last], counts[first:last]
    # Gaps wider than a window are shrunk to one: no window sees across them.
    gaps = np.minimum(np.diff(bins, prepend=bins[0]), 2 * half_width + 1)
    place = np.cumsum(gaps) + half_width
    cells = np.zeros(place[-1] + half_width + 1)
    cells[place] = counts
    starts = place[np.searchsorted(bins, centres)] - half_width
    windows: FloatArray = np.lib.stride_tricks.sliding_window_view(cells, 2 * half_width + 1)[
        starts
    ]
    return windows


def compute_distances(windows: FloatArray, *, filter_percent: float) -> FloatArray:
    """Return the distance of each cell from its rebuilt window.

    Args:
        windows: Events per cell, shape (W, n).
        filter_percent: Share of frequencies to drop, the weakest first, 0 to 100.

    Returns:
        Absolute distances in events, shape (W, n).
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
    """Power of each frequency, the mean taken away, shape (W, n // 2 + 1)."""
    width = windows.shape[1]
    spread = windows.std(axis=1, keepdims=True)
    spread[spread == 0] = 1.0
    flat = (windows - windows.mean(axis=1, keepdims=True)) / spread
    # A full transform where half would do: the two round differently, and where frequencies tie
    # upstream's result hangs on the rounding.
    spectrum = np.fft.fft(flat, axis=1)[:, : width // 2 + 1]
    power: FloatArray = np.abs(spectrum) ** 2 / width
    return power


def _percentile(power: FloatArray, percent: float) -> FloatArray:
    """Percentile of each row, linear between neighbours, shape (W, 1): two places, not a sort."""
    place = percent / 100 * (power.shape[1] - 1)
    low, high = math.floor(place), math.ceil(place)
    near = np.partition(power, (low, high), axis=1)
    below, above = near[:, low, None], near[:, high, None]
    between: FloatArray = below + (place - low) * (above - below)
    return between


def zscores(distance: FloatArray, windows: FloatArray) -> FloatArray:
    """Z-score of each cell's distance within its window, shape (W, n); NaN where all are alike."""
    spread = distance.std(axis=1, keepdims=True)
    spread[spread <= _ROUNDING_TOLERANCE * windows.max(axis=1, keepdims=True)] = np.nan
    z: FloatArray = (distance - distance.mean(axis=1, keepdims=True)) / spread
    return z


def max_zscore(half_width: int) -> float:
    """Highest z that one of 2 * half + 1 cells can have, all the others being alike.

    >>> round(max_zscore(12), 2)
    4.9
    """
    return math.sqrt(2 * half_width)
