"""`--allowed_lateness`: events of an endless input that come late are put in order, or marked."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from morpheus.cli.output import format_metrics
from morpheus.columns import INDEX, TIME
from morpheus.core.batch import MicroBatch, OutputRows, ReadStats, RunMetrics
from morpheus.core.stage import PipelineOptions, Sink, Values
from morpheus.errors import TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.group_by_user import UserStats
from morpheus.sources.ingest import IngestRun
from morpheus.sources.partitioning import LocalPartitionStore
from morpheus.sources.spill_sort import LatenessBuffer, SpilledDataset
from morpheus.stages.serialize import Serialize
from morpheus.storage.spill import SpillDir

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ALLOWANCE = 10 * MINUTE
FEATURES = "eventName\nsourceIPAddress\nlogcount\nnew:eventName\nprevious:eventName"
USERS = ("ann", "bob", "cy")


@dataclass(frozen=True)
class FromChunks(FromCloudtrail):
    """Reads the files of a folder, one micro-batch each; its offset is the number of files."""

    name = "from-chunks"

    fails_before: int | None = None

    def is_unbounded(self) -> bool:
        """More files could come."""
        return True

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read one file after the other, from the offset on."""
        ingest = self._make_ingest()
        paths = sorted(Path(str(self.input_glob)).iterdir())
        first = int(offsets.get("chunks", b"0"))
        with SpillDir() as folder, WorkerPool(1) as pool:
            spec = ingest.make_partition_spec()
            store = LocalPartitionStore(
                spec, ingest.memory_budget, ingest.sample_spec, folder, pool
            )
            run = IngestRun(ingest, metrics, store)
            for number, path in enumerate(paths[first:], start=first):
                if number == self.fails_before:
                    raise TransientError("The machine stops.")
                partitions = run.partitions([path], training_input)
                yield MicroBatch(partitions, {"chunks": str(number + 1).encode()})


@dataclass(frozen=True)
class AppendRows(Sink):
    """Appends rows to a file, so that those of earlier runs stay."""

    name = "append-rows"
    takes = (OutputRows,)

    filename: str = ""

    def process(self, batch: OutputRows, state: None) -> Iterator[OutputRows]:
        """Write the rows of a batch."""
        with Path(self.filename).open("ab") as file:
            batch.table.to_frame().write_ndjson(file)
        yield batch


