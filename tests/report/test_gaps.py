"""Coverage gaps: periods without the expected events."""

from __future__ import annotations

import numpy as np

from morpheus.report.view import find_gaps
from morpheus.seasonality.detector import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


def histograms(*users):
    result = UserHistograms()
    for number, hours in enumerate(users):
        seconds = np.array(hours, dtype=np.float64) * SECONDS_PER_HOUR
        flags = np.zeros(len(hours), dtype=np.bool_)
        result.add(str(number), TimeHistogram.from_events(seconds, np.zeros(len(hours)), flags))
    result.compact()
    return result


def busy(rate):
    return np.full(168, float(rate))


def test_hours_without_any_event_are_a_gap_if_many_were_expected():
    day = [*range(8), *range(12, 24)]
    assert find_gaps(histograms(day, day), {"0": busy(2), "1": busy(2)}) == [
        (8 * SECONDS_PER_HOUR, 12 * SECONDS_PER_HOUR)
    ]


def test_a_night_with_few_expected_events_is_not_a_gap():
    day = [*range(8), *range(12, 24)]
    assert find_gaps(histograms(day), {"0": busy(2)}) == []


def test_no_event_is_expected_before_a_users_first_or_after_the_last():
    assert find_gaps(histograms(range(8), range(20, 24)), {"0": busy(9), "1": busy(9)}) == []


def test_without_known_rates_there_is_no_gap():
    assert find_gaps(histograms([0, 20]), {}) == []
    assert find_gaps(histograms(), {}) == []
