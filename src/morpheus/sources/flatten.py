"""From undecoded records to a table of text: nested names joined, one column a name.

A record climbs down a ladder until it can be read: a typed decode of the wanted columns only; a
decode of everything and a walk, for names whose path is not known, flat records, and values of an
unexpected type; the standard library, for text that is no proper JSON; refusal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl

from morpheus.sources.documents import Undecoded, decode_leniently, encode

log = logging.getLogger(__name__)

_BLOCK = 1 << 9
"""Records decoded and made columns of in one go: few enough to stay in the processor's cache."""

Leaf = Callable[[Any], Any]
Row = dict[str, Any]
_TEXT: dict[type, Callable[[Any], str | None]] = {
    str: lambda value: value,
    type(None): lambda _: None,
    bool: str,
    int: str,
    float: repr,
}


def text(value: object) -> str | None:
    """Write a JSON value as the text of a cell.

    >>> [text(value) for value in ("007", True, 12, 1.50, None, [{"b": 1, "a": 2}])]
    ['007', 'True', '12', '1.5', None, '[{"a":2,"b":1}]']
    """
    write = _TEXT.get(type(value))
    return write(value) if write else encode(value).decode()


def flat(name: str, dropped: str = ".") -> str:
    """Join a dotted name.

    >>> flat("userIdentity.sessionContext.sessionIssuer.userName")
    'userIdentitysessionContextsessionIssueruserName'
    """
    for character in dropped:
        name = name.replace(character, "")
    return name


def series(name: str, values: list[Any]) -> pl.Series:
    """Make a column of text of JSON values, of one type mostly."""
    first = next((value for value in values if value is not None), None)
    if type(first) is str or first is None:
        with suppress(TypeError):
            return pl.Series(name, values, dtype=pl.String)
    kinds = set(map(type, values))
    if kinds == {bool, type(None)} or kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean).cast(pl.String).str.to_titlecase()
    if str in kinds or type(None) in kinds:
        values = [cell if cell is None or type(cell) is str else text(cell) for cell in values]
        return pl.Series(name, values, dtype=pl.String)
    return pl.Series(name, list(map(text, values)), dtype=pl.String)


