"""Events as alerts, and the findings that they are part of."""

from dataclasses import replace

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows, Table
from morpheus.errors import UsageError
from morpheus.report.incidents import incident_id
from morpheus.sinks.alert import MAX_FINDING_EVENTS, AlertBuilder, FindingBuilder
from morpheus.sinks.alert_formats import make_detection_finding
from strange import TRAIL, explained, plain

DAY = 86_400


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


def findings(*batches, unbounded=False, timezone="UTC"):
    builder = FindingBuilder(AlertBuilder("to-ocsf", "from-cloudtrail"), timezone, unbounded)
    return [f for batch in batches for f in builder.build(batch)] + list(builder.flush())


def test_alerts_of_a_user_on_one_day_are_one_finding():
    ann = plain([TRAIL] * 3, seconds=[0, DAY - 1, DAY])
    bob = plain([TRAIL], user="bob", seconds=[7])
    found = findings(ann, bob)
    assert [(f.user, f.counts.events) for f in found] == [("ann", 2), ("ann", 1), ("bob", 1)]
    assert [f.incident for f in found] == [
        incident_id("ann", "2021-10-09"),
        incident_id("ann", "2021-10-10"),
        incident_id("bob", "2021-10-09"),
    ]
    assert (found[0].end - found[0].start).total_seconds() == DAY - 1


def test_days_of_findings_are_those_of_the_time_zone():
    batch = plain([TRAIL] * 3, seconds=[0, DAY - 1, DAY])
    found = findings(batch, timezone="America/New_York")
    assert [f.counts.events for f in found] == [1, 2]
    assert found[0].incident == incident_id("ann", "2021-10-08")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_findings_do_not_depend_on_batches(size):
    rows = [TRAIL | {"eventID": str(n), "action": "never" if n % 4 else "get"} for n in range(9)]
    seconds = [n * DAY / 4 for n in range(9)]
    whole = explained(rows, seconds=seconds)
    parts = [
        replace(whole, table=Table(whole.table.to_frame()[at : at + size]))
        for at in range(0, 9, size)
    ]
    assert findings(*parts) == findings(whole)


def test_a_finding_holds_its_most_severe_events_and_counts_all():
    rows = [{"action": f"a{n}"} for n in range(40)]
    batch = plain(rows)
    scores = pl.Series(batch.scores[0], [float(n % 30) for n in range(40)])
    [found] = findings(replace(batch, table=batch.table.with_columns([scores])))
    assert (found.counts.events, len(found.alerts)) == (40, MAX_FINDING_EVENTS)
    assert found.worst.event["action"] == "a29"
    times = [alert.time for alert in found.alerts]
    assert times == sorted(times)
    kept = [*range(7, 30), 38, 39]  # of the two events with a score of 7, the first one
    assert [alert.event["action"] for alert in found.alerts] == [f"a{n}" for n in kept]


def test_on_an_input_without_end_a_finding_is_emitted_at_once_and_again_when_it_grows():
    batches = [plain([TRAIL], seconds=[second]) for second in (0, 60, DAY)]
    batches.insert(1, plain([TRAIL], user="bob"))
    found = findings(*batches, unbounded=True)
    assert [(f.user, f.counts.events, f.is_update) for f in found] == [
        ("ann", 1, False),
        ("bob", 1, False),
        ("ann", 2, True),
        ("ann", 1, False),
    ]
    assert found[0].incident == found[2].incident == found[2].id.removesuffix("-2")
    assert len({f.id for f in found}) == 4


SEVERITIES = {0: "low", 24.4: "low", 24.6: "medium", 49: "medium", 50: "high", 75: "critical"}


@pytest.mark.parametrize(("score", "expected"), SEVERITIES.items())
def test_severity_follows_from_the_score_or_without_it_from_the_pvalue(score, expected):
    rows = plain([TRAIL] * 2).table.to_frame()
    by_score = rows.with_columns(severity=pl.Series([0.0, float(score)]), pvalue=0.5)
    by_pvalue = rows.with_columns(pvalue=pl.Series([1.0, 10 ** (-score / 33)]))
    for frame in (by_score, by_pvalue):
        [found] = findings(OutputRows(user="ann", table=Table(frame)))
        assert (found.severity, found.severity_name) == (round(score), expected)


def test_without_model_severity_and_pvalue_the_severity_is_unknown():
    [found] = findings(plain([TRAIL]))
    assert (found.severity, make_detection_finding(found).severity) == (None, "Unknown")


def test_events_without_scores_are_informational():
    frame = plain([TRAIL]).table.to_frame().drop("ae_anomaly_score")
    [found] = findings(OutputRows(user=None, table=Table(frame)))
    assert (found.severity, found.worst.title) == (None, "no user: unusual event")
    assert make_detection_finding(found).severity == "Informational"


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
