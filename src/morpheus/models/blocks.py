"""Encoded rows in blocks of one size, so that a row's result does not hang on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows
from morpheus.models.training import single_thread

ScalarT = TypeVar("ScalarT", bound=np.generic)

FIXED_BATCH_SIZE = 32
"""Rows in one pass through the network; always filled up, so that a row's result is its own."""


def iter_fixed_batches(
    rows: EncodedRows,
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
    """Where each block of rows lies, its codes (BLOCK, C) and its numbers (BLOCK, N).

    The last is filled up with rows of zeros. Everything is computed on one thread meanwhile.
    """
    codes, numbers = _pad_rows(rows.codes.astype(np.int64)), _pad_rows(rows.numbers)
    with single_thread():
        for start in range(0, len(codes), FIXED_BATCH_SIZE):
            block = slice(start, start + FIXED_BATCH_SIZE)
            yield block, codes[block], numbers[block]


def _pad_rows(rows: NDArray[ScalarT]) -> NDArray[ScalarT]:
    missing = -len(rows) % FIXED_BATCH_SIZE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
