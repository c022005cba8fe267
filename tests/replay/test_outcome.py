import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.batch import OutputRows
from morpheus.replay.evaluation import TRIAL_SCHEMA, evaluate, find_threshold

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
SCORES = st.lists(st.floats(0, 9), min_size=1, max_size=30)


def rows(own, *trials, user="ann", each=timedelta(days=1), held=()):
    """A user's own scores, one a day, and trials: name, hours from the start, scores.

    `held` are those scores that a suppression holds back.
    """
    found = [(None, None, START + n * each, score, None) for n, score in enumerate(own)]
    for name, hours, scores in trials:
        times = [START + timedelta(hours=hours, seconds=30 * n) for n in range(len(scores))]
        found += [
            (name, "agent", time, score, "a rule" if score in held else None)
            for time, score in zip(times, scores, strict=True)
        ]
    return OutputRows(user=user, frame=pl.DataFrame(found, schema=TRIAL_SCHEMA, orient="row"))


def trial(outcome, name="stop"):
    [row] = outcome.trials.filter(technique=name).to_dicts()
    return row


def test_what_scores_above_all_that_the_budget_lets_through_is_caught():
    # A week, so one alert is allowed: the threshold is the second highest of the user's own.
    own = [1.0, 9.0, 2.0, 5.0, 3.0, 1.0, 1.0]
    outcome = evaluate([rows(own, ("stop", 1, [5.1]), ("share", 1, [5.0]))])
    assert trial(outcome) == {
        "technique": "stop",
        "user": "ann",
        "grade": "agent",
        "caught": True,
        "rank": 1,
        "events_of_day": 1,
        "seconds_to_catch": 0.0,
        "score": 5.1,
        "threshold": 5.0,
        "start": "2026-03-02T10:00:00Z",
        "hidden_by": None,
    }
    assert trial(outcome, "share")["caught"] is False
    assert trial(outcome, "share")["seconds_to_catch"] is None
    assert (outcome.alerts_allowed, outcome.alerts_raised, outcome.recall) == (1, 1, 0.5)


def test_time_to_catch_goes_to_the_first_event_that_raises_an_alert():
    outcome = evaluate([rows([1.0, 2.0], ("stop", 0, [0.5, 1.5, 2.5, 9.0]))])
    assert trial(outcome)["seconds_to_catch"] == 60.0


def test_a_technique_is_hidden_only_if_suppressions_hold_back_all_of_its_alerts():
    one, all_ = (
        trial(evaluate([rows([1.0, 2.0], ("stop", 0, [5.0, 6.0]), held=held)]))
        for held in ([5.0], [5.0, 6.0])
    )
    assert (one["caught"], one["hidden_by"], one["seconds_to_catch"]) == (True, None, 30.0)
    assert (all_["caught"], all_["hidden_by"]) == (False, "a rule")


def test_what_would_have_been_missed_anyhow_is_not_hidden():
    outcome = trial(evaluate([rows([1.0, 2.0], ("stop", 0, [0.5]), held=[0.5])]))
    assert (outcome["caught"], outcome["hidden_by"]) == (False, None)


def test_rank_is_among_the_users_events_of_that_day_and_equals_count_against_it():
    own = [3.0, 7.0, 5.0, 5.0, 9.0, 9.0]
    outcome = evaluate([rows(own, ("stop", 2, [1.0, 5.0]), each=timedelta(hours=4))])
    assert trial(outcome)["events_of_day"] == 4
    assert trial(outcome)["rank"] == 4


@settings(deadline=None)  # the machine may be busy
@given(SCORES, st.integers(0, 12))
def test_no_more_of_ones_own_events_raise_alerts_than_are_allowed(own, allowed):
    limit = find_threshold(pl.Series(own), allowed)
    assert sum(score > limit for score in own) <= allowed
    assert limit in {*own, -math.inf}


@settings(deadline=None)  # the machine may be busy
@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0, 20))
def test_the_whole_run_stays_within_its_budget(users, alerts_per_day):
    batches = [rows(own, user=str(n)) for n, own in enumerate(users)]
    outcome = evaluate(batches, alerts_per_day)
    days = max(map(len, users))
    assert outcome.alerts_raised <= outcome.alerts_allowed <= alerts_per_day * days + 1e-6


@settings(deadline=None)  # the machine may be busy
@given(SCORES, SCORES)
def test_a_larger_budget_never_catches_less(own, injected):
    caught = [
        trial(evaluate([rows(own, ("stop", 0, injected))], budget))["caught"]
        for budget in (0.0, 0.1, 0.5, 1.0, 2.0)
    ]
    assert caught == sorted(caught)


def test_users_that_nothing_was_tried_on_are_told_and_share_no_budget():
    young = OutputRows(
        user="bob", frame=TRIAL_SCHEMA.to_frame(), unscored_reason="40 events of history, 300 needed"
    )
    outcome = evaluate([rows([1.0] * 10, ("stop", 0, [2.0])), young], alerts_per_day=0.2)
    assert outcome.skipped == {"bob": "40 events of history, 300 needed"}
    assert outcome.alerts_allowed == 2


def test_a_technique_that_found_no_time_is_neither_caught_nor_missed():
    batch = rows([1.0, 2.0], ("stop", 0, [9.0]))
    nowhere = pl.DataFrame([("long", "hours", None, None, None)], schema=TRIAL_SCHEMA, orient="row")
    outcome = evaluate([OutputRows(user="ann", frame=pl.concat([batch.frame, nowhere]))])
    assert trial(outcome, "long")["caught"] is None
    assert outcome.recall == 1.0
    shares = outcome.count_caught("technique").rows()
    assert shares == [("long", 0, 0), ("stop", 1, 1)]


def test_where_nothing_was_tried_there_is_no_recall():
    assert evaluate([]).recall is None
    assert evaluate([]).trials.height == 0


@pytest.mark.parametrize("order", [1, -1])
def test_trials_are_sorted_by_technique_and_user(order):
    users = [rows([1.0], ("b", 0, [2.0]), ("a", 0, [2.0]), user=user) for user in ("x", "y")]
    names = evaluate(users[::order]).trials.select("technique", "user").rows()
    assert names == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
