"""Laws of the alert budget, on constructed calibrations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from morpheus.models.calibration import (
    AlertBudget,
    AlertForecast,
    CalibrationSet,
    PooledTail,
    UserDays,
    count_shared_days,
)

RISKS = st.lists(st.floats(0, 300), min_size=1, max_size=30).map(np.array)


def user_days(calibration, scored=(0.0,), first=0):
    dates = np.arange(first, first + len(scored))
    return UserDays(np.array(calibration), np.array(scored), dates, np.full(len(dates), np.nan))


USERS = st.lists(st.builds(user_days, RISKS, RISKS), min_size=1, max_size=6)


@given(USERS, st.floats(0, 5))
def test_larger_budget_never_lowers_the_limit(users, alerts):
    few, many = (AlertBudget.fit(users, number) for number in (alerts, alerts + 1))
    assert few.limit <= many.limit
    assert few.forecast.alerts <= many.forecast.alerts


@given(USERS, st.floats(0.1, 5))
def test_higher_risk_never_has_a_higher_pvalue(users, alerts):
    budget = AlertBudget.fit(users, alerts)
    pvalues = budget.pvalues(users[0], np.linspace(0, 500, 60))
    assert (np.diff(pvalues) <= 1e-12).all()
    assert (pvalues > 0).all()


def test_usual_days_raise_the_number_that_was_asked_for():
    rng = np.random.default_rng(1)
    users = [user_days(rng.exponential(20, 30), rng.exponential(20, 60)) for _ in range(40)]
    budget = AlertBudget.fit(users, 2.0)
    raised = sum(int((budget.pvalues(user, user.scored) <= budget.limit).sum()) for user in users)
    assert budget.wanted == 120
    assert budget.forecast.alerts == pytest.approx(120)
    assert 0.7 < raised / 120 < 1.4


def test_forecast_is_never_nothing_at_all():
    assert AlertForecast.from_rates(np.empty(0)).high >= 3
    assert AlertForecast.from_rates(np.array([0.001])).high >= 3


def test_no_users_and_no_budget_give_no_alerts():
    assert AlertBudget.fit([], 5).forecast.alerts == 0
    nothing = AlertBudget.fit([user_days([1.0] * 40, [500.0])], 0)
    assert nothing.limit == 0
    assert (nothing.pvalues(user_days([1.0] * 40), np.array([1e6])) > nothing.limit).all()


def test_short_histories_and_rare_alerts_are_named():
    assert AlertBudget.fit([user_days([1.0])], 1).reason.startswith(
        "learning: the histories have 1"
    )
    many = [user_days(np.arange(30.0), np.zeros(100)) for _ in range(3)]
    assert "one in 300 days is asked for, 90 were seen" in AlertBudget.fit(many, 0.01).reason
    assert AlertBudget.fit(many, 5.0).reason == ""


def test_days_of_the_global_model_count_once_however_many_users_share_them():
    own, common = user_days(np.arange(40.0), [0.0]), user_days(np.full(40, 90.0), [0.0])
    common = replace(common, shared=True)
    one, many = (AlertBudget.fit([own, *[common] * count], 0.1).tail for count in (1, 50))
    assert (one.maxima == many.maxima).all()
    assert len(many.maxima) == 80
    equal = PooledTail.fit([own, own])
    assert len(equal.maxima) == 80


def test_event_with_a_wrong_date_adds_no_days():
    users = [user_days([1.0], np.zeros(5)) for _ in range(40)]
    wrong = UserDays(np.array([1.0]), np.zeros(2), np.array([0, 10_000]), np.ones(2))
    assert count_shared_days([*users, wrong]) == 5


def test_forecast_interval_is_wider_for_alerts_of_one_user():
    spread_out, clustered = (
        AlertForecast.from_rates(np.array(rates)) for rates in ([1.0] * 10, [10.0, *[0.0] * 9])
    )
    assert spread_out.alerts == clustered.alerts == pytest.approx(10)
    assert spread_out.low < 10 < spread_out.high < clustered.high


@given(st.lists(st.floats(0, 200), min_size=40, max_size=200))
def test_tail_falls_and_continues_beyond_the_highest_day(maxima):
    tail = PooledTail.fit([user_days(maxima)])
    shares = tail.exceed(np.linspace(0, 1000, 200))
    assert (np.diff(shares) <= 1e-9).all()
    assert shares[0] == pytest.approx(1)
    assert (shares > 0).all()


def test_account_that_always_does_the_same_has_no_huge_zscore():
    same = CalibrationSet.from_scores(np.full(50, 0.004), np.zeros(50), np.zeros(5))
    zscore = same.center(0.005).zscore(np.array([0.005, 0.0055, 1.0]))
    assert zscore[0] == 0
    assert zscore[1] < 1 < zscore[2]


def test_a_burst_alone_can_make_a_day_an_alert():
    usual = user_days(np.zeros(60), np.zeros(30))
    burst = replace(usual, bursts=np.where(np.arange(30) == 7, 1e-4, 0.9))
    budget = AlertBudget.fit([burst, *[usual] * 9], 0.2)
    raised = budget.pvalues(burst, burst.scored, burst.bursts) <= budget.limit
    assert np.flatnonzero(raised).tolist() == [7]
    assert not (budget.pvalues(burst, burst.scored) <= budget.limit).any()
