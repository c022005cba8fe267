"""Endless runs with --state: nothing is lost or written twice, whatever stops them."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

import polars as pl
import pytest

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, Sink
from morpheus.errors import TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.runtime.states import SqliteStateStore
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_http import ToHttp
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import AppendedFile

USERS, FILES, EVENTS = ("ann", "bob", "cy"), 12, 8
USER = "userIdentityuserName"
KILLS, SEED = int(os.environ.get("KILLS", "6")), int(os.environ.get("SEED", "1"))


def write_logs(folder: Path, files: int, hour: int, seed: int) -> None:
    """Files of one hour each, of all users."""
    rng = random.Random(seed)  # noqa: S311 - a seed, no secret
    folder.mkdir()
    for number in range(hour, hour + files):
        records = [
            {
                "eventTime": f"2024-05-{1 + number // 24:02}T{number % 24:02}:{minute:02}:00Z",
                "eventID": f"{number:08}-0000-4000-8000-{position:04}{minute:08}",
                "eventName": rng.choice(("Get", "Put", "List", "Describe", "Rare")),
                "sourceIPAddress": f"10.0.{position}.{rng.randrange(5)}",
                "userIdentity": {"userName": user},
            }
            for position, user in enumerate(USERS)
            for minute in sorted(rng.sample(range(60), EVENTS))
        ]
        text = json.dumps({"Records": records})
        (folder / f"{number:03}.json").write_text(text)


@dataclass
class Case:
    """Logs, fingerprints, and the rows of a run without a disturbance.

    Attributes:
        folder: Where they are.
        expected: The rows of one run over all files.
    """

    folder: Path
    expected: pl.DataFrame

    def stages(self, inputs: Path, files: int, sinks: tuple[Sink, ...], *, watch: bool) -> list:
        source = FromCloudtrail(
            input_glob=str(inputs), watch_directory=watch, batch_timeout=0.0, max_files=files
        )
        return [
            source,
            TrainAe(pretrained_filename=str(self.folder / "models")),
            Preprocess(),
            InfPytorch(),
            AddScores(label=("ae_anomaly_score", "risk")),
            Timeseries(resolution="10m", causal=True, zscore_threshold=2.0),
            Explain(),
            Serialize(),
            *sinks,
        ]

    def run(
        self,
        place: Path,
        files: int,
        *sinks: Sink,
        max_files: int | None = None,
        **options: object,
    ) -> RunMetrics:
        """Watch a folder until some of its files are read."""
        inputs = place / "in"
        inputs.mkdir(exist_ok=True)
        for path in sorted((self.folder / "logs").iterdir())[:files]:
            if not (inputs / path.name).exists():
                shutil.copy(path, inputs / path.name)
        settings = PipelineOptions(
            userid_column_name=USER, state=str(place / "state.db"), num_threads=1, **options
        )
        limit = files if max_files is None else max_files
        return Pipeline(self.stages(inputs, limit, sinks, watch=True), settings).run()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("streams")
    write_logs(folder / "history", 48, 0, seed=1)
    write_logs(folder / "logs", FILES, 48, seed=2)
    options = PipelineOptions(userid_column_name=USER, num_threads=1)
    train = TrainAe(models_output_filename=str(folder / "models"), train_epochs=2, seed=1)
    Pipeline([FromCloudtrail(input_glob=str(folder / "history")), train], options).run()
    output = folder / "expected.csv"
    case = Case(folder, pl.DataFrame())
    stages = case.stages(folder / "logs", -1, (ToFile(filename=str(output)),), watch=False)
    Pipeline(stages, options).run()
    case.expected = read(output)
    assert case.expected.height == FILES * EVENTS * len(USERS)
    return case


def read(path: Path) -> pl.DataFrame:
    """The rows of a file, in order of user and row number, without what only streams have."""
    rows = pl.read_csv(path, infer_schema=False)
    return rows.drop("row_id", strict=False).sort(USER, pl.col("").cast(pl.Int64))


def check(case: Case, path: Path) -> None:
    """The rows are those of one run, each once."""
    rows = read(path)
    assert rows.equals(case.expected), rows.height
    ids = pl.read_csv(path, infer_schema=False)["row_id"]
    assert ids.n_unique() == rows.height


def test_runs_one_after_the_other_write_what_one_run_writes(case: Case, tmp_path: Path) -> None:
    sink = ToFile(filename=str(tmp_path / "out.csv"))
    for files in (3, 7, FILES):
        metrics = case.run(tmp_path, files, sink)
    assert metrics.stream is not None
    assert metrics.stream.checkpoints
    check(case, tmp_path / "out.csv")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl.zst"])
def test_a_file_of_each_format_is_continued(case: Case, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    for files in (5, FILES):
        case.run(tmp_path, files, ToFile(filename=str(path)))
    if "json" in suffix:
        rows = pl.read_ndjson(path).with_columns(pl.col("row_id"))
        assert rows.height == rows["row_id"].n_unique() == case.expected.height
        return
    check(case, path)


def test_users_whose_state_is_not_in_memory_get_the_same_rows(case: Case, tmp_path: Path) -> None:
    sink = ToFile(filename=str(tmp_path / "out.csv"))
    for files in range(2, FILES + 1, 5):
        metrics = case.run(tmp_path, files, sink, max_live_users=1, checkpoint_interval=0.0)
        assert metrics.stream is not None
    check_subset(case, tmp_path / "out.csv")


def check_subset(case: Case, path: Path) -> None:
    rows = read(path)
    assert rows.height
    assert rows.join(case.expected, on=rows.columns, how="anti", nulls_equal=True).is_empty()


def test_a_second_process_cannot_use_the_state_of_a_running_one(tmp_path: Path) -> None:
    store = SqliteStateStore(tmp_path / "state.db", {})
    try:
        store.commit()
        with pytest.raises(
            TransientError, match=r"in use by another run\. Wait until it has ended"
        ):
            SqliteStateStore(tmp_path / "state.db", {})
    finally:
        store.close()
    SqliteStateStore(tmp_path / "state.db", {}).close()


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        (ToFile(filename="out.parquet"), "Parquet, which is only readable when complete"),
        (ToOcsf(filename="out.parquet"), "`to-parquet --folder=FOLDER`"),
        (ToFile(filename="s3://bucket/soc/out.csv"), "`to-parquet --folder=s3://bucket/soc`"),
    ],
)
def test_outputs_that_an_endless_run_cannot_continue_are_rejected(
    case: Case, tmp_path: Path, sink: Sink, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        case.run(tmp_path, 1, sink)
    assert message in str(raised.value)


def test_a_file_of_another_run_is_not_replaced_without_overwrite(
    case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "out.csv"
    path.write_text("other")
    with pytest.raises(UsageError, match=r"there is a file .* already"):
        case.run(tmp_path, 1, ToFile(filename=str(path)))
    assert path.read_text() == "other"
    case.run(tmp_path, FILES, ToFile(filename=str(path), overwrite=True))
    check(case, path)


@dataclass
class Receiver:
    """A web server that takes events, or refuses them.

    Attributes:
        bodies: What it has taken.
        refuses: It refuses everything.
    """

    bodies: list[dict] = field(default_factory=list)
    refuses: bool = False
    port: int = 0

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not receiver.refuses:
                    receiver.bodies += json.loads(body)
                self.send_response(503 if receiver.refuses else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def sink(self) -> ToHttp:
        """A sink that sends rows to it."""
        address = f"http://127.0.0.1:{self.port}/"
        return ToHttp(base_url=address, content="row", max_retries=0, max_rows_per_payload=50)

    def ids(self) -> Counter[str]:
        """The ids of the rows."""
        return Counter(body["row_id"] for body in self.bodies)


def test_a_receiver_that_is_down_gets_every_row_later_and_holds_up_no_other_sink(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.runtime.stream._STOP_SECONDS", 1.0)
    path = tmp_path / "out.csv"
    with Receiver(refuses=True) as receiver:
        http = receiver.sink()
        with pytest.raises(TransientError) as raised:
            case.run(tmp_path, 8, ToFile(filename=str(path)), http)
        assert "wait in" in str(raised.value)
        assert "The next run with this --state file delivers them" in str(raised.value)
        assert read(path).height == 8 * EVENTS * len(USERS)
        assert receiver.bodies == []
        receiver.refuses = False
        metrics = case.run(tmp_path, FILES, ToFile(filename=str(path)), http)
        assert metrics.stream is not None
        assert metrics.stream.outbox_entries == 0
        assert set(receiver.ids().values()) == {1}
        assert len(receiver.ids()) == case.expected.height
    check(case, path)


def test_a_receiver_that_comes_back_during_the_run_gets_every_row(
    case: Case, tmp_path: Path
) -> None:
    with Receiver(refuses=True) as receiver:

        def come_back() -> None:
            time.sleep(2.5)
            receiver.refuses = False

        threading.Thread(target=come_back, daemon=True).start()
        case.run(tmp_path, FILES, receiver.sink())
        assert len(receiver.ids()) == case.expected.height


def test_rows_of_a_sink_that_was_removed_are_dropped_with_a_warning(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.runtime.stream._STOP_SECONDS", 1.0)
    with Receiver(refuses=True) as receiver, pytest.raises(TransientError):
        case.run(tmp_path, 2, receiver.sink())
    case.run(tmp_path, 3, ToFile(filename=str(tmp_path / "out.csv")))
    assert "were not delivered to `to-http#1" in caplog.text


def test_a_full_outbox_pauses_reading_and_loses_nothing(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.runtime.stream._MEGABYTE", 1)  # --max_outbox in bytes
    with Receiver(refuses=True) as receiver:

        def come_back() -> None:
            while "Reading pauses until they are taken" not in caplog.text:
                time.sleep(0.1)
            receiver.refuses = False

        threading.Thread(target=come_back, daemon=True).start()
        case.run(tmp_path, FILES, receiver.sink(), max_outbox=1)
        assert len(receiver.ids()) == case.expected.height


def test_a_finding_goes_on_after_a_restart(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    for files in (4, FILES):
        case.run(tmp_path, files, ToOcsf(filename=str(path)))
    findings = [json.loads(line) for line in path.read_text().splitlines()]
    latest = {each["finding_info"]["uid"]: each for each in findings}
    assert len(latest) == len(USERS)
    assert {each["count"] for each in latest.values()} == {FILES * EVENTS}
    ids = [each["metadata"]["uid"] for each in findings]
    assert len(set(ids)) == len(ids)


def test_a_data_set_grows_by_files_and_is_continued(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sinks.to_parquet._PART_SECONDS", 0.0)
    folder = tmp_path / "rows"
    for files in (4, 8, FILES):
        case.run(tmp_path, files, ToParquet(folder=str(folder), partition_by=("date",)))
        # What a run has written after its last checkpoint is written again.
        shutil.copy(next(folder.rglob("*.parquet")), folder / "part-99999.parquet")
    (folder / "part-99999.parquet").unlink()
    rows = pl.concat([pl.read_parquet(path) for path in folder.rglob("part-*.parquet")])
    assert rows.height == rows["row_id"].n_unique() == case.expected.height


@pytest.mark.parametrize("state", [True, False])
def test_an_output_without_rows_is_complete_with_and_without_a_state(
    case: Case, tmp_path: Path, *, state: bool
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "none.json").write_text('{"Records": []}')
    names = ("a.csv", "b.csv.gz", "c.json", "d.jsonl.zst")
    sinks = [ToFile(filename=str(tmp_path / name)) for name in names]
    sinks += [
        ToOcsf(filename=str(tmp_path / "e.jsonl.gz")),
        ToEcs(filename=str(tmp_path / "f.jsonl")),
    ]
    sinks += [ToParquet(folder=str(tmp_path / "rows"))]
    store = str(tmp_path / "state.db") if state else None
    options = PipelineOptions(userid_column_name=USER, num_threads=1, state=store)
    Pipeline(case.stages(inputs, 1, tuple(sinks), watch=True), options).run()
    expected = case.expected.columns
    columns = [name for name in expected if name != "row_id"]
    for name in ("a.csv", "b.csv.gz"):
        found = pl.read_csv(tmp_path / name)
        assert (found.height, [x for x in found.columns if x != "row_id"]) == (0, columns)
        assert ("row_id" in found.columns) is state
    assert json.loads((tmp_path / "c.json").read_text()) == []
    assert pl.read_ndjson(tmp_path / "d.jsonl.zst", schema={"a": pl.String}).height == 0
    assert gzip.decompress((tmp_path / "e.jsonl.gz").read_bytes()) == b"\n"
    assert (tmp_path / "f.jsonl").read_bytes() == b"\n"
    [part] = (tmp_path / "rows").rglob("*.parquet")
    assert pl.read_parquet(part).height == 0


def test_the_first_rows_replace_what_an_output_without_rows_has(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sinks.to_parquet._PART_SECONDS", 0.0)
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "none.json").write_text('{"Records": []}')
    csv, lines = (ToFile(filename=str(tmp_path / name)) for name in ("a.csv", "b.jsonl"))
    data_set = ToParquet(folder=str(tmp_path / "rows"), partition_by=("date",))
    case.run(tmp_path, 0, csv, lines, data_set, max_files=1)
    assert (tmp_path / "a.csv").read_text().count("\n") == 1
    for files in (0, 6, FILES):
        case.run(tmp_path, files, csv, lines, data_set, max_files=files + 1)
    check(case, tmp_path / "a.csv")
    rows = (tmp_path / "b.jsonl").read_text().splitlines()
    assert len({json.loads(line)["row_id"] for line in rows}) == len(rows) == case.expected.height
    parts = [pl.read_parquet(path) for path in (tmp_path / "rows").rglob("*.parquet")]
    assert sum(part.height for part in parts) == case.expected.height
    assert all(part.height for part in parts)


def test_a_run_that_writes_to_another_data_set_does_not_go_on_with_the_first_one(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sinks.to_parquet._PART_SECONDS", 0.0)
    old = tmp_path / "old" / "part-00099.parquet"
    old.parent.mkdir()
    pl.DataFrame({"a": [1]}).write_parquet(old)
    case.run(tmp_path, 4, ToParquet(folder=str(tmp_path / "rows")))
    with pytest.raises(UsageError, match=r"`.*old` is not empty"):
        case.run(tmp_path, 8, ToParquet(folder=str(old.parent)))
    assert old.exists()


@pytest.mark.parametrize("is_new_first", [True, False])
def test_a_sink_goes_on_if_others_of_its_kind_are_added_and_removed(
    case: Case, tmp_path: Path, *, is_new_first: bool
) -> None:
    kept, new = (ToFile(filename=str(tmp_path / f"{x}.csv"), overwrite=True) for x in ("a", "b"))
    case.run(tmp_path, 3, kept)
    case.run(tmp_path, 7, *((new, kept) if is_new_first else (kept, new)))
    case.run(tmp_path, FILES, kept)
    check(case, tmp_path / "a.csv")


@pytest.mark.parametrize("is_old", [False, True])
def test_an_output_is_the_same_however_it_is_typed_and_in_whatever_folder(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_old: bool
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    whole = tmp_path / "rows.csv"
    names = ["rows.csv", "sub/../rows.csv", str(whole), whole.as_uri(), "link/rows.csv"]
    for files, name in enumerate(names, 1):
        monkeypatch.chdir(tmp_path)
        case.run(tmp_path, files, ToFile(filename=name))
        if is_old:  # a state of an earlier version
            with sqlite3.connect(tmp_path / "state.db") as db:
                db.execute("DELETE FROM positions WHERE name = '@writes_to'")
    if not is_old:
        monkeypatch.chdir(tmp_path / "sub")
        case.run(tmp_path, files + 1, ToFile(filename="../rows.csv"))
    monkeypatch.chdir(tmp_path)
    case.run(tmp_path, FILES, ToFile(filename="rows.csv"))
    check(case, whole)


def test_the_same_name_in_another_folder_is_another_output(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case.run(tmp_path, 3, ToFile(filename="rows.csv"))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    case.run(tmp_path, 5, ToFile(filename="rows.csv"))
    rows = EVENTS * len(USERS)
    assert read(tmp_path / "rows.csv").height == 3 * rows
    assert read(tmp_path / "sub" / "rows.csv").height == 2 * rows


def test_an_output_that_is_moved_with_its_folder_is_continued_not_replaced(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    monkeypatch.chdir(before)
    case.run(before, 3, ToFile(filename="rows.csv", overwrite=True))
    before.rename(after)
    monkeypatch.chdir(after)
    case.run(after, 5, ToFile(filename="rows.csv", overwrite=True))
    assert read(after / "rows.csv").height == 5 * EVENTS * len(USERS)


def test_a_run_that_is_rejected_does_not_forget_the_outputs_before(
    case: Case, tmp_path: Path
) -> None:
    output, other = tmp_path / "rows.csv", tmp_path / "other.csv"
    other.write_text("mine\n")
    case.run(tmp_path, 3, ToFile(filename=str(output)))
    with pytest.raises(UsageError, match="there is a file"):
        case.run(tmp_path, 5, ToFile(filename=str(other)))
    case.run(tmp_path, FILES, ToFile(filename=str(output)))
    check(case, output)


def test_what_a_killed_run_has_written_after_its_checkpoint_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    file = AppendedFile(path, None)
    file.write(b"a\n")
    position = file.sync()
    file.write(b"b\n")
    file.sync()
    file.close()
    again = AppendedFile(path, position)
    again.write(b"c\n")
    again.sync()
    assert path.read_bytes() == b"a\nc\n"
    again.close()


@pytest.mark.parametrize("rotate", ["rename", "truncate"])
def test_a_file_that_is_rotated_is_followed_by_a_new_one(tmp_path: Path, rotate: str) -> None:
    path = tmp_path / "out.csv"
    file = AppendedFile(path, None)
    file.write(b"a\n")
    file.sync()
    if rotate == "rename":
        path.rename(tmp_path / "out.csv.1")
    else:
        path.write_bytes(b"")
    position = file.sync()
    assert file.is_empty
    file.write(b"b\n")
    file.sync()
    file.close()
    assert path.read_bytes() == b"b\n"
    AppendedFile(path, position).close()
    assert path.read_bytes() == b"", "what came after the position is cut"


@pytest.mark.parametrize("block", ["folder", "file"])
def test_rows_in_a_file_that_was_renamed_are_not_written_again_while_there_can_be_no_new_file(
    tmp_path: Path, block: str
) -> None:
    path = tmp_path / "logs" / "out.csv"
    file = AppendedFile(path, None)
    file.write(b"a\n")
    moved, blocked = tmp_path / "moved", path if block == "file" else path.parent
    path.parent.rename(moved)
    if block == "file":
        path.mkdir(parents=True)
    else:
        blocked.touch()
    position = file.sync()  # `a` is in the renamed file: an error would bring it again
    assert (moved / "out.csv").read_bytes() == b"a\n"
    with pytest.raises(TransientError, match="Cannot write"):
        file.write(b"b\n")
    assert file.sync() == position
    blocked.rmdir() if blocked.is_dir() else blocked.unlink()
    file.write(b"b\n")
    file.sync()
    file.close()
    assert path.read_bytes() == b"b\n"
    again = AppendedFile(path, position)
    again.close()
    assert path.read_bytes() == b"b\n", "the position is not one of the new file"


def test_a_stream_without_state_writes_what_one_run_writes(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    stages = case.stages(case.folder / "logs", FILES, (ToFile(filename=str(output)),), watch=True)
    Pipeline(stages, PipelineOptions(userid_column_name=USER)).run()
    assert read(output).equals(case.expected)


def start(case: Case, place: Path) -> subprocess.Popen[bytes]:
    """Start a command that watches a folder."""
    words = [
        *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={USER}"),
        *(f"--state={place}/state.db", "--checkpoint_interval=0.05"),
        *("from-cloudtrail", f"--input_glob={place}/in/*.json", "--watch_directory=true"),
        *("--batch_timeout=0.1", "train-ae", f"--pretrained_filename={case.folder}/models"),
        *("preprocess", "inf-pytorch", "add-scores", "--label=ae_anomaly_score", "--label=risk"),
        *("timeseries", "--resolution=10m", "--causal", "--zscore_threshold=2.0", "explain"),
        *("serialize", "to-file", f"--filename={place}/out.csv"),
    ]
    main = "from morpheus.cli.main import main; main()"
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", main, *words], stderr=log)


@pytest.fixture
def inputs(case: Case, tmp_path: Path) -> Iterator[Path]:
    """The files of the case, one after the other, put into the folder that is watched."""
    (tmp_path / "in").mkdir()
    return iter(sorted((case.folder / "logs").iterdir()))


def test_a_command_that_is_killed_again_and_again_writes_each_row_once(
    case: Case, tmp_path: Path, inputs: Iterator[Path]
) -> None:
    rng = random.Random(SEED)  # noqa: S311 - a seed, no secret
    process, kills, left = start(case, tmp_path), 0, True
    while left or kills < KILLS:
        time.sleep(rng.uniform(0.2, 1.6))
        new = next(inputs, None)
        left = new is not None
        if new is not None:
            shutil.copy(new, tmp_path / "in" / ".copy")
            (tmp_path / "in" / ".copy").rename(tmp_path / "in" / new.name)
        if kills < KILLS and rng.random() < 0.7:
            process.kill()
            process.wait()
            kills += 1
            process = start(case, tmp_path)
    wait_for_rows(tmp_path / "out.csv", case.expected.height)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130, (tmp_path / "log.txt").read_text()
    check(case, tmp_path / "out.csv")


@pytest.mark.parametrize("has_rows", [False, True])
def test_a_run_that_is_killed_soon_after_its_first_start_goes_on_with_its_own_file(
    case: Case, tmp_path: Path, inputs: Iterator[Path], *, has_rows: bool
) -> None:
    out, (*first, last) = tmp_path / "out.csv", inputs
    for path in first:
        shutil.copy(path, tmp_path / "in" / path.name)
    process, end = start(case, tmp_path), time.monotonic() + 60
    while not out.exists() or (has_rows and not out.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    process = start(case, tmp_path)
    shutil.copy(last, tmp_path / "in" / last.name)
    wait_for_rows(out, case.expected.height)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130, (tmp_path / "log.txt").read_text()
    check(case, out)


def wait_for_rows(path: Path, rows: int) -> None:
    end = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") <= rows:
        assert time.monotonic() < end, path.read_bytes().count(b"\n") if path.exists() else "none"
        time.sleep(0.1)
