"""From the text of a JSON file to its records, still undecoded, each with its place.

A file is one document (an object that holds records, or a list of them), JSON lines, or several
documents in a row. What an object that holds records looks like is the log format's knowledge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import msgspec

from morpheus.sources.files import is_utf16, to_utf8

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
    return first[0] != b"[" and any(_is_nonempty_container(line) and _is_valid_json(line) for line in first)


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
    texts = [text for value in values for text in _expand(encode_json(replace_surrogates(value)), unwrap)]
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
        return {str(replace_surrogates(key)): replace_surrogates(item) for key, item in value.items()}
    return value


def encode_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Encode as JSON text: compact, Unicode as it is, keys sorted, so that equal values are equal.

    >>> encode_json({"b": 1, "a": [True, "é"]}).decode()
    '{"a":[true,"é"],"b":1}'
    """
    return msgspec.json.encode(value, order="deterministic")
