"""Histograms of events over time."""

from __future__ import annotations

import numpy as np

from morpheus.seasonality.detector import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


def make_histogram(hours, scores=None):
    seconds = np.array(hours, dtype=np.float64) * SECONDS_PER_HOUR
    values = np.zeros(len(hours)) if scores is None else np.array(scores, dtype=np.float64)
    return TimeHistogram.from_events(seconds, values, np.zeros(len(hours), dtype=np.bool_))


def as_lists(histogram):
    return histogram.buckets.tolist(), histogram.events.tolist(), histogram.max_scores.tolist()


def test_histogram_does_not_depend_on_how_events_are_cut():
    whole = make_histogram([1, 2, 2, 5], [1, 7, 3, 2])
    parts = make_histogram([2, 5], [3, 2]).merge(make_histogram([1, 2], [1, 7]))
    assert as_lists(parts) == as_lists(whole) == ([1, 2, 5], [1, 2, 1], [1.0, 7.0, 2.0])


def test_wider_buckets_keep_all_events_and_the_highest_score():
    assert as_lists(make_histogram([1, 2, 3, 9], [5, 1, 4, 2]).downsample(4)) == (
        [0, 2],
        [3, 1],
        [5.0, 2.0],
    )


def test_no_events_give_no_buckets():
    assert as_lists(TimeHistogram.empty().merge(make_histogram([3]))) == as_lists(
        make_histogram([3])
    )


def test_too_many_buckets_become_wider_without_losing_events():
    histograms = UserHistograms(max_buckets=40)
    for user in ("ann", "bob"):
        for hour in range(50):
            histograms.add(user, make_histogram([hour], [hour]))
    histograms.compact()
    assert histograms.bucket_seconds == 8 * SECONDS_PER_HOUR
    assert [int(histogram.events.sum()) for histogram in histograms.users.values()] == [50, 50]
    assert histograms.bucket_range == (0, 7)


def test_histogram_does_not_depend_on_the_order_of_events():
    forward, backward = UserHistograms(max_buckets=40), UserHistograms(max_buckets=40)
    for histograms, order in ((forward, range(60)), (backward, range(59, -1, -1))):
        for hour in order:
            histograms.add("ann", make_histogram([hour], [hour % 7]))
        histograms.compact()
    assert forward.bucket_seconds == backward.bucket_seconds
    assert as_lists(forward.users["ann"]) == as_lists(backward.users["ann"])