@dataclass
class Flattener:
    """Flattens the records of one kind of log.

    Args:
        wanted: Flat names of the columns to pass on, in order.
        paths: Dotted names that such records are known to have.
        leaves: By flat name, what becomes of a value before it is text.
        dropped: Characters left out of names; the dot joins.
        everything: Pass on all other columns too, behind the wanted ones.
    """

    wanted: tuple[str, ...]
    paths: tuple[str, ...]
    leaves: Mapping[str, Leaf] = field(default_factory=dict)
    dropped: str = "."
    everything: bool = False

    def __post_init__(self) -> None:
        self._shape = None if self.everything else self._compile()
        self._told: set[str] = set()

    def table(self, records: Sequence[Undecoded]) -> tuple[pl.DataFrame, dict[int, str]]:
        """Flatten records.

        Returns:
            One row a record, every column text; and, by row, why a record was refused.
        """
        step = len(records) if self.everything else _BLOCK
        blocks: list[dict[str, pl.Series]] = []
        refused: dict[int, str] = {}
        for start in range(0, len(records), step or 1):
            block, bad = self._block(records[start : start + step])
            blocks.append(block)
            refused |= {start + at: reason for at, reason in bad.items()}
        if not blocks:
            return pl.DataFrame(schema=dict.fromkeys(self.wanted, pl.String)), {}
        # Not made one piece of memory here: whoever joins tables does it, once.
        return pl.DataFrame([pl.concat([b[name] for b in blocks]) for name in blocks[0]]), refused

    def _block(self, records: Sequence[Undecoded]) -> tuple[dict[str, pl.Series], dict[int, str]]:
        typed, walked, refused = self._decode(records)
        cells = self._shape.columns(typed) if self._shape else {}
        for at, row in walked.items():
            for name, value in row.items():
                cells.setdefault(name, [None] * len(records))[at] = value
        names = [*self.wanted, *sorted(cells.keys() - set(self.wanted))]
        nothing = pl.repeat(None, len(records), dtype=pl.String, eager=True)
        return {
            n: self._series(n, cells[n]) if n in cells else nothing.alias(n) for n in names
        }, refused

    def _decode(
        self, records: Sequence[Undecoded]
    ) -> tuple[list[Any], dict[int, Row], dict[int, str]]:
        shape = self._shape
        typed: list[Any] = []
        walked: dict[int, Row] = {}
        refused: dict[int, str] = {}
        for at, record in enumerate(records):
            if shape:
                try:
                    event = shape.decode(record)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    pass
                else:
                    if shape.nested(event):
                        typed.append(event)
                        continue
                typed.append(shape.empty)
            try:
                walked[at] = self._walk(record)
            except (ValueError, RecursionError) as error:
                refused[at] = str(error)
        return typed, walked, refused

    def _compile(self) -> Shape | None:
        known = {tuple(path.split(".")): flat(path, self.dropped) for path in self.paths}
        wanted = {path: name for path, name in known.items() if name in set(self.wanted)}
        if not set(self.wanted) <= set(wanted.values()):
            return None
        inner = {path[:n] for path in wanted for n in range(1, len(path))}
        return None if inner & wanted.keys() else Shape.of(wanted)

    def _series(self, name: str, values: list[Any]) -> pl.Series:
        if name in self.leaves:
            values = list(map(self.leaves[name], values))
        return series(name, values)

    def _walk(self, record: Undecoded) -> Row:
        try:
            value = msgspec.json.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            value = decode_leniently(record)
        if not isinstance(value, dict):
            raise ValueError("a record must be a JSON object")  # noqa: TRY004 - one kind of refusal
        row: Row = {}
        for name, leaf in self._leaves(value, ""):
            if row.get(name) is None:
                row[name] = leaf
            elif leaf is not None:
                self._tell(name, value)
        return row

    def _leaves(self, value: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            name = before + flat(key, self.dropped)
            branch = isinstance(inner, dict) and bool(inner)
            if branch:
                yield from self._leaves(inner, name)
            if name in self.wanted or (self.everything and not branch):
                yield name, inner

    def _tell(self, name: str, value: Mapping[str, Any]) -> None:
        if name in self._told:
            return
        self._told.add(name)
        both = [path for path in _paths(value) if flat(path, self.dropped) == name][:2]
        log.warning(
            "%s are the same column `%s`, the dots left out; the first that has a value is kept.",
            " and ".join(f"`{path}`" for path in both),
            name,
        )


def _paths(value: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, inner in value.items():
        yield before + key
        if isinstance(inner, dict):
            yield from _paths(inner, f"{before}{key}.")


@dataclass(frozen=True)
class Shape:
    """The wanted part of a record as a type, compiled once, and its columns.

    Attributes:
        decode: Decodes one record into that type.
        empty: The record that has nothing.
        leaves: Flat name by field.
        branches: The shape below each field.
    """

    decode: Callable[[Undecoded], Any]
    empty: Any
    leaves: Mapping[str, str]
    branches: Mapping[str, Shape]

    @classmethod
    def of(cls, wanted: Mapping[tuple[str, ...], str]) -> Shape:
        """Compile the type of records with these paths, which are given their flat names."""
        keys = dict.fromkeys(path[0] for path in wanted)
        fields = {key: f"f{n}" for n, key in enumerate(keys)}
        leaves = {fields[path[0]]: name for path, name in wanted.items() if len(path) == 1}
        branches = {
            inner: cls.of({path[1:]: name for path, name in wanted.items() if path[0] == key})
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

    def nested(self, event: object) -> bool:
        """Whether an event has any branch; a flat record has none, or null ones beside it."""
        for name in self.branches:  # noqa: SIM110 - any() of a generator takes thrice as long
            if getattr(event, name):
                return True
        return False

    def columns(self, events: list[Any]) -> dict[str, list[Any]]:
        """The values of each column that has any, by flat name."""
        cells: dict[str, list[Any]] = {}
        nothing = [None] * len(events)
        for name, column in self.leaves.items():
            values = list(map(attrgetter(name), events))
            if values != nothing:
                cells[column] = _either(cells.get(column), values)
        for name, shape in self.branches.items():
            inner = list(map(attrgetter(name), events))
            missing = inner.count(None)
            if missing < len(inner):
                filled = [event or shape.empty for event in inner] if missing else inner
                for column, values in shape.columns(filled).items():
                    cells[column] = _either(cells.get(column), values)
        return cells


def _either(some: list[Any] | None, others: list[Any]) -> list[Any]:
    """One column of two, of a name that stands in two places in records."""
    if some is None:
        return others
    return [other if one is None else one for one, other in zip(some, others, strict=True)]
