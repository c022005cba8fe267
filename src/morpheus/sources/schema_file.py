"""A TOML file, and where in it each key is, so that a mistake can be pointed at."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import polars as pl

from morpheus.columns import read_lines
from morpheus.errors import UsageError
from morpheus.features.derived import (
    ACTION_CLASSIFIER,
    NOVELTY_PREFIX,
    SIGN_IN_ERROR_CLASSIFIER,
    DerivedColumn,
    RegexClassifier,
    address_to_network,
    classify_address,
    classify_duo_error,
    classify_user_agent,
    distinct_count_today,
    hour_kind,
    hour_of_week,
    log_count,
    map_values,
)
from morpheus.sources.json_records import EnvelopeUnwrapper, flatten_name
from morpheus.sources.log_format import (
    ActorRule,
    LogFormat,
    extract_city,
    extract_country,
    extract_state,
    normalize_name,
)

TomlKey = str | int
"""A name in a table, or a place in an array of tables."""
ModelT = TypeVar("ModelT")
_TABLE_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"""^\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*="""
)
_KEY_PART = re.compile(r""""([^"]*)"|'([^']*)'|([\w-]+)""")
_UNKNOWN_FIELD = re.compile(r"contains unknown field `(.+?)`")
_MISSING_FIELD = re.compile(r"missing required field `(.+?)`")
_TYPE_MISMATCH = re.compile(r"Expected `(.+?)`, got `(.+?)`")
_TYPE_WORDS = {
    "str": "text in quotes",
    "array": "a list",
    "object": "a table",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
}
"""What msgspec calls a value, and what people do."""
_ERROR_PATH = re.compile(r" - at `\$\.?(.*)`$")


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
    def data(self) -> dict[str, Any]:
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
            raise UsageError(f"{self._format_location(line)}: not TOML: {said}.") from error

    def error_at(self, keys: Sequence[TomlKey], problem: str) -> UsageError:
        """Say what is wrong with a key, and in which line it is."""
        return UsageError(f"{self._format_location(self.find_line(keys))}: {problem}")

    def convert(self, value: object, model: type[ModelT], keys: Sequence[TomlKey] = ()) -> ModelT:
        """Make a value of the file one of a type.

        Raises:
            UsageError: It is none; names the key, and what may have been meant.
        """
        try:
            return msgspec.convert(value, model)
        except msgspec.ValidationError as error:
            raise self._translate_error(str(error), model, keys) from error

    def find_line(self, keys: Sequence[TomlKey]) -> int | None:
        """The line of a key, or of the innermost table around it that has one."""
        best, length = None, 0
        for number, path in self._iter_key_lines():
            same = 0
            while same < min(len(path), len(keys)) and path[same] == keys[same]:
                same += 1
            if same > length and same == min(len(path), len(keys)):
                best, length = number, same
        return best

    def _iter_key_lines(self) -> Iterator[tuple[int, list[TomlKey]]]:
        """Each line that names a key, and which."""
        table: list[TomlKey] = []
        tables = Counter[str]()
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _TABLE_HEADER.match(line):
                table = list(_split_key(header[2]))
                if header[1] == "[[":
                    table.append(tables[header[2]])
                    tables[header[2]] += 1
                yield number, table
            elif assigned := _ASSIGNMENT.match(line):
                yield number, [*table, *_split_key(assigned[1])]

    def _translate_error(self, message: str, model: type, keys: Sequence[TomlKey]) -> UsageError:
        inner = [part for part in (_ERROR_PATH.search(message) or ["", ""])[1].split(".") if part]
        here = [*keys, *(part.partition("[")[0] for part in inner)]
        if unknown := _UNKNOWN_FIELD.search(message):
            known = getattr(model, "__struct_fields__", ())
            return self.error_at(
                [*here, unknown[1]], f"there is no key {did_you_mean(unknown[1], known)}"
            )
        if missing := _MISSING_FIELD.search(message):
            return self.error_at(here, f"`{missing[1]}` is missing.")
        return self.error_at(here, f"`{'.'.join(map(str, here))}` {_describe_mismatch(message)}.")

    def _format_location(self, line: int | None) -> str:
        place = self.path if line is None else f"{self.path}:{line}"
        return f"{self.option}: {place}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A name that is none, and what may have been meant by it.

    >>> did_you_mean("usr", ["time", "user"])
    '`usr`. Did you mean `user`?'
    """
    close = get_close_matches(name, known := list(known), n=1)
    return f"`{name}`. " + (f"Did you mean `{close[0]}`?" if close else f"Use {', '.join(known)}.")


def _describe_mismatch(message: str) -> str:
    """What msgspec says of a value, in the words of TOML."""
    found = _TYPE_MISMATCH.match(message)
    if found is None:
        return f"is wrong: {_ERROR_PATH.sub('', message)}"
    wanted = " or ".join(
        _TYPE_WORDS.get(one, one) for one in found[1].split(" | ") if one != "null"
    )
    return f"is to be {wanted}, not {_TYPE_WORDS.get(found[2], found[2])}"


def _split_key(dotted: str) -> Iterator[str]:
    for part in _KEY_PART.finditer(dotted):
        yield next(filter(None, part.groups()), "")


JSON_PATH_PATTERN = re.compile(r"""^([^\[]+)(\[(?:\d+|'[^']*'|"[^"]*")\].*)$""")
"""`sourceIPs[0]`: a column of JSON, and the way to what is meant in it."""


class LocationPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a place that stands whole in one column."""

    path: str
    part: str


class ColumnSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A column that has more to it than a path."""

    path: str | list[str | LocationPart] = ""
    header: str | list[str] = ""
    kind: str = ""
    derive: str = ""
    of: str | list[str] = ""
    families: list[tuple[str, str]] = []
    otherwise: str = "other"

    @property
    def is_derived(self) -> bool:
        """Whether no log holds it."""
        return bool(self.derive or self.families or self.of)


class EnvelopeSpec(msgspec.Struct, forbid_unknown_fields=True):
    """What stands around each record."""

    record: str
    names: dict[str, str] = {}


class ActorSpec(msgspec.Struct, forbid_unknown_fields=True):
    """How one kind of actor is recognised, and called."""

    name: str
    kind: str = "person"
    when: dict[str, str] = {}
    unless: dict[str, str] = {}
    lower: bool = False


class SchemaSpec(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a schema's file says."""

    name: str = "log"
    time: str
    time_format: str = ""
    user: str
    id: str = ""
    account: str | list[str] = ""
    features: str | list[str]
    context: list[str] = []
    fields: list[str] = []
    drop: str = "."
    records: str | list[str] = ""
    envelope: EnvelopeSpec | None = None
    columns: dict[str, Any] = {}
    actors: list[Any] = []


def as_list(value: str | list[Any]) -> list[Any]:
    """One or many, as many."""
    return value if isinstance(value, list) else [value] if value else []


def get_root_column(source: str | LocationPart) -> str:
    """The path of the column that something is taken of."""
    path = source.path if isinstance(source, LocationPart) else source
    inside = JSON_PATH_PATTERN.match(path)
    return inside[1] if inside else path


ValueT = TypeVar("ValueT")
SCHEMA_SUFFIX = ".toml"
SCHEMA_OPTION = "--columns_file"
_BUILTIN_DIR = Path(str(resources.files("morpheus") / "data" / "schemas"))
COLUMN_TYPES = ("category", "number")
COMMON_DERIVED = {
    "logcount": log_count(),
    "hourofweek": hour_of_week(),
    "hourkind": hour_kind(),
}
"""Derived columns that every log has, since they need no more than its times."""
DERIVE_FUNCTIONS: dict[str, Callable[..., DerivedColumn]] = {
    "distinct": lambda *of: distinct_count_today(*of, joined=len(of) > 1),
    "agent": partial(map_values, classify_user_agent),
    "address kind": partial(map_values, classify_address),
    "network": partial(map_values, address_to_network),
    "verb": partial(map_values, ACTION_CLASSIFIER),
    "sign-in error": partial(map_values, SIGN_IN_ERROR_CLASSIFIER),
    "duo error": partial(map_values, classify_duo_error),
}
"""What is derived of other columns, by the word that asks for it."""
DERIVE_ARITY = {"distinct": None, "duo error": 2}
"""Of how many columns, where it is not one; None for any number."""
LOCATION_PARTS: dict[str, Callable[[str], pl.Expr]] = {
    "city": extract_city,
    "state": extract_state,
    "country": extract_country,
}
"""What can be taken of `City, State, Country`."""
_COLUMN_PLACEHOLDER = re.compile(r"(?<=\{)[^{}/]+(?=[/}])")
"""A column, in the name of an actor."""


@dataclass(frozen=True)
class Schema:
    """What a file says of a log.

    Attributes:
        log_format: How its records are read.
        features: The columns that are learnt, in order.
        column_types: `category` or `number`, by column, where its values are not to tell.
    """

    log_format: LogFormat
    features: tuple[str, ...]
    column_types: Mapping[str, str]


def is_schema_file(name: str | None) -> bool:
    """Whether a columns file describes a whole log, and is no plain list."""
    return name is not None and name.lower().endswith(SCHEMA_SUFFIX)


def list_builtin_schemas() -> tuple[str, ...]:
    """The files of the schemas that come with the package.

    >>> "okta.toml" in list_builtin_schemas()
    True
    """
    return tuple(sorted(one.name for one in _BUILTIN_DIR.iterdir() if is_schema_file(one.name)))


def load_builtin_schema(name: str) -> Schema:
    """Read a schema that comes with the package, whatever lies in the working directory.

    >>> load_builtin_schema("duo.toml").format.time
    'isotimestamp'
    """
    return _parse_schema((_BUILTIN_DIR / name).read_text(encoding="utf-8"), name)


def load_schema(name: str) -> Schema:
    """Read a schema: a file, or else one of those shipped.

    Raises:
        UsageError: There is no such file, or something is wrong with it; says what, and where.
    """
    file = Path(name)
    if file.is_file():
        return _parse_schema(file.read_text(encoding="utf-8", errors="replace"), name)
    if name in list_builtin_schemas():
        return load_builtin_schema(name)
    raise UsageError(
        f"{SCHEMA_OPTION}: there is no file `{name}`. Give a schema of your own, or one of those shipped: "
        f"{', '.join(list_builtin_schemas())}."
    )


def make_minimal_format(features: Sequence[str], user: str, time: str) -> LogFormat:
    """The format of a log of which no more than the features, the user and the time are known."""
    names = tuple(dict.fromkeys([time, user, *features]))
    return LogFormat(
        name="log",
        unwrap=EnvelopeUnwrapper(),
        paths=names,
        leading_columns=(time,),
        context_columns=(),
        time_column=time,
        id_column="",
        user_column=user,
        column_aliases={normalize_name(name): name for name in names},
        actor_rules=(_make_user_rule(user),),
        derived_columns=COMMON_DERIVED,
    )


def _make_user_rule(user: str) -> ActorRule:
    return ActorRule("user", f"{{{user}/(.+)/}}")


@lru_cache(maxsize=32)
def _parse_schema(text: str, path: str) -> Schema:
    file = TomlFile(text, path, SCHEMA_OPTION)
    about = file.convert(file.data, SchemaSpec)
    columns: dict[str, ColumnSpec] = {}
    for name, value in about.columns.items():
        told = {"path": value} if isinstance(value, str | list) else value
        column = file.convert(told, ColumnSpec, ("columns", name))
        if not column.path and not column.is_derived:
            column.path = name
        columns[flatten_name(name, about.drop)] = column
    return _SchemaBuilder(file, about, columns).build()


@dataclass(frozen=True)
class _SchemaBuilder:
    """A schema that is being made of its file."""

    file: TomlFile
    spec: SchemaSpec
    columns: Mapping[str, ColumnSpec]

    def build(self) -> Schema:
        about, features = self.spec, self._read_features()
        user, time, event_id = map(self._to_column, (about.user, about.time, about.id))
        log = LogFormat(
            name=about.name,
            unwrap=self._make_unwrapper(),
            paths=tuple(dict.fromkeys(self._iter_paths(features))),
            leading_columns=tuple(filter(None, (event_id, time))),
            context_columns=self._to_columns("context", about.context),
            time_column=time,
            time_format=about.time_format,
            id_column=event_id,
            id_pattern=".",
            user_column=user,
            account_columns=self._to_columns("account", as_list(about.account)),
            drop_characters=about.drop,
            column_aliases=dict(self._iter_aliases(features)),
            fallbacks={
                name: others for name in self.columns if (others := self._make_fallbacks(name))
            },
            actor_rules=tuple(self._iter_actor_rules()) or (_make_user_rule(user),),
            derived_columns=COMMON_DERIVED | dict(self._iter_derived()),
        )
        kinds = {
            name: self._get_column_type(name) for name, one in self.columns.items() if one.kind
        }
        return Schema(log, self._to_columns("features", features), kinds)

    def _read_features(self) -> list[str]:
        named = self.spec.features
        if isinstance(named, str):
            return list(read_lines(named, option=SCHEMA_OPTION))
        if not named:
            raise self._make_error(("features",), "name the columns to learn")
        return named

    def _make_unwrapper(self) -> EnvelopeUnwrapper:
        lists, envelope = tuple(as_list(self.spec.records)), self.spec.envelope
        return (
            EnvelopeUnwrapper(lists, envelope.record, envelope.names)
            if envelope
            else EnvelopeUnwrapper(lists)
        )

    def _to_column(self, path: str) -> str:
        """The column that a name or a path means."""
        return (
            flatten_name(path, self.spec.drop)
            if NOVELTY_PREFIX not in path
            else NOVELTY_PREFIX + self._to_column(_strip_novelty_prefix(path))
        )

    def _to_columns(self, key: str, paths: Iterable[str]) -> tuple[str, ...]:
        for one in paths:
            if JSON_PATH_PATTERN.match(one) and one not in self.columns:
                said = f"`{one}` is within a column, and needs a name of its own: [columns.NAME] "
                raise self._make_error((key,), f"{said}path = {one!r}")
        return tuple(dict.fromkeys(map(self._to_column, paths)))

    def _iter_paths(self, features: Iterable[str]) -> Iterator[str]:
        """All paths that the file speaks of; of names those that are no column's otherwise."""
        about, columns = self.spec, self.columns.values()
        paths = [
            *about.fields,
            *(get_root_column(one) for column in columns for one in as_list(column.path)),
        ]
        yield from paths
        known = {*map(self._to_column, paths), *self.columns, *COMMON_DERIVED}
        told = [
            about.id,
            about.time,
            about.user,
            *as_list(about.account),
            *features,
            *about.context,
        ]
        told += [of for column in columns for of in as_list(column.of)]
        yield from (
            one
            for one in map(_strip_novelty_prefix, told)
            if one and self._to_column(one) not in known
        )

    def _iter_aliases(self, features: Iterable[str]) -> Iterator[tuple[str, str]]:
        for path in self._iter_paths(features):
            yield normalize_name(self._to_column(path)), self._to_column(path)
        for name, column in self.columns.items():
            for header in as_list(column.header):
                yield normalize_name(header), name

    def _make_fallbacks(self, name: str) -> tuple[pl.Expr, ...]:
        """What tells a column, but for the path whose name it bears."""
        found = []
        for one in as_list(self.columns[name].path):
            root = self._to_column(get_root_column(one))
            if root != name:
                found.append(self._make_fallback(name, one, root))
            elif get_root_column(one) != one:
                said = f"it is made of a column `{root}`; call it otherwise than that"
                raise self._make_error(("columns", name), said)
        return tuple(found)

    def _make_fallback(self, name: str, path: str | LocationPart, root: str) -> pl.Expr:
        if isinstance(path, LocationPart):
            return self._look_up(LOCATION_PARTS, path.part, ("columns", name, "path"))(root)
        inside = JSON_PATH_PATTERN.match(path)
        return pl.col(root).str.json_path_match(f"${inside[2]}") if inside else pl.col(root)

    def _iter_derived(self) -> Iterator[tuple[str, DerivedColumn]]:
        for name, column in self.columns.items():
            if column.is_derived:
                keys = ("columns", name)
                if column.path:
                    raise self._make_error(keys, "it is either derived or has a `path`")
                of = self._to_columns("of", as_list(column.of))
                yield name, self._make_derived(keys, column, of)

    def _make_derived(
        self, keys: Sequence[TomlKey], column: ColumnSpec, inputs: tuple[str, ...]
    ) -> DerivedColumn:
        number = DERIVE_ARITY.get(column.derive, 1)
        if not inputs or (number is not None and len(inputs) != number):
            needed = {None: "one column or more", 1: "one column", 2: "two columns"}[number]
            raise self._make_error((*keys, "of"), f"{needed} to derive it of")
        if column.families:
            return map_values(self._make_classifier(keys, column), *inputs)
        return self._look_up(DERIVE_FUNCTIONS, column.derive, (*keys, "derive"))(*inputs)

    def _make_classifier(self, keys: Sequence[TomlKey], column: ColumnSpec) -> RegexClassifier:
        for pattern, _ in column.families:
            try:
                re.compile(pattern)
            except re.error as error:
                raise self._pattern_error((*keys, "families"), pattern, error) from error
        pairs = ((pattern, family or None) for pattern, family in column.families)
        return RegexClassifier(tuple(pairs), column.otherwise or None)

    def _iter_actor_rules(self) -> Iterator[ActorRule]:
        for n, told in enumerate(self.spec.actors):
            one = self.file.convert(told, ActorSpec, ("actors", n))
            when, unless = (
                {self._to_column(name): pattern for name, pattern in patterns.items()}
                for patterns in (one.when, one.unless)
            )
            name = _COLUMN_PLACEHOLDER.sub(lambda found: self._to_column(found[0]), one.name)
            rule = ActorRule(one.kind, name, when, unless, one.lower)
            try:
                pl.DataFrame({column: [""] for column in rule.columns}).select(rule.to_expr())
            except pl.exceptions.PolarsError as error:
                raise self._pattern_error(("actors", n), "a pattern", error) from error
            yield rule

    def _get_column_type(self, name: str) -> str:
        kind = self.columns[name].kind
        return self._look_up({one: one for one in COLUMN_TYPES}, kind, ("columns", name, "kind"))

    def _look_up(self, known: Mapping[str, ValueT], word: str, keys: Sequence[TomlKey]) -> ValueT:
        """What a word means."""
        if word not in known:
            name = ".".join(map(str, keys))
            raise self.file.error_at(keys, f"`{name}`: there is no {did_you_mean(word, known)}")
        return known[word]

    def _pattern_error(self, keys: Sequence[TomlKey], pattern: str, error: Exception) -> UsageError:
        why = " ".join(str(error).split())
        return self._make_error(keys, f"{pattern} is no regular expression: {why}")

    def _make_error(self, keys: Sequence[TomlKey], problem: str) -> UsageError:
        return self.file.error_at(keys, f"`{'.'.join(map(str, keys))}`: {problem}.")


def _strip_novelty_prefix(path: str) -> str:
    return path.removeprefix(NOVELTY_PREFIX)
