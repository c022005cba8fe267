import json
import tomllib
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from morpheus.columns import INCIDENT_ID, POPULATION_USER, RISK, TIME
from morpheus.errors import UsageError
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.suppressions.proposals import (
    PastAlerts,
    ProposalMaker,
    Verdicts,
    list_hidden,
    preview_rule,
    render_suppressions,
    toml_string,
)
from morpheus.suppressions.rules import Suppressions

CLOUDTRAIL = CLOUDTRAIL_FORMAT.describe()


def verdict(judged="expected", user="ann", number=1, **values):
    values = values or {"eventName": "DeleteTrail"}
    return {
        "incident": f"{number:016x}",
        "user": user,
        "verdict": judged,
        "note": "",
        "start": "2026-03-02T09:00:00Z",
        "end": "2026-03-02T09:05:00.000Z",
        "events": 3,
        "columns": [{"column": name, "value": value} for name, value in values.items()],
    }


@pytest.fixture
def propose(tmp_path):
    """Make proposals from verdicts, in a file as the report exports it."""

    def propose(*verdicts, days=30, past=None, attacks=None, **about):
        path = tmp_path / "verdicts.json"
        file = {"format": "morpheus-verdicts", "version": 2, "made": "2026-03-03T10:00:00Z"}
        path.write_text(json.dumps({**file, "verdicts": verdicts, **about}))
        past = past or PastAlerts.empty(CLOUDTRAIL)
        return ProposalMaker(Verdicts.read([str(path)]), days, past, attacks).make()

    return propose


@pytest.mark.parametrize(
    ("judged", "proposals"),
    [("expected", 1), ("benign-new", 1), ("suspicious", 0), ("malicious", 0)],
)
def test_only_harmless_verdicts_give_proposals(propose, judged, proposals):
    assert len(propose(verdict(judged)).proposals) == proposals


def test_a_proposal_has_values_user_end_and_reason(propose):
    [proposal] = propose(verdict("benign-new") | {"note": "new tool"}, days=7).proposals
    assert dict(proposal.rule.where) == {"eventName": ("DeleteTrail",)}
    assert proposal.rule.users == ("ann",)
    assert proposal.rule.until == datetime(2026, 3, 10, tzinfo=UTC)
    assert proposal.rule.reason == "benign-new: new tool"


def test_values_of_a_column_are_alternatives_but_columns_must_all_match(propose):
    incident = verdict(agent="cli")
    incident["columns"] += [
        {"column": "eventName", "value": name} for name in ("B", "A", "B", None)
    ]
    [proposal] = propose(incident).proposals
    assert dict(proposal.rule.where) == {"agent": ("cli",), "eventName": ("", "A", "B")}


def test_users_with_the_same_values_share_a_suppression(propose):
    first, second = verdict(user="ann", a="1", b="2"), verdict(user="bob", number=2, b="2", a="1")
    [proposal] = propose(first, second).proposals
    assert proposal.rule.users == ("ann", "bob")
    assert len(proposal.verdicts) == 2


def test_a_proposal_that_would_hide_a_dangerous_incident_has_a_conflict(propose):
    [proposal] = propose(
        verdict(), verdict("malicious", number=2, eventName="DeleteTrail", a="1")
    ).proposals
    assert proposal.conflicts == ("it would hide incident 0000000000000002, judged malicious",)


def test_a_proposal_that_may_hide_a_dangerous_incident_has_a_warning(propose):
    [proposal] = propose(verdict(a="1", b="2"), verdict("suspicious", number=2, a="1")).proposals
    assert (proposal.conflicts, proposal.warnings) == (
        (),
        ("it may hide incident 0000000000000002, judged suspicious",),
    )


@pytest.mark.parametrize(
    "other", [verdict("malicious", "bob", 2), verdict("malicious", number=2, a="1")]
)
def test_dangerous_incidents_of_other_users_or_values_are_no_conflict(propose, other):
    [proposal] = propose(verdict(), other).proposals
    assert (proposal.conflicts, proposal.warnings) == ((), ())


