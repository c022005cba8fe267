"""Scores of a trial by the pipeline that users run, from files to a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from morpheus.core.stage import PipelineOptions, Transform
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from quality.trial import EVENT, LEAST, Trial


def output(
    trial: Trial,
    labels: Sequence[str],
    *,
    seed: int = 0,
    threads: int = 1,
    behind: Sequence[Transform] = (),
    **options: Any,  # noqa: ANN401 - whatever `train-ae` takes
) -> pl.DataFrame:
    """Run the pipeline on a trial.

    Args:
        trial: The logs.
        labels: Columns that `add-scores` adds.
        seed: Random seed of `train-ae`.
        threads: Number of parallel workers; does not affect results.
        behind: Stages between `add-scores` and `serialize`.
        options: Other options of `train-ae`.

    Returns:
        The output of the pipeline, one row per row of `trial.scored`, in that order.
    """
    options = {"train_min_history": LEAST, "seed": seed} | options
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        written(trial, folder)
        stages = [
            FromCloudtrail(input_glob=str(folder / "scored.parquet")),
            TrainAe(train_data_glob=str(folder / "history.parquet"), **options),
            *(Preprocess(), InfPytorch(), AddScores(label=tuple(labels)), *behind, Serialize()),
            ToFile(filename=str(folder / "output.parquet")),
        ]
        settings = PipelineOptions(
            num_threads=threads,
            userid_column_name=trial.user,
            columns_file=str(folder / "columns.txt"),
            labels=tuple(labels),
        )
        Pipeline(stages, settings).run()
        found = pl.read_parquet(folder / "output.parquet")
    return trial.scored.select(EVENT).join(found, on=EVENT, how="left", maintain_order="left")


def written(trial: Trial, folder: Path) -> None:
    """Write the logs of a trial and its feature list."""
    trial.history.write_parquet(folder / "history.parquet")
    trial.scored.write_parquet(folder / "scored.parquet")
    (folder / "columns.txt").write_text("\n".join(trial.columns), encoding="utf-8")
