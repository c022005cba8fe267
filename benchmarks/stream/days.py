"""Runs of one day each, with the same state file, against one run over all days."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import polars as pl
from figures.table import Table

from morpheus.core.stage import PipelineOptions, Stage
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.timeseries import Timeseries
from morpheus.stages.train_ae import TrainAe
from stream.scale import Scale

ROOT = Path(__file__).parents[2]
USER = "userIdentitysessionContextsessionIssueruserName"
TRAINING_DAYS = 14
FEATURES = (
    *("eventName", "eventSource", "sourceIPAddress", "userAgent", "logcount", "locincrement"),
    *("errorclass", "new:eventName", "new:addressnetwork", "new:agentfamily", "hourkind"),
    *("previous:eventName", "previous:errorclass"),
)
SCORES = ("ae_anomaly_score", "risk", "incident_score", "pvalue", "severity")
WATCHED = (*SCORES, "reason", "explanation", "ts_anomaly", *FEATURES[4:])
"""Columns that depend on earlier days."""


@dataclass(frozen=True)
class Setup:
    """How the days are scored.

    Attributes:
        name: What is special about it.
        timeseries: How bursts are found.
        timezone: Time zone of the days of derived columns and incidents.
        parts: Runs a day.
    """

    name: str
    timeseries: Timeseries
    timezone: str = "UTC"
    parts: int = 1


@dataclass(frozen=True)
class Run:
    """What a run reads.

    Attributes:
        files: The files.
        start: Start of its time range; None for no limit.
        end: End of its time range.
        trains: Train, and save the models.
        with_state: Continue after the run before.
    """

    files: Sequence[Path]
    start: str | None = None
    end: str | None = None
    trains: bool = False
    with_state: bool = False


FOURIER = Timeseries(causal=True, hot_start=True, zscore_threshold=3.0)
SETUPS = (
    Setup("one run a day, `timeseries --causal`", FOURIER),
    Setup("one run a day, `timeseries --detector=rate`", Timeseries(detector="rate")),
    Setup("one run a day, days of another time zone", FOURIER, "America/New_York"),
    Setup("four runs a day", FOURIER, parts=4),
)


def tables(scale: Scale) -> Iterator[Table]:
    """Score the days in one run and in runs of their own, and compare all that is written."""
    users, days = (6, 10) if scale.quick else (20, 60)
    folder = scale.scratch / "days"
    found = make_days(folder, users, days)
    table = Table(
        f"{users} users, {len(found)} days: rows that differ from those of one run",
        ["runs", "rows", "different", "anomalous", "one run, s", "all runs, s"],
        note=f"All columns are compared as text, among them {', '.join(WATCHED)}.",
    )
    for setup in SETUPS:
        (folder / "features.txt").write_text("\n".join(FEATURES))
        score(folder, setup, Run(found[0], trains=True))
        (folder / "state.db").unlink(missing_ok=True)
        begin = time.perf_counter()
        once = sort(score(folder, setup, Run([path for day in found for path in day])))
        middle = time.perf_counter()
        runs = [run for day in found for run in divide(day, setup.parts)]
        daily = [score(folder, setup, run) for run in runs]
        end = time.perf_counter()
        rows, different = compare(once, sort(pl.concat(daily)))
        flagged = once.filter(pl.col("ts_anomaly") == "True").height
        table.add(setup.name, rows, different, flagged, middle - begin, end - middle)
    yield table


def make_days(folder: Path, users: int, days: int) -> list[list[Path]]:
    """Write logs, and return the files of each day that has any."""
    script = ROOT / "examples" / "make_fleet.py"
    # The fleet does not work on weekends.
    whole = TRAINING_DAYS + days * 7 // 5
    words = [f"--users={users}", f"--days={whole}", f"--training={TRAINING_DAYS}", "--seed=11"]
    command = [sys.executable, str(script), "--into", str(folder), *words, "--form=json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - a script of this repository
    paths = sorted((folder / "json").rglob("*.json.gz"), key=day_of)
    scored = [path for path in paths if "training" not in path.parts]
    return [list(found) for _, found in groupby(scored, key=day_of)][:days]


def day_of(path: Path) -> tuple[str, ...]:
    """Return the day of a log file in AWS's folders."""
    return path.parts[-4:-1]


def divide(files: Sequence[Path], parts: int) -> Iterator[Run]:
    """Yield the runs of a day."""
    day = datetime.strptime("".join(day_of(files[0])), "%Y%m%d").replace(tzinfo=UTC)
    for part in range(parts):
        start, end = (day + timedelta(days=each / parts) for each in (part, part + 1))
        run = Run(files, with_state=True)
        yield replace(run, start=start.isoformat(), end=end.isoformat()) if parts > 1 else run


def score(folder: Path, setup: Setup, run: Run) -> pl.DataFrame:
    """Score events in one run.

    Args:
        folder: Has the models, the state and the output.
        setup: How to score them.
        run: What it reads.
    """
    models = str(folder / f"models-{setup.timezone.replace('/', '-')}")
    output = folder / "rows.csv"
    train = (
        TrainAe(
            train_data_glob=str(folder / "json" / "training"),
            models_output_filename=models,
            train_epochs=3,
            train_min_history=100,
            seed=7,
        )
        if run.trains
        else TrainAe(pretrained_filename=models)
    )
    stages: list[Stage] = [
        FromCloudtrail(
            input_glob=tuple(map(str, run.files)), start_time=run.start, end_time=run.end
        ),
        train,
        Preprocess(),
        InfPytorch(),
        AddScores(label=SCORES),
        setup.timeseries,
        Explain(),
        Serialize(),
        ToFile(filename=str(output), overwrite=True),
    ]
    options = PipelineOptions(
        userid_column_name=USER,
        columns_file=str(folder / "features.txt"),
        timezone=setup.timezone,
        state=str(folder / "state.db") if run.with_state else None,
    )
    Pipeline(stages, options).run()
    return pl.read_csv(output, infer_schema=False)


def sort(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by user and number: the order of users differs between runs."""
    return rows.sort(pl.col(USER), pl.col("").cast(pl.Int64))


def compare(expected: pl.DataFrame, found: pl.DataFrame) -> tuple[int, int]:
    """Return the number of rows, and of those that are not the same in every column."""
    if expected.columns != found.columns:
        return expected.height, expected.height
    both = min(expected.height, found.height)
    equal = [expected[name].head(both).eq_missing(found[name].head(both)) for name in found.columns]
    same = pl.DataFrame(equal).select(pl.all_horizontal(pl.all()).sum()).item()
    return expected.height, max(expected.height, found.height) - int(same)
