"""The strip on top of a page: what became of everything, and what the page lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.columns import RISK, TS_ANOMALY
from morpheus.models.calibration import (
    EXCEEDANCE_LEVELS,
    HOURS_PER_WEEK,
    ModelSummary,
    hour_of_week,
)
from morpheus.models.profile import SCOPE_OWN, ModelCard
from morpheus.report.aggregate import Findings, Rehearsed, Seen, Yardstick
from morpheus.report.incidents import Incident, admitted, brief
from morpheus.seasonality.histogram import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the events of a run, as far as whoever makes the page knows.

    Attributes:
        read: Events found.
        refused: Of these, those that could not be read.
        duplicates: Those delivered twice.
        scored: Events with a score.
        unscored: Events without one, by reason.
        training: Events that were learnt from.
        rungs: Users by whose history their fingerprint was learnt from.
        forecast: Alerts that were to be expected, and between which bounds.
        refusals: The first few reasons to refuse an event.
    """

    read: int = 0
    refused: int = 0
    duplicates: int = 0
    scored: int = 0
    unscored: dict[str, int] = {}
    training: int = 0
    rungs: dict[str, int] = {}
    forecast: tuple[float, float, float] | None = None
    refusals: list[str] = []


class Lack(msgspec.Struct, frozen=True):
    """Something that the page would show, had it been told.

    Attributes:
        what: What is not shown.
        add: What to type.
    """

    what: str
    add: str


def lacks(findings: Findings, cards: str) -> Iterator[Lack]:
    """Say what is missing.

    Args:
        findings: What there is.
        cards: How the cards of fingerprints come into the page.
    """
    there = findings.columns
    if findings.ranking != RISK:
        yield Lack(
            f"One ranking across users: levels go by {findings.ranking or 'no score'}",
            "add-scores --label ae_anomaly_score --label risk --label pvalue",
        )
    elif "pvalue" not in there:
        yield Lack("p-values", "add-scores --label risk --label pvalue")
    if "explanation" not in there:
        yield Lack(
            "Reasons, expected values, the smallest change, the nearest normal events",
            "explain (behind add-scores)",
        )
    if TS_ANOMALY not in there:
        yield Lack("Breaks in the rhythm", "timeseries --resolution=10m")
    if not any(seen.card and seen.card.portrait for seen in findings.users.values()):
        yield Lack("Fingerprints, and levels measured by held-out days", cards)


EXPECTED = 12.0
"""Events that would be usual in a stretch that is called a gap; at random it would hold none in one
case of 160,000."""


def gaps(
    lanes: UserHistograms, rhythms: Mapping[str | None, NDArray[np.float64]]
) -> list[tuple[int, int]]:
    """Find where nobody did anything, though many events would have been usual.

    Args:
        lanes: Everybody's events, settled.
        rhythms: Events that are usual in each hour of the week, of each user, (168,). Nothing is
            expected of them before their first event, or after their last.

    Returns:
        Beginning and end of each, in seconds since 1970.
    """
    if lanes.bucket_range is None:
        return []
    first, end = lanes.bucket_range
    silent = np.ones(end - first, dtype=np.bool_)
    starts, expected = np.arange(first, end) * lanes.bucket_seconds, np.zeros(end - first)
    # A wide cell is taken to be as lively throughout as in its first hour.
    hours = hour_of_week(starts.astype(np.float64))
    for user, cells in lanes.users.items():
        silent[cells.buckets - first] = False
        if user in rhythms:
            there = slice(int(cells.buckets[0]) - first, int(cells.buckets[-1]) - first)
            expected[there] += rhythms[user][hours[there]] * (
                lanes.bucket_seconds / SECONDS_PER_HOUR
            )
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    return [
        (int(starts[a]), int(starts[b - 1]) + lanes.bucket_seconds)
        for a, b in edges.reshape(-1, 2)
        if expected[a:b].sum() >= EXPECTED
    ]


UNSCORED = -1
"""Level, in hundredths, of a cell whose events have no score."""
TOP = 9999
OFTEN = 0.2
"""Share of events that bring a new value from which a column's new values say little."""
SHORT, FEW = 14, 100
"""Days of history, and held-out events, below which a fingerprint knows little."""
WEEK = 7 * 24 * 3600


class Lane(msgspec.Struct, frozen=True):
    """A user's cells, from the page's first cell on.

    Attributes:
        at: Which cells.
        n: Events in each.
        w: The highest level in each, in hundredths; UNSCORED without one.
        f: Cells that hold a break of the rhythm, by place in `at`.
    """

    at: list[int]
    n: list[int]
    w: list[int]
    f: list[int]

    @classmethod
    def of(cls, cells: TimeHistogram, first: int, yardstick: Yardstick) -> Self:
        """Draw a lane."""
        known = np.isfinite(cells.max_scores)
        levels = yardstick.levels(np.where(known, cells.max_scores, yardstick.usual))
        hundredths = np.minimum(np.rint(levels * 100), TOP).astype(int)
        return cls(
            (cells.buckets - first).tolist(),
            cells.events.tolist(),
            np.where(known, hundredths, UNSCORED).tolist(),
            np.flatnonzero(cells.flagged).tolist(),
        )


