"""Scoring gives a row the same bytes wherever it stands in its batch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows
from morpheus.models.autoencoder import Autoencoder, NetworkConfig, row_product
from morpheus.models.scoring import MaskedPredictor
from morpheus.models.training import iter_fixed_batches


@pytest.mark.parametrize(("inner", "outer"), [(8, 16), (16, 8), (33, 17), (64, 32), (64, 200)])
def test_a_row_has_the_same_product_at_every_position(inner: int, outer: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((32, inner), dtype=np.float32)
    weights = rng.standard_normal((inner, outer), dtype=np.float32)
    alone = row_product(np.repeat(rows[:1], 8, axis=0), weights)[0]
    for position in range(32):
        moved = np.roll(rows, position, axis=0)
        assert (row_product(moved, weights)[position] == alone).all()
        assert np.allclose(row_product(moved, weights), moved @ weights, atol=1e-5)


def predict(net: Autoencoder, codes: NDArray[np.int32]) -> list[NDArray[np.float32]]:
    """Probability of each code of each column of some rows, (rows, codes) each."""
    rows = EncodedRows(codes, np.zeros((len(codes), 0), dtype=np.float32), np.arange(len(codes)))
    batches = [
        (MaskedPredictor.from_codes(net, part, numbers), len(codes[block]))
        for block, part, numbers in iter_fixed_batches(rows, pad=not net.any_rows)
    ]
    columns = range(codes.shape[1])
    return [
        np.concatenate([one.predict_probabilities(c)[:size] for one, size in batches])
        for c in columns
    ]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_predicted_of_a_row_does_not_depend_on_the_other_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = tuple(rng.integers(2, 40, size=8).tolist())
    config = NetworkConfig(sizes, (), hidden=32, bottleneck=16)
    weights = rng.standard_normal(config.n_parameters, dtype=np.float32)
    net = Autoencoder(config, weights).for_scoring()
    codes = np.stack([rng.integers(0, size, 100) for size in sizes], axis=1).astype(np.int32)
    every = predict(net, codes)
    for number in (1, 7, 50, 99):
        some = np.sort(rng.choice(100, number, replace=False))
        for few, all_rows in zip(predict(net, codes[some]), every, strict=True):
            np.testing.assert_array_equal(few, all_rows[some])
