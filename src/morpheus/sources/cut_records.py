"""Cuts JSON records into parts that repeat, so that each distinct part is decoded once.

Most fields of a log repeat. A record differs from all others only in a few texts, such as its id
and its time. `RecordCutter` cuts records at these texts. The parts between them are decoded when
they come for the first time, and looked up by their bytes afterwards.

A part is used only if it is by itself a list of complete fields. A record is the list of its parts
and texts, so it has the same fields as if it were decoded whole. A record with another structure is
left to the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

RawJson = bytes | msgspec.Raw
"""The JSON text of one value."""
DecodeObjects = Callable[[Sequence[str]], tuple[pl.DataFrame, Sequence[bool | None]]]
"""Decodes objects. Returns their cells and, for each object, whether it has a nested object with a
known field; None for an object that cannot be decoded."""

_BLOCK_RECORDS = 1 << 12
"""Records cut together: few enough to stay in the processor's cache."""
_SAMPLE = 1024
"""Maximum number of records that are examined to find the texts that differ."""
_MIN_SAMPLE = 64
_MIN_DISTINCT = 0.5
"""Share of distinct texts above which a field is cut out of the records."""
_MIN_FILLED = 0.9
"""Share of records that have a field which is cut out."""
_MAX_TEXTS = 6
_MAX_NEW = 0.4
"""Share of the text that may be in new parts. Above it, cutting costs more than it saves."""
_PROBE_RECORDS = 1 << 10
"""Number of records that are cut first, to see whether their parts repeat."""
_MIN_USABLE = 0.5
"""Share of records that can be cut, below which other texts are looked for."""
_SKIPPED_CALLS = 16
"""Number of calls to wait after cutting was of no use."""
_MAX_PARTS = 1 << 16
"""Maximum number of distinct parts in memory."""
_MAX_BYTES = 1 << 26
_NOT_PLAIN = r"[\x00-\x1f\\]"
"""What a text in JSON cannot contain, or contains only as part of an escape sequence."""
_MAX_NAME_SETS = 1 << 8
"""Maximum number of different sets of names of the parts at one place."""

_JSON_SPACE = " \t\r\n"

_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


class CutField(msgspec.Struct, frozen=True):
    """A field that is cut out of records, because its text differs from record to record.

    Attributes:
        name: Name of the field, at the top of the record.
        column: Its column; None if the column is not wanted.
        key: What comes before the text in a record, with its opening quote.
    """

    name: str
    column: str | None
    key: bytes


