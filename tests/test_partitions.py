"""Workers that process partitions of users give the output of one process."""

import json
from dataclasses import replace

import pytest

from jobs import Moody, SmallMemory
from morpheus.core.batch import EncodedChunk, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError
from morpheus.pipeline import Pipeline
from morpheus.runtime.pool import WorkerPool
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.monitor import Monitor
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.spill import SpillDir
from morpheus.testing import run_stage

USERS, EVENTS = 23, 300


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Six files, in which every user appears, and some events twice."""
    folder = tmp_path_factory.mktemp("logs")
    for n in range(6):
        numbers = range(n * 50, n * 50 + 55)
        (folder / f"{n}.json").write_text(json.dumps({"Records": list(map(record, numbers))}))
    return folder


def record(number):
    user = f"{number * 7 % USERS}"
    return {
        "eventID": f"00000000-0000-0000-0000-{number:012}",
        "eventTime": f"2024-05-31T09:{number // 60:02}:{number % 60:02}Z",
        "eventName": "=cmd" if number % 11 else None,
        "userIdentity": {"accountId": user},
    }


def written(logs, path, threads, *between, **options):
    source = SmallMemory(input_glob=str(logs))
    sink = ToFile(filename=str(path), overwrite=True, **options)
    chain = [source, *between, Serialize(fixed_columns=False), sink]
    metrics = Pipeline(chain, PipelineOptions(num_threads=threads)).run()
    return path.read_bytes(), replace(metrics, seconds=0.0)


MOODY = (Moody(), Monitor())


@pytest.mark.parametrize(
    ("name", "between"),
    [
        *(("a.csv", ()), ("a.parquet", ())),
        *(("a.csv", MOODY), ("a.jsonl", MOODY), ("a.csv.gz", MOODY), ("a.jsonl.zst", MOODY)),
        ("a.parquet", MOODY),
    ],
)
def test_output_does_not_depend_on_workers(logs, tmp_path, name, between):
    one, alone = written(logs, tmp_path / name, 1, *between)
    two, parallel = written(logs, tmp_path / name, 2, *between)
    assert one == two
    assert alone == parallel
    assert alone.input.duplicates == 25
    assert list(alone.users) == list(parallel.users)
    assert len(alone.users) == USERS


def test_scores_of_loaded_fingerprints_do_not_depend_on_workers(logs, tmp_path):
    options, models = PipelineOptions(num_threads=1), str(tmp_path / "models")
    learn = TrainAe(train_data_glob=str(logs), models_output_filename=models, train_epochs=1)
    labels = AddScores(label=("ae_anomaly_score", "max_abs_z", "risk"))
    rest = (Preprocess(), InfPytorch(), labels, Explain(threshold=0.0), Timeseries())
    Pipeline([SmallMemory(input_glob=str(logs)), learn, *rest], options).run()
    between = (TrainAe(pretrained_filename=models), *rest)
    one, alone = written(logs, tmp_path / "a.csv", 1, *between)
    two, parallel = written(logs, tmp_path / "b.csv", 2, *between)
    assert one == two
    assert alone == parallel
    assert one.count(b"\n") > EVENTS


def test_output_without_the_index_column_does_not_depend_on_workers(logs, tmp_path):
    one, _ = written(logs, tmp_path / "a.csv", 1, include_index_col=False)
    assert one == written(logs, tmp_path / "a.csv", 2, include_index_col=False)[0]
    assert one.startswith(b"_index_,")


def test_rows_are_encoded_before_they_reach_the_sink(logs, tmp_path):
    settings = PipelineOptions(num_threads=2)
    source = SmallMemory(input_glob=str(logs), options=settings)
    sink = ToFile(filename=str(tmp_path / "a.csv"))
    read = source.partitions(None, RunMetrics(), WorkerPool(1))
    with SpillDir() as spill_dir, read as parts:
        [*_, last] = parts
        batches = run_stage(Serialize(), last.events(RunMetrics()))
        encoded = run_stage(sink.encoder(batches[0], spill_dir), batches)
        text = encoded[-1].path.read_bytes()
    assert len(parts) > 3
    assert all(isinstance(batch, EncodedChunk) for batch in encoded)
    assert [batch.table.height for batch in encoded] == [batch.table.height for batch in batches]
    assert text.count(b"\n") == sum(batch.table.height for batch in batches)


@pytest.mark.parametrize("history", [False, True])
def test_events_that_fit_in_memory_are_one_partition(logs, history):
    source = FromCloudtrail(input_glob=str(logs), options=PipelineOptions(num_threads=2))
    with source.partitions(str(logs) if history else None, RunMetrics(), WorkerPool(2)) as parts:
        assert len(parts) == 1


def test_error_in_a_worker_is_raised_here(tmp_path):
    for n in range(3):
        text = json.dumps({"Records": [record(n)]})
        (tmp_path / f"{n}.json").write_text(text if n < 2 else text.replace("eventTime", "time"))
    with pytest.raises(RecordError, match=r"2\.json:1: the record has no `eventTime`"):
        written(tmp_path, tmp_path / "out" / "a.csv", 2)
    assert list((tmp_path / "out").iterdir()) == []
