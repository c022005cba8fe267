import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.seasonality.detector import (
    detect_anomalous_bins,
    detect_anomalous_centres,
    extract_windows,
    max_zscore,
)

GOLDEN = Path(__file__).parents[2] / "../shared/data/golden/fftad_cases.json"
CASES = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []


def plain_centre_is_anomalous(counts, *, percent, threshold):
    """Plain implementation of the rule for the centre of one window."""
    n = len(counts)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n)
    spectrum = turns @ counts
    power = np.abs(turns @ (counts - counts.mean())) ** 2
    spectrum[power < np.percentile(power, percent)] = 0
    distance = np.abs(np.fft.irfft(spectrum, n) - counts)
    return distance[n // 2] - distance.mean() >= threshold * distance.std()


@pytest.mark.skipif(not CASES, reason="upstream's cases are missing (shared/data/golden)")
@pytest.mark.parametrize("case", range(24))
def test_anomalies_of_a_window_equal_those_of_upstream(case):
    about = CASES[case]
    found = detect_anomalous_bins(
        np.array(about["signal"]),
        filter_percent=about["filter_percent"],
        zscore=about["zscore"],
    )
    assert found.tolist() == about["flagged"]


def test_strongest_frequency_alone_explains_a_cosine():
    # Of the powers 0, P1 .. P4, only the strongest stays at 100 %. The signal is one cosine of
    # period 8 with amplitude 4 around 10, and that cosine explains it: distances are all 10.
    wave = 10 + 4 * np.cos(np.arange(8) * 2 * np.pi / 8)
    assert detect_anomalous_bins(wave, filter_percent=100, zscore=0).tolist() == []


def test_spike_in_a_period_of_two_equals_a_calculation_by_hand():
    # 0 2 0 2 ... (16 cells) has all its power at frequency 8. The spike of 12 in cell 5 adds the
    # same to every frequency, so at 100 % only frequency 8 stays: it rebuilds, with the mean left
    # out, -+(1 + 10/16) = -+1.625. Distances: 1.625 in 8 cells of 0, .375 in 7 cells of 2, and
    # 12 - 1.625 = 10.375 in the spike. Mean 1.625, spread sqrt((7 * 1.25**2 + 8.75**2) / 16)
    # = 2.3385: z = 8.75 / 2.3385 = 3.74.
    beat = np.tile([0, 2], 8)
    beat[5] = 12
    assert detect_anomalous_bins(beat, filter_percent=100, zscore=3.7).tolist() == [5]
    assert detect_anomalous_bins(beat, filter_percent=100, zscore=3.8).tolist() == []


@pytest.mark.parametrize("counts", [[], [5], [0] * 50, [7] * 50, [0, 3] * 50])
def test_window_explained_by_its_periodic_pattern_has_no_anomaly(counts):
    for percent in (0, 50, 90, 100):
        assert (
            detect_anomalous_bins(np.array(counts), filter_percent=percent, zscore=0.5).tolist()
            == []
        )


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=2, max_size=60),
    st.integers(2, 20),
)
def test_many_windows_give_the_results_of_single_windows(steps, half):
    bins = np.cumsum([step for step, _ in steps])
    counts = np.array([count for _, count in steps])
    found = detect_anomalous_centres(bins, counts, bins, half_width=half, zscore=3)
    for centre in bins:
        [window] = extract_windows(bins, counts, np.array([centre]), half_width=half)
        if np.count_nonzero(window) > 1:
            alone = half in detect_anomalous_bins(window, zscore=3)
            assert (centre in found) == alone


@given(st.integers(0, 2**32), st.integers(5, 30))
def test_random_counts_give_the_results_of_a_plain_implementation(seed, half):
    counts = np.random.default_rng(seed).poisson(5.0, 200) + 1
    counts[100] += 40
    bins = np.arange(200)
    found = detect_anomalous_centres(
        bins, counts, bins[95:105], half_width=half, zscore=2.5
    ).tolist()
    expected = [
        centre
        for centre in range(95, 105)
        if plain_centre_is_anomalous(
            counts[centre - half : centre + half + 1], percent=90, threshold=2.5
        )
    ]
    assert found == expected


def test_empty_bins_are_zero_for_any_width_of_the_gap():
    bins, counts = np.array([0, 2, 10**12]), np.array([4, 5, 6])
    windows = extract_windows(bins, counts, bins, half_width=2)
    assert windows.tolist() == [[0, 0, 4, 0, 5], [4, 0, 5, 0, 0], [0, 0, 6, 0, 0]]


def test_burst_alone_in_its_window_is_anomalous_at_any_size():
    for size in range(2, 300):
        found = detect_anomalous_centres(
            np.array([7]), np.array([size]), np.array([7]), half_width=48, zscore=max_zscore(48)
        )
        assert found.tolist() == [7]
