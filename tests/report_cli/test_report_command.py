"""`morpheus report`: a page from the output files of earlier runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from msgspec import structs

from morpheus import Fingerprints
from morpheus.cli.main import morpheus
from morpheus.columns import INCIDENT_SEVERITY, MODEL_VERSION, RISK, ROW, SCORE
from morpheus.errors import RecordError, UsageError
from morpheus.models.profile import InputSpec
from morpheus.models.versions import ModelFacts, VersionedStore
from morpheus.report_cli import ReportRequest, build_report, write_report
from morpheus.sinks.to_file import ToFile
from morpheus.testing import make_output_rows, run_stage
from people import COLUMNS, day, fingerprint, times
from report_pages import HOUR, alerts, normal_events

FORMATS = ["csv", "csv.gz", "csv.zst", "jsonl", "json.gz", "jsonl.zst", "parquet"]


def write_output(path: Path, *frames: pl.DataFrame) -> Path:
    """Write events of two users as `to-file` does."""
    users = [(user, frame) for user in ("ann", "bob") for frame in frames]
    row_counts = {user: 0 for user, _ in users}
    batches = []
    for user, frame in users:
        numbers = pl.int_range(row_counts[user], row_counts[user] + frame.height, eager=True)
        row_counts[user] += frame.height
        rows = frame.with_columns(numbers.alias(ROW), pl.lit(user).alias("username"))
        batches.append(make_output_rows(rows.drop("_index_"), user=user))
    list(run_stage(ToFile(str(path)), batches))
    return path


def list_incidents(data):
    incidents = [view.incident for view in data.incidents]
    return [(each.id, each.user, each.count, each.severity) for each in incidents]


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_output_format_gives_the_same_page(tmp_path, file_format):
    file = write_output(
        tmp_path / f"out.{file_format}", normal_events(), alerts([HOUR * 50, HOUR * 50 + 9])
    )
    found = build_report(ReportRequest(alerts_per_day=1), [file])
    first = write_output(
        tmp_path / "first.csv", normal_events(), alerts([HOUR * 50, HOUR * 50 + 9])
    )
    assert list_incidents(found) == list_incidents(
        build_report(ReportRequest(alerts_per_day=1), [first])
    )
    assert {user for _, user, *_ in list_incidents(found)} == {"ann", "bob"}
    event = found.incidents[0].incident.events[0]
    assert event.why.columns[0].value == "DeleteTrail"
    assert found.account.read == 2 * (normal_events().height + 2)


def test_a_page_never_replaces_a_file_that_it_is_made_of(tmp_path):
    rows = write_output(tmp_path / "rows.csv", normal_events()).read_text()
    (tmp_path / "page.html").write_text(rows)
    (tmp_path / "link.html").hardlink_to(tmp_path / "page.html")
    request = ReportRequest(filename=str(tmp_path / "link.html"), overwrite=True)
    with pytest.raises(UsageError, match="is one of the files to read, and would be replaced"):
        write_report(request, [tmp_path / "page.html"])
    assert (tmp_path / "page.html").read_text() == rows
    with pytest.raises(UsageError, match="There is no file"):
        write_report(request, [tmp_path / "no.csv"])


@pytest.mark.parametrize(("budget", "shown"), [(0, 0), (1e-9, 1), (1e308, 6)])
def test_the_number_of_incidents_is_at_most_the_budget(tmp_path, budget, shown):
    rows = [alerts([HOUR * 50], risk=risk) for risk in (20, 10)]
    file = write_output(tmp_path / "all.csv", normal_events(), *rows)
    data = build_report(ReportRequest(alerts_per_day=budget), [file])
    assert len(data.incidents) == shown


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "parquet"])
def test_rows_that_a_budget_has_passed_are_all_alerts(tmp_path, file_format):
    passed = alerts([HOUR * 50, HOUR * 50 + 9]).with_columns(pl.lit(60).alias(INCIDENT_SEVERITY))
    file = write_output(tmp_path / f"alerts.{file_format}", passed)
    found = build_report(ReportRequest(alerts_per_day=0), [file])
    assert [(each[1], each[2]) for each in list_incidents(found)] == [("ann", 2), ("bob", 2)]
    others = write_output(tmp_path / f"all.{file_format}", normal_events(), passed)
    assert not list_incidents(build_report(ReportRequest(alerts_per_day=0), [others]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    days = day(400).with_columns(times(400).alias("time"))
    history = pl.concat(days.with_columns(who=pl.lit(user)) for user in ("ann", "bob"))
    fingerprints = Fingerprints.train(history, user="who", time="time", columns=COLUMNS, epochs=1)
    folder = tmp_path_factory.mktemp("models") / "models"
    fingerprints.save(folder)
    return str(folder)


@pytest.mark.parametrize("file_format", ["csv", "json"])
def test_techniques_that_replay_did_not_catch_are_detection_gaps(tmp_path, models, file_format):
    file = write_output(tmp_path / "out.csv", normal_events(), alerts([HOUR * 50]))
    rows = [
        ("stop-trail", "ann", "recorded", True),
        ("stop-trail", "ann", "hours", False),
        ("role-chain", "ann", "agent", False),
        ("role-chain", "ann", "hours", False),
        ("get-secrets", "ann", "hours", True),
        ("too-long", "ann", "hours", None),
        ("stop-trail", "bob", "hours", True),
        ("stop-trail", "eve", "hours", False),
    ]
    trials = pl.DataFrame(rows, ["technique", "user", "grade", "caught"], orient="row")
    path = tmp_path / f"trials.{file_format}"
    path.write_text(trials.write_csv() if file_format == "csv" else trials.write_ndjson())
    found = build_report(ReportRequest(models=models, replay=str(path)), [file])
    weak = {person.name: person.profile.weak for person in found.people}
    assert weak["ann"][0] == (
        "Of 3 attack techniques replayed, 2 raised no alert at one or more evasion levels: "
        "role-chain (agent, hours), stop-trail (hours)."
    )
    assert not any("replayed" in spot for spot in weak["bob"])


def test_a_file_that_is_given_twice_is_read_once(tmp_path, monkeypatch):
    file = write_output(tmp_path / "out.csv", normal_events())
    more = write_output(tmp_path / "more.csv", normal_events())
    (tmp_path / "link.csv").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    twice = build_report(ReportRequest(), [file, Path("out.csv"), Path("link.csv"), more])
    assert twice.account.read == build_report(ReportRequest(), [file, more]).account.read


def published(folder, *users, column="username", everyone=False, times=1):
    """A model store whose fingerprints have been published some times."""
    facts = ModelFacts(InputSpec("", column, ()))
    own = [structs.replace(fingerprint().card, user=user) for user in users]
    shared = [structs.replace(fingerprint().card, user="")] if everyone else []
    for number in range(times):
        cards = [structs.replace(card, seed=number) for card in (*own, *shared)]
        VersionedStore.open(folder).publish(
            [replace(fingerprint(), card=card) for card in cards], alias="champion", facts=facts
        )
    return str(folder)


def versions(number):
    return normal_events().with_columns(pl.lit(number).alias(MODEL_VERSION))


def test_models_of_other_users_than_those_of_the_results_are_warned_about(tmp_path, caplog):
    file = write_output(tmp_path / "out.csv", normal_events())
    eve = published(tmp_path / "eve", "eve", column="who")
    for store, text in (
        (published(tmp_path / "both", "ann", "bob", "eve"), ""),
        (
            published(tmp_path / "ann", "ann"),
            "no model of 1 of 2 users with a score, such as `bob`",
        ),
        (eve, "such as `ann`; it has `eve`, which are values of `who`."),
        (published(tmp_path / "new", "ann", everyone=True), ""),
        (published(tmp_path / "everyone", everyone=True), ""),
        (published(tmp_path / "others", "eve", everyone=True), "no model of 2 of 2 users"),
    ):
        caplog.clear()
        build_report(ReportRequest(models=store), [file])
        assert bool(caplog.text) == bool(text)
        assert text in caplog.text
    caplog.clear()
    build_report(
        ReportRequest(models=published(tmp_path / "e", "eve", everyone=True), all_alerts=True),
        [file],
    )
    assert not caplog.text, "alerts can be those of new users alone"


@pytest.mark.parametrize(
    ("rows", "which", "warns"),
    [
        ((2,), "", False),
        ((1,), "", True),
        ((1,), "@1", False),
        ((2,), "@1", True),
        ((3,), "", True),
    ],
)
def test_models_of_another_version_than_that_of_the_results_are_warned_about(
    tmp_path, caplog, rows, which, warns
):
    file = write_output(tmp_path / "out.csv", *map(versions, rows))
    store = published(tmp_path / "models", "ann", "bob", times=2)
    build_report(ReportRequest(models=store + which), [file])
    assert (f"`{store}@{rows[0]}` names the other one" in caplog.text) == warns


def test_replay_needs_models_and_a_file_of_trials(tmp_path, models):
    file = write_output(tmp_path / "out.csv", normal_events())
    with pytest.raises(UsageError, match=r"--replay: detection gaps .* Give --models, too"):
        build_report(ReportRequest(replay="trials.csv"), [file])
    for wrong in ("nowhere.csv", file):
        with pytest.raises(UsageError, match=r"--replay: .* cannot be read: .* tools replay --fil"):
            build_report(ReportRequest(models=models, replay=str(wrong)), [file])


def test_days_of_incidents_are_those_of_the_given_time_zone(tmp_path):
    file = write_output(tmp_path / "out.csv", alerts([21 * HOUR, 23 * HOUR]))
    assert len(build_report(ReportRequest(), [file]).incidents) == 2
    found = build_report(ReportRequest(timezone="Europe/Berlin"), [file])
    assert [view.incident.count for view in found.incidents] == [1, 1, 1, 1]
    with pytest.raises(UsageError, match=r"--timezone: there is no time zone `Berlin`. Did you"):
        build_report(ReportRequest(timezone="Berlin"), [file])


def test_files_without_rows_do_not_hide_the_others(tmp_path):
    rows = write_output(tmp_path / "2.jsonl", alerts([HOUR]))
    (tmp_path / "1.jsonl").write_text("\n")  # what `to-file` writes if there is no event
    found = build_report(ReportRequest(), [tmp_path / "1.jsonl", rows])
    assert len(found.incidents) == 2
    with pytest.raises(UsageError, match=r"1\.jsonl` has no rows. Give the output of an earlier"):
        build_report(ReportRequest(), [tmp_path / "1.jsonl"])


def test_missing_row_numbers_show_that_filter_dropped_events(tmp_path):
    frame = alerts([24 * HOUR * n for n in range(10)])
    path = write_output(tmp_path / "all.csv", frame)
    assert "No filter" in build_report(ReportRequest(), [path]).rule
    rest = pl.read_csv(path, infer_schema=False).gather_every(2)
    rest.rename({rest.columns[0]: ""}, strict=False).write_csv(tmp_path / "few.csv")
    found = build_report(ReportRequest(), [tmp_path / "few.csv"])
    assert found.rule == "Alerts are the events that filter kept."
    assert len(found.incidents) == 10


def test_without_risk_a_users_scale_is_the_mean_of_their_scores(tmp_path):
    normal = normal_events().drop(RISK).with_columns(pl.lit(1.0).alias(SCORE))
    normal = normal.with_columns(
        pl.when(pl.int_range(pl.len()) % 2 == 0).then(0.9).otherwise(1.1).alias(SCORE)
    )
    unusual = alerts([HOUR * 60]).drop(RISK).with_columns(pl.lit(3.0).alias(SCORE))
    file = write_output(tmp_path / "out.csv", normal, unusual)
    found = build_report(ReportRequest(), [file])
    assert [(user, count) for _, user, count, _ in list_incidents(found)] == [
        ("ann", 1),
        ("bob", 1),
    ]
    assert [severity for *_, severity in list_incidents(found)] == [63, 63]


def test_the_command_writes_the_page_and_prints_its_name(tmp_path):
    file = write_output(tmp_path / "out.csv", normal_events(), alerts([HOUR * 50]))
    page = tmp_path / "pages" / "page.html"
    done = CliRunner().invoke(morpheus, ["report", str(file), "--filename", str(page)])
    assert done.exit_code == 0, done.output
    assert f"{page}: " in done.output
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_errors_say_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(UsageError, match="There is no file"):
        build_report(ReportRequest(), [tmp_path / "nothing.csv"])
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        build_report(ReportRequest(), [broken])
    odd = tmp_path / "odd.csv"
    odd.write_text("username,eventTime,risk\nann,yesterday,1\n")
    with pytest.raises(RecordError, match=r"odd.csv:2: `eventTime` is 'yesterday'"):
        build_report(ReportRequest(), [odd])
    odd.write_text("who,eventTime,risk\nann,2026-01-01T00:00:00Z,1\n")
    with pytest.raises(UsageError, match="Give one of its columns, such as `who`"):
        build_report(ReportRequest(), [odd])
    odd.write_text("username,risk\nann,1\n")
    with pytest.raises(UsageError, match="no time column"):
        build_report(ReportRequest(), [odd])


def test_a_column_whose_type_changes_is_text(tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text(
        '{"username": "ann", "eventTime": "2026-01-01T00:00:00Z", "risk": 4.5, "x": 1}\n'
        '{"username": "ann", "eventTime": "2026-01-01T00:00:01Z", "risk": 5.5, "x": {"y": 2}}\n'
    )
    found = build_report(ReportRequest(), [file])
    assert [event.raw["x"] for event in found.incidents[0].incident.events] == ["1", '{"y":2}']


def test_an_existing_page_stays_without_overwrite(tmp_path):
    file = write_output(tmp_path / "out.csv", normal_events())
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(UsageError, match="morpheus report --overwrite"):
        write_report(ReportRequest(str(page)), [file])
    assert page.read_text() == "old"
