"""From a place in one cell, `City, State, Country`, to its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import polars as pl

from morpheus.columns import ACTOR, TIME
from morpheus.features.derived import NOVELTY_PREFIX, NOVELTY_TTL, USER, DerivedColumn, is_new_value
from morpheus.sources.group_by_user import UUID_PATTERN
from morpheus.sources.json_records import UnwrapFunction, ValueTransform, flatten_name


def extract_city(column: str) -> pl.Expr:
    """The city, where anything stands before the country."""
    return _extract_part(column, 0, min_parts=2)


def extract_state(column: str) -> pl.Expr:
    """The state, where one stands between city and country.

    >>> places = pl.DataFrame({"at": ["Dublin, Leinster, IE", "Dublin, IE", "IE", None]})
    >>> places.select(extract_state("at"), extract_country("at").alias("extract_country")).rows()
    [('Leinster', 'IE'), (None, 'IE'), (None, 'IE'), (None, None)]
    """
    return _extract_part(column, 1, min_parts=3)


def extract_country(column: str) -> pl.Expr:
    """The country."""
    return _extract_part(column, -1, min_parts=1)


def _extract_part(column: str, index: int, *, min_parts: int) -> pl.Expr:
    parts = pl.col(column).str.split(", ")
    return pl.when(parts.list.len() >= min_parts).then(parts.list.get(index, null_on_oob=True))


_PLACEHOLDER = re.compile(r"\{(\w+)(?:/(.+?)/)?\}")
"""`{column}`, or `{column/pattern/}` for what the pattern's group finds in it."""


@dataclass(frozen=True)
class ActorRule:
    r"""How one kind of actor is recognised, and called.

    Attributes:
        actor_type: What such an actor is: person, role, service, ...
        name_template: What it is called, of columns in braces: `{userName}@{accountId}`. A pattern between
            slashes takes a part of a value: `{arn/role\/(.+)/}`.
        match: By column, the pattern that its value must match.
        exclude: By column, the pattern that its value must not match.
        lowercase: Whether the name is written in lower case, since case tells nobody apart.
    """

    actor_type: str
    name_template: str
    match: Mapping[str, str] = field(default_factory=dict)
    exclude: Mapping[str, str] = field(default_factory=dict)
    lowercase: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it looks at."""
        named = [column for column, _ in _PLACEHOLDER.findall(self.name_template)]
        return tuple(dict.fromkeys([*self.match, *self.exclude, *named]))

    def to_expr(self) -> pl.Expr:
        """The actor's name; null where the rule does not hold, or a part of the name is missing."""
        holds = [_match_expr(name, pattern) for name, pattern in self.match.items()]
        holds += [~_match_expr(name, pattern) for name, pattern in self.exclude.items()]
        name = pl.concat_str(list(_parse_template(self.name_template)))
        name = name.str.to_lowercase() if self.lowercase else name
        return pl.when(pl.all_horizontal(pl.lit(value=True), *holds)).then(name)


def collect_rule_columns(rules: Iterable[ActorRule]) -> tuple[str, ...]:
    """The columns that rules look at."""
    return tuple(dict.fromkeys(name for rule in rules for name in rule.columns))


def resolve_actors(frame: pl.DataFrame, rules: Sequence[ActorRule]) -> pl.Series:
    """Name the actor of each event by the first rule that can.

    >>> rules = [ActorRule("root", "root@{account}", {"type": "^Root$"}), ActorRule("user", "{name}")]
    >>> frame = pl.DataFrame({"type": ["Root", None], "account": ["1", "1"], "name": ["x", "ann"]})
    >>> resolve_actors(frame, rules).to_list()
    ['root@1', 'ann']
    """
    return _apply_first_rule(frame, rules, [rule.to_expr() for rule in rules])


def resolve_actor_types(frame: pl.DataFrame, rules: Sequence[ActorRule]) -> pl.Series:
    """Name the kind of each event's actor."""
    held = [pl.when(rule.to_expr().is_not_null()).then(pl.lit(rule.actor_type)) for rule in rules]
    return _apply_first_rule(frame, rules, held)


