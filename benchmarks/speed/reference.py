"""`--model reference` compared with the reference: scores on the golden logs, and cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import torch
from figures.table import Table
from numpy.typing import NDArray

from morpheus.core.stage import read_lines
from morpheus.models.fit import UserHistory
from morpheus.models.profile import Fingerprint
from morpheus.models.reference import (
    BATCH_SIZE,
    BOTTLENECK_UNITS,
    HIDDEN_UNITS,
    LAYER_NAMES,
    TRAIN_DTYPE,
    DfencoderConfig,
    fit_dfencoder_fingerprints,
    single_torch_thread,
)
from speed.meter import cpu_seconds
from speed.scale import Scale

GOLDEN = Path(__file__).parents[3] / "shared/data/golden"
COLUMNS = read_lines("columns_ae.txt", option="")
TOP = 20
"""Number of highest scores that are compared as a set."""
TIMES = 50
"""Number of matrix products to measure."""
Floats = NDArray[np.float64]


def tables(scale: Scale) -> Iterator[Table]:
    """Compare user by user, with means over seeds."""
    seeds = range(1 if scale.quick else 5)
    table = Table(
        "`--model reference` compared with the reference's own scores, means over seeds",
        [
            "user",
            "events",
            "rank correlation",
            f"top {TOP} in common",
            "mean score, relative",
            *("distinct rows", "GFLOP", "GFLOP/s", "matrix products s", "training CPU s"),
        ],
        note=f"{len(seeds)} seeds of ours and five of the reference, which ran on another machine: "
        "on the columns of its filled rows, with nulls treated equally in training and scoring. "
        "Mean score: ours as a share of the reference's. GFLOP/s is measured on matrix products of "
        f"{BATCH_SIZE} rows x {HIDDEN_UNITS} x {BOTTLENECK_UNITS}, one "
        "thread, in the number format of training.",
    )
    if not GOLDEN.is_dir():
        table.note = "Not measured: the golden logs (`../shared/data/golden`) are missing."
    for user, theirs in golden_scores():
        ours, known, spent = scored(user, seeds)
        ranks = [pl.Series(values).rank().to_numpy() for values in (ours, theirs)]
        common = set(highest(ours)) & set(highest(theirs))
        correlation = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        share = f"{ours.mean() / theirs.mean():.1%}"
        work, speed = gflop(known), gflops()
        alike = (correlation, f"{len(common) / TOP:.0%}", share)
        costs = (known.card.distinct, work, speed, work / speed, spent)
        table.add(user, len(ours), *alike, *costs)
    yield table


def golden_scores() -> Iterator[tuple[str, Floats]]:
    """Return each user with the reference's mean score of each event."""
    path = GOLDEN / "anomaly_scores_nv2209.csv"
    if path.exists():
        for part in pl.read_csv(path).sort("user", "row").partition_by("user"):
            yield part["user"][0], part["score_mean"].to_numpy()


def scored(user: str, seeds: range) -> tuple[Floats, Fingerprint, float]:
    """Return mean scores over seeds, a fingerprint, and median CPU seconds of training."""
    history, later = (events(part, user) for part in ("training", "validation"))
    scores, spent = [], []
    for seed in seeds:
        begin = time.process_time()
        known = learnt(user, history, seed)
        spent.append(time.process_time() - begin)
        rows = known.encoder.encode(later)
        scores.append(known.losses(rows).mean(1)[rows.inverse])
    return np.asarray(np.mean(scores, axis=0), dtype=np.float64), known, median(spent)


def learnt(user: str, history: pl.DataFrame, seed: int) -> Fingerprint:
    """Train a user as `--model reference` does. It ignores times."""
    when = pl.Series([datetime(2026, 1, 1, tzinfo=UTC)] * history.height)
    alone = UserHistory(user, history, when)
    return fit_dfencoder_fingerprints([alone], COLUMNS, seed=seed)[0]


def gflop(known: Fingerprint) -> float:
    """Measure the matrix products of training: forward, weights and backward."""
    shape = DfencoderConfig(
        known.net.config.code_counts,
        known.net.config.number_columns,
        HIDDEN_UNITS,
        BOTTLENECK_UNITS,
    )
    weights = sum(math.prod(shape.parameter_shapes[name]) for name in LAYER_NAMES)
    return 3 * 2e-9 * weights * known.card.distinct * known.card.epochs


def gflops() -> float:
    """Measure the speed of a product of a step."""
    one, two = (
        torch.randn(BATCH_SIZE, HIDDEN_UNITS).to(TRAIN_DTYPE),
        torch.randn(HIDDEN_UNITS, BOTTLENECK_UNITS).to(TRAIN_DTYPE),
    )
    with single_torch_thread():
        spent = cpu_seconds(lambda: [one @ two for _ in range(TIMES)], 5)
    return 2e-9 * BATCH_SIZE * HIDDEN_UNITS * BOTTLENECK_UNITS * TIMES / spent


def events(part: str, user: str) -> pl.DataFrame:
    """Return a user's events as the reference read them."""
    path = GOLDEN / part / f"cloudtrail-{user}-{part}.csv"
    account = pl.format("Account-{}", "userIdentityaccountId")
    return pl.read_csv(path, infer_schema=False).with_columns(userIdentityaccountId=account)


def highest(scores: Floats) -> list[int]:
    """Return the positions of the highest scores."""
    return [int(place) for place in np.argsort(-scores)[:TOP]]
