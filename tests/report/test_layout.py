"""The layout of the page, measured in a real browser: nothing overflows, is cut, or dims."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import polars as pl
import pytest

from morpheus.report.aggregate import ReportAggregator
from morpheus.report.view import AlertCounts, ReportData, RunCounts, build_report_data
from report_pages import HOUR, alerts, build_data, card, normal_events, origin

MEASURE = (Path(__file__).parent / "layout.js").read_text(encoding="utf-8")
WIDTHS = (1440, 1920, 390)
PAPER = {"width": 794, "height": 1123}
"""A4 in CSS pixels."""
DAY = 24 * HOUR

HOSTILE = {
    "agent": "Mozilla/5.0 (" + "X11; Linux x86_64; " * 210 + ")",
    "word": "x" * 200,
    "right to left": "مستخدم غير معروف " * 12,
    "emoji": "👩‍👩‍👧‍👦🔥" * 40,
    "markup": "<img src=x onerror=alert(1)><b>bold</b>" * 6,
    "no spaces": "\u3042" * 150,
}


def draw(view):
    """Wait until observers of sizes have run."""
    view.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")


def show_incident(view):
    view.evaluate("() => { if (state.userPage !== undefined) closeUserPage(); }")
    view.evaluate(
        "document.querySelectorAll('#detail details').forEach((one) => (one.open = true))"
    )


def show_user(view):
    view.evaluate("openUserPage(selectedIncident()?.user ?? data.people[0]?.name ?? null)")


def find_faults(view, widths=WIDTHS, schemes=("light", "dark"), states=(show_incident, show_user)):
    """Return the faults of the layout, by scheme, width and state."""
    found = {}
    for scheme, width, show in product(schemes, widths, states):
        view.emulate_media(color_scheme=scheme)
        view.set_viewport_size({"width": width, "height": 900})
        show(view)
        draw(view)
        if faults := view.evaluate(MEASURE):
            found[scheme, width, show.__name__] = faults[:5]
    return found


def print_page(view):
    view.set_viewport_size(PAPER)
    view.emulate_media(media="print")
    view.wait_for_selector("#print", state="attached", timeout=120_000)
    draw(view)


@pytest.fixture(scope="session")
def hostile() -> ReportData:
    """Users, actions, values and a column with long and strange text."""
    users = {}
    for n, text in enumerate(HOSTILE.values()):
        columns = {"userAgent": text, "c" * 200: text, "requestParametersroleSessionName": text}
        strange = alerts([HOUR * 20, HOUR * 20 + 5], 30 - n, text, **columns)
        reason = f"`{text[:120]}` from address `{text[:30]}`, new in 58 days"
        users[text[:300]] = [normal_events(seed=n), strange.with_columns(reason=pl.lit(reason))]
    return build_data(users)


def build_alerts(users: int, days: int) -> ReportData:
    """Report data with one incident for each user and day, and no other events."""
    aggregator = ReportAggregator(filtered=True)
    for n in range(users):
        name = f"user{n:04}"
        aggregator.register_user(name, card(name), None)
        times = [day * DAY + HOUR * (n % 20) for day in range(days)]
        aggregator.add(name, alerts(times, 10.0 + n % 40))
    counts = RunCounts(read=users * days, scored=users * days)
    return build_report_data(aggregator, counts, 5, models_hint="", origin=origin())


def test_nothing_overflows_is_cut_or_breaks_by_the_letter(opened, company):
    view = opened(company)
    view.keyboard.press("1")
    assert find_faults(view) == {}
    assert find_faults(view, widths=(320,), schemes=("light",)) == {}
    assert view.trouble == []


def test_hostile_text_stays_in_its_card(opened, hostile):
    view = opened(hostile)
    for number in range(len(HOSTILE)):
        incident = hostile.incidents[number].incident.id
        view.evaluate(f"openIncident({incident!r})")
        assert find_faults(view, schemes=("light",)) == {}
    assert view.trouble == []


def test_one_incident_fits(opened):
    view = opened(build_data({"ann": [normal_events(), alerts([HOUR])]}))
    assert find_faults(view, schemes=("light",)) == {}


@pytest.fixture(scope="session")
def many() -> ReportData:
    """As many incidents as a page holds."""
    return build_alerts(250, 10)


def test_2500_incidents_fit_and_are_all_printed(opened, many):
    view = opened(many)
    assert view.evaluate("data.incidents.length") == 2500
    assert find_faults(view, widths=(390, 1440), schemes=("light",)) == {}
    show_incident(view)
    print_page(view)
    assert view.locator(".print-card").count() == 2500
    assert view.trouble == []


@pytest.mark.parametrize("data", ["company", "hostile"])
def test_paper_has_the_details_of_every_incident_with_nothing_to_open(opened, request, data):
    contents = request.getfixturevalue(data)
    view = opened(contents, color_scheme="dark")
    print_page(view)
    assert view.evaluate(MEASURE) == []
    shown = view.locator(".print-card .sentence")
    assert shown.count() == len(contents.incidents)
    assert all(text.strip() for text in shown.all_inner_texts())
    assert view.locator("#print details:not([open])").count() == 0
    for text in (" characters", "more column"):
        assert text not in view.locator("#print button").all_inner_texts()
    assert view.locator("#print .raw").count() == len(contents.incidents)
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    view.emulate_media(media="screen")
    view.wait_for_selector("#print", state="detached")
    assert view.locator("#detail .sentence").is_visible()
    assert view.trouble == []


def test_the_browser_prepares_the_page_before_it_prints(opened, company):
    view = opened(company)
    view.evaluate("window.addEventListener('beforeprint', () => (window.printed = true))")
    few, _ = view.pdf(format="A4"), view.evaluate("window.printed")
    view.evaluate("refilter({ searchText: 'user03' })")
    assert len(few) > len(view.pdf(format="A4")) * 1.2
    assert view.evaluate("window.printed")
    assert view.locator("#print").count() == 0


def test_paper_has_the_incidents_that_the_filters_show(opened, company):
    view = opened(company)
    view.fill("#search", "stoplogging")
    print_page(view)
    heads = view.locator("#print h2").all_inner_texts()
    assert heads == ["Incidents: 2", "user11", "user11"]


EMPTY = {
    "nothing read": (
        RunCounts(),
        {},
        "Nothing was read: the run found no event. Check the path and the kind of the logs.",
    ),
    "all rejected": (
        RunCounts(read=3, refused=3, refusals=["a.json:3: no time"]),
        {},
        "Nothing was read: all 3 records were rejected. The first one: a.json:3: no time",
    ),
    "all training": (
        RunCounts(training=400),
        {},
        "Nothing in the period: all 400 events were used for training.",
    ),
    "nothing in the period": (
        RunCounts(read=400),
        {},
        "Nothing in the period: none of 400 events read is in the period to score.",
    ),
    "nothing scored": (
        RunCounts(read=192, unscored={"no model": 192}),
        {"ann": [normal_events()]},
        "Nothing was scored, so there are no incidents. no model: 192 events.",
    ),
    "nothing above the budget": (
        RunCounts(
            read=192, scored=192, alerts=AlertCounts(wanted=5, suppressed=2, next_pvalue=0.1)
        ),
        {"ann": [normal_events()]},
        (
            "Nothing above the budget of 5 alerts: 192 events scored, none is an alert. "
            "2 user-days suppressed. The most unusual user-day is like one in 10 days."
        ),
    ),
}


@pytest.mark.parametrize("state", EMPTY)
def test_an_empty_page_says_why(opened, state):
    counts, users, text = EMPTY[state]
    data = build_data(users)
    view = opened(msgspec.structs.replace(data, account=counts, incidents=[]))
    assert view.locator("#queue .empty").inner_text() == text
    assert view.locator("#lanes .empty").count() == (not users)
    assert find_faults(view, widths=(390, 1440), schemes=("light",)) == {}
    assert view.trouble == []


def test_a_queue_that_the_filters_empty_says_so(opened, company):
    view = opened(company)
    view.fill("#search", "nothing like it")
    text = view.locator("#queue .empty").inner_text()
    assert text == "No incident matches the filters, which hide 4 incidents."


def test_a_user_without_incidents_says_why(opened, company):
    view = opened(company)
    view.locator("button.lane-user", has_text="user05").click()
    assert "192 events of this user, none is an alert" in view.locator("#detail").inner_text()


def test_a_users_page_lists_all_incidents_of_the_user(opened):
    view = opened(build_alerts(1, 90))
    view.keyboard.press("u")
    assert view.locator(".user-incidents li").count() == 90
    view.locator(".user-incidents button").last.click()
    assert view.locator("#detail .sentence").is_visible()


def test_a_user_that_a_large_report_leaves_out_has_a_page_with_the_incidents(opened):
    data = build_alerts(1, 3)
    view = opened(msgspec.structs.replace(data, people=[], others=1))
    view.keyboard.press("u")
    assert view.locator(".user-incidents li").count() == 3
    assert "no other data on this user" in view.locator("#detail").inner_text()
    assert view.trouble == []


def test_the_header_says_what_a_user_is(opened):
    role = "userIdentitysessionContextsessionIssueruserName"
    strange = alerts([HOUR], **{role: "deploy"})
    view = opened(build_data({"deploy": [normal_events(), strange]}))
    assert "by user" in view.locator("#strip").inner_text()
    data = msgspec.structs.replace(build_data({"deploy": [strange]}), user_column=role)
    assert "by Role" in opened(data).locator("#strip").inner_text()


def test_reasons_are_shown_in_full(opened):
    reason = "`DeleteTrail` " + "with a long reason " * 24 + "that ends here."
    strange = alerts([HOUR]).with_columns(reason=pl.lit(reason))
    view = opened(build_data({"ann": [normal_events(), strange]}))
    expected = reason.replace("`", "")
    for place in ("#detail .sentence", "#queue .row-reason p"):
        assert view.locator(place).inner_text() == expected
    assert view.locator("#detail .sentence code").inner_text() == "DeleteTrail"
    assert find_faults(view, schemes=("light",)) == {}


def test_a_long_value_is_shown_whole_on_request(opened):
    agent = HOSTILE["agent"].strip()
    strange = alerts([HOUR], userAgent=agent).drop("explanation", "top_columns", "reason")
    view = opened(build_data({"ann": [normal_events(), strange]}))
    more = view.locator("#detail .more")
    assert more.inner_text() == f"all {len(agent):,} characters"
    assert agent not in view.locator("#detail").inner_text()
    more.click()
    assert agent in view.locator("#detail").inner_text()
    assert find_faults(view, (390,), ("light",), (show_incident,)) == {}


def test_a_verdict_does_not_dim_an_incident(opened, company):
    view = opened(company)
    for number, word in enumerate(["expected", "benign, new behaviour", "suspicious", "malicious"]):
        view.keyboard.press(str(number + 1))
        assert view.locator("tr.open .verdict-badge").inner_text() == f"✓ {word}"
        assert view.locator(".verdict[aria-pressed=true]").inner_text() == f"✓ {word}"
        opacities = view.locator("tr.open, tr.open *").evaluate_all(
            "(found) => found.map((node) => getComputedStyle(node).opacity)"
        )
        assert set(opacities) == {"1"}


CONTRAST = """([front, back]) => {
  const light = (text) => {
    const parts = text.match(/[0-9.]+/g).slice(0, 3).map((n) => n / 255);
    const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const [a, b] = [light(front), light(back)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.fixture(scope="session")
def severities() -> ReportData:
    """An incident of each severity."""
    data = build_alerts(1, 4)
    names = [(90, "critical"), (60, "high"), (30, "medium"), (10, "low")]
    views = [
        msgspec.structs.replace(
            view,
            incident=msgspec.structs.replace(view.incident, severity=number, severity_name=name),
        )
        for view, (number, name) in zip(data.incidents, names, strict=True)
    ]
    return msgspec.structs.replace(data, incidents=views)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_severity_has_a_word_a_number_a_height_and_a_colour_that_can_be_seen(
    opened, severities, scheme
):
    view = opened(severities, color_scheme=scheme)
    colour = "(e, [property, part]) => getComputedStyle(e, part)[property]"
    heights, colours = [], set()
    for name in ("critical", "high", "medium", "low"):
        chip = view.locator(f"#queue .severity.{name} b")
        assert chip.inner_text() == name
        text, back = (chip.evaluate(colour, [p, None]) for p in ("color", "backgroundColor"))
        assert view.evaluate(CONTRAST, [text, back]) >= 4.5
        mark = view.locator(f"#swimlane .mark.{name}")
        heights.append(float(mark.evaluate(colour, ["height", "::before"]).removesuffix("px")))
        bar = mark.evaluate(colour, ["backgroundColor", "::before"])
        lane = view.locator(".lane-plot").first.evaluate(colour, ["backgroundColor", None])
        assert view.evaluate(CONTRAST, [bar, lane]) >= 3
        colours.add(bar)
    assert len(colours) == 4
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 4
    numbers = view.locator("#queue .severity-number").all_inner_texts()
    assert numbers == ["90", "60", "30", "10"]


def test_times_are_in_the_chosen_zone_and_the_choice_is_not_stored(opened):
    data = build_data({"ann": [normal_events(), alerts([HOUR * 30])]}, timezone="Europe/Berlin")
    view = opened(data, timezone_id="Asia/Tokyo")
    zone, time = view.locator("#time-zone"), view.locator("#queue .row-time")
    assert zone.locator("option").all_inner_texts() == [
        "UTC",
        "Europe/Berlin (days of this run)",
        "Asia/Tokyo (this browser)",
    ]
    assert time.inner_text() == "Sun 2021-10-10 08:00"
    for name, text in {"UTC": "Sun 2021-10-10 06:00", "Asia/Tokyo": "Sun 2021-10-10 15:00"}.items():
        zone.select_option(name)
        assert time.inner_text() == text
        assert text in view.locator("#detail").inner_text()
    assert "from Sun 15:00" in view.locator("#detail").inner_text()
    assert view.evaluate("writeQuery(data.log.queries[0], selectedIncident())").count("05:59:00")
    assert view.evaluate("localStorage.length") == 0
    view.reload()
    view.wait_for_selector("body[data-ready]")
    assert time.inner_text() == "Sun 2021-10-10 08:00"
    assert view.trouble == []


def test_a_zone_with_summer_time_has_its_midnights(opened):
    view = opened(build_data({"ann": [normal_events(), alerts([HOUR])]}))
    ticks = """([zone, start, end]) => {
      state.timeZone = zone;
      return axisTicks(start, end, 5).ticks.map(formatMinute);
    }"""
    start = 1_635_500_000  # 29 October 2021; Berlin's clocks change on the 31st.
    found = view.evaluate(ticks, ["Europe/Berlin", start, start + 4 * DAY])
    assert found == [f"2021-{day} 00:00" for day in ("10-30", "10-31", "11-01", "11-02")]


@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_no_serious_fault_on_other_pages(opened, hostile, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    empty = msgspec.structs.replace(build_data({}), account=RunCounts())
    for data, keys in ((hostile, ("", "u")), (empty, ("",))):
        view = opened(data, bypass_csp=True, viewport={"width": width, "height": 900})
        for key in keys:
            if key:
                view.keyboard.press(key)
            found = axe.run(view).response["violations"]
            serious = [one["id"] for one in found if one["impact"] in {"serious", "critical"}]
            assert serious == []


def show_mute(view):
    view.evaluate("chooseWish(selectedIncident(), 'mute')")


def show_hours(view):
    view.evaluate("chooseWish(selectedIncident(), 'hours')")


def show_accepted(view):
    view.evaluate("setWish(selectedIncident(), { action: 'accept' })")


def show_groups(view):
    view.evaluate("groupQueue(true)")


def show_expanded(view):
    view.evaluate("groupQueue(true); expandGroup(selectedIncident().user, true)")


TUNING = (show_mute, show_hours, show_accepted, show_groups, show_expanded)


@pytest.mark.parametrize("data", ["company", "hostile"])
def test_tuning_and_the_grouped_queue_fit(opened, request, data):
    view = opened(request.getfixturevalue(data))
    assert find_faults(view, widths=(*WIDTHS, 320), states=TUNING) == {}
    assert view.trouble == []
