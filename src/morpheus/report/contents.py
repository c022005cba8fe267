"""All that a page says, as one value: findings made ready to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import RISK
from morpheus.report.account import Account, Lack, lacks
from morpheus.report.candidates import LEVEL
from morpheus.report.findings import PLAIN, Findings, Seen
from morpheus.report.gaps import gaps
from morpheus.report.incidents import Incident, brief, grouped
from morpheus.report.person import Person
from morpheus.report.yardstick import Yardstick, severity
from morpheus.rhythm.cells import Cells

COLUMNS = 400
"""Cells of a lane, at most."""
PEOPLE = 2000
"""Users with a lane of their own, at most: the highest."""
INCIDENTS = 2500
"""Incidents shown, at most."""
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
    def of(cls, cells: Cells, step: int, since: float, until: float) -> Self:
        """Look twelve hours back, and twelve ahead."""
        first, last = int(since - AROUND) // step, int(until + AROUND) // step
        last = min(last, first + MOST_AROUND - 1)
        near = (cells.at >= first) & (cells.at <= last)
        counts, flagged = (np.zeros(last - first + 1, dtype=int) for _ in range(2))
        counts[cells.at[near] - first] = cells.events[near]
        flagged[cells.at[near] - first] = cells.flagged[near]
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
        measured: Levels are risks in units of the highest of each user's held-out events.
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
    measured: bool
    hidden: int
    lacks: list[Lack]
    gaps: list[tuple[int, int]]
    axis: Axis | None
    people: list[Person]
    others: int
    incidents: list[Told]


class Admission(msgspec.Struct, frozen=True):
    """Which events are alerts, where `filter` has not decided it.

    Attributes:
        alerts_per_day: Incidents a day, at most.
        rule: What is said of it; by default what is done.
    """

    alerts_per_day: float = 5.0
    rule: str = ""


def contents(
    findings: Findings,
    account: Account,
    admission: Admission,
    *,
    cards: str,
    about: tuple[str, str],
) -> Contents:
    """Make findings ready to be looked at.

    Args:
        findings: All of a run.
        account: What became of its events.
        admission: Which events are alerts.
        cards: What to type for the cards of fingerprints.
        about: Word of the source, and the column of the user.
    """
    lanes = findings.lanes
    lanes.settle()
    told, rule = _admitted(findings, admission)
    measures = {user: findings.yardstick(user) for user in findings.users}
    measured = findings.ranking == RISK and PLAIN not in measures.values()
    hidden = sum(one.count for one in told[INCIDENTS:])
    hidden += findings.candidates.left_out if findings.filtered else 0
    told = told[:INCIDENTS]
    if told and PLAIN in measures.values():
        common = Yardstick(0.0, max(min(one.level for one in told), 1e-9))
        told = [_measured(one, common) if measures[one.user] is PLAIN else one for one in told]
        measures = {user: common if one is PLAIN else one for user, one in measures.items()}
    axis, wide = _axis(findings)
    people = _people(findings, measures, wide)
    rhythms = {one.name: one.rhythm.usual for one in people if one.rhythm and one.rhythm.learnt}
    none = Cells.none()
    return Contents(
        "morpheus-report",
        1,
        *about,
        account,
        rule,
        findings.ranking,
        measured,
        hidden,
        list(lacks(findings, cards)),
        gaps(lanes, rhythms),
        axis,
        people[:PEOPLE],
        max(len(people) - PEOPLE, 0),
        [
            Told(one, Around.of(lanes.users.get(one.user, none), lanes.step, one.since, one.until))
            for one in told
        ],
    )


def _admitted(findings: Findings, admission: Admission) -> tuple[list[Incident], str]:
    """The incidents to show, the highest first, and what made them so."""
    events, ranking = findings.candidates.events(), findings.ranking or ""
    plain = all(findings.yardstick(user) is PLAIN for user in findings.users)
    if not findings.filtered and not plain:
        events = events.filter(pl.col(LEVEL) >= 1)
    told = [Incident.of(group, ranking) for group in grouped(events)]
    told.sort(key=lambda one: (-one.level, one.since, one.user or ""))
    if findings.filtered:
        return told, admission.rule or "Alerts are the events that filter let pass."
    days = _days(findings)
    most = max(round(admission.alerts_per_day * days), 1)
    limit = "" if plain else " that are at least as high as any held-out event (level 1)"
    rule = (
        f"No filter in the chain: alerts are the {admission.alerts_per_day:g} highest incidents a "
        f"day, at most {most:,} in {days:,} days,{limit} by {ranking or 'no score'}."
    )
    return told[:most], admission.rule or rule


def _days(findings: Findings) -> int:
    period, step = findings.lanes.period, findings.lanes.step
    if period is None:
        return 1
    return -(-(period[1] * step) // 86400) - period[0] * step // 86400


def _measured(one: Incident, yardstick: Yardstick) -> Incident:
    """The same incident by another measure."""
    level = brief(one.level / yardstick.reach)
    events = [
        msgspec.structs.replace(event, level=brief(event.level / yardstick.reach))
        for event in one.events
    ]
    return msgspec.structs.replace(one, level=level, severity=severity(level), events=events)


def _axis(findings: Findings) -> tuple[Axis | None, tuple[int, int]]:
    """The lanes' axis, and how cells of the findings become cells of the page."""
    period, step = findings.lanes.period, findings.lanes.step
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
    lanes, none = findings.lanes, Cells.none()
    everybody: Sequence[tuple[str | None, Seen]] = list(findings.users.items())
    people = [
        Person.of(user, seen, lanes.users.get(user, none), measures[user], lanes.step, wide)
        for user, seen in everybody
    ]
    return sorted(people, key=lambda one: (-one.worst, one.name or ""))
