"""Verdicts that people gave in the report, and what they propose to hold back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.errors import UsageError
from morpheus.suppressions.rules import MISSING, Suppression

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

    def with_objections(self, objections: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Proposals:
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
