"""Encoded rows in blocks of one size, so that a row's result does not hang on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows
from morpheus.models.training import one_thread

Scalar = TypeVar("Scalar", bound=np.generic)

BLOCK = 32
"""Rows in one pass through the network; always filled up, so that a row's result is its own."""


def blocks(
    rows: EncodedRows,
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
    """Where each block of rows lies, its codes (BLOCK, C) and its numbers (BLOCK, N).

    The last is filled up with rows of zeros. Everything is computed on one thread meanwhile.
    """
    codes, numbers = _padded(rows.codes.astype(np.int64)), _padded(rows.numbers)
    with one_thread():
        for start in range(0, len(codes), BLOCK):
            block = slice(start, start + BLOCK)
            yield block, codes[block], numbers[block]


def _padded(rows: NDArray[Scalar]) -> NDArray[Scalar]:
    missing = -len(rows) % BLOCK
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
