"""Reads JSON files: splits them into records, unwraps envelopes, and flattens records into tables.

A file is one document (an object that contains records, or a list of records), JSON lines, or
several documents in a row. The log format knows what an object that contains records looks like.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl
from msgspec.structs import astuple

from morpheus.sources.compression import is_utf16, to_utf8

RawJson = bytes | msgspec.Raw
"""The JSON text of one value."""
ParseErrors = Sequence[tuple[int | None, str]]
"""What could not be read: its line or number, or None for the file, and the reason."""
UnwrapFunction = Callable[[dict[str, msgspec.Raw]], Sequence[RawJson] | None]
"""Returns the records that an object contains; None if the object itself is a record."""

_LIST_DECODER = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
_MAX_PROBE_LINES = 20
"""Maximum number of lines checked to detect JSON lines."""


@dataclass(frozen=True)
class Records:
    """The records of one file.

    Attributes:
        raw_records: The JSON of each record. Lines of JSON lines are not validated yet.
        line_numbers: Line (JSON lines) or number (documents) of each record, from 1.
        errors: Parts of the file that could not be split into records.
    """

    raw_records: Sequence[RawJson]
    line_numbers: Sequence[int]
    errors: ParseErrors = ()


def split_records(data: bytes, unwrap: UnwrapFunction) -> Records:
    """Split the contents of a file into its records.

    Args:
        data: Contents of the file, in UTF-8.
        unwrap: Finds the records in an object.

    >>> def unwrap(fields):
    ...     if "all" in fields:
    ...         return msgspec.json.decode(fields["all"], type=list[msgspec.Raw])
    >>> records = split_records(b'{"all": [{"a": 1}, {"a": 2}]}', unwrap)
    >>> [bytes(record) for record in records.raw_records]
    [b'{"a": 1}', b'{"a": 2}']
    >>> split_records(b'{"a": 1}' + bytes([10, 10]) + b'{"a": 2}', unwrap).line_numbers
    [1, 3]
    """
    if not data or data.isspace():
        return Records([], [])
    texts = _split_single_list(data, unwrap)
    if texts is None and _is_valid_json(data):
        texts = _expand(data, unwrap)
    if texts is not None:
        return Records(texts, range(1, len(texts) + 1))
    lines = data.split(b"\n")
    if _are_json_lines(lines):
        return _split_lines(lines, unwrap)
    return _split_concatenated(data, unwrap)


def split_record_blocks(blocks: Iterable[bytes], unwrap: UnwrapFunction) -> Iterator[Records]:
    """Split a file that is read in blocks.

    JSON lines are split block by block. Any other file is collected first.

    Args:
        blocks: Contents of the file.
        unwrap: Finds the records in an object.
    """
    rest, line = b"", 1
    blocks = iter(blocks)
    first = next(blocks, b"")
    if not _starts_with_lines(first):
        yield split_records(to_utf8(first + b"".join(blocks)), unwrap)
        return
    for block in chain([to_utf8(first)], blocks, [b"\n"]):
        data = rest + block
        end = data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        records = _split_lines(data.split(b"\n"), unwrap)
        yield Records(records.raw_records, [line - 1 + number for number in records.line_numbers])
        line += data.count(b"\n")


def _starts_with_lines(block: bytes) -> bool:
    """Return whether a block is the beginning of JSON lines. Its last line may be incomplete."""
    if is_utf16(block):
        return False
    lines = to_utf8(block).split(b"\n")[:-1]
    return any(line.strip() for line in lines) and _are_json_lines(lines)


def _split_single_list(data: bytes, unwrap: UnwrapFunction) -> Sequence[RawJson] | None:
    """Return the records of an object that only contains one list of records, as AWS writes it.

    Such a file is decoded once. Any other document is decoded once to validate it, and once more
    at each level.
    """
    try:
        [(name, items)] = _LIST_DECODER.decode(data).items()
        if unwrap({name: msgspec.Raw(b"[]")}) is None or not items:
            return None
        return items if _expand(items[0], unwrap) == [items[0]] else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def _is_valid_json(text: RawJson) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _are_json_lines(lines: list[bytes]) -> bool:
    """Return whether one of the first lines is a complete object."""
    stripped = (line.strip() for line in lines)
    first = list(islice(filter(None, stripped), _MAX_PROBE_LINES))
    return first[0] != b"[" and any(
        _is_nonempty_container(line) and _is_valid_json(line) for line in first
    )


def _is_nonempty_container(line: bytes) -> bool:
    return line[:1] in b"{[" and line not in {b"{}", b"[]"}


def _split_lines(lines: list[bytes], unwrap: UnwrapFunction) -> Records:
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line.isspace()]
    probe = next((line for _, line in numbered if _is_valid_json(line)), None)
    if probe is not None and _expand(probe, unwrap) != [probe]:
        numbered = [(n, text) for n, line in numbered for text in _expand(line, unwrap)]
    return Records([text for _, text in numbered], [n for n, _ in numbered])


def _expand(text: RawJson, unwrap: UnwrapFunction) -> list[RawJson]:
    """Return the records in a value, at any depth; the value itself if it is one or is invalid."""
    try:
        items = _list_records(text, unwrap)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [text]
    if items is None:
        return [text]
    if not items or _expand(items[0], unwrap) == [items[0]]:
        return list(items)
    return [record for item in items for record in _expand(item, unwrap)]


def _list_records(text: RawJson, unwrap: UnwrapFunction) -> Sequence[RawJson] | None:
    if bytes(memoryview(text)[:64]).lstrip()[:1] == b"[":
        return msgspec.json.decode(text, type=list[msgspec.Raw])
    return unwrap(msgspec.json.decode(text, type=dict[str, msgspec.Raw]))


def _split_concatenated(data: bytes, unwrap: UnwrapFunction) -> Records:
    """Split documents in a row, and JSON that only the standard library can read."""
    text = data.decode("utf-8", "replace")
    decode, at, values = json.JSONDecoder().raw_decode, _skip_whitespace(text, 0), []
    broken: list[tuple[int | None, str]] = []
    while at < len(text):
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            broken.append((None, _describe_error(error)))
            break
        values.append(value)
        at = _skip_whitespace(text, end)
    texts = [
        text for value in values for text in _expand(encode_json(replace_surrogates(value)), unwrap)
    ]
    return Records(texts, range(1, len(texts) + 1), broken)


def _skip_whitespace(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _describe_error(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error})"
    where = f"{error.msg} at line {error.lineno}, column {error.colno}"
    return f"not complete JSON ({where}); if the file is truncated, download it again"


def decode_leniently(text: RawJson) -> object:
    """Decode JSON that violates the standard: lone surrogates, invalid UTF-8, NaN.

    Raises:
        ValueError: The text is not JSON even so.
        RecursionError: The value is nested too deeply.
    """
    return replace_surrogates(json.loads(bytes(text).decode("utf-8", "replace")))


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


@dataclass(frozen=True)
class EnvelopeUnwrapper:
    """Finds the records in a JSON object that is not a record itself.

    Attributes:
        list_fields: Fields that contain a list of records, or an object with such a list.
        record_field: Field of an envelope that contains one record, as an object or as text; empty
            for no envelopes.
        envelope_fields: Fields of an envelope that belong to the record, with their name in the
            record. A field of the record itself takes precedence.
    """

    list_fields: tuple[str, ...] = ()
    record_field: str = ""
    envelope_fields: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, fields: Mapping[str, msgspec.Raw]) -> Sequence[RawJson] | None:
        """Return the records in an object; None if the object itself is a record.

        >>> unwrap = EnvelopeUnwrapper(("value",), "properties", {"time": "at"})
        >>> unwrap({"time": msgspec.Raw(b'"2024-05-31"'), "properties": msgspec.Raw(b'{"id": 1}')})
        [b'{"at":"2024-05-31","id": 1}']
        >>> [bytes(record) for record in unwrap({"value": msgspec.Raw(b'[{"id": 1}]')})]
        [b'{"id": 1}']
        """
        if self.record_field in fields:
            return [self._open_envelope(fields)]
        for name in self.list_fields:
            if name in fields:
                return _list_or_single(fields[name])
        return None

    def _open_envelope(self, fields: Mapping[str, msgspec.Raw]) -> RawJson:
        inner = fields[self.record_field]
        text = bytes(memoryview(inner)).lstrip()
        if text[:1] == b'"':
            text = msgspec.json.decode(inner, type=str).encode().lstrip()
        if text[:1] != b"{":
            return text
        added = b",".join(
            b"%s:%s" % (msgspec.json.encode(name), memoryview(fields[outer]))
            for outer, name in self.envelope_fields.items()
            if outer in fields
        )
        rest = text[1:].lstrip()
        # JSON decoders keep the last of two equal names: here the record's own.
        return b"{" + added + (b"," if added and rest[:1] != b"}" else b"") + rest


def _list_or_single(value: msgspec.Raw) -> Sequence[RawJson] | None:
    begin = bytes(memoryview(value)[:64]).lstrip()[:1]
    if begin == b"[":
        return msgspec.json.decode(value, type=list[msgspec.Raw])
    return [value] if begin == b"{" else None


logger = logging.getLogger(__name__)

_BLOCK_RECORDS = 1 << 9
"""Records decoded together: few enough to stay in the processor's cache."""

