"""What comes out of a cluster is what comes out of one machine, whatever happens on the way."""

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
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from nodes import cluster

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ROLE = "userIdentitysessionContextsessionIssueruserName"


def run(source, train, into, *, falling=(None, None), between=(), user=ROLE, **settings):  # noqa: PLR0913 - what tests differ in
    """Run a chain; what falls does so while training, or while scoring."""
    training, scoring = ([stage] if stage else [] for stage in falling)
    scored = [Preprocess(), InfPytorch(), AddScores(label=("ae_anomaly_score", "risk"))]
    sink = [Serialize(), ToFile(filename=str(into))]
    chain = [source, *training, train, *scored, *scoring, *between, *sink]
    given = PipelineOptions(
        columns_file="columns_ae_cloudtrail.txt", userid_column_name=user, **settings
    )
    return Pipeline(chain, given).run()


def both(tmp_path, nodes, name, source, train, **about):
    """The bytes that come out of this machine and of the cluster; and the summaries."""
    found = []
    for engine, scheduler in (("local", None), ("dask", nodes)):
        place = tmp_path / engine / name
        summary = run(source, train, place, engine=engine, scheduler=scheduler, **about)
        assert [path.name for path in place.parent.iterdir()] == [name]
        found.append((place.read_bytes(), replace(summary, seconds=0.0)))
    return found


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    make = [sys.executable, ROOT / "examples" / "make_data.py", "--into", folder]
    subprocess.run(make, check=True, timeout=120, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_the_lessons(lessons, nodes, tmp_path, name):
    source = FromCloudtrail(input_glob=f"{lessons}/input-data/*.csv")
    train = TrainAe(train_data_glob=f"{lessons}/training-data/*.csv", seed=42)
    between = [Timeseries(resolution="10m", zscore_threshold=8.0)]
    here, there = both(tmp_path, nodes, name, source, train, between=between)
    assert here == there


def test_events_nobody_has_a_history_of(nodes, tmp_path):
    source = FromCloudtrail(input_glob=str(DATA / "cloudtrail-attack"))
    train = TrainAe(train_min_history=50)
    between = [Filter(alerts_per_day=20)]
    here, there = both(tmp_path, nodes, "out.jsonl", source, train, between=between, user="@actor")
    assert here == there
    assert here[1].budget_report is not None


def test_a_fleet_while_one_node_falls_in_training_and_another_in_scoring(fleet, tmp_path):
    source = FromCloudtrail(input_glob=str(fleet / "scored"))
    train = TrainAe(train_data_glob=str(fleet / "training"), seed=7)
    models = [tmp_path / name for name in ("here", "there")]
    here = run(source, replace(train, models_output_filename=str(models[0])), tmp_path / "here.csv")
    falling = (
        Falling(user="person-00012", mark=str(tmp_path / "first")),
        Falling(user="service-00003", mark=str(tmp_path / "second")),
    )
    with cluster(tmp_path / "nodes", 3) as address:
        out = tmp_path / "out" / "there.csv"
        there = run(
            source,
            replace(train, models_output_filename=str(models[1])),
            out,
            falling=falling,
            engine="dask",
            scheduler=address,
        )
    assert (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()
    assert out.read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert replace(there, seconds=0.0) == replace(here, seconds=0.0)
    assert list(out.parent.iterdir()) == [out]
    assert contents(models[0]) == contents(models[1])
    assert there.cluster_stats.lost_workers == 2
    assert there.cluster_stats.workers == 1
    assert there.cluster_stats.retries >= 2


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
