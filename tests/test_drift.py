"""The laws of the drift tests, and of what a retraining may learn."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import polars as pl
import pytest

from morpheus.models.drift import (
    BET_EXPONENTS,
    CUSUM_LIMIT,
    DRIFT_LIMIT,
    compute_pvalues,
    drift_martingale,
    expected_run_length,
    find_rise,
    measure_column_shift,
    measure_score_shift,
    psi,
    select_learnable,
    trim_strangest,
)

USERS, DAYS, BASELINE = 2_000, 60, 14


def draw_users(shift: float = 0.0, users: int = USERS) -> np.ndarray:
    """Return daily scores of some users, (users, days); they rise by the shift after half."""
    random = np.random.default_rng(7)
    scores = random.lognormal(size=(users, BASELINE + DAYS))
    scores[:, BASELINE + DAYS // 2 :] *= np.exp(shift)
    return scores


def test_pvalues_of_exchangeable_days_are_uniform_and_independent_also_with_ties() -> None:
    random = np.random.default_rng(3)
    scores = random.integers(0, 3, size=(500, BASELINE + 20)).astype(np.float64)
    pvalues = np.array(
        [
            compute_pvalues(each[:BASELINE], each[BASELINE:], seed)
            for seed, each in enumerate(scores)
        ]
    )
    shares = np.histogram(pvalues, bins=10, range=(0, 1))[0] / pvalues.size
    assert abs(shares - 0.1).max() < 0.012
    correlation = np.corrcoef(pvalues[:, :-1].ravel(), pvalues[:, 1:].ravel())[0, 1]
    assert abs(correlation) < 0.03


def test_at_most_one_user_in_100_without_a_change_has_drifted() -> None:
    pvalues = np.array([compute_pvalues(each[:BASELINE], each[BASELINE:]) for each in draw_users()])
    highest = np.array([drift_martingale(each).max() for each in pvalues])
    assert (highest >= DRIFT_LIMIT).mean() <= 10**-DRIFT_LIMIT
    changed = np.array(
        [
            drift_martingale(compute_pvalues(each[:BASELINE], each[BASELINE:])).max()
            for each in draw_users(shift=2.0, users=200)
        ]
    )
    assert (changed >= DRIFT_LIMIT).mean() > 0.8


def test_the_martingale_has_the_value_that_the_mixture_defines() -> None:
    pvalues = [0.2, 0.7]
    exponents = (np.arange(BET_EXPONENTS) + 0.5) / BET_EXPONENTS
    capital = [np.prod([e * p ** (e - 1) for p in pvalues]) for e in exponents]
    assert drift_martingale(np.array(pvalues))[-1] == pytest.approx(np.log10(np.mean(capital)))


def test_false_alarms_and_delays_of_rises_are_as_expected() -> None:
    random = np.random.default_rng(5)
    runs = random.random((300, 2_000))
    found = [rise.found + 1 if (rise := find_rise(each)) else 2_000 for each in runs]
    # A few of these runs end without an alarm, and days count at most two deviations.
    assert expected_run_length(0.0) * 0.7 < np.mean(found) < expected_run_length(0.0) * 1.6
    normal = NormalDist()
    shifted = [[1 - normal.cdf(value) for value in random.normal(1.0, size=60)] for _ in range(300)]
    delays = [rise.found + 1 for each in shifted if (rise := find_rise(np.array(each)))]
    assert len(delays) >= 297
    assert abs(np.mean(delays) - expected_run_length(1.0)) < 2


def test_no_single_day_is_a_rise_however_unusual() -> None:
    for place in range(20):
        pvalues = np.full(20, 0.5)
        pvalues[place] = 1e-12
        assert find_rise(pvalues) is None
    rise = find_rise(np.array([0.5, 0.5, *[1e-12] * 4, 0.5]))
    assert rise is not None
    assert (rise.start, rise.found) == (2, 5)
    assert rise.height > CUSUM_LIMIT


def test_psi_is_symmetric_and_grows_with_the_shift() -> None:
    usual, little, much = (np.array(each) for each in ([50, 50], [60, 40], [90, 10]))
    assert psi(usual, usual) == 0
    assert psi(usual, much) == pytest.approx(psi(much, usual))
    assert psi(usual, little) < psi(usual, much)


def test_few_events_alone_are_no_shift() -> None:
    random = np.random.default_rng(11)
    usual = random.normal(size=5_000)
    few = [measure_score_shift(usual, random.normal(size=12)) for _ in range(200)]
    assert np.mean([shift.psi > 0.25 for shift in few]) > 0.5
    assert np.mean([shift.is_large for shift in few]) < 0.12
    values = pl.Series(random.choice(["a", "b", "c"], 600))
    assert not measure_column_shift(values[:300], values[300:]).is_large
    assert measure_column_shift(values[:300], pl.Series(["d"] * 300)).is_large


def test_trimming_does_not_depend_on_the_order_of_events() -> None:
    random = np.random.default_rng(13)
    scores = random.integers(0, 20, 200).astype(np.float64)
    order = random.permutation(200)
    assert (trim_strangest(scores)[order] == trim_strangest(scores[order])).all()
    assert trim_strangest(scores).sum() <= 20
    assert scores[trim_strangest(scores)].min() > scores[~trim_strangest(scores)].max()


def test_what_is_learned_is_never_above_the_threshold_nor_in_an_open_incident() -> None:
    random = np.random.default_rng(17)
    pvalues, scores = random.random(1_000), random.random(1_000)
    suspicious, accepted = random.random(1_000) < 0.1, random.random(1_000) < 0.1
    chosen = select_learnable(pvalues, scores, suspicious, accepted, threshold=0.05)
    assert not (chosen.learned & suspicious).any()
    assert not (chosen.learned & (pvalues <= 0.05) & ~accepted).any()
    assert chosen.learned[accepted & ~suspicious].all()
    usable = ~suspicious & ~accepted & (pvalues > 0.05)
    assert chosen.trimmed.sum() == int(usable.sum() * 0.1)
    assert (chosen.usable == (chosen.learned | chosen.trimmed)).all()
