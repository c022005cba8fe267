"""Laws of the alert budget, on constructed calibrations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.models.calibration import AlertForecast, UserThreshold, global_margin

MARGINS = st.lists(st.floats(-5, 50), min_size=1, max_size=30).map(
    lambda values: np.array(sorted(values, reverse=True))
)
THRESHOLDS = st.lists(
    st.builds(UserThreshold, st.just(1.0), MARGINS, st.integers(1, 30)), min_size=1, max_size=6
)


@given(THRESHOLDS, st.floats(0, 5), st.integers(1, 60))
def test_validation_days_keep_to_the_budget(thresholds, alerts, days):
    spans = [days] * len(thresholds)
    limit = global_margin(thresholds, spans, alerts)
    assert (
        AlertForecast.from_thresholds(thresholds, spans, limit).alerts
        <= alerts * days * (1 + 1e-9) + 1e-6
    )


@given(THRESHOLDS, st.floats(0, 5))
def test_larger_budget_never_raises_a_threshold(thresholds, alerts):
    spans = [threshold.days for threshold in thresholds]
    assert global_margin(thresholds, spans, alerts + 1) <= global_margin(thresholds, spans, alerts)


@given(THRESHOLDS, st.floats(0.1, 5), st.integers(1, 60))
def test_global_alert_is_above_the_threshold_of_its_user(thresholds, alerts, days):
    limit = global_margin(thresholds, [days] * len(thresholds), alerts)
    assert all(threshold.threshold_for(alerts) <= limit for threshold in thresholds)


def test_zero_budget_gives_no_alert_on_validation_days():
    threshold = UserThreshold(0.0, np.array([7.0, 3.0]), 10)
    assert global_margin([threshold], [10], 0) == 7.0
    assert threshold.expected_alerts(7.0, 10) == 0


def test_no_users_give_no_alerts():
    assert global_margin([], [], 5) == math.inf
    assert AlertForecast.from_thresholds([], [], math.inf).alerts == 0


def test_alerts_per_day_grow_with_the_days_after_training():
    threshold = UserThreshold(0.0, np.array([7.0, 3.0]), 10)
    assert threshold.expected_alerts(5.0, 10) == pytest.approx(1)
    assert threshold.expected_alerts(5.0, 20) == pytest.approx(4)


def test_forecast_interval_is_wider_for_alerts_of_one_user():
    quiet = [UserThreshold(0.0, np.array([2.0]), 10) for _ in range(10)]
    active = [
        UserThreshold(0.0, np.full(10, 2.0), 10),
        *[UserThreshold(0.0, np.array([0.0]), 10)] * 9,
    ]
    spread_out, clustered = (
        AlertForecast.from_thresholds(users, [10] * 10, 1.0) for users in (quiet, active)
    )
    assert spread_out.alerts == clustered.alerts == pytest.approx(10)
    assert spread_out.low < 10 < spread_out.high < clustered.high
