"""A cluster gives the same output as one machine, even if nodes are lost."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import Falling
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from nodes import cluster

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ROLE = "userIdentitysessionContextsessionIssueruserName"


def run(source, train, into, *, failing=(None, None), between=(), user=ROLE, **options):  # noqa: PLR0913 - what tests differ in
    """Run a pipeline, with stages that kill their node during training or scoring."""
    training, scoring = ([stage] if stage else [] for stage in failing)
    scored = [Preprocess(), InfPytorch(), AddScores(label=("ae_anomaly_score", "risk"))]
    sink = [Serialize(), ToFile(filename=str(into))]
    chain = [source, *training, train, *scored, *scoring, *between, *sink]
    pipeline_options = PipelineOptions(
        columns_file="columns_ae_cloudtrail.txt", userid_column_name=user, **options
    )
    return Pipeline(chain, pipeline_options).run()


def run_both(tmp_path, nodes, name, source, train, **options):
    """Bytes and metrics of a run on this machine and of one on the cluster."""
    results = []
    for engine, scheduler in (("local", None), ("dask", nodes)):
        path = tmp_path / engine / name
        metrics = run(source, train, path, engine=engine, scheduler=scheduler, **options)
        assert [file.name for file in path.parent.iterdir()] == [name]
        results.append((path.read_bytes(), replace(metrics, seconds=0.0)))
    return results


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    make = [sys.executable, ROOT / "examples" / "make_data.py", "--into", folder]
    subprocess.run(make, check=True, timeout=120, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_lessons_are_equal(lessons, nodes, tmp_path, name):
    source = FromCloudtrail(input_glob=f"{lessons}/input-data/*.csv")
    train = TrainAe(train_data_glob=f"{lessons}/training-data/*.csv", seed=42)
    between = [Timeseries(resolution="10m", zscore_threshold=8.0)]
    local, remote = run_both(tmp_path, nodes, name, source, train, between=between)
    assert local == remote


@pytest.mark.skipif(not DATA.exists(), reason="the recorded attack is not here (shared/data)")
def test_users_without_history_are_equal(nodes, tmp_path):
    source = FromCloudtrail(input_glob=str(DATA / "cloudtrail-attack"))
    train = TrainAe(train_min_history=50)
    between = [Filter(alerts_per_day=20)]
    local, remote = run_both(
        tmp_path, nodes, "out.jsonl", source, train, between=between, user="@actor"
    )
    assert local == remote
    assert local[1].budget_report is not None


def test_losing_nodes_in_training_and_scoring_does_not_change_the_output(fleet, tmp_path):
    source = FromCloudtrail(input_glob=str(fleet / "scored"))
    train = TrainAe(train_data_glob=str(fleet / "training"), seed=7)
    models = [tmp_path / name for name in ("local", "remote")]
    local = run(
        source, replace(train, models_output_filename=str(models[0])), tmp_path / "local.csv"
    )
    failing = (
        Falling(user="person-00012", mark=str(tmp_path / "first")),
        Falling(user="service-00003", mark=str(tmp_path / "second")),
    )
    with cluster(tmp_path / "nodes", 3) as address:
        out = tmp_path / "out" / "remote.csv"
        remote = run(
            source,
            replace(train, models_output_filename=str(models[1])),
            out,
            failing=failing,
            engine="dask",
            scheduler=address,
        )
    assert (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()
    assert out.read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert replace(remote, seconds=0.0) == replace(local, seconds=0.0)
    assert list(out.parent.iterdir()) == [out]
    assert contents(models[0]) == contents(models[1])
    assert remote.cluster_stats.lost_workers == 2
    assert remote.cluster_stats.workers == 1
    assert remote.cluster_stats.retries >= 2


def contents(folder):
    """Return the files of a store, without the manifest, which has the time of publication."""
    files = (path for path in folder.rglob("*.*") if path.name != "store.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
