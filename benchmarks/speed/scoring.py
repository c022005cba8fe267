"""Scoring with loaded fingerprints, from files to CSV, compared with the reference's path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from figures.table import Table

from speed import chain, rival
from speed.logs import Logs, fleet
from speed.rival import NARROW, NEW, OLD, WIDE
from speed.scale import Scale


def tables(scale: Scale) -> Iterator[Table]:
    """Return events per second, with one and two threads, from JSON and from Parquet."""
    logs = fleet(scale.scratch, scale.users, copies=scale.copies)
    models = fingerprints(logs, scale)
    paths = list(rival.measured(logs, scale))
    table = Table(
        f"Scoring {logs.scored:,} events of {scale.users:,} users with loaded fingerprints",
        [
            *("format", "columns of", "threads, cores", "wall s", "CPU s", "events/s"),
            *("events per CPU s", "peak MB", "times the reference"),
            "times the reference in the lessons",
        ],
        note=f"Medians of {scale.runs} cold processes, including their start. Columns of 22.08: "
        "`ae_anomaly_score`. Columns of 22.11, with `--compat 22.11`: also the z-score of each "
        "column's loss. Times the reference: our events per second of wall time, divided by its "
        f"events per CPU second, for the same columns and {WIDE:,} rows per call. In the lessons, "
        f"the reference uses its default of {NARROW} rows per call.",
    )
    for form, release in (("json", OLD), ("json", NEW), ("parquet", OLD)):
        theirs = {path.rows: path.speed for path in paths if path.release == release}
        for threads in (1, 2):
            source = logs.folder / form / "scored"
            runs = [
                chain.score(source, models, threads=threads, release=release)
                for _ in range(scale.runs)
            ]
            wall, cpu, peak = (
                median(getattr(r, name) for r in runs) for name in ("wall", "cpu", "peak")
            )
            speed = logs.scored / wall
            times = (speed / theirs[WIDE], speed / theirs[NARROW])
            table.add(form, release, threads, wall, cpu, speed, logs.scored / cpu, peak, *times)
    yield table
    yield rival.table(paths)


def fingerprints(logs: Logs, scale: Scale) -> Path:
    """Return the fleet's fingerprints; train them if needed."""
    models = scale.scratch / f"models-{scale.users}"
    if not (models / "store.json").exists():
        chain.learn(logs, models)
    return models
