"""From undecoded records to a table of text: nested names joined, one column a name.

A record climbs down a ladder until it can be read: a typed decode of the wanted columns only; a
decode of everything and a walk, for names whose path is not known, flat records, and values of an
unexpected type; the standard library, for text that is no proper JSON; refusal.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl
from msgspec.structs import astuple

from morpheus.sources.documents import RawJson, decode_leniently, encode_json

logger = logging.getLogger(__name__)

_BLOCK_RECORDS = 1 << 9
"""Records decoded and made columns of in one go: few enough to stay in the processor's cache."""

ValueTransform = Callable[[Any], Any]
ColumnValues = Sequence[Any]
FlatRecord = dict[str, Any]
_TEXT_WRITERS: dict[type, Callable[[Any], str | None]] = {
    str: lambda value: value,
    type(None): lambda _: None,
    bool: str,
    int: str,
    float: repr,
}
_BOOLEAN_TEXT = {True: "True", False: "False", None: None}


def to_text(value: object) -> str | None:
    """Write a JSON value as the text of a cell.

    >>> [to_text(value) for value in ("007", True, 12, 1.50, None, [{"b": 1, "a": 2}])]
    ['007', 'True', '12', '1.5', None, '[{"a":2,"b":1}]']
    """
    write = _TEXT_WRITERS.get(type(value))
    return write(value) if write else encode_json(value).decode()


def flatten_name(name: str, drop_characters: str = ".") -> str:
    """Join a dotted name.

    >>> flatten_name("userIdentity.sessionContext.sessionIssuer.userName")
    'userIdentitysessionContextsessionIssueruserName'
    """
    for character in drop_characters:
        name = name.replace(character, "")
    return name


def to_text_values(values: ColumnValues) -> ColumnValues:
    """Write the JSON values of a column, mostly of one type, as the texts of its cells.

    Columns that look like text are left as they are, be it that some other value hides in them.
    """
    first = next((value for value in values if value is not None), None)
    if first is None or type(first) is str:
        return values
    if set(map(type, values)) <= {bool, type(None)}:
        return list(map(_BOOLEAN_TEXT.__getitem__, values))
    return _convert_to_text(values)


def to_string_series(values: ColumnValues) -> pl.Series:
    """Make a column of text of JSON values."""
    try:
        return pl.Series(to_text_values(values), dtype=pl.String)
    except (TypeError, OverflowError):
        return pl.Series(_convert_to_text(values), dtype=pl.String)


@lru_cache(maxsize=2)
def _make_null_column(rows: int) -> pl.Series:
    """A column without a value; all but the last block of a table share one."""
    return pl.repeat(None, rows, dtype=pl.String, eager=True)


def _convert_to_text(values: ColumnValues) -> ColumnValues:
    # Most cells of such columns are empty, and a call costs more than a comparison.
    return [None if value is None else to_text(value) for value in values]


