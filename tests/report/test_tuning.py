"""Tuning on the report page: wishes, the preview of what they hide, and the grouped queue."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.cli.suppress import TuningSources
from morpheus.suppressions.proposals import PastAlerts, Verdicts, list_hidden
from morpheus.suppressions.rules import (
    Suppression,
    WeeklyHours,
    find_agent_family,
    find_network,
    parse_span,
)

DATA = Path(__file__).parents[2] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
FOREVER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The alerts of the lesson's data, and their report."""
    folder = tmp_path_factory.mktemp("lesson")
    command = [
        *("run", "pipeline-ae", f"--userid_column_name={USER}"),
        *("from-cloudtrail", f"--input_glob={DATA}/input-data/*.csv"),
        *("train-ae", f"--train_data_glob={DATA}/training-data/*.csv", "--seed=42"),
        *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "explain"),
        *("filter", "--alerts_per_day=1", "serialize"),
        *("to-report", f"--filename={folder}/report.html"),
        *("to-file", f"--filename={folder}/alerts.csv"),
    ]
    done = CliRunner().invoke(morpheus, command, prog_name="morpheus")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def view(browser: Any, lesson: Path) -> Any:
    context = browser.new_context(accept_downloads=True, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.trouble = []
    page.on("console", lambda message: page.trouble.append(message.text))
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.goto((lesson / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert page.trouble == []
    context.close()


@pytest.fixture(scope="module")
def past(lesson: Path) -> PastAlerts:
    return TuningSources((lesson / "alerts.csv",), USER).read_past()


def to_suppression(rule: dict[str, Any]) -> Suppression:
    """A rule of the page, as `filter --suppressions` has it."""
    kinds: dict[str, dict[str, tuple[str, ...]]] = {"where": {}, "network": {}, "family": {}}
    for each in rule["conditions"]:
        kinds[each["kind"]][each["column"]] = tuple(each["values"])
    hours = WeeklyHours(tuple(rule["hours"]), rule["timezone"]) if "hours" in rule else None
    until = FOREVER if rule["until"] is None else datetime.fromtimestamp(rule["until"], UTC)
    return Suppression(
        kinds["where"],
        (rule["user"],),
        until,
        "test",
        networks=kinds["network"],
        families=kinds["family"],
        hours=hours,
        mutes=not rule["conditions"] and hours is None,
    )


TOKYO = ["Thu 00:00-24:00", "Sat,Sun 01:00-03:30"]
WISHES: list[dict[str, Any] | None] = [
    None,
    {"action": "mute", "until": "2024-05-23"},
    {"action": "mute", "until": "2030-01-01"},
    {"action": "hours", "hours": ["Mon-Fri 17:00-21:00"], "timezone": "UTC"},
    {"action": "hours", "hours": ["daily 18:00-02:00"], "timezone": "Europe/Berlin"},
    {
        "action": "hours",
        "hours": ["Thu 00:00-24:00", "Sat,Sun 01:00-03:30"],
        "timezone": "Asia/Tokyo",
    },
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_the_page_and_python_hide_the_same_incidents(view, past, wish):
    found = view.evaluate(
        """wish => data.incidents.map(incident => {
            const rules = rulesOf(incident, "expected", wish);
            return [incident.id, rules, hiddenIncidents(rules).map(({ id }) => id)];
        })""",
        wish,
    )
    shown = {incident for incident, _, _ in found}
    assert len(shown) == past.events["incident_id"].n_unique() > 15
    numbers = set()
    for _, rules, hidden in found:
        expected = list_hidden([to_suppression(rule) for rule in rules], past)
        assert set(hidden) == expected
        numbers.add(len(hidden))
    assert len(numbers) > 1


def test_a_rule_for_an_incident_hides_the_incident(view):
    assert view.evaluate(
        """data.incidents.every(incident =>
            hiddenIncidents(rulesOf(incident, "expected", null)).includes(incident))"""
    )


def test_products_networks_and_spans_mean_the_same_on_the_page(view):
    source = random.Random(5)  # noqa: S311 - texts to compare
    parts = [
        *("aws-cli/2.1", "Mozilla/5.0", "(X11; a)", "Safari/6", "APN/1.0", "v1/x", "[a]", "b c/3"),
        *("Version/1", "/4", "Edg/2", "md/x#1", ";", "é/1", "((", ")"),
    ]
    agents = [" ".join(source.choices(parts, k=source.randint(1, 6))) for _ in range(400)]
    groups = ["0", "1", "ffff", "2001", "db8", "", "g", "00ab"]
    addresses = [":".join(source.choices(groups, k=source.randint(2, 9))) for _ in range(400)]
    addresses += [
        *(
            "203.0.113.9",
            "203.0.113.9:443",
            "[2001:db8::1]:80",
            "fe80::1%eth0",
            "01.2.3.4",
            "1.2.3",
        ),
        *("::ffff:203.0.113.9", "256.1.1.1", "AWS Internal", " 10.1.2.3 ", "", "::", "::1.2.3.4"),
    ]
    assert view.evaluate("texts => texts.map(agentFamily)", agents) == [
        find_agent_family(agent) for agent in agents
    ]
    assert view.evaluate("texts => texts.map(networkOf)", addresses) == [
        find_network(address) for address in addresses
    ]
    spans = ["Mon-Fri 08:00-18:00", "Sat-Mon 22:00-06:00", "daily 00:00-24:00", "Sun,Wed 9:05-9:06"]
    read = view.evaluate("spans => spans.map(parseSpan)", spans)
    assert [(each["days"], each["start"], each["end"]) for each in read] == list(
        map(parse_span, spans)
    )


def export(view, folder: Path) -> Verdicts:
    with view.expect_download() as download:
        view.click("#export")
    download.value.save_as(folder / "verdicts.json")
    return Verdicts.read([str(folder / "verdicts.json")])


def test_a_mute_is_chosen_previewed_and_exported(view, tmp_path):
    view.click("[data-wish=mute]")
    view.fill(".wish-form input[type=date]", "2024-06-30")
    own = view.evaluate("incidentsOf(selectedIncident().user).length")
    text = f"This rule would hide {own} of the {own} incidents of this user on this page."
    assert view.locator(".wish-form output").inner_text() == text
    view.click(".wish-form button")
    assert "user muted until 2024-06-30" in view.locator("#rows tr.open").inner_text()
    [verdict] = export(view, tmp_path).verdicts
    assert (verdict.verdict, verdict.tuning.action) == ("expected", "mute")
    assert str(verdict.tuning.until) == "2024-06-30"
    view.click("[data-wish=mute]")
    [verdict] = export(view, tmp_path).verdicts
    assert verdict.tuning is None


def test_expected_hours_are_those_of_the_incident_and_can_be_changed(view, tmp_path):
    view.click("[data-wish=hours]")
    view.select_option("[aria-label=Days]", "Mon-Fri")
    view.fill("[aria-label=From]", "09:30")
    view.fill("[aria-label=To]", "00:00")
    view.click(".wish-form button")
    [verdict] = export(view, tmp_path).verdicts
    assert verdict.tuning.hours == ("Mon-Fri 09:30-24:00",)
    assert verdict.tuning.timezone == "UTC"


def test_an_accepted_incident_is_for_training_and_a_malicious_one_is_not(view, tmp_path):
    view.click("[data-wish=accept]")
    assert "for the next training" in view.locator(".preview").inner_text()
    [verdict] = export(view, tmp_path).accepted
    view.keyboard.press("4")
    assert view.locator("[data-wish=accept][aria-pressed=true]").count() == 0
    [judged] = export(view, tmp_path).dangerous
    assert (judged.incident, judged.tuning) == (verdict.incident, None)


def test_an_exported_verdict_has_the_events_that_proposals_need(view, past, tmp_path):
    view.keyboard.press("j")
    view.keyboard.press("1")
    [verdict] = export(view, tmp_path).verdicts
    known = past.events.filter(pl.col("incident_id") == verdict.incident)
    assert len(verdict.rows) == known.height
    added = PastAlerts.empty(past.log).add_verdicts([verdict]).events
    names = ["event_dt", "eventName", "userAgent", "risk", "_explained_", "_own_"]
    assert added.select(names).equals(known.select(names))


# The queue, grouped by user.


def test_a_grouped_queue_has_one_row_per_user(view):
    incidents = view.locator("#rows tbody tr").count()
    view.get_by_label("Group by user").check()
    assert view.locator("#rows tr.group").count() == 2 < incidents
    row = view.locator("#rows tr.group", has_text="user123").inner_text()
    number = view.evaluate("incidentsOf('user123').length")
    assert f"{number} incidents" in row
    assert "critical" in row
    view.locator("#rows .group-user", has_text="user123").click()
    assert view.locator("#rows tr.member").count() == number
    view.locator("#rows .group-user", has_text="user123").click()
    assert view.locator("#rows tr.member").count() == 0


def test_keys_group_expand_and_walk_the_queue(view):
    view.keyboard.press("g")
    assert view.get_by_label("Group by user").is_checked()
    view.focus("#rows .group-user >> nth=0")
    view.keyboard.press("Enter")
    focused = "document.activeElement.getAttribute('aria-expanded')"
    assert view.evaluate(focused) == "true"
    view.keyboard.press("Enter")
    assert view.evaluate(focused) == "false"
    seen = set()
    for _ in range(view.evaluate("data.incidents.length")):
        seen.add(view.evaluate("state.incident"))
        view.keyboard.press("j")
    assert seen == set(view.evaluate("data.incidents.map(({ id }) => id)"))
    assert view.locator("#rows tr.open").count() == 1
    view.keyboard.press("g")
    assert view.locator("#rows tr.group").count() == 0


def test_paper_has_every_incident_of_a_grouped_queue(view):
    view.keyboard.press("g")
    view.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    number = view.evaluate("data.incidents.length")
    assert view.locator("#rows tbody tr").count() == number
    view.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert view.locator("#rows tr.group").count() == 2


def test_wishes_stay_in_the_browser(view):
    view.click("[data-wish=accept]")
    stored = json.loads(view.evaluate("localStorage.getItem('morpheus-verdicts')"))
    assert stored[0][1]["tuning"] == {"action": "accept"}
    view.reload()
    view.wait_for_selector("body[data-ready]")
    assert view.locator("[data-wish=accept][aria-pressed=true]").count() == 1
