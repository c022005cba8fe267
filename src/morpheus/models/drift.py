"""Drift: whether a user's behaviour has changed, and what of it may be learned.

`drift_martingale` tests whether scores are still exchangeable with those of the calibration, `psi`
says how much a distribution has shifted, and `find_rise` finds a sustained rise of daily values.
`select_learnable` says which events a retraining may learn.

Sizes in shapes: n events or days, in time order, m calibration days, V values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BET_EXPONENTS = 64
"""Number of bets in the mixture. More do not change the martingale by 1 %."""
DRIFT_LIMIT = 2.0
"""Base-10 logarithm of the martingale from which data have drifted: by Ville's inequality, at most
one user in 100 without a change ever gets there."""
MIN_TEST_PVALUE = 1e-6
"""Lowest p-value that is bet on, so that no single value decides."""
PSI_SLIGHT, PSI_LARGE = 0.1, 0.25
"""Limits of a slight and of a large shift (Siddiqi 2006, Credit Risk Scorecards)."""
PSI_BINS = 10
"""Number of equally frequent bins of a score, and of values of a column next to all others."""
PSI_PRIOR = 0.5
"""Number of events added to each bin, so that an empty one does not give infinity."""
CUSUM_SLACK, CUSUM_LIMIT = 0.5, 5.0
"""Reference value and decision interval in standard deviations (Montgomery, Introduction to
Statistical Quality Control): a rise by one standard deviation is found in about 10 days, and
independent days without a rise give a false alarm about every 930 days."""
MAX_DAY_Z = 2.0
"""Limit of the value of a day, in standard deviations. So at least four days make a rise."""
TRIMMED_SHARE = 0.1
"""Share of the events since the last training, the strangest ones, that are not learned yet."""
MAX_LEARNED_PVALUE = 0.03
"""P-value up to which an event is above the threshold, and is not learned: severity 50, high."""


def compute_pvalues(calibration: FloatArray, scores: FloatArray, seed: int = 0) -> FloatArray:
    """Return the conformal p-value of each score among the calibration and the scores before it.

    If all are exchangeable, the p-values are independent and uniform, because ties are broken at
    random (Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World).

    Args:
        calibration: Scores of calibration days, (m,).
        scores: Scores of later days, in time order, (n,).
        seed: Random seed of the ties.

    Returns:
        P-values, (n,).

    >>> compute_pvalues(np.arange(99.0), np.array([1000.0, -1.0])).round(1).tolist()
    [0.0, 1.0]
    """
    random = np.random.default_rng(seed)
    known = np.concatenate([calibration, scores])
    pvalues = np.empty(len(scores))
    for position, score in enumerate(scores):
        earlier = known[: len(calibration) + position]
        higher, equal = (earlier > score).sum(), (earlier == score).sum() + 1
        pvalues[position] = (higher + random.random() * equal) / (len(earlier) + 1)
    return pvalues


def drift_martingale(pvalues: FloatArray) -> FloatArray:
    """Return the base-10 logarithm of the mixture martingale after each p-value, (n,).

    A power martingale bets that p-values are low: it is multiplied by e * p ** (e - 1) at each. Its
    mean over exponents e between 0 and 1 needs no choice of one (Vovk, Nouretdinov and Gammerman
    2003, Testing exchangeability on-line, ICML). If data are exchangeable, the martingale reaches
    10 ** `DRIFT_LIMIT` with a probability of at most 10 ** -`DRIFT_LIMIT` (Ville 1939).

    Args:
        pvalues: P-values in time order, (n,).

    >>> drift_martingale(np.full(20, 0.05))[-1] > DRIFT_LIMIT
    np.True_
    >>> drift_martingale(np.linspace(0.05, 1, 20))[-1] > DRIFT_LIMIT
    np.False_
    """
    exponents = (np.arange(BET_EXPONENTS) + 0.5) / BET_EXPONENTS
    logs = np.log(np.clip(pvalues, MIN_TEST_PVALUE, 1.0))
    bets = np.log(exponents) + (exponents - 1) * logs[:, None]
    capital = bets.cumsum(0)
    highest = capital.max(1, keepdims=True, initial=-np.inf)
    mean = np.exp(capital - highest).mean(1)
    return np.asarray((np.log(mean) + highest[:, 0]) / math.log(10))


def psi(expected: NDArray[np.integer[Any]], actual: NDArray[np.integer[Any]]) -> float:
    """Return the population stability index of two histograms, in nats.

    It is the sum over bins of (a - e) ln(a / e), where e and a are the shares of a bin.

    Args:
        expected: Number of events in each bin, (V,).
        actual: The same for later events, (V,).

    >>> [round(psi(np.array([50, 50]), np.array(later)), 2) for later in ([500, 500], [90, 10])]
    [0.0, 0.85]
    """
    before, after = (
        (counts + PSI_PRIOR) / (counts.sum() + PSI_PRIOR * len(counts))
        for counts in (np.asarray(expected, np.float64), np.asarray(actual, np.float64))
    )
    return float(((after - before) * np.log(after / before)).sum())


def psi_noise(bins: int, expected: int, actual: int) -> float:
    """Return the index that one in 20 samples without a shift exceeds.

    The index is about (1 / expected + 1 / actual) times a chi-squared value with bins - 1 degrees
    of freedom (Yurdakul 2018). Wilson and Hilferty's approximation of that is within 2 %.

    Args:
        bins: Number of bins.
        expected: Number of earlier events.
        actual: Number of later events.

    >>> round(psi_noise(10, 1000, 1000), 3)
    0.034
    """
    freedom = max(bins - 1, 1)
    part = 2 / (9 * freedom)
    quantile = freedom * (1 - part + NormalDist().inv_cdf(0.95) * math.sqrt(part)) ** 3
    return quantile * (1 / max(expected, 1) + 1 / max(actual, 1))


class Shift(msgspec.Struct, frozen=True):
    """How much a distribution has shifted.

    Attributes:
        psi: The population stability index, in nats.
        noise: The index that one in 20 samples without a shift exceeds.
    """

    psi: float
    noise: float

    @property
    def is_large(self) -> bool:
        """Whether the shift is large, and not due to few events."""
        return self.psi > max(PSI_LARGE, self.noise)


def measure_score_shift(expected: FloatArray, actual: FloatArray) -> Shift:
    """Return the shift of scores, in bins that are equally frequent among the earlier ones.

    Args:
        expected: Earlier scores, (n,).
        actual: Later scores, (n,).

    >>> usual = np.arange(1000.0)
    >>> measure_score_shift(usual, usual).is_large, measure_score_shift(usual, usual + 500).is_large
    (False, True)
    """
    shares = np.arange(1, PSI_BINS) / PSI_BINS
    edges = np.unique(np.quantile(expected, shares)) if len(expected) else np.empty(0)
    before, after = (
        np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)
        for scores in (expected, actual)
    )
    noise = psi_noise(len(edges) + 1, len(expected), len(actual))
    return Shift(psi(before, after), noise)


def measure_column_shift(expected: pl.Series, actual: pl.Series) -> Shift:
    """Return the shift of a column: of its `PSI_BINS` most frequent values, and all others.

    Args:
        expected: Earlier values, (n,).
        actual: Later values, (n,).

    >>> days, nights = pl.Series(["day"] * 90 + ["night"] * 10), pl.Series(["night"] * 100)
    >>> measure_column_shift(days, days).is_large, measure_column_shift(days, nights).is_large
    (False, True)
    """
    counts = [values.cast(pl.String).value_counts(sort=True) for values in (expected, actual)]
    before, after = (dict(table.iter_rows()) for table in counts)
    names = sorted(before, key=lambda name: (-before[name], name or ""))[:PSI_BINS]
    bins = [
        np.array([*(table.get(name, 0) for name in names), _count_others(table, names)])
        for table in (before, after)
    ]
    return Shift(psi(*bins), psi_noise(len(names) + 1, len(expected), len(actual)))


def _count_others(counts: Mapping[str | None, int], names: list[str | None]) -> int:
    known = set(names)
    return sum(count for name, count in counts.items() if name not in known)


class Rise(msgspec.Struct, frozen=True):
    """A sustained rise.

    Attributes:
        start: Position of the first day of the rise.
        found: Position of the day on which it was found.
        height: Highest value of the sum, in standard deviations.
    """

    start: int
    found: int
    height: float


def find_rise(pvalues: FloatArray, limit: float = CUSUM_LIMIT) -> Rise | None:
    """Find the first sustained rise of daily values: a one-sided CUSUM (Page 1954).

    Each day adds its normal score, at most `MAX_DAY_Z`, less `CUSUM_SLACK`. A sum below 0 starts
    from 0 again. A rise is found when the sum exceeds the limit. It started when the sum last left
    0.

    Args:
        pvalues: P-value of each day among usual days, in time order, (n,).
        limit: The limit, in standard deviations.

    Returns:
        The rise; None if there is none.

    >>> find_rise(np.array([0.5, 0.5, 0.02, 0.02, 0.02, 0.02]))
    Rise(start=2, found=5, height=6.0)
    >>> find_rise(np.array([0.5, 1e-9, 0.5, 0.5, 1e-9, 0.5])) is None  # not sustained
    True
    """
    total, start, rise = 0.0, 0, None
    for day, step in enumerate(score_normal(pvalues) - CUSUM_SLACK):
        start = day if total <= 0 else start
        total = max(total + float(step), 0.0)
        if rise is not None and total <= 0:
            break
        if total > limit and (rise is None or total > rise.height):
            rise = Rise(start, day if rise is None else rise.found, total)
    return rise


def score_normal(pvalues: FloatArray) -> FloatArray:
    """Return the normal score of p-values, at most `MAX_DAY_Z` in size, (n,).

    >>> score_normal(np.array([0.5, 1e-9])).tolist()
    [0.0, 2.0]
    """
    normal = NormalDist()
    lowest = normal.cdf(-MAX_DAY_Z)
    clipped = np.clip(pvalues, lowest, 1 - lowest)
    scores = np.array([-normal.inv_cdf(pvalue) for pvalue in clipped.tolist()])
    return np.asarray(scores.round(9) + 0.0)


def expected_run_length(shift: float, limit: float = CUSUM_LIMIT) -> float:
    """Return the mean number of days until `find_rise` finds a rise (Siegmund 1985).

    Args:
        shift: Rise of the daily values in standard deviations; 0 for the days to a false alarm.
        limit: The limit of `find_rise`, in standard deviations.

    >>> round(expected_run_length(0.0)), round(expected_run_length(1.0), 1)
    (938, 10.3)
    """
    drift, interval = shift - CUSUM_SLACK, limit + 1.166
    if drift == 0:
        return interval**2
    return (math.exp(-2 * drift * interval) + 2 * drift * interval - 1) / (2 * drift**2)


def trim_strangest(scores: FloatArray, share: float = TRIMMED_SHARE) -> BoolArray:
    """Return which events are among the strangest ones, (n,).

    At most the share of the events is trimmed. Of equal scores, all or none are, so that the order
    of events does not matter.

    Args:
        scores: How strange each event is, (n,).
        share: Maximum share of the events to trim.

    >>> trim_strangest(np.array([1.0, 9.0, 2.0, 3.0]), 0.25).tolist()
    [False, True, False, False]
    >>> trim_strangest(np.array([1.0, 1.0, 1.0, 1.0]), 0.25).tolist()
    [False, False, False, False]
    """
    allowed = int(len(scores) * share)
    limit = np.sort(scores)[::-1][allowed] if allowed < len(scores) else -np.inf
    return np.asarray(scores > limit)


class Selection(msgspec.Struct, frozen=True):
    """What a retraining does with each event.

    Attributes:
        unusual: Above the threshold: neither learned nor used for the calibration, (n,).
        suspicious: Part of an open or dangerous incident: the same, (n,).
        trimmed: Among the strangest: used for the calibration, but not learned, (n,).
    """

    unusual: BoolArray
    suspicious: BoolArray
    trimmed: BoolArray

    @property
    def usable(self) -> BoolArray:
        """Whether an event is used at all, (n,)."""
        return ~(self.unusual | self.suspicious)

    @property
    def learned(self) -> BoolArray:
        """Whether an event is learned, (n,)."""
        return self.usable & ~self.trimmed


def select_learnable(  # noqa: PLR0913 - what the choice depends on, and nothing else
    pvalues: FloatArray,
    scores: FloatArray,
    suspicious: BoolArray,
    accepted: BoolArray | None = None,
    *,
    fresh: BoolArray | None = None,
    threshold: float = MAX_LEARNED_PVALUE,
    share: float = TRIMMED_SHARE,
) -> Selection:
    """Return which events may be learned: below the threshold, outside of open incidents, usual.

    Args:
        pvalues: Lowest p-value of each event among the models that are asked, (n,).
        scores: How strange each event is by the strictest of them, (n,).
        suspicious: Whether it is part of an open or dangerous incident, (n,).
        accepted: Whether a person has accepted it as normal, so that only `suspicious` counts,
            (n,).
        fresh: Whether it is new since the last training, (n,); None if all are. Others are not
            trimmed: what is rare but usual must be learned some time.
        threshold: P-value up to which an event is above the threshold.
        share: Share of the remaining fresh events to trim, the strangest ones.

    >>> pvalues, scores = np.array([0.5, 0.001, 0.4, 0.3]), np.array([0.0, 80.0, 10.0, 5.0])
    >>> suspicious = np.array([False, False, False, True])
    >>> select_learnable(pvalues, scores, suspicious, share=0.5).learned.tolist()
    [True, False, False, False]
    """
    accepted = np.zeros(len(pvalues), dtype=np.bool_) if accepted is None else accepted
    fresh = np.ones(len(pvalues), dtype=np.bool_) if fresh is None else fresh
    unusual = (pvalues <= threshold) & ~accepted
    trimmed = np.zeros(len(pvalues), dtype=np.bool_)
    rest = fresh & ~(unusual | suspicious | accepted)
    trimmed[rest] = trim_strangest(scores[rest], share)
    return Selection(unusual, suspicious, trimmed)
