from datetime import UTC, datetime
from ipaddress import ip_network

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.errors import UsageError
from morpheus.suppressions.rules import (
    NetworkCondition,
    SuppressionCounts,
    Suppressions,
    find_agent_family,
    find_network,
)
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


def with_conditions(*lines):
    return with_entry(where="") + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("203.0.113.0/24", [True, True, False, False, False]),
        ("203.0.113.9", [True, False, False, False, False]),
        ("2001:db8:1::/48", [False, False, True, False, False]),
        ("athena.amazonaws.com", [False, False, False, True, False]),
    ],
)
def test_a_network_matches_the_addresses_in_it(tmp_path, network, found):
    rules = read_rules(tmp_path, with_conditions(f'network.source = "{network}"'))
    source = ["203.0.113.9", "::ffff:203.0.113.77", "2001:db8:1:2::9", "athena.amazonaws.com", None]
    assert find_suppressed(rules, "ann", ["A"] * 5, source=source) == found


@given(st.ip_addresses(), st.ip_addresses())
def test_an_address_is_in_its_own_network_and_others_only_with_the_same_start(one, other):
    condition = NetworkCondition("source", (find_network(str(one)),))
    assert condition.accepts(str(one))
    prefix = 24 if one.version == 4 else 48
    same = one.version == other.version and other in ip_network(f"{one}/{prefix}", strict=False)
    is_mapped = any(getattr(each, "ipv4_mapped", None) for each in (one, other))
    assert is_mapped or condition.accepts(str(other)) == same


def test_a_family_matches_every_version_of_a_product(tmp_path):
    rules = read_rules(tmp_path, with_conditions('family.agent = ["aws-cli", "Terraform"]'))
    agents = [
        "aws-cli/2.15.30 Python/3.11.8 Linux/6.8",
        "APN/1.0 HashiCorp/1.0 Terraform/1.9.2 aws-sdk-go-v2/1.30.3",
        "Boto3/1.34.69 md/Botocore#1.34.69",
        "aws-cli-of-someone/1.0",
        None,
    ]
    found = find_suppressed(rules, "ann", ["A"] * 5, agent=agents)
    assert found == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/1 Safari/5 Edg/2", "Edg"),
        ("Mozilla/5.0 (Macintosh) AppleWebKit/605.1 Version/17.4 Safari/605.1", "Safari"),
        ("Mozilla/5.0 (X11; rv:133.0) Gecko/20100101 Firefox/133.0", "Firefox"),
        ("[aws-sdk-go/1.55.5 (go1.22.5; linux; amd64)]", "aws-sdk-go"),
        ("S3Console/0.4, aws-internal/3", "S3Console"),
        ("AWS Internal", "AWS Internal"),
        ("md/awscrt#0.22.0", "md/awscrt#0.22.0"),
        ("APN/1.0", "APN"),
        ("", ""),
    ],
)
def test_the_family_of_an_agent_is_its_product(agent, family):
    assert find_agent_family(agent) == family


def test_a_family_takes_linear_time():
    for part in ("(", "a/1 ", "a", "a/", "((a)", "[]", " "):
        assert isinstance(find_agent_family(part * 500_000), str)


@pytest.mark.parametrize(
    ("hours", "found"),
    [
        # 2021-10-09 00:00 UTC is a Saturday, 02:00 in Berlin.
        ('"Sat 02:00-03:00"', [True, False, False]),
        ('"Fri 22:00-03:00"', [True, False, False]),
        ('"Mon-Fri 00:00-24:00"', [False, False, True]),
        ('["Sat,Sun 12:00-18:00", "daily 01:00-02:30"]', [True, True, False]),
    ],
)
def test_hours_are_of_the_week_in_their_time_zone(tmp_path, hours, found):
    rules = read_rules(tmp_path, with_conditions(f"hours = {hours}", 'timezone = "Europe/Berlin"'))
    [rule] = rules.rules
    times = [0, 12 * 3600, 50 * 3600]
    assert rule.matches(make_events(times, eventName=["A"] * 3)).tolist() == found


def test_hours_and_values_must_both_match(tmp_path):
    lines = ('where.eventName = "A"', 'hours = "Sat 00:00-01:00"')
    rules = read_rules(tmp_path, with_conditions(*lines))
    frame = make_events([0, 10, 7200], eventName=["A", "B", "A"])
    assert rules.match("ann", frame)[0].tolist() == [0, -1, -1]
    [rule] = rules.rules
    assert rule.label == "eventName = `A`, at Sat 00:00-01:00 UTC, of ann, until 2021-10-10"


def test_a_mute_suppresses_everything_of_its_users_until_its_end(tmp_path):
    rules = read_rules(tmp_path, with_conditions("mute = true"))
    frame = make_events([0, 86400], eventName=["A", None])
    assert [part.tolist() for part in rules.match("ann", frame)] == [[0, -1], [-1, 0]]
    assert find_suppressed(rules, "bob", ["A"]) == [False]


def test_a_role_stands_for_all_its_users(tmp_path):
    lines = ('where.eventName = "A"', 'role.issuer = ["deploy"]')
    rules = read_rules(tmp_path, with_entry(where="", users="") + "\n".join(lines))
    issuers = ["deploy", "admin", None]
    assert find_suppressed(rules, "ann", ["A"] * 3, issuer=issuers) == [True, False, False]
    assert find_suppressed(rules, "ann", ["B"], issuer=["deploy"]) == [False]
    assert rules.concern("ann")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['network.source = "203.0.113.0/33"'], r"`203.0.113.0/33` is not a network"),
        (['network.source = "203.0.113"'], r"`203.0.113` is not a network"),
        (['hours = "Mon 25:00-26:00"'], "no such time of day"),
        (['hours = "Mon 10:60-11:00"'], "no such time of day"),
        (['hours = "Mondays"'], "`hours` cannot be read: `Mondays` is not days and hours"),
        (['hours = "Fre 08:00-09:00"'], "`hours` cannot be read"),
        (['hours = "Mon 08:00-09:00"', 'timezone = "Nowhere"'], "`hours` cannot be read"),
        (["mute = true", 'where.a = "b"'], "`mute` and conditions"),
        (["mute = true", 'hours = "Mon 08:00-09:00"'], "`mute` and conditions"),
        (["mute = false"], "has no value.*`mute = true`"),
        (["family.agent = []"], "an empty list in `family`"),
    ],
)
def test_conditions_that_cannot_be_meant_are_rejected(tmp_path, lines, message):
    with pytest.raises(UsageError, match=f"suppression 1.*{message}"):
        read_rules(tmp_path, with_conditions(*lines))


def test_files_of_version_1_are_read(tmp_path):
    assert len(read_rules(tmp_path).rules) == 1
    with pytest.raises(UsageError, match="Invalid enum value 3"):
        read_rules(tmp_path, FILE.replace("version = 1", "version = 3"))


def test_rules_with_equal_labels_are_counted_apart(tmp_path):
    many = '["A", "B", "C", "D"]', '["A", "B", "C", "E"]'
    one, other = (with_entry(where=f"{{ eventName = {names} }}") for names in many)
    rules = read_rules(tmp_path, one + other.partition("version = 1")[2])
    assert [label.partition(" or 1 more")[2] for label in rules.labels] == [
        ", of ann, until 2021-10-10",
        ", of ann, until 2021-10-10 (number 2)",
    ]
