"""Alert budgets of `filter --alerts_per_day`, compared with alerts on benign days."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from figures.table import Table

from morpheus.core.batch import AlertBudgetReport
from morpheus.core.stage import PipelineOptions
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.filter import Filter
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from quality.chain import LEAST, written
from quality.trial import BENIGN, Trial

ALERTS = (1.0, 5.0)
"""Budgets in alerts per day, over all users."""


def table() -> Table:
    """Return an empty table."""
    header = ["logs", "alerts per day", "seed", "expected", "interval", "actual", "within"]
    return Table("Alerts on benign days", header)


def add(table: Table, trial: Trial, seed: int) -> None:
    """Add a row per budget."""
    for alerts in ALERTS:
        found = spent(trial, seed, alerts)
        stated = found.forecast
        within = stated.low <= found.alerts <= stated.high
        table.add(
            *(trial.name, alerts, seed, round(stated.alerts)),
            *(f"{stated.low:.0f} to {stated.high:.0f}", found.alerts, "yes" if within else "no"),
        )


def spent(trial: Trial, seed: int, alerts: float) -> AlertBudgetReport:
    """Run the pipeline on the benign days of a trial, and return the budget report."""
    benign = trial.scored.filter(pl.Series(trial.incident == BENIGN))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written(trial, folder)
        benign.filter(_before_incidents(trial, benign)).write_parquet(folder / "scored.parquet")
        stages = [
            FromCloudtrail(input_glob=str(folder / "scored.parquet")),
            TrainAe(
                train_data_glob=str(folder / "history.parquet"), train_min_history=LEAST, seed=seed
            ),
            *(Preprocess(), InfPytorch(), Filter(alerts_per_day=alerts), Serialize()),
            ToFile(filename=str(folder / "output.parquet")),
        ]
        settings = PipelineOptions(
            num_threads=1,
            userid_column_name=trial.user,
            columns_file=str(folder / "columns.txt"),
        )
        report = Pipeline(stages, settings).run().budget_report
    assert report is not None  # noqa: S101 - the filter adds it
    return report


def _before_incidents(trial: Trial, benign: pl.DataFrame) -> pl.Expr:
    """Return the events of users without an incident, and earlier events of the others."""
    marked = trial.scored.filter(pl.Series(trial.incident != BENIGN))
    first = dict(marked.group_by(trial.user).agg(pl.col("eventTime").min()).iter_rows())
    last = benign["eventTime"].max()
    assert isinstance(last, str)  # noqa: S101 - the trial's times are text
    limit = pl.col(trial.user).replace_strict(first, default=last + "~", return_dtype=pl.String)
    return pl.col("eventTime") < limit
