"""Verdicts that people gave in the report, and what they propose to hold back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.errors import UsageError
from morpheus.suppressions.rules import MISSING, SUPPRESSIONS_FORMAT, Suppression, format_end
from morpheus.text import display_value, escape_control, quote_backtick

BENIGN = ("expected", "benign-new")
"""Verdicts that propose a suppression; the others forbid it."""
VERDICTS_FORMAT = "morpheus-verdicts"
END_TOLERANCE = timedelta(seconds=1)
"""What the end of an incident may have lost when it was spelt."""


AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]


class ColumnValue(msgspec.Struct, frozen=True):
    """A column of an incident that made it strange, and its value there."""

    column: str
    value: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What a person thinks of an incident.

    Attributes:
        incident: Its id.
        user: Whose events they were; None for nobody's, which nothing can be proposed for.
        verdict: What it was.
        note: In the person's words.
        start: Time of its first event.
        end: Time of its last event.
        events: How many there were.
        columns: What made them strange.
    """

    incident: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    user: str | None
    verdict: Literal["expected", "benign-new", "suspicious", "malicious"]
    start: AwareDatetime
    end: AwareDatetime
    events: int
    columns: tuple[ColumnValue, ...]
    note: str = ""

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Values by column, each once, in order."""
        found: dict[str, set[str]] = {}
        for cell in self.columns:
            found.setdefault(cell.column, set()).add(cell.value or MISSING)
        return {column: tuple(sorted(values)) for column, values in found.items()}

    def covers(self, events: pl.DataFrame) -> pl.Series:
        """Which events are the incident's, by `POPULATION_USER` and `TIME`, (rows,)."""
        start, end = self.start.astimezone(UTC), self.end.astimezone(UTC) + END_TOLERANCE
        return events[TIME].is_between(start, end) & (events[POPULATION_USER] == self.user)


class _VerdictFile(msgspec.Struct, frozen=True):
    """A file of verdicts."""

    format: Literal["morpheus-verdicts"]
    version: Literal[1]
    made: AwareDatetime
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Proposal:
    """A suppression that somebody may want.

    Attributes:
        rule: What would be held back.
        verdicts: Those that it comes from.
        conflicts: Why it must not be; nothing if it may.
        warnings: What a person should look at before it is used.
    """

    rule: Suppression
    verdicts: tuple[Verdict, ...]
    conflicts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposals:
    """What files of verdicts propose.

    Attributes:
        proposals: A proposal for each combination of values judged harmless, in the verdicts' order.
        dangerous: What was judged suspicious or malicious.
        unactionable: Harmless incidents that name no user, or no value, that one could go by.
        exported_at: When the latest file was made.
    """

    proposals: tuple[Proposal, ...]
    dangerous: tuple[Verdict, ...]
    unactionable: tuple[Verdict, ...]
    exported_at: datetime

    @classmethod
    def from_files(cls, paths: Sequence[str], days: int) -> Proposals:
        """Make proposals, which end so many days after the verdicts were exported.

        Raises:
            UsageError: A file is not there, or holds something else.
        """
        files = [_read_verdicts(path) for path in paths]
        verdicts = [one for file in files for one in file.verdicts]
        made = max(file.made for file in files).astimezone(UTC)
        until = datetime.combine(made.date() + timedelta(days=days), time.min, tzinfo=UTC)
        dangerous = tuple(one for one in verdicts if one.verdict not in BENIGN)
        harmless = [one for one in verdicts if one.verdict in BENIGN]
        spoken = [one for one in harmless if one.user and any(map(any, one.values.values()))]
        each = tuple(_check_conflicts(one, dangerous) for one in _merge_verdicts(spoken, until))
        return cls(each, dangerous, tuple(x for x in harmless if x not in spoken), made)

    def with_objections(
        self, objections: Sequence[tuple[Sequence[str], Sequence[str]]]
    ) -> Proposals:
        """Hold more against the proposals, and doubt more: each in its place."""
        each = tuple(
            replace(
                one,
                conflicts=tuple(dict.fromkeys([*one.conflicts, *against])),
                warnings=(*one.warnings, *doubts),
            )
            for one, (against, doubts) in zip(self.proposals, objections, strict=True)
        )
        return replace(self, proposals=each)


def _merge_verdicts(verdicts: Iterable[Verdict], until: datetime) -> Iterator[Proposal]:
    """One proposal for all users of whom the same was judged harmless."""
    alike: dict[frozenset[tuple[str, tuple[str, ...]]], list[Verdict]] = {}
    for one in verdicts:
        alike.setdefault(frozenset(one.values.items()), []).append(one)
    for some in alike.values():
        users = dict.fromkeys(one.user for one in some if one.user)
        reasons = dict.fromkeys(
            f"{one.verdict}: {one.note.strip()}" if one.note.strip() else one.verdict
            for one in some
        )
        rule = Suppression(some[0].values, tuple(users), until, "; ".join(reasons))
        yield Proposal(rule, tuple(some))


def _check_conflicts(proposal: Proposal, dangerous: Sequence[Verdict]) -> Proposal:
    """Hold against a proposal what was judged otherwise."""
    against, doubts = [], []
    for one in dangerous:
        fits = one.user in proposal.rule.users and proposal.rule.matches_values(one.values)
        if fits:
            against.append(f"it would hide incident {one.incident}, judged {one.verdict}")
        if fits is None:
            doubts.append(f"it may hide incident {one.incident}, judged {one.verdict}")
    return replace(proposal, conflicts=tuple(against), warnings=tuple(doubts))


