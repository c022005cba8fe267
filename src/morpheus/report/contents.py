"""All that a page says, as one value: findings made ready to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec
import numpy as np

from morpheus.report.account import Account, Lack, lacks
from morpheus.report.admission import admitted
from morpheus.report.findings import Findings, Seen
from morpheus.report.gaps import gaps
from morpheus.report.incidents import Incident
from morpheus.report.person import Person
from morpheus.report.yardstick import Yardstick
from morpheus.rhythm.cells import TimeHistogram

COLUMNS = 400
"""Cells of a lane, at most."""
PEOPLE = 2000
"""Users with a lane of their own, at most: the highest."""
AROUND, MOST_AROUND = 12 * 3600, 96
"""Seconds shown on either side of an incident, and cells at most."""
ROUND = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
"""Hours that cells are wide."""


class Around(msgspec.Struct, frozen=True):
    """All of a user's events around an incident.

    Attributes:
        start: Beginning of the first cell, in seconds since 1970.
        step: Seconds of a cell.
        n: Events in each.
        f: Those that break the rhythm.
    """

    start: int
    step: int
    n: list[int]
    f: list[int]

    @classmethod
    def of(cls, cells: TimeHistogram, step: int, since: float, until: float) -> Self:
        """Look twelve hours back, and twelve ahead."""
        first, last = int(since - AROUND) // step, int(until + AROUND) // step
        last = min(last, first + MOST_AROUND - 1)
        near = (cells.buckets >= first) & (cells.buckets <= last)
        counts, flagged = (np.zeros(last - first + 1, dtype=int) for _ in range(2))
        counts[cells.buckets[near] - first] = cells.events[near]
        flagged[cells.buckets[near] - first] = cells.flagged[near]
        return cls(first * step, step, counts.tolist(), flagged.tolist())


class Axis(msgspec.Struct, frozen=True):
    """The lanes' axis: beginning in seconds since 1970, seconds of a cell, and how many cells."""

    start: int
    step: int
    cells: int


class Told(msgspec.Struct, frozen=True):
    """An incident, and what else the user did around it."""

    incident: Incident
    around: Around


class Contents(msgspec.Struct, frozen=True):
    """A page's data.

    Attributes:
        format: Says that it is this.
        version: Of the format.
        source: Word of the source that read the logs; empty if unknown.
        user_column: Column that says whose event it is.
        account: What became of all events.
        rule: What made an alert of an event, in a sentence.
        ranking: The score that levels are made of.
        reach: The risk of level 1, if the median user's held-out days say so.
        hidden: Alerts that there was no room for.
        lacks: What is not shown, and what to type.
        gaps: Stretches of time from which events are missing.
        axis: That of the lanes; None without events.
        people: Users, the highest first.
        others: Users for whom there was no room.
        incidents: Incidents, the highest first.
    """

    format: str
    version: int
    source: str
    user_column: str
    account: Account
    rule: str
    ranking: str | None
    reach: float | None
    hidden: int
    lacks: list[Lack]
    gaps: list[tuple[int, int]]
    axis: Axis | None
    people: list[Person]
    others: int
    incidents: list[Told]


def contents(
    findings: Findings,
    account: Account,
    alerts_per_day: float,
    *,
    cards: str,
    about: tuple[str, str],
) -> Contents:
    """Make findings ready to be looked at.

    Args:
        findings: All of a run.
        account: What became of its events.
        alerts_per_day: Incidents shown, at most, where `filter` has not chosen them.
        cards: What to type for the cards of fingerprints.
        about: Word of the source, and the column of the user.
    """
    lanes = findings.lanes
    lanes.compact()
    found = admitted(findings, alerts_per_day)
    measures = {user: found.yardstick(findings.yardstick(user)) for user in findings.users}
    axis, wide = _axis(findings)
    people = _people(findings, measures, wide)
    rhythms = {one.name: one.rhythm.usual for one in people if one.rhythm and one.rhythm.learnt}
    none = TimeHistogram.empty()
    return Contents(
        "morpheus-report",
        1,
        *about,
        account,
        found.rule,
        findings.ranking,
        found.reach,
        found.hidden,
        list(lacks(findings, cards)),
        gaps(lanes, rhythms),
        axis,
        people[:PEOPLE],
        max(len(people) - PEOPLE, 0),
        [
            Told(one, Around.of(lanes.users.get(one.user, none), lanes.bucket_seconds, one.since, one.until))
            for one in found.incidents
        ],
    )


def _axis(findings: Findings) -> tuple[Axis | None, tuple[int, int]]:
    """The lanes' axis, and how cells of the findings become cells of the page."""
    period, step = findings.lanes.bucket_range, findings.lanes.bucket_seconds
    if period is None:
        return None, (1, 0)
    fits = (each for each in ROUND if (period[1] - period[0]) / each <= COLUMNS)
    factor = next(fits, -(-(period[1] - period[0]) // COLUMNS))
    first, last = period[0] // factor, (period[1] - 1) // factor
    return Axis(first * factor * step, factor * step, last - first + 1), (factor, first)


def _people(
    findings: Findings, measures: dict[str | None, Yardstick], wide: tuple[int, int]
) -> list[Person]:
    """All users, the highest first."""
    lanes, none = findings.lanes, TimeHistogram.empty()
    everybody: Sequence[tuple[str | None, Seen]] = list(findings.users.items())
    people = [
        Person.of(user, seen, lanes.users.get(user, none), measures[user], lanes.bucket_seconds, wide)
        for user, seen in everybody
    ]
    return sorted(people, key=lambda one: (-one.worst, one.name or ""))
