"""Describes log formats: `LogFormat`, and its parts for locations, actors and derived columns.

`ActorRule` names the actor of an event. `DerivedFeatures` computes columns that no log has, from
the events of each user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, lru_cache, partial

import msgspec
import polars as pl
from msgspec import structs

from morpheus.columns import (
    ACTOR,
    ACTOR_OPTION,
    EXCLUDED,
    SPLUNK_QUERY,
    TIME,
    EventFields,
    EvidenceQuery,
    FieldCondition,
    Identity,
    LogDescription,
)
from morpheus.errors import UsageError
from morpheus.features.derived import (
    NOVELTY_TTL,
    PREFIX_FUNCTIONS,
    USER,
    DerivedColumn,
)
from morpheus.sources.envelopes import Envelope, OtherKind, RecordFinder
from morpheus.sources.group_by_user import UUID_PATTERN, RecordOrder
from morpheus.sources.json_records import (
    ValueTransform,
    clear_missing_texts,
    flatten_name,
    list_normalized_names,
    normalize_name,
)


def prefix_number(cell: pl.Expr, prefix: str) -> pl.Expr:
    """Put a prefix in front of numbers, as the lessons' data does with accounts.

    >>> cells = pl.DataFrame({"account": ["0123", "anonymous"]})
    >>> cells.select(prefix_number(pl.col("account"), "Account-")).to_series().to_list()
    ['Account-0123', 'anonymous']
    """
    return pl.when(cell.str.contains("^[0-9]+$")).then(prefix + cell).otherwise(cell)


def extract_city(column: str) -> pl.Expr:
    """Return the city of `City, State, Country` or `City, Country`; else null."""
    return _extract_part(column, 0, min_parts=2)


def extract_state(column: str) -> pl.Expr:
    """Return the state of `City, State, Country`; null without a state.

    >>> places = pl.DataFrame({"at": ["Dublin, Leinster, IE", "Dublin, IE", "IE", None]})
    >>> places.select(extract_state("at"), extract_country("at").alias("extract_country")).rows()
    [('Leinster', 'IE'), (None, 'IE'), (None, 'IE'), (None, None)]
    """
    return _extract_part(column, 1, min_parts=3)


def extract_country(column: str) -> pl.Expr:
    """Return the country, which comes last."""
    return _extract_part(column, -1, min_parts=1)


def _extract_part(column: str, index: int, *, min_parts: int) -> pl.Expr:
    parts = pl.col(column).str.split(", ")
    return pl.when(parts.list.len() >= min_parts).then(parts.list.get(index, null_on_oob=True))


_PLACEHOLDER = re.compile(r"\{(\w+)(?:/(.+?)/)?\}")
"""`{column}`, or `{column/pattern/}` for the match of the pattern's group."""
_SPANS_LINES = "(?s)"
"""Makes a dot match line breaks, too: two names that differ after one are two actors."""
_NO_IDENTITY = ("service", "account", "unknown")
"""Types of actors that act for others, or that the record does not tell."""
_RESULT = "_result_"
_ADDRESS = r"^[^@\s:/]+@[^@\s:/]+\.[^@\s:/]+$"
"""An e-mail address or a user principal name."""


class ActorRule(msgspec.Struct, frozen=True, dict=True):
    r"""Rule that recognises and names one type of actor.

    Attributes:
        actor_type: Type of the actor: person, role, service, ...
        name_template: Template of the name, with columns in braces: `{userName}@{accountId}`. A
            pattern between slashes extracts a part of a value: `{arn/role\/(.+)/}`.
        match: Patterns that values must match, by column.
        exclude: Patterns that values must not match, by column.
        lowercase: Whether to write the name in lower case, for names that ignore case.
    """

    actor_type: str
    name_template: str
    match: Mapping[str, str] = msgspec.field(default_factory=dict)
    exclude: Mapping[str, str] = msgspec.field(default_factory=dict)
    lowercase: bool = False

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that the rule uses."""
        return tuple(dict.fromkeys([*self.match, *self.exclude, *self.name_columns]))

    @cached_property
    def name_columns(self) -> tuple[str, ...]:
        """Return the columns whose values are in the name."""
        return tuple(column for column, _ in _PLACEHOLDER.findall(self.name_template))

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Return the columns without whose values the rule does not apply."""
        return (*self.match, *self.name_columns)

    def to_expr(self) -> pl.Expr:
        """Return the name; null if the rule does not apply or a part of the name is missing."""
        match, exclude = (tuple(patterns.items()) for patterns in (self.match, self.exclude))
        return _build_name(self.name_template, match, exclude, lowercase=self.lowercase)


_Patterns = tuple[tuple[str, str], ...]