class Rhythm(msgspec.Struct, frozen=True):
    """Events in each hour of the week, Monday, midnight UTC first.

    Attributes:
        hours: Events, (168,).
        weeks: How many weeks they are of.
        learnt: They are of the history; else of this run.
    """

    hours: list[int]
    weeks: float
    learnt: bool

    @classmethod
    def of(cls, portrait: ModelSummary | None, cells: TimeHistogram, step: int) -> Self | None:
        """A user's usual week: that of their history, or else of this run."""
        if portrait is not None and any(portrait.hours):
            return cls(list(portrait.hours), portrait.weeks, learnt=True)
        if step != SECONDS_PER_HOUR or not len(cells.buckets):
            return None
        hours = hour_of_week(cells.buckets.astype(np.float64) * SECONDS_PER_HOUR)
        counts = np.bincount(hours, weights=cells.events, minlength=HOURS_PER_WEEK).astype(int)
        weeks = max(
            (int(cells.buckets[-1]) - int(cells.buckets[0])) * SECONDS_PER_HOUR / WEEK, 1 / 7
        )
        return cls(counts.tolist(), brief(weeks), learnt=False)

    @property
    def usual(self) -> NDArray[np.float64]:
        """Events that are usual in each hour, (168,)."""
        return np.array(self.hours) / self.weeks


class Calibration(msgspec.Struct, frozen=True):
    """What was stated of a user's risks, and what came true.

    Attributes:
        risks: The risk that each share of held-out events exceeds.
        stated: Those shares.
        realised: Shares of this run's events that exceed it.
        events: How many events of this run these are of.
        held_out: Events held out.
        days: Days that these span.
    """

    risks: list[float]
    stated: list[float]
    realised: list[float]
    events: int
    held_out: int
    days: int


class Profile(msgspec.Struct, frozen=True):
    """A fingerprint's card, for people.

    Attributes:
        events: Events of the user's own history.
        borrowed: Those of others that it was filled up with.
        rung: Whose history it was learnt from.
        distinct: Distinct rows.
        first: Beginning of the history.
        last: Its end.
        epochs: Epochs of training.
        curve: Loss on held-out events after each epoch of the trial.
        calibration: Stated and realised risks.
        weak: What it is weak at, in sentences.
    """

    events: int
    borrowed: int
    rung: str
    distinct: int
    first: str
    last: str
    epochs: int
    curve: list[float]
    calibration: Calibration | None
    weak: list[str]

    @classmethod
    def of(cls, card: ModelCard, seen: Seen) -> Self:
        """Tell of a card, and of what was seen of its user."""
        portrait = card.portrait
        return cls(
            card.events,
            card.borrowed,
            card.rung,
            card.distinct,
            card.first,
            card.last,
            card.epochs,
            [] if portrait is None else list(portrait.curve),
            None if portrait is None else _calibration(portrait, seen.tally),
            list(weak_spots(card, seen.rehearsed)),
        )


class Person(msgspec.Struct, frozen=True):
    """A user of a page.

    Attributes:
        name: Whoever the user column names; None for events of nobody.
        events: All their events, those left out included.
        worst: Their highest level.
        lane: Their events over time.
        rhythm: Their usual week.
        profile: Their fingerprint's card.
        unscored: Why they have no score.
    """

    name: str | None
    events: int
    worst: float
    lane: Lane
    rhythm: Rhythm | None
    profile: Profile | None
    unscored: str | None

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - who, what was seen, and how it is drawn
        cls,
        name: str | None,
        seen: Seen,
        cells: TimeHistogram,
        yardstick: Yardstick,
        step: int,
        wide: tuple[int, int],
    ) -> Self:
        """Tell of a user.

        Args:
            name: Who.
            seen: What was seen of them.
            cells: Their events.
            yardstick: How high is high.
            step: Seconds of a cell.
            wide: How many of these are one on the page, and the page's first.
        """
        factor, first = wide
        portrait = None if seen.card is None else seen.card.portrait
        lane = Lane.of(cells.downsample(factor), first, yardstick)
        return cls(
            name,
            int(cells.events.sum()),
            max(lane.w, default=UNSCORED) / 100,
            lane,
            Rhythm.of(portrait, cells, step),
            None if seen.card is None else Profile.of(seen.card, seen),
            seen.unscored,
        )


def _calibration(portrait: ModelSummary, tally: NDArray[np.int64]) -> Calibration:
    known = int(tally[0])
    realised = (tally[1:] / max(known, 1)).tolist()
    return Calibration(
        list(portrait.risks),
        list(EXCEEDANCE_LEVELS),
        [brief(share) for share in realised] if known else [],
        known,
        portrait.held_out,
        portrait.days,
    )


def weak_spots(card: ModelCard, rehearsed: Rehearsed | None = None) -> Iterator[str]:
    """Say what a fingerprint cannot be good at, and what it was not good at."""
    if rehearsed is not None and rehearsed.missed:
        yield rehearsed.told()
    portrait = card.portrait
    if card.rung != SCOPE_OWN:
        share = f"{card.own_share:.0%}"
        yield f"{share} of what it was learnt from is the user's own; the rest is of {card.rung}."
    if portrait is None:
        return
    if portrait.weeks * 7 < SHORT and card.events:
        days = f"{portrait.weeks * 7:.0f} days"
        yield f"The history spans {days}: a weekly habit may be unknown to it."
    if portrait.held_out < FEW:
        least = f"{1 / (portrait.held_out + 1):.3f}"
        yield f"{portrait.held_out} events were held out: no p-value is below {least}."
    lively = [f"{name} ({rate:.0%})" for name, rate in portrait.lively if rate >= OFTEN]
    if lively:
        yield f"New values are usual, so that one more says little, in {', '.join(lively)}."


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
            Told(
                one,
                Around.of(
                    lanes.users.get(one.user, none), lanes.bucket_seconds, one.since, one.until
                ),
            )
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
        Person.of(
            user, seen, lanes.users.get(user, none), measures[user], lanes.bucket_seconds, wide
        )
        for user, seen in everybody
    ]
    return sorted(people, key=lambda one: (-one.worst, one.name or ""))
