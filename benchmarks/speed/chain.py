"""The command lines to measure."""

from __future__ import annotations

from pathlib import Path

from speed.logs import USER, Logs
from speed.meter import Run, morpheus


def learn(logs: Logs, models: Path, *, threads: int = 2, form: str = "json") -> Run:
    """Train all users, and score a few events, because a run must score some."""
    suffix = "json.gz" if form == "json" else form
    few = min((logs.folder / form / "scored").rglob(f"*.{suffix}"))
    trained = [
        f"--train_data_glob={logs.folder / form / 'training'}",
        f"--models_output_filename={models}",
    ]
    return pipeline(str(few), trained, models.with_suffix(".csv"), threads=threads)


def score(source: Path | str, models: Path, *, threads: int, release: str = "22.08") -> Run:
    """Score with loaded fingerprints, from files to CSV, with the columns of a release."""
    loaded = [f"--pretrained_filename={models}"]
    output = models.with_suffix(".csv")
    return pipeline(str(source), loaded, output, threads=threads, release=release)


def pipeline(
    source: str, train: list[str], output: Path, *, threads: int, release: str = "22.08"
) -> Run:
    """Run the pipeline on as many cores as it has threads."""
    return morpheus(*words(source, train, output, threads, release), cores=threads)


def words(
    source: str, train: list[str], output: Path, threads: int, release: str = "22.08"
) -> list[str]:
    """Return the command line."""
    return [
        *("run", f"--num_threads={threads}"),
        *("pipeline-ae", f"--userid_column_name={USER}", f"--compat={release}"),
        *("from-cloudtrail", f"--input_glob={source}", "train-ae", *train, "--seed=1"),
        *("preprocess", "inf-pytorch", "add-scores", "serialize"),
        *("to-file", f"--filename={output}", "--overwrite"),
    ]