@lru_cache(maxsize=256)
def _build_name(template: str, match: _Patterns, exclude: _Patterns, *, lowercase: bool) -> pl.Expr:
    """Build the expression of a rule; the same rules are applied to every file."""
    conditions = [_match_expr(name, pattern) for name, pattern in match]
    conditions += [~_match_expr(name, pattern) for name, pattern in exclude]
    name = pl.concat_str(list(_parse_template(template)))
    name = name.str.to_lowercase() if lowercase else fold_addresses(name)
    return pl.when(pl.all_horizontal(pl.lit(value=True), *conditions)).then(name)


def fold_addresses(name: pl.Expr) -> pl.Expr:
    """Write e-mail addresses and user principal names in lower case: they ignore case.

    >>> names = pl.DataFrame({"name": ["Ann@Example.org", "Ann@012", "Ann"]})
    >>> names.select(fold_addresses(pl.col("name"))).to_series().to_list()
    ['ann@example.org', 'Ann@012', 'Ann']
    """
    return pl.when(name.str.contains(_ADDRESS)).then(name.str.to_lowercase()).otherwise(name)


class RowFilter(msgspec.Struct, frozen=True):
    """Chooses the records that become events, by their values.

    Attributes:
        match: Patterns that values must match, by column.
        exclude: Patterns that values must not match, by column.
    """

    match: Mapping[str, str] = msgspec.field(default_factory=dict)
    exclude: Mapping[str, str] = msgspec.field(default_factory=dict)

    def find_excluded(self, frame: pl.DataFrame) -> pl.Series:
        """Return which rows are excluded. A column that is absent has no value.

        >>> frame = pl.DataFrame({"action": ["login", "heartbeat", None]})
        >>> RowFilter(exclude={"action": "^heart"}).find_excluded(frame).to_list()
        [False, True, False]
        """
        names = [name for name in (*self.match, *self.exclude) if name not in frame.columns]
        complete = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in names)
        wanted = [_match_expr(name, pattern) for name, pattern in self.match.items()]
        wanted += [~_match_expr(name, pattern) for name, pattern in self.exclude.items()]
        return complete.select((~pl.all_horizontal(wanted)).alias(EXCLUDED)).to_series()


class JoinedColumn(msgspec.Struct, frozen=True):
    """A column made of the values of several columns.

    Attributes:
        inputs: The columns.
        separator: Text between the values.
    """

    inputs: tuple[str, ...]
    separator: str = " "

    def join(self, frame: pl.DataFrame) -> pl.Expr:
        """Return the joined values that there are; null for none.

        >>> frame = pl.DataFrame({"a": ["x", "y", None], "b": ["1", None, None]})
        >>> frame.select(JoinedColumn(("a", "b"), "/").join(frame)).to_series().to_list()
        ['x/1', 'y', None]
        """
        names = [name for name in self.inputs if name in frame.columns]
        if not names:
            return pl.lit(None, pl.String)
        joined = pl.concat_str(names, separator=self.separator, ignore_nulls=True)
        return pl.when(pl.any_horizontal(pl.col(names).is_not_null())).then(joined)


def collect_rule_columns(rules: Iterable[ActorRule]) -> tuple[str, ...]:
    """Return the columns that some rules use."""
    names: dict[str, None] = {}
    for rule in rules:
        names |= dict.fromkeys(rule.columns)
    return tuple(names)


def resolve_actors(frame: pl.DataFrame, rules: Sequence[ActorRule]) -> pl.Series:
    """Name the actor of each event by the first rule that applies.

    >>> root = ActorRule("root", "root@{account}", {"type": "^Root$"})
    >>> rules = [root, ActorRule("user", "{name}")]
    >>> frame = pl.DataFrame({"type": ["Root", None], "account": ["1", "1"], "name": ["x", "ann"]})
    >>> resolve_actors(frame, rules).to_list()
    ['root@1', 'ann']
    """
    return _apply_first_rule(frame, rules, ActorRule.to_expr)


def resolve_actor_types(frame: pl.DataFrame, rules: Sequence[ActorRule]) -> pl.Series:
    """Return the type of the actor of each event."""
    return _apply_first_rule(
        frame,
        rules,
        lambda rule: pl.when(rule.to_expr().is_not_null()).then(pl.lit(rule.actor_type)),
    )


def resolve_identities(frame: pl.DataFrame, rules: Sequence[ActorRule]) -> pl.Series:
    """Name the actor of each event that is a person, a user or a role; null for other actors.

    >>> rules = [ActorRule("service", "{by}"), ActorRule("user", "{name}")]
    >>> frame = pl.DataFrame({"by": ["s3", None], "name": ["ann", "ann"]})
    >>> resolve_identities(frame, rules).to_list()
    [None, 'ann']
    """

    def make_candidate(rule: ActorRule) -> pl.Expr:
        name = rule.to_expr()
        hidden = rule.actor_type in _NO_IDENTITY
        return pl.when(name.is_not_null()).then(pl.lit("")) if hidden else name

    return _apply_first_rule(frame, rules, make_candidate).replace("", None)


