"""Reads schemas: TOML files that describe a log.

`load_schema` gives the `LogFormat` and the features of a log. `TomlFile` finds the line of a key,
for error messages. The structs `SchemaSpec`, `ColumnSpec`, ... define the keys of a schema; see
docs/schemas.md.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from functools import cached_property, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import polars as pl

from morpheus.columns import (
    MAX_QUERY_LENGTH,
    QUERY_LANGUAGES,
    QUERY_TIME_FORMATS,
    SPLUNK_QUERY,
    EventFields,
    EvidenceQuery,
)
from morpheus.core.stage import read_lines
from morpheus.errors import UsageError
from morpheus.features.derived import (
    ACTION_CLASSIFIER,
    PREVIOUS_PREFIX,
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
    map_families,
    map_values,
)
from morpheus.sources.compression import to_utf8
from morpheus.sources.envelopes import Envelope
from morpheus.sources.group_by_user import RecordOrder
from morpheus.sources.json_records import flatten_name, normalize_name
from morpheus.sources.log_format import (
    ActorRule,
    JoinedColumn,
    LogFormat,
    RowFilter,
    extract_city,
    extract_country,
    extract_state,
    split_prefix,
)
from morpheus.text import decode_text, suggest, suggest_path

TomlKey = str | int
"""A key of a table, or an index in an array of tables."""
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
"""Names of types in messages, by msgspec's name."""
_ERROR_PATH = re.compile(r" - at `\$\.?(.*)`$")


