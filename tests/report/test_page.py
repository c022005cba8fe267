"""The page, in a real browser."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import polars as pl
import pytest

from morpheus.columns import RISK
from morpheus.models.explanation import ContextContribution
from morpheus.report.page import render_live_page, render_page
from report_pages import HOUR, alerts, build_data, explanation, normal_events

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "user\u202etxt.exe",
    "'; DROP TABLE logs; --",
    "${alert(3)} `x` <!-- ]]>",
    "\x00\x1b[2J",
]


def users_of(view):
    return view.locator("#queue tbody button.user").all_inner_texts()


def test_the_page_opens_from_a_disk_and_asks_the_network_for_nothing(opened, company):
    view = opened(company)
    assert users_of(view) == ["user03", "user07", "user11", "user11"]
    assert "user03" in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_the_pages_own_policy_forbids_the_network_and_any_other_program(opened, company):
    view = opened(company)
    view.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    view.evaluate("document.body.append(element('script', {}, 'window.ran = 1'))")
    assert view.evaluate("window.ran") is None
    assert any("connect-src 'none'" in shown_value for shown_value in view.trouble)
    assert any("script-src 'sha256-" in shown_value for shown_value in view.trouble)
    assert all("Content Security Policy" in shown_value for shown_value in view.trouble)


def test_a_head_sorts_the_inbox_and_sorts_it_the_other_way_when_pressed_again(opened, company):
    view = opened(company)
    head = view.locator("[data-sort=user]")
    head.click()
    assert users_of(view) == ["user03", "user07", "user11", "user11"]
    head.click()
    assert users_of(view) == ["user11", "user11", "user07", "user03"]
    assert view.locator("th[aria-sort=descending]").inner_text().startswith("User")


def test_the_inbox_is_filtered_by_text_and_by_severity(opened, company):
    view = opened(company)
    view.fill("#search", "stoplogging")
    assert users_of(view) == ["user11", "user11"]
    assert view.evaluate("document.activeElement.id") == "search"
    view.fill("#search", "")
    view.click("button.chip.critical")
    assert users_of(view) == ["user11", "user11"]
    view.click("#clear")
    assert len(users_of(view)) == 4
    assert view.trouble == []


def test_an_incident_in_the_lanes_opens_on_a_click(opened, company):
    view = opened(company)
    marks = view.locator("#swimlane .mark")
    assert marks.count() == len(company.incidents)
    view.locator("#swimlane .mark[aria-label*=user11]").last.click()
    assert "user11" in view.locator("#detail h2").inner_text()
    opened_mark = view.locator("#swimlane [aria-current]")
    assert opened_mark.count() == 1
    assert opened_mark.get_attribute("data-id") == view.evaluate("state.incident")
    assert view.trouble == []


def test_a_user_in_the_lanes_filters_the_queue_and_once_more_gives_it_back(opened, company):
    view = opened(company)
    name = view.locator("button.lane-user", has_text="user11")
    name.click()
    assert users_of(view) == ["user11", "user11"]
    assert "Only user11" in view.locator(".scope").inner_text()
    assert "Incidents: 2" in view.locator("#detail h3").first.inner_text().capitalize()
    name.click()
    assert len(users_of(view)) == 4


def test_lanes_are_searched_and_turned(opened, company):
    view = opened(company)
    assert view.evaluate("visibleUsers().length") == 15
    view.click("[aria-label='Next users']")
    assert view.evaluate("visibleUsers().length") == 5
    view.fill("#lanes-search", "user1")
    assert len(view.evaluate("visibleUsers()")) == 10
    assert view.evaluate("document.activeElement.id") == "lanes-search"


def test_keys_walk_the_inbox_mark_judge_and_search(opened, company):
    view = opened(company)
    opened_now = "data.byId.get(state.incident).user + state.incident"
    first = view.evaluate(opened_now)
    view.keyboard.press("j")
    second = view.evaluate(opened_now)
    assert second.startswith("user07")
    view.keyboard.press("x")
    view.keyboard.press("j")
    view.keyboard.press("x")
    view.keyboard.press("2")
    judged = view.locator("tr.reviewed button.user").all_inner_texts()
    assert judged == ["user07", "user11"]
    for _ in range(9):
        view.keyboard.press("k")
    assert view.evaluate(opened_now) == first
    view.keyboard.press("/")
    assert view.evaluate("document.activeElement.id") == "search"
    assert view.trouble == []


def test_incidents_in_the_lanes_are_reached_and_opened_with_keys(opened, company):
    view = opened(company)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert view.locator("#swimlane [tabindex='0']").count() == 1
    view.focus("#swimlane [tabindex='0']")
    assert "user03" in view.evaluate(focused)
    view.keyboard.press("ArrowDown")
    assert "user07" in view.evaluate(focused)
    view.keyboard.press("ArrowDown")
    view.keyboard.press("ArrowRight")
    assert "user11" in view.evaluate(focused)
    view.keyboard.press("Enter")
    assert "user11" in view.locator("#detail h2").inner_text()
    assert "2021-10-10 20:00" in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_verdicts_stay_in_the_browser_and_are_exported(opened, company, tmp_path):
    view = opened(company)
    view.keyboard.press("4")
    view.fill("[aria-label='Note on the verdict']", "asked: not her")
    view.keyboard.press("Tab")
    view.reload()
    view.wait_for_selector("body[data-ready]")
    with view.expect_download() as download:
        view.click("#export")
    download.value.save_as(tmp_path / "verdicts.json")
    exported = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    datetime.fromisoformat(exported.pop("made")).astimezone(UTC)
    worst = company.incidents[0].incident
    rows = exported["verdicts"][0].pop("rows")
    assert rows[0] == {
        "at": worst.events[0].at,
        "values": {"eventName": "DeleteTrail"},
        "explained": ["eventName"],
        "risk": worst.events[0].score,
        "own": 9.0,
    }
    assert len(rows) == worst.count
    assert exported == {
        "format": "morpheus-verdicts",
        "version": 2,
        "verdicts": [
            {
                "incident": worst.id,
                "user": "user03",
                "verdict": "malicious",
                "note": "asked: not her",
                "start": "2021-10-10T06:00:00Z",
                "end": "2021-10-10T06:01:30Z",
                "events": 3,
                "columns": [{"column": "eventName", "value": "DeleteTrail"}],
            }
        ],
    }


def test_a_verdict_given_twice_is_taken_back(opened, company):
    view = opened(company)
    view.keyboard.press("1")
    assert view.locator("tr.reviewed").count() == 1
    view.keyboard.press("1")
    assert view.locator("tr.reviewed").count() == 0


def test_the_card_says_what_was_seen_what_was_expected_and_what_would_have_been_ordinary(
    opened, company
):
    view = opened(company)
    card = view.locator("#detail").inner_text()
    for shown_value in (
        "critical\n10",
        "DeleteTrail",
        "p=.0004",
        "11.3",
        "GetObject",
        "p=.60",
        "Compared with 400 events of 58 days",
        "Action\nGetObject",
        "Excess surprisal falls from 9 to 2. Up to 5 is normal.",
        "25 of 26 columns match",
    ):
        assert shown_value in card, card


RISK_SENTENCES = {
    "Risk 9: this event 100 %. Compared": ContextContribution(9.0, 9.0, 0.0, 0, 0),
    "this event 25 %, earlier events (3 unusual events in the hour before) 75 %.": (
        ContextContribution(80.0, 20.0, 60.0, 3, 4)
    ),
    "Risk 80: earlier events (1 unusual event in the 24 hours before) 100 %.": (
        ContextContribution(80.0, 0.0, 80.0, 0, 1)
    ),
    "Risk 0. Compared": ContextContribution(0.0, 0.0, 0.0, 0, 2),
}


@pytest.mark.parametrize(("shown_value", "preceding"), RISK_SENTENCES.items())
def test_the_card_divides_the_risk_between_the_event_and_earlier_events(
    opened, shown_value, preceding
):
    text = explanation(preceding=preceding)
    strange = alerts([HOUR]).with_columns(pl.lit(text).alias("explanation"))
    view = opened(build_data({"ann": [normal_events(), strange]}))
    assert shown_value in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_a_query_is_copied(opened):
    view = opened(build_data({"ann": [normal_events(), alerts([HOUR])]}))
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.click("text=Copy Athena")
    view.wait_for_selector("text=Copied")
    query = "writeQuery(data.log.queries[0], selectedIncident())"
    assert view.evaluate("navigator.clipboard.readText()") == view.evaluate(query)
    assert view.trouble == []


def test_a_pseudonym_has_no_queries_and_the_page_says_which_key_resolves_it(opened):
    view = opened(build_data({"ps-1f0c-k3v7q2mzx4w5b6n7": [normal_events(), alerts([HOUR])]}))
    assert view.locator("text=Copy Athena").count() == 0
    shown_value = view.locator("p.queries").inner_text()
    assert "the user is a pseudonym" in shown_value
    assert 'use "morpheus tools pseudonym" with key 1f0c' in shown_value
    assert view.trouble == []


def test_a_column_shows_its_label_and_on_hover_its_name_in_the_log(opened):
    view = opened(build_data({"ann": [normal_events(), alerts([HOUR])]}))
    named = view.locator("#detail .facts th [title=eventName]")
    assert named.inner_text() == "Action"
    raw = view.locator("#detail .raw [title=Action]")
    assert raw.text_content() == "eventName"


def test_a_user_has_a_page_with_their_week_and_their_fingerprint(opened, company):
    view = opened(company)
    view.keyboard.press("u")
    shown_value = view.locator("#detail").inner_text()
    for part in ("1,600 events", "300 distinct rows", "3 used, 4 tried", "Event ID (90%)"):
        assert part in shown_value, shown_value
    assert view.locator("#detail .hour").count() == 168
    assert view.locator("#detail path.curve").count() == 1
    view.keyboard.press("u")
    assert "Observed and expected".upper() in view.locator("#detail").inner_text().upper()
    assert view.trouble == []


@pytest.mark.parametrize("value", HOSTILE)
def test_what_a_log_says_never_runs_and_is_shown_as_it_is(opened, value):
    strange = alerts([HOUR * 20, HOUR * 20 + 5], value=value, userAgent=value)
    view = opened(build_data({value: [normal_events(), strange], "ann": [normal_events(seed=1)]}))
    view.keyboard.press("u")
    view.keyboard.press("u")
    view.click("summary:has-text('Raw event')")
    assert view.locator("#detail img, #detail script, #queue img").count() == 0
    shown = view.locator("#detail").inner_text()
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert shown.count(value) >= 3 or not value.isprintable()
    assert view.trouble == []


def test_a_value_of_a_megabyte_is_cut_and_says_so(opened):
    strange = alerts([HOUR], value="x" * 10, requestParameters="y" * 1_000_000)
    contents = build_data({"ann": [normal_events(), strange]})
    assert len(msgspec.json.encode(contents)) < 100_000
    view = opened(contents)
    view.click("summary:has-text('Raw event')")
    assert "(cut, 1,000,000 characters in all)" in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_a_page_without_explanations_says_what_to_add(opened):
    bare = [
        frame.drop("reason", "top_columns", "explanation", "ts_anomaly").rename({RISK: "zscore"})
        for frame in (normal_events(), alerts([HOUR], 9.0))
    ]
    view = opened(build_data({"ann": bare}, cards=False))
    strip = view.locator("#strip")
    strip.locator("summary").click()
    for added in ("explain (after add-scores)", "--label risk", "timeseries", "--models=FOLDER"):
        assert added in strip.inner_text()
    assert "DeleteTrail" in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_a_page_of_no_events_opens(opened):
    view = opened(build_data({}))
    assert "No incidents." in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_a_page_can_be_drawn_again_with_newer_data(opened, company):
    view = opened(company)
    before = view.locator("body").inner_text()
    view.evaluate("load().then(render)")
    view.wait_for_timeout(50)
    assert view.locator("body").inner_text() == before
    assert view.trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened, company, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = opened(company, color_scheme=scheme, bypass_csp=True)
    for prepare in ("1", "g", "u", "?"):
        view.keyboard.press(prepare)
        found = axe.run(view).response["violations"]
        serious = [
            (one["id"], node["html"], node["failureSummary"])
            for one in found
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]
        assert serious == []


def test_on_paper_there_are_no_buttons_to_press(opened, company):
    view = opened(company)
    view.emulate_media(media="print")
    view.wait_for_selector("#print", state="attached")
    assert not view.locator("#export").is_visible()
    assert view.locator(".verdicts").count() == 0
    assert view.locator("#print .sentence").count() == len(company.incidents)


def test_the_same_data_make_the_same_page(company):
    data = msgspec.json.encode(company)
    assert render_page(data, b"{}") == render_page(data, b"{}")


def test_a_served_page_may_ask_its_server_and_brings_no_data(company):
    text = render_live_page("/report.json").decode()
    assert "connect-src &#39;self&#39;" in text or "connect-src 'self'" in text
    assert 'data-feed="/report.json"' in text
    assert len(text) < 200_000
    del company