def _apply_first_rule(
    frame: pl.DataFrame, rules: Sequence[ActorRule], make_candidate: Callable[[ActorRule], pl.Expr]
) -> pl.Series:
    """Return the first result of some rules for each row; null where none applies.

    Args:
        frame: Events. A column that is absent has no value.
        rules: The rules, in order.
        make_candidate: Makes the expression of a rule's result, which is null where the rule does
            not apply.
    """
    names = collect_rule_columns(rules)
    absent = [name for name in names if name not in frame.columns]
    complete = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    complete = complete.select(names)
    # Patterns are expensive, and few combinations of values are distinct.
    distinct = complete.unique(maintain_order=True)
    empty = {column.name for column in distinct if column.null_count() == distinct.height}
    candidates = [make_candidate(rule) for rule in rules if empty.isdisjoint(rule.needed_columns)]
    found = pl.coalesce(candidates) if candidates else pl.lit(None, pl.String)
    return complete.join(
        distinct.with_columns(found.alias(_RESULT)),
        on=names,
        nulls_equal=True,
        how="left",
        maintain_order="left",
    )[_RESULT]


MAX_IDENTITY_VALUES, MAX_IDENTITY_CHARS = 50, 2048
"""Maximum number of values in a condition on a column, and the maximum length of a value."""
_WHOLE_PATTERN = re.compile(r"\^.*\$", re.DOTALL)


def find_identity(frame: pl.DataFrame, user: str, rules: Sequence[ActorRule]) -> Identity:
    r"""Find the field values that identify an actor in some of the actor's events.

    These are the values that the actor's name was made of, and the types that the rule requires.
    A part of a value that is not in the name, such as the name of a session, is left out.

    Args:
        frame: Events of one actor. A column that is absent has no value.
        user: Name of the actor.
        rules: The rules that named the actor.

    Returns:
        For each rule that names some of the events, its conditions. Empty if the columns do not
        tell the actor of all events.

    >>> rules = [ActorRule("role", r"{arn/:role\/([^\/]+)/}")]
    >>> events = pl.DataFrame({"arn": ["a:role/admin/session1", "a:role/admin/session2"]})
    >>> find_identity(events, "admin", rules)
    ((FieldCondition(column='arn', values=(), prefixes=('a:role/admin/',)),),)
    """
    names = collect_rule_columns(rules)
    texts = [
        pl.col(n).cast(pl.String) if n in frame.columns else pl.lit(None, pl.String).alias(n)
        for n in names
    ]
    left = frame.select(texts).unique(maintain_order=True)
    identity = []
    for rule in rules:
        applies = (rule.to_expr() == user).fill_null(value=False)
        chosen, left = left.filter(applies), left.filter(~applies)
        if chosen.height:
            identity.append(tuple(_find_conditions(chosen, rule)))
    return tuple(identity) if left.is_empty() else ()


def _find_conditions(rows: pl.DataFrame, rule: ActorRule) -> Iterable[FieldCondition]:
    """Yield the conditions on the columns of a rule that is known to name some rows."""
    parts: dict[str, list[str]] = {}
    for column, pattern in _PLACEHOLDER.findall(rule.name_template):
        parts.setdefault(column, []).append(pattern.replace(r"\/", "/"))
    for column, patterns in parts.items():
        yield _make_condition(rows[column], patterns)
    for column, pattern in rule.match.items():
        if column not in parts and _WHOLE_PATTERN.fullmatch(pattern):
            yield _make_condition(rows[column], [""])


def _make_condition(values: pl.Series, patterns: Sequence[str]) -> FieldCondition:
    """Require the values, or only their beginnings if the rest is not in the actor's name."""
    texts = values.unique(maintain_order=True)
    cut = [_cut_after_match(texts, pattern) for pattern in patterns]
    # Where a name has several parts of a value, the longest beginning contains all of them.
    longest = [max(found, key=len) for found in zip(*cut, strict=True)]
    pairs = list(zip(texts.to_list(), longest, strict=True))
    exact = tuple(text for text, start in pairs if text == start)
    prefixes = tuple(dict.fromkeys(start for text, start in pairs if text != start))
    if len(exact) + len(prefixes) > MAX_IDENTITY_VALUES:
        return FieldCondition(values.name)
    if max(map(len, (*exact, *prefixes))) > MAX_IDENTITY_CHARS:
        return FieldCondition(values.name)
    return FieldCondition(values.name, exact, prefixes)


