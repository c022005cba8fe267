import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.from_file import FromDuo
from morpheus.sources.time_range import TimeRange, parse_interval


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        (("2024-05-31", None, "1d"), "2024-05-31T00:00:00+00:00", "2024-06-01T00:00:00+00:00"),
        ((None, "2024-06-01", "12h"), "2024-05-31T12:00:00+00:00", "2024-06-01T00:00:00+00:00"),
        (("2024-05-31T02:00:00+02:00", None, None), "2024-05-31T00:00:00+00:00", None),
        ((None, "2024-05-31 09:30:00", None), None, "2024-05-31T09:30:00+00:00"),
        (
            ("2024-05-30", "2024-05-31", None),
            "2024-05-30T00:00:00+00:00",
            "2024-05-31T00:00:00+00:00",
        ),
    ],
)
def test_two_of_start_end_and_duration_give_a_time_range(
    options: tuple[str | None, str | None, str | None], start: str | None, end: str | None
) -> None:
    period = TimeRange.from_options(*options, None)
    assert period is not None
    found = [None if time is None else time.isoformat() for time in (period.start, period.end)]
    assert found == [start, end]


def test_duration_alone_ends_now() -> None:
    period = TimeRange.from_options(None, None, "60d", None)
    assert period is not None
    assert period.start is not None
    assert period.end is not None
    assert period.end - period.start == timedelta(days=60)
    assert abs(datetime.now(UTC) - period.end) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("yesterday", None, None, None),
            r"--start_time: 'yesterday' is not a valid time. Use `2024-05-31`",
        ),
        ((None, "31.5.", None, None), "--end_time: '31.5.' is not a valid time"),
        ((None, None, "a while", None), "--duration: 'a while' is not a duration"),
        (("2024-05-02", "2024-05-01", None, None), "ends at 2024-05-01.*Give a later end"),
        (("2024-05-01", "2024-05-02", "1d", None), "Give two of the three"),
        ((None, None, None, "15m"), "--delivery_delay: needs a time range. Add --start_time"),
    ],
)
def test_invalid_time_ranges_are_rejected(
    options: tuple[str | None, str | None, str | None, str | None], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TimeRange.from_options(*options)


@pytest.mark.parametrize(
    ("folder", "start", "end"),
    [
        ("AWSLogs/000000000001/CloudTrail/eu-west-1/2024/02/29", "2024-02-29", "2024-03-01"),
        ("logs/2024/12", "2024-12-01", "2025-01-01"),
        ("logs/2024-05-31", "2024-05-31", "2024-06-01"),
        ("user=ann/date=2024-05-31", "2024-05-31", "2024-06-01"),
        ("region=eu/accountId=1/eventDay=20240531", "2024-05-31", "2024-06-01"),
        ("year=2024", "2024-01-01", "2025-01-01"),
        ("year=2024/month=5/day=3", "2024-05-03", "2024-05-04"),
        ("y=2024/m=05/d=03/h=23/m=00", "2024-05-03T23:00", "2024-05-04T00:00"),
        ("2024/reports/2023/05", "2023-05-01", "2023-06-01"),
        ("2024/05/31/archive", "2024-05-31", "2024-06-01"),
        ("2024/05/archive/31", "2024-05-01", "2024-06-01"),
        ("cases/2023/12/AWSLogs/2024/05/31", "2024-05-31", "2024-06-01"),
        ("2024-07-12/date=2024-05-31", "2024-05-31", "2024-06-01"),
        ("year=2024/team=red/month=5", "2024-05-01", "2024-06-01"),
    ],
)
def test_dates_in_folder_names_are_recognised(folder: str, start: str, end: str) -> None:
    span = parse_interval(folder.split("/"))
    assert span is not None
    assert span.start == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert span.end == datetime.fromisoformat(end).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "logs/2024",
        "teams/2001/files",
        "2024/13/01",
        "2023/02/29",
        "born=2024-05-31",
        "31/05/2024",
    ],
)
def test_ambiguous_folder_names_are_no_dates(folder: str) -> None:
    assert parse_interval(folder.split("/")) is None


def test_file_delivered_before_the_time_range_is_skipped() -> None:
    period = TimeRange.from_options("2024-05-31T12:00:00Z", None, None, None)
    assert period is not None
    assert not period.may_contain_file(
        ["2024", "05", "31"], "1_CloudTrail_us_20240531T1155Z_x.json.gz"
    )
    assert period.may_contain_file(["2024", "05", "31"], "1_CloudTrail_us_20240531T1200Z_x.json.gz")
    assert period.may_contain_file(["2024", "05", "31"], "1_20240531T1155_x.json.gz"), (
        "not a name of AWS's"
    )


def written(folder: Path) -> Path:
    """An event an hour on three days, each day in a folder of its own."""
    for day in (1, 2, 3):
        path = folder / "2024" / "05" / f"{day:02}" / "a.json"
        path.parent.mkdir(parents=True)
        events = [
            {"eventTime": f"2024-05-{day:02}T{hour:02}:00:00Z", "userIdentity": {"accountId": "1"}}
            for hour in range(24)
        ]
        path.write_text(json.dumps({"Records": events}))
    return folder


def test_date_in_the_given_folder_is_ignored_if_outside(tmp_path: Path) -> None:
    folder = written(tmp_path / "cases" / "2025-01-31")
    period = TimeRange.from_options("2024-05-02", None, "1d", None)
    for pattern in (folder, folder / "*.json", folder / "2024" / "**" / "*"):
        found = FileDiscovery(str(pattern), time_range=period).require()
        assert [path.parent.name for path in found.paths] == ["02"]
    found = FileDiscovery(str(folder / "2024" / "05" / "03"), time_range=period).require()
    assert len(found.paths) == 1, "its events are left out, and counted"


def test_events_outside_the_time_range_are_skipped_and_counted(tmp_path: Path) -> None:
    settings = PipelineOptions(userid_column_name="userIdentityaccountId", num_threads=1)
    source = FromCloudtrail(
        input_glob=str(written(tmp_path)),
        start_time="2024-05-02T06:00:00Z",
        duration="12h",
        options=settings,
    )
    metrics = RunMetrics()
    frame = pl.concat(batch.table.to_frame() for batch in source.events(None, metrics))
    assert frame[TIME].dt.hour().to_list() == list(range(6, 18))
    stats = metrics.input
    assert (stats.read, stats.outside_range, stats.accepted, stats.outside_files) == (
        24,
        12,
        12,
        2,
    )
    assert stats.time_range == "from 2024-05-02T06:00:00Z until before 2024-05-02T18:00:00Z"


def test_time_range_applies_before_repetition(tmp_path: Path) -> None:
    settings = PipelineOptions(userid_column_name="userIdentityaccountId", num_threads=1)
    source = FromCloudtrail(
        input_glob=str(written(tmp_path)), start_time="2024-05-03", repeat=2, options=settings
    )
    metrics = RunMetrics()
    frame = pl.concat(batch.table.to_frame() for batch in source.events(None, metrics))
    assert (frame.height, metrics.input.accepted, metrics.input.outside_range) == (48, 48, 0)


def test_train_duration_needs_a_start() -> None:
    source = FromDuo(input_glob="x", end_time="2024-05-03", train_duration="2d")
    with pytest.raises(UsageError, match="--train_duration: the time range has no start"):
        source.validate()
