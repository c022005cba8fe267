"""Scoring gives a row the same bytes wherever it stands in its batch."""

from __future__ import annotations

import numpy as np
import pytest

from morpheus.models.autoencoder import row_product


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