def _cut_after_match(texts: pl.Series, pattern: str) -> list[str]:
    """Return texts up to the character after the match of a pattern, which ends its last word."""
    if not pattern or pattern.endswith("$"):
        return texts.to_list()
    matches = texts.str.extract(_SPANS_LINES + pattern, 0).to_list()
    return [
        text[: text.index(match) + len(match) + 1]
        for text, match in zip(texts.to_list(), matches, strict=True)
    ]


def _match_expr(name: str, pattern: str) -> pl.Expr:
    return pl.col(name).str.contains(pattern).fill_null(value=False)


def _parse_template(template: str) -> Iterable[pl.Expr]:
    start = 0
    for placeholder in _PLACEHOLDER.finditer(template):
        yield pl.lit(template[start : placeholder.start()])
        column, pattern = placeholder.groups()
        value = pl.col(column)
        yield value.str.extract(_SPANS_LINES + pattern.replace(r"\/", "/"), 1) if pattern else value
        start = placeholder.end()
    yield pl.lit(template[start:])


_POSITION = "_at_"
_FIRST_TIME = "_earlier_"
_STORED = "_stored_"
"""Prefix of derived columns in recent rows; alone, the column that marks these rows."""
_LATE_WINDOW = timedelta(days=2)
"""How late events may arrive. The rows of this time are kept for counts within a day."""
_MAX_RECENT_ROWS = 250_000
"""Maximum number of rows kept per user, in addition to the first."""


def split_prefix(name: str) -> tuple[str, str]:
    """Return the prefix of a derived column and the name without it; the prefix may be empty.

    >>> split_prefix("previous:new:userAgent"), split_prefix("userAgent")
    (('previous:', 'new:userAgent'), ('', 'userAgent'))
    """
    prefix = next(filter(name.startswith, PREFIX_FUNCTIONS), "")
    return prefix, name.removeprefix(prefix)


def resolve_derived(
    names: Iterable[str], available: Mapping[str, DerivedColumn]
) -> dict[str, DerivedColumn]:
    """Find the derived columns among some names, each one after its inputs.

    Args:
        names: Names of features.
        available: Derived columns of the log format, by name. Columns with a prefix, such as
            `new:`, need no entry.
    """
    found: dict[str, DerivedColumn] = {}
    for name in names:
        column = available.get(name)
        prefix, base = split_prefix(name)
        if column is None and prefix:
            column = PREFIX_FUNCTIONS[prefix](base)
        if column is not None:
            found |= {**resolve_derived(column.inputs, available), name: column}
    return found


def list_input_columns(derived: Mapping[str, DerivedColumn]) -> tuple[str, ...]:
    """List the columns of the log from which derived columns are computed."""
    inputs = dict.fromkeys(name for column in derived.values() for name in column.inputs)
    return tuple(name for name in inputs if name not in derived)


class RecentRows(msgspec.Struct):
    """Earlier events that derived columns depend on.

    Attributes:
        frame: `USER`, `TIME`, the input columns, and the derived columns that others are computed
            from, in time order per user; None for no events.
    """

    frame: pl.DataFrame | None = None


