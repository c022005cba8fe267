"""A log's description, as it is written in TOML: the words of docs/schemas.md."""

from __future__ import annotations

import re
from typing import Any

import msgspec

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
