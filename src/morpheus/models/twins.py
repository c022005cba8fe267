"""Columns that say the same: each value of one goes with one value of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.features.numbers import Number


def find_redundant_columns(encoder: Encoder, rows: EncodedRows) -> tuple[int, ...]:
    """Find the columns that said the same all through a history.

    A column that never changed says nothing, and has no twin; nor has a column of numbers.

    Args:
        encoder: Of the columns.
        rows: The history, encoded by it.

    Returns:
        For each column the first one that says the same: itself, if none before it does.

    >>> import polars as pl
    >>> frame = pl.DataFrame({"error": [1, 1, 2, 2], "host": list("xyxy"), "message": list("aabb")})
    >>> frame = frame.cast(pl.String)
    >>> encoder = Encoder.fit(frame, frame.columns)
    >>> find_redundant_columns(encoder, encoder.encode(frame))
    (0, 1, 0)
    """
    first: dict[bytes, int] = {}
    found = []
    for c, column in enumerate(encoder.columns):
        turns = _canonical_codes(rows.codes[:, c])
        changed = bool(turns.any()) and not isinstance(column, Number)
        found.append(first.setdefault(turns.tobytes(), c) if changed else c)
    return tuple(found)


def _canonical_codes(codes: NDArray[np.int32]) -> NDArray[np.intp]:
    """Codes, numbered anew as they turn up, (D,): equal where columns say the same."""
    _, places, which = np.unique(codes, return_index=True, return_inverse=True)
    return np.asarray(places.argsort().argsort()[which])


def deduplicate_columns(order: Sequence[int], groups: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Columns, each with those later in the order that say the same, and that are left out.

    Args:
        order: Columns.
        groups: What `find_redundant_columns` found; empty if nothing is known of twins.

    >>> list(deduplicate_columns([2, 1, 0], (0, 1, 0)))
    [(2, [0]), (1, [])]
    """
    leads: dict[int, list[int]] = {}
    for column in order:
        leads.setdefault(groups[column] if groups else column, []).append(column)
    for lead, *others in leads.values():
        yield lead, others
