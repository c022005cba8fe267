"""What a suppression is, and which events it holds back."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.text import display_value, quote_backtick

SUPPRESSIONS_FORMAT = "morpheus-suppressions"
MISSING = ""
"""Stands for no value at all."""
NO_MATCH = -1


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A suppression as its file has it."""

    where: dict[str, str | list[str]]
    users: list[str]
    until: Any
    reason: str


class _SuppressionFile(msgspec.Struct, forbid_unknown_fields=True):
    """A file of suppressions."""

    format: Literal["morpheus-suppressions"]
    version: Literal[1]
    suppression: list[_Entry] = []


@dataclass(frozen=True)
class Suppression:
    """A rule by which events are held back.

    Attributes:
        where: Values by column. An event must have one of them in every column; `MISSING` is meant
            by an event without a value.
        users: Whose events, by name.
        until: Events from then on are no longer held back.
        reason: Why, in a person's words.
    """

    where: Mapping[str, tuple[str, ...]]
    users: tuple[str, ...]
    until: datetime
    reason: str

    @property
    def label(self) -> str:
        """What it holds back, in a line that is fit to be shown.

        >>> end = datetime(2026, 3, 1, tzinfo=UTC)
        >>> print(Suppression({"eventName": ("DeleteTrail",)}, ("ann",), end, "asked").title)
        eventName = `DeleteTrail`, of ann, until 2026-03-01
        """
        conditions = " and ".join(
            f"{display_value(column)} = {' or '.join(map(quote_backtick, values))}"
            for column, values in self.where.items()
        )
        first, others = display_value(self.users[0]), len(self.users) - 1
        whose = f"{first} and {others:,} more" if others else first
        return f"{conditions}, of {whose}, until {format_end(self.until)}"

    def matches(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Which events have the values, whoever's and whenever they are, (rows,)."""
        return reduce(
            and_,
            (
                _text_column(frame, column).is_in(values).to_numpy()
                for column, values in self.where.items()
            ),
        )

    def matches_values(self, values: Mapping[str, Sequence[str]]) -> bool | None:
        """Whether something of which some columns are known would be held back.

        Returns:
            None if the columns that are known agree, and others would have to be known.
        """
        known = [column for column in self.where if column in values]
        agree = all(set(self.where[column]) & set(values[column]) for column in known)
        if not known or not agree:
            return False
        return True if len(known) == len(self.where) else None


@dataclass(frozen=True)
class SuppressionCounts:
    """Events that suppressions have met, counted by the title of the suppression.

    Attributes:
        suppressed: Those that each has held back.
        expired: Those that each would have held back, had it not ended; they stay.
    """

    suppressed: Mapping[str, int]
    expired: Mapping[str, int]


@dataclass(frozen=True)
class Suppressions:
    """Rules, in their order.

    Attributes:
        rules: An event that several hold back counts for the first.
    """

    rules: tuple[Suppression, ...] = ()

    @classmethod
    def read(cls, *paths: str) -> Self:
        """Read files of suppressions.

        Raises:
            UsageError: A file is not there, or holds something else.
        """
        return cls(tuple(rule for path in paths for rule in _read_rules(path)))

    def match(
        self, user: str | None, frame: pl.DataFrame
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Look which of a user's events meet a rule.

        Returns:
            The place of the rule that holds each event back, and of the one that would have, had it
            not ended; `NO_MATCH` where there is none; both (rows,).
        """
        held, ended = np.full((2, frame.height), NO_MATCH, dtype=np.intp)
        for place, rule in enumerate(self.rules):
            if user in rule.users:
                fits, late = rule.matches(frame), (frame[TIME] >= rule.until).to_numpy()
                held[(held == NO_MATCH) & fits & ~late] = place
                ended[(ended == NO_MATCH) & fits & late] = place
        ended[held != NO_MATCH] = NO_MATCH
        return held, ended

    def find_labels(self, user: str | None, frame: pl.DataFrame) -> list[str | None]:
        """What holds each of a user's events back; None where nothing does."""
        held, _ = self.match(user, frame)
        return [None if place == NO_MATCH else self.rules[place].label for place in held.tolist()]

    def count(
        self, suppressed_by: NDArray[np.intp], expired_rule: NDArray[np.intp]
    ) -> tuple[SuppressionCounts, ...]:
        """Count what `met` found of some events; nothing where it found nothing."""
        back, late = self._count_by_label(suppressed_by), self._count_by_label(expired_rule)
        return (SuppressionCounts(back, late),) if back or late else ()

    def _count_by_label(self, rules: NDArray[np.intp]) -> dict[str, int]:
        places, numbers = np.unique(rules[rules != NO_MATCH], return_counts=True)
        pairs = zip(places.tolist(), numbers.tolist(), strict=True)
        return {self.rules[place].label: number for place, number in pairs}


def format_end(end: datetime) -> str:
    """An end: the day alone, where it is the day's first moment."""
    return end.date().isoformat() if end.time() == time.min else end.isoformat()


def _text_column(frame: pl.DataFrame, column: str) -> pl.Series:
    if column not in frame.columns:
        return pl.Series([MISSING], dtype=pl.String).new_from_index(0, frame.height)
    return frame[column].cast(pl.String).fill_null(MISSING)


def _read_rules(path: str) -> Iterator[Suppression]:
    try:
        entries = msgspec.convert(
            tomllib.loads(Path(path).read_text(encoding="utf-8")), _SuppressionFile
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--suppressions: `{path}` cannot be read: {reason}. Give a file that `morpheus tools "
            "suppress` wrote."
        ) from error
    for number, entry in enumerate(entries.suppression, start=1):
        yield _parse_entry(entry, f"--suppressions: `{path}`: suppression {number}")


def _parse_entry(entry: _Entry, location: str) -> Suppression:
    where = {
        column: (values,) if isinstance(values, str) else tuple(values)
        for column, values in entry.where.items()
    }
    if not any(value for values in where.values() for value in values):
        raise UsageError(
            f"{location} names no value, so that it would hold back nearly everything. Name one, as "
            'in `where.eventName = "GetObject"`.'
        )
    if not all(where.values()):
        raise UsageError(
            f"{location} has an empty list in `where`. Name a value in it, or remove it."
        )
    if not entry.users or not all(entry.users):
        raise UsageError(f'{location} names no user. Name whom it is for: `users = ["ann"]`.')
    if not entry.reason.strip():
        raise UsageError(f'{location} gives no reason. Say why: `reason = "..."`.')
    return Suppression(where, tuple(entry.users), _parse_end(entry.until, location), entry.reason)


def _parse_end(until: object, location: str) -> datetime:
    if isinstance(until, datetime):
        return until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    if isinstance(until, date):
        return datetime.combine(until, time.min, tzinfo=UTC)
    raise UsageError(
        f"{location}: `until` is {until!r}, which is no date. Write it without quotes: "
        "`until = 2026-03-01`."
    )
