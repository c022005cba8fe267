"""Suppressions proposed from verdicts: what `morpheus tools suppress` does, without the command.

`Proposals.from_files` reads the verdicts that people gave in the report. `preview_rule` finds what
a suppression would have hidden of past alerts. `render_suppressions` writes the file.
"""

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
"""Verdicts that lead to a suppression. The other verdicts prevent one."""
VERDICTS_FORMAT = "morpheus-verdicts"
END_TOLERANCE = timedelta(seconds=1)
"""Maximum loss when the end of an incident was rounded to text."""


AwareDatetime = Annotated[datetime, msgspec.Meta(tz=True)]


class ColumnValue(msgspec.Struct, frozen=True):
    """A column that made an incident unusual, and its value."""

    column: str
    value: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """A person's verdict on an incident.

    Attributes:
        incident: Id of the incident.
        user: Its user. None for events without a user, for which there can be no suppression.
        verdict: The verdict.
        note: The person's note.
        start: Time of the first event.
        end: Time of the last event.
        events: Number of events.
        columns: Values that made it unusual.
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
        """Distinct values by column, sorted."""
        by_column: dict[str, set[str]] = {}
        for cell in self.columns:
            by_column.setdefault(cell.column, set()).add(cell.value or MISSING)
        return {column: tuple(sorted(values)) for column, values in by_column.items()}

    def covers(self, events: pl.DataFrame) -> pl.Series:
        """Return which events belong to the incident, by user and time. Shape (rows,)."""
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
    """A proposed suppression.

    Attributes:
        rule: The suppression.
        verdicts: The verdicts that it comes from.
        conflicts: Why it must be rejected; empty if it need not be.
        warnings: What a person should check before using it.
    """

    rule: Suppression
    verdicts: tuple[Verdict, ...]
    conflicts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposals:
    """The suppressions proposed from files of verdicts.

    Attributes:
        proposals: One for each combination of values judged harmless, in the order of the verdicts.
        dangerous: Verdicts `suspicious` and `malicious`.
        unactionable: Harmless incidents without a user, or without a value to match.
        exported_at: When the latest file was exported.
    """

    proposals: tuple[Proposal, ...]
    dangerous: tuple[Verdict, ...]
    unactionable: tuple[Verdict, ...]
    exported_at: datetime

    @classmethod
    def from_files(cls, paths: Sequence[str], days: int) -> Proposals:
        """Read verdicts, and propose suppressions.

        Args:
            paths: The files.
            days: Days from the export to the end of the suppressions.

        Raises:
            UsageError: A file cannot be read, or is not a file of verdicts.
        """
        files = [_read_verdicts(path) for path in paths]
        verdicts = [verdict for file in files for verdict in file.verdicts]
        exported = max(file.made for file in files).astimezone(UTC)
        until = datetime.combine(exported.date() + timedelta(days=days), time.min, tzinfo=UTC)
        dangerous = tuple(x for x in verdicts if x.verdict not in BENIGN)
        benign = [x for x in verdicts if x.verdict in BENIGN]
        actionable = [x for x in benign if x.user and any(map(any, x.values.values()))]
        proposals = (_check_conflicts(x, dangerous) for x in _merge_verdicts(actionable, until))
        unactionable = tuple(x for x in benign if x not in actionable)
        return cls(tuple(proposals), dangerous, unactionable, exported)

    def with_objections(
        self, objections: Sequence[tuple[Sequence[str], Sequence[str]]]
    ) -> Proposals:
        """Add conflicts and warnings to the proposals, a pair for each proposal."""
        proposals = tuple(
            replace(
                proposal,
                conflicts=tuple(dict.fromkeys([*proposal.conflicts, *conflicts])),
                warnings=(*proposal.warnings, *warnings),
            )
            for proposal, (conflicts, warnings) in zip(self.proposals, objections, strict=True)
        )
        return replace(self, proposals=proposals)


def _merge_verdicts(verdicts: Iterable[Verdict], until: datetime) -> Iterator[Proposal]:
    """Yield one proposal for all users with the same values."""
    groups: dict[frozenset[tuple[str, tuple[str, ...]]], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(frozenset(verdict.values.items()), []).append(verdict)
    for group in groups.values():
        users = dict.fromkeys(verdict.user for verdict in group if verdict.user)
        notes = ((verdict.verdict, verdict.note.strip()) for verdict in group)
        reasons = dict.fromkeys(f"{judged}: {note}" if note else judged for judged, note in notes)
        rule = Suppression(group[0].values, tuple(users), until, "; ".join(reasons))
        yield Proposal(rule, tuple(group))


def _check_conflicts(proposal: Proposal, dangerous: Sequence[Verdict]) -> Proposal:
    """Add the dangerous incidents that the proposal would hide, or may hide."""
    conflicts, warnings = [], []
    for verdict in dangerous:
        applies = verdict.user in proposal.rule.all_spellings
        matching = applies and proposal.rule.matches_values(verdict.values)
        incident = f"incident {verdict.incident}, judged {verdict.verdict}"
        if matching:
            conflicts.append(f"it would hide {incident}")
        if matching is None:
            warnings.append(f"it may hide {incident}")
    return replace(proposal, conflicts=tuple(conflicts), warnings=tuple(warnings))


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
"""Minimum number of values, all different, for a column to count as an id."""


@dataclass(frozen=True)
class SuppressionPreview:
    """The past alerts that a suppression would have suppressed.

    Attributes:
        events: The events, with the columns of `past_alerts` in `preview_rule`.
        num_benign: How many of them were judged harmless.
        dangerous: Verdicts `suspicious` and `malicious` with events among them.
        id_columns: Columns of the suppression in which no two past alerts have the same value.
    """

    events: pl.DataFrame
    num_benign: int
    dangerous: tuple[Verdict, ...]
    id_columns: tuple[str, ...] = ()

    @property
    def num_unjudged(self) -> int:
        """Number of events that were not judged harmless."""
        return self.events.height - self.num_benign


def preview_rule(
    rule: Suppression,
    past_alerts: pl.DataFrame,
    benign: Sequence[Verdict] = (),
    dangerous: Sequence[Verdict] = (),
) -> SuppressionPreview:
    """Return what a suppression would have suppressed of past alerts.

    Args:
        rule: The suppression.
        past_alerts: Events of past alerts: columns as text, `POPULATION_USER`, and `TIME` as a
            datetime.
        benign: The verdicts that the suppression comes from.
        dangerous: Verdicts that prevent it.
    """
    in_scope = past_alerts.filter(
        pl.col(POPULATION_USER).is_in(list(rule.all_spellings)) & (pl.col(TIME) < rule.until)
    )
    events = in_scope.filter(pl.Series(rule.matches(in_scope), dtype=pl.Boolean))
    covered = [verdict.covers(events) for verdict in benign]
    num_benign = events.filter(pl.any_horizontal(*covered)).height if covered else 0
    hidden = tuple(verdict for verdict in dangerous if verdict.covers(events).any())
    ids = tuple(column for column in rule.where if _is_id_column(column, past_alerts))
    return SuppressionPreview(events, num_benign, hidden, ids)


def _is_id_column(column: str, past_alerts: pl.DataFrame) -> bool:
    values = past_alerts.get_column(column, default=pl.Series([], dtype=pl.String)).drop_nulls()
    return len(values) >= MIN_UNIQUE_FOR_ID and values.is_unique().all()


FILE_HEADER = """\
# Suppressions for `filter --suppressions`.
# Created by `morpheus tools suppress` from {verdicts}, exported {made}.
#
# Review each before you use it. An event is suppressed if its user is one of `users`, its time is
# before `until` (UTC, the day itself excluded), and it matches every `where`. "" matches no value.
# If you remove a line of `where`, the suppression hides more; if you add one, it hides less. The
# summary of each run counts the events by suppression.
format = "{format}"
version = 1
"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_NOTE_LENGTH = 120
"""Maximum number of characters of a note or a name in a comment."""


