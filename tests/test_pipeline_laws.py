"""Whole pipelines: files, threads and batch sizes do not matter, and every event is counted."""

from __future__ import annotations

import csv
import gzip
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from golden import inputs
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.from_file import FromAzure, FromDuo, FromFile
from morpheus.sources.ocsf import FromOcsf
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe

ROLE = "userIdentitysessionContextsessionIssueruserName"
Record = dict[str, Any]
Writer = Callable[[Path, Sequence[Record]], None]


def write_csv(path: Path, records: Sequence[Record]) -> None:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(records[0]))
        table.writeheader()
        table.writerows(records)


def write_lines(path: Path, records: Sequence[Record]) -> None:
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps(each) for each in records))


def write_trail(path: Path, records: Sequence[Record]) -> None:
    path.with_suffix(".json").write_text(json.dumps({"Records": records}))


@dataclass(frozen=True)
class Case:
    """A kind of log, and how it is scored.

    Attributes:
        source: The source, without its files.
        records: All records, in time order.
        write: Writes records to a file.
        options: User column and feature list.
        models: Folder of the trained models; empty to train on the input.
    """

    source: type[FileSource]
    records: list[Record]
    write: Writer
    options: PipelineOptions
    models: str = ""

    def run(self, folder: Path, files: Sequence[Sequence[Record]], **options: int) -> bytes:
        """Score files of these records; returns what is written."""
        shutil.rmtree(folder / "input", ignore_errors=True)
        (folder / "input").mkdir()
        for number, records in enumerate(files):
            self.write(folder / "input" / f"{number:02}", records)
        output = folder / "output.csv"
        models = str(folder / "models")
        train = (
            TrainAe(pretrained_filename=self.models)
            if self.models
            else TrainAe(train_min_history=60, train_epochs=1, models_output_filename=models)
        )
        stages = [
            *(self.source(input_glob=str(folder / "input")), train, Preprocess(), InfPytorch()),
            AddScores(label=("ae_anomaly_score", "risk")),
            *(
                Timeseries(resolution="1h", min_window="4 h", zscore_threshold=2),
                Explain(prefix="m_"),
            ),
            *(Serialize(exclude=("_index_",)), ToFile(filename=str(output), overwrite=True)),
        ]
        settings = replace(self.options, **options)
        metrics = Pipeline(stages, settings).run()
        check_accounts(metrics)
        return output.read_bytes()


def check_accounts(metrics: RunMetrics) -> None:
    """Every record that was read is written, or counted as lost for a reason."""
    stats = metrics.input
    lost = stats.outside_range + stats.refused + stats.duplicates + stats.other_classes
    lost += stats.other_users + stats.no_user
    assert stats.read == lost + sum(metrics.users.values()) + metrics.filtered
    assert sum(metrics.users.values()) >= metrics.scored


def read_lines(path: Path) -> list[Record]:
    text = gzip.decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def read_csv(path: Path) -> list[Record]:
    return list(csv.DictReader(StringIO(path.read_text(encoding="utf-8"))))


def time_of(record: Record) -> str:
    return str(record["eventTime"])


def read_trail(folder: Path) -> list[Record]:
    documents = [json.loads(gzip.decompress(path.read_bytes())) for path in folder.rglob("*.gz")]
    records = [record for document in documents for record in document["Records"]]
    return sorted(records, key=lambda record: (str(record["eventTime"]), str(record["eventID"])))


