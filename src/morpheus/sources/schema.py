"""A log described in a TOML file: where its columns, users and times are. See docs/schemas.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import polars as pl

from morpheus.columns import read_lines
from morpheus.errors import UsageError
from morpheus.features import derived, families
from morpheus.features.derived import NEW, Derived, each
from morpheus.features.families import Families
from morpheus.sources import places
from morpheus.sources.actors import Rule
from morpheus.sources.description import INSIDE, About, Actor, Column, Part, many, root_of
from morpheus.sources.flatten import flat
from morpheus.sources.log_format import LogFormat, plain
from morpheus.sources.toml_file import Key, TomlFile, meant
from morpheus.sources.unwrapping import Unwrapping

Meant = TypeVar("Meant")
SUFFIX = ".toml"
OPTION = "--columns_file"
_SHIPPED = Path(str(resources.files("morpheus") / "data" / "schemas"))
KINDS = ("category", "number")
ALWAYS = {
    "logcount": derived.log_count(),
    "hourofweek": derived.hour_of_week(),
    "hourkind": derived.hour_kind(),
}
"""Derived columns that every log has, since they need no more than its times."""
MADE: dict[str, Callable[..., Derived]] = {
    "distinct": lambda *of: derived.increment(*of, joined=len(of) > 1),
    "agent": partial(each, families.agent_name),
    "address kind": partial(each, families.address_kind),
    "network": partial(each, families.address_network),
    "verb": partial(each, families.VERBS),
    "sign-in error": partial(each, families.SIGN_IN_ERRORS),
    "duo error": partial(each, families.duo_error),
}
"""What is derived of other columns, by the word that asks for it."""
MANY = {"distinct": None, "duo error": 2}
"""Of how many columns, where it is not one; None for any number."""
PLACES: dict[str, Callable[[str], pl.Expr]] = {
    "city": places.city,
    "state": places.state,
    "country": places.country,
}
"""What can be taken of `City, State, Country`."""
_NAMED = re.compile(r"(?<=\{)[^{}/]+(?=[/}])")
"""A column, in the name of an actor."""


@dataclass(frozen=True)
class Schema:
    """What a file says of a log.

    Attributes:
        format: How its records are read.
        features: The columns that are learnt, in order.
        kinds: `category` or `number`, by column, where its values are not to tell.
    """

    format: LogFormat
    features: tuple[str, ...]
    kinds: Mapping[str, str]


def is_schema(name: str | None) -> bool:
    """Whether a columns file describes a whole log, and is no plain list."""
    return name is not None and name.lower().endswith(SUFFIX)


def names() -> tuple[str, ...]:
    """The files of the schemas that come with the package.

    >>> "okta.toml" in names()
    True
    """
    return tuple(sorted(one.name for one in _SHIPPED.iterdir() if is_schema(one.name)))


def shipped(name: str) -> Schema:
    """Read a schema that comes with the package, whatever lies in the working directory.

    >>> shipped("duo.toml").format.time
    'isotimestamp'
    """
    return _read((_SHIPPED / name).read_text(encoding="utf-8"), name)


def load(name: str) -> Schema:
    """Read a schema: a file, or else one of those shipped.

    Raises:
        UsageError: There is no such file, or something is wrong with it; says what, and where.
    """
    file = Path(name)
    if file.is_file():
        return _read(file.read_text(encoding="utf-8", errors="replace"), name)
    if name in names():
        return shipped(name)
    raise UsageError(
        f"{OPTION}: there is no file `{name}`. Give a schema of your own, or one of those shipped: "
        f"{', '.join(names())}."
    )


def unlisted(features: Sequence[str], user: str, time: str) -> LogFormat:
    """The format of a log of which no more than the features, the user and the time are known."""
    names = tuple(dict.fromkeys([time, user, *features]))
    return LogFormat(
        name="log",
        unwrap=Unwrapping(),
        paths=names,
        leading=(time,),
        context=(),
        time=time,
        id="",
        user=user,
        spellings={plain(name): name for name in names},
        rules=(_named_by(user),),
        derived=ALWAYS,
    )


def _named_by(user: str) -> Rule:
    return Rule("user", f"{{{user}/(.+)/}}")


@lru_cache(maxsize=32)
def _read(text: str, path: str) -> Schema:
    file = TomlFile(text, path, OPTION)
    about = file.convert(file.value, About)
    columns: dict[str, Column] = {}
    for name, value in about.columns.items():
        told = {"path": value} if isinstance(value, str | list) else value
        column = file.convert(told, Column, ("columns", name))
        if not column.path and not column.derived:
            column.path = name
        columns[flat(name, about.drop)] = column
    return _Draft(file, about, columns).schema()


@dataclass(frozen=True)
class _Draft:
    """A schema that is being made of its file."""

    file: TomlFile
    about: About
    columns: Mapping[str, Column]

    def schema(self) -> Schema:
        about, features = self.about, self._features()
        user, time, event_id = map(self._name, (about.user, about.time, about.id))
        log = LogFormat(
            name=about.name,
            unwrap=self._unwrapping(),
            paths=tuple(dict.fromkeys(self._paths(features))),
            leading=tuple(filter(None, (event_id, time))),
            context=self._names("context", about.context),
            time=time,
            time_format=about.time_format,
            id=event_id,
            id_pattern=".",
            user=user,
            accounts=self._names("account", many(about.account)),
            dropped=about.drop,
            spellings=dict(self._spellings(features)),
            instead={name: others for name in self.columns if (others := self._instead(name))},
            rules=tuple(self._rules()) or (_named_by(user),),
            derived=ALWAYS | dict(self._derived()),
        )
        kinds = {name: self._kind(name) for name, one in self.columns.items() if one.kind}
        return Schema(log, self._names("features", features), kinds)

    def _features(self) -> list[str]:
        named = self.about.features
        if isinstance(named, str):
            return list(read_lines(named, option=OPTION))
        if not named:
            raise self._wrong(("features",), "name the columns to learn")
        return named

    def _unwrapping(self) -> Unwrapping:
        lists, envelope = tuple(many(self.about.records)), self.about.envelope
        return Unwrapping(lists, envelope.record, envelope.names) if envelope else Unwrapping(lists)

    def _name(self, told: str) -> str:
        """The column that a name or a path means."""
        return flat(told, self.about.drop) if NEW not in told else NEW + self._name(_bare(told))

    def _names(self, key: str, told: Iterable[str]) -> tuple[str, ...]:
        for one in told:
            if INSIDE.match(one) and one not in self.columns:
                said = f"`{one}` is within a column, and needs a name of its own: [columns.NAME] "
                raise self._wrong((key,), f"{said}path = {one!r}")
        return tuple(dict.fromkeys(map(self._name, told)))

    def _paths(self, features: Iterable[str]) -> Iterator[str]:
        """All paths that the file speaks of; of names those that are no column's otherwise."""
        about, columns = self.about, self.columns.values()
        paths = [*about.fields, *(root_of(one) for column in columns for one in many(column.path))]
        yield from paths
        known = {*map(self._name, paths), *self.columns, *ALWAYS}
        told = [about.id, about.time, about.user, *many(about.account), *features, *about.context]
        told += [of for column in columns for of in many(column.of)]
        yield from (one for one in map(_bare, told) if one and self._name(one) not in known)

    def _spellings(self, features: Iterable[str]) -> Iterator[tuple[str, str]]:
        for path in self._paths(features):
            yield plain(self._name(path)), self._name(path)
        for name, column in self.columns.items():
            for header in many(column.header):
                yield plain(header), name

    def _instead(self, name: str) -> tuple[pl.Expr, ...]:
        """What tells a column, but for the path whose name it bears."""
        found = []
        for one in many(self.columns[name].path):
            root = self._name(root_of(one))
            if root != name:
                found.append(self._told(name, one, root))
            elif root_of(one) != one:
                said = f"it is made of a column `{root}`; call it otherwise than that"
                raise self._wrong(("columns", name), said)
        return tuple(found)

    def _told(self, name: str, one: str | Part, root: str) -> pl.Expr:
        if isinstance(one, Part):
            return self._of(PLACES, one.part, ("columns", name, "path"))(root)
        inside = INSIDE.match(one)
        return pl.col(root).str.json_path_match(f"${inside[2]}") if inside else pl.col(root)

    def _derived(self) -> Iterator[tuple[str, Derived]]:
        for name, column in self.columns.items():
            if column.derived:
                keys = ("columns", name)
                if column.path:
                    raise self._wrong(keys, "it is either derived or has a `path`")
                of = self._names("of", many(column.of))
                yield name, self._made(keys, column, of)

    def _made(self, keys: Sequence[Key], column: Column, of: tuple[str, ...]) -> Derived:
        number = MANY.get(column.derive, 1)
        if not of or (number is not None and len(of) != number):
            needed = {None: "one column or more", 1: "one column", 2: "two columns"}[number]
            raise self._wrong((*keys, "of"), f"{needed} to derive it of")
        if column.families:
            return each(self._families(keys, column), *of)
        return self._of(MADE, column.derive, (*keys, "derive"))(*of)

    def _families(self, keys: Sequence[Key], column: Column) -> Families:
        for pattern, _ in column.families:
            try:
                re.compile(pattern)
            except re.error as error:
                raise self._no_pattern((*keys, "families"), pattern, error) from error
        pairs = ((pattern, family or None) for pattern, family in column.families)
        return Families(tuple(pairs), column.otherwise or None)

    def _rules(self) -> Iterator[Rule]:
        for n, told in enumerate(self.about.actors):
            one = self.file.convert(told, Actor, ("actors", n))
            when, unless = (
                {self._name(name): pattern for name, pattern in patterns.items()}
                for patterns in (one.when, one.unless)
            )
            name = _NAMED.sub(lambda found: self._name(found[0]), one.name)
            rule = Rule(one.kind, name, when, unless, one.lower)
            try:
                pl.DataFrame({column: [""] for column in rule.columns}).select(rule.actor())
            except pl.exceptions.PolarsError as error:
                raise self._no_pattern(("actors", n), "a pattern", error) from error
            yield rule

    def _kind(self, name: str) -> str:
        kind = self.columns[name].kind
        return self._of({one: one for one in KINDS}, kind, ("columns", name, "kind"))

    def _of(self, known: Mapping[str, Meant], word: str, keys: Sequence[Key]) -> Meant:
        """What a word means."""
        if word not in known:
            name = ".".join(map(str, keys))
            raise self.file.wrong(keys, f"`{name}`: there is no {meant(word, known)}")
        return known[word]

    def _no_pattern(self, keys: Sequence[Key], pattern: str, error: Exception) -> UsageError:
        why = " ".join(str(error).split())
        return self._wrong(keys, f"{pattern} is no regular expression: {why}")

    def _wrong(self, keys: Sequence[Key], said: str) -> UsageError:
        return self.file.wrong(keys, f"`{'.'.join(map(str, keys))}`: {said}.")


def _bare(told: str) -> str:
    return told.removeprefix(NEW)