def test_an_incident_without_value_or_user_is_unactionable(propose):
    nothing = verdict(errorCode=None)
    found = propose(nothing, verdict(number=2) | {"columns": []}, verdict(user=None, number=3))
    assert (len(found.proposals), len(found.unactionable)) == (0, 3)
    assert "# No suppression: Incident 0000000000000001, 3 events of ann" in render_suppressions(
        found, ["v"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "Invalid enum value 'other'"),
        ({"version": 3}, "Invalid enum value 3"),
        ({"verdicts": [verdict() | {"verdict": "fine"}]}, "Invalid enum value 'fine'"),
        ({"verdicts": [verdict() | {"incident": "../x"}]}, "matching regex"),
        ({"made": "2026-03-03T10:00:00"}, "timezone component"),
    ],
)
def test_another_file_is_rejected(propose, change, message):
    with pytest.raises(UsageError, match=rf"verdicts.json` cannot be read: .*{message}.*report ex"):
        propose(**change)


def test_a_written_file_is_read_unchanged(propose, tmp_path):
    proposals = propose(
        verdict() | {"note": 'say "no"\n[[suppression]]\u202e'},
        verdict(user="b\nob", number=2, **{"odd name.x": "\\ \x7f", "a": "é"}),
    )
    path = tmp_path / "suppressions.toml"
    path.write_text(render_suppressions(proposals, ["a\nb.json"]))
    assert Suppressions.read(str(path)).rules == tuple(one.rule for one in proposals.proposals)


def test_a_rejected_proposal_is_written_as_a_comment(propose):
    proposals = propose(verdict(), verdict("malicious", number=2))
    written = render_suppressions(proposals, ["v.json"])
    assert "# Rejected: it would hide incident 0000000000000002, judged malicious\n" in written
    assert '# where.eventName = "DeleteTrail"\n' in written
    assert "suppression" not in tomllib.loads(written)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_becomes_a_toml_string_on_one_line(value):
    assert toml_string(value).isprintable()
    assert tomllib.loads(f"x = {toml_string(value)}") == {"x": value}


def past_alerts(*rows):
    """Past alerts: user, minute after 09:00, name of the event."""
    frame = pl.DataFrame(rows, schema=[POPULATION_USER, "minute", "eventName"], orient="row")
    frame = frame.with_columns(pl.lit("0" * 16).alias(INCIDENT_ID))
    times = [datetime(2026, 3, 2, 9, minute, tzinfo=UTC) for minute in frame["minute"]]
    return frame.with_columns(pl.Series(TIME, times, pl.Datetime("us", "UTC")))


def test_a_preview_tells_judged_and_unjudged_incidents(propose):
    [proposal] = propose(verdict()).proposals
    events = past_alerts(
        ("ann", 5, "DeleteTrail"),
        ("ann", 30, "DeleteTrail"),
        ("ann", 31, "Get"),
        ("bob", 5, "DeleteTrail"),
    ).with_columns(pl.Series(INCIDENT_ID, ["a", "b", "c", "d"]))
    hidden = list_hidden([proposal.rule], PastAlerts(events, CLOUDTRAIL))
    found = preview_rule(proposal.rule, events, proposal.verdicts, hidden=hidden)
    assert (found.hidden, found.unjudged, found.partly) == (("a", "b"), ("b",), ())
    partly = events.with_columns(pl.Series(INCIDENT_ID, ["a", "b", "b", "d"]))
    hidden = list_hidden([proposal.rule], PastAlerts(partly, CLOUDTRAIL))
    found = preview_rule(proposal.rule, partly, proposal.verdicts, hidden=hidden)
    assert (found.hidden, found.partly) == (("a",), ("b",))


