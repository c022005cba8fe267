"""How alerts are grouped into incidents, and which incidents a page shows."""

from __future__ import annotations

import polars as pl
import pytest

from morpheus.columns import RISK, ExplanationColumns
from morpheus.models.calibration import count_exceedances
from morpheus.report.aggregate import EventArrays, ReportAggregator, TopEvents
from morpheus.report.incidents import MAX_EVENTS_SHOWN, incident_id
from report_pages import DAY_START, HOUR, alerts, build_data, card, normal_events


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


def test_an_incident_is_identified_by_its_user_and_its_first_event():
    [view] = build_data({"ann": [alerts([HOUR, 5 * HOUR])]}).incidents
    assert view.incident.id == incident_id("ann", DAY_START + HOUR)
    [again] = build_data({"ann": [alerts([HOUR])]}).incidents
    assert again.incident.id == view.incident.id


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
    levels = [view.incident.level for view in data.incidents]
    assert levels == sorted(levels, reverse=True)


def test_a_time_series_anomaly_is_an_alert_whatever_the_scores():
    burst = normal_events(hours=1).with_columns(pl.lit(value=True).alias("ts_anomaly"))
    data = build_data({"ann": [burst]})
    assert [(view.incident.flagged, view.incident.severity) for view in data.incidents] == [
        (4, "medium")
    ]


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
        top_events.add("ann", frame, arrays, arrays.scores, ~arrays.flagged)
    assert top_events.to_frame()[RISK].to_list() == [35.0, 36.0, 37.0, 38.0, 39.0]
    assert top_events.dropped == 35


def test_without_model_cards_the_lowest_incident_has_level_one():
    users = {"ann": [alerts([0], 8.0), alerts([HOUR * 30], 2.0)]}
    data = build_data(users, cards=False)
    assert [view.incident.level for view in data.incidents] == [4.0, 1.0]
    assert data.reach is None


def test_level_one_is_the_highest_validation_risk_of_the_median_user():
    assert card("ann").summary.risks[-1] == 4.0
    data = build_data({"ann": [alerts([0], 8.0)], "bob": [normal_events()]})
    assert (data.incidents[0].incident.level, data.reach) == (2.0, 4.0)


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
