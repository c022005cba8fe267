"""Stretches of time from which events are missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from morpheus.models.portrait import hour_of_week
from morpheus.rhythm.cells import SECONDS_PER_HOUR, UserHistograms

EXPECTED = 12.0
"""Events that would be usual in a stretch that is called a gap; at random it would hold none in one
case of 160,000."""


def gaps(lanes: UserHistograms, rhythms: Mapping[str | None, NDArray[np.float64]]) -> list[tuple[int, int]]:
    """Find where nobody did anything, though many events would have been usual.

    Args:
        lanes: Everybody's events, settled.
        rhythms: Events that are usual in each hour of the week, of each user, (168,). Nothing is
            expected of them before their first event, or after their last.

    Returns:
        Beginning and end of each, in seconds since 1970.
    """
    if lanes.bucket_range is None:
        return []
    first, end = lanes.bucket_range
    silent = np.ones(end - first, dtype=np.bool_)
    starts, expected = np.arange(first, end) * lanes.bucket_seconds, np.zeros(end - first)
    # A wide cell is taken to be as lively throughout as in its first hour.
    hours = hour_of_week(starts.astype(np.float64))
    for user, cells in lanes.users.items():
        silent[cells.buckets - first] = False
        if user in rhythms:
            there = slice(int(cells.buckets[0]) - first, int(cells.buckets[-1]) - first)
            expected[there] += rhythms[user][hours[there]] * (lanes.bucket_seconds / SECONDS_PER_HOUR)
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    return [
        (int(starts[a]), int(starts[b - 1]) + lanes.bucket_seconds)
        for a, b in edges.reshape(-1, 2)
        if expected[a:b].sum() >= EXPECTED
    ]
