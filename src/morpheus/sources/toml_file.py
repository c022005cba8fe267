"""A TOML file, and where in it each key is, so that a mistake can be pointed at."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from morpheus.errors import UsageError

TomlKey = str | int
"""A name in a table, or a place in an array of tables."""
ModelT = TypeVar("ModelT")
_TABLE_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"""^\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*="""
)
_KEY_PART = re.compile(r""""([^"]*)"|'([^']*)'|([\w-]+)""")
_UNKNOWN_FIELD = re.compile(r"contains unknown field `(.+?)`")
_MISSING_FIELD = re.compile(r"missing required field `(.+?)`")
_TYPE_MISMATCH = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_TYPE_WORDS = {
    "str": "text in quotes",
    "array": "a list",
    "object": "a table",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
}
"""What msgspec calls a value, and what people do."""
_ERROR_PATH = re.compile(r" - at `\$\.?(.*)`$")


@dataclass(frozen=True)
class TomlFile:
    """The text of a TOML file.

    Attributes:
        text: All of it.
        path: What messages call it.
        option: The option that it was given by.
    """

    text: str
    path: str
    option: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """All that it says.

        Raises:
            UsageError: It is not TOML.
        """
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column \d+\)", str(error))
            said = str(error).partition(" (at ")[0]
            line = int(found[1]) if found else None
            raise UsageError(f"{self._format_location(line)}: not TOML: {said}.") from error

    def error_at(self, keys: Sequence[TomlKey], problem: str) -> UsageError:
        """Say what is wrong with a key, and in which line it is."""
        return UsageError(f"{self._format_location(self.find_line(keys))}: {problem}")

    def convert(self, value: object, model: type[ModelT], keys: Sequence[TomlKey] = ()) -> ModelT:
        """Make a value of the file one of a type.

        Raises:
            UsageError: It is none; names the key, and what may have been meant.
        """
        try:
            return msgspec.convert(value, model)
        except msgspec.ValidationError as error:
            raise self._translate_error(str(error), model, keys) from error

    def find_line(self, keys: Sequence[TomlKey]) -> int | None:
        """The line of a key, or of the innermost table around it that has one."""
        best, length = None, 0
        for number, path in self._iter_key_lines():
            same = 0
            while same < min(len(path), len(keys)) and path[same] == keys[same]:
                same += 1
            if same > length and same == min(len(path), len(keys)):
                best, length = number, same
        return best

    def _iter_key_lines(self) -> Iterator[tuple[int, list[TomlKey]]]:
        """Each line that names a key, and which."""
        table: list[TomlKey] = []
        tables = Counter[str]()
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _TABLE_HEADER.match(line):
                table = list(_split_key(header[2]))
                if header[1] == "[[":
                    table.append(tables[header[2]])
                    tables[header[2]] += 1
                yield number, table
            elif assigned := _ASSIGNMENT.match(line):
                yield number, [*table, *_split_key(assigned[1])]

    def _translate_error(self, message: str, model: type, keys: Sequence[TomlKey]) -> UsageError:
        inner = [part for part in (_ERROR_PATH.search(message) or ["", ""])[1].split(".") if part]
        here = [*keys, *(part.partition("[")[0] for part in inner)]
        if unknown := _UNKNOWN_FIELD.search(message):
            known = getattr(model, "__struct_fields__", ())
            return self.error_at([*here, unknown[1]], f"there is no key {did_you_mean(unknown[1], known)}")
        if missing := _MISSING_FIELD.search(message):
            return self.error_at(here, f"`{missing[1]}` is missing.")
        return self.error_at(here, f"`{'.'.join(map(str, here))}` {_describe_mismatch(message)}.")

    def _format_location(self, line: int | None) -> str:
        place = self.path if line is None else f"{self.path}:{line}"
        return f"{self.option}: {place}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A name that is none, and what may have been meant by it.

    >>> did_you_mean("usr", ["time", "user"])
    '`usr`. Did you mean `user`?'
    """
    close = get_close_matches(name, known := list(known), n=1)
    return f"`{name}`. " + (f"Did you mean `{close[0]}`?" if close else f"Use {', '.join(known)}.")


def _describe_mismatch(message: str) -> str:
    """What msgspec says of a value, in the words of TOML."""
    found = _TYPE_MISMATCH.match(message)
    if found is None:
        return f"is wrong: {_ERROR_PATH.sub('', message)}"
    wanted = " or ".join(_TYPE_WORDS.get(one, one) for one in found[1].split(" | ") if one != "null")
    return f"is to be {wanted}, not {_TYPE_WORDS.get(found[2], found[2])}"


def _split_key(dotted: str) -> Iterator[str]:
    for part in _KEY_PART.finditer(dotted):
        yield next(filter(None, part.groups()), "")
