"""What tells one kind of log from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from morpheus.columns import ACTOR
from morpheus.features.derived import Derived
from morpheus.sources import deriving
from morpheus.sources.actors import Rule, actors, columns_of
from morpheus.sources.by_user import UUID
from morpheus.sources.documents import Unwrap
from morpheus.sources.flatten import Leaf, flat


@dataclass(frozen=True)
class LogFormat:
    """What tells one kind of log from another.

    Attributes:
        name: As people call it.
        unwrap: The records that a JSON object holds.
        paths: Dotted names of its records, in the order in which they are mostly written.
        leading: Flat columns that come first, before the features.
        context: Flat columns that come after them: what one wants to see beside an alert.
        time: Flat column of the time.
        id: Flat column of an event's id; empty for none.
        user: Flat column of the user, unless another is asked for.
        accounts: Flat columns of the account in which that id is one.
        id_pattern: What an id looks like that no two events have.
        time_format: How its times are written, as `strftime` has it; empty for ISO 8601 and numbers
            of seconds.
        leaves: By flat column, what becomes of a JSON value before it is text.
        cells: By flat column, what becomes of the text of a CSV cell.
        embedded: Columns of a table that hold a whole record as JSON.
        dropped: Characters left out of names.
        without: Folders that hold something else.
        spellings: By a table's name of a column, letters and digits in lower case, its flat name.
        instead: By flat column, what tells it in records that do not have it.
        rules: Who an event's actor is.
        derived: The columns that can be derived, by name.
        kinds: A flat column, and what it says of the records that are wanted; others are left out.
    """

    name: str
    unwrap: Unwrap
    paths: tuple[str, ...]
    leading: tuple[str, ...]
    context: tuple[str, ...]
    time: str
    id: str
    user: str
    accounts: tuple[str, ...] = ()
    id_pattern: str = UUID
    time_format: str = ""
    leaves: Mapping[str, Leaf] = field(default_factory=dict)
    cells: Mapping[str, Callable[[pl.Expr], pl.Expr]] = field(default_factory=dict)
    embedded: tuple[str, ...] = ()
    dropped: str = "."
    without: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, tuple[pl.Expr, ...]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    derived: Mapping[str, Derived] = field(default_factory=dict)
    kinds: tuple[str, tuple[str, ...]] | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that its records tell."""
        return tuple(
            dict.fromkeys([*(flat(path, self.dropped) for path in self.paths), *self.instead])
        )

    @cached_property
    def _flat(self) -> frozenset[str]:
        """The flat names of its paths."""
        return frozenset(flat(path, self.dropped) for path in self.paths)

    def wanted(self, features: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns that pass from JSON into the chain, in order."""
        derived = deriving.wanted(features, self.derived)
        names = [name for name in features if name not in derived]
        names.append(self.user if user == ACTOR else user)
        needs = deriving.logged(derived)
        return tuple(dict.fromkeys([*self.leading, *names, *needs, *self.context]))

    def decoded(self, wanted: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns to decode, for those wanted and the user to be had."""
        names = dict.fromkeys([*wanted, *(columns_of(self.rules) if user == ACTOR else ())])
        others = (root for name in names for root in self._roots(name))
        # What only others tell is no part of a record: looking for it would take a slower way.
        own = [name for name in names if name in self._flat or name not in self.instead]
        return tuple(dict.fromkeys([*own, *(name for name in others if name in self._flat)]))

    def _roots(self, name: str) -> Iterable[str]:
        return (root for told in self.instead.get(name, ()) for root in told.meta.root_names())

    def completed(self, frame: pl.DataFrame, user: str, *, keep: Iterable[str]) -> pl.DataFrame:
        """Fill columns in from others that tell the same, which then go, and name the actor."""
        gone: set[str] = set()
        for name, others in self.instead.items():
            for other in others:
                roots = set(other.meta.root_names())
                if not roots <= set(frame.columns):
                    continue
                gone |= roots
                empty = any(frame[root].null_count() == frame.height for root in roots)
                if name not in frame.columns:
                    frame = frame.with_columns(other.alias(name))
                elif not empty:
                    frame = frame.with_columns(pl.coalesce(name, other))
        if user == ACTOR:
            frame = frame.with_columns(actors(frame, self.rules).alias(ACTOR))
            gone.discard(ACTOR)
        gone -= set(keep)
        # Not where there is nothing to do: it would make each column one piece of memory.
        return frame.drop(gone, strict=False) if gone else frame

    def spelt(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give a table's columns their flat names."""
        names: dict[str, str] = {}
        for name in frame.columns:
            known = self.spellings.get(plain(name))
            if known and known not in {*frame.columns, *names.values()}:
                names[name] = known
        return frame.rename(names)


def plain(name: str) -> str:
    """Letters and digits of a name, in lower case.

    >>> plain("Sign-in error code")
    'signinerrorcode'
    """
    return "".join(filter(str.isalnum, name)).lower()