class DerivedFeatures(msgspec.Struct, frozen=True, dict=True):
    """Computes derived columns.

    Attributes:
        user: Name of the user column.
        derived_columns: The columns to compute, in this order.
        timezone: Time zone of their hours and days.
    """

    user: str
    derived_columns: Mapping[str, DerivedColumn]
    timezone: str = "UTC"

    def add(
        self,
        events: pl.DataFrame,
        history: pl.DataFrame | None = None,
        recent: RecentRows | None = None,
    ) -> pl.DataFrame:
        """Add the derived columns to events, before `TIME`.

        A day that begins in the history continues in the events. Only history before a user's
        first event counts, because files may be used for both training and scoring.

        Args:
            events: Events of some users, in time order per user.
            history: History of the same users; may overlap with the events. It is ignored for users
                with recent rows.
            recent: Events of earlier calls; updated. None if there are no other calls.

        Returns:
            The events, with the derived columns.
        """
        derived = {
            name: column
            for name, column in self.derived_columns.items()
            if self._can_derive(name, events)
        }
        if len(derived) < len(self.derived_columns):
            return structs.replace(self, derived_columns=derived).add(events, history, recent)
        if not derived:
            return events
        now = self._select_inputs(events)
        before = None if recent is None or recent.frame is None else _align(recent.frame, now)
        earlier = self._select_earlier_rows(events, history, before)
        rows = pl.concat([earlier, now], how="diagonal").with_row_index(_POSITION)
        rows = self._convert_time_zone(rows.sort(TIME, maintain_order=True), self.timezone)
        for name in derived:
            rows = rows.with_columns(self._compute(name, rows).alias(name))
        rows = self._convert_time_zone(rows, "UTC")
        if recent is not None:
            recent.frame = self._keep_recent(rows, now.columns, before)
        computed = rows.filter(pl.col(_POSITION) >= earlier.height).sort(_POSITION)
        names = [name for name in events.columns if name not in derived and name != TIME]
        return events.select(names).hstack(computed.select(*derived, TIME))

    @cached_property
    def _stored_columns(self) -> tuple[str, ...]:
        """Return the derived columns that are stored with recent rows.

        Others are computed from them, and they depend on rows that are no longer among the recent
        ones, so that they cannot be computed again.
        """
        inputs = {name for column in self.derived_columns.values() for name in column.inputs}
        columns = self.derived_columns.items()
        return tuple(name for name, column in columns if name in inputs and not column.per_value)

    def _compute(self, name: str, rows: pl.DataFrame) -> pl.Series:
        values = self.derived_columns[name].compute(rows)
        if name not in self._stored_columns or _STORED not in rows.columns:
            return values
        stored = pl.col(_STORED + name).cast(values.dtype)
        return rows.select(pl.when(_STORED).then(stored).otherwise(values)).to_series()

    def _convert_time_zone(self, rows: pl.DataFrame, timezone: str) -> pl.DataFrame:
        """Change the time zone in which times are shown; they stay the same moments."""
        if self.timezone == "UTC":
            return rows
        return rows.with_columns(pl.col(TIME).dt.convert_time_zone(timezone))

    def _can_derive(self, name: str, events: pl.DataFrame) -> bool:
        """Return whether a column can be computed. If not, a log column of that name is kept."""
        inputs = self.derived_columns[name].inputs
        existing = {*events.columns, *self.derived_columns}
        return name not in events.columns or not inputs or not existing.isdisjoint(inputs)

    def _select_inputs(self, frame: pl.DataFrame) -> pl.DataFrame:
        def column(name: str) -> pl.Expr:
            exists = name in frame.columns
            return pl.col(name) if exists else pl.lit(None, pl.String).alias(name)

        return frame.select(
            pl.col(self.user).alias(USER),
            TIME,
            *map(column, list_input_columns(self.derived_columns)),
            *(pl.lit(None, pl.String).alias(_STORED + name) for name in self._stored_columns),
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
        if self._stored_columns:
            known = known.with_columns(pl.lit(value=True).alias(_STORED))
        return pl.concat([new, known], how="diagonal")

    def _keep_recent(
        self, rows: pl.DataFrame, names: list[str], recent: pl.DataFrame | None
    ) -> pl.DataFrame:
        """Select the rows that later events depend on.

        These are each user's first event, the events of the last two days (for counts within a
        day), and the latest event with each value (for novelty).

        Args:
            rows: All events of some users, with their derived columns.
            names: The columns to keep.
            recent: Events of earlier calls, of these users and of others.
        """
        age = pl.col(TIME).max().over(USER) - pl.col(TIME)
        columns = self.derived_columns.values()
        inputs = dict.fromkeys(name for column in columns for name in column.inputs)
        values = [pl.col(TIME).max().over(USER, name) for name in inputs if name in rows.columns]
        latest = [(last == pl.col(TIME)) & (age <= NOVELTY_TTL) for last in values]
        first = pl.col(TIME) == pl.col(TIME).min().over(USER)
        kept = rows.filter(pl.any_horizontal(age <= _LATE_WINDOW, first, *latest))
        kept = kept.with_columns(
            pl.col(name).cast(pl.String).alias(_STORED + name) for name in self._stored_columns
        ).select(names)
        if kept.height > _MAX_RECENT_ROWS:
            later = pl.int_range(pl.len()).reverse().over(USER)
            earlier = pl.int_range(pl.len()).over(USER)
            kept = kept.filter((later < _MAX_RECENT_ROWS) | (earlier == 0))
        if recent is None:
            return kept
        others = recent.join(kept, on=USER, how="anti", nulls_equal=True, maintain_order="left")
        return pl.concat([others, kept])


def _align(frame: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """Give a frame the columns of another one. A saved state may have other columns."""
    if frame.columns == like.columns:
        return frame
    absent = [pl.lit(None, pl.String).alias(n) for n in like.columns if n not in frame.columns]
    return frame.with_columns(absent).select(like.columns)


DERIVED_LABELS = {
    "logcount": "Events so far that day",
    "locincrement": "Places so far that day",
    "appincrement": "Services so far that day",
    "hourofweek": "Hour of the week",
    "hourkind": "Kind of hour",
    "agentfamily": "Kind of program",
    "addresskind": "Kind of address",
    "addressnetwork": "Network",
    "network": "Network",
    "errorclass": "Kind of error",
    "verbclass": "Kind of action",
}
"""Labels of derived columns that many logs have."""


class LogFormat(msgspec.Struct, frozen=True, dict=True):
    """Everything that is specific to one kind of log.

    Flat columns are field paths without dots: `userIdentity.arn` is `userIdentityarn`.

    Attributes:
        name: Name of the log.
        paths: Dotted names of the fields of a record, in their usual order.
        leading_columns: Flat columns that come before the features.
        context_columns: Flat columns that come after the features, as context for an alert.
        time_column: Flat column of the time.
        id_column: Flat column of the event id; empty for none.
        user_column: Flat column of the user, by default.
        account_columns: Flat columns of the account in which the event id is unique.
        id_pattern: Regular expression of globally unique event ids.
        time_format: Format of the times, for `strftime`; empty for ISO 8601 and epoch numbers.
        json_converters: Conversions of JSON values before they become text, by flat column.
        number_prefixes: Text put in front of numbers in CSV, by flat column.
        embedded_json_columns: Columns of a table that contain a whole record as JSON.
        drop_characters: Characters removed from names.
        skip_dirs: Names of folders that contain other data.
        other_files: Files with other data: what they are, in the singular, and a pattern of their
            path.
        column_aliases: Flat columns, by the normalized column name of a table (see
            `normalize_name`).
        record_aliases: Those of `column_aliases` that begin with the name of an envelope. They are
            the record's own fields, so they take precedence over a field beside the record.
        fallbacks: Expressions that replace missing values, by flat column.
        actor_rules: Rules that name the actor of an event.
        derived_columns: Columns that can be computed, by name.
        envelopes: Envelopes of this log, which are tried before the common ones.
        excluded_kinds: What looks like a record of this log and is none, by top-level fields.
        boolean_columns: Flat columns that are booleans in JSON.
        joined_columns: Columns made of several others, by name.
        row_filter: Chooses the records that become events; None for all.
        event_class_filter: A flat column and its values in wanted records; other records are
            skipped. None for no filter.
        identity_columns: Flat columns that identify users, for pseudonyms; empty for those in the
            names of actors.
        missing_texts: Texts that mean no value, beside empty text.
        caseless_columns: Flat columns whose values ignore case; they are read in lower case.
        shared_id_column: Flat column of an id that records of one request share; empty for none.
        record_order: Which of several records of an event counts; None for the first.
        user_columns: Usual user columns, the best one first; empty for `user_column` alone.
        event_fields: Which columns hold what most logs have.
        labels: Labels of other columns, for people.
        evidence: Queries that fetch the events of an incident from other tools.
        cloud_provider: Cloud provider of the log: `aws`, `azure`, `gcp`; None for other logs.
        sign_ins: Whether all events are sign-ins.
        volatile_columns: Flat columns that have another value in each event or session, besides
            those of the id and the session in `event_fields`.
    """

    name: str
    paths: tuple[str, ...]
    leading_columns: tuple[str, ...]
    context_columns: tuple[str, ...]
    time_column: str
    id_column: str
    user_column: str
    account_columns: tuple[str, ...] = ()
    id_pattern: str = UUID_PATTERN
    time_format: str = ""
    json_converters: Mapping[str, ValueTransform] = msgspec.field(default_factory=dict)
    number_prefixes: Mapping[str, str] = msgspec.field(default_factory=dict)
    embedded_json_columns: tuple[str, ...] = ()
    drop_characters: str = "."
    skip_dirs: tuple[str, ...] = ()
    other_files: tuple[tuple[str, str], ...] = ()
    column_aliases: Mapping[str, str] = msgspec.field(default_factory=dict)
    record_aliases: frozenset[str] = frozenset()
    fallbacks: Mapping[str, tuple[pl.Expr, ...]] = msgspec.field(default_factory=dict)
    actor_rules: tuple[ActorRule, ...] = ()
    derived_columns: Mapping[str, DerivedColumn] = msgspec.field(default_factory=dict)
    envelopes: tuple[Envelope, ...] = ()
    excluded_kinds: tuple[OtherKind, ...] = ()
    event_class_filter: tuple[str, tuple[str, ...]] | None = None
    boolean_columns: tuple[str, ...] = ()
    joined_columns: Mapping[str, JoinedColumn] = msgspec.field(default_factory=dict)
    row_filter: RowFilter | None = None
    identity_columns: tuple[str, ...] = ()
    missing_texts: tuple[str, ...] = ()
    caseless_columns: tuple[str, ...] = ()
    shared_id_column: str = ""
    record_order: RecordOrder | None = None
    user_columns: tuple[str, ...] = ()
    event_fields: EventFields = msgspec.field(default_factory=EventFields)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    evidence: tuple[EvidenceQuery, ...] = (SPLUNK_QUERY,)
    cloud_provider: str | None = None
    sign_ins: bool = False
    volatile_columns: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that records can have."""
        return tuple(
            dict.fromkeys(
                [
                    *(flatten_name(path, self.drop_characters) for path in self.paths),
                    *self.fallbacks,
                    *self.joined_columns,
                ]
            )
        )

    def describe(self) -> LogDescription:
        """Return what outputs need to know about the log."""
        paths = {flatten_name(path, self.drop_characters): path for path in self.paths}
        known, derived = self.event_fields, self.derived_columns
        if self.id_column and not known.event_id:
            known = replace(known, event_id=(self.id_column,))
        volatile = {*known.event_id, *known.session, *self.volatile_columns, *self.time_columns}
        volatile |= {self.id_column, self.shared_id_column}
        volatile |= {name for name, column in derived.items() if not column.per_value}
        return LogDescription(
            name=self.name,
            time_column=self.time_column,
            user_columns=self.user_columns or (self.user_column,),
            event_fields=known,
            labels={name: label for name, label in DERIVED_LABELS.items() if name in derived}
            | dict(self.labels),
            evidence=self.evidence,
            cloud_provider=self.cloud_provider,
            sign_ins=self.sign_ins,
            paths={name: path for name, path in paths.items() if name != path},
            sources={n: found for n in self.columns if (found := self._find_sources(n)) != (n,)},
            id_pattern=self.id_pattern,
            ignored_prefixes=self.number_prefixes,
            caseless_columns=self.caseless_columns,
            actor_columns=collect_rule_columns(self.actor_rules),
            identify=partial(find_identity, rules=self.actor_rules),
            volatile_columns=frozenset(volatile - {""}),
        )

    def _find_sources(self, column: str) -> tuple[str, ...]:
        """Return the paths of the fields that a column's values come from, best first."""
        copied = [
            root
            for expr in self.fallbacks.get(column, ())
            for root in expr.meta.root_names()
            if expr.meta.eq(pl.col(root))  # other expressions make a value that no field has
        ]
        return tuple(
            dict.fromkeys(
                path
                for name in dict.fromkeys([column, *copied])
                for path in self.paths
                if flatten_name(path, self.drop_characters) == name
            )
        )

    @cached_property
    def time_columns(self) -> tuple[str, ...]:
        """Return the columns that may have the time of an event, in order of preference."""
        return tuple(dict.fromkeys([self.time_column, *self._fallback_roots(self.time_column)]))

    @cached_property
    def record_finder(self) -> RecordFinder:
        """Return what finds the records in JSON, and tells them from envelopes."""
        times = set(self.time_columns)
        paths = {flatten_name(path, self.drop_characters): path for path in self.paths}
        roots = {paths[name].split(".")[0] for name in times & paths.keys()}
        known = {*paths, *(path.split(".")[0] for path in self.paths)}
        similar = {name for name, column in self.column_aliases.items() if column in times}
        return RecordFinder(
            time_fields=frozenset(times | roots),
            known_fields=frozenset(known - times - roots),
            similar_time_names=frozenset(similar | set(map(normalize_name, times))),
            similar_names=frozenset({*map(normalize_name, known), *self.column_aliases}),
            envelopes=self.envelopes,
            excluded_kinds=self.excluded_kinds,
        )

    @cached_property
    def _flat_paths(self) -> frozenset[str]:
        """Return the flat names of the paths."""
        return frozenset(flatten_name(path, self.drop_characters) for path in self.paths)

    def columns_to_read(
        self, features: Iterable[str], user: str, *, with_identity: bool = False
    ) -> tuple[str, ...]:
        """Return the columns to read from JSON records, in order.

        Args:
            features: Names of the features.
            user: Name of the user column.
            with_identity: Whether to read the columns that identify an actor in other tools.
        """
        derived = resolve_derived(features, self.derived_columns)
        names = [name for name in features if name not in derived]
        names.append(self.user_column if user == ACTOR else user)
        inputs, context = list_input_columns(derived), [*self.context_columns]
        if with_identity and user == ACTOR:
            rules = collect_rule_columns(self.actor_rules)
            context += [name for name in rules if name in self.columns]
        return tuple(dict.fromkeys([*self.leading_columns, *names, *inputs, *context]))

    def check_actor_column(self, features: Iterable[str], user: str) -> None:
        """Reject a log with a column that has the name of the column with the actors.

        Args:
            features: Names of the features.
            user: Name of the user column.

        Raises:
            UsageError: Actors would replace the values of the column.
        """
        if user == ACTOR != self.user_column and ACTOR in self.columns_to_read(features, user):
            raise UsageError(
                f"--columns_file: the log has a column `{ACTOR}`, which is the name of the column "
                f"that `{ACTOR_OPTION}` adds. Give it another name in the schema: "
                f'`login = "{ACTOR}"` under `[columns]`.'
            )

    def columns_to_decode(self, wanted_columns: Iterable[str], user: str) -> tuple[str, ...]:
        """Return the columns to decode, to get the wanted columns and the user."""
        names = dict.fromkeys(
            [*wanted_columns, *(collect_rule_columns(self.actor_rules) if user == ACTOR else ())]
        )
        if self.row_filter is not None:
            names |= dict.fromkeys([*self.row_filter.match, *self.row_filter.exclude])
        names |= dict.fromkeys(name for kind in self.excluded_kinds for name in kind.values)
        names |= dict.fromkeys(
            name
            for joined in names
            if joined in self.joined_columns
            for name in self.joined_columns[joined].inputs
        )
        names = {name: None for name in names if name not in self.joined_columns}
        roots = (root for name in names for root in self._fallback_roots(name))
        # Columns that only fallbacks provide are not fields of a record; decoding them is slow.
        own = [name for name in names if name in self._flat_paths or name not in self.fallbacks]
        return tuple(dict.fromkeys([*own, *(name for name in roots if name in self._flat_paths)]))

    def _fallback_roots(self, name: str) -> Iterable[str]:
        return (root for expr in self.fallbacks.get(name, ()) for root in expr.meta.root_names())

    def _coalesce_fallbacks(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, set[str]]:
        """Fill missing values from fallback columns, and return these."""
        used: set[str] = set()
        for name, fallbacks in self.fallbacks.items():
            for fallback in fallbacks:
                roots = set(fallback.meta.root_names())
                if not roots <= set(frame.columns):
                    continue
                used |= roots
                is_empty = any(frame[root].null_count() == frame.height for root in roots)
                if name not in frame.columns:
                    frame = frame.with_columns(fallback.alias(name))
                elif not is_empty:
                    frame = frame.with_columns(pl.coalesce(name, fallback))
        return frame, used

    def fill_fallbacks(
        self, frame: pl.DataFrame, user: str, *, keep: Iterable[str]
    ) -> pl.DataFrame:
        """Fill missing values from fallback columns, drop these, and add the actor.

        Texts that mean no value are cleared first, and values that ignore case get lower case.

        Args:
            frame: Events.
            user: Name of the user column.
            keep: Fallback columns to keep.
        """
        if self.missing_texts:
            frame = clear_missing_texts(frame, self.missing_texts)
        frame, used = self._coalesce_fallbacks(frame)
        for name, joined in self.joined_columns.items():
            frame = frame.with_columns(joined.join(frame).alias(name))
        caseless = [name for name in self.caseless_columns if name in frame.columns]
        if caseless:
            frame = frame.with_columns(pl.col(caseless).str.to_lowercase())
        if user == ACTOR:
            frame = frame.with_columns(resolve_actors(frame, self.actor_rules).alias(ACTOR))
            used.discard(ACTOR)
        if self.row_filter is not None:
            frame = frame.with_columns(self.row_filter.find_excluded(frame))
        used -= set(keep)
        # Dropping nothing would still rechunk every column.
        return frame.drop(used, strict=False) if used else frame

    def normalize_user(self, user: str, name: str) -> str:
        """Return a user's name as it is read.

        Args:
            user: Name of the user column.
            name: The user, as a person writes it.
        """
        if user in self.caseless_columns:
            return name.lower()
        names = pl.DataFrame({user: [name]})
        return names.select(fold_addresses(pl.col(user))).item() if user == ACTOR else name

    @cached_property
    def other_names(self) -> Mapping[str, str]:
        """Return the flat columns by their normalized names: their own first, then others."""
        names: dict[str, str] = {}
        for column in self.columns:
            names.setdefault(normalize_name(column), column)
        for name, column in self.column_aliases.items():
            names.setdefault(name, column)
        return names

    @cached_property
    def objects(self) -> frozenset[str]:
        """Return the normalized paths of objects that contain columns."""
        parts = (path.split(".") for path in self.paths)
        return frozenset(
            normalize_name("".join(path[:n])) for path in parts for n in range(1, len(path))
        )

    def prefer_record(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Fill columns of a table from the record's own fields, which have another name."""
        own = {
            self.other_names[name]: pl.col(column)
            for column in frame.columns
            for name in list_normalized_names(column)
            if name in self.record_aliases
        }
        names = [name for name in frame.columns if name in own]
        return frame.with_columns(pl.coalesce(own[name], name).alias(name) for name in names)

    def rename_columns(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rename the columns of a table to their flat names.

        If several columns are the same one, the first of `other_names` is renamed.
        """
        ranks = {name: rank for rank, name in enumerate(self.other_names)}
        names: dict[str, str] = {}
        found = (
            (ranks[normalized], name, self.other_names[normalized])
            for name in frame.columns
            for normalized in list_normalized_names(name)
            if normalized in ranks
        )
        for _, name, flat_name in sorted(found):
            is_free = flat_name not in frame.columns and flat_name not in names.values()
            if is_free and name not in self.columns and name not in names:
                names[name] = flat_name
        return frame.rename(names)
