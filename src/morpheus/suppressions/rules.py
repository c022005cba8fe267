"""Suppressions, their file, and the events that they match.

A suppression has conditions on an event, the users or roles it applies to, an end date and a
reason. `Suppressions.read` reads a TOML file of them. `filter` and the attack replay match events
against them.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cached_property, lru_cache, reduce
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from operator import and_
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.features.derived import parse_address
from morpheus.text import display_value, quote_backtick, suggest_path

SUPPRESSIONS_FORMAT, SUPPRESSIONS_VERSION = "morpheus-suppressions", 2
MISSING = ""
"""Means no value in a rule: null, or the column does not exist."""
NO_MATCH = -1
"""Place of a rule if none matches."""
MAX_VALUES_SHOWN = 3
"""Maximum number of values of a condition that a label shows."""
Mask = NDArray[np.bool_]

# Agents: the product without its version.

MAX_AGENT_LENGTH = 512
"""Maximum number of characters of an agent that are looked at."""
_FRAMES = frozenset({"mozilla", "apn", "hashicorp", "applewebkit", "gecko", "version", "mobile"})
"""Products that other products name for compatibility."""
_BROWSER, _SAFARI = "Mozilla", "Safari"
_COMMENT = re.compile(r"\([^()]*\)")
_PRODUCT = re.compile(r"v?[0-9]")


@lru_cache(maxsize=4096)
def find_agent_family(agent: str) -> str:
    """Return the name of the product in a user agent, without its version.

    Without a product and a version, it is the whole text. The time is linear in the length.

    >>> find_agent_family("aws-cli/2.15.30 Python/3.11.8 Linux/6.8")
    'aws-cli'
    >>> find_agent_family("APN/1.0 HashiCorp/1.0 Terraform/1.9.2 aws-sdk-go-v2/1.30.3")
    'Terraform'
    >>> find_agent_family("Mozilla/5.0 (X11; Linux) AppleWebKit/537.36 Chrome/127.0 Safari/537.36")
    'Chrome'
    >>> find_agent_family("S3 Browser/11.7.5 (https://s3browser.com)"), find_agent_family("AWS")
    ('S3 Browser', 'AWS')
    """
    products = list(_iter_products(agent[:MAX_AGENT_LENGTH]))
    named = [name for name in products if name.lower() not in _FRAMES]
    if not named:
        return products[-1] if products else agent.strip()
    if products[0] != _BROWSER:
        return named[0]
    return next((name for name in reversed(named) if name != _SAFARI), named[0])


def _iter_products(agent: str) -> Iterator[str]:
    """Yield the names before versions. A name can have several words."""
    words: list[str] = []
    for token in _COMMENT.sub(" ", agent).translate(_BRACKETS).split():
        name, slash, version = token.partition("/")
        if not slash:
            words.append(token)
            continue
        if name and _PRODUCT.match(version):
            yield " ".join([*words, name])
        words = []


_BRACKETS = str.maketrans("[],;", "    ")

# Networks.

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
IPV4_PREFIX, IPV6_PREFIX = 24, 48
"""Lengths of the networks that addresses are widened to."""
_LOOKS_LIKE_NETWORK = re.compile(r"[0-9a-fA-F.:]*[.:][0-9a-fA-F.:]*(?:/[0-9]*)?")


def find_network(address: str) -> str:
    """Return the network of an address: /24 for IPv4, /48 for IPv6. Other text stays.

    >>> find_network("203.0.113.9"), find_network("2001:db8:1:2::9"), find_network("AWS Internal")
    ('203.0.113.0/24', '2001:db8:1::/48', 'AWS Internal')
    >>> find_network("::ffff:203.0.113.9")
    '203.0.113.0/24'
    """
    parsed = _parse_unmapped(address)
    if parsed is None:
        return address
    prefix = IPV4_PREFIX if isinstance(parsed, IPv4Address) else IPV6_PREFIX
    return str(ip_network(f"{parsed}/{prefix}", strict=False))


@lru_cache(maxsize=4096)
def _parse_unmapped(text: str) -> Address | None:
    """Parse an address. An IPv4 address that is written as IPv6 is one of IPv4."""
    address = parse_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@dataclass(frozen=True)
class Condition:
    """A condition on the value of one column.

    Attributes:
        column: Name of the column.
        values: Values, networks or families. One of them is enough. `MISSING` is no value.
    """

    column: str
    values: tuple[str, ...]

    name: str = ""
    """Word of the condition in a file."""
    relation: str = "="
    """How a label says it."""

    def matches(self, frame: pl.DataFrame) -> Mask:
        """Return which rows have a matching value, (rows,)."""
        if self.column not in frame.columns:
            return np.full(frame.height, self.accepts(MISSING))
        texts = frame[self.column].cast(pl.String).fill_null(MISSING)
        accepted = [text for text in texts.unique().to_list() if self.accepts(text)]
        return texts.is_in(accepted).to_numpy()

    def accepts(self, text: str) -> bool:
        """Return whether a value matches; `MISSING` for no value."""
        return text in self._set

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.values)

    @property
    def label(self) -> str:
        """The condition on one line."""
        if self.values == (MISSING,):
            return f"no {display_value(self.column)}"
        shown = " or ".join(map(quote_backtick, self.values[:MAX_VALUES_SHOWN]))
        more = len(self.values) - MAX_VALUES_SHOWN
        rest = f" or {more:,} more" if more > 0 else ""
        return f"{display_value(self.column)} {self.relation} {shown}{rest}"


@dataclass(frozen=True)
class ValueCondition(Condition):
    """A condition on the values themselves."""

    name: str = "where"


@dataclass(frozen=True)
class FamilyCondition(Condition):
    """A condition on the product in a user agent, in any version."""

    name: str = "family"
    relation: str = "of any version of"

    def accepts(self, text: str) -> bool:
        """Return whether an agent is of one of the families."""
        return (find_agent_family(text) if text else MISSING) in self._set


@dataclass(frozen=True)
class NetworkCondition(Condition):
    """A condition on the network of an address.

    A value that is no network, such as the name of a service, is compared as it is.
    """

    name: str = "network"
    relation: str = "in"

    def accepts(self, text: str) -> bool:
        """Return whether an address is in one of the networks."""
        address = _parse_unmapped(text) if text else None
        if address is None:
            return text in self._set
        return any(address in network for network in self._networks[address.version])

    @cached_property
    def _networks(self) -> Mapping[int, Sequence[Network]]:
        parsed = [network for network in map(parse_network, self.values) if network is not None]
        return {v: [each for each in parsed if each.version == v] for v in (4, 6)}


def parse_network(text: str) -> Network | None:
    """Parse a network or an address; None for other text.

    Raises:
        ValueError: It looks like a network, but is none.
    """
    try:
        return ip_network(text, strict=False)
    except ValueError:
        if _LOOKS_LIKE_NETWORK.fullmatch(text):
            raise
        return None


CONDITION_KINDS: Mapping[str, Callable[[str, tuple[str, ...]], Condition]] = {
    "where": ValueCondition,
    "network": NetworkCondition,
    "family": FamilyCondition,
}
"""The conditions, by their word in a file."""

# Hours of the week.

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MINUTES_PER_DAY, MINUTES_PER_HOUR = 1440, 60
_SPAN = re.compile(r"(\S+) ([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")


class WeeklyHours(msgspec.Struct, frozen=True, dict=True):
    """Hours of the week in a time zone.

    Attributes:
        spans: Days and times, such as `Mon-Fri 08:00-18:00` or `Sat,Sun 22:00-06:00`.
        timezone: The time zone.
    """

    spans: tuple[str, ...]
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        """Reject other texts by a `ValueError`."""
        if not self.minutes.any():
            raise ValueError("there is no span of hours")
        try:
            pl.Series([datetime(2026, 1, 1, tzinfo=UTC)]).dt.convert_time_zone(
                ZoneInfo(self.timezone).key
            )
        except (KeyError, ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"there is no time zone {quote_backtick(self.timezone)}") from error

    @cached_property
    def minutes(self) -> Mask:
        """Whether each minute of the week belongs to them; the first is Monday 00:00, (10080,)."""
        week = np.zeros(len(DAYS) * MINUTES_PER_DAY, dtype=np.bool_)
        for span in self.spans:
            days, start, end = parse_span(span)
            for day in days:
                minutes = day * MINUTES_PER_DAY + np.arange(start, end)
                week[minutes % len(week)] = True
        return week

    def contains(self, times: pl.Series) -> Mask:
        """Return which times are within the hours, (rows,)."""
        local = times.dt.convert_time_zone(self.timezone)
        day, clock = local.dt.weekday().cast(pl.Int64) - 1, local.dt.hour().cast(pl.Int64)
        minute = clock * MINUTES_PER_HOUR + local.dt.minute()
        return np.asarray(self.minutes[(day * MINUTES_PER_DAY + minute).to_numpy()])

    @property
    def label(self) -> str:
        """The hours on one line."""
        return f"at {', '.join(self.spans)} {self.timezone}"


def parse_span(span: str) -> tuple[list[int], int, int]:
    """Return the days of a span, and its first minute and end in the day.

    An end before the start is on the next day.

    Raises:
        ValueError: It is not a span.

    >>> parse_span("Sat-Mon 22:00-06:00")
    ([5, 6, 0], 1320, 1800)
    """
    found = _SPAN.fullmatch(span.strip())
    if found is None:
        raise ValueError(f"`{display_value(span)}` is not days and hours")
    start, end = (
        int(hour) * MINUTES_PER_HOUR + int(minute)
        for hour, minute in (found.group(2, 3), found.group(4, 5))
    )
    if max(start, end) > MINUTES_PER_DAY or max(found[3], found[5]) >= "60":
        raise ValueError(f"`{display_value(span)}` has no such time of day")
    days = [day for part in found[1].split(",") for day in _parse_days(part)]
    return days, start, end if end > start else end + MINUTES_PER_DAY


def _parse_days(part: str) -> list[int]:
    if part == "daily":
        return list(range(len(DAYS)))
    first, _, last = part.partition("-")
    start, end = DAYS.index(first), DAYS.index(last or first)
    return [day % len(DAYS) for day in range(start, end + 1 if end >= start else end + 8)]


# Suppressions.


class Suppression(msgspec.Struct, frozen=True, dict=True):
    """A rule that suppresses events.

    Attributes:
        where: Values by column. An event matches if it has one of the values in every column.
            `MISSING` matches an event without a value.
        users: The users it applies to.
        until: Its end. Events from then on are not suppressed.
        reason: Why people wrote it.
        networks: Networks by column.
        families: Families of agents by column.
        hours: Hours in which events are suppressed; None for all.
        roles: Values by column. The rule applies to events with one of them, too.
        mutes: Whether all events of the users are suppressed.
    """

    where: Mapping[str, tuple[str, ...]]
    users: tuple[str, ...]
    until: datetime
    reason: str
    networks: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    hours: WeeklyHours | None = None
    roles: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    mutes: bool = False

    @property
    def by_kind(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Values by column, by the word of the condition."""
        return {"where": self.where, "network": self.networks, "family": self.families}

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions on values."""
        return tuple(
            CONDITION_KINDS[kind](column, values)
            for kind, columns in self.by_kind.items()
            for column, values in columns.items()
        )

    @property
    def columns(self) -> frozenset[str]:
        """All columns that the rule uses."""
        return frozenset([*(condition.column for condition in self.conditions), *self.roles])

    @property
    def label(self) -> str:
        """The rule on one line, without control characters.

        >>> end = datetime(2026, 3, 1, tzinfo=UTC)
        >>> print(Suppression({"eventName": ("DeleteTrail",)}, ("ann",), end, "asked").label)
        eventName = `DeleteTrail`, of ann, until 2026-03-01
        """
        parts = [condition.label for condition in self.conditions]
        what = " and ".join(parts) or ("everything" if self.mutes else "")
        when = [] if self.hours is None else [self.hours.label]
        first = ", ".join([what] * bool(what) + when)
        return f"{first}, of {self._label_scope()}, until {format_end(self.until)}"

    def _label_scope(self) -> str:
        names = [*self.users, *(name for names in self.roles.values() for name in names)]
        others = len(names) - 1
        return f"{display_value(names[0])}{f' and {others:,} more' if others else ''}"

    @property
    def all_spellings(self) -> frozenset[str]:
        """The users, and their addresses in lower case, as events have them.

        >>> end = datetime(2026, 3, 1, tzinfo=UTC)
        >>> rule = Suppression({"eventName": ("Ls",)}, ("Ann@Example.org", "Bob"), end, "asked")
        >>> sorted(rule.all_spellings)
        ['Ann@Example.org', 'Bob', 'ann@example.org']
        """
        return frozenset([*self.users, *(name.lower() for name in self.users if "@" in name)])

    def find_scope(self, user: str | None, frame: pl.DataFrame) -> Mask:
        """Return to which events of a user the rule applies, (rows,)."""
        if user in self.all_spellings:
            return np.ones(frame.height, dtype=np.bool_)
        applies = np.zeros(frame.height, dtype=np.bool_)
        for column, names in self.roles.items():
            applies |= ValueCondition(column, names).matches(frame)
        return applies

    def matches(self, frame: pl.DataFrame) -> Mask:
        """Return which events meet the conditions, for any user and date. Shape (rows,)."""
        masks = [condition.matches(frame) for condition in self.conditions]
        if self.hours is not None:
            masks.append(self.hours.contains(frame[TIME]))
        return reduce(and_, masks, np.ones(frame.height, dtype=np.bool_))

    def matches_values(self, values: Mapping[str, Sequence[str]]) -> bool | None:
        """Return whether an incident with these values would be suppressed.

        Args:
            values: Values by column, of some of the columns.

        Returns:
            None if what is given matches, but not all that the rule depends on is given.
        """
        given = [each for each in self.conditions if each.column in values]
        if not all(any(map(each.accepts, values[each.column])) for each in given):
            return False
        if self.conditions and not given:
            return False
        return True if len(given) == len(self.conditions) and self.hours is None else None


class SuppressionCounts(msgspec.Struct, frozen=True):
    """Events that suppressions match, by the label of the suppression.

    Attributes:
        suppressed: Events that it suppresses.
        expired: Events that it matches after its end. They are not suppressed.
        followers: Events that no suppression matches, but that are not unusual enough without the
            suppressed events before them.
    """

    suppressed: Mapping[str, int]
    expired: Mapping[str, int]
    followers: int = 0


class Suppressions(msgspec.Struct, frozen=True, dict=True):
    """Several suppressions.

    Attributes:
        rules: The suppressions. An event that several match counts for the first.
    """

    rules: tuple[Suppression, ...] = ()

    @classmethod
    def read(cls, *paths: str, option: str = "--suppressions") -> Self:
        """Read files of suppressions.

        Args:
            paths: The files.
            option: What gave the files, for messages.

        Raises:
            UsageError: A file cannot be read, or is not a file of suppressions.
        """
        return cls(tuple(rule for path in paths for rule in _read_rules(path, option)))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label of each rule. Equal labels get a number, so that each identifies its rule."""
        labels, seen = [rule.label for rule in self.rules], Counter[str]()
        for place, label in enumerate(labels):
            seen[label] += 1
            labels[place] = label if seen[label] == 1 else f"{label} (number {seen[label]})"
        return tuple(labels)

    def concern(self, user: str | None) -> bool:
        """Return whether a rule may apply to events of a user."""
        return any(rule.roles or user in rule.all_spellings for rule in self.rules)

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
            scope = rule.find_scope(user, frame)
            if scope.any():
                matching, late = rule.matches(frame), (frame[TIME] >= rule.until).to_numpy()
                matching &= scope
                suppressed_by[(suppressed_by == NO_MATCH) & matching & ~late] = place
                expired_rule[(expired_rule == NO_MATCH) & matching & late] = place
        expired_rule[suppressed_by != NO_MATCH] = NO_MATCH
        return suppressed_by, expired_rule

    def find_labels(self, user: str | None, frame: pl.DataFrame) -> list[str | None]:
        """Return the label of the rule that suppresses each event; None if none does."""
        places, _ = self.match(user, frame)
        return [None if place == NO_MATCH else self.labels[place] for place in places.tolist()]

    def count(
        self,
        suppressed_by: NDArray[np.intp],
        expired_rule: NDArray[np.intp],
        followers: int = 0,
    ) -> tuple[SuppressionCounts, ...]:
        """Count the results of `match` for some events. Empty if no rule matches."""
        suppressed = self._count_by_label(suppressed_by)
        expired = self._count_by_label(expired_rule)
        if not (suppressed or expired or followers):
            return ()
        return (SuppressionCounts(suppressed, expired, followers),)

    def _count_by_label(self, places: NDArray[np.intp]) -> dict[str, int]:
        distinct, counts = np.unique(places[places != NO_MATCH], return_counts=True)
        pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
        return {self.labels[place]: count for place, count in pairs}


