"""A log's description, as it is written in TOML: the words of docs/schemas.md."""

from __future__ import annotations

import re
from typing import Any

import msgspec

INSIDE = re.compile(r"""^([^\[]+)(\[(?:\d+|'[^']*'|"[^"]*")\].*)$""")
"""`sourceIPs[0]`: a column of JSON, and the way to what is meant in it."""


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a place that stands whole in one column."""

    path: str
    part: str


class Column(msgspec.Struct, forbid_unknown_fields=True):
    """A column that has more to it than a path."""

    path: str | list[str | Part] = ""
    header: str | list[str] = ""
    kind: str = ""
    derive: str = ""
    of: str | list[str] = ""
    families: list[tuple[str, str]] = []
    otherwise: str = "other"

    @property
    def derived(self) -> bool:
        """Whether no log holds it."""
        return bool(self.derive or self.families or self.of)


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """What stands around each record."""

    record: str
    names: dict[str, str] = {}


class Actor(msgspec.Struct, forbid_unknown_fields=True):
    """How one kind of actor is recognised, and called."""

    name: str
    kind: str = "person"
    when: dict[str, str] = {}
    unless: dict[str, str] = {}
    lower: bool = False


class About(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
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
    envelope: Envelope | None = None
    columns: dict[str, Any] = {}
    actors: list[Any] = []


def many(told: str | list[Any]) -> list[Any]:
    """One or many, as many."""
    return told if isinstance(told, list) else [told] if told else []


def root_of(one: str | Part) -> str:
    """The path of the column that something is taken of."""
    path = one.path if isinstance(one, Part) else one
    inside = INSIDE.match(path)
    return inside[1] if inside else path
