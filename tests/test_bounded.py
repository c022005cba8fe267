"""Nothing that an endless run holds in memory grows with the number of users it has seen."""

from __future__ import annotations

import gc
import json
import shutil
import sqlite3
import time
import types
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.cli.output import format_metrics
from morpheus.core.batch import Batch, MicroBatch, RunMetrics, Table
from morpheus.core.stage import PipelineOptions, Values
from morpheus.core.state import StateKey, part_key
from morpheus.errors import UsageError
from morpheus.features.encoder import EncodedSlice
from morpheus.pipeline import Pipeline
from morpheus.runtime.states import SqliteStateStore
from morpheus.runtime.stream import Stream
from morpheus.sinks.alert_files import ToOcsf
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from test_late import FromChunks

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
ISSUER = "userIdentitysessionContextsessionIssueruserName"
USERS, CHUNK, LIVE = 400, 80, 40
LIMIT = 190
"""More entries than a structure may have: less than half of the users."""


def event(number: int, user: str, time: datetime) -> str:
    """An event, as JSON."""
    return json.dumps(
        {
            "eventTime": f"{time:%Y-%m-%dT%H:%M:%SZ}",
            "eventName": ("Get", "Put", "List")[number % 3],
            "sourceIPAddress": f"10.0.0.{number % 4}",
            "userIdentity": {"type": "IAMUser", "userName": user},
            "eventID": str(uuid.UUID(int=number, version=4)),
        }
    )


