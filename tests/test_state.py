"""Saved state: consecutive runs with `--state` together give what one run over all days gives."""

from __future__ import annotations

import gzip
import json
import logging
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path

import polars as pl
import pytest

from morpheus.core.batch import Batch, RunMetrics, Scored, Table
from morpheus.core.stage import PipelineOptions, Stage, StageContext, Transform
from morpheus.core.state import State, StateKey, part_key
from morpheus.errors import ModelCorruptedError, RecordError, TransientError, UsageError
from morpheus.pipeline import Pipeline
from morpheus.runtime.chain import Segment
from morpheus.runtime.states import MemoryStateStore, SqliteStateStore, StateStore
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.watcher import DirectoryWatcher, FilePart
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from morpheus.testing import make_events, make_scored

ROOT = Path(__file__).parents[1]
ROLE = "userIdentitysessionContextsessionIssueruserName"
ATTACK = ROOT.parent / "shared" / "data" / "cloudtrail-attack"
FLEET = ("--users=20", "--days=10", "--training=7", "--rate=4", "--seed=7", "--form=json")
FEATURES = "\n".join(
    (
        *("eventName", "eventSource", "sourceIPAddress", "userAgent", "logcount"),
        *("locincrement", "errorclass", "new:eventName", "new:addressnetwork", "new:agentfamily"),
        *("previous:eventName", "previous:errorclass"),
    )
)
SCORES = ("ae_anomaly_score", "risk", "incident_score", "pvalue", "severity")
WRITTEN = ("", *SCORES, "reason", "explanation", "ts_anomaly")
CAUSAL = Timeseries(causal=True, hot_start=True, zscore_threshold=3.0)


