"""The command lines to measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speed.logs import USER, Logs
from speed.meter import MORPHEUS, Run, run

SCORED = ("preprocess", "inf-pytorch", "add-scores")
"""Stages that score."""


def learn(
    logs: Logs,
    models: Path,
    *,
    threads: int = 2,
    form: str = "json",
    command: Sequence[str] = MORPHEUS,
) -> Run:
    """Train all users, and score a few events, because a run must score some."""
    suffix = "json.gz" if form == "json" else form
    few = min((logs.folder / form / "scored").rglob(f"*.{suffix}"))
    trained = [
        f"--train_data_glob={logs.folder / form / 'training'}",
        f"--models_output_filename={models}",
    ]
    given = words(str(few), trained, models.with_suffix(".csv"), threads)
    return run_on_cores(given, threads, command)


def score(  # noqa: PLR0913 - what a run depends on
    source: Path | str,
    models: Path,
    *,
    threads: int,
    release: str = "22.08",
    stages: Sequence[str] = SCORED,
    command: Sequence[str] = MORPHEUS,
) -> Run:
    """Score with loaded fingerprints, from files to CSV, with the columns of a release."""
    loaded = [f"--pretrained_filename={models}"]
    output = models.with_suffix(".csv")
    given = words(str(source), loaded, output, threads, release, stages)
    return run_on_cores(given, threads, command)


def pipeline(source: str, train: list[str], output: Path, *, threads: int) -> Run:
    """Run the pipeline on as many cores as it has threads."""
    return run_on_cores(words(source, train, output, threads), threads)


def run_on_cores(given: list[str], cores: int, command: Sequence[str] = MORPHEUS) -> Run:
    """Run a command line of `morpheus`."""
    return run([*command, *given], cores=cores)


def words(  # noqa: PLR0913, PLR0917 - what a command line has
    source: str,
    train: list[str],
    output: Path,
    threads: int,
    release: str = "22.08",
    stages: Sequence[str] = SCORED,
) -> list[str]:
    """Return the command line."""
    return [
        *("run", f"--num_threads={threads}"),
        *("pipeline-ae", f"--userid_column_name={USER}", f"--compat={release}"),
        *("from-cloudtrail", f"--input_glob={source}", "train-ae", *train, "--seed=1"),
        *(*stages, "serialize"),
        *("to-file", f"--filename={output}", "--overwrite"),
    ]
