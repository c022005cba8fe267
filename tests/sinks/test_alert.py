"""An event as an alert: its id, its title, its severity."""

import pytest

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows
from morpheus.errors import UsageError
from morpheus.sinks.alert import AlertBuilder
from strange import TRAIL, explained, plain


def alerts(*batches, source="from-cloudtrail"):
    made = AlertBuilder("to-ocsf", source)
    return [alert for batch in batches for alert in made.build(batch)]


def ids(*batches, source="from-cloudtrail"):
    return [alert.id for alert in alerts(*batches, source=source)]


def test_an_event_has_the_same_id_whatever_is_known_of_it():
    [known] = ids(explained([TRAIL]))
    [bare] = ids(plain([TRAIL]))
    assert known == bare
    assert len(known) == 32


def test_who_when_what_and_the_log_make_the_id():
    same = plain([TRAIL])
    others = [
        plain([TRAIL], user="bob"),
        plain([TRAIL], seconds=[1]),
        plain([TRAIL | {"eventID": "6"}]),
    ]
    found = ids(same) + ids(*others) + ids(same, source="from-duo")
    assert len(set(found)) == 5


def test_events_alike_in_everything_have_ids_of_their_own():
    twice = plain([{"action": "get"}] * 3, seconds=[7, 7, 7])
    first = ids(twice)
    assert len(set(first)) == 3
    assert ids(twice) == first


def test_in_a_log_we_do_not_know_a_column_called_id_identifies_nothing():
    one, other = [{"id": "ann", "path": path} for path in ("/a", "/b")]
    assert ids(plain([one]), source="from-file") != ids(plain([other]), source="from-file")


def test_ids_do_not_depend_on_how_events_are_cut_into_batches():
    whole = plain([{"action": "get"}] * 4, seconds=[7, 7, 8, 8])
    parts = [OutputRows(user="ann", frame=whole.frame[at : at + 1]) for at in range(4)]
    assert ids(*parts) == ids(whole)


def test_the_title_names_user_and_columns_and_hides_nothing():
    [alert] = alerts(explained([{"action": "nobody did this"}], user="ann\u202e\x1b"))
    assert alert.title.startswith("ann\\u202e\\x1b: unusual action")
    assert alert.text == alert.reason
    assert "nobody did this" in alert.reason


def test_severity_goes_by_the_share_of_held_out_events_as_risky():
    [strange] = alerts(explained([{"action": "never", "address": "moon"}]))
    assert strange.severity == 4
    [usual] = alerts(explained([{}]))
    assert usual.severity == 2
    [unknown] = alerts(explained([{}], labels=("risk",)))
    assert unknown.severity == 0


def test_an_event_without_a_score_is_an_alert_of_the_lowest_severity():
    frame = plain([TRAIL]).frame
    [alert] = alerts(OutputRows(user=None, frame=frame))
    assert (alert.severity, alert.title) == (1, "no user: unusual event")


def test_the_event_itself_is_its_own_columns_and_no_other():
    [alert] = alerts(explained([TRAIL | {"errorCode": None}]))
    assert "errorCode" not in alert.event
    assert {"risk", "pvalue", "explanation", "", "_index_"}.isdisjoint(alert.event)
    assert alert.event["eventName"] == "CreateAccessKey"


def test_duos_own_reason_stays_beside_ours():
    event = {"reason": "user_approved", "action": "never"}
    [alert] = alerts(explained([event], prefix="why_"), source="from-duo")
    assert alert.event["reason"] == "user_approved"
    assert "action: saw" in alert.reason
    [bare] = alerts(plain([{"reason": "user_approved"}]), source="from-duo")
    assert bare.event["reason"] == "user_approved"
    assert bare.reason is None


def test_without_a_time_it_is_said_who_left_it_out():
    batch = plain([TRAIL])
    rows = OutputRows(user="ann", frame=batch.frame.drop(TIME))
    with pytest.raises(UsageError, match=r"to-ocsf: .*`serialize` left it out.*before `serialize`"):
        alerts(rows)
