"""How alerts are grouped into incidents, and which incidents a page shows."""

from __future__ import annotations

import polars as pl
import pytest

from morpheus.columns import RISK, TIME, ExplanationColumns, FieldCondition
from morpheus.models.calibration import count_exceedances
from morpheus.models.scoring import number_days
from morpheus.report.aggregate import EventArrays, ReportAggregator, TopEvents
from morpheus.report.incidents import (
    MAX_EVENTS_SHOWN,
    format_day,
    incident_id,
    select_incidents,
)
from report_pages import DAY_START, HOUR, alerts, build_data, card, normal_events, origin


def counts(data):
    return [(view.incident.user, view.incident.count) for view in data.incidents]


def test_alerts_of_a_user_on_one_day_are_one_incident():
    midnight = 24 * HOUR
    times = [0, 20 * HOUR, midnight - 0.001, midnight, midnight + 1]
    data = build_data({"ann": [alerts(times)], "bob": [alerts([midnight + 2])]})
    assert sorted(counts(data)) == [("ann", 2), ("ann", 3), ("bob", 1)]


def test_days_of_incidents_are_those_of_the_time_zone():
    times = [0, 21 * HOUR, 23 * HOUR, 26 * HOUR]  # 02:00, 23:00, 01:00, 04:00 in Berlin
    users = {"ann": [alerts(times)]}
    assert sorted(counts(build_data(users, timezone="Europe/Berlin"))) == [("ann", 2), ("ann", 2)]
    assert sorted(counts(build_data(users))) == [("ann", 1), ("ann", 3)]


