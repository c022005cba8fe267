from datetime import UTC, datetime

import polars as pl
import pytest

from morpheus.errors import UsageError
from morpheus.suppressions.rules import SuppressionCounts, Suppressions
from morpheus.testing import make_events

FILE = """
format = "morpheus-suppressions"
version = 1

[[suppression]]
where.eventName = "DeleteTrail"
users = ["ann", "bob"]
until = 2021-10-10
reason = "spring cleaning"
"""


def rules(tmp_path, text=FILE):
    path = tmp_path / "suppressions.toml"
    path.write_text(text)
    return Suppressions.read(str(path))


def with_entry(**changes):
    entry = {
        "where": '{ eventName = "DeleteTrail" }',
        "users": '["ann"]',
        "until": "2021-10-10",
        "reason": '"asked"',
        **changes,
    }
    lines = "\n".join(f"{name} = {value}" for name, value in entry.items() if value)
    return f'format = "morpheus-suppressions"\nversion = 1\n[[suppression]]\n{lines}\n'


def held(rules, user, names, **columns):
    frame = make_events(range(len(names)), eventName=names, **columns)
    return (rules.met(user, frame)[0] >= 0).tolist()


def test_a_suppression_holds_back_its_users_events_with_its_value_and_no_others(tmp_path):
    found = rules(tmp_path)
    assert held(found, "ann", ["DeleteTrail", "Get", None]) == [True, False, False]
    assert held(found, "bob", ["DeleteTrail"]) == [True]
    assert held(found, "eve", ["DeleteTrail"]) == [False]
    assert held(found, None, ["DeleteTrail"]) == [False]


def test_an_event_has_to_have_a_value_of_every_column_named(tmp_path):
    where = '{ eventName = ["A", "B"], agent = "cli" }'
    found = rules(tmp_path, with_entry(where=where))
    agents = ["cli", "cli", "cli", "web", None]
    assert held(found, "ann", ["A", "B", "C", "A", "B"], agent=agents) == [True, True] + [False] * 3


def test_no_text_stands_for_no_value_also_where_there_is_no_such_column(tmp_path):
    found = rules(tmp_path, with_entry(where='{ eventName = "A", errorCode = "" }'))
    assert held(found, "ann", ["A", "A"], errorCode=[None, "Denied"]) == [True, False]
    assert held(found, "ann", ["A", "B"]) == [True, False]


def test_events_from_the_end_on_stay_and_are_told(tmp_path):
    found = rules(tmp_path)
    frame = make_events([0, 86399, 86400], eventName=["DeleteTrail"] * 3)
    held, ended = found.met("ann", frame)
    assert (held.tolist(), ended.tolist()) == ([0, 0, -1], [-1, -1, 0])
    title = "eventName = `DeleteTrail`, of ann and 1 more, until 2021-10-10"
    assert found.account(held, ended) == (SuppressionCounts({title: 2}, {title: 1}),)


def test_an_event_that_one_suppression_holds_back_is_not_told_of_another_that_has_ended(tmp_path):
    older = FILE.partition("version = 1")[2].replace("2021-10-10", "2020-01-01")
    found = rules(tmp_path, FILE + older)
    held, ended = found.met("ann", make_events([0], eventName=["DeleteTrail"]))
    assert (held.tolist(), ended.tolist()) == ([0], [-1])


@pytest.mark.parametrize(
    ("until", "end"),
    [
        ("2021-10-10", datetime(2021, 10, 10, tzinfo=UTC)),
        ("2021-10-10T08:00:00+02:00", datetime(2021, 10, 10, 6, tzinfo=UTC)),
        ("2021-10-10T08:00:00", datetime(2021, 10, 10, 8, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_day_or_a_time(tmp_path, until, end):
    [rule] = rules(tmp_path, with_entry(until=until)).rules
    assert rule.until == end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": '{ errorCode = "" }'}, "suppression 1 names no value.*hold back nearly every"),
        ({"where": "{}"}, "suppression 1 names no value"),
        ({"where": '{ eventName = "A", agent = [] }'}, "an empty list in `where`"),
        ({"users": "[]"}, r'names no user.*`users = \["ann"\]`'),
        ({"users": '[""]'}, "names no user"),
        ({"until": '"soon"'}, "`until` is 'soon', which is no date.*`until = 2026-03-01`"),
        ({"until": ""}, "missing required field `until`"),
        ({"reason": '" "'}, "gives no reason"),
        ({"value": "3"}, "unknown field `value`"),
    ],
)
def test_a_suppression_that_is_too_broad_or_incomplete_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=f"^--suppressions: `.*suppressions.toml`.*{message}"):
        rules(tmp_path, with_entry(**changes))


@pytest.mark.parametrize("text", ["", "]", 'format = "other"\nversion = 1', "\udcff"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "s.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"s.toml` cannot be read: .*morpheus tools suppress"):
        Suppressions.read(str(tmp_path / "s.toml"))
    with pytest.raises(UsageError, match=r"nowhere.toml` cannot be read: No such file"):
        Suppressions.read(str(tmp_path / "nowhere.toml"))


def test_a_title_shows_nothing_that_could_command_a_terminal(tmp_path):
    where = r'{ eventName = "\u001b[2J\u202e`x" }'
    [rule] = rules(tmp_path, with_entry(where=where, users=r'["a\nb"]')).rules
    assert rule.title == r"eventName = `\x1b[2J\u202e\x60x`, of a\nb, until 2021-10-10"


def test_numbers_that_stages_have_added_can_be_values(tmp_path):
    found = rules(tmp_path, with_entry(where='{ logcount = "3" }'))
    frame = make_events([0, 1]).with_columns(pl.Series("logcount", [3, 4]))
    assert found.met("ann", frame)[0].tolist() == [0, -1]
