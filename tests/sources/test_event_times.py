"""Times of events: formats given by an option, implausible times, and local hours."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from morpheus.cli.output import format_metrics
from morpheus.columns import TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, UsageError
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.from_file import FromAzure, FromDuo, FromFile
from morpheus.sources.ingest import FileIngest
from morpheus.sources.ocsf import FromOcsf
from morpheus.sources.time_range import PlausibleTimes

SIGN_IN = {"id": "1", "userPrincipalName": "ann@x.org", "appDisplayName": "Mail"}
SOURCES: dict[type[FileSource], dict[str, Any]] = {
    FromCloudtrail: {"eventName": "ListUsers", "eventSource": "iam", "userIdentity": {"arn": "a"}},
    FromAzure: SIGN_IN,
    FromDuo: {"username": "ann", "txid": "1", "result": "success", "factor": "push"},
    FromOcsf: {"class_uid": 6003, "actor": {"user": {"uid": "a"}}, "api": {"operation": "x"}},
    FromFile: {"user": "ann", "what": "in", "where": "door"},
}
TIME_COLUMNS = {
    FromCloudtrail: "eventTime",
    FromAzure: "createdDateTime",
    FromDuo: "isotimestamp",
    FromOcsf: "time",
    FromFile: "at",
}
NOW = datetime.now(UTC)


def make(
    kind: type[FileSource], path: Path, options: dict[str, Any], **settings: Any
) -> FileSource:
    if kind is FromFile:
        options = {
            "columns": ("what",),
            "userid_column_name": "user",
            "timestamp_column_name": "at",
        } | options
    elif kind is FromCloudtrail:
        options = {"userid_column_name": "userIdentityarn"} | options
    source = kind(input_glob=str(path), **settings)
    filled = source.with_defaults(
        PipelineOptions(columns_file=options.pop("columns_file", None), **options)
    )
    source = kind(input_glob=str(path), options=filled, **settings)
    source.validate()
    return source


def read(
    kind: type[FileSource],
    folder: Path,
    times: list[Any],
    *,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[list[Events], RunMetrics]:
    records = [
        SOURCES[kind] | {TIME_COLUMNS[kind]: time, "number": n, "id": str(n), "txid": str(n)}
        for n, time in enumerate(times)
    ]
    (folder / "a.json").write_text("\n".join(map(json.dumps, records)))
    metrics = RunMetrics()
    source = make(kind, folder / "a.json", options or {}, **settings)
    return list(source.events(None, metrics)), metrics


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_takes_a_time_format(kind: type[FileSource], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"add `--time_format='%m/%d/%Y, %I:%M:%S %p'` or"):
        read(kind, tmp_path, ["10/1/2024, 8:00:00 PM"])
    [batch], _ = read(
        kind, tmp_path, ["10/1/2024, 8:00:00 PM"], time_format="%d/%m/%Y, %I:%M:%S %p"
    )
    assert batch.table[TIME].to_list() == [datetime(2024, 1, 10, 20, tzinfo=UTC)]


@pytest.mark.parametrize("kind", SOURCES)
def test_wrong_time_format_or_zone_fails_before_reading(
    kind: type[FileSource], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--time_format: `%H:%M` is not the format of a time"):
        make(kind, tmp_path / "none.json", {}, time_format="%H:%M")
    with pytest.raises(
        UsageError, match=r"no time zone `Europe/Berln`\. Did you mean `Europe/Berlin`"
    ):
        make(kind, tmp_path / "none.json", {"timezone": "Europe/Berln"})


PLAUSIBLE = [f"2024-05-31T09:{n:02}:00Z" for n in range(9)]
IMPLAUSIBLE = [
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z",
    "1970-01-01T00:00:00Z",
    (NOW + timedelta(days=2)).isoformat(),
]


@pytest.mark.parametrize("kind", SOURCES)
def test_implausible_times_are_left_out_and_counted(kind: type[FileSource], tmp_path: Path) -> None:
    [batch], metrics = read(kind, tmp_path, PLAUSIBLE + IMPLAUSIBLE)
    assert batch.table.height == metrics.input.accepted == len(PLAUSIBLE)
    assert (metrics.input.read, metrics.input.implausible, metrics.input.refused) == (13, 4, 0)
    summary = "\n".join(format_metrics(metrics))
    assert "4 with an implausible time" in summary
    time = f"`{TIME_COLUMNS[kind]}` is '9999-12-31T23:59:59Z'"
    assert f"a.json:10: {time}, which is more than a day after" in summary


def test_implausible_times_fail_or_are_kept_on_request(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"a\.json:10: .*; use `--implausible_time` to skip"):
        read(FromAzure, tmp_path, PLAUSIBLE + IMPLAUSIBLE, implausible_time="fail")
    [batch], metrics = read(FromAzure, tmp_path, PLAUSIBLE + IMPLAUSIBLE, implausible_time="keep")
    assert (batch.table.height, metrics.input.implausible) == (13, 0)


def test_run_with_implausible_times_alone_fails(tmp_path: Path) -> None:
    with pytest.raises(
        RecordError, match=r"all 4 records .*a\.json:1: .*`--implausible_time=keep`"
    ):
        read(FromAzure, tmp_path, IMPLAUSIBLE)


def test_year_zero_is_no_time(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="'0000-01-01T00:00:00Z', which is not a time"):
        read(FromAzure, tmp_path, ["0000-01-01T00:00:00Z"], implausible_time="keep")


def test_clock_that_is_behind_most_events_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    later = [(NOW + timedelta(days=300 + n)).isoformat() for n in range(9)]
    [batch], metrics = read(FromAzure, tmp_path, [*later, *PLAUSIBLE[:3], *IMPLAUSIBLE[1:3]])
    assert batch.table.height == 12
    assert (metrics.input.read, metrics.input.implausible) == (14, 2)
    assert f"{tmp_path / 'a.json'}: most events are after the clock of this machine" in caplog.text


def test_clock_is_read_again_for_each_set_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = FileIngest(
        FromAzure.log_format,
        FileDiscovery(str(tmp_path / "a.json")),
        PipelineOptions(),
        plausible_times=PlausibleTimes.from_option("skip"),
    )
    first = ingest.make_read_task(ingest.files, 1, require_user=False).plausible_times
    later = NOW + timedelta(days=30)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return later.astimezone(tz)

    monkeypatch.setattr("morpheus.sources.time_range.datetime", Clock)
    second = ingest.make_read_task(ingest.files, 1, require_user=False).plausible_times
    assert first.latest is not None
    assert second.latest == later + timedelta(days=1)


def test_implausible_training_events_do_not_move_the_history(tmp_path: Path) -> None:
    rows = [*PLAUSIBLE, "2199-01-01T00:00:00Z"]
    records = [SIGN_IN | {"createdDateTime": time, "id": str(n)} for n, time in enumerate(rows)]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "in.json").write_text(
        json.dumps(SIGN_IN | {"createdDateTime": "2024-06-01T00:00:00Z"})
    )
    metrics = RunMetrics()
    [batch] = make(FromAzure, tmp_path / "in.json", {}).events(
        str(tmp_path / "train.json"), metrics
    )
    assert batch.history is not None
    assert batch.history.height == len(PLAUSIBLE)
    assert metrics.training.implausible == 1


HOURS = {
    "columns": ("hourkind", "hourofweek", "logcount", "previous:id"),
    "timezone": "Europe/Berlin",
}


@pytest.mark.parametrize(
    ("moment", "hour", "day"),
    [
        ("2024-03-31T00:30:00Z", "weekend 01", "Sun 01"),
        ("2024-03-31T01:30:00Z", "weekend 03", "Sun 03"),
        ("2024-10-27T00:30:00Z", "weekend 02", "Sun 02"),
        ("2024-10-27T01:30:00Z", "weekend 02", "Sun 02"),
        ("2024-05-31T22:30:00Z", "weekend 00", "Sat 00"),
    ],
)
def test_derived_hours_are_local_and_follow_clock_changes(
    moment: str, hour: str, day: str, tmp_path: Path
) -> None:
    [batch], _ = read(FromAzure, tmp_path, [moment], options=HOURS)
    row = batch.table.to_frame().row(0, named=True)
    assert (row["hourkind"], row["hourofweek"]) == (hour, day)
    assert row[TIME] == datetime.fromisoformat(moment)
    assert str(row[TIME].tzinfo) == "UTC"


def test_days_of_counters_are_local(tmp_path: Path) -> None:
    times = ["2024-05-31T21:00:00Z", "2024-05-31T21:59:00Z", "2024-05-31T22:00:00Z"]
    [batch], _ = read(FromAzure, tmp_path, times, options=HOURS)
    assert batch.table["logcount"].to_list() == [0, 1, 0]
    ids = batch.table["id"].to_list()
    assert batch.table["previous:id"].to_list() == [None, ids[0], None]
    [batch], _ = read(FromAzure, tmp_path, times, options=HOURS | {"timezone": "UTC"})
    assert batch.table["logcount"].to_list() == [0, 1, 2]
    assert batch.table["previous:id"].to_list() == [None, *ids[:2]]


def test_times_of_tables_are_judged_as_in_json(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "createdDateTime", "userPrincipalName"])
        writer.writerows([n, time, "ann"] for n, time in enumerate(PLAUSIBLE + IMPLAUSIBLE))
    metrics = RunMetrics()
    [batch] = make(FromAzure, tmp_path / "a.csv", {}).events(None, metrics)
    assert (batch.table.height, metrics.input.implausible) == (9, 4)
