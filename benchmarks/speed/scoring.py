"""Scoring with fingerprints loaded, from files to CSV, beside the path of the reference."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import polars as pl
from figures.table import Table
from rivals.environment import answers

from speed import chain
from speed.logs import Logs, fleet
from speed.meter import cpu_seconds
from speed.scale import Scale
from speed.training import histories, job

SAMPLE = 20_000
"""Events that the rival is measured on."""


def tables(scale: Scale) -> Iterator[Table]:
    """Events a second, with one and two threads, from JSON and from Parquet."""
    logs = fleet(scale.scratch, scale.users, copies=scale.copies)
    models = fingerprints(logs, scale)
    table = Table(
        f"Scoring {logs.scored:,} events of {scale.users:,} users with fingerprints loaded",
        [
            "from",
            "threads, cores",
            "wall s",
            "CPU s",
            "events/s",
            "events a CPU s",
            "peak MB",
            "times the rival",
        ],
        note=f"Medians of {scale.runs}, cold processes, start included. The rival reads as "
        "Morpheus 22.11 does, as JSON lines and then with pandas `json_normalize`, and scores "
        "whole users with dfencoder 0.0.42, in one thread; each is measured on a sample, and its "
        "CPU seconds an event are added up, so its own start is left out. Times the rival: our "
        "events/s by the wall against its by CPU time.",
    )
    reads, scores = theirs(logs, scale)
    slow = 1 / (reads + scores)
    for form in ("json", "parquet"):
        for threads in (1, 2):
            source = logs.folder / form / "scored"
            runs = [chain.score(source, models, threads=threads) for _ in range(scale.runs)]
            wall, cpu, peak = (
                median(getattr(r, name) for r in runs) for name in ("wall", "cpu", "peak")
            )
            speed = logs.scored / wall
            table.add(form, threads, wall, cpu, speed, logs.scored / cpu, peak, speed / slow)
    table.add("json, rival's reading alone", 1, None, None, None, 1 / reads, None, None)
    table.add("rival's scoring alone", 1, None, None, None, 1 / scores, None, None)
    table.add("json, rival", 1, None, None, None, slow, None, 1)
    yield table


def fingerprints(logs: Logs, scale: Scale) -> Path:
    """The fleet's fingerprints; learnt now if they are not yet."""
    models = scale.scratch / f"models-{scale.users}"
    if not (models / "index.json").exists():
        chain.learn(logs, models)
    return models


def theirs(logs: Logs, scale: Scale) -> tuple[float, float]:
    """CPU seconds an event that the reference's path takes to read, and to score."""
    files = sorted((logs.folder / "json/scored").rglob("*.json.gz"))
    texts, events = [], 0
    while files and events < SAMPLE:
        texts.append(files.pop(0))
        events += len(json.loads(gzip.decompress(texts[-1].read_bytes()))["Records"])
    reading = cpu_seconds(lambda: [read_slowly(path) for path in texts]) / events
    history = max(histories(logs, 1), key=len).tail(1000)
    scored = pl.concat([history] * (SAMPLE // len(history) + 1)).head(SAMPLE)
    [answer] = answers("dfencoder", [job(scale, 0, history, scored)], epochs=1)
    return reading, answer["scoring"] / SAMPLE


def read_slowly(path: Path) -> int:
    """Read a log file as the reference does: as JSON lines, and once more if that is one record."""
    import pandas as pd  # noqa: PLC0415 - the rival's, not ours

    text = gzip.decompress(path.read_bytes())
    frame = pd.read_json(io.BytesIO(text), lines=True)
    if list(frame.columns) == ["Records"]:
        frame = pd.json_normalize(json.loads(text)["Records"])
    frame.columns = frame.columns.str.replace(".", "", regex=False)
    return len(frame)