def _apply_first_rule(
    frame: pl.DataFrame, rules: Sequence[ActorRule], candidates: Sequence[pl.Expr]
) -> pl.Series:
    absent = [name for name in collect_rule_columns(rules) if name not in frame.columns]
    whole = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    # Events repeat their actors, and patterns cost.
    names = collect_rule_columns(rules)
    distinct = whole.select(names).unique(maintain_order=True)
    told = distinct.with_columns(pl.coalesce(candidates).alias("_told_"))
    both = whole.select(names).join(
        told, on=names, nulls_equal=True, how="left", maintain_order="left"
    )
    return both["_told_"]


def _match_expr(name: str, pattern: str) -> pl.Expr:
    return pl.col(name).str.contains(pattern).fill_null(value=False)


def _parse_template(template: str) -> Iterable[pl.Expr]:
    at = 0
    for place in _PLACEHOLDER.finditer(template):
        yield pl.lit(template[at : place.start()])
        column, pattern = place.groups()
        value = pl.col(column)
        yield value.str.extract(pattern.replace(r"\/", "/"), 1) if pattern else value
        at = place.end()
    yield pl.lit(template[at:])


_POSITION = "_at_"
_FIRST_TIME = "_earlier_"
_LATE_WINDOW = timedelta(days=2)
"""Late events may still come for so long; what counts within a day is remembered meanwhile."""
_MAX_RECENT_ROWS = 250_000
"""Rows that are remembered of a user, beside the first."""


def resolve_derived(
    names: Iterable[str], available: Mapping[str, DerivedColumn]
) -> dict[str, DerivedColumn]:
    """The derived columns among some names, each behind those that it is made of."""
    found: dict[str, DerivedColumn] = {}
    for name in names:
        one = available.get(name)
        if one is None and name.startswith(NOVELTY_PREFIX):
            one = is_new_value(name.removeprefix(NOVELTY_PREFIX))
        if one is not None:
            found |= {**resolve_derived(one.inputs, available), name: one}
    return found


def list_input_columns(derived: Mapping[str, DerivedColumn]) -> tuple[str, ...]:
    """The columns of the log that derived columns are made of."""
    needs = dict.fromkeys(need for one in derived.values() for need in one.inputs)
    return tuple(need for need in needs if need not in derived)


@dataclass
class RecentRows:
    """Earlier events that derived columns look back on.

    Attributes:
        frame: `USER`, `TIME` and the columns needed, those of each user in time order; None before
            the first event.
    """

    frame: pl.DataFrame | None = None


