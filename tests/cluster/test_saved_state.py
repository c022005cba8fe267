"""Saved state on a cluster: daily runs give what daily runs on one machine give."""

from dataclasses import replace

from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe

ROLE = "userIdentitysessionContextsessionIssueruserName"
HALVES = (
    {"start_time": "2025-03-17", "end_time": "2025-03-24"},
    {"start_time": "2025-03-24", "end_time": "2025-04-01"},
)


def run(fleet, train, output, state, *, engine, scheduler=None, **period):  # noqa: PLR0913 - what runs differ in  # noqa: PLR0913 - the run
    """Score a part of the fleet's days."""
    stages = [
        FromCloudtrail(input_glob=str(fleet / "scored"), **period),
        *(train, Preprocess(), InfPytorch(), AddScores(label=("ae_anomaly_score", "risk"))),
        *(Timeseries(causal=True, zscore_threshold=3.0), Explain(), Serialize()),
        ToFile(filename=str(output)),
    ]
    options = PipelineOptions(
        userid_column_name=ROLE, engine=engine, scheduler=scheduler, state=str(state)
    )
    metrics = Pipeline(stages, options).run()
    return output.read_bytes(), replace(metrics, seconds=0.0)


def test_daily_runs_on_a_cluster_are_equal(fleet, nodes, tmp_path):
    models = str(tmp_path / "models")
    train = TrainAe(train_data_glob=str(fleet / "training"), seed=7, train_epochs=2)
    save = replace(train, models_output_filename=models)
    run(fleet, save, tmp_path / "all.csv", tmp_path / "all.db", engine="local")
    train = TrainAe(pretrained_filename=models)
    results = []
    for engine, scheduler in (("local", None), ("dask", nodes)):
        state = tmp_path / f"{engine}.db"
        results.append(
            [
                run(
                    fleet,
                    train,
                    tmp_path / f"{engine}-{number}.csv",
                    state,
                    engine=engine,
                    scheduler=scheduler,
                    **period,
                )
                for number, period in enumerate(HALVES)
            ]
        )
    assert results[0] == results[1]
    assert all(metrics.users for _, metrics in results[1])
    lines = sorted((tmp_path / "all.csv").read_text().splitlines())
    header, *rows = sorted(b"".join(part for part, _ in results[1]).decode().splitlines())
    assert sorted({header, *rows}) == sorted(set(lines))
