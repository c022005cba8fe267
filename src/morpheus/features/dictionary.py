"""The texts of a table as codes: the table may be of many users, and is looked through once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

MAX_PYTHON_ROWS = 4096
"""Rows up to which polars' calls cost more than they save."""


@dataclass(frozen=True)
class DictionaryEncoder:
    """Each column of a table as codes of its own, made when they are first asked for.

    Equal values have equal codes, which say nothing else. Columns without a value, of which logs
    have many, have none.

    Attributes:
        frame: The table.
        names: The columns; those that the table does not have are left out.

    >>> frame = pl.DataFrame({"action": ["get", "put", None, "get"], "none": [None] * 4})
    >>> dictionary = DictionaryEncoder(frame, ("action", "none"))
    >>> dictionary.codes.tolist(), dictionary.places
    ([[0, 1, -1, 0]], {'action': 0})
    >>> dictionary.words("action")
    {'get': 0, 'put': 1}
    """

    frame: pl.DataFrame
    names: Sequence[str]
    _value_codes: dict[str, dict[str, int]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def column_positions(self) -> dict[str, int]:
        """Where the codes of each column with a value are."""
        there = self.frame.get_columns()
        filled = {column.name for column in there if column.null_count() < len(column)}
        return {
            name: c for c, name in enumerate(n for n in dict.fromkeys(self.names) if n in filled)
        }

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """Codes of the columns that have a place, (columns, rows); -1 for no value."""
        codes = np.empty((len(self.column_positions), self.frame.height), dtype=np.int32)
        look = _encode_in_python if self.frame.height <= MAX_PYTHON_ROWS else _encode_in_polars
        for into, name in zip(codes, self.column_positions, strict=True):
            values = self.frame.get_column(name)
            text = values if values.dtype == pl.String else values.cast(pl.String)
            self._value_codes[name] = look(text, into)
        return codes

    @cached_property
    def row_hashes(self) -> NDArray[np.uint64]:
        """A number for each row, equal where all its codes are, and hardly ever elsewhere."""
        return hash_rows(self.codes)

    def value_codes(self, name: str) -> Mapping[str, int]:
        """The code of each value of a column that has a place."""
        self.codes  # noqa: B018 - finds the words, too
        return self._value_codes[name]


@dataclass(frozen=True)
class EncodedSlice:
    """Consecutive rows of a table, to be read with its dictionary.

    Attributes:
        frame: The rows, and no others.
        dictionary: Of the table.
        start: The first of them in the table.
    """

    frame: pl.DataFrame
    dictionary: DictionaryEncoder
    start: int = 0

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, names: Sequence[str]) -> EncodedSlice:
        """A whole table, with a dictionary of these columns."""
        return cls(frame, DictionaryEncoder(frame, names))

    def covers(self, frame: pl.DataFrame, names: Sequence[str]) -> bool:
        """Whether these are that very table's rows, and all these columns are in the dictionary."""
        unknown = set(names).difference(self.dictionary.names)
        return frame is self.frame and unknown.isdisjoint(frame.columns)

    def deduplicate(self) -> UniqueRows:
        """Take equal rows once.

        Where different rows have an equal sum, by chance or by somebody who wants to hide an event,
        all rows are taken.
        """
        span = slice(self.start, self.start + self.frame.height)
        codes, marks = self.dictionary.codes[:, span], self.dictionary.row_hashes[span]
        _, first, row_of = np.unique(marks, return_index=True, return_inverse=True)
        once = codes[:, first]
        if not np.array_equal(once[:, row_of], codes):
            once, first = codes, np.arange(self.frame.height)
            row_of = first
        return UniqueRows(self, once, first, row_of)

    def __reduce__(self) -> tuple[object, tuple[()]]:
        """Nothing of it goes to another process: the table stays here, and so does this."""
        return type(None), ()


@dataclass(frozen=True)
class UniqueRows:
    """Rows of an excerpt, equal ones once.

    Attributes:
        encoded_slice: What they are of.
        codes: Their codes, (columns, distinct).
        first_index: The first row of the excerpt that each of them is, (distinct,).
        inverse: Which of them each row of the excerpt is, (rows,).
    """

    encoded_slice: EncodedSlice
    codes: NDArray[np.int32]
    first_index: NDArray[np.intp]
    inverse: NDArray[np.intp]

    def has_values(self, name: str) -> bool:
        """Whether any event of the table has a value in a column."""
        return name in self.encoded_slice.dictionary.column_positions

    def column_codes(self, name: str) -> NDArray[np.int32]:
        """Codes of a column that has values, (distinct,); see `DictionaryEncoder.value_codes`."""
        return np.asarray(self.codes[self.encoded_slice.dictionary.column_positions[name]])

    def column_values(self, name: str) -> pl.Series:
        """Values of a column, (distinct,)."""
        return self.encoded_slice.frame[name][self.first_index]


def hash_rows(codes: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A number for each row of (columns, rows) codes, equal for equal rows, (rows,)."""
    found = np.zeros(codes.shape[1], dtype=np.uint64)
    for factor, column in zip(_hash_factors(len(codes)), codes, strict=True):
        found += factor * column.astype(np.uint64)
    return found


@cache
def _hash_factors(columns: int) -> NDArray[np.uint64]:
    """Odd numbers, one a column."""
    random = np.random.Generator(np.random.PCG64(columns))
    return 2 * random.integers(1 << 63, size=columns, dtype=np.uint64) + 1


def _encode_in_python(text: pl.Series, codes: NDArray[np.int32]) -> dict[str, int]:
    """Write the code of each text; gives the texts with their codes."""
    values = text.to_list()
    words = dict.fromkeys(values)
    words.pop(None, None)
    known = {word: code for code, word in enumerate(words)}
    codes[:] = np.fromiter(map((known | {None: -1}).__getitem__, values), np.int32, len(values))
    return known


def _encode_in_polars(text: pl.Series, codes: NDArray[np.int32]) -> dict[str, int]:
    """The same, where many rows are worth some calls."""
    # Categories of their own, for the codes to begin at 0.
    known = text.cast(pl.Categorical(pl.Categories.random()))
    codes[:] = known.to_physical().cast(pl.Int32).fill_null(-1).to_numpy()
    distinct = known.unique().drop_nulls()
    words = distinct.cast(pl.String).to_list()
    return dict(zip(words, distinct.to_physical().to_list(), strict=True))
