"""Laws of the alert budget, on calibrations made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.models.calibration import AlertForecast, UserThreshold, global_margin

MARGINS = st.lists(st.floats(-5, 50), min_size=1, max_size=30).map(
    lambda values: np.array(sorted(values, reverse=True))
)
LEVELS = st.lists(
    st.builds(UserThreshold, st.just(1.0), MARGINS, st.integers(1, 30)), min_size=1, max_size=6
)


@given(LEVELS, st.floats(0, 5), st.integers(1, 60))
def test_held_out_days_keep_to_the_budget(levels, alerts, days):
    spans = [days] * len(levels)
    limit = global_margin(levels, spans, alerts)
    assert (
        AlertForecast.from_thresholds(levels, spans, limit).alerts
        <= alerts * days * (1 + 1e-9) + 1e-6
    )


@given(LEVELS, st.floats(0, 5))
def test_more_to_spend_never_raises_a_threshold(levels, alerts):
    spans = [level.days for level in levels]
    assert global_margin(levels, spans, alerts + 1) <= global_margin(levels, spans, alerts)


@given(LEVELS, st.floats(0.1, 5), st.integers(1, 60))
def test_what_is_an_alert_for_all_is_a_candidate_of_its_user(levels, alerts, days):
    limit = global_margin(levels, [days] * len(levels), alerts)
    assert all(level.threshold_for(alerts) <= limit for level in levels)


def test_nothing_to_spend_is_no_alert_on_held_out_days():
    level = UserThreshold(0.0, np.array([7.0, 3.0]), 10)
    assert global_margin([level], [10], 0) == 7.0
    assert level.expected_alerts(7.0, 10) == 0


def test_without_users_nothing_is_an_alert():
    assert global_margin([], [], 5) == math.inf
    assert AlertForecast.from_thresholds([], [], math.inf).alerts == 0


def test_days_long_after_learning_bring_more_alerts_each():
    level = UserThreshold(0.0, np.array([7.0, 3.0]), 10)
    assert level.expected_alerts(5.0, 10) == pytest.approx(1)
    assert level.expected_alerts(5.0, 20) == pytest.approx(4)


def test_the_interval_holds_the_forecast_and_is_wider_for_alerts_that_come_in_clusters():
    calm = [UserThreshold(0.0, np.array([2.0]), 10) for _ in range(10)]
    lively = [
        UserThreshold(0.0, np.full(10, 2.0), 10),
        *[UserThreshold(0.0, np.array([0.0]), 10)] * 9,
    ]
    spread, clustered = (
        AlertForecast.from_thresholds(some, [10] * 10, 1.0) for some in (calm, lively)
    )
    assert spread.alerts == clustered.alerts == pytest.approx(10)
    assert spread.low < 10 < spread.high < clustered.high
