"""Stretches of time from which events are missing."""

from __future__ import annotations

import numpy as np

from morpheus.report.view import find_gaps
from morpheus.seasonality.histogram import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


def lanes(*users):
    found = UserHistograms()
    for number, hours in enumerate(users):
        seconds = np.array(hours, dtype=np.float64) * SECONDS_PER_HOUR
        nothing = np.zeros(len(hours), dtype=np.bool_)
        found.add(str(number), TimeHistogram.from_events(seconds, np.zeros(len(hours)), nothing))
    found.compact()
    return found


def busy(rate):
    return np.full(168, float(rate))


def test_hours_without_anybody_are_a_gap_where_many_events_would_be_usual():
    day = [*range(8), *range(12, 24)]
    assert find_gaps(lanes(day, day), {"0": busy(2), "1": busy(2)}) == [
        (8 * SECONDS_PER_HOUR, 12 * SECONDS_PER_HOUR)
    ]


def test_a_quiet_night_is_none():
    day = [*range(8), *range(12, 24)]
    assert find_gaps(lanes(day), {"0": busy(2)}) == []


def test_nothing_is_expected_of_who_has_not_come_yet_or_has_gone():
    assert find_gaps(lanes(range(8), range(20, 24)), {"0": busy(9), "1": busy(9)}) == []


def test_where_no_history_is_known_nothing_is_missing():
    assert find_gaps(lanes([0, 20]), {}) == []
    assert find_gaps(lanes(), {}) == []