@dataclass(frozen=True)
class DerivedFeatures:
    """Derives columns of the events of some users after the others.

    Attributes:
        user: Column of the user.
        derived_columns: What to derive, in this order.
    """

    user: str
    derived_columns: Mapping[str, DerivedColumn]

    def add(
        self,
        events: pl.DataFrame,
        history: pl.DataFrame | None = None,
        recent: RecentRows | None = None,
    ) -> pl.DataFrame:
        """Add the derived columns to events, in front of `TIME`.

        A day that begins in the history goes on in the events. Of the history only what lies
        before a user's first event counts: files may be learnt from and scored.

        Args:
            events: Of some users, those of each in time order.
            history: Of the same users; may overlap. Not looked at for a user with recent rows.
            recent: Events of earlier calls; updated. None where all events of the users are here.
        """
        derived = {
            name: one
            for name, one in self.derived_columns.items()
            if self._can_derive(name, events)
        }
        if not derived:
            return events
        now = self._select_inputs(events)
        before = None if recent is None or recent.frame is None else _align(recent.frame, now)
        earlier = self._select_earlier_rows(events, history, before)
        rows = pl.concat([earlier, now]).with_row_index(_POSITION).sort(TIME, maintain_order=True)
        for name, one in derived.items():
            rows = rows.with_columns(one.compute(rows).alias(name))
        if recent is not None:
            recent.frame = self._keep_recent(rows, now.columns, before)
        mine = rows.filter(pl.col(_POSITION) >= earlier.height).sort(_POSITION)
        names = [name for name in events.columns if name not in derived and name != TIME]
        return events.select(names).hstack(mine.select(*derived, TIME))

    def _can_derive(self, name: str, events: pl.DataFrame) -> bool:
        """Whether a column can be derived; else one of that name in the log stays as it is."""
        needs = self.derived_columns[name].inputs
        there = {*events.columns, *self.derived_columns}
        return name not in events.columns or not needs or not there.isdisjoint(needs)

    def _select_inputs(self, frame: pl.DataFrame) -> pl.DataFrame:
        def column(name: str) -> pl.Expr:
            there = name in frame.columns
            return pl.col(name) if there else pl.lit(None, pl.String).alias(name)

        return frame.select(
            pl.col(self.user).alias(USER),
            TIME,
            *map(column, list_input_columns(self.derived_columns)),
        )

    def _select_earlier_rows(
        self,
        events: pl.DataFrame,
        history: pl.DataFrame | None,
        recent: pl.DataFrame | None,
    ) -> pl.DataFrame:
        first = events.group_by(pl.col(self.user).alias(USER)).agg(
            pl.col(TIME).min().alias(_FIRST_TIME)
        )
        earlier = self._select_inputs(events.clear())
        if history is not None:
            past = self._select_inputs(history).join(
                first, on=USER, nulls_equal=True, maintain_order="left"
            )
            earlier = past.filter(pl.col(TIME) < pl.col(_FIRST_TIME)).drop(_FIRST_TIME)
        if recent is None:
            return earlier
        known = recent.join(first, on=USER, how="semi", nulls_equal=True, maintain_order="left")
        new = earlier.join(known, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        return pl.concat([new, known])

    def _keep_recent(
        self, rows: pl.DataFrame, names: list[str], recent: pl.DataFrame | None
    ) -> pl.DataFrame:
        """Keep what later events may be compared with.

        That is each user's first event, the events of the last two days (counts within a day), and
        the latest event with each value (new values).

        Args:
            rows: All events of some users, with their derived columns.
            names: The columns to keep.
            recent: Events of earlier calls, of these users and of others.
        """
        age = pl.col(TIME).max().over(USER) - pl.col(TIME)
        inputs = dict.fromkeys(name for one in self.derived_columns.values() for name in one.inputs)
        values = [pl.col(TIME).max().over(USER, name) for name in inputs if name in rows.columns]
        latest = [(last == pl.col(TIME)) & (age <= NOVELTY_TTL) for last in values]
        first = pl.col(TIME) == pl.col(TIME).min().over(USER)
        kept = rows.filter(pl.any_horizontal(age <= _LATE_WINDOW, first, *latest)).select(names)
        if kept.height > _MAX_RECENT_ROWS:
            later = pl.int_range(pl.len()).reverse().over(USER)
            earlier = pl.int_range(pl.len()).over(USER)
            kept = kept.filter((later < _MAX_RECENT_ROWS) | (earlier == 0))
        if recent is None:
            return kept
        others = recent.join(kept, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        return pl.concat([others, kept])


def _align(frame: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """Give a frame another one's columns; a saved state may have others."""
    if frame.columns == like.columns:
        return frame
    absent = [pl.lit(None, pl.String).alias(n) for n in like.columns if n not in frame.columns]
    return frame.with_columns(absent).select(like.columns)


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
            dict.fromkeys(
                [
                    *(flatten_name(path, self.drop_characters) for path in self.paths),
                    *self.fallbacks,
                ]
            )
        )

    @cached_property
    def _flat_paths(self) -> frozenset[str]:
        """The flat names of its paths."""
        return frozenset(flatten_name(path, self.drop_characters) for path in self.paths)

    def columns_to_read(self, features: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns that pass from JSON into the chain, in order."""
        derived = resolve_derived(features, self.derived_columns)
        names = [name for name in features if name not in derived]
        names.append(self.user_column if user == ACTOR else user)
        needs = list_input_columns(derived)
        return tuple(dict.fromkeys([*self.leading_columns, *names, *needs, *self.context_columns]))

    def columns_to_decode(self, wanted_columns: Iterable[str], user: str) -> tuple[str, ...]:
        """The columns to decode, for those wanted and the user to be had."""
        names = dict.fromkeys(
            [*wanted_columns, *(collect_rule_columns(self.actor_rules) if user == ACTOR else ())]
        )
        others = (root for name in names for root in self._fallback_roots(name))
        # What only others tell is no part of a record: looking for it would take a slower way.
        own = [name for name in names if name in self._flat_paths or name not in self.fallbacks]
        return tuple(dict.fromkeys([*own, *(name for name in others if name in self._flat_paths)]))

    def _fallback_roots(self, name: str) -> Iterable[str]:
        return (root for told in self.fallbacks.get(name, ()) for root in told.meta.root_names())

    def fill_fallbacks(
        self, frame: pl.DataFrame, user: str, *, keep: Iterable[str]
    ) -> pl.DataFrame:
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