ValueTransform = Callable[[Any], Any]
"""Changes a JSON value before it becomes text."""
ColumnValues = Sequence[Any]
"""JSON values of one column, one per record."""
FlatRecord = dict[str, Any]
"""JSON values of one record, by flat name."""
_TEXT_WRITERS: dict[type, Callable[[Any], str | None]] = {
    str: lambda value: value,
    type(None): lambda _: None,
    bool: str,
    int: str,
    float: repr,
}
_BOOLEAN_TEXT = {True: "True", False: "False", None: None}


def to_text(value: object) -> str | None:
    """Convert a JSON value to the text of a cell.

    >>> [to_text(value) for value in ("007", True, 12, 1.50, None, [{"b": 1, "a": 2}])]
    ['007', 'True', '12', '1.5', None, '[{"a":2,"b":1}]']
    """
    write = _TEXT_WRITERS.get(type(value))
    return write(value) if write else encode_json(value).decode()


def flatten_name(name: str, drop_characters: str = ".") -> str:
    """Join the parts of a dotted name.

    >>> flatten_name("userIdentity.sessionContext.sessionIssuer.userName")
    'userIdentitysessionContextsessionIssueruserName'
    """
    for character in drop_characters:
        name = name.replace(character, "")
    return name


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
            One row per record, all columns text; and the rejected rows, with the reasons.
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
        # No rechunk here: the tables are rechunked once, when they are joined.
        columns = {name: pl.concat([b[name] for b in blocks]) for name in blocks[0]}
        return pl.DataFrame(columns), refused

    def _flatten_block(
        self, records: Sequence[RawJson]
    ) -> tuple[dict[str, pl.Series], dict[int, str]]:
        typed, untyped, refused = self._decode(records)
        cells = self._decoder.to_columns(typed) if self._decoder else {}
        if untyped:
            cells = _merge_rows(cells, untyped, len(records))
        for name in self.transforms.keys() & cells.keys():
            cells[name] = list(map(self.transforms[name], cells[name]))
        names = [*self.wanted_columns, *sorted(cells.keys() - set(self.wanted_columns))]
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
                except (ValueError, RecursionError) as error:
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
            is_branch = isinstance(inner, dict) and bool(inner)
            if is_branch:
                yield from self._iter_leaves(inner, name)
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


