"""Which time bins break a rhythm: upstream's detector, on one window and on many.

Keep a window's strongest frequencies, rebuild the window from them, and look for cells that are
further from the rebuilt window than the others are. A z-score over n cells cannot exceed
sqrt(n - 1): see `max_zscore`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

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


def extract_windows(bins: IntArray, counts: IntArray, centres: IntArray, *, half_width: int) -> FloatArray:
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
    windows: FloatArray = np.lib.stride_tricks.sliding_window_view(cells, 2 * half_width + 1)[starts]
    return windows


def compute_distances(windows: FloatArray, *, filter_percent: float) -> FloatArray:
    """How far each cell is from its window, rebuilt from the strongest frequencies.

    Args:
        windows: Events per cell, shape (W, n).
        filter_percent: Share of frequencies to leave out, the weakest first, 0 to 100.

    Returns:
        Absolute distances in events, shape (W, n).
    """
    spectrum = np.fft.rfft(windows, axis=1)  # (W, n // 2 + 1)
    power = _power_spectrum(windows)
    spectrum[power < _percentile(power, filter_percent)] = 0.0
    rebuilt: FloatArray = np.fft.irfft(spectrum, windows.shape[1], axis=1)
    return np.abs(rebuilt - windows)


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
