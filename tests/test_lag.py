"""Scheduled runs: with `--lag` and `--state`, hourly runs write each event once, late ones too."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import zstandard

from morpheus.cli.output import format_metrics
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.core.state import decode_state
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.runtime.local import MEMORY
from morpheus.runtime.states import SqliteStateStore
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.source_state import TakenFiles
from morpheus.stages.serialize import Serialize

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
LAG = {"duration": "1h", "lag": "20m"}


@dataclass
class Schedule:
    """Logs that arrive in a folder as time goes on, and the hourly runs that read them.

    Attributes:
        folder: Has the logs, the state and the output of the latest run.
        set_clock: Sets the clock of the runs.
        written: The rows of all runs that ended well.
    """

    folder: Path
    set_clock: Callable[[datetime], None]
    written: list[pl.DataFrame] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        (self.folder / "logs").mkdir(exist_ok=True)
        return self.folder / "logs"

    def run(self, now: datetime, **options: object) -> RunMetrics:
        """Run once at a time of the clock."""
        self.set_clock(now)
        output = self.folder / "rows.csv"
        stages = [
            FromCloudtrail(input_glob=str(self.logs / "**"), implausible_time="keep", **options),  # type: ignore[arg-type]
            Serialize(),
            ToFile(filename=str(output), overwrite=True),
        ]
        settings = PipelineOptions(
            userid_column_name="userIdentityuserName",
            state=str(self.folder / "state.db"),
            num_threads=1,
        )
        metrics = Pipeline(stages, settings).run()
        self.written.append(pl.read_csv(output, infer_schema=False))
        assert metrics.input.accepted == self.written[-1].height, "every record is accounted for"
        return metrics

    def names(self) -> list[str]:
        """The names of the events that were written, in order."""
        return sorted(name for rows in self.written for name in rows["eventName"])


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """An empty folder, and a clock that tests set."""

    def set_clock(now: datetime) -> None:
        for module in ("time_range", "ingest"):
            monkeypatch.setattr(f"morpheus.sources.{module}.current_time", lambda: now)

    return Schedule(tmp_path, set_clock)


def event(number: int, time: datetime, *, unique: bool = True) -> dict[str, object]:
    """An event, with a name of its own."""
    ids = {"eventID": str(uuid.UUID(int=number, version=4))} if unique else {}
    return {
        "eventTime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
        "eventName": f"e{number:04}",
        "userIdentity": {"type": "IAMUser", "userName": ("ann", "bob")[number % 2]},
        **ids,
    }


@dataclass(frozen=True)
class Delivery:
    """An event, and when it is delivered."""

    record: dict[str, object]
    time: datetime
    arrives: datetime


def deliveries(hours: int, *, slow: float = 0.05) -> list[Delivery]:
    """An event a minute. Most come within ten minutes, and some hours later."""
    rng = random.Random(3)  # noqa: S311 - made-up logs, not secrets
    found = []
    for number in range(60 * hours):
        time = START + number * MINUTE
        minutes = rng.uniform(60, 300) if rng.random() < slow else rng.uniform(1, 10)
        found.append(Delivery(event(number, time), time, time + minutes * MINUTE))
    return found


def write_files(logs: Path, found: Sequence[Delivery], label: str) -> None:
    """Write what arrives into files of a few events, in AWS's folders."""
    for minute in sorted({each.arrives.replace(second=0, microsecond=0) for each in found}):
        records = [e.record for e in found if minute <= e.arrives < minute + MINUTE]
        folder = (
            logs / "AWSLogs" / "111111111111" / "CloudTrail" / "eu-west-1" / f"{minute:%Y/%m/%d}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        name = f"111111111111_CloudTrail_eu-west-1_{minute:%Y%m%dT%H%M}Z_{label}.json"
        (folder / name).write_text(json.dumps({"Records": records}))


def test_hourly_runs_write_each_event_once_although_some_come_hours_later(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = deliveries(10)
    arrived: list[Delivery] = []
    late, opened = 0, []
    for hour in range(1, 17):
        # Cron starts a run some seconds after the hour, never at the same one.
        now = START + hour * HOUR + (hour * 7 % 11) * timedelta(seconds=1)
        new = [each for each in found if each.arrives < now and each not in arrived]
        arrived += new
        write_files(schedule.logs, new, f"{hour:02}")
        if hour == 5:
            continue  # the machine is down
        if hour == 8:
            with monkeypatch.context() as patch:
                patch.setattr(ToFile, "commit", _fail)
                with pytest.raises(TransientError):
                    schedule.run(now, **LAG)
            now += 7 * MINUTE
        metrics = schedule.run(now, **LAG)
        late += metrics.input.late
        opened.append(metrics.input.files)
    first = START + HOUR + 7 * timedelta(seconds=1) - 80 * MINUTE
    expected = [str(each.record["eventName"]) for each in found if each.time >= first]
    assert schedule.names() == sorted(expected)
    assert late > 10
    flagged = sum((rows["late"] == "True").sum() for rows in schedule.written)
    assert flagged == late
    assert max(opened) < 100, "files that have nothing new are not read again"


def _fail(*_: object) -> None:
    raise TransientError("The disk is full.")


def test_only_events_that_came_after_the_run_of_their_period_are_late(schedule: Schedule) -> None:
    on_time, slow = event(1, START + 10 * MINUTE), event(2, START + 20 * MINUTE)
    later = event(3, START + 70 * MINUTE)
    (schedule.logs / "a.json").write_text(json.dumps(on_time))
    schedule.run(START + 80 * MINUTE, **LAG)
    (schedule.logs / "b.json").write_text("\n".join(map(json.dumps, [slow, later])))
    metrics = schedule.run(START + 140 * MINUTE, **LAG)
    rows = pl.concat(schedule.written).sort("eventName")
    assert rows["late"].to_list() == ["False", "True", "False"]
    assert (metrics.input.late, metrics.input.taken_files) == (1, 1)


def test_a_skipped_run_is_made_up_for_and_its_events_are_not_late(schedule: Schedule) -> None:
    for hour in range(4):
        path = schedule.logs / f"{hour}.json"
        path.write_text(json.dumps(event(hour, START + hour * HOUR + 10 * MINUTE)))
    schedule.run(START + 80 * MINUTE, **LAG)
    metrics = schedule.run(START + 260 * MINUTE, **LAG)
    assert schedule.names() == ["e0000", "e0001", "e0002", "e0003"]
    assert metrics.input.late == 0


@pytest.mark.parametrize("rotates", [False, True])
def test_a_file_that_grows_is_taken_line_by_line_without_event_ids(
    schedule: Schedule, *, rotates: bool
) -> None:
    log, number, expected = schedule.logs / "app.jsonl", 0, []
    for hour in range(1, 6):
        with log.open("a") as file:
            for minute in range(60):
                time = START + (hour - 1) * HOUR + minute * MINUTE
                if minute % 7 == 3:
                    time -= 3 * HOUR  # a host whose connection was lost sends old events
                file.write(json.dumps(event(number, time, unique=False)) + "\n")
                expected.append((f"e{number:04}", time))
                number += 1
        schedule.run(START + hour * HOUR + MINUTE, duration="1h", lag="20m", look_back="6h")
        if rotates and hour == 3:
            log.rename(schedule.logs / "app.1.jsonl")
    schedule.run(START + 6 * HOUR + MINUTE, duration="1h", lag="20m", look_back="6h")
    first = START + HOUR + MINUTE - 80 * MINUTE
    assert schedule.names() == [name for name, time in expected if time >= first]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("lines", [3, 40_000])
def test_a_last_line_that_is_being_written_is_left_to_the_next_run(
    schedule: Schedule, kind: str, lines: int
) -> None:
    events = [event(n, START + 50 * MINUTE + n * MINUTE / 1000, unique=False) for n in range(lines)]
    if kind == "csv":
        rows = (f'{each["eventTime"]},"{each["eventName"]}","ann"' for each in events)
        text = "\n".join(["eventTime,eventName,userIdentity.userName", *rows])
    else:
        text = "\n".join(map(json.dumps, events))
    text += "\n"
    file = schedule.logs / f"events.{kind}"
    with file.open("w") as log:
        for cut in (len(text) - 20, len(text) - 10, len(text)):
            log.write(text[log.tell() : cut])
            log.flush()
            metrics = schedule.run(START + 2 * HOUR, **LAG)
            assert metrics.input.refused == 0
            shown = any("last line of" in line for line in format_metrics(metrics))
            assert shown == (cut < len(text))
    assert schedule.names() == sorted(str(each["eventName"]) for each in events)


@pytest.mark.parametrize("minutes", [0, 2])
def test_a_row_without_a_line_feed_is_taken_once_the_file_has_not_changed_for_a_minute(
    schedule: Schedule, minutes: int
) -> None:
    file = schedule.logs / "events.csv"
    file.write_text(
        "eventTime,eventName,userIdentity.userName\n2026-01-05T09:00:00Z,a,ann\n"
        "2026-01-05T09:01:00Z,b,ann"
    )
    assert schedule.run(START + 2 * HOUR, **LAG).input.accepted == 1
    changed = datetime.now(UTC).timestamp() - 60 * minutes
    os.utime(file, (changed, changed))
    assert schedule.run(START + 2 * HOUR, **LAG).input.accepted == bool(minutes)


def _make_growing_file(form: str, numbers: range) -> bytes:
    records = [event(number, START + number * MINUTE, unique=False) for number in numbers]
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    document = json.dumps({"Records": records}).encode()
    return {"jsonl.gz": gzip.compress(lines), "json.zst": zstandard.compress(document)}.get(
        form, document
    )


@pytest.mark.parametrize("form", ["jsonl.gz", "json.zst", "json"])
def test_a_file_without_lines_that_is_being_written_is_left_to_the_next_run(
    schedule: Schedule, form: str
) -> None:
    path, whole = schedule.logs / f"growing.{form}", _make_growing_file(form, range(90))
    (schedule.logs / "other.json").write_bytes(_make_growing_file("json", range(200, 210)))
    for number, size in enumerate((len(whole) // 2, len(whole) - 3, len(whole), len(whole)), 1):
        path.write_bytes(whole[:size])
        metrics = schedule.run(START + number * HOUR + 20 * MINUTE, **LAG)
        is_left = size < len(whole)
        assert metrics.input.file_kinds["unfinished file"] == is_left
        shown = [line for line in format_metrics(metrics) if f"{path}, which is being" in line]
        assert len(shown) == is_left
    schedule.run(START + 5 * HOUR, **LAG)
    assert schedule.names() == [f"e{number:04}" for number in (*range(90), *range(200, 210))]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_document_packed_before_it_was_complete_is_left_to_the_next_run(
    schedule: Schedule, pack: Callable[[bytes], bytes]
) -> None:
    path, whole = schedule.logs / "growing.json.gz", _make_growing_file("json", range(9))
    for number, size in enumerate((len(whole) // 2, len(whole)), 1):
        path.write_bytes(pack(whole[:size]))
        metrics = schedule.run(START + number * HOUR, **LAG)
        assert metrics.input.file_kinds["unfinished file"] == (size < len(whole))
    assert schedule.names() == [f"e{number:04}" for number in range(9)]


@pytest.mark.parametrize("form", ["jsonl.gz", "json.zst", "json"])
def test_a_cut_file_that_did_not_change_for_minutes_is_an_error_that_says_what_to_do(
    schedule: Schedule, form: str
) -> None:
    path, whole = schedule.logs / f"cut.{form}", _make_growing_file(form, range(9))
    path.write_bytes(whole[:-3])
    os.utime(path, (time.time() - 600,) * 2)
    with pytest.raises(RecordError, match=r"cut\..*if the file is still being written, run again"):
        schedule.run(START + HOUR + 20 * MINUTE, **LAG)


def test_a_file_in_the_place_of_a_removed_one_is_read(schedule: Schedule) -> None:
    path = schedule.logs / "a.jsonl"
    path.write_text(json.dumps(event(1, START + MINUTE, unique=False)))
    schedule.run(START + HOUR, duration="1h", lag="0m", look_back="1d")
    size = path.stat().st_size
    path.unlink()
    path.write_text(json.dumps(event(2, START + MINUTE, unique=False)))
    assert path.stat().st_size == size, "only contents and time of change differ"
    schedule.run(START + 2 * HOUR, duration="1h", lag="0m", look_back="1d")
    assert schedule.names() == ["e0001", "e0002"]


def test_a_file_that_is_rewritten_with_the_same_last_bytes_is_read_again(
    schedule: Schedule,
) -> None:
    path, constant = schedule.logs / "a.jsonl", {"userAgent": "agent" * 200}
    path.write_text(json.dumps(event(1, START + MINUTE, unique=False) | constant) + "\n")
    schedule.run(START + HOUR, duration="1h", lag="0m", look_back="1d")
    path.write_text(json.dumps(event(3, START + MINUTE, unique=False) | constant) + "\n")
    schedule.run(START + 2 * HOUR, duration="1h", lag="0m", look_back="1d")
    assert schedule.names() == ["e0001", "e0003"]


def test_events_older_than_the_look_back_time_are_left_out_and_counted(schedule: Schedule) -> None:
    (schedule.logs / "a.json").write_text(json.dumps(event(1, START + MINUTE)))
    schedule.run(START + HOUR, **LAG)
    schedule.run(START + 5 * HOUR, **LAG, look_back="2h")
    old = [event(2, START + 2 * MINUTE), event(3, START + 290 * MINUTE)]
    (schedule.logs / "b.json").write_text("\n".join(map(json.dumps, old)))
    metrics = schedule.run(START + 6 * HOUR, **LAG, look_back="2h")
    assert schedule.names() == ["e0001", "e0003"]
    assert metrics.input.outside_range == 1


def _write_days(schedule: Schedule, days: int) -> list[str]:
    """Write a file for each day, without event ids, and return the names of its events."""
    for day in range(days):
        found = [event(n, START + n * HOUR, unique=False) for n in range(24 * day, 24 * (day + 1))]
        (schedule.logs / f"{day}.jsonl").write_text("\n".join(map(json.dumps, found)))
    return [f"e{number:04}" for number in range(24 * days)]


def test_an_older_period_is_taken_again_with_a_warning_and_nothing_else_is(
    schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    names = _write_days(schedule, 5)
    for day in range(5):
        start = (START + day * 24 * HOUR).isoformat()
        schedule.run(START + 6 * 24 * HOUR, start_time=start, duration="1d")
    assert schedule.names() == names
    assert "are written again" not in caplog.text
    start = (START + 24 * HOUR).isoformat()
    schedule.run(START + 6 * 24 * HOUR, start_time=start, duration="1d")
    assert schedule.names() == sorted([*names, *names[24:48]])
    assert "have read files with events until" in caplog.text
    assert "are written again, except those with unique ids" in caplog.text


def test_a_longer_look_back_time_takes_no_event_again(schedule: Schedule) -> None:
    names = _write_days(schedule, 3)
    for day, look_back in enumerate(("1d", "0s", "2d")):
        start = (START + day * 24 * HOUR).isoformat()
        now = START + 6 * 24 * HOUR
        schedule.run(now, start_time=start, duration="1d", look_back=look_back)
    schedule.run(START + 6 * 24 * HOUR, duration="1d", look_back="6d")
    assert schedule.names() == names


def test_the_memory_forgets_files_that_no_run_reads_again(schedule: Schedule) -> None:
    sizes = []
    for hour in range(1, 12):
        path = schedule.logs / f"{hour}.json"
        path.write_text(json.dumps(event(hour, START + hour * HOUR - 30 * MINUTE)))
        schedule.run(START + hour * HOUR, **LAG, look_back="3h")
        sizes.append(_num_remembered(schedule))
        if hour > 4:
            (schedule.logs / f"{hour - 4}.json").unlink()
    assert sizes[-1] == sizes[-2] == sizes[-3] < 8
    assert len(schedule.names()) == 11


def test_a_file_with_nothing_new_is_not_opened_however_old_it_is(schedule: Schedule) -> None:
    for hour in range(1, 12):
        path = schedule.logs / f"{hour}.json"
        path.write_text(json.dumps(event(hour, START + hour * HOUR - 30 * MINUTE)))
        metrics = schedule.run(START + hour * HOUR, **LAG, look_back="1h")
        assert (metrics.input.files, metrics.input.taken_files) == (1, hour - 1)
    assert len(schedule.names()) == 11


def _num_remembered(schedule: Schedule) -> int:
    store = SqliteStateStore(schedule.folder / "state.db", {})
    [data] = store.load_stage(MEMORY).values()
    store.close()
    return len(decode_state(TakenFiles, data).files)


def test_hours_without_a_delivery_are_shown_also_if_other_runs_have_read_the_rest(
    schedule: Schedule,
) -> None:
    number = 0
    for hour in range(0, 100, 20):
        for region in ("eu-west-1", "us-east-1"):
            for each in range(hour, hour + 20):
                number += 1
                if region == "us-east-1" and 70 <= each < 75:
                    continue
                delivery = START + each * HOUR
                folder = schedule.logs / "111111111111" / region / f"{delivery:%Y/%m/%d}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{number}.json"
                path.write_text(json.dumps(event(number, delivery + MINUTE)))
        metrics = schedule.run(START + (hour + 20) * HOUR, duration="20h")
    # `START` is 8 o'clock.
    [gap] = metrics.input.gaps
    place = schedule.logs / "111111111111" / "us-east-1"
    assert gap == f"{place}: no event for 5 hours, from 2026-01-08 06:00 to 2026-01-08 11:00 UTC"
    assert f"  gap       {gap}" in format_metrics(metrics)
    for hour in (104, 108):
        metrics = schedule.run(START + hour * HOUR, duration="4h")
    assert f"{place}: no event for 8 hours" in "".join(metrics.input.gaps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lag": "20m", "end_time": "2026-01-05"},
            "--lag: moves the end of a time range that ends",
        ),
        ({"lag": "soon"}, "--lag: 'soon' is not a duration"),
        ({"look_back": "soon"}, "--look_back: 'soon' is not a duration"),
        ({"lag": "20m", "watch_directory": True}, "--lag: a watched directory has no end"),
    ],
)
def test_contradicting_options_are_rejected(
    schedule: Schedule, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        schedule.run(START, **options)