def test_an_incident_judged_malicious_is_not_called_one_without_a_verdict(propose):
    proposals = propose(verdict(), verdict("malicious", number=2, other="x"))
    [proposal] = proposals.proposals
    events = past_alerts(("ann", 5, "DeleteTrail"), ("ann", 30, "DeleteTrail"))
    [malicious] = proposals.dangerous
    ids = pl.Series(INCIDENT_ID, ["a", malicious.incident])
    events = events.with_columns(ids)
    hidden = list_hidden([proposal.rule], PastAlerts(events, CLOUDTRAIL))
    found = preview_rule(proposal.rule, events, proposal.verdicts, proposals.dangerous, hidden)
    assert malicious.incident in found.hidden
    assert malicious.incident not in found.unjudged


def test_what_a_suppression_would_hide_is_not_listed_as_what_it_may_hide(propose):
    proposals = propose(verdict(), verdict("malicious", number=2, other="x"))
    may = ("it may hide incident b, judged malicious",)
    objections = [(("it would hide incident b, judged malicious",), ("check",))]
    [proposal] = proposals.proposals
    both = replace(proposals, proposals=(replace(proposal, warnings=may),))
    [proposal] = both.with_objections(objections).proposals
    assert (proposal.conflicts, proposal.warnings) == (objections[0][0], ("check",))


def test_a_preview_finds_events_of_dangerous_incidents(propose):
    proposals = propose(verdict(), verdict("malicious", number=2, other="x"))
    [proposal] = proposals.proposals
    assert proposal.conflicts == ()
    found = preview_rule(
        proposal.rule,
        past_alerts(("ann", 3, "DeleteTrail")),
        proposal.verdicts,
        proposals.dangerous,
    )
    assert [dangerous.incident for dangerous in found.dangerous] == ["0000000000000002"]


def test_a_preview_finds_id_columns_by_their_distinct_values(propose):
    [proposal] = propose(verdict(eventName="e1")).proposals
    names = [f"e{n}" for n in range(5)]
    events = past_alerts(*(("ann", n, name) for n, name in enumerate(names)))
    assert preview_rule(proposal.rule, events).id_columns == ("eventName",)
    assert (
        preview_rule(
            proposal.rule,
            past_alerts(*events.select(POPULATION_USER, "minute", "eventName").rows() * 2),
        ).id_columns
        == ()
    )


# Proposals from the events of incidents.

DAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
EC2 = {
    "eventSource": "ec2.amazonaws.com",
    "eventName": "RunInstances",
    "errorCode": None,
    "sourceIPAddress": "203.0.113.7",
    "userAgent": "aws-cli/2.15.30 Python/3.11.8",
    "userIdentityaccessKeyId": "ASIA0000000000000001",
}


def event(number, user="ann", explained="eventName", risk=100.0, own=None, **changes):
    """An event of the incident of one day, with values that differ from day to day."""
    values = EC2 | {"userIdentityaccessKeyId": f"ASIA{number:016}"} | changes
    return {
        INCIDENT_ID: f"{number:016x}",
        POPULATION_USER: user,
        TIME: DAY + timedelta(days=number),
        RISK: risk,
        "top_columns": explained,
        "explanation": json.dumps({"preceding": {"own": risk if own is None else own}}),
        **values,
    }


def make_past(*events):
    frame = pl.DataFrame(
        list(events), infer_schema_length=None, schema_overrides={"errorCode": pl.String}
    )
    return PastAlerts.from_rows(frame, CLOUDTRAIL)


def judge(*numbers, judged="expected", user="ann", **more):
    return [verdict(judged, user, number, eventName="RunInstances") | more for number in numbers]


def test_an_address_becomes_its_network_and_an_agent_its_product(propose):
    [proposal] = propose(*judge(1), past=make_past(event(1))).proposals
    assert proposal.rule.networks == {"sourceIPAddress": ("203.0.113.0/24",)}
    assert proposal.rule.families == {"userAgent": ("aws-cli",)}
    assert dict(proposal.rule.where) == {
        "eventSource": ("ec2.amazonaws.com",),
        "eventName": ("RunInstances",),
    }