def _read_verdicts(path: str) -> _VerdictFile:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=_VerdictFile)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"VERDICTS: `{path}` cannot be read: {reason}. Give a file that the report exported: "
            f'JSON with "format": "{VERDICTS_FORMAT}".'
        ) from error


MIN_UNIQUE_FOR_ID = 5
"""Values, none twice, that make a column one of ids."""


@dataclass(frozen=True)
class SuppressionPreview:
    """What a suppression would have held back of past events.

    Attributes:
        events: The events, as in `preview_rule`.
        num_benign: How many of them were judged harmless.
        dangerous: What was judged otherwise and has events among them.
        id_columns: Columns of the suppression in which no two past alerts have the same value.
    """

    events: pl.DataFrame
    num_benign: int
    dangerous: tuple[Verdict, ...]
    id_columns: tuple[str, ...] = ()

    @property
    def num_unjudged(self) -> int:
        """Events that nobody has judged harmless."""
        return self.events.height - self.num_benign


def preview_rule(
    rule: Suppression,
    past_alerts: pl.DataFrame,
    benign: Sequence[Verdict] = (),
    dangerous: Sequence[Verdict] = (),
) -> SuppressionPreview:
    """Look at what a suppression would have held back.

    Args:
        rule: The suppression.
        past_alerts: Events that have become alerts: columns as text, `POPULATION_USER`, and `TIME` as a datetime.
        benign: The verdicts that the suppression comes from.
        dangerous: Verdicts that forbid it.
    """
    theirs = past_alerts.filter(
        pl.col(POPULATION_USER).is_in(rule.users) & (pl.col(TIME) < rule.until)
    )
    events = theirs.filter(pl.Series(rule.matches(theirs), dtype=pl.Boolean))
    within = [one.covers(events) for one in benign]
    judged = events.filter(pl.any_horizontal(*within)).height if within else 0
    met = tuple(one for one in dangerous if one.covers(events).any())
    ids = tuple(column for column in rule.where if _is_id_column(column, past_alerts))
    return SuppressionPreview(events, judged, met, ids)


def _is_id_column(column: str, past_alerts: pl.DataFrame) -> bool:
    values = past_alerts.get_column(column, default=pl.Series([], dtype=pl.String)).drop_nulls()
    return len(values) >= MIN_UNIQUE_FOR_ID and values.is_unique().all()


FILE_HEADER = """\
# Suppressions: what `filter --suppressions` holds back, and until when.
# Made by `morpheus tools suppress` from {verdicts}, exported {made}.
#
# Read each before you use it. An event is held back if it is of one of `users`, lies before `until`
# (UTC, that day not included), and has a value of every `where`; "" stands for no value. A line of
# `where` taken out makes a suppression wider, one added makes it narrower. The summary of each run
# says how many events every suppression has held back.
format = "{format}"
version = 1
"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_NOTE_LENGTH = 120
"""Signs of a reason or a name that a comment shows."""


def render_suppressions(proposals: Proposals, files: Sequence[str]) -> str:
    """Write the file.

    Args:
        proposals: What is proposed; those that something speaks against become comments.
        files: What the verdicts were read from.
        notes: More to be said of a proposal, by its place.
    """
    verdicts = ", ".join(quote_backtick(file) for file in files)
    head = FILE_HEADER.format(
        verdicts=verdicts, made=_format_time(proposals.exported_at), format=SUPPRESSIONS_FORMAT
    )
    parts = ["\n".join(_render_lines(one)) + "\n" for one in proposals.proposals]
    silent = "".join(
        f"# No suppression: {_describe_verdict(one)}; it names no user, or no value.\n"
        for one in proposals.unactionable
    )
    return "\n".join([head, *parts, *([silent] if silent else [])])


def toml_string(value: str) -> str:
    r"""A basic string of TOML; what cannot be seen is an escape.

    >>> print(toml_string('say "hi"\n\u202e'))
    "say \"hi\"\u000a\u202e"
    """
    return '"' + "".join(map(_escape_char, value)) + '"'


def _escape_char(char: str) -> str:
    if char in {'"', "\\"}:
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def _render_lines(proposal: Proposal) -> Iterator[str]:
    rule = proposal.rule
    for one in proposal.verdicts:
        yield f"# {_describe_verdict(one)}"
    for doubt in proposal.warnings:
        yield f"# Look: {escape_control(doubt)}"
    for reason in proposal.conflicts:
        yield f"# Refused: {escape_control(reason)}"
    mark = "# " if proposal.conflicts else ""
    yield f"{mark}[[suppression]]"
    for column, values in rule.where.items():
        key = column if _BARE_KEY.fullmatch(column) else toml_string(column)
        yield f"{mark}where.{key} = {toml_string(values[0]) if len(values) == 1 else _toml_list(values)}"
    yield f"{mark}users = {_toml_list(rule.users)}"
    yield f"{mark}until = {format_end(rule.until)}"
    yield f"{mark}reason = {toml_string(rule.reason)}"


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(toml_string, values)) + "]"


def _describe_verdict(verdict: Verdict) -> str:
    count = f"{verdict.events:,} event{'s' if verdict.events != 1 else ''}"
    span = f"{_format_time(verdict.start)} to {_format_time(verdict.end)}"
    note = f": {display_value(verdict.note, _MAX_NOTE_LENGTH)}" if verdict.note else ""
    user = display_value(verdict.user or "no user", _MAX_NOTE_LENGTH)
    return f"Incident {verdict.incident}, {count} of {user}, {span}, {verdict.verdict}{note}"


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