def find_cut_fields(
    records: Sequence[RawJson], columns: Mapping[str, str], kept: Container[str] = ()
) -> list[CutField]:
    """Find the fields whose texts differ in most records, in the order of the first record.

    Args:
        records: Some records.
        columns: The wanted column of fields at the top of a record.
        kept: Fields that must not be cut out.

    >>> records = [b'{"id":"%d","kind":"a"}' % number for number in range(100)]
    >>> [each.key for each in find_cut_fields(records, {"kind": "kind"})]
    [b'"id":"']
    """
    sample = records[:: max(1, len(records) // _SAMPLE)][:_SAMPLE]
    if len(sample) < _MIN_SAMPLE:
        return []
    try:
        fields = [_FIELDS_DECODER.decode(record) for record in sample]
    except _ERRORS:
        return []
    found: list[tuple[int, CutField]] = []
    first = bytes(sample[0])
    for name in fields[0]:
        texts = [bytes(each[name]) for each in fields if name in each]
        texts = [text for text in texts if text.startswith(b'"')]
        key = re.search(rb'"%s"\s*:\s*"' % re.escape(name.encode()), first)
        if name in kept or key is None or len(texts) < _MIN_FILLED * len(sample):
            continue
        if len(set(texts)) > _MIN_DISTINCT * len(texts):
            found.append((key.start(), CutField(name, columns.get(name), key[0])))
    return [each for _, each in sorted(found, key=lambda item: item[0])[:_MAX_TEXTS]]


def _make_kind() -> pl.Categorical:
    return pl.Categorical(pl.Categories.random())


def _make_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


class PartTable(msgspec.Struct):
    """The distinct parts at one place of the records, and their cells.

    Row 0 has no fields: it stands for parts that cannot be used.

    Attributes:
        place: 0 for the first part of a record, 1 for others, 2 for the last.
        decode: Decodes objects into cells.
        excluded: Names of fields that are cut out. A part that has one is not used.
        nested: Whether each part has a nested object with a known field, by row.
        set_numbers: Number of the set of names of each part, by row.
    """

    place: int
    decode: DecodeObjects
    excluded: frozenset[str]
    _kind: pl.Categorical = msgspec.field(default_factory=_make_kind)
    _known: pl.Series | None = None
    _rows: NDArray[np.int64] = msgspec.field(default_factory=_make_rows)
    _num_bytes: int = 0
    _cells: list[pl.DataFrame] = msgspec.field(default_factory=list)
    nested: NDArray[np.bool_] = msgspec.field(default_factory=lambda: np.zeros(1, bool))
    set_numbers: NDArray[np.int64] = msgspec.field(default_factory=lambda: np.zeros(1, np.int64))
    _name_sets: list[frozenset[str]] = msgspec.field(default_factory=lambda: [frozenset()])

    def look_up(self, parts: pl.Series) -> tuple[NDArray[np.int64], int]:
        """Return the row of each part, and the size of parts that are new, in bytes."""
        coded = parts.cast(self._kind)
        # Polars forgets the codes of texts when no column has them.
        self._known = coded.head(1)
        codes = coded.to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
        highest, before = int(codes.max(initial=-1)), self._num_bytes
        if highest >= len(self._rows):
            more = np.zeros(highest + 1 - len(self._rows), np.int64)
            first, self._rows = len(self._rows), np.concatenate([self._rows, more])
            new, rows = np.unique(codes, return_index=True)
            rows = rows[new >= first]
            self._add(parts.gather(rows).to_list(), codes[rows])
        return np.where(codes < 0, 0, self._rows[codes]), self._num_bytes - before

    @property
    def cells(self) -> pl.DataFrame:
        """The cells of all parts, by row; only columns with values."""
        if len(self._cells) > 1:
            self._cells = [pl.concat(self._cells, how="diagonal", rechunk=True)]
        return self._cells[0] if self._cells else pl.DataFrame()

    def shrink(self) -> None:
        """Forget all parts if they are too many. Rows that were looked up are not valid then."""
        if len(self._rows) > _MAX_PARTS or self._num_bytes > _MAX_BYTES:
            self._kind, self._rows, self._num_bytes = _make_kind(), _make_rows(), 0
            self._cells, self.nested, self.set_numbers = [], self.nested[:1], self.set_numbers[:1]

    def get_names(self, number: int) -> frozenset[str]:
        """Return a set of names."""
        return self._name_sets[number]

    def _add(self, parts: Sequence[str], codes: NDArray[np.int64]) -> None:
        """Decode new parts, which have these codes."""
        objects: list[str] = []
        sets: list[int] = []
        used: list[int] = []
        for number, part in enumerate(parts):
            self._num_bytes += len(part)
            text = _to_object(part, self.place)
            names = None if text is None else _list_names(text)
            set_number = None if names is None else self._number_names(names)
            if text is not None and set_number is not None:
                objects.append(text)
                sets.append(set_number)
                used.append(number)
        if not objects:
            return
        cells, nested = self.decode(objects)
        first = len(self.nested)
        if not self._cells:
            self._cells = [pl.DataFrame({name: [None] for name in cells.columns}, cells.schema)]
        self._cells.append(cells)
        self.nested = np.concatenate([self.nested, np.array(list(map(bool, nested)))])
        self.set_numbers = np.concatenate([self.set_numbers, np.array(sets)])
        decoded = np.array([known is not None for known in nested])
        self._rows[codes[used]] = np.where(decoded, np.arange(first, first + len(objects)), 0)

    def _number_names(self, names: frozenset[str]) -> int | None:
        """Return the number of a set of names; None if it cannot be used."""
        if names & self.excluded:
            return None
        if names in self._name_sets:
            return self._name_sets.index(names)
        if len(self._name_sets) == _MAX_NAME_SETS:
            return None
        self._name_sets.append(names)
        return len(self._name_sets) - 1


def _list_names(text: str) -> frozenset[str] | None:
    """Return the names of the fields of an object; None if it is not one."""
    try:
        return frozenset(_FIELDS_DECODER.decode(text))
    except _ERRORS:
        return None


def _to_object(part: str, place: int) -> str | None:
    """Make an object of a part; None if a part at this place cannot look so.

    >>> _to_object('{"a":1,', 0), _to_object(',"a":1,', 1), _to_object(',"a":1}', 2)
    ('{"a":1}', '{"a":1}', '{"a":1}')
    >>> _to_object(",", 1), _to_object("}", 2), _to_object('"a":{', 0)
    ('{}', '{}', None)
    """
    text = part.strip(_JSON_SPACE)
    if text == "{,}"[place]:
        return "{}"
    begin, end = "{,,"[place], ",,}"[place]
    if len(text) <= 1 or not text.startswith(begin) or not text.endswith(end):
        return None
    return "{" + text[1:-1] + "}"


class CutRecords(msgspec.Struct, frozen=True):
    """The cells of records that were cut.

    Attributes:
        cells: The columns of the parts that have values.
        texts: The wanted columns of the texts that were cut out, as the log has them.
        usable: Which records have these cells, (records,). The others must be decoded whole.
    """

    cells: Mapping[str, pl.Series]
    texts: pl.DataFrame
    usable: NDArray[np.bool_]


class RecordCutter(msgspec.Struct):
    """Turns records into cells, decoding each distinct part once.

    Attributes:
        decode: Decodes objects into cells.
        columns: The wanted column of fields at the top of a record.
        kept: Fields that must not be cut out.
        min_bytes: Minimum size of the records of a call. Cutting less costs more than it saves.
    """

    decode: DecodeObjects
    columns: Mapping[str, str]
    kept: frozenset[str] = frozenset()
    min_bytes: int = 1 << 22
    _fields: list[CutField] = msgspec.field(default_factory=list)
    _tables: list[PartTable] = msgspec.field(default_factory=list)
    _disjoint: dict[int, bool] = msgspec.field(default_factory=dict)
    _calls_to_skip: int = 0

    def cut(self, records: Sequence[RawJson]) -> CutRecords | None:
        """Cut records, and look up the cells of their parts; None if all must be decoded whole."""
        self._calls_to_skip -= 1
        too_few = len(records) < _MIN_SAMPLE or sum(map(len, records)) < self.min_bytes
        if self._calls_to_skip > 0 or too_few:
            return None
        if not self._fields:
            self._prepare(records)
        for table in self._tables:
            table.shrink()
        blocks: list[_Pieces] = []
        starts = [0, *range(_PROBE_RECORDS, len(records), _BLOCK_RECORDS), len(records)]
        for start, end in pairwise(starts) if self._fields else ():
            block = self._cut_block(records[start:end])
            if block is None or not block.is_useful(sum(map(len, records[start:end]))):
                blocks = []
                break
            blocks.append(block)
        if not blocks:
            self._fields, self._calls_to_skip = [], _SKIPPED_CALLS
            return None
        rows = [
            np.concatenate(parts) for parts in zip(*(each.rows for each in blocks), strict=True)
        ]
        texts = pl.concat([each.texts for each in blocks])
        wanted = [
            texts[f"{_TEXT}{number}"].alias(each.column)
            for number, each in enumerate(self._fields)
            if each.column is not None
        ]
        usable = np.concatenate([each.usable for each in blocks])
        return CutRecords(self._look_up_cells(rows), pl.DataFrame(wanted), usable)

    def _cut_block(self, records: Sequence[RawJson]) -> _Pieces | None:
        """Cut records, and look up their parts; None if they are not UTF-8."""
        texts = pl.Series(_REST, list(map(bytes, records)), dtype=pl.Binary)
        try:
            texts = texts.cast(pl.String)
        except pl.exceptions.ComputeError:
            return None
        # One query: it is faster than one for each step.
        query = texts.to_frame().lazy()
        for number, each in enumerate(self._fields):
            after_key = _split(each.key.decode(), f"{_PART}{number}", _AFTER)
            query = query.select(pl.exclude(_REST), after_key).unnest(_SPLIT)
            after_text = _split('"', f"{_TEXT}{number}", _REST, _AFTER)
            query = query.select(pl.exclude(_AFTER), after_text).unnest(_SPLIT)
        plain = [~pl.col(f"{_TEXT}{n}").str.contains(_NOT_PLAIN) for n in range(len(self._fields))]
        is_plain = pl.all_horizontal(pl.col(_REST).is_not_null(), *plain).fill_null(value=False)
        frame = query.with_columns(is_plain.alias(_PLAIN)).collect()
        cut = [*(f"{_PART}{number}" for number in range(len(self._fields))), _REST]
        found = [table.look_up(frame[name]) for table, name in zip(self._tables, cut, strict=True)]
        rows = [each for each, _ in found]
        usable = frame[_PLAIN].to_numpy() & (np.minimum.reduce(rows) > 0) & self._find_valid(rows)
        return _Pieces(rows, frame.drop(*cut, _PLAIN), usable, sum(new for _, new in found))

    def _prepare(self, records: Sequence[RawJson]) -> None:
        found = find_cut_fields(records, self.columns, self.kept)
        # Records without a wanted field at the top may have other names for them.
        self._fields = found if any(each.column is not None for each in found) else []
        names = frozenset(each.name for each in self._fields)
        places = [0, *([1] * (len(self._fields) - 1)), 2]
        self._tables = [PartTable(place, self.decode, names) for place in places]
        self._disjoint = {}

    def _find_valid(self, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Return which records have a known nested object, and no field in two parts."""
        nested = np.zeros(len(rows[0]), bool)
        kinds = np.zeros(len(rows[0]), np.int64)
        for table, row in zip(self._tables, rows, strict=True):
            nested |= table.nested[row]
            kinds = kinds * _MAX_NAME_SETS + table.set_numbers[row]
        distinct, kind = np.unique(kinds, return_inverse=True)
        disjoint = np.array([self._is_disjoint(int(each)) for each in distinct], bool)
        return np.asarray(nested & disjoint[kind])

    def _is_disjoint(self, kind: int) -> bool:
        """Return whether no field is in two parts, for a combination of sets of names."""
        known = self._disjoint.get(kind)
        if known is None:
            names: list[str] = []
            left = kind
            for table in reversed(self._tables):
                left, number = divmod(left, _MAX_NAME_SETS)
                names += table.get_names(number)
            known = self._disjoint[kind] = len(names) == len(set(names))
        return known

    def _look_up_cells(self, rows: Sequence[NDArray[np.int64]]) -> dict[str, pl.Series]:
        columns: dict[str, pl.Series] = {}
        for table, row in zip(self._tables, rows, strict=True):
            places = pl.Series(row, dtype=pl.get_index_type())
            for column in table.cells.select(pl.all().gather(places)):
                known = columns.get(column.name)
                columns[column.name] = (
                    column if known is None else known.zip_with(known.is_not_null(), column)
                )
        return columns


_REST, _AFTER, _SPLIT, _PART, _TEXT, _PLAIN = "rest", "after", "split", "part", "text", "plain"


def _split(separator: str, before: str, after: str, source: str = _REST) -> pl.Expr:
    """Return what splits texts at the first separator, as a struct of what is before and after."""
    halves = pl.col(source).str.splitn(separator, 2).struct.rename_fields([before, after])
    return halves.alias(_SPLIT)


class _Pieces(msgspec.Struct, frozen=True):
    """Records, cut.

    Attributes:
        rows: Row of each part in the table of its place, (places, records).
        texts: The texts that were cut out.
        usable: Which records are complete, with parts that can be used, (records,).
        num_new: Size of the parts that are new, in bytes.
    """

    rows: list[NDArray[np.int64]]
    texts: pl.DataFrame
    usable: NDArray[np.bool_]
    num_new: int

    def is_useful(self, num_bytes: int) -> bool:
        """Return whether cutting records of this size has saved time."""
        return self.num_new <= _MAX_NEW * num_bytes and self.usable.mean() >= _MIN_USABLE