@pytest.mark.parametrize("days", [1, 2, 6])
def test_a_temporary_key_is_never_in_a_proposal(propose, days):
    key = "userIdentityaccessKeyId, eventName"
    past = make_past(*(event(n, explained=key) for n in range(1, days + 1)))
    found = propose(*judge(*range(1, days + 1)), past=past)
    assert found.proposals
    assert "ASIA" not in render_suppressions(found, ["v"])
    # Neither if nothing is known but the verdicts.
    bare = propose(verdict(userIdentityaccessKeyId="ASIA1", eventName="RunInstances"))
    assert [dict(each.rule.where) for each in bare.proposals] == [{"eventName": ("RunInstances",)}]


def test_a_column_with_another_value_in_each_incident_is_left_out(propose):
    explained = "requestParametersbucketName, eventName"
    names = {n: f"bucket-{n}" for n in range(1, 5)}
    past = make_past(
        *(event(n, explained=explained, requestParametersbucketName=names[n]) for n in names)
    )
    [proposal] = propose(*judge(1), past=past).proposals
    assert "requestParametersbucketName" not in proposal.rule.where
    recurring = make_past(
        *(event(n, explained=explained, requestParametersbucketName="logs") for n in names)
    )
    [proposal] = propose(*judge(1), past=recurring).proposals
    assert proposal.rule.where["requestParametersbucketName"] == ("logs",)


def test_the_narrowest_rule_that_hides_the_other_incidents_is_proposed(propose):
    # Networks differ from day to day, actions and programs do not.
    past = make_past(*(event(n, sourceIPAddress=f"198.51.{n % 2}.7") for n in range(1, 7)))
    judged = judge(*range(1, 7))
    [proposal] = propose(*judged, past=past).proposals
    assert proposal.rule.networks != {}
    past = make_past(*(event(n, sourceIPAddress=f"198.51.{n}.7") for n in range(1, 7)))
    [proposal] = propose(*judged, past=past).proposals
    assert proposal.rule.networks == {}
    assert proposal.rule.families == {"userAgent": ("aws-cli",)}
    assert {each.incident for each in proposal.verdicts} == {each["incident"] for each in judged}


def test_one_incident_in_five_does_not_make_a_rule_hide_every_action(propose):
    names = ["RunInstances"] * 4 + ["StopInstances"]
    past = make_past(*(event(n, eventName=name) for n, name in enumerate(names, start=1)))
    [proposal] = propose(*judge(*range(1, 6)), past=past).proposals
    assert proposal.rule.where["eventName"] == ("RunInstances", "StopInstances")


def test_new_actions_of_a_service_each_day_are_hidden_by_service(propose):
    past = make_past(*(event(n, eventName=f"Describe{n}") for n in range(1, 5)))
    [proposal] = propose(*judge(*range(1, 5)), past=past).proposals
    assert dict(proposal.rule.where) == {"eventSource": ("ec2.amazonaws.com",)}
    assert proposal.rule.families
    assert proposal.rule.networks


def test_events_that_follow_others_do_not_widen_a_rule(propose):
    cause, follower = event(1), event(1, eventName="GetObject", own=3.0)
    [proposal] = propose(*judge(1), past=make_past(cause, follower)).proposals
    assert proposal.rule.where["eventName"] == ("RunInstances",)
    assert list_hidden([proposal.rule], make_past(cause, follower)) == {cause[INCIDENT_ID]}


