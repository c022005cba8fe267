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

from morpheus.sources.documents import Undecoded, decode_leniently, encode

log = logging.getLogger(__name__)

_BLOCK = 1 << 9
"""Records decoded and made columns of in one go: few enough to stay in the processor's cache."""

Leaf = Callable[[Any], Any]
Cells = Sequence[Any]
Row = dict[str, Any]
_TEXT: dict[type, Callable[[Any], str | None]] = {
    str: lambda value: value,
    type(None): lambda _: None,
    bool: str,
    int: str,
    float: repr,
}
_BOOLEANS = {True: "True", False: "False", None: None}


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


def texts(values: Cells) -> Cells:
    """Write the JSON values of a column, mostly of one type, as the texts of its cells.

    Columns that look like text are left as they are, be it that some other value hides in them.
    """
    first = next((value for value in values if value is not None), None)
    if first is None or type(first) is str:
        return values
    if set(map(type, values)) <= {bool, type(None)}:
        return list(map(_BOOLEANS.__getitem__, values))
    return _written(values)


def series(values: Cells) -> pl.Series:
    """Make a column of text of JSON values."""
    try:
        return pl.Series(texts(values), dtype=pl.String)
    except (TypeError, OverflowError):
        return pl.Series(_written(values), dtype=pl.String)


@lru_cache(maxsize=2)
def _nothing(rows: int) -> pl.Series:
    """A column without a value; all but the last block of a table share one."""
    return pl.repeat(None, rows, dtype=pl.String, eager=True)


def _written(values: Cells) -> Cells:
    # Most cells of such columns are empty, and a call costs more than a comparison.
    return [None if value is None else text(value) for value in values]


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
        with _no_collection():
            for start in range(0, len(records), step or 1):
                block, bad = self._block(records[start : start + step])
                blocks.append(block)
                refused |= {start + at: reason for at, reason in bad.items()}
        if not blocks:
            return pl.DataFrame(schema=dict.fromkeys(self.wanted, pl.String)), {}
        # Not made one piece of memory here: whoever joins tables does it, once.
        columns = {name: pl.concat([b[name] for b in blocks]) for name in blocks[0]}
        return pl.DataFrame(columns), refused

    def _block(self, records: Sequence[Undecoded]) -> tuple[dict[str, pl.Series], dict[int, str]]:
        typed, walked, refused = self._decode(records)
        cells = self._shape.columns(typed) if self._shape else {}
        if walked:
            cells = _with_rows(cells, walked, len(records))
        for name in self.leaves.keys() & cells.keys():
            cells[name] = list(map(self.leaves[name], cells[name]))
        names = [*self.wanted, *sorted(cells.keys() - set(self.wanted))]
        nothing = _nothing(len(records))
        return {n: series(cells[n]) if n in cells else nothing for n in names}, refused

    def _decode(
        self, records: Sequence[Undecoded]
    ) -> tuple[list[Any], dict[int, Row], dict[int, str]]:
        shape = self._shape
        typed = shape.decode_all(records) if shape else None
        if typed is not None:
            return typed, {}, {}
        typed, walked, refused = [], {}, {}
        for at, record in enumerate(records):
            event = shape.decoded(record) if shape else None
            if shape:
                typed.append(event or shape.empty)
            if event is None:
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


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no cycles of garbage; none is made here, and looking takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _with_rows(
    cells: Mapping[str, Cells], rows: Mapping[int, Row], height: int
) -> dict[str, Cells]:
    """Columns, with some of their rows filled in."""
    columns = {name: list(values) for name, values in cells.items()}
    for at, row in rows.items():
        for name, value in row.items():
            columns.setdefault(name, [None] * height)[at] = value
    return dict(columns)


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

    def decode_all(self, records: Sequence[Undecoded]) -> list[Any] | None:
        """Decode records in one go; None if one of them must be looked at by itself."""
        try:
            events = list(map(self.decode, records))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        every = any(all(map(attrgetter(name), events)) for name in self.branches)
        return events if every or all(map(self.nested, events)) else None

    def decoded(self, record: Undecoded) -> Any | None:  # noqa: ANN401 - a type compiled at run time
        """Decode a record; None if it is not of this shape."""
        try:
            event = self.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return event if self.nested(event) else None

    def nested(self, event: object) -> bool:
        """Whether an event has any branch; a flat record has none, or null ones beside it."""
        for name in self.branches:  # noqa: SIM110 - any() of a generator takes thrice as long
            if getattr(event, name):
                return True
        return False

    def columns(self, events: Sequence[Any]) -> dict[str, Cells]:
        """The values of each column that has any, by flat name."""
        if not events:
            return {}
        every = zip(*map(astuple, events), strict=True)
        values = dict(zip(self.empty.__struct_fields__, every, strict=True))
        cells: dict[str, Cells] = {}
        nothing = (None,) * len(events)
        for name, column in self.leaves.items():
            if values[name] != nothing:
                cells[column] = _either(cells.get(column), values[name])
        for name, shape in self.branches.items():
            if values[name] != nothing:
                filled = [event or shape.empty for event in values[name]]
                for column, inner in shape.columns(filled).items():
                    cells[column] = _either(cells.get(column), inner)
        return cells


def _either(some: Cells | None, others: Cells) -> Cells:
    """One column of two, of a name that stands in two places in records."""
    if some is None:
        return others
    return [other if one is None else one for one, other in zip(some, others, strict=True)]
