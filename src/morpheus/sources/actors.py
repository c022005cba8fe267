"""Who acted: rules that find the one whose habits an event belongs to, whatever the column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

_PLACE = re.compile(r"\{(\w+)(?:/(.+?)/)?\}")
"""`{column}`, or `{column/pattern/}` for what the pattern's group finds in it."""


@dataclass(frozen=True)
class Rule:
    r"""How one kind of actor is recognised, and called.

    Attributes:
        kind: What such an actor is: person, role, service, ...
        name: What it is called, of columns in braces: `{userName}@{accountId}`. A pattern between
            slashes takes a part of a value: `{arn/role\/(.+)/}`.
        when: By column, the pattern that its value must match.
        unless: By column, the pattern that its value must not match.
        lower: Whether the name is written in lower case, since case tells nobody apart.
    """

    kind: str
    name: str
    when: Mapping[str, str] = field(default_factory=dict)
    unless: Mapping[str, str] = field(default_factory=dict)
    lower: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it looks at."""
        named = [column for column, _ in _PLACE.findall(self.name)]
        return tuple(dict.fromkeys([*self.when, *self.unless, *named]))

    def actor(self) -> pl.Expr:
        """The actor's name; null where the rule does not hold, or a part of the name is missing."""
        holds = [_matches(name, pattern) for name, pattern in self.when.items()]
        holds += [~_matches(name, pattern) for name, pattern in self.unless.items()]
        name = pl.concat_str(list(_parts(self.name)))
        name = name.str.to_lowercase() if self.lower else name
        return pl.when(pl.all_horizontal(pl.lit(value=True), *holds)).then(name)


def columns_of(rules: Iterable[Rule]) -> tuple[str, ...]:
    """The columns that rules look at."""
    return tuple(dict.fromkeys(name for rule in rules for name in rule.columns))


def actors(frame: pl.DataFrame, rules: Sequence[Rule]) -> pl.Series:
    """Name the actor of each event by the first rule that can.

    >>> rules = [Rule("root", "root@{account}", {"type": "^Root$"}), Rule("user", "{name}")]
    >>> frame = pl.DataFrame({"type": ["Root", None], "account": ["1", "1"], "name": ["x", "ann"]})
    >>> actors(frame, rules).to_list()
    ['root@1', 'ann']
    """
    return _first(frame, rules, [rule.actor() for rule in rules])


def kinds(frame: pl.DataFrame, rules: Sequence[Rule]) -> pl.Series:
    """Name the kind of each event's actor."""
    held = [pl.when(rule.actor().is_not_null()).then(pl.lit(rule.kind)) for rule in rules]
    return _first(frame, rules, held)


def _first(frame: pl.DataFrame, rules: Sequence[Rule], found: Sequence[pl.Expr]) -> pl.Series:
    absent = [name for name in columns_of(rules) if name not in frame.columns]
    whole = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    # Events repeat their actors, and patterns cost.
    names = columns_of(rules)
    distinct = whole.select(names).unique(maintain_order=True)
    told = distinct.with_columns(pl.coalesce(found).alias("_told_"))
    both = whole.select(names).join(
        told, on=names, nulls_equal=True, how="left", maintain_order="left"
    )
    return both["_told_"]


def _matches(name: str, pattern: str) -> pl.Expr:
    return pl.col(name).str.contains(pattern).fill_null(value=False)


def _parts(name: str) -> Iterable[pl.Expr]:
    at = 0
    for place in _PLACE.finditer(name):
        yield pl.lit(name[at : place.start()])
        column, pattern = place.groups()
        value = pl.col(column)
        yield value.str.extract(pattern.replace(r"\/", "/"), 1) if pattern else value
        at = place.end()
    yield pl.lit(name[at:])