@dataclass(frozen=True)
class FromMeasured(FromChunks):
    """Looks at all that the run holds, when all events have passed."""

    name = "from-measured"

    found: tuple[list[str], ...] = ()

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read one file after the other, and then measure."""
        yield from super().micro_batches(training_input, metrics, offsets)
        self.found[0].extend(["measured", *large_structures()])


def large_structures() -> Iterator[str]:
    """Name the containers with too many entries that the run reaches."""
    gc.collect()  # the training before this run has left objects
    roots = [x for x in gc.get_objects() if issubclass(type(x), Stream | RunMetrics)]
    paths = [(root, type(root).__name__) for root in roots]
    seen = {id(root) for root in roots}
    while paths:
        item, path = paths.pop()
        size = item.height if isinstance(item, pl.DataFrame) else 0
        if isinstance(item, dict | list | set | frozenset | tuple):
            size = len(item)
        if size > LIMIT:
            yield f"{path}: {size} in a {type(item).__name__}"
            continue
        for name, part in parts_of(item):
            skipped = types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType
            if id(part) not in seen and not isinstance(part, skipped):
                seen.add(id(part))
                paths.append((part, f"{path}.{name}"))


def parts_of(item: object) -> Iterator[tuple[object, object]]:
    """The parts of an object, with their names."""
    if isinstance(item, dict):
        yield from item.items()
    elif isinstance(item, list | tuple | set | frozenset):
        yield from enumerate(item)
    elif type(item).__module__.startswith(("morpheus", "collections")):
        slots = getattr(type(item), "__struct_fields__", ())
        yield from ((name, getattr(item, name)) for name in slots)
        yield from getattr(item, "__dict__", {}).items()
    elif isinstance(item, types.GeneratorType) and item.gi_frame is not None:
        yield from item.gi_frame.f_locals.items()


def make_models(folder: Path) -> str:
    """Train on the events of a few users, and save the fingerprints."""
    (folder / "training").mkdir()
    lines = [event(n, f"user-{n % 2:05}", START - timedelta(hours=n)) for n in range(700)]
    (folder / "training" / "a.jsonl").write_text("\n".join(lines))
    train = TrainAe(
        train_data_glob=str(folder / "training"),
        models_output_filename=str(folder / "models"),
        train_epochs=1,
    )
    options = PipelineOptions(
        userid_column_name="userIdentityuserName",
        columns_file=str(folder / "features.txt"),
        num_threads=1,
    )
    Pipeline([FromCloudtrail(input_glob=str(folder / "training")), train], options).run()
    return str(folder / "models")


def test_no_structure_grows_with_the_number_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.runtime.stream._MAX_NAMED_USERS", LIVE)
    (tmp_path / "chunks").mkdir()
    (tmp_path / "features.txt").write_text("eventName\nsourceIPAddress\nnew:eventName")
    for first in range(0, USERS, CHUNK):
        lines = [
            event(1000 + n, f"user-{n:05}", START + n * timedelta(minutes=10))
            for n in range(first, first + CHUNK)
        ]
        (tmp_path / "chunks" / f"{first:05}.jsonl").write_text("\n".join(lines))
    found: list[str] = []
    stages = [
        FromMeasured(input_glob=str(tmp_path / "chunks"), found=(found,)),
        TrainAe(pretrained_filename=make_models(tmp_path)),
        Preprocess(),
        InfPytorch(),
        AddScores(label=("risk", "pvalue")),
        Timeseries(causal=True),
        Explain(),
        Filter(alerts_per_day=10_000),
        ToOcsf(filename=str(tmp_path / "alerts.jsonl")),
        Serialize(),
        ToFile(filename=str(tmp_path / "rows.csv")),
    ]
    options = PipelineOptions(
        userid_column_name="userIdentityuserName",
        columns_file=str(tmp_path / "features.txt"),
        state=str(tmp_path / "state.db"),
        checkpoint_interval=0,
        max_live_users=LIVE,
        num_threads=1,
    )
    metrics = Pipeline(stages, options).run()
    assert found == ["measured"]
    assert len(metrics.cards) == LIVE
    assert sum(metrics.users.values()) + metrics.filtered == USERS
    [written] = [line for line in format_metrics(metrics) if line.startswith("Written")]
    assert "of more than " in written


@dataclass(frozen=True)
class Case:
    """Scored events of one user, and a state file."""

    folder: Path

    def run(self, *users: str, **options: object) -> None:
        """Score an event of each of some users."""
        number = len(list(self.folder.glob("in-*")))
        (self.folder / f"in-{number}").mkdir()
        lines = [event(number, user, START + number * timedelta(hours=1)) for user in users]
        (self.folder / f"in-{number}" / "a.jsonl").write_text("\n".join(lines))
        named = {field.name for field in fields(PipelineOptions)}
        stages = [
            FromCloudtrail(input_glob=str(self.folder / f"in-{number}")),
            TrainAe(pretrained_filename=str(self.folder / "models")),
            Preprocess(),
            InfPytorch(),
            AddScores(label=("risk",)),
            replace(Timeseries(causal=True), **_without(options, named)),
            Serialize(),
        ]
        settings = PipelineOptions(
            userid_column_name="userIdentityuserName",
            columns_file=str(self.folder / "features.txt"),
            state=str(self.folder / "state.db"),
            num_threads=1,
        )
        only = {name: value for name, value in options.items() if name in named}
        Pipeline(stages, replace(settings, **only)).run()  # type: ignore[arg-type] # by name


def _without(options: Mapping[str, object], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fingerprints."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "features.txt").write_text("eventName\nsourceIPAddress\nlogcount")
    make_models(folder)
    return folder


@pytest.fixture
def case(trained: Path, tmp_path: Path) -> Case:
    """Fingerprints, without state."""
    shutil.copytree(trained, tmp_path / "case")
    return Case(tmp_path / "case")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "10m"}, "another timeseries --resolution: 3600 s then, 600 s now"),
        ({"min_window": "6 h"}, "another timeseries --min_window: 43200 s then, 21600 s now"),
        ({"detector": "rate"}, "another timeseries --detector: fourier then, rate now"),
    ],
)
def test_a_state_is_bound_to_the_options_of_stages_that_it_depends_on(
    case: Case, options: dict[str, object], message: str
) -> None:
    case.run("user-00000")
    case.run("user-00000", resolution="60m", zscore_threshold=3.0)
    options = {"causal": "detector" not in options} | options
    with pytest.raises(UsageError, match=message):
        case.run("user-00000", **options)
    words = ["state", "reset", str(case.folder / "state.db"), "--stage=timeseries", "--delete"]
    assert CliRunner().invoke(morpheus, words, prog_name="morpheus").exit_code == 0
    case.run("user-00000", **options)


def users_of(path: Path) -> set[str | None]:
    with closing(SqliteStateStore(path, {})) as store:
        return set(store.list_users())


def test_states_that_no_run_has_changed_for_too_long_are_removed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, file = time.time(), case.folder / "state.db"
    with monkeypatch.context() as patch:
        patch.setattr("morpheus.runtime.states.time.time", lambda: now - 40 * 86_400)
        case.run("user-00000", "user-00001")
    case.run("user-00001", state_max_age="60d")
    assert users_of(file) == {"user-00000", "user-00001"}
    case.run("user-00001", state_max_age="30d")
    assert users_of(file) == {"user-00001"}
    assert b"user-00000" not in file.read_bytes(), "what is removed is overwritten"


def test_a_checkpoint_writes_little_more_than_the_states(tmp_path: Path) -> None:
    sizes = {"add-scores#1": 850, "filter#1": 1150, "source": 3300}
    rng = np.random.default_rng(1)
    numbers = rng.permutation(1000)  # the users of a micro-batch come in any order
    states = {
        StateKey(name, f"user-{number:05}"): rng.bytes(size)
        for name, size in sizes.items()
        for number in numbers
    }
    with closing(SqliteStateStore(tmp_path / "state.db", {})) as store:
        store.save(states)
        store.commit()
        written = (tmp_path / "state.db-wal").stat().st_size
    assert written < 1.35 * sum(map(len, states.values()))


@pytest.mark.parametrize("parts", [1, 8])
def test_a_checkpoint_writes_as_much_however_many_parts_there_are(
    tmp_path: Path, parts: int
) -> None:
    rng, users = np.random.default_rng(1), [f"user-{number:05}" for number in range(500)]
    written = []
    for number in (0, parts):
        path = tmp_path / f"{number}.db"
        with closing(SqliteStateStore(path, {})) as store:
            kept = {
                part_key(user, part): rng.bytes(3100) for user in users for part in range(number)
            }
            states = {StateKey("source", user): rng.bytes(3000) for user in users}
            store.save(kept | states)
            store.commit()
        with closing(SqliteStateStore(path, {})) as store:
            store.save({key: rng.bytes(3000) for key in states})
            store.commit()
            written.append(path.with_name(f"{path.name}-wal").stat().st_size)
    assert written[1] < 1.1 * written[0]


def test_an_endless_run_removes_old_states_also_from_memory(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "0.jsonl").write_text(event(0, "ann", START))
    with closing(SqliteStateStore(tmp_path / "state.db", {})) as store:
        store.save({StateKey("source", "old"): b"x"})
        store.commit()
    with closing(sqlite3.connect(tmp_path / "state.db")) as database, database:
        database.execute("UPDATE states SET saved = saved - 8000000")
    options = PipelineOptions(
        userid_column_name="userIdentityuserName",
        state=str(tmp_path / "state.db"),
        state_max_age="30d",
        num_threads=1,
    )
    stages = [
        FromChunks(input_glob=str(tmp_path / "chunks")),
        Serialize(),
        ToFile(filename=str(tmp_path / "rows.csv")),
    ]
    Pipeline(stages, options).run()
    assert users_of(tmp_path / "state.db") - {None} == {"ann"}


def test_an_age_needs_a_state_file(tmp_path: Path) -> None:
    stages = [FromCloudtrail(input_glob=str(tmp_path)), Serialize()]
    with pytest.raises(UsageError, match="--state_max_age: without --state, nothing is kept"):
        Pipeline(stages, PipelineOptions(state_max_age="30d")).validate()
    with pytest.raises(UsageError, match="--state_max_age: 'old' is not a duration"):
        Pipeline(stages, PipelineOptions(state_max_age="old", state="state.db")).validate()


def test_events_and_their_encodings_are_freed_without_a_garbage_collection(tmp_path: Path) -> None:
    data, output = Path(__file__).parents[1] / "examples" / "data", tmp_path / "scores.csv"
    words = [
        *("run", "--num_threads=1", "pipeline-ae", f"--userid_column_name={ISSUER}"),
        *("from-cloudtrail", f"--input_glob={data}/input-data/*.csv"),
        *("train-ae", f"--train_data_glob={data}/training-data/*.csv", "--train_epochs=1"),
        *("preprocess", "inf-pytorch", "add-scores", "explain", "serialize"),
        *("to-file", f"--filename={output}"),
    ]
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        done = CliRunner().invoke(morpheus, words)
        gc.collect()
        kept = [each for each in gc.garbage if isinstance(each, Batch | Table | EncodedSlice)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert done.exit_code == 0, done.output
    assert not kept, {type(each).__name__ for each in kept}
