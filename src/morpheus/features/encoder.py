"""Encoding of events: table columns to codes and scaled numbers.

An `Encoder` is fitted to one user's history. It has a `Category` or a `Number` for each column. A
`DictionaryEncoder` codes the distinct values of a larger table once, for all encoders that read
parts of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import blake2b
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Protocol

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import astuple, replace
from numpy.typing import NDArray

MISSING, UNKNOWN, FIRST_CODE = 0, 1, 2
"""Codes of a column: no value; a value not known from the history; the first known value."""

MAX_VOCABULARY = 4096
"""Maximum number of values kept per column, most frequent first; it bounds the size of a
fingerprint."""


_NO_VALUES: dict[str | None, int] = {None: MISSING}


class Category(msgspec.Struct, frozen=True):
    """A column of values that have a code each.

    A value that occurs once in the history does not get a code. So columns of identifiers, in which
    every value is new, cost little memory and raise no alert.

    Attributes:
        name: Name of the column.
        vocabulary: The known values, in the order of their codes.
        missing: Value that stands for a missing one; None if a missing value has the code MISSING.

    >>> column = Category.fit("agent", pl.Series(["cli", "cli", "web", None, "cli", "web", "x"]))
    >>> column.vocabulary
    ('cli', 'web')
    >>> column.code_table
    {None: 0, 'cli': 2, 'web': 3}
    """

    name: str
    vocabulary: tuple[str, ...]
    missing: str | None = None

    @classmethod
    def fit(
        cls, name: str, values: pl.Series, *, min_count: int = 2, missing: str | None = None
    ) -> Category:
        """Learn the values of a column, most frequent first, then by name.

        Args:
            name: Name of the column.
            values: Its values in the history.
            min_count: Minimum number of occurrences of a value that gets a code.
            missing: Value that stands for a missing one. By default a missing value has the code
                MISSING.
        """
        text = values if values.dtype == pl.String else values.cast(pl.String)
        counts = Counter((text if missing is None else text.fill_null(missing)).to_list())
        counts.pop(None, None)
        return cls(name, _order_by_count(counts.items(), min_count), missing)

    @classmethod
    def from_counts(
        cls, name: str, value_codes: Mapping[str, int], counts: NDArray[np.intp]
    ) -> Category:
        """Learn a column from the number of occurrences of each value; see `fit`.

        Args:
            name: Name of the column.
            value_codes: Position of each value in `counts`.
            counts: Number of occurrences, (values,).

        >>> Category.from_counts("agent", {"cli": 0, "web": 1, "x": 2}, np.array([2, 3, 1]))
        Category(name='agent', vocabulary=('web', 'cli'), missing=None)
        """
        numbers = counts.tolist()
        return cls(name, _order_by_count((v, numbers[code]) for v, code in value_codes.items()))

    @property
    def n_codes(self) -> int:
        """Number of codes: the known values, missing and unknown."""
        return len(self.vocabulary) + FIRST_CODE

    @property
    def missing_code(self) -> int:
        """Code of an event without a value."""
        if self.missing is None:
            return MISSING
        return (
            FIRST_CODE + self.vocabulary.index(self.missing)
            if self.missing in self.vocabulary
            else UNKNOWN
        )

    @property
    def code_table(self) -> dict[str | None, int]:
        """The code of each known value, and of a missing one. Not to be changed."""
        if not self.vocabulary and self.missing is None:
            return _NO_VALUES  # most columns of a log, for most users
        codes: dict[str | None, int] = {None: self.missing_code}
        codes.update((value, code) for code, value in enumerate(self.vocabulary, FIRST_CODE))
        return codes


def _order_by_count(counts: Iterable[tuple[str, int]], min_count: int = 2) -> tuple[str, ...]:
    """Return the frequent values, most frequent first, then by name."""
    frequent = sorted((-count, value) for value, count in counts if count >= min_count)
    return tuple(value for _, value in frequent[:MAX_VOCABULARY])


SCALERS = ("none", "standard", "gauss_rank")
"""Scales of number columns."""
MIN_DISTINCT_NUMBERS = 32
"""A text column with more distinct numbers than this is a number column."""
N_QUANTILES = 101
"""Number of quantiles that the gauss_rank scaler keeps."""
LINEAR_Z = 4.0
"""Distance from the mean, in standard deviations, from which a scaled value grows like a logarithm,
so that one extreme number is not all that a network sees."""
MAX_LOG_Z = 60.0
"""Bound on the logarithm, so that a number that a network predicts stays finite."""
OUTLIER_REACH = 10.0
"""Distance from the quartiles, in interquartile ranges, from which a number does not change the
scale."""
NUMBER_PATTERN = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
"""Text that is a number: no leading zeros and at most 15 digits, so that account ids are not
numbers."""


class Number(msgspec.Struct, frozen=True):
    """A column of quantities.

    The scale is a line through points, (N_QUANTILES,) or (2,). Outside of the points it continues
    as a line ("standard", "none") or stays constant ("gauss_rank"). Beyond `LINEAR_Z` it grows like
    a logarithm.

    Attributes:
        name: Name of the column.
        quantiles: The points in the column's unit, ascending.
        z: The same points in standard deviations.
    """

    name: str
    quantiles: tuple[float, ...]
    z: tuple[float, ...]

    @classmethod
    def fit(cls, name: str, values: pl.Series, scaler: str) -> Number:
        """Learn the scale of a column. A constant column has a standard deviation of 1.

        Args:
            name: Name of the column.
            values: Its values in the history.
            scaler: "none", "standard" or "gauss_rank".
        """
        numbers = _drop_outliers(_parse_numbers(values).drop_nulls().to_numpy())
        if scaler == "none":
            return cls(name, (0.0, 1.0), (0.0, 1.0))
        if scaler == "standard":
            mean, std = float(numbers.mean()), float(numbers.std()) or 1.0
            return cls(name, (mean, mean + std), (0.0, 1.0))
        shares = np.linspace(0, 1, N_QUANTILES)
        quantiles, first = np.unique(np.quantile(numbers, shares), return_index=True)
        z = [NormalDist().inv_cdf(min(max(p, 1e-7), 1 - 1e-7)) for p in shares[first]]
        return cls(name, tuple(quantiles.tolist()), tuple(z))

    @property
    def n_codes(self) -> int:
        """Number of codes: missing, unknown and a number."""
        return FIRST_CODE + 1

    @property
    def missing_code(self) -> int:
        """Code of an event without a value."""
        return MISSING

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Return a code for each value, (rows,).

        FIRST_CODE for a number, UNKNOWN for other text, MISSING for no value.
        """
        is_number = _parse_numbers(values).is_not_null().to_numpy()
        codes = np.where(is_number, FIRST_CODE, UNKNOWN).astype(np.int32)
        codes[values.is_null().to_numpy()] = MISSING
        return codes

    def scale(self, values: pl.Series) -> NDArray[np.float32]:
        """Scale each value to standard deviations, (rows,); 0 for values that are not numbers."""
        numbers = _parse_numbers(values).fill_null(float("nan")).to_numpy()
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            width = self.quantiles[1] - self.quantiles[0]
            with np.errstate(over="ignore"):
                steps = (numbers - self.quantiles[0]) / width
            scaled = self.z[0] + steps * (self.z[1] - self.z[0])
        else:
            scaled = np.interp(numbers, self.quantiles, self.z)
        scaled = np.nan_to_num(scaled)
        far = np.log1p(np.maximum(np.abs(scaled) - LINEAR_Z, 0))
        limited = np.sign(scaled) * (np.minimum(np.abs(scaled), LINEAR_Z) + far)
        return np.asarray(limited, dtype=np.float32)

    def inverse_scale(self, z: float) -> float:
        """Return the value, in the column's unit, that is scaled to `z` standard deviations.

        >>> Number("bytes", (100.0, 150.0), (0.0, 1.0)).inverse_scale(-0.5)
        75.0
        """
        z = expand_z(z)
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            share = (z - self.z[0]) / (self.z[1] - self.z[0])
            return self.quantiles[0] + share * (self.quantiles[1] - self.quantiles[0])
        return float(np.interp(z, self.z, self.quantiles))


