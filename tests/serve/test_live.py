import json

import msgspec

from live_rows import DAY, append, row
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.view import RunCounts
from morpheus.serve.live import LiveReport
from morpheus.status import Status


def status(folder, **changes):
    about = {"source": "from-cloudtrail", "user_column": "who", "alerts_per_day": 2.0}
    usual = Status(
        "morpheus-status", 1, running=True, filtered=True, account=RunCounts(read=9), **about
    )
    told = msgspec.structs.replace(usual, **changes)
    (folder / "status.json").write_bytes(msgspec.json.encode(told))


def page_of(live):
    live.refresh()
    return json.loads(live.encode_data())


def users_of(page):
    return [one["incident"]["user"] for one in page["incidents"]]


def test_rows_that_come_are_on_the_page_and_in_the_numbers(tmp_path):
    live, path = LiveReport(tmp_path, clock=lambda: 1e9), tmp_path / "a.jsonl"
    append(path, row(), row(second=10))
    assert users_of(page_of(live)) == ["ann"]
    append(path, row("bob", 7200))
    assert sorted(users_of(page_of(live))) == ["ann", "bob"]
    health = live.get_health()
    assert (health.rows, health.latest, health.grown) == (3, DAY + 7200.0, 1e9)


def test_data_have_another_number_only_if_they_are_others(tmp_path):
    live, path = LiveReport(tmp_path), tmp_path / "a.jsonl"
    append(path, row())
    live.refresh()
    first, data = live.get_health().version, live.encode_data()
    live.refresh()
    assert (live.get_health().version, live.encode_data()) == (first, data)
    append(path, row(second=1))
    live.refresh()
    assert live.get_health().version > first
    assert live.encode_data() != data


def test_a_file_that_is_replaced_counts_once(tmp_path):
    live, path = LiveReport(tmp_path), tmp_path / "a.jsonl"
    append(path, row("ann"), row("ann", 9))
    live.refresh()
    append(tmp_path / "new", row("bob"))
    (tmp_path / "new").replace(path)
    assert users_of(page_of(live)) == ["bob"]
    assert live.get_health().rows == 1


def test_the_order_of_files_and_looks_changes_nothing(tmp_path):
    pages = []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / str(order[0])
        folder.mkdir()
        live, rows = LiveReport(folder), [row("ann"), row("bob", 60), row("ann", 120, risk=9.0)]
        for place in order:
            append(folder / "a.jsonl", rows[place])
            live.refresh()
        pages.append(live.encode_data())
    assert pages[0] == pages[1]


def test_the_run_s_status_says_whose_what_and_how_much(tmp_path):
    append(tmp_path / "a.jsonl", row("x", who="eve", userIdentityaccountId="1"))
    status(tmp_path, account=RunCounts(read=9, refused=2, refusals=["a:1: no"]), held={"rule": 3})
    live = LiveReport(tmp_path)
    page = page_of(live)
    assert users_of(page) == ["eve"]
    assert (page["source"], page["user_column"]) == ("from-cloudtrail", "who")
    assert page["rule"] == "Alerts are the events that filter kept."
    health = live.get_health()
    assert (health.read, health.refused, health.refusals) == (9, 2, ["a:1: no"])
    assert (health.held, health.allowed, health.running) == (3, 2.0, True)


def test_counts_alone_are_no_other_page(tmp_path):
    live = LiveReport(tmp_path)
    status(tmp_path)
    live.refresh()
    first = live.get_health().version
    status(tmp_path, account=RunCounts(read=10))
    (tmp_path / "status.json").touch()
    live.refresh()
    assert live.get_health().read == 10
    assert live.get_health().version == first
    status(tmp_path, running=False)
    live.refresh()
    assert live.get_health().version > first


def test_without_a_status_the_page_says_what_it_shows(tmp_path):
    append(tmp_path / "a.jsonl", row())
    (tmp_path / "status.json").write_text('{"format":')
    page = page_of(LiveReport(tmp_path, alerts_per_day=3))
    assert page["rule"].startswith("Shown are the 3 highest incidents per day. This run has no sta")


def test_rows_without_a_time_are_counted(tmp_path):
    append(tmp_path / "a.jsonl", row(event_dt=None), row(event_dt="soon"), row())
    live = LiveReport(tmp_path)
    live.refresh()
    assert (live.get_health().rows, live.get_health().timeless) == (1, 2)


def test_users_go_by_the_column_given_and_nobody_by_none(tmp_path):
    append(tmp_path / "a.jsonl", row("ann", who="eve"), row(None, 7200))
    assert users_of(page_of(LiveReport(tmp_path, "who"))) in (["eve", None], [None, "eve"])
    assert users_of(page_of(LiveReport(tmp_path))) in (["ann", None], [None, "ann"])


def test_an_empty_folder_is_a_page(tmp_path):
    assert page_of(LiveReport(tmp_path))["incidents"] == []


def test_fingerprints_measure_and_are_shown(tmp_path):
    card = ModelCard("ann", 400, 90, "", "", 3, 0)
    store = ModelStore(
        tmp_path, {"ann": card}, ModelCard("", 900, 90, "", "", 3, 0, rung="everyone")
    )
    append(tmp_path / "a.jsonl", row("ann"), row("bob"))
    found = page_of(LiveReport(tmp_path, store=store))
    events = {one["name"]: one["profile"]["events"] for one in found["people"]}
    assert events == {"ann": 400, "bob": 900}
