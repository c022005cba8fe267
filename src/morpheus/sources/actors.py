"""Who acted: rules that find the one whose habits an event belongs to, whatever the column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

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


def _apply_first_rule(frame: pl.DataFrame, rules: Sequence[ActorRule], candidates: Sequence[pl.Expr]) -> pl.Series:
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
