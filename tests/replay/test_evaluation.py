import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.batch import OutputRows, Table
from morpheus.replay.evaluation import SCORED_EVENT_SCHEMA, evaluate, find_threshold

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
SCORES = st.lists(st.floats(0, 9), min_size=1, max_size=30)


def rows(own, *trials, user="ann", interval=timedelta(days=1), suppressed=(), context=()):
    """A user's own scores, one per day, and trials: name, hours after the start, scores.

    A suppression matches the scores in `suppressed`. Without these events, the scores in `context`
    are 0.
    """
    events = [(None, None, START + n * interval, score, None, score) for n, score in enumerate(own)]
    for name, hours, scores in trials:
        times = [START + timedelta(hours=hours, seconds=30 * n) for n in range(len(scores))]
        events += [
            (
                *(name, "agent", time, score, "a rule" if score in suppressed else None),
                0.0 if score in context else score,
            )
            for time, score in zip(times, scores, strict=True)
        ]
    return OutputRows(
        user=user, table=Table(pl.DataFrame(events, schema=SCORED_EVENT_SCHEMA, orient="row"))
    )


def trial(report, name="stop"):
    [row] = report.trials.filter(technique=name).to_dicts()
    return row


def test_a_technique_above_the_threshold_of_the_budget_is_caught():
    # A week, so one alert is allowed: the threshold is the second highest of the user's own.
    own = [1.0, 9.0, 2.0, 5.0, 3.0, 1.0, 1.0]
    report = evaluate([rows(own, ("stop", 1, [5.1]), ("share", 1, [5.0]))])
    assert trial(report) == {
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
    assert trial(report, "share")["caught"] is False
    assert trial(report, "share")["seconds_to_catch"] is None
    assert (report.alerts_allowed, report.alerts_raised, report.recall) == (1, 1, 0.5)


def test_time_to_catch_ends_at_the_first_event_that_raises_an_alert():
    report = evaluate([rows([1.0, 2.0], ("stop", 0, [0.5, 1.5, 2.5, 9.0]))])
    assert trial(report)["seconds_to_catch"] == 60.0


def test_a_technique_is_hidden_only_if_all_its_alerts_are_suppressed():
    some, every = (
        trial(evaluate([rows([1.0, 2.0], ("stop", 0, [5.0, 6.0]), suppressed=scores)]))
        for scores in ([5.0], [5.0, 6.0])
    )
    assert (some["caught"], some["hidden_by"], some["seconds_to_catch"]) == (True, None, 30.0)
    assert (every["caught"], every["hidden_by"]) == (False, "a rule")


def test_an_event_that_is_unusual_only_after_suppressed_ones_raises_no_alert():
    scores, own = [5.0, 6.0], [1.0, 2.0]
    both = evaluate([rows(own, ("stop", 0, scores), suppressed=[5.0], context=[6.0])])
    assert (trial(both)["caught"], trial(both)["hidden_by"]) == (False, "a rule")
    alone = evaluate([rows(own, ("stop", 0, scores), context=scores)])
    assert trial(alone)["hidden_by"] == "unusual only after suppressed events"


def test_a_given_threshold_replaces_that_of_the_budget():
    report = evaluate([rows([1.0, 2.0], ("stop", 0, [5.0]))], thresholds={"ann": 5.0})
    assert (trial(report)["caught"], trial(report)["threshold"]) == (False, 5.0)


def test_a_missed_technique_is_not_hidden_by_suppressions():
    report = trial(evaluate([rows([1.0, 2.0], ("stop", 0, [0.5]), suppressed=[0.5])]))
    assert (report["caught"], report["hidden_by"]) == (False, None)


def test_rank_counts_the_users_events_of_that_day_with_equal_or_higher_scores():
    own = [3.0, 7.0, 5.0, 5.0, 9.0, 9.0]
    report = evaluate([rows(own, ("stop", 2, [1.0, 5.0]), interval=timedelta(hours=4))])
    assert trial(report)["events_of_day"] == 4
    assert trial(report)["rank"] == 4


@settings(deadline=None)  # the machine may be busy
@given(SCORES, st.integers(0, 12))
def test_own_events_raise_at_most_the_allowed_alerts(own, allowed):
    limit = find_threshold(pl.Series(own), allowed)
    assert sum(score > limit for score in own) <= allowed
    assert limit in {*own, -math.inf}


@settings(deadline=None)  # the machine may be busy
@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0, 20))
def test_the_whole_run_stays_within_its_budget(users, alerts_per_day):
    batches = [rows(own, user=str(n)) for n, own in enumerate(users)]
    report = evaluate(batches, alerts_per_day)
    days = max(map(len, users))
    assert report.alerts_raised <= report.alerts_allowed <= alerts_per_day * days + 1e-6


@settings(deadline=None)  # the machine may be busy
@given(SCORES, SCORES)
def test_a_larger_budget_never_catches_less(own, injected):
    caught = [
        trial(evaluate([rows(own, ("stop", 0, injected))], budget))["caught"]
        for budget in (0.0, 0.1, 0.5, 1.0, 2.0)
    ]
    assert caught == sorted(caught)


def test_skipped_users_are_reported_and_get_no_budget():
    skipped = OutputRows(
        user="bob",
        table=Table(SCORED_EVENT_SCHEMA.to_frame()),
        unscored_reason="40 events of history, 300 needed",
    )
    report = evaluate([rows([1.0] * 10, ("stop", 0, [2.0])), skipped], alerts_per_day=0.2)
    assert report.skipped == {"bob": "40 events of history, 300 needed"}
    assert report.alerts_allowed == 2


def test_a_technique_without_a_time_that_fits_is_neither_caught_nor_missed():
    batch = rows([1.0, 2.0], ("stop", 0, [9.0]))
    unplaced = pl.DataFrame(
        [("long", "hours", None, None, None, None)], schema=SCORED_EVENT_SCHEMA, orient="row"
    )
    report = evaluate(
        [OutputRows(user="ann", table=Table(pl.concat([batch.table.to_frame(), unplaced])))]
    )
    assert trial(report, "long")["caught"] is None
    assert report.recall == 1.0
    shares = report.count_caught("technique").rows()
    assert shares == [("long", 0, 0), ("stop", 1, 1)]


def test_without_trials_there_is_no_recall():
    assert evaluate([]).recall is None
    assert evaluate([]).trials.height == 0


@pytest.mark.parametrize("order", [1, -1])
def test_trials_are_sorted_by_technique_and_user(order):
    users = [rows([1.0], ("b", 0, [2.0]), ("a", 0, [2.0]), user=user) for user in ("x", "y")]
    names = evaluate(users[::order]).trials.select("technique", "user").rows()
    assert names == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
