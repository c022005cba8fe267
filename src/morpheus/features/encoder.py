"""The encoder of one user: the only place where a value becomes a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import Category
from morpheus.features.dictionary import UniqueRows, EncodedSlice, hash_rows
from morpheus.features.numbers import Number, is_number

Column = Category | Number


@dataclass(frozen=True)
class EncodedRows:
    """The distinct rows among some events: log rows repeat, and are computed once.

    Attributes:
        codes: Code of each column, (distinct, columns), int32.
        numbers: Scaled value of each number column, (distinct, number columns), float32.
        inverse: Which distinct row each event is, (events,).
    """

    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]
    inverse: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many events each distinct row stands for, (distinct,)."""
        return np.bincount(self.inverse, minlength=len(self.codes))


@dataclass(frozen=True)
class Encoder:
    """How the columns of one user's events become codes and numbers."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        names: Sequence[str],
        scaler: str = "standard",
        kinds: Mapping[str, str] | None = None,
    ) -> Encoder:
        """Learn the columns of a history; names that the frame does not have are left out.

        Args:
            frame: The history.
            names: The columns.
            scaler: How numbers are scaled.
            kinds: `category` or `number`, by column; by default the values tell.

        >>> frame = pl.DataFrame({"action": ["get", "get", "put", "put"], "bytes": [1, 2, 3, 4]})
        >>> [type(c).__name__ for c in Encoder.fit(frame, ["action", "bytes", "no"]).columns]
        ['Category', 'Number']
        """
        there = [name for name in names if name in frame.columns]
        return cls(
            tuple(_fit_column(name, frame[name], scaler, (kinds or {}).get(name)) for name in there)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def encode(self, frame: pl.DataFrame, encoded_slice: EncodedSlice | None = None) -> EncodedRows:
        """Encode events; a column that the frame does not have is missing in every event.

        Args:
            frame: The events.
            encoded_slice: What the dictionary of a larger table says of them. Without it, or if it is of
                other events or columns, they get one of their own.
        """
        if encoded_slice is None or not encoded_slice.covers(frame, self.names):
            encoded_slice = EncodedSlice.from_frame(frame, self.names)
        once = encoded_slice.deduplicate()
        codes = np.empty((len(once.first_index), len(self.columns)), dtype=np.int32)
        for c, column in enumerate(self.columns):
            codes[:, c] = _encode_column(column, once)
        quantities = [column for column in self.columns if isinstance(column, Number)]
        scaled = np.zeros((len(once.first_index), len(quantities)), dtype=np.float32)
        for n, column in enumerate(quantities):
            if once.has_values(column.name):
                scaled[:, n] = column.scale(once.column_values(column.name))
        distinct = deduplicate_rows(codes, scaled)
        return replace(distinct, inverse=distinct.inverse[once.inverse])


def _encode_column(column: Column, unique: UniqueRows) -> NDArray[np.int32] | int:
    """The code of a column in each distinct row."""
    name = column.name
    if not unique.has_values(name):
        return column.missing_code
    if isinstance(column, Number):
        return column.encode(unique.column_values(name))
    return column.encode(unique.column_codes(name), unique.encoded_slice.dictionary.value_codes(name))


def deduplicate_rows(codes: NDArray[np.int32], numbers: NDArray[np.float32]) -> EncodedRows:
    """Find the distinct rows of (rows, columns) codes and (rows, number columns) numbers."""
    cells = np.concatenate([codes, numbers.view(np.int32)], axis=1)
    # Rows are told apart by a 64-bit sum; equal sums of different rows are caught just below.
    _, first, row_of = np.unique(hash_rows(cells.T), return_index=True, return_inverse=True)
    if not np.array_equal(cells[first][row_of], cells):
        _, first, row_of = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    return EncodedRows(codes[first], numbers[first], row_of)


def _fit_column(name: str, values: pl.Series, scaler: str, kind: str | None) -> Column:
    if is_number(values, kind):
        return Number.fit(name, values, scaler)
    return Category.fit(name, values)
