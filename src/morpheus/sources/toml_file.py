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

Key = str | int
"""A name in a table, or a place in an array of tables."""
Kind = TypeVar("Kind")
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNED = re.compile(
    r"""^\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*="""
)
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([\w-]+)""")
_UNKNOWN = re.compile(r"contains unknown field `(.+?)`")
_MISSING = re.compile(r"missing required field `(.+?)`")
_TYPES = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_WORDS = {
    "str": "text in quotes",
    "array": "a list",
    "object": "a table",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
}
"""What msgspec calls a value, and what people do."""
_AT = re.compile(r" - at `\$\.?(.*)`$")


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
    def value(self) -> dict[str, Any]:
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
            raise UsageError(f"{self._at(line)}: not TOML: {said}.") from error

    def wrong(self, keys: Sequence[Key], said: str) -> UsageError:
        """Say what is wrong with a key, and in which line it is."""
        return UsageError(f"{self._at(self.line(keys))}: {said}")

    def convert(self, value: object, kind: type[Kind], keys: Sequence[Key] = ()) -> Kind:
        """Make a value of the file one of a type.

        Raises:
            UsageError: It is none; names the key, and what may have been meant.
        """
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self._translated(str(error), kind, keys) from error

    def line(self, keys: Sequence[Key]) -> int | None:
        """The line of a key, or of the innermost table around it that has one."""
        best, length = None, 0
        for number, path in self._paths():
            same = 0
            while same < min(len(path), len(keys)) and path[same] == keys[same]:
                same += 1
            if same > length and same == min(len(path), len(keys)):
                best, length = number, same
        return best

    def _paths(self) -> Iterator[tuple[int, list[Key]]]:
        """Each line that names a key, and which."""
        table: list[Key] = []
        tables = Counter[str]()
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = list(_parts(header[2]))
                if header[1] == "[[":
                    table.append(tables[header[2]])
                    tables[header[2]] += 1
                yield number, table
            elif assigned := _ASSIGNED.match(line):
                yield number, [*table, *_parts(assigned[1])]

    def _translated(self, said: str, kind: type, keys: Sequence[Key]) -> UsageError:
        inner = [part for part in (_AT.search(said) or ["", ""])[1].split(".") if part]
        here = [*keys, *(part.partition("[")[0] for part in inner)]
        if unknown := _UNKNOWN.search(said):
            known = getattr(kind, "__struct_fields__", ())
            return self.wrong([*here, unknown[1]], f"there is no key {meant(unknown[1], known)}")
        if missing := _MISSING.search(said):
            return self.wrong(here, f"`{missing[1]}` is missing.")
        return self.wrong(here, f"`{'.'.join(map(str, here))}` {_in_words(said)}.")

    def _at(self, line: int | None) -> str:
        place = self.path if line is None else f"{self.path}:{line}"
        return f"{self.option}: {place}"


def meant(name: str, known: Iterable[str]) -> str:
    """A name that is none, and what may have been meant by it.

    >>> meant("usr", ["time", "user"])
    '`usr`. Did you mean `user`?'
    """
    close = get_close_matches(name, known := list(known), n=1)
    return f"`{name}`. " + (f"Did you mean `{close[0]}`?" if close else f"Use {', '.join(known)}.")


def _in_words(said: str) -> str:
    """What msgspec says of a value, in the words of TOML."""
    found = _TYPES.match(said)
    if found is None:
        return f"is wrong: {_AT.sub('', said)}"
    wanted = " or ".join(_WORDS.get(one, one) for one in found[1].split(" | ") if one != "null")
    return f"is to be {wanted}, not {_WORDS.get(found[2], found[2])}"


def _parts(dotted: str) -> Iterator[str]:
    for part in _PART.finditer(dotted):
        yield next(filter(None, part.groups()), "")
