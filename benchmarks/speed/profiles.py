"""Profiles, and the distance to the machine's peak speed."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from figures.table import Table
from isal import igzip

from morpheus.columns import TIME
from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.models.training import single_thread
from speed import chain
from speed.logs import COLUMNS, USER, Logs, fleet
from speed.meter import cpu_seconds, run
from speed.scale import Scale
from speed.scoring import fingerprints
from speed.training import histories

LINES = 12
PROFILED = """
import cProfile, sys
from morpheus.cli.main import main
profiler, kept = cProfile.Profile(), sys.argv.pop(1)
try:
    profiler.runcall(main)
finally:
    profiler.dump_stats(kept)
"""
ROWS = 128
"""Rows of the measured matrix products, about those of a training step."""
PASSES = 1.75
"""Training uses three quarters of a history to choose the epochs, then all of it."""


def tables(scale: Scale) -> Iterator[Table]:
    """Measure training, reading and scoring."""
    rich = fleet(scale.scratch, 12, rate=scale.rich, forms=("parquet",))
    users = histories(rich, 1000)[: 3 if scale.quick else 8]
    yield profile("training users with 1,000 rows", lambda: [learnt(user) for user in users])
    yield left_of_training(users)
    logs = fleet(scale.scratch, scale.users, copies=scale.copies)
    models = fingerprints(logs, scale)
    yield scoring_profile(logs, models, scale)
    yield left_of_scoring(logs)


def learnt(user: pl.DataFrame) -> Fingerprint:
    """Train a user's fingerprint."""
    return fit_fingerprint(user[USER][0], user, COLUMNS, times=user[TIME], seed=1)


def profile(what: str, action: Callable[[], object]) -> Table:
    """Profile a function in this process."""
    action()
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(action)
    return ranking(what, pstats.Stats(profiler))


def ranking(what: str, stats: pstats.Stats) -> Table:
    """Return the functions with the most time of their own."""
    total = stats.total_tt  # type: ignore[attr-defined]  # undocumented, since Python 2
    table = Table(f"Profile (cProfile): {what}", ["function", "calls", "own s", "share"])
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]  # the same
    for (file, _, name), (_, calls, own, _, _) in rows[:LINES]:
        place = "" if file == "~" else f"{Path(file).stem}."
        table.add(f"`{place}{name}`".replace("|", "/"), calls, own, f"{own / total:.0%}")
    return table


def scoring_profile(logs: Logs, models: Path, scale: Scale) -> Table:
    """Profile the whole command in one thread."""
    days = logs.folder / "json/scored/AWSLogs/*/CloudTrail/*/2025/04/1[4567]/*.json.gz"
    loaded = [f"--pretrained_filename={models}"]
    words = chain.words(str(days), loaded, scale.scratch / "profiled.csv", 1)
    kept = scale.scratch / "profile"
    run([sys.executable, "-c", PROFILED, str(kept), *words], cores=1)
    return ranking("reading and scoring, four days from `.json.gz`", pstats.Stats(str(kept)))


def left_of_training(users: list[pl.DataFrame]) -> Table:
    """Return CPU seconds of training compared with those of its matrix products."""
    table = Table(
        "Training a user with 1,000 rows: overhead above the matrix products",
        [
            "user",
            "distinct",
            "epochs",
            "vocabulary",
            "GFLOP",
            "GFLOP/s",
            "matrix products s",
            "total s",
        ],
        note=f"GFLOP/s is measured on matrix products of {ROWS} rows x vocabulary x hidden, one "
        "thread, float32. The products are those of both training runs, without passes over the "
        "validation events.",
    )
    for number, user in enumerate(users[:3], 1):
        spent = cpu_seconds(partial(learnt, user), 3)
        known = learnt(user)
        shape = known.net.config
        words, rows = sum(shape.code_counts), known.card.distinct
        epochs = known.card.epochs
        multiplied = 5 * words * shape.hidden + 6 * shape.hidden * shape.bottleneck + 2 * words * 30
        work = 2e-9 * multiplied * rows * epochs * PASSES
        speed = gflops(ROWS, words, shape.hidden)
        table.add(number, rows, epochs, words, work, speed, work / speed, spent)
    return table


def gflops(rows: int, words: int, hidden: int) -> float:
    """Measure the speed of the largest product of a step."""
    random = np.random.default_rng(0)
    one = random.standard_normal((rows, words), dtype=np.float32)
    two = random.standard_normal((words, hidden), dtype=np.float32)
    times = max(1, int(2e9 / (2 * rows * words * hidden)))
    with single_thread():
        spent = cpu_seconds(lambda: [one @ two for _ in range(times)], 3)
    return 2e-9 * rows * words * hidden * times / spent


def left_of_scoring(logs: Logs) -> Table:
    """Measure the libraries' time to decompress and to decode."""
    files = sorted((logs.folder / "json/scored").rglob("*.json.gz"))[:20]
    packed = [path.read_bytes() for path in files]
    inflate: Callable[[bytes], bytes] = igzip.decompress
    texts = [inflate(data) for data in packed]
    volume = sum(map(len, texts)) / 1e6
    events = sum(text.count(b'"eventID"') for text in texts)
    table = Table(
        "Reading: time in the libraries alone, one thread",
        ["step", "MB/s", "events/s"],
        note=f"{len(files)} files, {events:,} events of {volume / events * 1e6:,.0f} bytes.",
    )
    split = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
    whole = msgspec.json.Decoder()
    steps: dict[str, Callable[[], object]] = {
        "inflate (isal)": lambda: [inflate(data) for data in packed],
        "split into records (msgspec)": lambda: [split.decode(text) for text in texts],
        "decode every field (msgspec)": lambda: [whole.decode(text) for text in texts],
    }
    for name, step in steps.items():
        spent = cpu_seconds(step, 3)
        table.add(name, volume / spent, events / spent)
    return table
