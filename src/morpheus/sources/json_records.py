"""Flattens JSON records into tables of text columns, and decodes cells that hold objects.

`decode_cell` reads JSON, the structs of Athena, Trino and CloudTrail Lake (`{a=1, b={c=2}}`), the
objects of PowerShell (`@{a=1; b=@{c=2}}`, `class X { A: 1 }`) and Python dictionaries.
"""

from __future__ import annotations

import ast
import gc
import json
import logging
import re
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import astuple

from morpheus.errors import UsageError
from morpheus.sources.cut_records import RawJson, RecordCutter
from morpheus.text import decode_text

ParseErrors = Sequence[tuple[int | None, str]]
"""What could not be read: its line or number, or None for the file, and the reason."""


def decode_leniently(text: RawJson) -> object:
    """Decode JSON that violates the standard: lone surrogates, invalid UTF-8, NaN.

    Raises:
        ValueError: The text is not JSON even so.
        RecursionError: The value is nested too deeply.
    """
    return replace_surrogates(json.loads(decode_text(bytes(text))))


def replace_surrogates(value: object) -> object:
    """Replace lone surrogates, which UTF-8 cannot represent, with the replacement character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            str(replace_surrogates(key)): replace_surrogates(item) for key, item in value.items()
        }
    return value


def encode_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Encode as compact JSON with sorted keys, so that equal values give equal text.

    >>> encode_json({"b": 1, "a": [True, "é"]}).decode()
    '{"a":[true,"é"],"b":1}'
    """
    return msgspec.json.encode(value, order="deterministic")


logger = logging.getLogger(__name__)

_BLOCK_RECORDS = 1 << 9
"""Records decoded together: few enough to stay in the processor's cache."""

ValueTransform = Callable[[Any], Any]
"""Changes a JSON value before it becomes text."""
ColumnValues = Sequence[Any]
"""JSON values of one column, one per record."""
_NameKind = Literal["own", "object", "other", "parent"]
"""How a field is named: as the log does; so, but perhaps an object as text; otherwise; or as an
object that may contain columns with other names."""
_MAX_NAME_KINDS = 1 << 12
FlatRecord = dict[str, Any]
"""JSON values of one record, by flat name."""
_TEXT_WRITERS: dict[type, Callable[[Any], str | None]] = {
    str: lambda value: value,
    type(None): lambda _: None,
    bool: str,
    int: str,
    float: lambda value: repr(value) if value == value else None,  # noqa: PLR0124 - only NaN differs from itself
}
_BOOLEAN_TEXT = {True: "True", False: "False", None: None}


def to_text(value: object) -> str | None:
    """Convert a JSON value to the text of a cell.

    >>> [to_text(value) for value in ("007", True, 12, 1.50, None, [{"b": 1, "a": 2}])]
    ['007', 'True', '12', '1.5', None, '[{"a":2,"b":1}]']
    """
    write = _TEXT_WRITERS.get(type(value))
    return write(value) if write else encode_json(value).decode()


TABLE_MISSING_TEXTS = ("null", "NULL", r"\N")
"""Texts for no value in CSV, which has no null: those of Athena, CloudTrail Lake, SQL and Hive."""


def clear_missing_texts(frame: pl.DataFrame, missing: Sequence[str] = ()) -> pl.DataFrame:
    """Replace texts that mean no value with null: empty text, white space, and given texts.

    Args:
        frame: A table. Columns that are not text are not changed.
        missing: More texts that mean no value.

    >>> clear_missing_texts(pl.DataFrame({"a": ["x", "", " ", "-"]}), ["-"])["a"].to_list()
    ['x', None, None, None]
    """
    # Nearly no column has such a value. A value that begins with white space is below "!".
    texts = pl.col(pl.String)
    suspect = (texts < "!") | texts.is_in(missing) if missing else texts < "!"
    found = frame.select(suspect.any())
    changed = []
    for name in found.columns:
        if not found[name][0]:
            continue
        text = pl.col(name)
        absent = text.str.strip_chars() == ""
        absent = absent | text.is_in(missing) if missing else absent
        changed.append(pl.when(~absent).then(text))
    return frame.with_columns(changed) if changed else frame


def flatten_name(name: str, drop_characters: str = ".") -> str:
    """Join the parts of a dotted name.

    >>> flatten_name("userIdentity.sessionContext.sessionIssuer.userName")
    'userIdentitysessionContextsessionIssueruserName'
    """
    for character in drop_characters:
        name = name.replace(character, "")
    return name