class TomlFile(msgspec.Struct, frozen=True, dict=True):
    """A TOML file with the lines of its keys.

    Attributes:
        text: Contents of the file.
        path: Its path, for messages.
        option: The option that gave it, for messages.
    """

    text: str
    path: str
    option: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """Return the parsed file.

        Raises:
            UsageError: The file is not valid TOML.
        """
        try:
            return tomllib.loads(self.text)
        except RecursionError as error:
            problem = "values are nested too deeply"
            raise UsageError(f"{self._format_location(None)}: {problem}.") from error
        except ValueError as error:  # also of a number with more digits than Python reads
            found = re.search(r"\(at line (\d+), column \d+\)", str(error))
            problem = str(error).partition(" (at ")[0].partition("; use sys.")[0]
            line = int(found[1]) if found else None
            raise UsageError(f"{self._format_location(line)}: not TOML: {problem}.") from error

    def error_at(self, keys: Sequence[TomlKey], problem: str) -> UsageError:
        """Make the error for a key, with its line."""
        return UsageError(f"{self._format_location(self.find_line(keys))}: {problem}")

    def convert(self, value: object, model: type[ModelT], keys: Sequence[TomlKey] = ()) -> ModelT:
        """Convert a value of the file to a type.

        Args:
            value: The value.
            model: The type.
            keys: Keys of the value.

        Raises:
            UsageError: The value has another type. The message has the key and its line.
        """
        try:
            return msgspec.convert(value, model)
        except msgspec.ValidationError as error:
            raise self._translate_error(str(error), model, keys) from error

    def find_line(self, keys: Sequence[TomlKey]) -> int | None:
        """Return the line of a key, or of the innermost enclosing table that has a line."""
        best, length = None, 0
        for number, path in self._iter_key_lines():
            same = 0
            while same < min(len(path), len(keys)) and path[same] == keys[same]:
                same += 1
            if same > length and same == min(len(path), len(keys)):
                best, length = number, same
        return best

    def _iter_key_lines(self) -> Iterator[tuple[int, list[TomlKey]]]:
        """Yield the number and the keys of each line that sets a key or begins a table."""
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
        path = [*keys, *(part.partition("[")[0] for part in inner)]
        if unknown := _UNKNOWN_FIELD.search(message):
            known = getattr(model, "__struct_fields__", ())
            return self.error_at(
                [*path, unknown[1]], f"there is no key {did_you_mean(unknown[1], known)}"
            )
        if missing := _MISSING_FIELD.search(message):
            return self.error_at(path, f"`{missing[1]}` is missing.")
        return self.error_at(path, f"`{'.'.join(map(str, path))}` {_describe_mismatch(message)}.")

    def _format_location(self, line: int | None) -> str:
        location = self.path if line is None else f"{self.path}:{line}"
        return f"{self.option}: {location}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Quote an unknown name, and suggest a known one.

    >>> did_you_mean("usr", ["time", "user"])
    '`usr`. Did you mean `user`?'
    """
    known = list(known)
    return f"`{name}`." + (suggest(name, known) or f" Use {', '.join(known)}.")


def _describe_mismatch(message: str) -> str:
    """Describe a wrong type in the terms of TOML."""
    found = _TYPE_MISMATCH.match(message)
    if found is None:
        return f"is wrong: {_ERROR_PATH.sub('', message)}"
    wanted = " or ".join(
        _TYPE_WORDS.get(name, name) for name in found[1].split(" | ") if name != "null"
    )
    return f"must be {wanted}, not {_TYPE_WORDS.get(found[2], found[2])}"


def _split_key(dotted: str) -> Iterator[str]:
    for part in _KEY_PART.finditer(dotted):
        yield next(filter(None, part.groups()), "")


JSON_PATH_PATTERN = re.compile(r"""^([^\[]+)(\[(?:\d+|(?:\w+=)?'[^']*'|"[^"]*")\].*)$""")
"""`sourceIPs[0]`: a column of JSON, and a path inside its values."""
_ITEM_PATTERN = re.compile(r"\[(\w+)=('[^']*')\]")
"""`[Name='UserAgent']`: the item of a list whose field has this value."""


class LocationPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a location that one column has as `City, State, Country`."""

    path: str
    part: str


class ColumnSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A column: its source, its type, or how it is derived."""

    path: str | list[str | LocationPart] = ""
    header: str | list[str] = ""
    kind: str = ""
    derive: str = ""
    of: str | list[str] = ""
    families: list[tuple[str, str]] = []
    otherwise: str = "other"
    join: list[str] = []
    separator: str = " "

    @property
    def is_derived(self) -> bool:
        """Return whether the column is computed from other columns."""
        return bool(self.derive or self.families or self.of)


class EnvelopeSpec(msgspec.Struct, forbid_unknown_fields=True):
    """An envelope around each record."""

    record: str
    names: dict[str, str] = {}


class EvidenceSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A query that fetches the events of an incident from another tool."""

    name: str
    template: str
    language: str = "sql"
    time_format: str = "iso"
    columns: dict[str, str | list[str]] = {}
    only_columns: bool = False
    max_length: int = MAX_QUERY_LENGTH


EventFieldsSpec = msgspec.defstruct(
    "EventFieldsSpec",
    [(each.name, str | list[str], "") for each in dataclass_fields(EventFields)],
    forbid_unknown_fields=True,
)
"""The columns of `EventFields`, as one name or several."""


class ActorSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A rule that recognises and names one type of actor."""

    name: str
    kind: str = "person"
    when: dict[str, str] = {}
    unless: dict[str, str] = {}
    lower: bool = False


class RowsSpec(msgspec.Struct, forbid_unknown_fields=True):
    """Which records become events."""

    when: dict[str, str] = {}
    unless: dict[str, str] = {}


class DuplicatesSpec(msgspec.Struct, forbid_unknown_fields=True):
    """Which of several records with the id of one event counts."""

    column: str
    order: list[str]


class SchemaSpec(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of a schema."""

    name: str = "log"
    time: str | list[str]
    time_format: str = ""
    user: str
    id: str = ""
    account: str | list[str] = ""
    features: str | list[str]
    context: list[str] = []
    identity: list[str] = []
    missing: list[str] = []
    ignore_case: list[str] = []
    booleans: list[str] = []
    duplicates: DuplicatesSpec | None = None
    fields: list[str] = []
    drop: str = "."
    records: str | list[str] = ""
    envelope: EnvelopeSpec | None = None
    columns: dict[str, Any] = {}
    rename: dict[str, str] = {}
    rows: dict[str, Any] | None = None
    actors: list[Any] = []
    event_fields: dict[str, Any] = {}
    labels: dict[str, str] = {}
    evidence: list[Any] = []
    cloud_provider: str = ""
    sign_ins: bool = False


def as_list(value: str | list[Any]) -> list[Any]:
    """Return a list of one or several values; an empty text gives an empty list."""
    return value if isinstance(value, list) else [value] if value else []


def get_root_column(source: str | LocationPart) -> str:
    """Return the column of a path, without the path inside its values."""
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
"""Derived columns of every log: they only need the time."""
DERIVE_FUNCTIONS: dict[str, Callable[..., DerivedColumn]] = {
    "distinct": lambda *of: distinct_count_today(*of, joined=len(of) > 1),
    "agent": partial(map_values, classify_user_agent),
    "address kind": partial(map_values, classify_address),
    "network": partial(map_values, address_to_network),
    "verb": partial(map_values, ACTION_CLASSIFIER),
    "sign-in error": partial(map_values, SIGN_IN_ERROR_CLASSIFIER),
    "duo error": partial(map_values, classify_duo_error),
}
"""Functions of derived columns, by their name in a schema."""
DERIVE_ARITY = {"distinct": None, "duo error": 2}
"""Number of inputs of functions that do not have one input; None for any number."""
LOCATION_PARTS: dict[str, Callable[[str], pl.Expr]] = {
    "city": extract_city,
    "state": extract_state,
    "country": extract_country,
}
"""Parts of `City, State, Country`, by their name in a schema."""
_COLUMN_PLACEHOLDER = re.compile(r"(?<=\{)[^{}/]+(?=[/}])")
"""A column in the name of an actor."""


class Schema(msgspec.Struct, frozen=True):
    """Description of a log.

    Attributes:
        log_format: Format of its records.
        features: The feature columns, in order.
        column_types: `category` or `number`, by column, for columns with a fixed type.
    """

    log_format: LogFormat
    features: tuple[str, ...]
    column_types: Mapping[str, str]


def is_schema_file(name: str | None) -> bool:
    """Return whether a columns file is a schema, not a plain feature list."""
    return name is not None and name.lower().endswith(SCHEMA_SUFFIX)


def list_builtin_schemas() -> tuple[str, ...]:
    """List the file names of the built-in schemas.

    >>> "okta.toml" in list_builtin_schemas()
    True
    """
    return tuple(sorted(p.name for p in _BUILTIN_DIR.iterdir() if is_schema_file(p.name)))


def load_builtin_schema(name: str) -> Schema:
    """Read a built-in schema, even if the working directory has a file of that name.

    >>> load_builtin_schema("duo.toml").log_format.time_column
    'isotimestamp'
    """
    return _parse_schema((_BUILTIN_DIR / name).read_text(encoding="utf-8"), name)


def load_schema(name: str, option: str = SCHEMA_OPTION) -> Schema:
    """Read a schema: a file or, if it does not exist, a built-in schema.

    Args:
        name: Name of the file.
        option: The option that names it, for messages.

    Raises:
        UsageError: The file does not exist or has an error. The message has the line.
    """
    file = Path(name)
    if file.is_file():
        return _parse_schema(decode_text(to_utf8(file.read_bytes())), name, option)
    if name in list_builtin_schemas():
        return load_builtin_schema(name)
    raise UsageError(
        f"{option}: there is no file `{name}`."
        f"{suggest_path(name) or suggest(name, list_builtin_schemas())} Give a schema of your own, "
        f"or a built-in one: {', '.join(list_builtin_schemas())}."
    )


def make_minimal_format(features: Sequence[str], user: str, time: str) -> LogFormat:
    """Make the format of a log with known features, user and time only."""
    names = tuple(dict.fromkeys([time, user, *features]))
    return LogFormat(
        name="log",
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
def _parse_schema(text: str, path: str, option: str = SCHEMA_OPTION) -> Schema:
    file = TomlFile(text, path, option)
    spec = file.convert(file.data, SchemaSpec)
    columns: dict[str, ColumnSpec] = {}
    for name, value in spec.columns.items():
        table = {"path": value} if isinstance(value, str | list) else value
        column = file.convert(table, ColumnSpec, ("columns", name))
        if not column.path and not column.is_derived and not column.join:
            column.path = name
        columns[flatten_name(name, spec.drop)] = column
    for old, new in spec.rename.items():
        if flatten_name(new, spec.drop) in columns:
            problem = f"`rename.{old}`: there is a column `{new}` already."
            raise file.error_at(("rename", old), problem)
        columns[flatten_name(new, spec.drop)] = ColumnSpec(path=old)
    return _SchemaBuilder(file, spec, columns).build()


@dataclass(frozen=True)
class _SchemaBuilder:
    """Builds a schema from the contents of a file."""

    file: TomlFile
    spec: SchemaSpec
    columns: Mapping[str, ColumnSpec]

    def build(self) -> Schema:
        spec, features = self.spec, self._read_features()
        user, time, event_id = map(self._to_column, (spec.user, self._times[0], spec.id))
        log = LogFormat(
            name=spec.name,
            envelopes=tuple(self._iter_envelopes()),
            paths=tuple(dict.fromkeys(self._iter_paths(features))),
            leading_columns=tuple(filter(None, (event_id, time))),
            context_columns=self._list_context_columns(),
            time_column=time,
            time_format=spec.time_format,
            id_column=event_id,
            id_pattern=".",
            user_column=user,
            account_columns=self._to_columns("account", as_list(spec.account)),
            drop_characters=spec.drop,
            column_aliases=dict(self._iter_aliases(features)),
            record_aliases=frozenset(name for name, _ in self._iter_record_aliases(features)),
            fallbacks=dict(self._iter_fallbacks(time)),
            actor_rules=tuple(self._iter_actor_rules()) or (_make_user_rule(user),),
            derived_columns=COMMON_DERIVED | dict(self._iter_derived()),
            boolean_columns=self._to_columns("booleans", spec.booleans),
            joined_columns=dict(self._iter_joined(features)),
            row_filter=self._make_row_filter(features),
            identity_columns=self._to_columns("identity", spec.identity),
            missing_texts=tuple(spec.missing),
            caseless_columns=self._read_caseless_columns(features),
            record_order=self._make_record_order(),
            event_fields=self._make_event_fields(features),
            labels=self._read_labels(features),
            evidence=self._make_evidence(),
            cloud_provider=spec.cloud_provider or None,
            sign_ins=spec.sign_ins,
        )
        columns = self._to_columns("features", features)
        return Schema(log, columns, self._list_types(columns))

    def _read_features(self) -> list[str]:
        features = self.spec.features
        if isinstance(features, str):
            return list(read_lines(features, option=SCHEMA_OPTION))
        if not features:
            raise self._make_error(("features",), "give at least one column")
        return features

    def _iter_envelopes(self) -> Iterator[Envelope]:
        envelope = self.spec.envelope
        if envelope is not None:
            yield Envelope(envelope.record, is_declared=True, inherited=envelope.names)
        for name in as_list(self.spec.records):
            yield Envelope(name, is_declared=True)

    def _to_column(self, path: str) -> str:
        """Return the flat column of a name or path."""
        prefix, base = split_prefix(path)
        return prefix + self._to_column(base) if prefix else flatten_name(path, self.spec.drop)

    def _to_columns(self, key: str, paths: Iterable[str]) -> tuple[str, ...]:
        for path in paths:
            if JSON_PATH_PATTERN.match(path) and path not in self.columns:
                problem = f"`{path}` is inside a column and needs a name: [columns.NAME] "
                raise self._make_error((key,), f"{problem}path = {path!r}")
        return tuple(dict.fromkeys(map(self._to_column, paths)))

    def _list_context_columns(self) -> tuple[str, ...]:
        """List the columns to keep: an event cannot be told from another one without some."""
        spec = self.spec
        duplicates = [spec.duplicates.column] if spec.duplicates else []
        return self._to_columns("context", [*spec.context, *duplicates, *as_list(spec.account)])

    def _read_caseless_columns(self, features: Iterable[str]) -> tuple[str, ...]:
        known = {*map(self._to_column, self._iter_paths(features)), *self.columns}
        for name in self.spec.ignore_case:
            if self._to_column(name) not in known:
                hint = did_you_mean(name, sorted(known))
                raise self.file.error_at(("ignore_case",), f"`ignore_case`: there is no {hint}")
        return self._to_columns("ignore_case", self.spec.ignore_case)

    def _make_record_order(self) -> RecordOrder | None:
        duplicates = self.spec.duplicates
        if duplicates is None:
            return None
        if not self.spec.id:
            problem = "records of one event have one id. Give its column as `id`"
            raise self._make_error(("duplicates",), problem)
        column = self._to_column(duplicates.column)
        return RecordOrder(column, tuple(duplicates.order), adds_outcome=True)

    def _iter_paths(self, features: Iterable[str]) -> Iterator[str]:
        """Yield all paths in the file, and the names that are not columns of their own."""
        spec, columns = self.spec, self.columns.values()
        paths = [
            *spec.fields,
            *(get_root_column(source) for column in columns for source in as_list(column.path)),
        ]
        yield from paths
        known = {*map(self._to_column, paths), *self.columns, *COMMON_DERIVED}
        names = [
            spec.id,
            *self._times,
            spec.user,
            *as_list(spec.account),
            *features,
            *spec.context,
            *([spec.duplicates.column] if spec.duplicates else []),
        ]
        names += [name for column in columns for name in as_list(column.of)]
        yield from (
            name
            for name in map(_strip_prefixes, names)
            if name and self._to_column(name) not in known
        )

    def _iter_aliases(self, features: Iterable[str]) -> Iterator[tuple[str, str]]:
        for path in self._iter_paths(features):
            yield normalize_name(self._to_column(path)), self._to_column(path)
        for name, column in self.columns.items():
            for header in as_list(column.header):
                yield normalize_name(header), name
        yield from self._iter_record_aliases(features)

    def _iter_record_aliases(self, features: Iterable[str]) -> Iterator[tuple[str, str]]:
        if self.spec.envelope is not None:
            # Tools that flatten JSON put the name of the envelope before the names in it.
            for path in self._iter_paths(features):
                yield normalize_name(f"{self.spec.envelope.record}.{path}"), self._to_column(path)

    @property
    def _times(self) -> list[str]:
        """Return the columns that may have the time, the best one first."""
        if not self.spec.time:
            raise self._make_error(("time",), "give a column")
        return as_list(self.spec.time)

    def _iter_fallbacks(self, time: str) -> Iterator[tuple[str, tuple[pl.Expr, ...]]]:
        others = tuple(pl.col(self._to_column(name)) for name in self._times[1:])
        for name in dict.fromkeys([*self.columns, time]):
            sources = self._make_fallbacks(name) if name in self.columns else ()
            sources += others if name == time else ()
            if sources:
                yield name, sources

    def _make_fallbacks(self, name: str) -> tuple[pl.Expr, ...]:
        """Make expressions for the sources of a column, except the path of the same name."""
        found = []
        for source in as_list(self.columns[name].path):
            root = self._to_column(get_root_column(source))
            if root != name:
                found.append(self._make_fallback(name, source, root))
            elif get_root_column(source) != source:
                problem = f"it comes from a column `{root}` and needs another name"
                raise self._make_error(("columns", name), problem)
        return tuple(found)

    def _make_fallback(self, name: str, path: str | LocationPart, root: str) -> pl.Expr:
        if isinstance(path, LocationPart):
            part = self._look_up(LOCATION_PARTS, path.part, ("columns", name, "path"))
            return _blank_to_null(part(root))
        inside = JSON_PATH_PATTERN.match(path)
        if inside is None:
            return pl.col(root)
        inner = _ITEM_PATTERN.sub(r"[?(@.\1==\2)]", inside[2])
        return _blank_to_null(pl.col(root).str.json_path_match(f"${inner}"))

    def _iter_derived(self) -> Iterator[tuple[str, DerivedColumn]]:
        for name, column in self.columns.items():
            if column.is_derived:
                keys = ("columns", name)
                if column.path:
                    raise self._make_error(keys, "a derived column cannot have a `path`")
                of = self._to_columns("of", as_list(column.of))
                yield name, self._make_derived(keys, column, of)

    def _make_derived(
        self, keys: Sequence[TomlKey], column: ColumnSpec, inputs: tuple[str, ...]
    ) -> DerivedColumn:
        number = DERIVE_ARITY.get(column.derive, 1)
        if not inputs or (number is not None and len(inputs) != number):
            needed = {None: "one column or more", 1: "one column", 2: "two columns"}[number]
            raise self._make_error((*keys, "of"), f"give {needed}")
        if column.families:
            return map_families(self._make_classifier(keys, column), *inputs)
        return self._look_up(DERIVE_FUNCTIONS, column.derive, (*keys, "derive"))(*inputs)

    def _make_classifier(self, keys: Sequence[TomlKey], column: ColumnSpec) -> RegexClassifier:
        for pattern, _ in column.families:
            try:
                pl.select(pl.lit("").str.contains(f"(?i){pattern}"))
            except pl.exceptions.PolarsError as error:
                raise self._pattern_error((*keys, "families"), pattern, error) from error
        pairs = ((pattern, family or None) for pattern, family in column.families)
        return RegexClassifier(tuple(pairs), column.otherwise or None)

    def _iter_actor_rules(self) -> Iterator[ActorRule]:
        for n, table in enumerate(self.spec.actors):
            actor = self.file.convert(table, ActorSpec, ("actors", n))
            match, exclude = (
                {self._to_column(name): pattern for name, pattern in patterns.items()}
                for patterns in (actor.when, actor.unless)
            )
            name = _COLUMN_PLACEHOLDER.sub(lambda found: self._to_column(found[0]), actor.name)
            rule = ActorRule(actor.kind, name, match, exclude, actor.lower)
            try:
                pl.DataFrame({column: [""] for column in rule.columns}).select(rule.to_expr())
            except pl.exceptions.PolarsError as error:
                raise self._pattern_error(("actors", n), "a pattern", error) from error
            yield rule

    def _iter_joined(self, features: Iterable[str]) -> Iterator[tuple[str, JoinedColumn]]:
        joined = [name for name, column in self.columns.items() if column.join]
        for name in joined:
            column, keys = self.columns[name], ("columns", name, "join")
            if column.path or column.is_derived:
                raise self._make_error(keys, "a joined column has no `path` and is not derived")
            if len(column.join) < 2:  # noqa: PLR2004 - one column needs no joining
                raise self._make_error(keys, "give two columns or more")
            inputs = self._require_columns(keys, column.join, features)
            if not set(inputs).isdisjoint(joined):
                raise self._make_error(keys, "its columns cannot be joined columns themselves")
            yield name, JoinedColumn(inputs, column.separator)

    def _make_row_filter(self, features: Iterable[str]) -> RowFilter | None:
        if self.spec.rows is None:
            return None
        table = self.file.convert(self.spec.rows, RowsSpec, ("rows",))
        patterns: list[dict[str, str]] = []
        for key, given in (("when", table.when), ("unless", table.unless)):
            names = self._require_columns(("rows", key), given, features)
            patterns.append(dict(zip(names, given.values(), strict=True)))
        rows = RowFilter(*patterns)
        try:
            rows.find_excluded(pl.DataFrame({"": [""]}))
        except pl.exceptions.PolarsError as error:
            raise self._pattern_error(("rows",), "a pattern", error) from error
        return rows

    def _require_columns(
        self, keys: Sequence[TomlKey], names: Iterable[str], features: Iterable[str]
    ) -> tuple[str, ...]:
        """Return the flat columns of names, which must be known and not derived."""
        paths = map(self._to_column, self._iter_paths(features))
        known = {*paths, *self.columns} - {n for n, each in self.columns.items() if each.is_derived}
        for name in names:
            if self._to_column(name) not in known:
                problem = f"`{'.'.join(map(str, keys))}`: there is no column "
                problem += did_you_mean(name, sorted(known))
                hint = " If the log has such a column, name it under `fields`."
                raise self.file.error_at((*keys, name), problem + hint)
        return tuple(map(self._to_column, names))

    def _make_event_fields(self, features: Iterable[str]) -> EventFields:
        table = self.file.convert(self.spec.event_fields, EventFieldsSpec, ("event_fields",))
        known = self._list_known_columns(features)
        found = {
            name: tuple(
                self._look_up(known, self._to_column(column), ("event_fields", name))
                for column in as_list(columns)
            )
            for name, columns in msgspec.structs.asdict(table).items()
        }
        return EventFields(**found)

    def _read_labels(self, features: Iterable[str]) -> dict[str, str]:
        known = self._list_known_columns(features)
        return {
            self._look_up(known, self._to_column(name), ("labels", name)): label
            for name, label in self.spec.labels.items()
        }

    def _list_known_columns(self, features: Iterable[str]) -> dict[str, str]:
        """List the columns that events can have, each by its name."""
        paths = map(self._to_column, self._iter_paths(features))
        return {name: name for name in (*paths, *self.columns, *COMMON_DERIVED)}

    def _make_evidence(self) -> tuple[EvidenceQuery, ...]:
        """Make the queries of the schema, and the general one for Splunk if it has none."""
        queries = {}
        for n, table in enumerate(self.spec.evidence):
            query = self.file.convert(table, EvidenceSpec, ("evidence", n))
            for key, known in (("language", QUERY_LANGUAGES), ("time_format", QUERY_TIME_FORMATS)):
                self._look_up(dict.fromkeys(known), getattr(query, key), ("evidence", n, key))
            columns = {self._to_column(n): tuple(as_list(f)) for n, f in query.columns.items()}
            values = msgspec.structs.asdict(query) | {"columns": columns}
            queries[query.name] = EvidenceQuery(**values)
        queries.setdefault(SPLUNK_QUERY.name, SPLUNK_QUERY)
        return tuple(queries.values())

    def _list_types(self, features: Iterable[str]) -> dict[str, str]:
        """Return the types that are fixed; values of a previous event have the column's type."""
        types = {
            name: self._get_column_type(name)
            for name, column in self.columns.items()
            if column.kind
        }
        found = ((name, _strip_previous(name)) for name in features)
        return types | {name: types[base] for name, base in found if base in types}

    def _get_column_type(self, name: str) -> str:
        kind = self.columns[name].kind
        types = {name: name for name in COLUMN_TYPES}
        return self._look_up(types, kind, ("columns", name, "kind"))

    def _look_up(self, known: Mapping[str, ValueT], word: str, keys: Sequence[TomlKey]) -> ValueT:
        """Return the value of a word; an unknown word is an error of the schema."""
        if word not in known:
            name = ".".join(map(str, keys))
            raise self.file.error_at(keys, f"`{name}`: there is no {did_you_mean(word, known)}")
        return known[word]

    def _pattern_error(self, keys: Sequence[TomlKey], pattern: str, error: Exception) -> UsageError:
        reason = " ".join(str(error).split())
        return self._make_error(keys, f"{pattern} is not a valid regular expression: {reason}")

    def _make_error(self, keys: Sequence[TomlKey], problem: str) -> UsageError:
        return self.file.error_at(keys, f"`{'.'.join(map(str, keys))}`: {problem}.")


def _blank_to_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _strip_prefixes(path: str) -> str:
    prefix, base = split_prefix(path)
    return _strip_prefixes(base) if prefix else path


def _strip_previous(name: str) -> str:
    """Return the column whose values a column has: its own name, or that of an earlier event."""
    prefix, base = split_prefix(name)
    return _strip_previous(base) if prefix == PREVIOUS_PREFIX else name
