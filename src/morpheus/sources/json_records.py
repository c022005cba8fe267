"""From the text of a JSON file to its records, still undecoded, each with its place.

A file is one document (an object that holds records, or a list of them), JSON lines, or several
documents in a row. What an object that holds records looks like is the log format's knowledge.
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
"""What is no record: its place, or None for the file, and why."""
UnwrapFunction = Callable[[dict[str, msgspec.Raw]], Sequence[RawJson] | None]
"""The records that an object holds; None if the object is itself a record."""

_LIST_DECODER = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
_MAX_PROBE_LINES = 20
"""Lines looked at to see whether a file is JSON lines."""


@dataclass(frozen=True)
class Records:
    """The records of one file.

    Attributes:
        raw_records: The JSON of each; not yet known to be whole where they are lines.
        line_numbers: Line (JSON lines) or number (documents) of each, from 1.
        errors: What could not be split into records.
    """

    raw_records: Sequence[RawJson]
    line_numbers: Sequence[int]
    errors: ParseErrors = ()


def split_records(data: bytes, unwrap: UnwrapFunction) -> Records:
    """Split the text of a file into its records.

    >>> def unwrap(fields):
    ...     if "all" in fields:
    ...         return msgspec.json.decode(fields["all"], type=list[msgspec.Raw])
    >>> [bytes(text) for text in split_records(b'{"all": [{"a": 1}, {"a": 2}]}', unwrap).texts]
    [b'{"a": 1}', b'{"a": 2}']
    >>> split_records(b'{"a": 1}' + bytes([10, 10]) + b'{"a": 2}', unwrap).places
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
    """Split the text of a file that comes block by block: JSON lines as they come, others whole."""
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
        yield Records(records.raw_records, [line - 1 + place for place in records.line_numbers])
        line += data.count(b"\n")


def _starts_with_lines(block: bytes) -> bool:
    """Whether a block is the beginning of JSON lines, the last of which may be cut."""
    if is_utf16(block):
        return False
    lines = to_utf8(block).split(b"\n")[:-1]
    return any(line.strip() for line in lines) and _are_json_lines(lines)


def _split_single_list(data: bytes, unwrap: UnwrapFunction) -> Sequence[RawJson] | None:
    """The records of an object that holds nothing but one list of them, as AWS writes its files.

    It is read once, where any other document is read once to see that it is whole, and once more at
    each level.
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
    """Whether one of the first lines is a whole object, which no line of a long document is."""
    written = (line.strip() for line in lines)
    first = list(islice(filter(None, written), _MAX_PROBE_LINES))
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
    """The records in a value, however deep; the value itself if it is one, or is broken."""
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
    """Split documents in a row, and what only the standard library can read."""
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
        return f"not readable as JSON ({error})"
    where = f"{error.msg} at line {error.lineno}, column {error.colno}"
    return f"not whole JSON ({where}); if it was cut off on its way, fetch it again"


def decode_leniently(text: RawJson) -> object:
    """Decode JSON with what the standard forbids: half surrogates, bytes that are no UTF-8, NaN.

    Raises:
        ValueError: It is not JSON even so.
        RecursionError: It is nested too deep.
    """
    return replace_surrogates(json.loads(bytes(text).decode("utf-8", "replace")))


def replace_surrogates(value: object) -> object:
    """Replace half surrogates, which no UTF-8 text can hold, by the replacement character."""
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
    """Encode as JSON text: compact, Unicode as it is, keys sorted, so that equal values are equal.

    >>> encode_json({"b": 1, "a": [True, "é"]}).decode()
    '{"a":[true,"é"],"b":1}'
    """
    return msgspec.json.encode(value, order="deterministic")


@dataclass(frozen=True)
class EnvelopeUnwrapper:
    """Where the records are in a JSON object that is not itself a record.

    Attributes:
        list_fields: Names under which an object has records: a list of them, or an object that holds such
            a list in turn.
        record_field: Name under which an envelope has its one record, as an object or as text; empty for
            no envelopes.
        envelope_fields: What stands in the envelope beside it and belongs to the record: its name there, and
            in the record. What the record says of itself counts for more.
    """

    list_fields: tuple[str, ...] = ()
    record_field: str = ""
    envelope_fields: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, fields: Mapping[str, msgspec.Raw]) -> Sequence[RawJson] | None:
        """The records in an object; None if it is one.

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
        around = b",".join(
            b"%s:%s" % (msgspec.json.encode(name), memoryview(fields[outer]))
            for outer, name in self.envelope_fields.items()
            if outer in fields
        )
        rest = text[1:].lstrip()
        # Of a name given twice JSON readers take the last: what a record says of itself.
        return b"{" + around + (b"," if around and rest[:1] != b"}" else b"") + rest


def _list_or_single(value: msgspec.Raw) -> Sequence[RawJson] | None:
    begin = bytes(memoryview(value)[:64]).lstrip()[:1]
    if begin == b"[":
        return msgspec.json.decode(value, type=list[msgspec.Raw])
    return [value] if begin == b"{" else None


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

    def _flatten_block(
        self, records: Sequence[RawJson]
    ) -> tuple[dict[str, pl.Series], dict[int, str]]:
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
            branch = isinstance(inner, dict) and bool(inner)
            if branch:
                yield from self._iter_leaves(inner, name)
            if name in self.wanted_columns or (self.all_columns and not branch):
                yield name, inner

    def _warn_same_name(self, name: str, value: Mapping[str, Any]) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        both = [
            path for path in _iter_paths(value) if flatten_name(path, self.drop_characters) == name
        ][:2]
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
