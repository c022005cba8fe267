"""The encoder of one user: the only place where a value becomes a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import Category
from morpheus.features.numbers import Number, is_number

Column = Category | Number


@dataclass(frozen=True)
class EncodedRows:
    """The distinct rows among some events: log rows repeat, and are computed once.

    Attributes:
        codes: Code of each column, (distinct, columns), int32.
        numbers: Scaled value of each number column, (distinct, number columns), float32.
        row_of: Which distinct row each event is, (events,).
    """

    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]
    row_of: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many events each distinct row stands for, (distinct,)."""
        return np.bincount(self.row_of, minlength=len(self.codes))


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
            tuple(_fit(name, frame[name], scaler, (kinds or {}).get(name)) for name in there)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def encode(self, frame: pl.DataFrame) -> EncodedRows:
        """Encode events; a column that the frame does not have is missing in every event."""
        names = frozenset(self.names)
        cells = pl.DataFrame([each for each in frame if each.name in names and _filled(each)])
        if not cells.width:
            return self._coded(frame)
        rows, row_of = once(cells, cells.hash_rows())
        distinct = self._coded(rows)
        return replace(distinct, row_of=distinct.row_of[row_of])

    def _coded(self, rows: pl.DataFrame) -> EncodedRows:
        there = {values.name: values for values in rows.get_columns()}
        codes = np.empty((rows.height, len(self.columns)), dtype=np.int32)
        for c, column in enumerate(self.columns):
            values = there.get(column.name)
            codes[:, c] = column.absent if values is None else column.encode(values)
        quantities = [column for column in self.columns if isinstance(column, Number)]
        scaled = np.zeros((rows.height, len(quantities)), dtype=np.float32)
        for n, column in enumerate(quantities):
            if column.name in there:
                scaled[:, n] = column.scale(there[column.name])
        return distinct_rows(codes, scaled)


def once(cells: pl.DataFrame, sums: pl.Series) -> tuple[pl.DataFrame, NDArray[np.intp]]:
    """Take equal rows once; and say which of these each row is.

    Args:
        cells: Rows before they are coded.
        sums: A number for each, equal for equal rows. Where it is equal for different rows, by
            chance or by somebody who wants to hide an event, all rows are taken.
    """
    _, first, row_of = np.unique(sums.to_numpy(), return_index=True, return_inverse=True)
    rows = cells[first]
    return (rows, row_of) if rows[row_of].equals(cells) else (cells, np.arange(cells.height))


def distinct_rows(codes: NDArray[np.int32], numbers: NDArray[np.float32]) -> EncodedRows:
    """Find the distinct rows of (rows, columns) codes and (rows, number columns) numbers."""
    cells = np.concatenate([codes, numbers.view(np.int32)], axis=1)
    # Rows are told apart by a 64-bit sum; equal sums of different rows are caught just below.
    factors = np.random.Generator(np.random.PCG64(cells.shape[1])).integers(
        1 << 63, size=cells.shape[1], dtype=np.uint64
    )
    sums = (cells.astype(np.uint64) * (2 * factors + 1)).sum(axis=1, dtype=np.uint64)
    _, first, row_of = np.unique(sums, return_index=True, return_inverse=True)
    if not np.array_equal(cells[first][row_of], cells):
        _, first, row_of = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    return EncodedRows(codes[first], numbers[first], row_of)


def _filled(values: pl.Series) -> bool:
    """Whether any event has a value; columns without one tell no rows apart, and are many."""
    return values.null_count() < len(values)


def _fit(name: str, values: pl.Series, scaler: str, kind: str | None) -> Column:
    if is_number(values, kind):
        return Number.fit(name, values, scaler)
    return Category.fit(name, values)