def test_each_service_has_its_own_conditions(propose):
    other = {"eventSource": "sts.amazonaws.com", "eventName": "AssumeRole"}
    past = make_past(
        *(event(n) for n in (1, 2)), *(event(n, userAgent="Boto3/1.3", **other) for n in (1, 2))
    )
    found = propose(*judge(1, 2), past=past).proposals
    families = {each.rule.where["eventSource"]: each.rule.families["userAgent"] for each in found}
    assert families == {("ec2.amazonaws.com", "sts.amazonaws.com"): ("Boto3", "aws-cli")}
    assert list_hidden([each.rule for each in found], past) == {f"{n:016x}" for n in (1, 2)}


def test_a_rule_that_would_hide_a_dangerous_event_gets_more_conditions(propose):
    past = make_past(
        *(event(n, sourceIPAddress=f"198.51.{n}.7") for n in range(1, 5)),
        event(5, sourceIPAddress="192.0.2.1"),
    )
    judged = [*judge(*range(1, 5)), *judge(5, judged="malicious")]
    [proposal] = propose(*judged, past=past).proposals
    assert proposal.conflicts == ()
    assert len(proposal.rule.networks["sourceIPAddress"]) == 4


def test_a_rule_that_cannot_tell_a_dangerous_event_is_rejected(propose):
    judged = [*judge(1), *judge(2, judged="suspicious")]
    [proposal] = propose(*judged, past=make_past(event(1), event(2))).proposals
    assert proposal.conflicts == ("it would hide incident 0000000000000002, judged suspicious",)


def replayed(*events):
    """Events of replayed attacks that are found."""
    frame = pl.DataFrame(list(events), schema_overrides={"errorCode": pl.String})
    return frame.select(POPULATION_USER, INCIDENT_ID, *EC2).with_columns(
        pl.concat_str(pl.lit("mine-coins "), INCIDENT_ID).alias(INCIDENT_ID)
    )


def test_a_rule_hides_no_replayed_attack(propose):
    past = make_past(*(event(n, sourceIPAddress=f"198.51.{n}.7") for n in range(1, 5)))
    attack = replayed(event(9, sourceIPAddress="192.0.2.1"))
    [proposal] = propose(*judge(*range(1, 5)), past=past, attacks=attack).proposals
    assert (proposal.conflicts, len(proposal.rule.networks["sourceIPAddress"])) == ((), 4)
    same = replayed(event(9, sourceIPAddress="198.51.1.200"))
    [proposal] = propose(*judge(*range(1, 5)), past=past, attacks=same).proposals
    assert proposal.conflicts == ("it would hide replayed attacks: mine-coins 0000000000000009",)
    # An attack is found as long as one of its events is.
    two = replayed(event(9, sourceIPAddress="198.51.1.200"), event(9, eventName="CreateKeyPair"))
    [proposal] = propose(*judge(*range(1, 5)), past=past, attacks=two).proposals
    assert proposal.conflicts == ()
    assert proposal.rule.networks == {}


def test_attacks_as_another_user_do_not_matter(propose):
    attack = replayed(event(9, user="bob"))
    [proposal] = propose(*judge(1), past=make_past(event(1)), attacks=attack).proposals
    assert proposal.conflicts == ()


def test_verdicts_with_their_events_need_no_past_alerts(propose):
    def with_rows(number):
        known = event(number)
        row = {
            "at": known[TIME].timestamp(),
            "values": {name: known[name] for name in EC2},
            "explained": ["eventName"],
            "risk": 100.0,
            "own": 100.0,
        }
        return verdict(number=number, eventName="RunInstances") | {"rows": [row]}

    numbers = (1, 2, 3)
    bare = propose(*map(with_rows, numbers)).proposals
    known = propose(*judge(*numbers), past=make_past(*map(event, numbers))).proposals
    assert [each.rule for each in bare] == [each.rule for each in known]


# What people ask for.


def test_a_muted_user_is_hidden_until_the_given_day(propose):
    wish = {"tuning": {"action": "mute", "until": "2026-04-01"}}
    [proposal] = propose(verdict() | wish).proposals
    assert proposal.rule.mutes
    assert proposal.rule.label == "everything, of ann, until 2026-04-01"


