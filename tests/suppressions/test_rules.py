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


def read_rules(tmp_path, text=FILE):
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


def find_suppressed(rules, user, names, **columns):
    frame = make_events(range(len(names)), eventName=names, **columns)
    return (rules.match(user, frame)[0] >= 0).tolist()


def test_a_suppression_suppresses_events_of_its_users_with_its_value(tmp_path):
    rules = read_rules(tmp_path)
    assert find_suppressed(rules, "ann", ["DeleteTrail", "Get", None]) == [True, False, False]
    assert find_suppressed(rules, "bob", ["DeleteTrail"]) == [True]
    assert find_suppressed(rules, "eve", ["DeleteTrail"]) == [False]
    assert find_suppressed(rules, None, ["DeleteTrail"]) == [False]


def test_an_event_must_match_every_column(tmp_path):
    where = '{ eventName = ["A", "B"], agent = "cli" }'
    rules = read_rules(tmp_path, with_entry(where=where))
    agents = ["cli", "cli", "cli", "web", None]
    assert (
        find_suppressed(rules, "ann", ["A", "B", "C", "A", "B"], agent=agents)
        == [True, True] + [False] * 3
    )


def test_the_empty_string_matches_no_value_and_a_missing_column(tmp_path):
    rules = read_rules(tmp_path, with_entry(where='{ eventName = "A", errorCode = "" }'))
    assert find_suppressed(rules, "ann", ["A", "A"], errorCode=[None, "Denied"]) == [True, False]
    assert find_suppressed(rules, "ann", ["A", "B"]) == [True, False]


def test_events_after_the_end_are_not_suppressed_but_counted(tmp_path):
    rules = read_rules(tmp_path)
    frame = make_events([0, 86399, 86400], eventName=["DeleteTrail"] * 3)
    suppressed_by, expired_rule = rules.match("ann", frame)
    assert (suppressed_by.tolist(), expired_rule.tolist()) == ([0, 0, -1], [-1, -1, 0])
    label = "eventName = `DeleteTrail`, of ann and 1 more, until 2021-10-10"
    counts = rules.count(suppressed_by, expired_rule)
    assert counts == (SuppressionCounts({label: 2}, {label: 1}),)


def test_a_suppressed_event_does_not_count_for_an_expired_suppression(tmp_path):
    older = FILE.partition("version = 1")[2].replace("2021-10-10", "2020-01-01")
    rules = read_rules(tmp_path, FILE + older)
    frame = make_events([0], eventName=["DeleteTrail"])
    suppressed_by, expired_rule = rules.match("ann", frame)
    assert (suppressed_by.tolist(), expired_rule.tolist()) == ([0], [-1])


@pytest.mark.parametrize(
    ("until", "end"),
    [
        ("2021-10-10", datetime(2021, 10, 10, tzinfo=UTC)),
        ("2021-10-10T08:00:00+02:00", datetime(2021, 10, 10, 6, tzinfo=UTC)),
        ("2021-10-10T08:00:00", datetime(2021, 10, 10, 8, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_date_or_a_time(tmp_path, until, end):
    [rule] = read_rules(tmp_path, with_entry(until=until)).rules
    assert rule.until == end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": '{ errorCode = "" }'}, "suppression 1 has no value.*suppress almost all events"),
        ({"where": "{}"}, "suppression 1 has no value"),
        ({"where": '{ eventName = "A", agent = [] }'}, "an empty list in `where`"),
        ({"users": "[]"}, r'has no user.*`users = \["ann"\]`'),
        ({"users": '[""]'}, "has no user"),
        ({"until": '"soon"'}, "`until` is 'soon', which is not a date.*`until = 2026-03-01`"),
        ({"until": ""}, "missing required field `until`"),
        ({"reason": '" "'}, "has no reason"),
        ({"value": "3"}, "unknown field `value`"),
    ],
)
def test_a_suppression_that_is_too_broad_or_incomplete_is_rejected(tmp_path, changes, message):
    with pytest.raises(UsageError, match=f"^--suppressions: `.*suppressions.toml`.*{message}"):
        read_rules(tmp_path, with_entry(**changes))


@pytest.mark.parametrize("text", ["", "]", 'format = "other"\nversion = 1', "\udcff"])
def test_another_file_is_rejected(tmp_path, text):
    (tmp_path / "s.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"s.toml` cannot be read: .*morpheus tools suppress"):
        Suppressions.read(str(tmp_path / "s.toml"))
    with pytest.raises(UsageError, match=r"nowhere.toml` cannot be read: No such file"):
        Suppressions.read(str(tmp_path / "nowhere.toml"))


def test_a_label_has_no_control_characters(tmp_path):
    where = r'{ eventName = "\u001b[2J\u202e`x" }'
    [rule] = read_rules(tmp_path, with_entry(where=where, users=r'["a\nb"]')).rules
    assert rule.label == r"eventName = `\x1b[2J\u202e\x60x`, of a\nb, until 2021-10-10"


def test_numbers_match_as_text(tmp_path):
    rules = read_rules(tmp_path, with_entry(where='{ logcount = "3" }'))
    frame = make_events([0, 1]).with_columns(pl.Series("logcount", [3, 4]))
    assert rules.match("ann", frame)[0].tolist() == [0, -1]


def test_the_case_of_an_address_does_not_matter(tmp_path):
    rules = read_rules(tmp_path, with_entry(users='["Ann@Example.org", "Bob"]'))
    for user, suppressed in {
        "ann@example.org": True,
        "Ann@Example.org": True,
        "bob": False,
    }.items():
        assert find_suppressed(rules, user, ["DeleteTrail"]) == [suppressed]
