"""Which alerts are one incident, and which incidents a page shows."""

from __future__ import annotations

import polars as pl
import pytest

from morpheus.columns import RISK, ExplanationColumns
from morpheus.models.calibration import count_exceedances
from morpheus.report.aggregate import TopEvents, ReportAggregator, EventArrays
from morpheus.report.incidents import MAX_EVENTS_SHOWN
from report_pages import HOUR, alarming, card, gathered, quiet


def told(contents):
    return [(one.incident.user, one.incident.count) for one in contents.incidents]


def test_alerts_of_one_user_without_an_hours_pause_are_one_incident():
    found = gathered({"ann": [alarming([0, 3600, 7200, 10801])], "bob": [alarming([60])]})
    assert sorted(told(found)) == [("ann", 1), ("ann", 3), ("bob", 1)]


def test_without_filter_alerts_are_at_least_as_high_as_any_held_out_event():
    found = gathered({"ann": [quiet(), alarming([HOUR * 50], 4.1), alarming([HOUR * 60], 3.9)]})
    assert told(found) == [("ann", 1)]
    assert "No filter in the pipeline" in found.rule


def test_without_filter_there_are_so_many_a_day_at_most():
    alerts = [alarming([HOUR * 3 * n], 10.0 + n) for n in range(16)]
    found = gathered({"ann": alerts})  # 45 hours from midnight: two days, five a day
    assert len(found.incidents) == 10
    levels = [one.incident.level for one in found.incidents]
    assert levels == sorted(levels, reverse=True)


def test_a_break_in_the_rhythm_is_worth_a_look_whatever_the_events_are():
    burst = quiet(hours=1).with_columns(pl.lit(value=True).alias("ts_anomaly"))
    found = gathered({"ann": [burst]})
    assert [(one.incident.flagged, one.incident.severity) for one in found.incidents] == [
        (4, "medium")
    ]


def test_an_incident_shows_its_highest_events_and_counts_all():
    found = gathered({"ann": [alarming(range(MAX_EVENTS_SHOWN + 5), 100.0)]})
    [incident] = [one.incident for one in found.incidents]
    assert (incident.count, len(incident.events), len(incident.times)) == (MAX_EVENTS_SHOWN + 5, MAX_EVENTS_SHOWN, 30)
    assert [event.score for event in incident.events] == [100.0 - n for n in range(MAX_EVENTS_SHOWN)]
    assert incident.events[incident.worst].score == 100.0


def test_the_columns_of_a_verdict_hold_values_as_they_are_in_the_log():
    found = gathered({"ann": [alarming([0], value="x" * 100)]})
    [column] = found.incidents[0].incident.columns
    assert (column.column, column.value) == ("eventName", "x" * 100)


def test_a_value_that_was_cut_is_no_column_of_a_verdict():
    found = gathered({"ann": [alarming([0], value="x" * 5000)]})
    assert found.incidents[0].incident.columns == []


def test_an_explanation_that_is_none_of_ours_is_left_out():
    odd = alarming([0]).with_columns(pl.lit('{"columns": 7}').alias("explanation"))
    [event] = gathered({"ann": [odd]}).incidents[0].incident.events
    assert event.why is None
    assert event.reason is not None


def test_a_reason_of_the_logs_own_is_a_column_of_the_event_and_ours_is_found_behind_a_prefix():
    ours = {name: f"why_{name}" for name in ExplanationColumns()}
    both = alarming([0], value="x").rename(ours).with_columns(reason=pl.lit("user_approved"))
    [incident] = [one.incident for one in gathered({"ann": [both]}).incidents]
    [event] = incident.events
    assert event.raw["reason"] == "user_approved"
    assert event.reason == both["why_reason"][0]
    assert not set(ours.values()) & set(event.raw)
    assert incident.columns[0].column == "eventName"
    [event] = gathered({"ann": [both.drop(ours.values())]}).incidents[0].incident.events
    assert (event.raw["reason"], event.reason) == ("user_approved", None)


@pytest.mark.parametrize("turned", [False, True])
def test_candidates_are_the_highest_whatever_the_order_in_which_they_come(turned):
    frames = [alarming([HOUR * n], float(n)) for n in range(40)]
    candidates = TopEvents(max_events=5)
    for frame in reversed(frames) if turned else frames:
        look = EventArrays.from_frame(frame)
        candidates.add("ann", frame, look, look.scores, ~look.flagged)
    assert candidates.to_frame()[RISK].to_list() == [35.0, 36.0, 37.0, 38.0, 39.0]
    assert candidates.dropped == 35


def test_where_nothing_is_known_of_users_the_lowest_incident_is_level_one():
    users = {"ann": [alarming([0], 8.0), alarming([HOUR * 9], 2.0)]}
    found = gathered(users, cards=False)
    assert [one.incident.level for one in found.incidents] == [4.0, 1.0]
    assert found.reach is None


def test_level_one_is_the_highest_risk_of_the_median_users_held_out_days():
    assert card("ann").portrait.risks[-1] == 4.0
    found = gathered({"ann": [alarming([0], 8.0)], "bob": [quiet()]})
    assert (found.incidents[0].incident.level, found.reach) == (2.0, 4.0)


def test_events_that_filter_left_out_are_in_the_lanes_and_are_no_alerts():
    findings = ReportAggregator(filtered=True)
    findings.register_user("ann", card("ann"), None)
    findings.add("ann", alarming([0]))
    look = EventArrays.from_frame(quiet())
    findings.add_histogram("ann", look.histogram, count_exceedances(card("ann").portrait, look.risks))
    findings.histograms.compact()
    assert int(findings.histograms.users["ann"].events.sum()) == 1 + quiet().height
    assert findings.top_events.to_frame().height == 1
    assert int(findings.users["ann"].exceedances[0]) == 1 + quiet().height