def test_the_id_of_an_incident_does_not_change_with_its_events():
    [view] = build_data({"ann": [alerts([HOUR, 5 * HOUR])]}).incidents
    assert view.incident.id == incident_id("ann", format_day(DAY_START // (24 * HOUR)))
    [again] = build_data({"ann": [alerts([0, 5 * HOUR])]}).incidents
    assert again.incident.id == view.incident.id
    [other_day] = build_data({"ann": [alerts([25 * HOUR])]}).incidents
    [other_user] = build_data({"bob": [alerts([HOUR])]}).incidents
    assert len({view.incident.id, other_day.incident.id, other_user.incident.id}) == 3


def test_without_filter_alerts_have_at_least_level_one():
    data = build_data(
        {"ann": [normal_events(), alerts([HOUR * 50], 4.1), alerts([HOUR * 60], 3.9)]}
    )
    assert counts(data) == [("ann", 1)]
    assert "No filter in the pipeline" in data.rule


def test_without_filter_incidents_stay_within_the_daily_maximum():
    users = {f"user{n:02}": [alerts([HOUR * 3 * n], 10.0 + n)] for n in range(16)}
    data = build_data(users)  # 45 hours from midnight: two days, five a day
    assert len(data.incidents) == 10
    severities = [view.incident.severity for view in data.incidents]
    assert severities == sorted(severities, reverse=True)


def test_a_time_series_anomaly_is_an_alert_whatever_the_scores():
    burst = normal_events(hours=1).with_columns(pl.lit(value=True).alias("ts_anomaly"))
    data = build_data({"ann": [burst]})
    [incident] = [view.incident for view in data.incidents]
    assert (incident.flagged, incident.severity, incident.severity_name) == (4, 25, "medium")


def test_an_incident_shows_its_highest_events_and_counts_all_events():
    data = build_data({"ann": [alerts(range(MAX_EVENTS_SHOWN + 5), 100.0)]})
    [incident] = [view.incident for view in data.incidents]
    assert (incident.count, len(incident.events), len(incident.times)) == (
        MAX_EVENTS_SHOWN + 5,
        MAX_EVENTS_SHOWN,
        30,
    )
    assert [event.score for event in incident.events] == [
        100.0 - n for n in range(MAX_EVENTS_SHOWN)
    ]
    assert incident.events[incident.worst].score == 100.0


def test_columns_of_a_verdict_have_the_values_of_the_log():
    data = build_data({"ann": [alerts([0], value="x" * 100)]})
    [column] = data.incidents[0].incident.columns
    assert (column.column, column.value) == ("eventName", "x" * 100)


def test_a_truncated_value_is_not_a_column_of_a_verdict():
    data = build_data({"ann": [alerts([0], value="x" * 5000)]})
    assert data.incidents[0].incident.columns == []


def test_an_explanation_in_another_format_is_ignored():
    odd = alerts([0]).with_columns(pl.lit('{"columns": 7}').alias("explanation"))
    [event] = build_data({"ann": [odd]}).incidents[0].incident.events
    assert event.why is None
    assert event.reason is not None


def test_a_reason_column_of_the_log_is_kept_and_ours_is_found_by_its_prefix():
    ours = {name: f"why_{name}" for name in ExplanationColumns()}
    both = alerts([0], value="x").rename(ours).with_columns(reason=pl.lit("user_approved"))
    [incident] = [view.incident for view in build_data({"ann": [both]}).incidents]
    [event] = incident.events
    assert event.raw["reason"] == "user_approved"
    assert event.reason == both["why_reason"][0]
    assert not set(ours.values()) & set(event.raw)
    assert incident.columns[0].column == "eventName"
    [event] = build_data({"ann": [both.drop(ours.values())]}).incidents[0].incident.events
    assert (event.raw["reason"], event.reason) == ("user_approved", None)


@pytest.mark.parametrize("reverse", [False, True])
def test_top_events_do_not_depend_on_the_order_of_events(reverse):
    frames = [alerts([HOUR * n], float(n)) for n in range(40)]
    top_events = TopEvents(max_events=5)
    for frame in reversed(frames) if reverse else frames:
        arrays = EventArrays.from_frame(frame)
        top_events.add("ann", frame, arrays, arrays.scores, number_days(frame[TIME], "UTC"))
    # The highest events of the two days, 23 and 39, and then the highest of all.
    assert top_events.to_frame()[RISK].to_list() == [23.0, 36.0, 37.0, 38.0, 39.0]


def test_an_incident_counts_the_events_that_are_not_kept():
    aggregator = ReportAggregator(filtered=True, top_events=TopEvents(max_events=10))
    for user, risk in (("ann", 90.0), ("bob", 40.0)):
        aggregator.register_user(user, card(user), None)
        aggregator.add(user, alerts(range(30), risk))
        aggregator.add(user, alerts(range(30, 60), risk))
    incidents = select_incidents(aggregator, 5, ["eventName"]).incidents
    assert [(each.user, each.count) for each in incidents] == [("ann", 60), ("bob", 60)]
    assert [each.since - DAY_START for each in incidents] == [0, 0]
    assert [each.until - DAY_START for each in incidents] == [59, 59]
    assert [len(each.events) for each in incidents] == [9, 1]
    assert incidents[1].events[0].score == 40.0


def test_without_model_cards_the_lowest_incident_has_the_lowest_medium_severity():
    users = {"ann": [alerts([0], 8.0), alerts([HOUR * 30], 2.0)]}
    data = build_data(users, cards=False)
    found = [(view.incident.severity, view.incident.severity_name) for view in data.incidents]
    assert found == [(75, "critical"), (25, "medium")]


def test_the_highest_validation_risk_of_a_user_has_the_lowest_medium_severity():
    assert card("ann").summary.risks[-1] == 4.0
    data = build_data({"ann": [alerts([0], 8.0)], "bob": [alerts([0], 4.0)]})
    assert [view.incident.severity for view in data.incidents] == [50, 25]


@pytest.mark.parametrize(
    ("stated", "severity"),
    [
        ({"incident_severity": 77, "severity": 60.4, "pvalue": 0.5}, 77),
        ({"severity": 60.4, "pvalue": 0.5}, 60),
        ({"pvalue": 0.01}, 66),
    ],
)
def test_the_severity_of_an_incident_is_the_best_that_its_rows_state(stated, severity):
    rows = alerts([0, HOUR], 99.0).with_columns(**{n: pl.lit(v) for n, v in stated.items()})
    [view] = build_data({"ann": [rows]}).incidents
    assert view.incident.severity == severity
    assert max(event.severity for event in view.incident.events) == severity


def test_dropped_events_are_in_the_timelines_and_are_not_alerts():
    aggregator = ReportAggregator(filtered=True)
    aggregator.register_user("ann", card("ann"), None)
    aggregator.add("ann", alerts([0]))
    arrays = EventArrays.from_frame(normal_events())
    aggregator.add_histogram(
        "ann", arrays.histogram, count_exceedances(card("ann").summary, arrays.risks)
    )
    aggregator.histograms.compact()
    assert int(aggregator.histograms.users["ann"].events.sum()) == 1 + normal_events().height
    assert aggregator.top_events.to_frame().height == 1
    assert int(aggregator.users["ann"].exceedances[0]) == 1 + normal_events().height


def find_ids(*ids):
    """The ids that queries have for events with some ids."""
    rows = alerts([HOUR * n for n in range(len(ids))]).with_columns(pl.Series("eventID", ids))
    [view] = build_data({"ann": [rows]}, filtered=True).incidents
    return view.evidence.ids


def make_event_id(number):
    return f"00000000-0000-4000-8000-{number:012}"


def test_queries_select_by_the_ids_of_all_events_also_of_those_that_are_not_shown():
    ids = [make_event_id(n) for n in range(MAX_EVENTS_SHOWN + 5)]
    seconds = range(0, 60 * len(ids), 60)
    rows = alerts(list(seconds)).with_columns(pl.Series("eventID", ids))
    [view] = build_data({"ann": [rows]}, filtered=True).incidents
    assert len(view.incident.events) == MAX_EVENTS_SHOWN
    assert view.evidence.ids == ids


@pytest.mark.parametrize("bad", [None, "7", "*", "x" * 300, f"{make_event_id(1)}'"])
def test_queries_do_not_select_by_ids_if_an_event_has_none(bad):
    good = make_event_id(0), make_event_id(1)
    assert find_ids(*good) == list(good)
    assert find_ids(good[0], bad) == []


def test_queries_have_an_account_as_the_log_has_it():
    rows = alerts([HOUR]).with_columns(userIdentityaccountId=pl.lit("Account-0123"))
    column = "userIdentityaccountId"
    [view] = build_data({"Account-0123": [rows]}, events_of=origin(user_column=column)).incidents
    assert view.evidence.identity == ((FieldCondition(column, ("0123",)),),)
