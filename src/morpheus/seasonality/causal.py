"""Time-series anomalies judged by the past alone, as a stream has to.

The two-sided detector compares a bin with the time before and after it, so it cannot decide about
an event before the future is known. This one decides about each event when it arrives: it compares
the events of the bin so far with the bins before it. Cutting the input does not change its flags.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

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

IntArray = NDArray[np.int64]

# Cells in one pass over many windows: their arrays stay within a processor's cache.
_CELLS = 1 << 15
_EXACT_COUNTS = 16
_GROWTH_DIVISOR = 8


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


@dataclass(frozen=True)
class CausalRule:
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
        for part in _ascending_parts(where):
            # In ascending order only events before the latest bin can be too old.
            recent = where[part] >= self.last - rule.past_bins
            if recent.any():
                rows = np.arange(part.start, part.stop)[recent]
                flags[rows] = self._add_ascending(where[rows], rule)
        return flags

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