@dataclass(frozen=True)
class Case:
    """Logs of some days, and how they are scored.

    Attributes:
        days: Files of each day, in the order in which they happened.
        train: Where the fingerprints come from.
        user: The user column.
        columns_file: The feature list.
        num_threads: Number of workers.
        timeseries: How time-series anomalies are found.
    """

    days: tuple[tuple[Path, ...], ...]
    train: TrainAe
    user: str = ROLE
    columns_file: str | None = None
    num_threads: int = 1
    timeseries: Timeseries = CAUSAL

    def run(
        self,
        folder: Path,
        days: Sequence[Sequence[Path]],
        state: Path | None = None,
        **options: object,
    ) -> tuple[pl.DataFrame, RunMetrics]:
        """Score the files of some days in one run."""
        source = folder / "input"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for number, path in enumerate(path for day in days for path in day):
            shutil.copy(path, source / f"{number:05}-{path.name}")
        output = folder / "output.csv"
        stages = [
            FromCloudtrail(input_glob=str(source), **options),  # type: ignore[arg-type]
            self.train,
            Preprocess(),
            InfPytorch(),
            AddScores(label=SCORES),
            self.timeseries,
            Explain(),
            Serialize(),
            ToFile(filename=str(output), overwrite=True),
        ]
        settings = PipelineOptions(
            userid_column_name=self.user,
            columns_file=self.columns_file,
            num_threads=self.num_threads,
            state=None if state is None else str(state),
        )
        metrics = Pipeline(stages, settings).run()
        return pl.read_csv(output, infer_schema=False), metrics

    def run_daily(self, folder: Path, state: Path) -> pl.DataFrame:
        """Score each day in a run of its own."""
        frames = [self.run(folder, [day], state)[0] for day in self.days]
        return self.sort(pl.concat(frames))

    def run_watching(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, state: Path | None = None
    ) -> pl.DataFrame:
        """Score a folder into which the files of one day after the other come."""

        def micro_batches(watcher: DirectoryWatcher) -> Iterator[list[FilePart]]:
            found = iter(sorted(watcher.list_files()))
            for day in self.days:
                yield [FilePart(next(found)) for _ in day]

        with monkeypatch.context() as patch:
            patch.setattr(DirectoryWatcher, "iter_micro_batches", micro_batches)
            return self.sort(self.run(folder, self.days, state, watch_directory=True)[0])

    def run_once(self, folder: Path) -> pl.DataFrame:
        """Score all days in one run."""
        return self.sort(self.run(folder, self.days)[0])

    def sort(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Sort rows by user and row number: the order of users differs between runs."""
        user = "actor" if self.user == "@actor" else self.user
        # Only endless runs with state have ids of rows.
        return rows.drop("row_id", strict=False).sort(pl.col(user), pl.col("").cast(pl.Int64))


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The input of the lessons, cut into days, and the models that the lessons train."""
    folder = tmp_path_factory.mktemp("lessons")
    for path in sorted((ROOT / "examples" / "data" / "input-data").glob("*.csv")):
        rows = pl.read_csv(path, infer_schema=False)
        for (day,), part in rows.group_by(pl.col("eventTime").str.head(10)):
            (folder / "days" / str(day)).mkdir(parents=True, exist_ok=True)
            part.write_csv(folder / "days" / str(day) / path.name)
    days = tuple(tuple(sorted(day.iterdir())) for day in sorted((folder / "days").iterdir()))
    training = str(ROOT / "examples" / "data" / "training-data" / "*.csv")
    return save_models(folder, Case(days, TrainAe(train_data_glob=training, seed=42)))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Days of twenty users, whose events interleave, and of events without a user."""
    folder = tmp_path_factory.mktemp("fleet")
    script = ROOT / "examples" / "make_fleet.py"
    subprocess.run([sys.executable, script, "--into", folder, *FLEET], check=True, timeout=60)
    (folder / "features.txt").write_text(FEATURES)
    files = sorted((folder / "json").rglob("*.json.gz"), key=day_of)
    days = []
    for day, found in groupby(files, key=day_of):
        paths = list(found)
        record = json.loads(gzip.decompress(paths[0].read_bytes()))["Records"][0]
        no_user = {**record, "userIdentity": {}, "eventID": f"{record['eventID'][:-2]}ff"}
        paths.append(folder / f"nobody-{day}.jsonl")
        paths[-1].write_text(json.dumps(no_user))
        days.append(tuple(paths))
    train = TrainAe(train_data_glob=str(folder / "json" / "training"), seed=7, train_epochs=2)
    case = Case(tuple(days), train, columns_file=str(folder / "features.txt"))
    return save_models(folder, case)


def day_of(path: Path) -> str:
    """The day of a log file in AWS's folders."""
    return "-".join(path.parts[-4:-1])


def save_models(folder: Path, case: Case) -> Case:
    """Train once; returns the case with the saved models."""
    models = str(folder / "models")
    train = replace(case.train, models_output_filename=models)
    replace(case, train=train).run(folder, case.days[:1])
    return replace(case, train=TrainAe(pretrained_filename=models))


def require_equal(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Compare all that is written, text by text."""
    assert found.columns == expected.columns
    assert set(WRITTEN) <= set(found.columns)
    different = [name for name in expected.columns if not found[name].equals(expected[name])]
    assert (found.height, different) == (expected.height, [])


def test_daily_runs_and_a_watched_folder_give_what_one_run_gives_for_the_lessons(
    lessons: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = lessons.run_once(tmp_path)
    assert once.height == 1161
    assert once["ts_anomaly"].value_counts().height == 2
    require_equal(lessons.run_daily(tmp_path, tmp_path / "state.db"), once)
    require_equal(lessons.run_watching(tmp_path, monkeypatch), once)


def test_daily_runs_judge_the_rate_of_events_as_one_run_does(lessons: Case, tmp_path: Path) -> None:
    rate = Timeseries(detector="rate", flags_per_week=2.0)
    case = replace(lessons, timeseries=rate)
    once = case.run_once(tmp_path)
    assert once["ts_anomaly"].value_counts().height == 2
    assert once["rate_pvalue"].null_count() == 0
    assert once["rate_pvalue"].n_unique() > 30
    require_equal(case.run_daily(tmp_path, tmp_path / "state.db"), once)


def test_daily_runs_that_train_on_the_same_files_give_what_one_run_gives(
    lessons: Case, tmp_path: Path
) -> None:
    training = str(ROOT / "examples" / "data" / "training-data" / "*.csv")
    days = (sum(lessons.days[:9], ()), sum(lessons.days[9:], ()))
    case = replace(lessons, train=TrainAe(train_data_glob=training, seed=42), days=days)
    require_equal(case.run_daily(tmp_path, tmp_path / "state.db"), case.run_once(tmp_path))


def test_daily_runs_and_a_watched_folder_give_what_one_run_gives_for_a_fleet(
    fleet: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = fleet.run_once(tmp_path)
    assert once[ROLE].n_unique() > 15
    assert once[ROLE].null_count() == len(fleet.days)
    new = ("new:eventName", "new:addressnetwork", "new:agentfamily")
    assert "True" in set().union(*(once[name].to_list() for name in new))
    assert once["eventName"].n_unique() > once["previous:eventName"].n_unique() // 2 > 5
    assert once["logcount"].cast(pl.Int64).max() > 3
    require_equal(fleet.run_daily(tmp_path, tmp_path / "state.db"), once)
    require_equal(fleet.run_watching(tmp_path, monkeypatch), once)
    halves = [fleet.days[:2], fleet.days[2:]]
    state = tmp_path / "watched.db"
    parts = [
        replace(fleet, days=days).run_watching(tmp_path, monkeypatch, state) for days in halves
    ]
    # The second run goes on with the output of the first one.
    require_equal(parts[-1], once)


WORK = [("GetObject", "s3"), ("PutObject", "s3"), ("ListUsers", "iam"), ("RunInstances", "ec2")]
INTRUDER_ACTIONS = [
    ("DeleteTrail", "cloudtrail"),
    ("CreateUser", "iam"),
    ("GetSecretValue", "secrets"),
]
TRAINING_DAYS, SCORED_DAYS = 15, 20


def write_day(path: Path, number: int, rng: random.Random) -> list[dict[str, object]]:
    """Write a day of four users. On some days one has events of somebody else, and one is away."""
    start = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(days=number)
    records: list[dict[str, object]] = []
    for user, address in (("ann", "10.0.0.1"), ("bob", "10.0.0.2"), ("cy", "10.1.0.3"), ("di", "")):
        if user == "cy" and number % 3 == 0:
            continue
        is_strange = number >= TRAINING_DAYS and (number, user) in {(17, "ann"), (24, "bob")}
        for event in range(rng.randint(12, 18)):
            actions = INTRUDER_ACTIONS if is_strange and event > 8 else WORK
            name, service = rng.choices(actions, range(len(actions), 0, -1))[0]
            # On later days one user has a new value that stays, and each day a new address.
            moved = user == "bob" and number >= TRAINING_DAYS + 4
            records.append(
                {
                    "eventTime": (start + timedelta(minutes=70 * event)).isoformat()[:19] + "Z",
                    "eventName": name,
                    "eventSource": f"{service}.amazonaws.com",
                    "sourceIPAddress": address or f"10.9.{number}.{event % 3}",
                    "userAgent": "browser" if moved else "cli",
                    "userIdentity": {"type": "IAMUser", "userName": user},
                    "eventID": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                }
            )
    records.sort(key=lambda record: str(record["eventTime"]))
    path.write_text(json.dumps({"Records": records}))
    return records


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Twenty days of four users, and models of the fifteen days before."""
    folder = tmp_path_factory.mktemp("office")
    rng = random.Random(5)  # noqa: S311 - made-up logs, not secrets
    for number in range(TRAINING_DAYS):
        (folder / "training").mkdir(exist_ok=True)
        write_day(folder / "training" / f"{number:02}.json", number, rng)
    paths = [folder / f"{number:02}.json" for number in range(TRAINING_DAYS, TRAINING_DAYS + 20)]
    for number, path in enumerate(paths, start=TRAINING_DAYS):
        write_day(path, number, rng)
    features = ("eventName", "eventSource", "sourceIPAddress", "userAgent", "logcount")
    (folder / "features.txt").write_text("\n".join(features))
    train = TrainAe(train_data_glob=str(folder / "training"), train_min_history=100, train_epochs=3)
    case = Case(
        tuple((path,) for path in paths),
        train,
        user="userIdentityuserName",
        columns_file=str(folder / "features.txt"),
    )
    return save_models(folder, case)


def test_twenty_daily_runs_give_the_scores_and_reasons_of_one_run(
    office: Case, tmp_path: Path
) -> None:
    once = office.run_once(tmp_path)
    for name in SCORES:
        assert once[name].n_unique() > 10, "there is something to compare"
    assert (once["severity"].cast(pl.Float64) > 90).any()
    assert once["reason"].n_unique() > 10
    require_equal(office.run_daily(tmp_path, tmp_path / "state.db"), once)


def test_runs_that_divide_days_give_the_scores_and_reasons_of_one_run(
    office: Case, tmp_path: Path
) -> None:
    parts: list[tuple[Path, ...]] = []
    for (path,) in office.days[:6]:
        records = json.loads(path.read_text())["Records"]
        for cut in (records[: len(records) // 2], records[len(records) // 2 :]):
            parts.append((tmp_path / f"{len(parts):02}.json",))
            parts[-1][0].write_text(json.dumps({"Records": cut}))
    case = replace(office, days=tuple(parts))
    require_equal(case.run_daily(tmp_path, tmp_path / "state.db"), case.run_once(tmp_path))


def test_a_value_that_stays_is_learned_from_day_to_day(office: Case, tmp_path: Path) -> None:
    daily = office.run_daily(tmp_path, tmp_path / "state.db")
    moved = daily.filter(pl.col("userIdentityuserName") == "bob", pl.col("userAgent") == "browser")
    by_day = moved.group_by(pl.col("eventTime").str.head(10), maintain_order=True).agg(
        pl.col("risk").cast(pl.Float64).mean()
    )
    assert (by_day["risk"][-4:] < by_day["risk"][0] / 3).all()


@pytest.mark.skipif(not ATTACK.exists(), reason="no ../shared/data/cloudtrail-attack")
def test_consecutive_runs_give_what_one_run_gives_for_an_attack(tmp_path: Path) -> None:
    records = [
        record
        for path in sorted(ATTACK.rglob("*.json.gz"))
        for record in json.loads(gzip.decompress(path.read_bytes()))["Records"]
    ]
    records.sort(key=lambda record: str(record["eventTime"]))
    times = [record["eventTime"] for record in records]
    days = []
    edges = [0, times.index(times[len(times) // 3]), times.index(times[len(times) // 2]), None]
    for number, (start, end) in enumerate(pairwise(edges)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"Records": records[start:end]}))
        days.append((path,))
    case = Case(tuple(days), TrainAe(train_min_history=50, train_epochs=2), user="@actor")
    models = str(tmp_path / "models")
    replace(case, train=replace(case.train, models_output_filename=models)).run_once(tmp_path)
    case = replace(case, train=TrainAe(pretrained_filename=models))
    require_equal(case.run_daily(tmp_path, tmp_path / "state.db"), case.run_once(tmp_path))


def test_events_of_an_earlier_run_are_duplicates(fleet: Case, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    first, _ = fleet.run(tmp_path, fleet.days[:1], state)
    again, metrics = fleet.run(tmp_path, fleet.days[:2], state)
    assert metrics.input.duplicates == first.height
    expected, _ = fleet.run(tmp_path, fleet.days[:2])
    assert first.height + again.height == expected.height
    require_equal(fleet.sort(pl.concat([first, again])), fleet.sort(expected))


def test_a_failed_run_leaves_the_state_as_it_was(fleet: Case, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    first, _ = fleet.run(tmp_path, fleet.days[:1], state)
    before = states_in(state)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"eventTime": ')
    with pytest.raises(RecordError):
        fleet.run(tmp_path, [(*fleet.days[1], bad)], state)
    assert states_in(state) == before
    second, _ = fleet.run(tmp_path, fleet.days[1:2], state)
    expected, _ = fleet.run(tmp_path, fleet.days[:2])
    require_equal(fleet.sort(pl.concat([first, second])), fleet.sort(expected))


def test_a_run_whose_sink_fails_at_the_end_leaves_the_state_as_it_was(
    lessons: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.db"
    lessons.run(tmp_path, lessons.days[:1], state)
    before = states_in(state)

    def fail(*_: object) -> None:
        raise TransientError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(ToFile, "commit", fail)
        with pytest.raises(TransientError, match="disk is full"):
            lessons.run(tmp_path, lessons.days[1:2], state)
    assert states_in(state) == before
    lessons.run(tmp_path, lessons.days[1:2], state)
    assert states_in(state) != before


def test_users_who_are_absent_keep_their_state(lessons: Case, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    files = {path.stem: path for day in lessons.days[1:2] for path in day}
    lessons.run(tmp_path, [[files["user123"]]], state)
    before = states_in(state)
    lessons.run(tmp_path, [[files["role-g"]]], state)
    after = states_in(state)
    assert {user for _, user in before} == {"=user123"}
    assert {user for _, user in after} == {"=user123", "=role-g"}
    assert {key: after[key] for key in before} == before


def states_in(path: Path) -> dict[tuple[str, str], bytes]:
    """The states in a state file, by stage and user."""
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT stage, user, data FROM states").fetchall()
    database.close()
    return {(stage, user): data for stage, user, data in rows}


def test_a_state_file_can_be_read_by_its_owner_only_and_leaves_no_other_files(
    lessons: Case, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    lessons.run(tmp_path, lessons.days[:1], state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("state*")] == ["state.db"]


CONFIG = {"source": "from-cloudtrail", "--userid_column_name": "user", "--columns_file": ["a", "b"]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A state file with one state."""
    path = tmp_path / "state.db"
    store = SqliteStateStore(path, CONFIG)
    store.save({StateKey("explain#1", "ann"): bytes(range(256)) * 300})
    store.commit()
    store.close()
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "from-duo"}, "another source: from-cloudtrail then, from-duo now"),
        ({"--userid_column_name": "who"}, "another --userid_column_name: user then, who now"),
        ({"--columns_file": ["a", "c"]}, "another --columns_file: b then, c now"),
        ({"--columns_file": ["b", "a"]}, "another --columns_file: another order then"),
    ],
)
def test_a_state_file_of_other_options_is_rejected(
    saved: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        SqliteStateStore(saved, {**CONFIG, **change})
    text = str(raised.value)
    assert text.startswith(f"--state: `{saved}` was written with {message}")
    assert text.endswith("Use the same options, or give another --state file.")
    SqliteStateStore(saved, CONFIG).close()


def test_a_state_that_is_saved_is_no_failure_if_the_file_cannot_grow(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size, (soft, hard) = saved.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    key, data = StateKey("explain#1", "bob"), bytes(size // 2)
    store = SqliteStateStore(saved, CONFIG)
    store.save({key: data})
    store.commit()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"All that was saved is in it and in `{saved.name}-wal`" in caplog.text
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        assert store.load(["bob"]) == {key: data}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_removed_is_overwritten_or_an_error_says_that_it_is_not(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.runtime.states._LOCK_SECONDS", 0.05)
    content = bytes(range(256)) * 3
    with closing(sqlite3.connect(saved, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM states").fetchone()
        with (
            closing(SqliteStateStore(saved, CONFIG)) as store,
            pytest.raises(TransientError, match="is being read by another process, so what was"),
        ):
            store.remove(["ann"])
        assert content in saved.read_bytes()
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        store.remove(["ann"])
        assert content not in saved.read_bytes()


def read_format(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        [(found,)] = database.execute("SELECT value FROM meta WHERE key = 'format'")
        return str(found)


def write_format(path: Path, found: int) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'format'", [str(found)])


def test_a_file_of_an_earlier_format_is_read_and_gets_the_latest_one_with_a_commit(
    saved: Path,
) -> None:
    write_format(saved, 2)
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        before = store.load(["ann"])
    assert read_format(saved) == "2"
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        store.commit()
    assert read_format(saved) == "3"
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        assert store.load(["ann"]) == before != {}


def test_parts_between_the_states_of_an_earlier_format_are_found(saved: Path) -> None:
    part, state = part_key("ann", 3), StateKey("explain#1", "ann")
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        store.save({part: b"seen", state: b"own"})
        store.commit()
    with closing(sqlite3.connect(saved)) as database, database:
        database.execute("INSERT INTO states SELECT * FROM parts")
        database.execute("DELETE FROM parts")
    write_format(saved, 2)
    with closing(SqliteStateStore(saved, CONFIG)) as store:
        assert list(store.load_parts("ann", [3])) == [b"seen"]
        assert part not in store.load(["ann"], with_parts=False)
        assert store.load(["ann"])[state] == b"own"


@pytest.mark.parametrize("found", [1, 4])
def test_a_file_of_an_unknown_format_is_rejected(saved: Path, found: int) -> None:
    write_format(saved, found)
    with pytest.raises(UsageError, match=f"format {found}, and this release reads 2 and 3. Use"):
        SqliteStateStore(saved, CONFIG)
    assert read_format(saved) == str(found)


def write_text(path: Path) -> None:
    path.write_text("eventTime,eventName\n" * 100)


def write_other_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


def change_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.rindex(bytes(range(256)))  # in the state
    content[start : start + 10] = bytes(10)
    path.write_bytes(content)


def overwrite_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:16384] = bytes([255]) * 12288
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [write_text, write_other_database, truncate, change_bytes, overwrite_page]
)
def test_a_damaged_file_and_a_file_of_something_else_are_rejected(
    saved: Path, damage: Callable[[Path], None]
) -> None:
    damage(saved)
    before = saved.read_bytes()
    with pytest.raises(UsageError) as raised:
        load_everything(saved)
    text = str(raised.value)
    assert text.startswith(f"--state: `{saved}` is not a state file of morpheus, or is damaged: ")
    assert text.endswith(
        "Give another file name. To start again from the first input, delete the file."
    )
    assert saved.read_bytes() == before


def load_everything(path: Path) -> None:
    store = SqliteStateStore(path, CONFIG)
    try:
        store.load(["ann"])
    finally:
        store.close()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("", "Is a directory"),
        ("missing/state.db", "No such file or directory"),
        ("text/state.db", "Not a directory"),
    ],
)
def test_a_place_that_cannot_hold_a_file_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "text").write_text("")
    with pytest.raises(UsageError) as raised:
        SqliteStateStore(tmp_path / place, CONFIG)
    assert str(raised.value) == (
        f"--state: `{tmp_path / place}` cannot be opened: {reason}. Give a file in a folder that "
        "exists and can be written."
    )


def test_a_read_only_file_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def connect_read_only(path: Path, **options: object) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("morpheus.runtime.states.sqlite3.connect", connect_read_only)
    with pytest.raises(TransientError) as raised:
        SqliteStateStore(saved, CONFIG)
    assert str(raised.value) == (
        f"--state: `{saved}`: attempt to write a readonly database. Check that the file and its "
        "folder can be written, and that the disk has space."
    )


def test_a_file_that_is_moved_while_a_run_has_it_open_is_a_warning(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStateStore(saved, CONFIG)
    store.commit()
    assert not caplog.messages
    saved.rename(tmp_path / "moved.db")
    store.commit()
    assert "was moved, removed or replaced while this run has it open" in caplog.text
    caplog.clear()
    (tmp_path / "moved.db").rename(saved)
    store.commit()
    store.close()
    assert not caplog.messages


def test_a_file_in_use_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morpheus.runtime.states._LOCK_SECONDS", 0.1)
    store = SqliteStateStore(saved, CONFIG)
    with pytest.raises(TransientError) as raised:
        SqliteStateStore(saved, CONFIG)
    assert str(raised.value) == (
        f"--state: `{saved}` is in use by another run. Wait until it has ended."
    )
    store.close()
    SqliteStateStore(saved, CONFIG).close()


def test_the_command_ends_with_one_line_and_an_exit_code(lessons: Case, tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("not a database, but long enough to be read as one " * 9)
    command = (
        *(sys.executable, "-m", "morpheus", "run", "--num_threads=1", "pipeline-ae"),
        *(f"--userid_column_name={ROLE}", "--state=state.db"),
        *("from-cloudtrail", f"--input_glob={lessons.days[0][0]}"),
        *("train-ae", f"--pretrained_filename={lessons.train.pretrained_filename}"),
        *("preprocess", "inf-pytorch", "add-scores", "serialize", "to-file", "--filename=o.csv"),
    )
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Error: --state: `state.db` is not a state file of morpheus" in done.stderr
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("store_of", [lambda _: MemoryStateStore(), SqliteStateStore])
def test_a_store_keeps_what_was_committed(
    store_of: Callable[..., StateStore], tmp_path: Path
) -> None:
    is_memory = not isinstance(store_of, type)
    store = store_of(tmp_path / "s.db") if is_memory else store_of(tmp_path / "s.db", CONFIG)
    no_user, empty, ann = (StateKey("count#1", user) for user in (None, "", "ann"))
    store.save({no_user: b"1", empty: b"2", ann: b"3"})
    store.save({ann: b"4", StateKey("source", "ann"): b"5"})
    store.commit()
    store.save({ann: b"dropped"})
    store.close()
    if not is_memory:
        store = store_of(tmp_path / "s.db", CONFIG)
    assert store.load([None, ""]) == {no_user: b"1", empty: b"2"}
    assert store.load(["ann", "bob"]) == {ann: b"4", StateKey("source", "ann"): b"5"}
    assert store.load_stage("count#1") == {no_user: b"1", empty: b"2", ann: b"4"}
    store.close()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Filter(alerts_per_day=1), "`filter` works per run: --alerts_per_day divides"),
        (Timeseries(), "`timeseries` works per run: windows reach past the end of a run. Use"),
        (TrainAe(), "`train-ae` works per run: it trains on the input of each run. Give"),
        (Timeseries(causal=True), ""),
        (Timeseries(detector="rate"), ""),
        (Filter(threshold=1.0), ""),
        (TrainAe(train_data_glob="training/*.csv"), ""),
    ],
)
def test_stages_that_work_per_run_are_named(
    stage: Stage, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    train = stage if isinstance(stage, TrainAe) else TrainAe(train_data_glob="training/*.csv")
    between = () if stage is train else (stage,)
    stages = (
        *(FromCloudtrail(input_glob="input/*.csv"), train, Preprocess(), InfPytorch()),
        *(AddScores(label=("risk",)), *between, Serialize(), ToFile(filename="o.csv")),
    )
    with caplog.at_level(logging.WARNING):
        Pipeline(stages, PipelineOptions(state="state.db")).validate()
    found = [text for text in caplog.messages if text.startswith("--state:")]
    assert len(found) == bool(message)
    assert all(message in text for text in found)
    caplog.clear()
    Pipeline(stages, PipelineOptions()).validate()
    assert not [text for text in caplog.messages if text.startswith("--state:")]


def test_a_stage_that_holds_events_is_rejected_on_an_endless_run_with_a_state() -> None:
    source = FromCloudtrail(input_glob="input/*.csv", watch_directory=True)
    scored = (Preprocess(), InfPytorch(), AddScores())
    stages = (
        *(source, TrainAe(train_data_glob="training/*.csv"), *scored, Timeseries()),
        *(Serialize(), ToFile(filename="o.csv")),
    )
    message = "`timeseries` would lose the events that wait .*`timeseries --causal`"
    with pytest.raises(UsageError, match=message):
        Pipeline(stages, PipelineOptions(state="state.db")).validate()
    Pipeline(stages, PipelineOptions()).validate()


def test_a_budget_of_an_endless_run_is_not_per_run(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (logs := tmp_path / "logs").mkdir()
    stages = (
        FromCloudtrail(input_glob=str(logs), watch_directory=True),
        TrainAe(train_data_glob="training/*.csv"),
        *(Preprocess(), InfPytorch(), AddScores(label=("risk",)), Filter(alerts_per_day=1)),
        *(Serialize(), ToFile(filename=str(tmp_path / "o.csv"))),
    )
    Pipeline(stages, PipelineOptions(state=str(tmp_path / "state.db"))).validate()
    assert not [text for text in caplog.messages if "per run" in text]


def test_counts_of_other_bins_are_rejected() -> None:
    stage = Timeseries(causal=True, resolution="1 h")
    state = stage.open(StageContext())
    batch = make_scored(make_events([0, 1]))
    list(stage.process(batch, state))
    with pytest.raises(UsageError, match="counts of bins of 3600 seconds, and --resolution is 10m"):
        list(replace(stage, resolution="10m").process(batch, state))


def test_a_state_of_the_other_detector_is_rejected() -> None:
    batch = make_scored(make_events([0, 1]))
    detectors = Timeseries(causal=True), Timeseries(detector="rate")
    for stage, other in (detectors, detectors[::-1]):
        segment = replace(Segment.from_stages([stage]), saves=True)
        opened = segment.open({})
        list(opened.run([batch]))
        with pytest.raises(ModelCorruptedError, match=r"cannot be read: .* Delete the state file"):
            list(
                replace(Segment.from_stages([other]), saves=True).open(opened.changed).run([batch])
            )


class Count(State):
    events: int = 0


@dataclass(frozen=True)
class Hold(Transform):
    """Hold all batches until the end."""

    name = "hold"
    takes = (Scored,)

    def open(self, context: StageContext) -> list[Batch]:
        return []

    def process(self, batch: Batch, state: list[Batch]) -> Iterator[Batch]:
        state.append(batch)
        yield from ()

    def flush(self, state: list[Batch]) -> Iterator[Batch]:
        yield from state


@dataclass(frozen=True)
class CountEvents(Transform):
    """Count the events of each user."""

    name = "count"
    takes = (Scored,)

    def open(self, context: StageContext) -> Count:
        return Count()

    def process(self, batch: Batch, state: Count) -> Iterator[Batch]:
        state.events += batch.table.height
        number = pl.lit(state.events).alias("number")
        yield replace(batch, table=Table(batch.table.to_frame().with_columns(number)))


@pytest.mark.parametrize("unbounded", [False, True])
def test_a_state_is_restored_for_a_stage_whose_batches_are_held_back(
    unbounded: bool,  # noqa: FBT001 - a case
) -> None:
    segment = Segment.from_stages([Hold(), CountEvents()], unbounded=unbounded)
    store = MemoryStateStore()
    users = ("ann", "bob", None)
    for events in (2, 4):
        batches = [make_scored(make_events([0, 1]), user=user) for user in users]
        out = list(replace(segment, saves=True).open().run(batches, store))
        assert [(each.user, each.table["number"][0]) for each in out] == [
            (user, events) for user in users
        ]
        store.commit()