@lru_cache(maxsize=1 << 14)
def normalize_name(name: str) -> str:
    """Return the letters and digits of a name, in lower case.

    >>> normalize_name("Sign-in error code")
    'signinerrorcode'
    """
    return "".join(filter(str.isalnum, name)).lower()


_TYPE_SUFFIX = re.compile(r"_[bdgst]$")
"""What Azure Monitor adds to the names of columns in custom tables, by their type."""


_NOT_A_FIELD = re.compile(r'["\\\x00-\x1f]')
"""What the names of a compiled type must not contain."""
_MAX_NESTING = 100
"""Maximum number of objects around a value. Each of them costs time for each value inside."""


def list_normalized_names(name: str) -> tuple[str, ...]:
    """Return the normalized names that a name may stand for, the whole one first.

    >>> list_normalized_names("eventType_s"), list_normalized_names("event_type")
    (('eventtypes', 'eventtype'), ('eventtype',))
    """
    whole = normalize_name(name)
    return (whole, normalize_name(name[:-2])) if _TYPE_SUFFIX.search(name) else (whole,)


def iter_named_leaves(
    value: Mapping[str, Any], objects: Container[str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield the normalized path and the value of each leaf, and of each object itself.

    Objects that an export has written as text are decoded; see `decode_cell`.

    Args:
        value: An object.
        objects: Normalized paths at which text may be an object.
        prefix: Normalized path of the object.
        depth: Number of enclosing objects. Beyond `_MAX_NESTING` nothing is found.

    >>> row = {"EventName": "Ls", "useridentity": "{arn=a, username=null}"}
    >>> list(iter_named_leaves(row, {"useridentity"}))[:2]
    [('eventname', 'Ls'), ('useridentityarn', 'a')]
    """
    for key, inner in value.items():
        # At each depth, the work would double.
        for normalized in list_normalized_names(key) if not depth else (normalize_name(key),):
            name = prefix + normalized
            if type(inner) is str and name in objects and looks_like_object(inner):
                inner = decode_cell(inner) or inner  # noqa: PLW2901 - the same value
            if isinstance(inner, Mapping) and depth < _MAX_NESTING:
                yield from iter_named_leaves(inner, objects, name, depth + 1)
            yield name, inner


def to_text_values(values: ColumnValues) -> ColumnValues:
    """Convert the JSON values of a column to text.

    A column whose first value is text is returned unchanged, even if other types follow.
    """
    first = next((value for value in values if value is not None), None)
    if first is None or type(first) is str:
        return values
    if set(map(type, values)) <= {bool, type(None)}:
        return list(map(_BOOLEAN_TEXT.__getitem__, values))
    return _convert_to_text(values)


def to_string_series(values: ColumnValues) -> pl.Series:
    """Make a text column from JSON values."""
    try:
        return pl.Series(to_text_values(values), dtype=pl.String)
    except (TypeError, OverflowError):
        return pl.Series(_convert_to_text(values), dtype=pl.String)


@lru_cache(maxsize=2)
def _make_null_column(rows: int) -> pl.Series:
    """Make a column of nulls; all blocks of the same size share one."""
    return pl.repeat(None, rows, dtype=pl.String, eager=True)


def _convert_to_text(values: ColumnValues) -> ColumnValues:
    # Most of these cells are empty, and a comparison is cheaper than a call.
    return [None if value is None else to_text(value) for value in values]


@dataclass
class Flattener:
    """Flattens the records of one kind of log into a table of text columns.

    Args:
        wanted_columns: Flat names of the columns to return, in order.
        paths: Dotted names of the fields that the log format knows.
        transforms: Changes to values before they become text, by flat name.
        drop_characters: Characters removed from names. The dot separates the parts of a path.
        all_columns: Also return all other columns, after the wanted ones.
        other_names: Flat columns, by other names of theirs, normalized. The first of several names
            has precedence.
        first_names: Those of the other names that take precedence over the column's own.
        objects: Normalized paths at which text may be an object.
        max_fields: Maximum number of fields of a record, and of different columns in a table.
    """

    wanted_columns: tuple[str, ...]
    paths: tuple[str, ...]
    transforms: Mapping[str, ValueTransform] = field(default_factory=dict)
    drop_characters: str = "."
    all_columns: bool = False
    other_names: Mapping[str, str] = field(default_factory=dict)
    first_names: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    max_fields: int = 10_000

    def __post_init__(self) -> None:
        self._decoder = None if self.all_columns else self._compile_decoder()
        self.cutter = None if self._decoder is None else self._make_cutter(self._decoder)
        self._warned: set[str] = set()
        self._columns: dict[str, str] = {}
        own = [(normalize_name(name), name) for name in self.wanted_columns]
        wanted = set(self.wanted_columns)
        for name, column in (*own, *self.other_names.items()):
            if column in wanted:
                self._columns.setdefault(name, column)
        self._ranks = {name: rank for rank, name in enumerate(self._columns)}
        self._ranks |= dict.fromkeys(self.first_names, -1)
        self._fields = {path.split(".")[0] for path in self.paths} | wanted
        parts = chain.from_iterable(path.split(".")[1:] for path in self.paths)
        self._lower_parts = {part.lower() for part in parts if part != part.lower()}
        self._name_kinds: dict[str, _NameKind] = {}

    def flatten(self, records: Sequence[RawJson]) -> tuple[pl.DataFrame, dict[int, str]]:
        """Flatten records.

        Returns:
            One row per record, all columns text; and the rejected rows, with the reasons.
        """
        with _pause_gc():
            cut = None if self.cutter is None else self.cutter.cut(records)
        if cut is None:
            return self.flatten_whole(records)
        columns = {**cut.cells, **clear_missing_texts(cut.texts).to_dict()}
        usable, nulls = cut.usable, _make_null_column(len(records))
        frame = pl.DataFrame({name: columns.get(name, nulls) for name in self.wanted_columns})
        if usable.all():
            return frame, {}
        others = np.flatnonzero(~usable)
        rest, refused = self.flatten_whole([records[row] for row in others.tolist()])
        order = np.argsort(np.concatenate([np.flatnonzero(usable), others]))
        joined = pl.concat([frame.filter(pl.Series(usable)), rest])
        return joined[order], {int(others[row]): reason for row, reason in refused.items()}

    def flatten_whole(self, records: Sequence[RawJson]) -> tuple[pl.DataFrame, dict[int, str]]:
        """Flatten records that are decoded whole."""
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
        # No rechunk here: the tables are rechunked once, when they are joined.
        columns = {name: pl.concat([b[name] for b in blocks]) for name in blocks[0]}
        return clear_missing_texts(pl.DataFrame(columns)), refused

    def _make_cutter(self, decoder: StructDecoder) -> RecordCutter | None:
        """Return what cuts records, unless a column has several paths."""
        if not decoder.has_distinct_columns:
            return None
        paths = {path: flatten_name(path, self.drop_characters) for path in self.paths}
        top = {path: name for path, name in paths.items() if "." not in path}
        top = {path: name for path, name in top.items() if name in self.wanted_columns}
        converted = {path for path, name in top.items() if name in self.transforms}
        nested = {path.split(".")[0] for path in paths if "." in path}
        return RecordCutter(self._decode_objects, top, frozenset(converted | nested))

    def _decode_objects(self, objects: Sequence[str]) -> tuple[pl.DataFrame, Sequence[bool | None]]:
        """Decode parts of records; see `RecordCutter`."""
        decoder = self._decoder
        assert decoder is not None  # noqa: S101 - there is no cutter without it
        events = [decoder.decode_or_none(text, may_be_flat=True) for text in objects]
        cells = decoder.to_columns([event or decoder.empty for event in events])
        for name in self.transforms.keys() & cells.keys():
            cells[name] = list(map(self.transforms[name], cells[name]))
        frame = pl.DataFrame([to_string_series(values).alias(n) for n, values in cells.items()])
        nested = [None if event is None else decoder.has_nested(event) for event in events]
        if not cells:
            frame = pl.DataFrame({"": [None] * len(events)}, {"": pl.String})
        return clear_missing_texts(frame), nested

    def _flatten_block(
        self, records: Sequence[RawJson]
    ) -> tuple[dict[str, pl.Series], dict[int, str]]:
        typed, untyped, refused = self._decode(records)
        cells = self._decoder.to_columns(typed) if self._decoder else {}
        if untyped:
            cells = _merge_rows(cells, untyped, len(records))
        for name in self.transforms.keys() & cells.keys():
            cells[name] = list(map(self.transforms[name], cells[name]))
        others = sorted(cells.keys() - set(self.wanted_columns))
        if len(others) > self.max_fields:
            raise UsageError(
                f"--all_columns: the records have {len(others):,} different columns, and at most "
                f"{self.max_fields:,} are read. Leave --all_columns out, or give "
                f"`--max_columns={len(others)}`."
            )
        names = [*self.wanted_columns, *others]
        nulls = _make_null_column(len(records))
        return {n: to_string_series(cells[n]) if n in cells else nulls for n in names}, refused

    def _decode(
        self, records: Sequence[RawJson]
    ) -> tuple[list[Any], dict[int, FlatRecord], dict[int, str]]:
        """Decode records.

        Returns:
            The records that the compiled type can decode; by row, the other records; by row, the
            reasons for rejecting a record.
        """
        decoder = self._decoder
        typed = decoder.decode_all(records) if decoder else None
        if typed is not None:
            return typed, {}, {}
        typed, untyped, refused = [], {}, {}
        for row, record in enumerate(records):
            event = decoder.decode_or_none(record) if decoder else None
            if decoder:
                typed.append(event or decoder.empty)
            if event is None:
                try:
                    untyped[row] = self._flatten_record(record)
                except RecursionError:
                    refused[row] = "the record is nested too deeply"
                except ValueError as error:
                    refused[row] = str(error)
        return typed, untyped, refused

    def _compile_decoder(self) -> StructDecoder | None:
        known = {
            tuple(path.split(".")): flatten_name(path, self.drop_characters) for path in self.paths
        }
        wanted = {path: name for path, name in known.items() if name in set(self.wanted_columns)}
        if not set(self.wanted_columns) <= set(wanted.values()):
            return None
        inner = {path[:n] for path in wanted for n in range(1, len(path))}
        if any(_NOT_A_FIELD.search(part) for path in wanted for part in path):
            return None
        return None if inner & wanted.keys() else StructDecoder.from_paths(wanted)

    def _flatten_record(self, record: RawJson) -> FlatRecord:
        try:
            value = msgspec.json.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            value = decode_leniently(record)
        if not isinstance(value, dict):
            raise ValueError("a record must be a JSON object")  # noqa: TRY004 - one kind of refusal
        if len(value) > self.max_fields:
            raise ValueError(self._too_many_fields(len(value)))
        row: FlatRecord = {}
        for name, leaf in self._iter_leaves(value, ""):
            if _is_missing(row.get(name)):
                row[name] = leaf
            elif not _is_missing(leaf):
                self._warn_same_name(name, value)
        if len(row) > max(self.max_fields, len(self.wanted_columns)):
            raise ValueError(self._too_many_fields(len(row)))
        if any(self._has_other_name(key, inner) for key, inner in value.items()):
            self._fill_other_names(row, value)
        return row

    def _too_many_fields(self, number: int) -> str:
        return (
            f"the record has {number:,} fields, and at most {self.max_fields:,} are read; if you "
            f"trust it, give `--max_columns={number}`"
        )

    def _has_other_name(self, key: str, value: object) -> bool:
        """Return whether a field may be a column with another name, or an object as text."""
        kind = self._name_kinds.get(key)
        if kind is None:
            kind = self._classify_name(key)
            if len(self._name_kinds) < _MAX_NAME_KINDS:
                self._name_kinds[key] = kind
        if kind == "parent":
            return isinstance(value, dict)
        if kind != "other" and isinstance(value, dict):
            return self._has_lower_names(value)
        return kind == "other" or (kind == "object" and type(value) is str)

    def _has_lower_names(self, value: Mapping[str, Any], depth: int = 0) -> bool:
        """Return whether a field inside an object has its name in lower case, as Hive writes it."""
        return depth < _MAX_NESTING and (
            not self._lower_parts.isdisjoint(value)
            or any(
                self._has_lower_names(inner, depth + 1)
                for inner in value.values()
                if isinstance(inner, dict)
            )
        )

    def _classify_name(self, key: str) -> _NameKind:
        names = list_normalized_names(key)
        if key in self._fields:
            return "object" if names[0] in self.objects else "own"
        if any(name in self._columns or name in self.objects for name in names):
            return "other"
        return "parent" if any(each.startswith(names[0]) for each in self._columns) else "own"

    def _fill_other_names(self, row: FlatRecord, value: Mapping[str, Any]) -> None:
        """Fill missing columns from fields with other names, such as `EventName`."""
        ranks: dict[str, int] = {}
        for name, leaf in iter_named_leaves(value, self.objects):
            column = self._columns.get(name)
            if column is None or _is_missing(leaf):
                continue
            rank = self._ranks[name]
            if _is_missing(row.get(column)) or rank < ranks.get(column, 0):
                row[column], ranks[column] = leaf, rank

    def _iter_leaves(
        self, value: Mapping[str, Any], prefix: str, depth: int = 0
    ) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            name = prefix + flatten_name(key, self.drop_characters)
            is_branch = isinstance(inner, dict) and bool(inner)
            if is_branch and depth < _MAX_NESTING:
                yield from self._iter_leaves(inner, name, depth + 1)
            elif is_branch and self.all_columns:
                raise ValueError(f"the record is nested deeper than {_MAX_NESTING} levels")
            if name in self.wanted_columns or (self.all_columns and not is_branch):
                yield name, inner

    def _warn_same_name(self, name: str, value: Mapping[str, Any]) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        both = [
            path for path in _iter_paths(value) if flatten_name(path, self.drop_characters) == name
        ][:2]
        logger.warning(
            "%s are the same column `%s` without dots; the first one with a value is used.",
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
    """Disable garbage collection: nothing here has cycles, and it takes a sixth of the time."""
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
    """Fill some rows of columns from records."""
    columns = {name: list(values) for name, values in cells.items()}
    for at, row in rows.items():
        for name, value in row.items():
            columns.setdefault(name, [None] * height)[at] = value
    return dict(columns)


class StructDecoder(msgspec.Struct, frozen=True):
    """Decodes the wanted fields of records into a struct type that is compiled once.

    Attributes:
        decode: Decodes one record into the type.
        empty: A record without values.
        leaf_columns: Flat names, by struct field.
        nested_decoders: Decoders of nested objects, by struct field.
    """

    decode: Callable[[RawJson | str], Any]
    empty: Any
    leaf_columns: Mapping[str, str]
    nested_decoders: Mapping[str, StructDecoder]

    @classmethod
    def from_paths(
        cls, column_by_path: Mapping[tuple[str, ...], str], depth: int = 0
    ) -> StructDecoder:
        """Compile the type of records with these paths.

        An object inside a record with a name in lower case, as Hive writes it, is not of the type.

        Args:
            column_by_path: Flat name of each path.
            depth: Number of enclosing objects.
        """
        keys = dict.fromkeys(path[0] for path in column_by_path)
        fields = {key: f"f{n}" for n, key in enumerate(keys)}
        leaves = {fields[path[0]]: name for path, name in column_by_path.items() if len(path) == 1}
        branches = {
            inner: cls.from_paths(
                {path[1:]: name for path, name in column_by_path.items() if path[0] == key},
                depth + 1,
            )
            for key, inner in fields.items()
            if inner not in leaves
        }
        types: list[tuple[str, Any, None]] = [
            (name, type(branches[name].empty) | None if name in branches else Any, None)
            for name in fields.values()
        ]
        lower = {key.lower() for key in keys}.difference(keys) if depth else ()
        never = {f"n{n}": key for n, key in enumerate(sorted(lower))}
        types += [(name, None, None) for name in never]
        names = {inner: key for key, inner in fields.items()} | never
        # Events have no reference cycles, so the garbage collector can ignore them.
        kind = msgspec.defstruct("Event", types, rename=names, gc=False)
        return cls(msgspec.json.Decoder(kind).decode, kind(), leaves, branches)

    def decode_all(self, records: Sequence[RawJson]) -> list[Any] | None:
        """Decode records together; None if one of them needs `decode_or_none`."""
        try:
            events = list(map(self.decode, records))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        every = all(
            any(all(map(attrgetter(name), events)) for name in names)
            for names in (list(self.nested_decoders)[:1], self.leaf_columns)
            if names
        )
        return events if every or all(map(self._is_whole, events)) else None

    def decode_or_none(self, record: RawJson | str, *, may_be_flat: bool = False) -> Any | None:  # noqa: ANN401 - a type compiled at run time
        """Decode a record; None if it does not have this structure."""
        try:
            event = self.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return event if may_be_flat or self._is_whole(event) else None

    def _is_whole(self, event: object) -> bool:
        """Return whether an event has a nested object, and values beside it if there are any.

        An event with other names may have an object whose name is the log's by chance.
        """
        leaves = self.leaf_columns
        return self.has_nested(event) and (
            not leaves or any(getattr(event, name) is not None for name in leaves)
        )

    @property
    def has_distinct_columns(self) -> bool:
        """Whether no column has several paths."""
        names = self.list_columns()
        return len(names) == len(set(names))

    def list_columns(self) -> list[str]:
        """Return the column of each path."""
        inner = [each.list_columns() for each in self.nested_decoders.values()]
        return [*self.leaf_columns.values(), *chain.from_iterable(inner)]

    def has_nested(self, event: object) -> bool:
        """Return whether an event has the first nested object.

        A flat record has none. Tools that flatten only some objects leave others.
        """
        first = next(iter(self.nested_decoders), None)
        return first is not None and bool(getattr(event, first))

    def to_columns(self, events: Sequence[Any]) -> dict[str, ColumnValues]:
        """Return the values of each column that has any, by flat name."""
        if not events:
            return {}
        fields = zip(*map(astuple, events), strict=True)
        values = dict(zip(self.empty.__struct_fields__, fields, strict=True))
        cells: dict[str, ColumnValues] = {}
        nulls = (None,) * len(events)
        for name, column in self.leaf_columns.items():
            if values[name] != nulls:
                cells[column] = _coalesce_columns(cells.get(column), values[name])
        for name, decoder in self.nested_decoders.items():
            if values[name] != nulls:
                filled = [event or decoder.empty for event in values[name]]
                for column, inner in decoder.to_columns(filled).items():
                    cells[column] = _coalesce_columns(cells.get(column), inner)
        return cells


def _coalesce_columns(first: ColumnValues | None, second: ColumnValues) -> ColumnValues:
    """Combine two columns of one flat name; the first with a value counts."""
    if first is None:
        return second
    return [b if _is_missing(a) else a for a, b in zip(first, second, strict=True)]


def _is_missing(value: object) -> bool:
    return value is None or (type(value) is str and not value.strip())


# Cells in which table exports write objects.

_MAX_DEPTH = 32
"""Maximum number of nested structs."""
_MAX_PYTHON_CHARACTERS = 1 << 16
"""Maximum length of a Python dictionary; longer ones are not decoded."""
_KEY = re.compile(r"\s*([A-Za-z_][\w .:/-]{0,127}?)\s*=")
_STRUCT_TOKEN = re.compile(
    r"@?\{|\}|\[|\]|, (?=[A-Za-z_][\w.:-]{0,127}=)|; ?(?=[A-Za-z_][\w .:-]{0,127}=)"
)
_CLASS_HEADER = re.compile(r"^class\s+\w+\s*\{")
_CLASS_LINE = re.compile(r"^\s*(\w+)\s*:\s?(.*?)\s*$")
_TYPE_NAME = re.compile(r"^(?:System|Microsoft)(?:\.\w+)+(?:\[\]|`\d+\[.*\])?$")
"""What PowerShell writes instead of an object: the name of its type, without any value."""
_NULL_TEXTS = {"", "null", "NULL", "None"}


def looks_like_object(text: str) -> bool:
    """Return whether a cell begins as an object does.

    >>> [looks_like_object(text) for text in ("{a=1}", "@{a=1}", " class X {", "ann", "")]
    [True, True, True, False, False]
    """
    start = text.lstrip()
    return start.startswith(("{", "@{", '"{')) or bool(_CLASS_HEADER.match(start))


def is_type_name(text: str) -> bool:
    """Return whether a cell only names the type of an object, whose values the export has lost.

    >>> is_type_name("System.Object[]"), is_type_name("Microsoft Teams")
    (True, False)
    """
    return bool(_TYPE_NAME.match(text.strip()))


def decode_cell(text: str) -> Mapping[str, Any] | None:
    """Decode a cell that holds an object.

    Values of structs are text, because structs have no quotes. Time is linear in the length.

    Args:
        text: The cell.

    Returns:
        The object; None if the cell is not an object, or is cut off.

    >>> decode_cell("{type=IAMUser, arn=arn:aws:iam::1:user/ann, invokedby=null}")
    {'type': 'IAMUser', 'arn': 'arn:aws:iam::1:user/ann', 'invokedby': None}
    >>> decode_cell("@{errorCode=0; additionalDetails=; device=@{os=Windows 10}}")
    {'errorCode': '0', 'additionalDetails': None, 'device': {'os': 'Windows 10'}}
    >>> decode_cell('{"errorCode": 0}'), decode_cell("{'errorCode': None}"), decode_cell("{a=1")
    ({'errorCode': 0}, {'errorCode': None}, None)
    """
    start = text.strip()
    if _CLASS_HEADER.match(start):
        return _decode_class(start)
    if start.startswith('"{'):
        # An object that was written as JSON twice.
        inner = _decode_json(start)
        return decode_cell(inner) if isinstance(inner, str) else None
    if not start.startswith(("{", "@{")) or not start.endswith("}"):
        return None
    for decode in (_decode_json, _StructParser.decode, _decode_python):
        value = decode(start)
        if isinstance(value, Mapping):
            return value
    return None


def _decode_json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _decode_python(text: str) -> object:
    """Decode a dictionary as Python prints it: `literal_eval` reads literals and runs nothing."""
    if not text.startswith("{'") or len(text) > _MAX_PYTHON_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _decode_class(text: str) -> Mapping[str, Any] | None:
    """Decode an object of the AzureAD module of PowerShell: one line for each value."""
    values: dict[str, Any] = {}
    for line in text[text.index("{") + 1 :].rsplit("}", 1)[0].splitlines():
        found = _CLASS_LINE.match(line)
        if found:
            values[found[1]] = _to_value(found[2])
    return values or None


def _to_value(text: str) -> str | None:
    stripped = text.strip()
    return None if stripped in _NULL_TEXTS or is_type_name(stripped) else stripped


class _StructParser:
    """Parses one struct.

    A value may contain any text except braces that are not balanced, and the separator in front of
    something that looks like the next key.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._iter_tokens()
        self._mark, self._start, self._end = next(self._tokens)

    @classmethod
    def decode(cls, text: str) -> Mapping[str, Any] | None:
        """Return the struct; None if the text is none."""
        try:
            parser = cls(text)
            value = parser._parse_struct(0)
        except (StopIteration, ValueError):
            return None
        return value if parser._end == len(text) else None

    def _iter_tokens(self) -> Iterator[tuple[str, int, int]]:
        for found in _STRUCT_TOKEN.finditer(self._text):
            yield found[0], found.start(), found.end()
        raise ValueError("the struct is cut off")

    def _advance(self) -> None:
        self._mark, self._start, self._end = next(self._tokens)

    def _parse_struct(self, depth: int) -> dict[str, Any]:
        """Parse from an opening brace, which is the current token, to its closing brace."""
        if depth > _MAX_DEPTH:
            raise ValueError("too many nested structs")
        separator = ";" if self._mark == "@{" else ","
        values: dict[str, Any] = {}
        if self._text[self._end : self._end + 1] == "}":
            self._advance()
            return values
        while True:
            key = _KEY.match(self._text, self._end)
            if key is None:
                raise ValueError("there is no key")
            values[key[1]] = self._parse_value(key.end(), separator, depth)
            if self._mark == "}":
                return values

    def _parse_value(self, start: int, separator: str, depth: int) -> object:
        """Parse a value, up to the separator or brace after it, which becomes the current token."""
        self._advance()
        is_first = self._mark in {"{", "@{"} and not self._text[start : self._start].strip()
        if is_first and self._is_struct():
            inner = self._parse_struct(depth + 1)
            self._advance()
            self._skip_to_end_of_value(separator)
            return inner
        self._skip_to_end_of_value(separator)
        text = self._text[start : self._start]
        found = _decode_json(text) if is_first else None
        return found if isinstance(found, Mapping) else _to_value(text)

    def _is_struct(self) -> bool:
        """Return whether the current brace opens a struct, not JSON or other text."""
        return self._text[self._end : self._end + 1] == "}" or bool(
            _KEY.match(self._text, self._end)
        )

    def _skip_to_end_of_value(self, separator: str) -> None:
        """Skip tokens inside a value, such as balanced braces."""
        level = 0
        while True:
            if self._mark in {"{", "@{", "["}:
                level += 1
            elif self._mark == "]":
                level = max(0, level - 1)
            elif self._mark == "}":
                if not level:
                    return
                level -= 1
            elif not level and self._mark.startswith(separator):
                return
            self._advance()
