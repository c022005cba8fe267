"""Queries for other tools, with hostile logs: each language reads the value that was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from query_languages import Parser, check_kusto, is_visible, run, shape, tokenize
from raw_logs import Fields
from report_pages import HOUR, alerts, normal_events, open_report, origin

HOSTILE = [
    "o'brien",
    "'; DROP TABLE cloudtrail_logs; --",
    'x" | delete index=* | where "a"="a',
    '" or 1==1 //',
    "a\\",
    'a\\"',
    "a\\'",
    "line\nfeed\r\n\ttab",
    "${alert(1)} {identity} {event_ids} {from}",
    "`macro` [search index=*] $token$ *",
    "\x00\x1b[2J\u202etxt.exe\u2028",
    "\U0001f600 jürgen 名前",
    "```comment``` /* */ -- //",
    "%41%2A+",
    " ",
    "x" * 2000,
]
TEXTS = st.text(min_size=1, max_size=60) | st.text(
    alphabet=st.sampled_from("'\"\\`|;%*{}$()[]\n\r\x00\u202e U&a+"), min_size=1, max_size=30
)
SAFE_SPLUNK = re.compile(r'"[\w .,:;/@=+()#-]*"|urldecode\("[\w.%-]*"\)', re.ASCII)
"""Splunk reads asterisks, dollars, backticks and brackets in quotes in its own ways."""
LANGUAGES = ("splunk", "kusto", "esql", "logging")


def examples(test: Any) -> Any:
    """Try each hostile text, beside those that hypothesis finds."""
    for text in HOSTILE:
        test = example(text=text)(test)
    return settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        test
    )


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of one incident, whose user column is a field of the log."""
    users = {"ann": [alerts([HOUR], eventID="e-1")]}
    log = origin(user_column="userIdentityuserName")
    view = open_report(browser, tmp_path_factory.mktemp("page"), users, log)
    yield view
    view.close()


def write(page: Any, *identity: tuple[str, list[str], list[str]], ids: int = 0) -> dict[str, str]:
    """The queries of the page's incident with another identity, by tool."""
    changes = {"identity": [identity], "ids": [f"{n:036}" for n in range(ids)]}
    return dict(page.evaluate(WRITE, [changes, ids]))


WRITE = """([changes, numIds]) => {
  const incident = { ...data.incidents[0], evidence: changes };
  incident.count = Math.max(incident.count, numIds);
  return data.log.queries.map((query) => [query.name, writeQuery(query, incident)]);
}"""
QUOTE = """(text) => Object.fromEntries(
  Object.entries(LANGUAGES).map(([name, language]) => [name, language.value(text)]))"""


@examples
@given(text=TEXTS)
def test_a_literal_is_read_as_the_value_that_was_written(text: str, page: Any) -> None:
    literals = page.evaluate(QUOTE, text)
    for language in LANGUAGES:
        parser = Parser(language, tokenize(literals[language]))
        assert parser.parse_all(parser.parse_operand)({}) == text
        assert is_visible(literals[language])
    assert read_sql(literals["sql"]) == text
    assert SAFE_SPLUNK.fullmatch(literals["splunk"])


def read_sql(literal: str) -> object:
    """Return the value of an SQL expression, which must be one literal."""
    duckdb, sqlglot = pytest.importorskip("duckdb"), pytest.importorskip("sqlglot")
    parsed = sqlglot.parse_one(f"SELECT {literal}", read="athena")
    [expression] = parsed.expressions
    assert isinstance(expression, (sqlglot.exp.Literal, sqlglot.exp.UnicodeString))
    assert is_visible(literal)
    [row] = duckdb.sql(parsed.sql(dialect="duckdb")).fetchall()
    return row[0]


