"""The hot functions, for `make bench`. No test asserts a time.

pytest benchmarks/test_hot.py --benchmark-compare      compare with an earlier --benchmark-autosave
"""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from morpheus.features.encoder import Encoder
from morpheus.models.autoencoder import NetworkConfig
from morpheus.models.training import TrainJob, single_thread, train_network
from morpheus.seasonality.detector import detect_anomalous_centres
from morpheus.sinks.formats import write_csv_rows
from people import COLUMNS, day, fingerprint

EVENTS = 1000


@pytest.fixture
def encoder() -> Encoder:
    """Return the events of the user ann."""
    return Encoder.fit(day(EVENTS), COLUMNS)


def test_encoding_a_users_events(benchmark: BenchmarkFixture, encoder: Encoder) -> None:
    frame = day(EVENTS, seed=1)
    rows = benchmark(encoder.encode, frame)
    assert len(rows.inverse) == EVENTS


def test_training_a_network(benchmark: BenchmarkFixture) -> None:
    random = np.random.default_rng(0)
    frame = pl.DataFrame({f"c{n}": random.integers(0, 6, EVENTS).astype(str) for n in range(30)})
    encoder = Encoder.fit(frame, frame.columns)
    shape = NetworkConfig(
        tuple(column.n_codes for column in encoder.columns), (), hidden=64, bottleneck=32
    )
    with single_thread():
        trained = benchmark(train_network, TrainJob(encoder.encode(frame), shape, epochs=5, seed=0))
    assert trained.epochs


def test_scoring_distinct_rows(benchmark: BenchmarkFixture) -> None:
    known = fingerprint()
    rows = known.encoder.encode(day(EVENTS))
    assert benchmark(known.losses, rows).shape == (len(rows.codes), len(COLUMNS))


def test_judging_a_years_rhythm(benchmark: BenchmarkFixture) -> None:
    bins = np.arange(0, 52_560, 3)
    counts = np.random.default_rng(0).poisson(5, len(bins)) + 1
    found = benchmark(
        detect_anomalous_centres, bins, counts, bins, half=72, filter_percent=90.0, zscore=8.0
    )
    assert found.size == 0


def test_writing_csv(benchmark: BenchmarkFixture) -> None:
    frame = pl.concat([day(EVENTS)] * 10, how="vertical")
    benchmark(lambda: write_csv_rows(frame, io.BytesIO()))
