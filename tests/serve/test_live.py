import json

import msgspec
import pytest

from live_rows import DAY, append, row
from morpheus.errors import UsageError
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.view import RunCounts
from morpheus.serve.live import LiveReport
from morpheus.status import SinkStatus, Status, StreamStatus


def status(folder, **changes):
    fields = {"source": "from-cloudtrail", "user_column": "who", "alerts_per_day": 2.0}
    default = Status(
        "morpheus-status", 1, running=True, filtered=True, account=RunCounts(read=9), **fields
    )
    changed = msgspec.structs.replace(default, **changes)
    (folder / "status.json").write_bytes(msgspec.json.encode(changed))


def page_of(live):
    live.refresh()
    return json.loads(live.encode_data())


def users_of(page):
    return [view["incident"]["user"] for view in page["incidents"]]


def test_new_rows_are_on_the_page_and_counted(tmp_path):
    live, path = LiveReport(tmp_path, clock=lambda: 1e9), tmp_path / "a.jsonl"
    append(path, row(), row(second=10))
    assert users_of(page_of(live)) == ["ann"]
    append(path, row("bob", 7200))
    assert sorted(users_of(page_of(live))) == ["ann", "bob"]
    health = live.get_health()
    assert (health.rows, health.latest, health.last_growth) == (3, DAY + 7200.0, 1e9)


def test_the_version_changes_only_with_the_data(tmp_path):
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


def test_the_data_does_not_depend_on_the_order_of_refreshes(tmp_path):
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


def test_the_status_file_gives_user_column_source_and_budget(tmp_path):
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


def test_a_budget_of_zero_is_not_the_default(tmp_path):
    append(tmp_path / "a.jsonl", row("ann"), row("ann", 60, risk=90.0))
    page = page_of(LiveReport(tmp_path, alerts_per_day=0))
    assert not page["incidents"]
    status(tmp_path, alerts_per_day=0.0)
    live = LiveReport(tmp_path)
    live.refresh()
    assert live.get_health().allowed == 0


def test_the_health_has_what_waits_for_a_sink_that_is_down(tmp_path):
    live = LiveReport(tmp_path)
    sinks = {"to-http#1 https://siem": SinkStatus(90.0, 7, "transient"), "to-file#1": SinkStatus(0)}
    status(tmp_path, stream=StreamStatus(9, 8, 1.5, 2, 3_000_000, paused=True, sinks=sinks))
    live.refresh()
    expected = "to-http#1 takes no rows, 3 MB wait for sinks, reading pauses"
    assert live.get_health().waiting == expected


def test_counts_alone_do_not_change_the_version(tmp_path):
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


def test_without_a_status_file_the_page_says_how_alerts_were_chosen(tmp_path):
    append(tmp_path / "a.jsonl", row())
    (tmp_path / "status.json").write_text('{"format":')
    page = page_of(LiveReport(tmp_path, alerts_per_day=3))
    assert page["rule"].startswith("Shown are the 3 highest incidents per day. This run has no sta")


def test_rows_without_a_time_are_counted(tmp_path):
    append(tmp_path / "a.jsonl", row(event_dt=None), row(event_dt="soon"), row())
    live = LiveReport(tmp_path)
    live.refresh()
    assert (live.get_health().rows, live.get_health().rows_without_time) == (1, 2)


def test_the_user_column_can_be_chosen(tmp_path):
    append(tmp_path / "a.jsonl", row("ann", who="eve"), row(None, 7200))
    assert users_of(page_of(LiveReport(tmp_path, "who"))) in (["eve", None], [None, "eve"])
    assert users_of(page_of(LiveReport(tmp_path))) in (["ann", None], [None, "ann"])


def test_a_user_column_that_no_row_has_is_rejected_once_there_are_rows(tmp_path):
    LiveReport(tmp_path, "persn").check(None)
    append(tmp_path / "a.jsonl", row("ann", person="ann"))
    with pytest.raises(UsageError, match=r"have no column `persn`. Did you mean `person`\?"):
        LiveReport(tmp_path, "persn").check(None)
    for column in ("person", "", "@actor"):
        LiveReport(tmp_path, column).check(None)


def test_days_of_incidents_are_those_of_the_given_time_zone(tmp_path):
    append(tmp_path / "a.jsonl", row("ann", 21 * 3600), row("ann", 23 * 3600))
    assert users_of(page_of(LiveReport(tmp_path))) == ["ann"]
    assert users_of(page_of(LiveReport(tmp_path, timezone="Europe/Berlin"))) == ["ann", "ann"]


def test_an_empty_folder_gives_a_page_without_incidents(tmp_path):
    assert page_of(LiveReport(tmp_path))["incidents"] == []


def test_a_store_without_a_user_of_the_rows_is_warned_about(tmp_path, caplog):
    append(tmp_path / "a.jsonl", row("ann"), row("bob"))
    for users in (("ann", "bob"), ("ann",)):
        store = ModelStore(tmp_path, {u: ModelCard(u, 400, 90, "", "", 3, 0) for u in users})
        live = LiveReport(tmp_path, store=store)
        live.check("models")
        assert ("such as `bob`; it has `ann`" in caplog.text) == (len(users) == 1)


def test_model_cards_of_a_store_are_shown(tmp_path):
    card = ModelCard("ann", 400, 90, "", "", 3, 0)
    store = ModelStore(
        tmp_path,
        {"ann": card},
        ModelCard("", 900, 90, "", "", 3, 0, training_data_scope="everyone"),
    )
    append(tmp_path / "a.jsonl", row("ann"), row("bob"))
    page = page_of(LiveReport(tmp_path, store=store))
    events = {user["name"]: user["profile"]["events"] for user in page["people"]}
    assert events == {"ann": 400, "bob": 900}