@examples
@given(text=TEXTS)
def test_a_hostile_value_changes_nothing_but_a_literal(text: str, page: Any) -> None:
    column, names = "userIdentityuserName", {"urldecode", "FROM_BASE64"}
    hostile = write(page, (column, [text], [text]), ids=2)
    plain = write(page, (column, ["a"], ["a"]), ids=2)
    for tool, language in (("Splunk", "splunk"), ("KQL", "kusto"), ("Elastic", "esql")):
        # A value that is encoded is an argument of a function.
        assert without_calls(shape(hostile[tool]), names) == shape(plain[tool])
        if language == "kusto":
            check_kusto(hostile[tool])
    for tool in ("Athena", "CloudTrail Lake"):
        assert sql_shape(hostile[tool]) == sql_shape(plain[tool])


def sql_shape(query: str) -> list[object]:
    """Return the kinds of the tokens of a query, and the texts of those that are no literals."""
    sqlglot = pytest.importorskip("sqlglot")
    literals = {sqlglot.TokenType.STRING, sqlglot.TokenType.UNICODE_STRING}
    tokens = sqlglot.tokenize(query, read="athena")
    return ["literal" if one.token_type in literals else one.text for one in tokens]


def without_calls(tokens: list[str], names: set[str]) -> list[str]:
    """Replace calls of some functions by their argument."""
    found: list[str] = []
    at = 0
    while at < len(tokens):
        is_call = tokens[at] in names
        found.append(tokens[at + 2 if is_call else at])
        at += 4 if is_call else 1
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_a_query_finds_a_hostile_user_and_no_other(text: str, page: Any) -> None:
    queries = write(page, ("userIdentityuserName", [text], []))
    records = [Fields({"userIdentity.userName": name, "_time": "1"}) for name in (text, "ann")]
    late = [record | {"_time": "1633759200.0"} for record in records]
    query = queries["Splunk"].partition("\n")[2]
    assert run("splunk", f"search index=*\n{query}", [Fields(one) for one in late]) == [late[0]]


@pytest.mark.parametrize("name", ['a" b', "a'b", "a`b", 'a\\"; DROP', "a\nb", "a.b-c d"])
def test_a_strange_column_is_quoted_or_left_out(
    name: str, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    users = {"ann": [normal_events(), alerts([HOUR], **{name: "x"})]}
    log = origin("from-file", user_column=name)
    view = open_report(browser, tmp_path_factory.mktemp("page"), users, log)
    field = "({language, name}) => LANGUAGES[language].field(name)"
    written = {one: view.evaluate(field, {"language": one, "name": name}) for one in LANGUAGES}
    view.close()
    for language, text in written.items():
        if text is None:
            assert language == "splunk" or not is_visible(name)
            continue
        parser = Parser(language, tokenize(text))
        # Cloud Logging quotes names like values.
        expected = name if language == "logging" and text.startswith('"') else "value"
        assert parser.parse_all(parser.parse_operand)({name: "value"}) == expected


def test_a_query_has_two_hundred_ids_at_most_and_says_so(page: Any) -> None:
    user = ("userIdentityuserName", ["ann"], [])
    note = "This query has 200 event ids of the incident's 201 events."
    for tool, query in write(page, user, ids=201).items():
        assert note in query.partition("\n")[0], tool
        assert query.count("0" * 30) == 200
    assert note not in "".join(write(page, user, ids=200).values())


def test_a_query_keeps_the_limit_of_its_tool(page: Any) -> None:
    long, longer = "x" * 2000, [letter * 2000 for letter in "abcdefgh"]
    few = write(page, ("userIdentityuserName", [long], []), ids=200)["CloudTrail Lake"]
    assert 9_000 < len(few) + 4_000 < 14_000
    assert "This query has 100 event ids of the incident's 200 events." in few
    assert long in few
    none = write(page, ("userIdentityuserName", longer, []), ids=200)["CloudTrail Lake"]
    assert len(none) < 10_000
    assert "No condition on the user" in none
    assert none.count("0" * 30) == 200


def test_what_a_query_does_not_select_by_is_said(page: Any) -> None:
    queries = write(page, ("userIdentityuserName", [], []), ids=1)
    for query in queries.values():
        assert "No condition on userIdentityuserName" in query.partition("\n")[0]
        assert "{" not in query
    for query in dict(page.evaluate(WRITE, [{"identity": [], "ids": []}, 0])).values():
        assert "No condition on the user" in query.partition("\n")[0]
