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
def proposed(tmp_path):
    """Make proposals of verdicts, as the report exports them."""

    def proposed(*verdicts, days=30, **about):
        path = tmp_path / "verdicts.json"
        file = {"format": "morpheus-verdicts", "version": 1, "made": "2026-03-03T10:00:00Z"}
        path.write_text(json.dumps({**file, "verdicts": verdicts, **about}))
        return Proposals.from_files([str(path)], days)

    return proposed


@pytest.mark.parametrize(
    ("judged", "proposals"),
    [("expected", 1), ("benign-new", 1), ("suspicious", 0), ("malicious", 0)],
)
def test_only_what_was_judged_harmless_is_proposed(proposed, judged, proposals):
    assert len(proposed(verdict(judged)).events_per_user) == proposals


def test_a_proposal_names_values_user_end_and_reason(proposed):
    [one] = proposed(verdict("benign-new") | {"note": "new tool"}, days=7).events_per_user
    assert dict(one.rule.where) == {"eventName": ("DeleteTrail",)}
    assert one.rule.users == ("ann",)
    assert one.rule.until == datetime(2026, 3, 10, tzinfo=UTC)
    assert one.rule.reason == "benign-new: new tool"


def test_several_values_of_a_column_are_alternatives_and_columns_are_not(proposed):
    one = verdict(agent="cli")
    one["columns"] += [{"column": "eventName", "value": name} for name in ("B", "A", "B", None)]
    [found] = proposed(one).events_per_user
    assert dict(found.rule.where) == {"agent": ("cli",), "eventName": ("", "A", "B")}


def test_the_same_judged_harmless_of_several_users_is_one_suppression_for_the_group(proposed):
    one, two = verdict(user="ann", a="1", b="2"), verdict(user="bob", number=2, b="2", a="1")
    [found] = proposed(one, two).events_per_user
    assert found.rule.users == ("ann", "bob")
    assert len(found.verdicts) == 2


def test_what_would_hide_something_judged_otherwise_is_refused(proposed):
    [one] = proposed(
        verdict(), verdict("malicious", number=2, eventName="DeleteTrail", a="1")
    ).events_per_user
    assert one.conflicts == ("it would hide incident 0000000000000002, judged malicious",)


def test_where_that_cannot_be_known_it_is_doubted(proposed):
    [one] = proposed(verdict(a="1", b="2"), verdict("suspicious", number=2, a="1")).events_per_user
    assert (one.conflicts, one.warnings) == (
        (),
        ("it may hide incident 0000000000000002, judged suspicious",),
    )


@pytest.mark.parametrize("other", [verdict("malicious", "bob"), verdict("malicious", a="1")])
def test_what_was_judged_of_others_or_of_other_values_is_no_objection(proposed, other):
    [one] = proposed(verdict(), other).events_per_user
    assert (one.conflicts, one.warnings) == ((), ())


def test_an_incident_without_any_value_or_user_is_told_and_not_proposed(proposed):
    nothing = verdict(errorCode=None)
    found = proposed(nothing, verdict() | {"columns": []}, verdict(user=None))
    assert (len(found.events_per_user), len(found.unactionable)) == (0, 3)
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
def test_a_file_of_something_else_is_refused(proposed, change, message):
    with pytest.raises(UsageError, match=rf"verdicts.json` cannot be read: .*{message}.*report ex"):
        proposed(**change)


def test_what_is_written_is_read_again_as_it_was(proposed, tmp_path):
    proposals = proposed(
        verdict() | {"note": 'say "no"\n[[suppression]]\u202e'},
        verdict(user="b\nob", number=2, **{"odd name.x": "\\ \x7f", "a": "é"}),
    )
    path = tmp_path / "suppressions.toml"
    path.write_text(render_suppressions(proposals, ["a\nb.json"]))
    assert Suppressions.read(str(path)).rules == tuple(
        one.rule for one in proposals.events_per_user
    )


def test_what_is_refused_is_written_as_a_comment(proposed):
    proposals = proposed(verdict(), verdict("malicious", number=2))
    written = render_suppressions(proposals, ["v.json"])
    assert "# Refused: it would hide incident 0000000000000002, judged malicious\n" in written
    assert '# where.eventName = "DeleteTrail"\n' in written
    assert "suppression" not in tomllib.loads(written)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_string_of_toml_on_one_line(value):
    assert toml_string(value).isprintable()
    assert tomllib.loads(f"x = {toml_string(value)}") == {"x": value}


def past(*rows):
    """Past alerts: user, minute of the morning, name of the event."""
    frame = pl.DataFrame(rows, schema=[POPULATION_USER, "minute", "eventName"], orient="row")
    times = [datetime(2026, 3, 2, 9, minute, tzinfo=UTC) for minute in frame["minute"]]
    return frame.with_columns(pl.Series(TIME, times, pl.Datetime("us", "UTC")))


def test_a_preview_tells_what_was_judged_from_what_was_not(proposed):
    [one] = proposed(verdict()).events_per_user
    events = past(
        ("ann", 5, "DeleteTrail"),
        ("ann", 30, "DeleteTrail"),
        ("ann", 31, "Get"),
        ("bob", 5, "DeleteTrail"),
    )
    found = preview_rule(one.rule, events, one.verdicts)
    assert (found.events.height, found.num_benign, found.num_unjudged) == (2, 1, 1)


def test_a_preview_finds_events_of_incidents_judged_otherwise(proposed):
    proposals = proposed(verdict(), verdict("malicious", number=2, other="x"))
    [one] = proposals.events_per_user
    assert one.conflicts == ()
    found = preview_rule(
        one.rule, past(("ann", 3, "DeleteTrail")), one.verdicts, proposals.dangerous
    )
    assert [each.incident for each in found.dangerous] == ["0000000000000002"]


def test_a_preview_knows_ids_by_no_two_being_the_same(proposed):
    [one] = proposed(verdict(eventName="e1")).events_per_user
    names = [f"e{n}" for n in range(5)]
    events = past(*(("ann", n, name) for n, name in enumerate(names)))
    assert preview_rule(one.rule, events).id_columns == ("eventName",)
    assert (
        preview_rule(
            one.rule, past(*events.select(POPULATION_USER, "minute", "eventName").rows() * 2)
        ).id_columns
        == ()
    )