@dataclass(frozen=True)
class StructDecoder:
    """Decodes the wanted fields of records into a struct type that is compiled once.

    Attributes:
        decode: Decodes one record into the type.
        empty: A record without values.
        leaf_columns: Flat names, by struct field.
        nested_decoders: Decoders of nested objects, by struct field.
    """

    decode: Callable[[RawJson], Any]
    empty: Any
    leaf_columns: Mapping[str, str]
    nested_decoders: Mapping[str, StructDecoder]

    @classmethod
    def from_paths(cls, column_by_path: Mapping[tuple[str, ...], str]) -> StructDecoder:
        """Compile the type of records with these paths.

        Args:
            column_by_path: Flat name of each path.
        """
        keys = dict.fromkeys(path[0] for path in column_by_path)
        fields = {key: f"f{n}" for n, key in enumerate(keys)}
        leaves = {fields[path[0]]: name for path, name in column_by_path.items() if len(path) == 1}
        branches = {
            inner: cls.from_paths(
                {path[1:]: name for path, name in column_by_path.items() if path[0] == key}
            )
            for key, inner in fields.items()
            if inner not in leaves
        }
        types = [
            (name, type(branches[name].empty) | None if name in branches else Any, None)
            for name in fields.values()
        ]
        # Events have no reference cycles, so the garbage collector can ignore them.
        kind = msgspec.defstruct("Event", types, rename={v: k for k, v in fields.items()}, gc=False)
        return cls(msgspec.json.Decoder(kind).decode, kind(), leaves, branches)

    def decode_all(self, records: Sequence[RawJson]) -> list[Any] | None:
        """Decode records together; None if one of them needs `decode_or_none`."""
        try:
            events = list(map(self.decode, records))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        every = any(all(map(attrgetter(name), events)) for name in self.nested_decoders)
        return events if every or all(map(self.has_nested, events)) else None

    def decode_or_none(self, record: RawJson) -> Any | None:  # noqa: ANN401 - a type compiled at run time
        """Decode a record; None if it does not have this structure."""
        try:
            event = self.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return event if self.has_nested(event) else None

    def has_nested(self, event: object) -> bool:
        """Return whether an event has a nested object. A flat record has none."""
        for name in self.nested_decoders:  # noqa: SIM110 - any() of a generator takes thrice as long
            if getattr(event, name):
                return True
        return False

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
    return [b if a is None else a for a, b in zip(first, second, strict=True)]
