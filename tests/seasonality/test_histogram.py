"""Events over time in a few numbers."""

from __future__ import annotations

import numpy as np

from morpheus.seasonality.histogram import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


def cells(hours, scores=None):
    seconds = np.array(hours, dtype=np.float64) * SECONDS_PER_HOUR
    known = np.zeros(len(hours)) if scores is None else np.array(scores, dtype=np.float64)
    return TimeHistogram.from_events(seconds, known, np.zeros(len(hours), dtype=np.bool_))


def shown(some):
    return some.buckets.tolist(), some.events.tolist(), some.max_scores.tolist()


def test_cells_are_the_same_however_the_events_are_cut():
    whole = cells([1, 2, 2, 5], [1, 7, 3, 2])
    parts = cells([2, 5], [3, 2]).merge(cells([1, 2], [1, 7]))
    assert shown(parts) == shown(whole) == ([1, 2, 5], [1, 2, 1], [1.0, 7.0, 2.0])


def test_wider_cells_keep_all_events_and_the_highest_score():
    assert shown(cells([1, 2, 3, 9], [5, 1, 4, 2]).downsample(4)) == ([0, 2], [3, 1], [5.0, 2.0])


def test_no_events_have_no_cells():
    assert shown(TimeHistogram.empty().merge(cells([3]))) == shown(cells([3]))


def test_where_there_are_too_many_cells_all_become_wider_and_no_event_is_lost():
    lanes = UserHistograms(max_buckets=40)
    for user in ("ann", "bob"):
        for hour in range(50):
            lanes.add(user, cells([hour], [hour]))
    lanes.compact()
    assert lanes.bucket_seconds == 8 * SECONDS_PER_HOUR
    assert [int(some.events.sum()) for some in lanes.users.values()] == [50, 50]
    assert lanes.bucket_range == (0, 7)


def test_cells_do_not_depend_on_the_order_in_which_they_come():
    forth, back = UserHistograms(max_buckets=40), UserHistograms(max_buckets=40)
    for lanes, order in ((forth, range(60)), (back, range(59, -1, -1))):
        for hour in order:
            lanes.add("ann", cells([hour], [hour % 7]))
        lanes.compact()
    assert forth.bucket_seconds == back.bucket_seconds
    assert shown(forth.users["ann"]) == shown(back.users["ann"])