def make_events(count: int) -> list[dict[str, object]]:
    """Events of three users, half a minute apart; some have the same time and user."""
    rng = random.Random(1)  # noqa: S311 - made-up logs, not secrets
    events = []
    for number in range(count):
        time = START + (number - number % 3 // 2) * timedelta(seconds=30)
        events.append(
            {
                "eventTime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
                "eventName": rng.choice(["Get", "Put", "List", "Copy", f"Rare{number}"]),
                "sourceIPAddress": f"10.0.0.{rng.randint(1, 3)}",
                "userIdentity": {"type": "IAMUser", "userName": USERS[number % 5 // 2]},
                "eventID": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            }
        )
    return events


def time_of(event: Mapping[str, object]) -> datetime:
    """The time of an event."""
    return datetime.fromisoformat(str(event["eventTime"]))


def shuffle(events: Sequence[dict[str, object]], seed: int) -> list[dict[str, object]]:
    """Delay each event by less than the allowance."""
    rng = random.Random(seed)  # noqa: S311 - made-up logs, not secrets
    return sorted(events, key=lambda event: time_of(event) + rng.random() * ALLOWANCE)


@dataclass
class Stream:
    """A folder of chunks, and runs over it that share a state file.

    Attributes:
        folder: Has the chunks, the state and the output.
        events: All events, in the order in which they come.
        chunk: Events in a micro-batch.
        lateness: The allowance.
    """

    folder: Path
    events: Sequence[dict[str, object]]
    chunk: int = 7
    lateness: str = "10m"
    metrics: RunMetrics = field(default_factory=RunMetrics)

    def run(self, fails_before: int | None = None) -> pl.DataFrame:
        """Run to the end or to a failure, and return all rows that are written."""
        chunks = self.folder / "chunks"
        chunks.mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, len(self.events), self.chunk)):
            lines = map(json.dumps, self.events[start : start + self.chunk])
            (chunks / f"{number:04}.jsonl").write_text("\n".join(lines))
        (self.folder / "features.txt").write_text(FEATURES)
        output = self.folder / "rows.jsonl"
        stages = [
            FromChunks(input_glob=str(chunks), fails_before=fails_before),
            Serialize(),
            AppendRows(filename=str(output)),
        ]
        options = PipelineOptions(
            userid_column_name="userIdentityuserName",
            columns_file=str(self.folder / "features.txt"),
            state=str(self.folder / "state.db"),
            allowed_lateness=self.lateness,
            checkpoint_interval=0,
            num_threads=1,
        )
        if fails_before is not None:
            with pytest.raises(TransientError, match="The machine stops"):
                Pipeline(stages, options).run()
            return pl.DataFrame()
        self.metrics = Pipeline(stages, options).run()
        return sort(pl.read_ndjson(output))


def sort(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by user and number, without their positions in files, and each only once."""
    return rows.drop(INDEX).unique().sort("userIdentityuserName", "")


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The rows of events that come in order."""
    return Stream(tmp_path_factory.mktemp("in_order"), make_events(200)).run()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_within_the_allowance_gives_the_rows_of_events_in_order(
    in_order: pl.DataFrame, tmp_path: Path, seed: int
) -> None:
    events = shuffle(make_events(200), seed)
    assert events != make_events(200)
    stream = Stream(tmp_path, events, chunk=5 + seed)
    rows = stream.run()
    assert rows.equals(in_order)
    assert rows["late"].unique().to_list() == [False]
    assert rows["logcount"].cast(pl.Int64).max() > 10  # type: ignore[operator] # a number
    assert stream.metrics.input.late == 0


def test_without_the_allowance_the_same_order_gives_other_rows(
    in_order: pl.DataFrame, tmp_path: Path
) -> None:
    rows = Stream(tmp_path, shuffle(make_events(200), 1), lateness="0s").run()
    assert "late" not in rows.columns
    assert not rows.equals(in_order.drop("late"))


def test_events_that_wait_outlive_a_failure_and_come_once(tmp_path: Path) -> None:
    # Without ids, an event that came again would be another event.
    events = [{**event, "eventID": f"no-id-{n}"} for n, event in enumerate(make_events(200))]
    in_order = Stream(tmp_path / "in_order", events).run()
    stream = Stream(tmp_path / "failing", shuffle(events, 4))
    for number in (3, 4, 11, 20):
        stream.run(fails_before=number)
    assert stream.run().equals(in_order)


def offset_names(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "state.db")) as database:
        return [name for (name,) in database.execute("SELECT name FROM offsets ORDER BY 1")]


def test_events_that_wait_come_once_in_a_run_without_the_allowance(tmp_path: Path) -> None:
    events = [{**event, "eventID": f"no-id-{n}"} for n, event in enumerate(make_events(200))]
    stream = Stream(tmp_path, shuffle(events, 4))
    stream.run(fails_before=9)
    assert any(name.startswith("lateness/") for name in offset_names(tmp_path)), "some events wait"
    stream.lateness = "0s"
    stream.run(fails_before=14)
    assert offset_names(tmp_path) == ["chunks"], "none waits"
    stream.lateness = "10m"
    stream.run(fails_before=20)
    stream.lateness = "0s"
    rows = stream.run()
    assert sorted(rows["eventID"]) == sorted(event["eventID"] for event in events)
    assert stream.metrics.input.late == 0


def test_events_that_wait_outlive_a_killed_process(in_order: pl.DataFrame, tmp_path: Path) -> None:
    events, logs = shuffle(make_events(200), 5), tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "features.txt").write_text(FEATURES)
    words = [
        *("run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityuserName"),
        *(f"--columns_file={tmp_path}/features.txt", f"--state={tmp_path}/state.db"),
        *("--allowed_lateness=10m", "--checkpoint_interval=0"),
        *("from-cloudtrail", f"--input_glob={logs}/*.jsonl", "--watch_directory=true"),
        *("--batch_timeout=0", "--max_files=20", "serialize"),
        *("to-file", f"--filename={tmp_path}/rows.jsonl", "--overwrite"),
    ]
    command = [sys.executable, "-c", "from morpheus.cli.main import main; main()", *words]
    write_chunks(logs, events, range(8))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: count_rows(tmp_path / "rows.jsonl") > 0)
        process.kill()
    assert count_rows(tmp_path / "rows.jsonl") < 80, "some events wait"
    write_chunks(logs, events, range(8, 20))
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    rows = pl.read_ndjson(tmp_path / "rows.jsonl")
    # The id of a row follows from the number of the event.
    names = ["row_id", "eventID", "logcount", "new:eventName", "previous:eventName", "late"]
    assert rows.select(names).sort("row_id").equals(in_order.select(names).sort("row_id"))


