"""An event as an alert: its id, its title, its severity."""

from dataclasses import replace

import pytest

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows, Table
from morpheus.errors import UsageError
from morpheus.sinks.alert import AlertBuilder
from strange import TRAIL, explained, plain


def alerts(*batches, source="from-cloudtrail"):
    builder = AlertBuilder("to-ocsf", source)
    return [alert for batch in batches for alert in builder.build(batch)]


def ids(*batches, source="from-cloudtrail"):
    return [alert.id for alert in alerts(*batches, source=source)]


def test_id_does_not_depend_on_scores():
    [with_model] = ids(explained([TRAIL]))
    [without_model] = ids(plain([TRAIL]))
    assert with_model == without_model
    assert len(with_model) == 32


def test_id_depends_on_user_time_content_and_source():
    event = plain([TRAIL])
    different = [
        plain([TRAIL], user="bob"),
        plain([TRAIL], seconds=[1]),
        plain([TRAIL | {"eventID": "6"}]),
    ]
    distinct = {*ids(event), *ids(*different), *ids(event, source="from-duo")}
    assert len(distinct) == 5


def test_identical_events_have_different_ids():
    identical = plain([{"action": "get"}] * 3, seconds=[7, 7, 7])
    first = ids(identical)
    assert len(set(first)) == 3
    assert ids(identical) == first


def test_column_id_of_an_unknown_log_is_not_an_event_id():
    first, second = [{"id": "ann", "path": path} for path in ("/a", "/b")]
    assert ids(plain([first]), source="from-file") != ids(plain([second]), source="from-file")


def test_ids_do_not_depend_on_batches():
    whole = plain([{"action": "get"}] * 4, seconds=[7, 7, 8, 8])
    parts = [
        OutputRows(user="ann", table=Table(whole.table.to_frame()[at : at + 1])) for at in range(4)
    ]
    assert ids(*parts) == ids(whole)


def test_title_names_user_and_columns_escaped():
    [alert] = alerts(explained([{"action": "nobody did this"}], user="ann\u202e\x1b"))
    assert alert.title.startswith("ann\\u202e\\x1b: unusual action")
    assert alert.message == alert.reason
    assert "nobody did this" in alert.reason


LEVELS = {0: 2, 32.9: 2, 33: 3, 55.9: 3, 56.1: 4, 100: 4}
"""Severity of an alert by the score."""


@pytest.mark.parametrize(("score", "expected"), LEVELS.items())
def test_severity_follows_from_the_score_or_without_it_from_the_pvalue(score, expected):
    [alert] = alerts(explained([{}]))
    by_pvalue = replace(alert, scores={"risk": 9.0, "pvalue": 10 ** (-score / 33)})
    by_score = replace(alert, scores={"severity": float(score), "pvalue": 0.5})
    assert (by_pvalue.severity, by_score.severity) == (expected, expected)


def test_severity_is_that_of_the_day_so_far_and_the_pvalue_that_of_the_event():
    strange = {"action": "never", "address": "moon", "agent": "kali", "kind": "root"}
    labels = ("risk", "pvalue", "severity")
    severities = [alert.severity for alert in alerts(explained([{}, strange, {}], labels=labels))]
    assert severities[0] == 2 < severities[1] == severities[2]
    last = alerts(explained([{}, strange, {}], labels=labels[:2]))[2]
    assert last.severity < severities[2]


def test_without_severity_and_pvalue_the_severity_is_unknown():
    [unknown] = alerts(explained([{}], labels=("risk",)))
    assert unknown.severity == 0


def test_event_without_scores_is_informational():
    frame = plain([TRAIL]).table.to_frame()
    [alert] = alerts(OutputRows(user=None, table=Table(frame)))
    assert (alert.severity, alert.title) == (1, "no user: unusual event")


def test_event_of_an_alert_has_only_columns_of_the_log():
    [alert] = alerts(explained([TRAIL | {"errorCode": None}]))
    assert "errorCode" not in alert.event
    assert {"risk", "pvalue", "explanation", "", "_index_"}.isdisjoint(alert.event)
    assert alert.event["eventName"] == "CreateAccessKey"


def test_reason_of_duo_stays_beside_ours():
    event = {"reason": "user_approved", "action": "never"}
    [alert] = alerts(explained([event], prefix="why_"), source="from-duo")
    assert alert.event["reason"] == "user_approved"
    assert "never" in alert.reason
    [bare] = alerts(plain([{"reason": "user_approved"}]), source="from-duo")
    assert bare.event["reason"] == "user_approved"
    assert bare.reason is None


def test_missing_time_is_explained():
    batch = plain([TRAIL])
    rows = OutputRows(user="ann", table=Table(batch.table.to_frame().drop(TIME)))
    with pytest.raises(UsageError, match=r"to-ocsf: .*`serialize` excludes it.*before `serialize`"):
        alerts(rows)