def test_expected_hours_are_hidden_and_no_other_time(propose):
    hours = {"action": "hours", "hours": ["Mon-Fri 08:00-10:00"], "timezone": "Europe/Berlin"}
    [proposal] = propose(verdict() | {"tuning": hours}, days=7).proposals
    rule = proposal.rule
    assert rule.label == "at Mon-Fri 08:00-10:00 Europe/Berlin, of ann, until 2026-03-10"
    assert rule.matches(make_past(event(0)).events).tolist() == [False]
    assert rule.matches(make_past(event(0) | {TIME: DAY - timedelta(hours=1)}).events).all()


def test_accepted_incidents_are_for_training_and_are_not_hidden(propose):
    found = propose(verdict() | {"tuning": {"action": "accept"}})
    assert (found.proposals, [each.incident for each in found.accepted]) == (
        (),
        ["0000000000000001"],
    )
    assert "3 events of ann" in render_suppressions(found, ["v"])
    assert "its events are for training" in render_suppressions(found, ["v"])


def test_a_mute_that_would_hide_a_dangerous_incident_is_rejected(propose):
    wish = {"tuning": {"action": "mute", "until": "2026-04-01"}}
    [proposal] = propose(verdict() | wish, verdict("malicious", number=2)).proposals
    assert proposal.conflicts == ("it would hide incident 0000000000000002, judged malicious",)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"action": "hours"}, "no span of hours"),
        ({"action": "hours", "hours": ["never"]}, "not days and hours"),
        ({"action": "hours", "hours": ["daily 01:00-02:00"], "timezone": "x"}, "no time zone `x`"),
        ({"action": "silence"}, "Invalid enum value 'silence'"),
        ({"action": "mute", "until": "soon"}, "Invalid RFC3339"),
        ({"action": "mute", "until": None, "rule": "x"}, "unknown field"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_rejected(propose, tuning, message):
    with pytest.raises(UsageError, match=f"verdicts.json` cannot be read: .*{message}"):
        propose(verdict() | {"tuning": tuning})


def test_files_of_version_1_are_read(propose):
    assert len(propose(verdict(), version=1).proposals) == 1


def test_a_written_rule_of_any_kind_is_read_unchanged(propose, tmp_path):
    hours = {"action": "hours", "hours": ["daily 01:00-02:00"], "timezone": "Asia/Tokyo"}
    proposals = propose(
        *judge(1),
        verdict(number=2, user="bob") | {"tuning": hours},
        verdict(number=3, user="cy") | {"tuning": {"action": "mute"}},
        past=make_past(event(1, errorCode="Denied"), event(4)),
    )
    path = tmp_path / "suppressions.toml"
    path.write_text(render_suppressions(proposals, ["v.json"]))
    assert Suppressions.read(str(path)) == proposals.rules
    assert len(proposals.proposals) == 3


def test_the_last_verdict_on_an_incident_counts(propose):
    found = propose(verdict("malicious"), verdict("expected"))
    assert (len(found.proposals), found.dangerous) == (1, ())


def test_two_rules_hide_what_differs_in_one_column_and_not_what_differs_in_two(propose):
    explained = "requestParametersinstanceType, eventName"

    def start(number, network, kind):
        address = f"198.51.{network}.7"
        return event(
            number,
            explained=explained,
            sourceIPAddress=address,
            requestParametersinstanceType=kind,
        )

    pairs = [(1, "a"), (2, "a"), (1, "b"), (2, "b"), (3, "a"), (1, "c")]
    past = make_past(*(start(n, *pair) for n, pair in enumerate(pairs, start=1)))
    found = propose(*judge(*range(1, 7)), past=past).proposals
    assert len(found) == 2
    later = make_past(start(11, 3, "x"), start(12, 9, "c"), start(13, 9, "x"))
    hidden = list_hidden([each.rule for each in found], later)
    assert hidden == {f"{n:016x}" for n in (11, 12)}
