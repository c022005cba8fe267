"""Decodes the cells in which table exports write objects.

`decode_cell` reads JSON, the structs of Athena, Trino and CloudTrail Lake (`{a=1, b={c=2}}`), the
objects of PowerShell (`@{a=1; b=@{c=2}}`, `class X { A: 1 }`) and Python dictionaries.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

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
