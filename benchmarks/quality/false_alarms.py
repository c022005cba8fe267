"""False alarms on benign events: over the test period, and by p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from figures.table import Table
from numpy.typing import NDArray

from quality.judge import Verdict
from quality.trial import BENIGN

Floats = NDArray[np.float64]
RATE = 0.01
"""Share of false alarms in the first third of the test period."""
LOW = 0.01
"""The p-value whose frequency on benign days is counted."""


class Rates(NamedTuple):
    """Share of benign events above a threshold, in the first and the last third of the time."""

    first: float
    last: float


def compare_thirds(verdict: Verdict, scores: Mapping[str, Floats]) -> dict[str, Rates]:
    """Return the false alarms of each scorer, with the threshold of the first third."""
    return {name: compute_rates(verdict, score[verdict.rows]) for name, score in scores.items()}


def compute_rates(verdict: Verdict, scores: Floats) -> Rates:
    """Return the false alarms above the threshold that the first third allows.

    The first third is not exactly at `RATE` if scores are equal. Events without a score raise no
    alarm.
    """
    when = verdict.calendar["when"].dt.epoch("s").to_numpy()
    third = (when - when.min()) * 3 / max(int(np.ptp(when)), 1)
    benign = verdict.incident == BENIGN
    known = np.where(np.isnan(scores), -np.inf, scores)
    first, last = known[benign & (third < 1)], known[benign & (third >= 2)]  # noqa: PLR2004 - thirds
    limit = np.sort(first)[::-1][int(RATE * len(first))]
    return Rates(float((first > limit).mean()), float((last > limit).mean()))


def share_low_days(verdict: Verdict, pvalues: Floats) -> float | None:
    """Return the share of days without an incident that have a p-value of at most `LOW`.

    None if there is no such day with a p-value.
    """
    rows = verdict.calendar.select("day", pvalue=pvalues[verdict.rows])
    rows = rows.filter(pl.Series(verdict.benign_days) & rows["pvalue"].is_not_nan())
    lowest = rows.group_by("day").agg(pl.col("pvalue").min())["pvalue"].to_numpy()
    return float((lowest <= LOW).mean()) if len(lowest) else None


def table(found: Sequence[tuple[str, Mapping[str, Rates]]]) -> Table:
    """Return the shares in the last third and their growth, means over seeds."""
    words = list(found[0][1])
    header = ["set", "share of benign events", *words]
    note = (
        "The threshold allows false alarms on 1 % of the benign events of the first third of the "
        "test period. A score that holds has the same share in the last third."
    )
    result = Table("False alarms over time, on sets with drift", header, note=note)
    for name in dict.fromkeys(name for name, _ in found):
        seeds = [each for known, each in found if known == name]
        mean = {word: np.mean([each[word] for each in seeds], axis=0) for word in words}
        result.add(name, "in the first third", *(f"{mean[word][0]:.2%}" for word in words))
        result.add(name, "in the last third", *(f"{mean[word][1]:.2%}" for word in words))
    return result
