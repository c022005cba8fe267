"""Suppressions, their file, and the events that they match.

A suppression names values of an event, users, an end date and a reason. `Suppressions.read` reads
a TOML file of them. `filter` and the attack replay match events against them.
"""

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
"""Means no value in a rule: null, or the column does not exist."""
NO_MATCH = -1
"""Place of a rule if none matches."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A suppression in its file."""

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
    """A rule that suppresses events.

    Attributes:
        where: Values by column. An event matches if it has one of the values in every column.
            `MISSING` matches an event without a value.
        users: The users it applies to.
        until: Its end. Events from then on are not suppressed.
        reason: Why people wrote it.
    """

    where: Mapping[str, tuple[str, ...]]
    users: tuple[str, ...]
    until: datetime
    reason: str

    @property
    def label(self) -> str:
        """The rule on one line, without control characters. It identifies the rule in results.

        >>> end = datetime(2026, 3, 1, tzinfo=UTC)
        >>> print(Suppression({"eventName": ("DeleteTrail",)}, ("ann",), end, "asked").label)
        eventName = `DeleteTrail`, of ann, until 2026-03-01
        """
        conditions = " and ".join(
            f"{display_value(column)} = {' or '.join(map(quote_backtick, values))}"
            for column, values in self.where.items()
        )
        first, others = display_value(self.users[0]), len(self.users) - 1
        whose = f"{first} and {others:,} more" if others else first
        return f"{conditions}, of {whose}, until {format_end(self.until)}"

    @property
    def all_spellings(self) -> frozenset[str]:
        """The users, and their addresses in lower case, as events have them.

        >>> end = datetime(2026, 3, 1, tzinfo=UTC)
        >>> rule = Suppression({"eventName": ("Ls",)}, ("Ann@Example.org", "Bob"), end, "asked")
        >>> sorted(rule.all_spellings)
        ['Ann@Example.org', 'Bob', 'ann@example.org']
        """
        return frozenset([*self.users, *(name.lower() for name in self.users if "@" in name)])

    def matches(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which events have the values, for any user and time. Shape (rows,)."""
        return reduce(
            and_,
            (
                _text_column(frame, column).is_in(values).to_numpy()
                for column, values in self.where.items()
            ),
        )

    def matches_values(self, values: Mapping[str, Sequence[str]]) -> bool | None:
        """Return whether an incident with these values would be suppressed.

        Args:
            values: Values by column, of some of the columns.

        Returns:
            None if the given columns match, but other columns of the rule are not given.
        """
        given = [column for column in self.where if column in values]
        matching = all(set(self.where[column]) & set(values[column]) for column in given)
        if not given or not matching:
            return False
        return True if len(given) == len(self.where) else None


@dataclass(frozen=True)
class SuppressionCounts:
    """Events that suppressions match, by the label of the suppression.

    Attributes:
        suppressed: Events that it suppresses.
        expired: Events that it matches after its end. They are not suppressed.
    """

    suppressed: Mapping[str, int]
    expired: Mapping[str, int]


@dataclass(frozen=True)
class Suppressions:
    """Several suppressions.

    Attributes:
        rules: The suppressions. An event that several match counts for the first.
    """

    rules: tuple[Suppression, ...] = ()

    @classmethod
    def read(cls, *paths: str) -> Self:
        """Read files of suppressions.

        Raises:
            UsageError: A file cannot be read, or is not a file of suppressions.
        """
        return cls(tuple(rule for path in paths for rule in _read_rules(path)))

    def match(
        self, user: str | None, frame: pl.DataFrame
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Match a user's events against the rules.

        Returns:
            The place of the rule that suppresses each event, and the place of a rule that would,
            but has ended. `NO_MATCH` if there is none. An event that is suppressed has no ended
            rule. Both of shape (rows,).
        """
        suppressed_by, expired_rule = np.full((2, frame.height), NO_MATCH, dtype=np.intp)
        for place, rule in enumerate(self.rules):
            if user in rule.all_spellings:
                matching, late = rule.matches(frame), (frame[TIME] >= rule.until).to_numpy()
                suppressed_by[(suppressed_by == NO_MATCH) & matching & ~late] = place
                expired_rule[(expired_rule == NO_MATCH) & matching & late] = place
        expired_rule[suppressed_by != NO_MATCH] = NO_MATCH
        return suppressed_by, expired_rule

    def find_labels(self, user: str | None, frame: pl.DataFrame) -> list[str | None]:
        """Return the label of the rule that suppresses each event; None if none does."""
        places, _ = self.match(user, frame)
        return [None if place == NO_MATCH else self.rules[place].label for place in places.tolist()]

    def count(
        self, suppressed_by: NDArray[np.intp], expired_rule: NDArray[np.intp]
    ) -> tuple[SuppressionCounts, ...]:
        """Count the results of `match` for some events. Empty if no rule matches."""
        suppressed = self._count_by_label(suppressed_by)
        expired = self._count_by_label(expired_rule)
        return (SuppressionCounts(suppressed, expired),) if suppressed or expired else ()

    def _count_by_label(self, places: NDArray[np.intp]) -> dict[str, int]:
        distinct, counts = np.unique(places[places != NO_MATCH], return_counts=True)
        pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
        return {self.rules[place].label: count for place, count in pairs}


def format_end(end: datetime) -> str:
    """Return an end as text: the date only, if it is at midnight."""
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
    except (OSError, ValueError, RecursionError) as error:
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
            f"{location} has no value, so it would suppress almost all events. Add one, as in "
            '`where.eventName = "GetObject"`.'
        )
    if not all(where.values()):
        raise UsageError(
            f"{location} has an empty list in `where`. Add a value to it, or remove it."
        )
    if not entry.users or not all(entry.users):
        raise UsageError(f'{location} has no user. Add the users it applies to: `users = ["ann"]`.')
    if not entry.reason.strip():
        raise UsageError(f'{location} has no reason. Add one: `reason = "..."`.')
    return Suppression(where, tuple(entry.users), _parse_end(entry.until, location), entry.reason)


def _parse_end(until: object, location: str) -> datetime:
    if isinstance(until, datetime):
        return until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    if isinstance(until, date):
        return datetime.combine(until, time.min, tzinfo=UTC)
    raise UsageError(
        f"{location}: `until` is {until!r}, which is not a date. Write it without quotes: "
        "`until = 2026-03-01`."
    )
