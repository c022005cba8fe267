"""Number columns: values to spreads from the mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

MISSING, UNKNOWN, FIRST_CODE = 0, 1, 2
"""Codes: an event has no value here; one that the history did not hold twice; the first word."""

MAX_VOCABULARY = 4096
"""Words kept a column, the most frequent; the bound on a fingerprint's size."""


@dataclass(frozen=True)
class Category:
    """A column of words, each with a code.

    A value seen once in the history is not a habit yet: it stays unseen, so that columns of
    identifiers, where every value is new, cost nothing and surprise nobody.

    >>> column = Category.fit("agent", pl.Series(["cli", "cli", "web", None, "cli", "web", "x"]))
    >>> column.words
    ('cli', 'web')
    >>> column.encode(np.array([1, -1, 0]), {"kali": 0, "web": 1}).tolist()
    [3, 0, 1]
    """

    name: str
    vocabulary: tuple[str, ...]
    missing: str | None = None

    @classmethod
    def fit(
        cls, name: str, values: pl.Series, *, min_count: int = 2, missing: str | None = None
    ) -> Category:
        """Learn the words of a column, most frequent first, equal ones by name.

        Args:
            name: The column's name.
            values: Its values in the history.
            min_count: How often a value must be seen to become a word.
            missing: The word that a missing value is read as. By default it is read as none, and
                its code is MISSING.
        """
        text = values if values.dtype == pl.String else values.cast(pl.String)
        counts = Counter((text if missing is None else text.fill_null(missing)).to_list())
        habits = [
            (-count, word)
            for word, count in counts.items()
            if word is not None and count >= min_count
        ]
        return cls(name, tuple(word for _, word in sorted(habits)[:MAX_VOCABULARY]), missing)

    @property
    def n_codes(self) -> int:
        """How many codes there are: the words, missing and unseen."""
        return len(self.vocabulary) + FIRST_CODE

    @property
    def missing_code(self) -> int:
        """The code of an event that has no value."""
        if self.missing is None:
            return MISSING
        return (
            FIRST_CODE + self.vocabulary.index(self.missing)
            if self.missing in self.vocabulary
            else UNKNOWN
        )

    def encode(
        self, values: NDArray[np.int32], value_codes: Mapping[str, int]
    ) -> NDArray[np.int32]:
        """Give each value its code, (rows,).

        Args:
            values: Values as codes of a `DictionaryEncoder`, (rows,); -1 for a missing one.
            value_codes: All the values that this has, and the code of each there.
        """
        table = np.full(len(value_codes) + 1, UNKNOWN, dtype=np.int32)
        table[-1] = self.missing_code
        for code, word in enumerate(self.vocabulary, start=FIRST_CODE):
            if word in value_codes:
                table[value_codes[word]] = code
        return table[values]


MIN_DISTINCT_NUMBERS = 32
"""Distinct numbers from which a column of text is a quantity; below, they are words."""
N_QUANTILES = 101
"""Quantiles that describe a distribution to the rank scaler."""
MAX_ABS_Z = 1e6
"""Bound on a scaled value, in standard deviations, so that its square stays finite."""
NUMBER_PATTERN = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
"""No leading zeros and at most 15 digits: account ids and other identifiers are no quantities."""


@dataclass(frozen=True)
class Number:
    """A column of quantities.

    The scale is a line through knots, (KNOTS,) or (2,): `at` in the column's units, `to` in
    standard deviations; beyond the outermost knots it goes on as a line ("standard", "none") or
    stays level ("gauss_rank").
    """

    name: str
    quantiles: tuple[float, ...]
    z: tuple[float, ...]

    @classmethod
    def fit(cls, name: str, values: pl.Series, scaler: str) -> Number:
        """Learn the scale of a column; a constant column has spread 1."""
        numbers = _parse_numbers(values).drop_nulls().to_numpy()
        if scaler == "none":
            return cls(name, (0.0, 1.0), (0.0, 1.0))
        if scaler == "standard":
            mean, spread = float(numbers.mean()), float(numbers.std()) or 1.0
            return cls(name, (mean, mean + spread), (0.0, 1.0))
        levels = np.linspace(0, 1, N_QUANTILES)
        at, first = np.unique(np.quantile(numbers, levels), return_index=True)
        to = [NormalDist().inv_cdf(min(max(p, 1e-7), 1 - 1e-7)) for p in levels[first]]
        return cls(name, tuple(at.tolist()), tuple(to))

    @property
    def n_codes(self) -> int:
        """Missing, unseen, and there."""
        return FIRST_CODE + 1

    @property
    def missing_code(self) -> int:
        """The code of an event that has no value."""
        return MISSING

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Say whether each value is there, (rows,); what is no number is unseen."""
        there = _parse_numbers(values).is_not_null().to_numpy()
        codes = np.where(there, FIRST_CODE, UNKNOWN).astype(np.int32)
        codes[values.is_null().to_numpy()] = MISSING
        return codes

    def scale(self, values: pl.Series) -> NDArray[np.float32]:
        """Scale each value, (rows,), in standard deviations; 0 where there is none."""
        numbers = _parse_numbers(values).fill_null(float("nan")).to_numpy()
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            width = self.quantiles[1] - self.quantiles[0]
            scaled = self.z[0] + (numbers - self.quantiles[0]) / width * (self.z[1] - self.z[0])
        else:
            scaled = np.interp(numbers, self.quantiles, self.z)
        return np.nan_to_num(np.clip(scaled, -MAX_ABS_Z, MAX_ABS_Z)).astype(np.float32)

    def inverse_scale(self, z: float) -> float:
        """The value, in the column's units, that is scaled to a number of standard deviations.

        >>> Number("bytes", (100.0, 150.0), (0.0, 1.0)).inverse_scale(-0.5)
        75.0
        """
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            share = (z - self.z[0]) / (self.z[1] - self.z[0])
            return self.quantiles[0] + share * (self.quantiles[1] - self.quantiles[0])
        return float(np.interp(z, self.z, self.quantiles))


def is_number(values: pl.Series, kind: str | None = None) -> bool:
    """Whether a column holds quantities: numbers by type, or text that is many plain numbers.

    Args:
        values: The column.
        kind: `category` if it is said to hold none, `number` if any number will do.
    """
    if kind is not None:
        return kind == "number" and not _parse_numbers(values).is_null().all()
    if values.dtype.is_numeric():
        return True
    if values.dtype != pl.String:
        return False
    # Nearly every column of text is told by its first value, or has none.
    if values.null_count() == len(values) or not re.match(NUMBER_PATTERN, values[0] or "0"):
        return False
    known = values.drop_nulls()
    return known.n_unique() > MIN_DISTINCT_NUMBERS and bool(
        known.str.contains(NUMBER_PATTERN).all()
    )


def _parse_numbers(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(value=False), None)


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
    return column.encode(
        unique.column_codes(name), unique.encoded_slice.dictionary.value_codes(name)
    )


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
