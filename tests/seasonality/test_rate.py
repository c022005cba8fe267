"""Bursts by the user's own rate: what is found, how often a benign day is flagged, and the past."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from time import process_time
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from morpheus.core.state import decode_state, encode_state
from morpheus.seasonality.causal import (
    LEARNING_DAYS,
    MAX_PEAKS,
    RateHistory,
    RateRule,
    to_local_hours,
)
from morpheus.stages.timeseries import RateState

IntArray = NDArray[np.int64]

DAY, HOUR = 86_400, 3600
MONDAY = 18_911 * DAY  # 2021-10-11
PROMISE = 0.25
RULE = RateRule(PROMISE / 7, hot_start=False)
HOT = RateRule(PROMISE / 7, hot_start=True)


def working_hours(seed: int, days: int, per_day: float, clustered: float = 0.5) -> IntArray:
    """Times of a benign user who works from 8 to 18, with busy and quiet ten minutes."""
    rng = np.random.default_rng(seed)
    slots = np.arange(days * 144)
    hour, weekend = slots % 144 / 6, slots // 144 % 7 >= 5
    weight = np.where((hour >= 8) & (hour < 18), 1.0, 0.05) * np.where(weekend, 0.2, 1.0)
    weight *= rng.gamma(1 / clustered, clustered, len(slots))
    counts = rng.poisson(weight / weight.sum() * per_day * days)
    times = MONDAY + np.repeat(slots, counts) * 600 + rng.integers(0, 600, counts.sum())
    return np.sort(times)


def judge(history: RateHistory, seconds: IntArray, rule: RateRule = RULE) -> NDArray[np.float64]:
    """P-values of events, in UTC."""
    return history.add(seconds * 1_000_000, seconds * 1_000_000, rule)


def train(seconds: IntArray) -> RateHistory:
    """Start from a history, as a fingerprint sums it up."""
    hours = (seconds // HOUR + 72) % 168
    weeks = (seconds[-1] - seconds[0]) / (7 * DAY)
    return RateHistory.from_training(np.bincount(hours, minlength=168).astype(float), weeks)


def split(seconds: IntArray, day: int) -> tuple[IntArray, IntArray]:
    """Events before a day, and the others."""
    return seconds[seconds < MONDAY + day * DAY], seconds[seconds >= MONDAY + day * DAY]


def flagged_days(seconds: IntArray, pvalues: NDArray[np.float64]) -> int:
    return len(np.unique(seconds[pvalues <= RULE.max_pvalue] // DAY))


@pytest.mark.parametrize("per_day", [10, 40, 200])
def test_benign_days_are_flagged_about_as_often_as_promised(per_day: int) -> None:
    users, weeks, flags = 40, 8, 0
    for seed in range(users):
        history, later = split(working_hours(seed, 28 + 7 * weeks, per_day), 28)
        flags += flagged_days(later, judge(train(history), later))
    assert 0.3 * PROMISE <= flags / (users * weeks) <= 1.5 * PROMISE


def test_nine_of_ten_bursts_are_found_at_a_quarter_of_a_flag_a_week() -> None:
    found = 0
    for seed in range(60):
        history, later = split(working_hours(seed, 56, 40), 28)
        rng = np.random.default_rng(seed)
        start = later[rng.integers(len(later))]
        burst = start + np.arange(rng.integers(5, 25)) // 4
        seconds = np.sort(np.concatenate([later, burst]), kind="stable")
        pvalues = judge(train(history), seconds)
        inside = (seconds >= start) & (seconds <= burst[-1])
        found += (pvalues[inside] <= RULE.max_pvalue).any()
    assert found >= 54


def test_the_same_events_are_a_burst_at_night_and_usual_by_day() -> None:
    usual = working_hours(1, 28, 100)
    day, at = MONDAY + 28 * DAY, np.arange(12) * 60
    low, high = (judge(train(usual), day + hour * HOUR + at).min() for hour in (3, 10))
    assert low <= RULE.max_pvalue < 0.5 < high


def test_a_burst_that_comes_every_day_is_no_longer_flagged_after_a_few_days() -> None:
    rng = np.random.default_rng(0)
    days = [
        MONDAY + day * DAY + rng.integers(80_000) + np.sort(rng.integers(0, 60, 60))
        for day in range(60)
    ]
    usual = working_hours(2, 60, 40)
    seconds = np.sort(np.concatenate([*days, usual]))
    pvalues = judge(train(working_hours(3, 28, 40)), seconds)
    first, rest = split(seconds, 7)
    assert flagged_days(first, pvalues[: len(first)]) >= 1
    assert flagged_days(rest, pvalues[len(first) :]) <= 2 * PROMISE * 53 / 7


def test_flagged_events_do_not_raise_the_expected_rate() -> None:
    usual = working_hours(4, 28, 40)
    history = train(usual)
    attack = MONDAY + 30 * DAY + 3 * HOUR + np.arange(10_000) // 10
    judge(history, attack)
    judge(history, np.array([MONDAY + 31 * DAY]))
    assert history.rates().max() < 1.1 * train(usual).rates().max()


def test_the_detector_follows_a_user_who_becomes_busier() -> None:
    history = train(working_hours(5, 28, 20))
    later = working_hours(6, 91, 200)
    pvalues = judge(history, later)
    _, last = split(later, 63)
    assert flagged_days(last, pvalues[-len(last) :]) <= 3 * PROMISE * 4
    assert history.mean_rate() > 100 / 24


def test_a_user_without_history_is_judged_once_a_week_is_known() -> None:
    seconds = working_hours(7, 14, 40)
    pvalues = judge(RateHistory(), seconds)
    first, _ = split(seconds, int(LEARNING_DAYS))
    assert np.isnan(pvalues[: len(first)]).all()
    assert not np.isnan(pvalues[len(first) :]).any()


def test_hot_start_judges_from_the_first_event_on() -> None:
    burst = MONDAY + np.arange(50) // 10
    assert np.isnan(judge(RateHistory(), burst)).all()
    assert (judge(RateHistory(), burst, HOT) <= HOT.max_pvalue).any()


def test_fewer_than_four_events_are_no_burst() -> None:
    history = RateHistory.from_training(np.zeros(168), 8.0)
    pvalues = judge(history, MONDAY + np.arange(4))
    assert pvalues[:3].tolist() == [1, 1, 1]
    assert pvalues[3] < 1


def test_a_quiet_day_counts_among_the_days_of_a_user() -> None:
    history = train(working_hours(8, 28, 40))
    judge(history, MONDAY + DAY * np.arange(30, 41))
    assert history.peaks.tolist() == [0.0] * 10


events = st.lists(
    st.tuples(st.integers(0, 12 * 24), st.integers(0, 900), st.integers(1, 30)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    events,
    st.integers(-7200, 7200),
    st.lists(st.integers(0, 300), max_size=4),
    st.sampled_from([RULE, HOT]),
)
def test_judgements_do_not_depend_on_cuts_also_with_late_events(
    bursts: list[tuple[int, int, int]], late: int, cuts: list[int], rule: RateRule
) -> None:
    # Bursts on twelve days; a late one may come after the others.
    parts = [MONDAY + hour * HOUR + second + np.arange(size) // 3 for hour, second, size in bursts]
    on_time = np.sort(np.concatenate(parts))
    seconds = np.concatenate([on_time, on_time[-1] + late + np.arange(20) // 5])
    whole, state = judge(RateHistory(), seconds, rule), RateState(RateHistory())
    found = []
    for start, end in pairwise(
        sorted({0, *(min(cut, len(seconds)) for cut in cuts), len(seconds)})
    ):
        assert state.history is not None
        found.append(judge(state.history, seconds[start:end], rule))
        state = decode_state(RateState, encode_state(state))
    assert np.concatenate(found).tobytes() == whole.tobytes()


def test_an_event_that_is_an_hour_late_is_counted_and_one_that_is_later_is_not() -> None:
    history = train(working_hours(9, 28, 40))
    judge(history, np.array([MONDAY + 30 * DAY + 20 * HOUR]))
    late = MONDAY + 30 * DAY + 19 * HOUR + np.arange(30)
    before = msgspec.structs.asdict(history)
    assert np.isnan(judge(history, late - HOUR)).all()
    assert all(
        np.array_equal(before[name], value)
        for name, value in msgspec.structs.asdict(history).items()
    )
    assert (judge(history, late + 1) <= RULE.max_pvalue).any()


def test_the_state_is_bounded() -> None:
    state = RateState(train(working_hours(10, 28, 40)))
    assert state.history is not None
    judge(state.history, MONDAY + np.arange(2 * DAY))
    for day in range(2, MAX_PEAKS + 60):
        judge(state.history, MONDAY + day * DAY + np.arange(0, 2 * HOUR))
    assert len(state.history.peaks) == MAX_PEAKS
    assert len(state.history.seconds) == HOUR
    assert len(encode_state(state)) <= RateState.max_bytes


def test_hours_follow_the_clock_of_the_user_through_clock_changes() -> None:
    # A clock that is set back on 2021-10-31 and forward on 2022-03-27; nothing happens at night.
    wall = working_hours(11, 182, 40)
    wall = wall[(wall % DAY >= 6 * HOUR) & (wall % DAY < 20 * HOUR)]
    zone = ZoneInfo("Europe/Berlin")
    aware = [datetime.fromtimestamp(second, UTC).replace(tzinfo=zone) for second in wall.tolist()]
    real = np.array([int(time.timestamp()) for time in aware])
    assert len(np.unique(wall - real)) == 2
    local = RateHistory().add(real * 1_000_000, wall * 1_000_000, RULE)
    assert local.tobytes() == judge(RateHistory(), wall).tobytes()


def test_a_long_pause_is_a_week_without_events_at_most() -> None:
    history = RateHistory()
    judge(history, working_hours(12, 28, 100))
    before = history.mean_rate()
    judge(history, np.array([MONDAY + 365 * DAY]))
    assert 0.7 * before < history.mean_rate() < 0.9 * before


def test_training_hours_are_those_of_another_clock() -> None:
    counts = np.zeros(168)
    counts[0], counts[167] = 6, 2
    assert to_local_hours(counts, 3600).nonzero()[0].tolist() == [0, 1]
    assert to_local_hours(counts, -3600).nonzero()[0].tolist() == [166, 167]
    assert to_local_hours(counts, 1800)[[0, 1, 167]].tolist() == [4, 3, 1]


def test_time_grows_about_linearly_with_the_number_of_events() -> None:
    def cost(number: int) -> float:
        seconds = MONDAY + np.sort(np.random.default_rng(0).integers(0, number * 30, number))
        start = process_time()
        judge(RateHistory(), seconds)
        return process_time() - start

    assert cost(200_000) < 30 * max(cost(20_000), 0.01)


def test_an_event_is_judged_by_earlier_events_only() -> None:
    seconds = working_hours(14, 40, 60)
    assert seconds[-1] - seconds[0] > timedelta(days=35).total_seconds()
    whole = judge(RateHistory(), seconds)
    for number in (300, 1000, 1900):
        part = judge(RateHistory(), seconds[:number])
        assert part.tobytes() == whole[:number].tobytes()
