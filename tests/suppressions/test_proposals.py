import json
import tomllib
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.columns import POPULATION_USER, TIME
from morpheus.errors import UsageError
from morpheus.suppressions.proposals import (
    Proposals,
    preview_rule,
    render_suppressions,
    toml_string,
)
from morpheus.suppressions.rules import Suppressions


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

    def propose(*verdicts, days=30, **about):
        path = tmp_path / "verdicts.json"
        file = {"format": "morpheus-verdicts", "version": 1, "made": "2026-03-03T10:00:00Z"}
        path.write_text(json.dumps({**file, "verdicts": verdicts, **about}))
        return Proposals.from_files([str(path)], days)

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


@pytest.mark.parametrize("other", [verdict("malicious", "bob"), verdict("malicious", a="1")])
def test_dangerous_incidents_of_other_users_or_values_are_no_conflict(propose, other):
    [proposal] = propose(verdict(), other).proposals
    assert (proposal.conflicts, proposal.warnings) == ((), ())


def test_an_incident_without_value_or_user_is_unactionable(propose):
    nothing = verdict(errorCode=None)
    found = propose(nothing, verdict() | {"columns": []}, verdict(user=None))
    assert (len(found.proposals), len(found.unactionable)) == (0, 3)
    assert "# No suppression: Incident 0000000000000001, 3 events of ann" in render_suppressions(
        found, ["v"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "Invalid enum value 'other'"),
        ({"version": 2}, "Invalid enum value 2"),
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
    times = [datetime(2026, 3, 2, 9, minute, tzinfo=UTC) for minute in frame["minute"]]
    return frame.with_columns(pl.Series(TIME, times, pl.Datetime("us", "UTC")))


def test_a_preview_counts_judged_and_unjudged_events(propose):
    [proposal] = propose(verdict()).proposals
    events = past_alerts(
        ("ann", 5, "DeleteTrail"),
        ("ann", 30, "DeleteTrail"),
        ("ann", 31, "Get"),
        ("bob", 5, "DeleteTrail"),
    )
    found = preview_rule(proposal.rule, events, proposal.verdicts)
    assert (found.events.height, found.num_benign, found.num_unjudged) == (2, 1, 1)


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