def write_chunks(folder: Path, events: Sequence[dict[str, object]], numbers: Iterable[int]) -> None:
    """Write files of ten events each."""
    for number in numbers:
        lines = map(json.dumps, events[10 * number : 10 * number + 10])
        (folder / f"{number:02}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def count_rows(path: Path) -> int:
    """The number of lines of a file that may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_summary_counts_events_that_wait() -> None:
    metrics, buffer = RunMetrics(input=ReadStats(files=1, read=5)), LatenessBuffer(10 * MINUTE)
    metrics.lateness = buffer
    buffer.segments["a"] = pl.DataFrame({TIME: [START, START]})
    facts = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in format_metrics(metrics))
    assert facts["waiting"] == "2 events for --allowed_lateness, in the --state file"
    assert facts["no event"] == "the other events wait for earlier ones"


def test_a_later_event_is_written_marked_and_counted(tmp_path: Path) -> None:
    events = make_events(100)
    late = events.pop(5)
    stream = Stream(tmp_path, [*events, late])
    rows = stream.run()
    assert rows.height == 100
    marked = rows.filter("late")
    assert marked["eventID"].to_list() == [late["eventID"]]
    assert stream.metrics.input.late == 1
    assert stream.metrics.stream is not None
    assert stream.metrics.stream.late == 1


def test_the_watermark_of_a_partition_is_shown(tmp_path: Path) -> None:
    stream = Stream(tmp_path, make_events(20))
    stream.run()
    assert stream.metrics.stream is not None
    latest = max(map(time_of, stream.events)).timestamp()
    assert stream.metrics.stream.watermarks == {str(tmp_path / "chunks"): latest}


def test_hours_without_an_event_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = [hour for hour in range(100) if not 60 <= hour < 64]
    events = make_events(len(hours))
    for event, hour in zip(events, hours, strict=True):
        event["eventTime"] = f"{START + hour * 60 * MINUTE:%Y-%m-%dT%H:%M:%SZ}"
    now = START + 99 * 60 * MINUTE
    for module in ("ingest", "spill_sort"):
        monkeypatch.setattr(f"morpheus.sources.{module}.current_time", lambda: now)
    stream = Stream(tmp_path, events, lateness="0s")
    stream.run()
    [gap] = stream.metrics.input.gaps
    assert gap.endswith(
        "chunks: no event for 4 hours, from 2026-01-07 20:00 to 2026-01-08 00:00 UTC"
    )


@dataclass
class Buffer:
    """A buffer, and what it has passed on."""

    clock: float = 0.0
    buffer: LatenessBuffer = field(init=False)
    passed_on: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffer = LatenessBuffer(ALLOWANCE, clock=lambda: self.clock)

    def add(self, *minutes: int, name: str = "a") -> list[int]:
        """Add events of some minutes, and return the minutes of those that are passed on."""
        times = [START + minute * MINUTE for minute in minutes]
        frame = pl.DataFrame({TIME: times}, schema={TIME: pl.Datetime("us", "UTC")})
        latest = {name: int(max(times).timestamp() * 1e6)} if times else {}
        released: list[pl.DataFrame] = []
        dataset = SpilledDataset("user", UserStats.empty(), [], [frame], [])
        self.buffer.exchange(dataset, latest, released.append)
        found = pl.concat(released)[TIME].sort()
        return [int((time - START) / MINUTE) for time in found]


def test_events_wait_for_the_partition_that_is_behind() -> None:
    buffer = Buffer()
    assert buffer.add(0, name="b") == []
    assert buffer.add(0, 15, 30) == [], "b has only come to minute 0"
    assert buffer.add(20, name="b") == [0, 0]
    assert buffer.add(40, name="b") == [15]


def test_events_wait_for_a_partition_that_has_some_and_was_not_read_yet() -> None:
    buffer = Buffer()
    buffer.buffer.expect(["a", "b"])
    assert buffer.add(0, 15, 30) == []
    assert buffer.add(20, name="b") == [0]
    buffer.buffer.expect(["c"])
    buffer.clock += ALLOWANCE.total_seconds() + 1
    assert buffer.add(60, 90) == [15, 20, 30, 60]


def test_an_idle_partition_does_not_hold_others_back() -> None:
    buffer = Buffer()
    buffer.add(0, name="b")
    buffer.clock += ALLOWANCE.total_seconds() + 1
    assert buffer.add(30, 45) == [0, 30]


def test_all_events_are_released_when_none_comes() -> None:
    buffer = Buffer()
    assert buffer.add(1, 2, 3) == []
    buffer.clock += ALLOWANCE.total_seconds() + 1
    assert buffer.add() == [1, 2, 3]


def test_a_wrong_clock_makes_no_other_event_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morpheus.sources.spill_sort.current_time", lambda: START + 5 * MINUTE)
    buffer = Buffer()
    assert buffer.add(3, 600) == []
    assert buffer.add(4) == []


def test_what_waits_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    buffer = Buffer()
    buffer.buffer.max_bytes = 8 * 100
    assert len(buffer.add(*range(-100, 1))) == 90
    buffer.buffer.allowance = 1000 * MINUTE
    assert "events wait for earlier ones. The earliest half is passed on" not in caplog.text
    released = buffer.add(*range(1, 200))
    assert 90 < len(released) < 120
    assert "events wait for earlier ones. The earliest half is passed on" in caplog.text


def test_a_buffer_of_many_small_parts_is_restored_from_its_offsets() -> None:
    buffer, offsets = Buffer(), dict[str, bytes]()
    buffer.buffer.allowance = 1000 * MINUTE
    for minute in range(200):
        buffer.add(minute)
        [completed] = list(buffer.buffer.complete([MicroBatch()], RunMetrics()))[:1]
        offsets |= completed.offsets
    offsets = {name: data for name, data in offsets.items() if data} | {"mine": b"1"}
    assert len(offsets) < 70
    again = Buffer()
    assert again.buffer.restore(offsets) == {"mine": b"1"}
    again.clock = 1e9
    assert again.add() == list(range(200))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PipelineOptions(allowed_lateness="soon"), "--allowed_lateness: 'soon' is not a duration"),
        (PipelineOptions(allowed_lateness="5m"), "needs a state file, which keeps the events"),
    ],
)
def test_an_allowance_needs_a_state_file(
    tmp_path: Path, options: PipelineOptions, message: str
) -> None:
    stages = [FromChunks(input_glob=str(tmp_path)), Serialize()]
    with pytest.raises(UsageError, match=message):
        Pipeline(stages, options).validate()


def test_an_allowance_needs_an_endless_input(tmp_path: Path) -> None:
    options = PipelineOptions(allowed_lateness="5m", state=str(tmp_path / "state.db"))
    stages = [FromCloudtrail(input_glob=str(tmp_path)), Serialize()]
    with pytest.raises(UsageError, match=r"needs an input without end.*use `--lag`"):
        Pipeline(stages, options).validate()
    Pipeline(stages, replace(options, allowed_lateness="0")).validate()