def format_end(end: datetime) -> str:
    """Return an end as text: the date only, if it is at midnight."""
    return end.date().isoformat() if end.time() == time.min else end.isoformat()


# The file.

_Values = dict[str, str | list[str]]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A suppression in its file."""

    until: Any
    reason: str
    users: list[str] = []
    where: _Values = {}
    network: _Values = {}
    family: _Values = {}
    role: _Values = {}
    hours: str | list[str] = []
    timezone: str = "UTC"
    mutes: bool = msgspec.field(name="mute", default=False)


class _SuppressionFile(msgspec.Struct, forbid_unknown_fields=True):
    """A file of suppressions. Files of version 1 have conditions on values only."""

    format: Literal["morpheus-suppressions"]
    version: Literal[1, 2]
    suppression: list[_Entry] = []


def _read_rules(path: str, option: str) -> Iterator[Suppression]:
    try:
        entries = msgspec.convert(
            tomllib.loads(Path(path).read_text(encoding="utf-8")), _SuppressionFile
        )
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{option}: `{path}` cannot be read: {reason}.{suggest_path(path)} Give a file "
            "that `morpheus tools suppress` wrote."
        ) from error
    for number, entry in enumerate(entries.suppression, start=1):
        yield _parse_entry(entry, f"{option}: `{path}`: suppression {number}")


def _parse_entry(entry: _Entry, location: str) -> Suppression:
    where, networks, families, roles = (
        _parse_values(values, name, location)
        for name, values in (
            ("where", entry.where),
            ("network", entry.network),
            ("family", entry.family),
            ("role", entry.role),
        )
    )
    hours = _parse_hours(entry, location)
    conditions = [*where.values(), *networks.values(), *families.values()]
    has_value = any(value for values in conditions for value in values)
    if entry.mutes and (conditions or hours):
        raise UsageError(
            f"{location} has `mute` and conditions. Remove `mute` to suppress only what meets the "
            "conditions, or remove the conditions to suppress everything of the users."
        )
    if not (has_value or hours or entry.mutes):
        raise UsageError(
            f"{location} has no value, so it would suppress almost all events. Add one, as in "
            '`where.eventName = "GetObject"`; or add `mute = true` to suppress all events.'
        )
    if not (entry.users or roles) or not all([*entry.users, *map(all, roles.values())]):
        raise UsageError(f'{location} has no user. Add the users it applies to: `users = ["ann"]`.')
    if not entry.reason.strip():
        raise UsageError(f'{location} has no reason. Add one: `reason = "..."`.')
    until = _parse_end(entry.until, location)
    scope = (tuple(entry.users), until, entry.reason)
    return Suppression(where, *scope, networks, families, hours, roles, entry.mutes)


def _parse_values(values: _Values, name: str, location: str) -> dict[str, tuple[str, ...]]:
    parsed = {
        column: (found,) if isinstance(found, str) else tuple(found)
        for column, found in values.items()
    }
    if not all(parsed.values()):
        raise UsageError(
            f"{location} has an empty list in `{name}`. Add a value to it, or remove it."
        )
    if name == "network":
        for text in (text for texts in parsed.values() for text in texts):
            _check_network(text, location)
    return parsed


def _check_network(text: str, location: str) -> None:
    try:
        parse_network(text)
    except ValueError as error:
        raise UsageError(
            f"{location}: {quote_backtick(text)} is not a network: {error}. Write it as in "
            '`network.sourceIPAddress = "203.0.113.0/24"`.'
        ) from error


def _parse_hours(entry: _Entry, location: str) -> WeeklyHours | None:
    spans = (entry.hours,) if isinstance(entry.hours, str) else tuple(entry.hours)
    if not spans:
        return None
    try:
        return WeeklyHours(spans, entry.timezone)
    except ValueError as error:
        raise UsageError(
            f"{location}: `hours` cannot be read: {error}. Write them as in "
            '`hours = "Mon-Fri 08:00-18:00"`, with `timezone = "Europe/Berlin"`.'
        ) from error


def _parse_end(until: object, location: str) -> datetime:
    if isinstance(until, datetime):
        return until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
    if isinstance(until, date):
        return datetime.combine(until, time.min, tzinfo=UTC)
    raise UsageError(
        f"{location}: `until` is {until!r}, which is not a date. Write it without quotes: "
        "`until = 2026-03-01`."
    )