@dataclass
class Flattener:
    """Flattens the records of one kind of log.

    Args:
        wanted_columns: Flat names of the columns to pass on, in order.
        paths: Dotted names that such records are known to have.
        transforms: By flat name, what becomes of a value before it is text.
        drop_characters: Characters left out of names; the dot joins.
        all_columns: Pass on all other columns too, behind the wanted ones.
    """

    wanted_columns: tuple[str, ...]
    paths: tuple[str, ...]
    transforms: Mapping[str, ValueTransform] = field(default_factory=dict)
    drop_characters: str = "."
    all_columns: bool = False

    def __post_init__(self) -> None:
        self._decoder = None if self.all_columns else self._compile_decoder()
        self._warned: set[str] = set()

    def flatten(self, records: Sequence[RawJson]) -> tuple[pl.DataFrame, dict[int, str]]:
        """Flatten records.

        Returns:
            One row a record, every column text; and, by row, why a record was refused.
        """
        step = len(records) if self.all_columns else _BLOCK_RECORDS
        blocks: list[dict[str, pl.Series]] = []
        refused: dict[int, str] = {}
        with _pause_gc():
            for start in range(0, len(records), step or 1):
                block, bad = self._flatten_block(records[start : start + step])
                blocks.append(block)
                refused |= {start + at: reason for at, reason in bad.items()}
        if not blocks:
            return pl.DataFrame(schema=dict.fromkeys(self.wanted_columns, pl.String)), {}
        # Not made one piece of memory here: whoever joins tables does it, once.
        columns = {name: pl.concat([b[name] for b in blocks]) for name in blocks[0]}
        return pl.DataFrame(columns), refused

    def _flatten_block(self, records: Sequence[RawJson]) -> tuple[dict[str, pl.Series], dict[int, str]]:
        typed, walked, refused = self._decode(records)
        cells = self._decoder.to_columns(typed) if self._decoder else {}
        if walked:
            cells = _merge_rows(cells, walked, len(records))
        for name in self.transforms.keys() & cells.keys():
            cells[name] = list(map(self.transforms[name], cells[name]))
        names = [*self.wanted_columns, *sorted(cells.keys() - set(self.wanted_columns))]
        nothing = _make_null_column(len(records))
        return {n: to_string_series(cells[n]) if n in cells else nothing for n in names}, refused

    def _decode(
        self, records: Sequence[RawJson]
    ) -> tuple[list[Any], dict[int, FlatRecord], dict[int, str]]:
        shape = self._decoder
        typed = shape.decode_all(records) if shape else None
        if typed is not None:
            return typed, {}, {}
        typed, walked, refused = [], {}, {}
        for at, record in enumerate(records):
            event = shape.decode_or_none(record) if shape else None
            if shape:
                typed.append(event or shape.empty)
            if event is None:
                try:
                    walked[at] = self._flatten_record(record)
                except (ValueError, RecursionError) as error:
                    refused[at] = str(error)
        return typed, walked, refused

    def _compile_decoder(self) -> StructDecoder | None:
        known = {tuple(path.split(".")): flatten_name(path, self.drop_characters) for path in self.paths}
        wanted = {path: name for path, name in known.items() if name in set(self.wanted_columns)}
        if not set(self.wanted_columns) <= set(wanted.values()):
            return None
        inner = {path[:n] for path in wanted for n in range(1, len(path))}
        return None if inner & wanted.keys() else StructDecoder.from_paths(wanted)

    def _flatten_record(self, record: RawJson) -> FlatRecord:
        try:
            value = msgspec.json.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            value = decode_leniently(record)
        if not isinstance(value, dict):
            raise ValueError("a record must be a JSON object")  # noqa: TRY004 - one kind of refusal
        row: FlatRecord = {}
        for name, leaf in self._iter_leaves(value, ""):
            if row.get(name) is None:
                row[name] = leaf
            elif leaf is not None:
                self._warn_same_name(name, value)
        return row

    def _iter_leaves(self, value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            name = prefix + flatten_name(key, self.drop_characters)
            branch = isinstance(inner, dict) and bool(inner)
            if branch:
                yield from self._iter_leaves(inner, name)
            if name in self.wanted_columns or (self.all_columns and not branch):
                yield name, inner

    def _warn_same_name(self, name: str, value: Mapping[str, Any]) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        both = [path for path in _iter_paths(value) if flatten_name(path, self.drop_characters) == name][:2]
        logger.warning(
            "%s are the same column `%s`, the dots left out; the first that has a value is kept.",
            " and ".join(f"`{path}`" for path in both),
            name,
        )


def _iter_paths(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, inner in value.items():
        yield prefix + key
        if isinstance(inner, dict):
            yield from _iter_paths(inner, f"{prefix}{key}.")


@contextmanager
def _pause_gc() -> Iterator[None]:
    """Look for no cycles of garbage; none is made here, and looking takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _merge_rows(
    cells: Mapping[str, ColumnValues], rows: Mapping[int, FlatRecord], height: int
) -> dict[str, ColumnValues]:
    """Columns, with some of their rows filled in."""
    columns = {name: list(values) for name, values in cells.items()}
    for at, row in rows.items():
        for name, value in row.items():
            columns.setdefault(name, [None] * height)[at] = value
    return dict(columns)


@dataclass(frozen=True)
class StructDecoder:
    """The wanted part of a record as a type, compiled once, and its columns.

    Attributes:
        decode: Decodes one record into that type.
        empty: The record that has nothing.
        leaf_columns: Flat name by field.
        nested_decoders: The shape below each field.
    """

    decode: Callable[[RawJson], Any]
    empty: Any
    leaf_columns: Mapping[str, str]
    nested_decoders: Mapping[str, StructDecoder]

    @classmethod
    def from_paths(cls, column_by_path: Mapping[tuple[str, ...], str]) -> StructDecoder:
        """Compile the type of records with these paths, which are given their flat names."""
        keys = dict.fromkeys(path[0] for path in column_by_path)
        fields = {key: f"f{n}" for n, key in enumerate(keys)}
        leaves = {fields[path[0]]: name for path, name in column_by_path.items() if len(path) == 1}
        branches = {
            inner: cls.from_paths({path[1:]: name for path, name in column_by_path.items() if path[0] == key})
            for key, inner in fields.items()
            if inner not in leaves
        }
        types = [
            (name, type(branches[name].empty) | None if name in branches else Any, None)
            for name in fields.values()
        ]
        # Events point at nothing that points back, so the garbage collector need not look at them.
        kind = msgspec.defstruct("Event", types, rename={v: k for k, v in fields.items()}, gc=False)
        return cls(msgspec.json.Decoder(kind).decode, kind(), leaves, branches)

    def decode_all(self, records: Sequence[RawJson]) -> list[Any] | None:
        """Decode records in one go; None if one of them must be looked at by itself."""
        try:
            events = list(map(self.decode, records))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        every = any(all(map(attrgetter(name), events)) for name in self.nested_decoders)
        return events if every or all(map(self.has_nested, events)) else None

    def decode_or_none(self, record: RawJson) -> Any | None:  # noqa: ANN401 - a type compiled at run time
        """Decode a record; None if it is not of this shape."""
        try:
            event = self.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return event if self.has_nested(event) else None

    def has_nested(self, event: object) -> bool:
        """Whether an event has any branch; a flat record has none, or null ones beside it."""
        for name in self.nested_decoders:  # noqa: SIM110 - any() of a generator takes thrice as long
            if getattr(event, name):
                return True
        return False

    def to_columns(self, events: Sequence[Any]) -> dict[str, ColumnValues]:
        """The values of each column that has any, by flat name."""
        if not events:
            return {}
        every = zip(*map(astuple, events), strict=True)
        values = dict(zip(self.empty.__struct_fields__, every, strict=True))
        cells: dict[str, ColumnValues] = {}
        nothing = (None,) * len(events)
        for name, column in self.leaf_columns.items():
            if values[name] != nothing:
                cells[column] = _coalesce_columns(cells.get(column), values[name])
        for name, shape in self.nested_decoders.items():
            if values[name] != nothing:
                filled = [event or shape.empty for event in values[name]]
                for column, inner in shape.to_columns(filled).items():
                    cells[column] = _coalesce_columns(cells.get(column), inner)
        return cells


def _coalesce_columns(first: ColumnValues | None, second: ColumnValues) -> ColumnValues:
    """One column of two, of a name that stands in two places in records."""
    if first is None:
        return second
    return [other if one is None else one for one, other in zip(first, second, strict=True)]
