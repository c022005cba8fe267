"""`--model reference` beside the reference: what it says on the golden logs, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
from figures.table import Table
from numpy.typing import NDArray

from morpheus.columns import read_lines
from morpheus.models import learning, reference_training
from morpheus.models.fingerprint import Fingerprint
from speed.scale import Scale

GOLDEN = Path(__file__).parents[3] / "shared/data/golden"
COLUMNS = read_lines("columns_ae.txt", option="")
TOP = 20
"""The highest scores, which are compared as a set."""
Floats = NDArray[np.float64]


def tables(scale: Scale) -> Iterator[Table]:
    """User by user, means over seeds on both sides."""
    seeds = range(1 if scale.quick else 5)
    table = Table(
        "`--model reference` beside the reference's own scores, means over seeds",
        [
            "user",
            "events",
            "rank correlation",
            f"top {TOP} in common",
            "mean score, of the reference's",
            "CPU s to learn",
        ],
        note=f"{len(seeds)} seeds of ours, five of the reference, which was run elsewhere: on the "
        "columns of its filled rows, with nulls treated alike in training and in scoring.",
    )
    if not GOLDEN.is_dir():
        table.note = "The golden logs are not beside this checkout (`../shared/data/golden`)."
    for user, theirs in golden_scores():
        ours, spent = scored(user, seeds)
        ranks = [pl.Series(values).rank().to_numpy() for values in (ours, theirs)]
        common = set(highest(ours)) & set(highest(theirs))
        correlation = float(np.corrcoef(*ranks)[0, 1])
        share = f"{ours.mean() / theirs.mean():.1%}"
        table.add(user, len(ours), correlation, f"{len(common) / TOP:.0%}", share, spent)
    yield table


def golden_scores() -> Iterator[tuple[str, Floats]]:
    """Each user, and the reference's mean score of each event."""
    path = GOLDEN / "anomaly_scores_nv2209.csv"
    if path.exists():
        for part in pl.read_csv(path).sort("user", "row").partition_by("user"):
            yield part["user"][0], part["score_mean"].to_numpy()


def scored(user: str, seeds: range) -> tuple[Floats, float]:
    """The mean score of each event over seeds, and median CPU seconds to learn the user."""
    history, later = (events(part, user) for part in ("training", "validation"))
    scores, spent = [], []
    for seed in seeds:
        begin = time.process_time()
        known = learnt(user, history, seed)
        spent.append(time.process_time() - begin)
        rows = known.encoder.encode(later)
        scores.append(known.losses(rows).mean(1)[rows.row_of])
    return np.asarray(np.mean(scores, axis=0), dtype=np.float64), median(spent)


def learnt(user: str, history: pl.DataFrame, seed: int) -> Fingerprint:
    """Learn a user as `--model reference` does; times say nothing to it."""
    when = pl.Series([datetime(2026, 1, 1, tzinfo=UTC)] * history.height)
    alone = learning.History(user, history, when)
    return reference_training.learn_all([alone], COLUMNS, seed=seed)[0]


def events(part: str, user: str) -> pl.DataFrame:
    """A user's events as the reference read them."""
    path = GOLDEN / part / f"cloudtrail-{user}-{part}.csv"
    account = pl.format("Account-{}", "userIdentityaccountId")
    return pl.read_csv(path, infer_schema=False).with_columns(userIdentityaccountId=account)


def highest(scores: Floats) -> list[int]:
    """Places of the highest scores."""
    return np.argsort(-scores)[:TOP].tolist()
