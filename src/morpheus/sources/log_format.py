"""What tells one kind of log from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from morpheus.columns import ACTOR
from morpheus.features.derived import DerivedColumn
from morpheus.sources import deriving
from morpheus.sources.actors import ActorRule, resolve_actors, collect_rule_columns
from morpheus.sources.by_user import UUID_PATTERN
from morpheus.sources.documents import UnwrapFunction
from morpheus.sources.flatten import ValueTransform, flatten_name


@dataclass(frozen=True)
class LogFormat:
    """What tells one kind of log from another.

    Attributes:
        name: As people call it.
        unwrap: The records that a JSON object holds.
        paths: Dotted names of its records, in the order in which they are mostly written.
        leading_columns: Flat columns that come first, before the features.
        context_columns: Flat columns that come after them: what one wants to see beside an alert.
        time_column: Flat column of the time.
        id_column: Flat column of an event's id; empty for none.
        user_column: Flat column of the user, unless another is asked for.
        account_columns: Flat columns of the account in which that id is one.
        id_pattern: What an id looks like that no two events have.
        time_format: How its times are written, as `strftime` has it; empty for ISO 8601 and numbers
            of seconds.
        json_converters: By flat column, what becomes of a JSON value before it is text.
        csv_converters: By flat column, what becomes of the text of a CSV cell.
        embedded_json_columns: Columns of a table that hold a whole record as JSON.
        drop_characters: Characters left out of names.
        skip_dirs: Folders that hold something else.
        column_aliases: By a table's name of a column, letters and digits in lower case, its flat name.
        fallbacks: By flat column, what tells it in records that do not have it.
        actor_rules: Who an event's actor is.
        derived_columns: The columns that can be derived, by name.
        event_class_filter: A flat column, and what it says of the records that are wanted; others are left out.
    """

    name: str
    unwrap: UnwrapFunction
    paths: tuple[str, ...]
    leading_columns: tuple[str, ...]
    context_columns: tuple[str, ...]
    time_column: str
    id_column: str
    user_column: str
    account_columns: tuple[str, ...] = ()
    id_pattern: str = UUID_PATTERN
    time_format: str = ""
    json_converters: Mapping[str, ValueTransform] = field(default_factory=dict)
    csv_converters: Mapping[str, Callable[[pl.Expr], pl.Expr]] = field(default_factory=dict)
    embedded_json_columns: tuple[str, ...] = ()
    drop_characters: str = "."
    skip_dirs: tuple[str, ...] = ()
    column_aliases: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, tuple[pl.Expr, ...]] = field(default_factory=dict)
    actor_rules: tuple[ActorRule, ...] = ()
    derived_columns: Mapping[str, DerivedColumn] = field(default_factory=dict)
    event_class_filter: tuple[str, tuple[str, ...]] | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that its records tell."""
        return tuple(
            dict.fromkeys([*(flatten_name(path, self.drop_characters) for path in self.paths), *self.fallbacks])
        )

    @cached_property
    def _flat_paths(self) -> frozenset[str]:
        """The flat names of its paths."""
        return frozenset(flatten_name(path, self.drop_characters) for path in self.paths)

    def columns_to_read(self, features: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns that pass from JSON into the chain, in order."""
        derived = deriving.resolve_derived(features, self.derived_columns)
        names = [name for name in features if name not in derived]
        names.append(self.user_column if user == ACTOR else user)
        needs = deriving.list_input_columns(derived)
        return tuple(dict.fromkeys([*self.leading_columns, *names, *needs, *self.context_columns]))

    def columns_to_decode(self, wanted_columns: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns to decode, for those wanted and the user to be had."""
        names = dict.fromkeys([*wanted_columns, *(collect_rule_columns(self.actor_rules) if user == ACTOR else ())])
        others = (root for name in names for root in self._fallback_roots(name))
        # What only others tell is no part of a record: looking for it would take a slower way.
        own = [name for name in names if name in self._flat_paths or name not in self.fallbacks]
        return tuple(dict.fromkeys([*own, *(name for name in others if name in self._flat_paths)]))

    def _fallback_roots(self, name: str) -> Iterable[str]:
        return (root for told in self.fallbacks.get(name, ()) for root in told.meta.root_names())

    def fill_fallbacks(self, frame: pl.DataFrame, user: str, *, keep: Iterable[str]) -> pl.DataFrame:
        """Fill columns in from others that tell the same, which then go, and name the actor."""
        gone: set[str] = set()
        for name, others in self.fallbacks.items():
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
            frame = frame.with_columns(resolve_actors(frame, self.actor_rules).alias(ACTOR))
            gone.discard(ACTOR)
        gone -= set(keep)
        # Not where there is nothing to do: it would make each column one piece of memory.
        return frame.drop(gone, strict=False) if gone else frame

    def rename_columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give a table's columns their flat names."""
        names: dict[str, str] = {}
        for name in frame.columns:
            known = self.column_aliases.get(normalize_name(name))
            if known and known not in {*frame.columns, *names.values()}:
                names[name] = known
        return frame.rename(names)


def normalize_name(name: str) -> str:
    """Letters and digits of a name, in lower case.

    >>> normalize_name("Sign-in error code")
    'signinerrorcode'
    """
    return "".join(filter(str.isalnum, name)).lower()