def expand_z(z: float) -> float:
    """Return the distance in standard deviations of a scaled value; see `LINEAR_Z`.

    >>> expand_z(-2.0), round(expand_z(5.0), 2)
    (-2.0, 5.72)
    """
    far = math.expm1(min(max(abs(z) - LINEAR_Z, 0.0), MAX_LOG_Z))
    return math.copysign(min(abs(z), LINEAR_Z) + far, z)


def _drop_outliers(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out numbers that are far from the quartiles.

    >>> _drop_outliers(np.array([1.0, 2.0, 3.0, 4.0, 1e9])).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    low, high = np.quantile(numbers, [0.25, 0.75]) if len(numbers) else (0.0, 0.0)
    reach = OUTLIER_REACH * (high - low)
    near = (numbers >= low - reach) & (numbers <= high + reach)
    return numbers[near] if reach else numbers


def is_number(values: pl.Series, kind: str | None = None) -> bool:
    """Return whether a column holds quantities.

    It does if its type is a number, or if it is text with many different plain numbers.

    Args:
        values: The column.
        kind: Type given by the user: `category` for no, `number` for yes if there is any number;
            None to decide by the values.
    """
    if kind is not None:
        return kind == "number" and not _parse_numbers(values).is_null().all()
    if values.dtype.is_numeric():
        return True
    if values.dtype != pl.String:
        return False
    # The first value decides nearly every text column, without a look at the others.
    if values.null_count() == len(values) or not re.match(NUMBER_PATTERN, values[0] or "0"):
        return False
    present = values.drop_nulls()
    return present.n_unique() > MIN_DISTINCT_NUMBERS and bool(
        present.str.contains(NUMBER_PATTERN).all()
    )


def _parse_numbers(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(value=False), None)


_FEW_ROWS = 1024
"""Number of rows up to which one call for all columns is faster than one call for each."""

MAX_PYTHON_ROWS = 4096
"""Number of rows up to which plain Python is faster than Polars calls."""


MAX_TABLE_RATIO = 32
"""Distinct values of a table per cell of a batch, up to which the encoding of the table is used. It
has values of all users, and looking at each of them costs more than encoding a few events."""


@dataclass(frozen=True)
class DictionaryEncoder:
    """Dictionary encoding of the columns of a table, computed when first used.

    Equal values have equal codes; the codes have no other meaning. Columns without any value, which
    are common in logs, are left out.

    Attributes:
        frame: The table.
        names: The columns to encode; those that the table does not have are left out.

    >>> frame = pl.DataFrame({"action": ["get", "put", None, "get"], "none": [None] * 4})
    >>> dictionary = DictionaryEncoder(frame, ("action", "none"))
    >>> dictionary.codes.tolist(), dictionary.column_positions
    ([[0, 1, -1, 0]], {'action': 0})
    >>> dictionary.value_codes("action")
    {'get': 0, 'put': 1}
    """

    frame: pl.DataFrame
    names: Sequence[str]
    _value_codes: dict[str, dict[str, int]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def column_positions(self) -> dict[str, int]:
        """Position of each column with values in `codes`."""
        columns = self.frame.get_columns()
        non_empty = {column.name for column in columns if column.null_count() < len(column)}
        return {
            name: c for c, name in enumerate(n for n in dict.fromkeys(self.names) if n in non_empty)
        }

    @cached_property
    def codes(self) -> NDArray[np.int32]:
        """Codes of the columns with values, (columns, rows); -1 for a missing value."""
        codes = np.empty((len(self.column_positions), self.frame.height), dtype=np.int32)
        encode = _encode_in_python if self.frame.height <= MAX_PYTHON_ROWS else _encode_in_polars
        for row, name in zip(codes, self.column_positions, strict=True):
            values = self.frame.get_column(name)
            text = values if values.dtype == pl.String else values.cast(pl.String)
            self._value_codes[name] = encode(text, row)
        return codes

    @cached_property
    def row_hashes(self) -> NDArray[np.uint64]:
        """Hash of each row, equal for rows with equal codes, (rows,)."""
        return hash_rows(self.codes)

    def value_codes(self, name: str) -> Mapping[str, int]:
        """Return the code of each value of a column with values."""
        self.codes  # noqa: B018 - finds the words, too
        return self._value_codes[name]

    @cached_property
    def offsets(self) -> NDArray[np.intp]:
        """Position of each column's missing value, if the values of all columns are in one array.

        The values of a column follow, in the order of their codes. The last element is the length
        of the array. Shape (columns + 1,).
        """
        sizes = [len(self.value_codes(name)) + 1 for name in self.column_positions]
        return np.cumsum([0, *sizes], dtype=np.intp)


class HasFrame(Protocol):
    """Rows, from which a frame can be made."""

    def to_frame(self) -> pl.DataFrame:
        """Return the rows, each time the same frame."""


def _to_frame(rows: pl.DataFrame | HasFrame) -> pl.DataFrame:
    return rows if isinstance(rows, pl.DataFrame) else rows.to_frame()


@dataclass(frozen=True)
class EncodedSlice:
    """Consecutive rows of a table, with the dictionary encoding of the table.

    Attributes:
        rows: These rows.
        dictionary: Encoding of the table.
        start: Position of the first row in the table.
    """

    rows: pl.DataFrame | HasFrame
    dictionary: DictionaryEncoder
    start: int = 0

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, names: Sequence[str]) -> EncodedSlice:
        """Encode some columns of a whole table."""
        return cls(frame, DictionaryEncoder(frame, names))

    @property
    def frame(self) -> pl.DataFrame:
        """The rows."""
        return _to_frame(self.rows)

    def covers(self, frame: pl.DataFrame, names: Sequence[str]) -> bool:
        """Return whether the slice has exactly these rows, and encodes these columns."""
        not_encoded = set(names).difference(self.dictionary.names)
        return frame is self.frame and not_encoded.isdisjoint(frame.columns)

    def serves(self, frame: pl.DataFrame, names: Sequence[str]) -> bool:
        """Return whether it covers the rows, and encoding them alone would not be faster."""
        if not self.covers(frame, names):
            return False
        cells = frame.height * len(self.dictionary.column_positions)
        return bool(self.dictionary.offsets[-1] <= MAX_TABLE_RATIO * max(cells, 1))

    def count_values(self) -> dict[str, NDArray[np.intp]]:
        """Count the rows with each value of each column with values in the table, (values,).

        Values are in the order of `DictionaryEncoder.value_codes`.

        >>> frame = pl.DataFrame({"action": ["get", "put", None, "get"]})
        >>> EncodedSlice.from_frame(frame, ["action"]).count_values()["action"].tolist()
        [2, 1]
        """
        dictionary = self.dictionary
        codes = dictionary.codes[:, self.start : self.start + self.frame.height]
        # One count of all columns; the first of each is that of missing values.
        sizes = [len(dictionary.value_codes(name)) + 1 for name in dictionary.column_positions]
        ends = np.cumsum(sizes, dtype=np.intp)
        cells = codes + (ends - sizes + 1)[:, None]
        counts = np.split(np.bincount(cells.ravel(), minlength=sum(sizes)), ends[:-1])
        return {name: counts[c][1:] for name, c in dictionary.column_positions.items()}

    @cached_property
    def unique_rows(self) -> UniqueRows:
        """The distinct rows.

        If two different rows have the same hash, by chance or because somebody wants to hide an
        event, these are all rows.
        """
        span = slice(self.start, self.start + self.frame.height)
        codes, hashes = self.dictionary.codes[:, span], self.dictionary.row_hashes[span]
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        unique = codes[:, first]
        if not np.array_equal(unique[:, inverse], codes):
            unique, first = codes, np.arange(self.frame.height)
            inverse = first
        # Not the slice itself: a cycle would keep the rows until the next garbage collection.
        return UniqueRows(self.rows, self.dictionary, unique, first, inverse)

    def __reduce__(self) -> tuple[object, tuple[()]]:
        """Pickle as None: the table stays in its process, and so does its encoding."""
        return type(None), ()


class UniqueRows(msgspec.Struct, frozen=True):
    """The distinct rows of a slice.

    Attributes:
        rows: All rows of the slice.
        dictionary: Encoding of the table of the slice.
        codes: Codes of the distinct rows, (columns, distinct).
        first_index: First row of the slice that equals each of them, (distinct,).
        inverse: Distinct row of each row of the slice, (rows,).
    """

    rows: pl.DataFrame | HasFrame
    dictionary: DictionaryEncoder
    codes: NDArray[np.int32]
    first_index: NDArray[np.intp]
    inverse: NDArray[np.intp]

    def has_values(self, name: str) -> bool:
        """Return whether any row of the table has a value in a column."""
        return name in self.dictionary.column_positions

    def column_values(self, name: str) -> pl.Series:
        """Return the values of a column, (distinct,)."""
        return _to_frame(self.rows)[name][self.first_index]


def number_within(lengths: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Number the rows of each of some consecutive groups from 0, (rows,).

    >>> number_within(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(np.arange(len(starts)) - starts, dtype=np.intp)


def hash_rows(codes: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Hash each row of (columns, rows) codes, (rows,). Equal rows have equal hashes."""
    factors, rows = _hash_factors(len(codes)), codes.shape[1]
    if rows <= _FEW_ROWS:
        products = codes.astype(np.uint64)
        products *= factors[:, None]
        return np.asarray(products.sum(axis=0, dtype=np.uint64))
    hashes, product = np.zeros(rows, dtype=np.uint64), np.empty(rows, dtype=np.uint64)
    for factor, column in zip(factors, codes, strict=True):
        np.multiply(column, factor, out=product, dtype=np.uint64, casting="unsafe")
        hashes += product
    return hashes


@cache
def _hash_factors(columns: int) -> NDArray[np.uint64]:
    """Odd random numbers, one per column."""
    rng = np.random.Generator(np.random.PCG64(columns))
    return 2 * rng.integers(1 << 63, size=columns, dtype=np.uint64) + 1


def _encode_in_python(text: pl.Series, codes: NDArray[np.int32]) -> dict[str, int]:
    """Fill in the code of each text, and return the code of each distinct text."""
    values = text.to_list()
    distinct = dict.fromkeys(values)
    distinct.pop(None, None)
    value_codes = {value: code for code, value in enumerate(distinct)}
    codes[:] = np.fromiter(
        map((value_codes | {None: -1}).__getitem__, values), np.int32, len(values)
    )
    return value_codes


def _encode_in_polars(text: pl.Series, codes: NDArray[np.int32]) -> dict[str, int]:
    """The same for many rows."""
    # A new set of categories, so that the codes are 0, 1, ... in the order of the rows.
    categories = text.cast(pl.Categorical(pl.Categories.random()))
    physical = categories.to_physical().to_numpy()
    has_nulls = physical.dtype.kind == "f"
    codes[:] = np.nan_to_num(physical, nan=-1, copy=False) if has_nulls else physical
    num_values = int(codes.max(initial=-1)) + 1
    # The last assignment counts, so this finds the first row of each code. It is faster than
    # `unique` in Polars.
    first = np.empty(num_values + 1, dtype=np.intp)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return {value: code for code, value in enumerate(text[first[:num_values]].to_list())}


Column = Category | Number


class EncodedRows(msgspec.Struct, frozen=True):
    """The distinct rows among some events. Log rows repeat, and each is computed once.

    Attributes:
        codes: Code of each column, (distinct, columns), int32.
        numbers: Scaled value of each number column, (distinct, number columns), float32.
        inverse: Distinct row of each event, (events,).
    """

    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]
    inverse: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of events for each distinct row, (distinct,)."""
        return np.bincount(self.inverse, minlength=len(self.codes))


class Encoder(msgspec.Struct, frozen=True, dict=True):
    """Encodes the columns of one user's events as codes and numbers.

    Attributes:
        columns: The columns, in order.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        names: Sequence[str],
        scaler: str = "standard",
        kinds: Mapping[str, str] | None = None,
        encoded_slice: EncodedSlice | None = None,
    ) -> Encoder:
        """Learn the columns of a history.

        Args:
            frame: The history.
            names: The columns; those that the history does not have are left out.
            scaler: Scale of number columns: "none", "standard" or "gauss_rank".
            kinds: `category` or `number` by column; by default the values decide.
            encoded_slice: The history in the dictionary encoding of a larger table. If it is not
                given, the history is encoded by itself.

        >>> frame = pl.DataFrame({"action": ["get", "get", "put", "put"], "bytes": [1, 2, 3, 4]})
        >>> [type(c).__name__ for c in Encoder.fit(frame, ["action", "bytes", "no"]).columns]
        ['Category', 'Number']
        """
        if encoded_slice is None or not encoded_slice.covers(frame, names):
            encoded_slice = EncodedSlice.from_frame(frame, names)
        counts, kinds, columns = encoded_slice.count_values(), kinds or {}, list[Column]()
        existing = set(frame.columns)
        for name in (name for name in names if name in existing):
            values = frame[name]
            numbers = counts.get(name, _NO_COUNTS)
            if _is_number_column(values, kinds.get(name), int(np.count_nonzero(numbers))):
                columns.append(Number.fit(name, values, scaler))
            else:
                value_codes = encoded_slice.dictionary.value_codes(name) if len(numbers) else {}
                columns.append(Category.from_counts(name, value_codes, numbers))
        return cls(tuple(columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def digest(self) -> str:
        """Identity of the encoder: encoders with the same digest give the same codes."""
        columns = ascii([astuple(column) for column in self.columns])
        return blake2b(columns.encode(), digest_size=16).hexdigest()

    @cached_property
    def code_tables(self) -> tuple[dict[str | None, int], ...]:
        """The code of each known value of each category column, None included."""
        return tuple(
            column.code_table if isinstance(column, Category) else _NO_VALUES
            for column in self.columns
        )

    @cached_property
    def has_numbers(self) -> bool:
        """Whether there are number columns."""
        return any(isinstance(column, Number) for column in self.columns)

    def encode(self, frame: pl.DataFrame, encoded_slice: EncodedSlice | None = None) -> EncodedRows:
        """Encode events. A column that the frame does not have is missing in every event.

        Args:
            frame: The events.
            encoded_slice: These events in the dictionary encoding of a larger table. If it is not
                given, or is of other events or columns, the events are encoded by themselves.
        """
        if encoded_slice is None or not encoded_slice.serves(frame, self.names):
            encoded_slice = EncodedSlice.from_frame(frame, self.names)
        unique = encoded_slice.unique_rows
        codes = self._encode_categories(unique)
        for c, column in enumerate(self.columns):
            if isinstance(column, Number) and unique.has_values(column.name):
                codes[:, c] = column.encode(unique.column_values(column.name))
        number_columns = [column for column in self.columns if isinstance(column, Number)]
        scaled = np.zeros((len(unique.first_index), len(number_columns)), dtype=np.float32)
        for n, column in enumerate(number_columns):
            if unique.has_values(column.name):
                scaled[:, n] = column.scale(unique.column_values(column.name))
        distinct = deduplicate_rows(codes, scaled)
        return replace(distinct, inverse=distinct.inverse[unique.inverse])

    def _encode_categories(self, unique: UniqueRows) -> NDArray[np.int32]:
        """Return the code of each column in each distinct row; a number is left missing."""
        dictionary = unique.dictionary
        codes = np.tile(self._missing_codes, (len(unique.first_index), 1))
        found = {
            c: (column, dictionary.column_positions[column.name])
            for c, column in enumerate(self.columns)
            if isinstance(column, Category) and column.name in dictionary.column_positions
        }
        if not found:
            return codes
        columns, positions = list(found), [position for _, position in found.values()]
        # The values of all columns share one array: a call for each column takes longer.
        table = np.full(dictionary.offsets[-1], UNKNOWN, dtype=np.int32)
        table[dictionary.offsets[positions]] = self._missing_codes[columns]
        known = [pair for each in found.values() for pair in _iter_known(*each, dictionary)]
        if known:
            index, value = np.array(known, dtype=np.intp).T
            table[index] = value
        codes[:, columns] = table[unique.codes[positions].T + (dictionary.offsets[positions] + 1)]
        return codes

    @cached_property
    def _missing_codes(self) -> NDArray[np.int32]:
        return np.array([column.missing_code for column in self.columns], dtype=np.int32)


def match_codes(encoder: Encoder, other: Encoder) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the codes and the number columns of an encoder in another one.

    Returns:
        Position of each code among those of all columns of the other encoder, (V,), and the same
        of the number columns, (N,); -1 for none.

    >>> one, two = (Encoder((Category("a", words),)) for words in (("x", "y"), ("y", "z")))
    >>> match_codes(one, two)[0].tolist()
    [0, 1, -1, 2]
    """
    sizes = [column.n_codes for column in other.columns]
    starts = dict(zip(other.names, np.cumsum([0, *sizes]).tolist(), strict=False))
    by_name = {column.name: column for column in other.columns}
    number_names = [column.name for column in other.columns if isinstance(column, Number)]
    codes: list[int] = []
    numbers: list[int] = []
    for column in encoder.columns:
        same, start = by_name.get(column.name), starts.get(column.name, 0)
        known = isinstance(same, type(column))
        if isinstance(column, Number):
            numbers.append(number_names.index(column.name) if known else -1)
            codes += range(start, start + column.n_codes) if known else [-1] * column.n_codes
        elif isinstance(same, Category):
            places = {value: start + n for n, value in enumerate(same.vocabulary, FIRST_CODE)}
            codes += range(start, start + FIRST_CODE)
            codes += (places.get(value, -1) for value in column.vocabulary)
        else:
            codes += [-1] * column.n_codes
    return np.array(codes, dtype=np.intp), np.array(numbers, dtype=np.intp)


def encode_users(
    encoders: Sequence[Encoder], frame: pl.DataFrame, heights: Sequence[int]
) -> list[EncodedRows]:
    """Return what `Encoder.encode` returns for each of several users.

    Args:
        encoders: Encoder of each user, without number columns.
        frame: The events of all users, one user after the other.
        heights: Number of events of each user, at least one.
    """
    lengths = np.array(heights, dtype=np.intp)
    starts = (lengths.cumsum() - lengths).tolist()
    groups: dict[tuple[str, ...], list[int]] = {}
    for user, encoder in enumerate(encoders):
        groups.setdefault(encoder.names, []).append(user)
    encoded: dict[int, EncodedRows] = {}
    for names, users in groups.items():
        texts, cells = _list_rows(frame, names), list[int]()
        for user in users:
            tables = encoders[user].code_tables
            for row in texts[starts[user] : starts[user] + heights[user]]:
                cells += [table.get(value, UNKNOWN) for table, value in zip(tables, row)]  # noqa: B905 - of one length, and this is the innermost loop
        codes = np.array(cells, dtype=np.int32).reshape(-1, len(names))
        encoded |= zip(users, _deduplicate_users(codes, lengths[users]), strict=True)
    return [encoded[user] for user in range(len(encoders))]


def _deduplicate_users(
    codes: NDArray[np.int32], heights: NDArray[np.intp]
) -> Iterator[EncodedRows]:
    """Yield the distinct rows of each user.

    Args:
        codes: Rows of all users, one user after the other, (rows, columns).
        heights: Number of rows of each user, (users,).
    """
    owner = np.repeat(np.arange(len(heights)), heights)
    hashes = hash_rows(codes.T)
    order = np.lexsort((hashes, owner))
    changed = np.ones(len(order), dtype=np.bool_)
    changed[1:] = (np.diff(hashes[order]) != 0) | (np.diff(owner[order]) != 0)
    first, group = order[changed], np.empty(len(order), dtype=np.intp)
    group[order] = changed.cumsum() - 1
    bounds = np.searchsorted(owner[first], np.arange(len(heights) + 1)).tolist()
    if np.array_equal(codes[first][group], codes):
        inverse, distinct = group - np.array(bounds[:-1])[owner], codes[first]
        numbers, ends = np.empty((len(distinct), 0), dtype=np.float32), heights.cumsum().tolist()
        for (start, end), (row, last) in zip(pairwise(bounds), pairwise([0, *ends]), strict=True):
            yield EncodedRows(distinct[start:end], numbers[start:end], inverse[row:last])
        return
    # Two different rows have one hash.
    for row, last in pairwise([0, *heights.cumsum().tolist()]):
        rows = codes[row:last]
        yield deduplicate_rows(rows, np.empty((len(rows), 0), dtype=np.float32))


def _list_rows(frame: pl.DataFrame, names: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Return the texts of some columns, row by row; columns that do not exist are empty."""
    columns = [
        frame[name].cast(pl.String).to_list() if name in frame.columns else [None] * frame.height
        for name in names
    ]
    return list(zip(*columns, strict=True)) if columns else [()] * frame.height


def _iter_known(
    column: Category, position: int, dictionary: DictionaryEncoder
) -> Iterator[tuple[int, int]]:
    """Yield the position in all values, and the code, of each known value of a column."""
    start, values = int(dictionary.offsets[position]) + 1, dictionary.value_codes(column.name)
    if len(column.vocabulary) <= len(values):
        vocabulary = enumerate(column.vocabulary, FIRST_CODE)
        return ((start + values[value], code) for code, value in vocabulary if value in values)
    known = column.code_table
    return ((start + i, known[value]) for value, i in values.items() if value in known)


def deduplicate_rows(codes: NDArray[np.int32], numbers: NDArray[np.float32]) -> EncodedRows:
    """Return the distinct rows of (rows, columns) codes and (rows, number columns) numbers."""
    cells = np.concatenate([codes, numbers.view(np.int32)], axis=1)
    # Fast path by a 64-bit hash; the comparison below catches different rows with one hash.
    _, first, inverse = np.unique(hash_rows(cells.T), return_index=True, return_inverse=True)
    if not np.array_equal(cells[first][inverse], cells):
        _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    return EncodedRows(codes[first], numbers[first], inverse)


_NO_COUNTS = np.zeros(0, dtype=np.intp)


def _is_number_column(values: pl.Series, kind: str | None, distinct: int) -> bool:
    """The same as `is_number`, which needs not look at text with few distinct values."""
    if kind is None and values.dtype == pl.String and distinct <= MIN_DISTINCT_NUMBERS:
        return False
    return is_number(values, kind)