def render_suppressions(proposals: Proposals, files: Sequence[str]) -> str:
    """Return the text of the file.

    Args:
        proposals: The proposals. Those with conflicts become comments.
        files: The files that the verdicts were read from.
    """
    verdicts = ", ".join(quote_backtick(file) for file in files)
    header = FILE_HEADER.format(
        verdicts=verdicts, made=_format_time(proposals.exported_at), format=SUPPRESSIONS_FORMAT
    )
    parts = ["\n".join(_render_lines(proposal)) + "\n" for proposal in proposals.proposals]
    unactionable = "".join(
        f"# No suppression: {_describe_verdict(verdict)}; it has no user, or no value.\n"
        for verdict in proposals.unactionable
    )
    return "\n".join([header, *parts, *([unactionable] if unactionable else [])])


def toml_string(value: str) -> str:
    r"""Return a basic string of TOML. Characters that are not printable become escapes.

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
    for verdict in proposal.verdicts:
        yield f"# {_describe_verdict(verdict)}"
    for warning in proposal.warnings:
        yield f"# Check: {escape_control(warning)}"
    for conflict in proposal.conflicts:
        yield f"# Rejected: {escape_control(conflict)}"
    prefix = "# " if proposal.conflicts else ""
    yield f"{prefix}[[suppression]]"
    for column, values in rule.where.items():
        key = column if _BARE_KEY.fullmatch(column) else toml_string(column)
        value = toml_string(values[0]) if len(values) == 1 else _toml_list(values)
        yield f"{prefix}where.{key} = {value}"
    yield f"{prefix}users = {_toml_list(rule.users)}"
    yield f"{prefix}until = {format_end(rule.until)}"
    yield f"{prefix}reason = {toml_string(rule.reason)}"


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
