"""Waiting times: the first notebook's command, the help, and the import."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from figures.table import Table

from speed.meter import MORPHEUS, Run, run
from speed.scale import Scale

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLISHED = 3.36
"""Seconds that upstream published for the same job, on a Quadro RTX 8000 (22.11 to 24.06)."""
LESSON = """
run pipeline-ae --userid_column_name=userIdentitysessionContextsessionIssueruserName
from-cloudtrail --input_glob=data/input-data/*.csv
train-ae --train_data_glob=data/training-data/*.csv --seed 42
preprocess inf-pytorch add-scores timeseries --resolution=10m --zscore_threshold=8.0
serialize to-file --filename=data/output/output.csv --overwrite
"""
IMPORTS = ("morpheus.cli.main", "polars", "torch")


def tables(scale: Scale) -> Iterator[Table]:
    """Measure new processes."""
    folder = copy_lesson(scale)
    times = 1 if scale.quick else 9
    table = Table(
        "Cold processes",
        ["process", "wall s", "CPU s", "peak MB", "relative to NVIDIA"],
        note=f"Medians of {times}. NVIDIA's figure is the published one, from another machine and "
        "with the user filter on. Ours trains both users on the cores of this machine.",
    )
    table.add("lesson 000, NVIDIA, published", PUBLISHED, None, None, 1)
    wall = add(table, "lesson 000", [*MORPHEUS, *lesson_words()], times, folder)
    table.rows[-1] = [*table.rows[-1][:4], wall / PUBLISHED]
    add(table, "morpheus --help", [*MORPHEUS, "--help"], times, folder)
    add(table, "python", [sys.executable, "-c", ""], times, folder)
    for name in IMPORTS:
        add(table, f"import {name}", [sys.executable, "-c", f"import {name}"], times, folder)
    yield table


def copy_lesson(scale: Scale) -> Path:
    """Return a folder with the lesson's data."""
    folder = scale.scratch / "lesson"
    if not folder.exists():
        shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("output"))
    return folder


def lesson_words() -> list[str]:
    """Return the words of the first notebook's command, after `morpheus`."""
    return LESSON.split()


def add(table: Table, what: str, command: list[str], times: int, folder: Path) -> float:
    """Run a command several times, and add the medians."""
    runs: list[Run] = [run(command, folder=folder) for _ in range(times)]
    wall = median(run.wall for run in runs)
    cpu, peak = median(run.cpu for run in runs), median(run.peak for run in runs)
    table.add(what, wall, cpu, peak, None)
    return wall