def events_of(users: int, records: Sequence[Record]) -> list[Record]:
    """The events of the first users."""
    names = [record["userIdentity"]["arn"] for record in records]
    chosen = set(list(dict.fromkeys(names))[:users])
    return [record for name, record in zip(names, records, strict=True) if name in chosen]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of the golden commands."""
    folder = tmp_path_factory.mktemp("logs") / "inputs"
    inputs.build(folder)
    return folder


def make_case(name: str, logs: Path) -> Case:
    """Records of one source, without a model."""
    role = PipelineOptions(userid_column_name=ROLE, num_threads=1)
    actor = replace(role, userid_column_name="@actor")
    vpn = replace(actor, columns_file=str(logs / "vpn" / "vpn.toml"))
    lesson = logs / "lessons" / "data" / "input-data"
    rows = [row for path in sorted(lesson.glob("*.csv")) for row in read_csv(path)]
    signins = json.loads((logs / "azure" / "signins.json").read_text())["value"]
    calls = read_lines(logs / "ocsf" / "scored.jsonl.gz")
    return {
        "lesson": Case(FromCloudtrail, sorted(rows, key=time_of), write_csv, role),
        "fleet": Case(
            FromCloudtrail,
            events_of(12, read_trail(logs / "fleet" / "json" / "scored")),
            write_trail,
            role,
        ),
        "azure": Case(
            FromAzure,
            read_lines(logs / "azure" / "training.jsonl.gz") + signins,
            write_lines,
            actor,
        ),
        "duo": Case(FromDuo, read_lines(logs / "duo" / "training.jsonl.gz"), write_lines, actor),
        "ocsf": Case(FromOcsf, calls, write_lines, actor),
        "file": Case(FromFile, read_csv(logs / "vpn" / "sessions.csv"), write_csv, vpn),
    }[name]


SOURCES = ("lesson", "fleet", "azure", "duo", "ocsf", "file")


@pytest.mark.parametrize("name", SOURCES)
def test_files_threads_and_batches_do_not_matter(name: str, logs: Path, tmp_path: Path) -> None:
    case = make_case(name, logs)
    case.run(tmp_path, [case.records])
    shutil.move(tmp_path / "models", tmp_path / "saved")
    case = replace(case, models=str(tmp_path / "saved"))
    once = case.run(tmp_path, [case.records])
    assert once.count(b"\n") > 100
    dice = random.Random(name)  # noqa: S311 - cuts, not secrets
    for _ in range(2):
        cuts = sorted(dice.sample(range(1, len(case.records)), 4))
        files = [case.records[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        dice.shuffle(files)
        assert case.run(tmp_path, files) == once, f"cut at {cuts}, in another order"
    distributed: list[list[Record]] = [[], [], []]
    for record in case.records:
        dice.choice(distributed).append(record)
    assert case.run(tmp_path, distributed) == once, "each file has some events of each time"
    small = {"pipeline_batch_size": 7, "model_max_batch_size": 3}
    assert case.run(tmp_path, files, **small) == once, "smaller batches"
    assert case.run(tmp_path, files, num_threads=2) == once, "two threads"


def test_threads_do_not_matter_for_training(logs: Path, tmp_path: Path) -> None:
    case = make_case("lesson", logs)
    once = case.run(tmp_path, [case.records])
    models = read_models(tmp_path / "models")
    shutil.rmtree(tmp_path / "models")
    assert case.run(tmp_path, [case.records], num_threads=2) == once
    assert read_models(tmp_path / "models") == models


def read_models(folder: Path) -> dict[str, bytes]:
    """Return the files of a store, without the manifest, which has the time of publication."""
    files = (path for path in folder.rglob("*.*") if path.name != "store.json")
    return {path.name: path.read_bytes() for path in files}


def test_every_loss_is_counted(logs: Path, tmp_path: Path) -> None:
    source = FromCloudtrail(
        input_glob=str(logs / "messy" / "records.jsonl.gz"),
        bad_record="skip",
        start_time="2025-03-17T06:00:00Z",
        end_time="2025-03-17T20:00:00Z",
    )
    output = tmp_path / "output.jsonl"
    stages = [
        *(source, TrainAe(train_min_history=60, train_epochs=1), Preprocess(), InfPytorch()),
        *(AddScores(label=("risk",)), Filter(label=("risk",), threshold=1.0)),
        *(Serialize(), ToFile(filename=str(output))),
    ]
    metrics = Pipeline(stages, PipelineOptions(userid_column_name=ROLE, num_threads=1)).run()
    stats = metrics.input
    named = (stats.refused, stats.duplicates, stats.outside_range, metrics.filtered)
    assert all(named), named
    check_accounts(metrics)
    assert pl.read_ndjson(output).height == sum(metrics.users.values())
