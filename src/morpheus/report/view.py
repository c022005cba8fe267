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
from morpheus.report.aggregate import ReplayResult, ReportAggregator, ScoreScale, UserAggregate
from morpheus.report.incidents import Incident, round_sig, select_incidents
from morpheus.seasonality.histogram import SECONDS_PER_HOUR, TimeHistogram, UserHistograms


class RunCounts(msgspec.Struct, frozen=True, omit_defaults=True):
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


class MissingFeature(msgspec.Struct, frozen=True):
    """Something that the page would show, had it been told.

    Attributes:
        what: What is not shown.
        add: What to type.
    """

    what: str
    add: str


def find_missing_features(
    aggregator: ReportAggregator, models_hint: str
) -> Iterator[MissingFeature]:
    """Say what is missing.

    Args:
        aggregator: What there is.
        models_hint: How the cards of fingerprints come into the page.
    """
    there = aggregator.columns
    if aggregator.ranking != RISK:
        yield MissingFeature(
            f"One ranking across users: levels go by {aggregator.ranking or 'no score'}",
            "add-scores --label ae_anomaly_score --label risk --label pvalue",
        )
    elif "pvalue" not in there:
        yield MissingFeature("p-values", "add-scores --label risk --label pvalue")
    if "explanation" not in there:
        yield MissingFeature(
            "Reasons, expected values, the smallest change, the nearest normal events",
            "explain (behind add-scores)",
        )
    if TS_ANOMALY not in there:
        yield MissingFeature("Breaks in the rhythm", "timeseries --resolution=10m")
    if not any(seen.card and seen.card.portrait for seen in aggregator.users.values()):
        yield MissingFeature("Fingerprints, and levels measured by held-out days", models_hint)


MIN_EXPECTED_EVENTS = 12.0
"""Events that would be usual in a stretch that is called a gap; at random it would hold none in one
case of 160,000."""


def find_gaps(
    histograms: UserHistograms, hourly_rates: Mapping[str | None, NDArray[np.float64]]
) -> list[tuple[int, int]]:
    """Find where nobody did anything, though many events would have been usual.

    Args:
        histograms: Everybody's events, settled.
        hourly_rates: Events that are usual in each hour of the week, of each user, (168,). Nothing is
            expected of them before their first event, or after their last.

    Returns:
        Beginning and end of each, in seconds since 1970.
    """
    if histograms.bucket_range is None:
        return []
    first, end = histograms.bucket_range
    silent = np.ones(end - first, dtype=np.bool_)
    starts, expected = np.arange(first, end) * histograms.bucket_seconds, np.zeros(end - first)
    # A wide cell is taken to be as lively throughout as in its first hour.
    hours = hour_of_week(starts.astype(np.float64))
    for user, cells in histograms.users.items():
        silent[cells.buckets - first] = False
        if user in hourly_rates:
            there = slice(int(cells.buckets[0]) - first, int(cells.buckets[-1]) - first)
            expected[there] += hourly_rates[user][hours[there]] * (
                histograms.bucket_seconds / SECONDS_PER_HOUR
            )
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    return [
        (int(starts[a]), int(starts[b - 1]) + histograms.bucket_seconds)
        for a, b in edges.reshape(-1, 2)
        if expected[a:b].sum() >= MIN_EXPECTED_EVENTS
    ]


UNSCORED_LEVEL = -1
"""Level, in hundredths, of a cell whose events have no score."""
MAX_LEVEL = 9999
HIGH_NOVELTY_RATE = 0.2
"""Share of events that bring a new value from which a column's new values say little."""
SHORT_HISTORY_DAYS, FEW_HELD_OUT_EVENTS = 14, 100
"""Days of history, and held-out events, below which a fingerprint knows little."""
SECONDS_PER_WEEK = 7 * 24 * 3600


class UserTimeline(msgspec.Struct, frozen=True):
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
    def from_histogram(cls, histogram: TimeHistogram, first_bucket: int, scale: ScoreScale) -> Self:
        """Draw a lane."""
        known = np.isfinite(histogram.max_scores)
        levels = scale.to_levels(np.where(known, histogram.max_scores, scale.baseline))
        hundredths = np.minimum(np.rint(levels * 100), MAX_LEVEL).astype(int)
        return cls(
            (histogram.buckets - first_bucket).tolist(),
            histogram.events.tolist(),
            np.where(known, hundredths, UNSCORED_LEVEL).tolist(),
            np.flatnonzero(histogram.flagged).tolist(),
        )


class WeeklyPattern(msgspec.Struct, frozen=True):
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
    def from_summary(
        cls, summary: ModelSummary | None, histogram: TimeHistogram, bucket_seconds: int
    ) -> Self | None:
        """A user's usual week: that of their history, or else of this run."""
        if summary is not None and any(summary.hours):
            return cls(list(summary.hours), summary.weeks, learnt=True)
        if bucket_seconds != SECONDS_PER_HOUR or not len(histogram.buckets):
            return None
        hours = hour_of_week(histogram.buckets.astype(np.float64) * SECONDS_PER_HOUR)
        counts = np.bincount(hours, weights=histogram.events, minlength=HOURS_PER_WEEK).astype(int)
        weeks = max(
            (int(histogram.buckets[-1]) - int(histogram.buckets[0]))
            * SECONDS_PER_HOUR
            / SECONDS_PER_WEEK,
            1 / 7,
        )
        return cls(counts.tolist(), round_sig(weeks), learnt=False)

    @property
    def hourly_rates(self) -> NDArray[np.float64]:
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


class ModelSummaryView(msgspec.Struct, frozen=True):
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
    def from_card(cls, card: ModelCard, aggregate: UserAggregate) -> Self:
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
            None if portrait is None else _build_calibration(portrait, aggregate.exceedances),
            list(list_limitations(card, aggregate.replay_result)),
        )


class UserView(msgspec.Struct, frozen=True):
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
    lane: UserTimeline
    rhythm: WeeklyPattern | None
    profile: ModelSummaryView | None
    unscored: str | None

    @classmethod
    def from_aggregate(  # noqa: PLR0913, PLR0917 - who, what was seen, and how it is drawn
        cls,
        name: str | None,
        aggregate: UserAggregate,
        histogram: TimeHistogram,
        scale: ScoreScale,
        bucket_seconds: int,
        page_buckets: tuple[int, int],
    ) -> Self:
        """Tell of a user.

        Args:
            name: Who.
            aggregate: What was seen of them.
            histogram: Their events.
            scale: How high is high.
            bucket_seconds: Seconds of a cell.
            page_buckets: How many of these are one on the page, and the page's first.
        """
        factor, first = page_buckets
        portrait = None if aggregate.card is None else aggregate.card.portrait
        lane = UserTimeline.from_histogram(histogram.downsample(factor), first, scale)
        return cls(
            name,
            int(histogram.events.sum()),
            max(lane.w, default=UNSCORED_LEVEL) / 100,
            lane,
            WeeklyPattern.from_summary(portrait, histogram, bucket_seconds),
            None
            if aggregate.card is None
            else ModelSummaryView.from_card(aggregate.card, aggregate),
            aggregate.unscored_reason,
        )


def _build_calibration(summary: ModelSummary, exceedances: NDArray[np.int64]) -> Calibration:
    known = int(exceedances[0])
    realised = (exceedances[1:] / max(known, 1)).tolist()
    return Calibration(
        list(summary.risks),
        list(EXCEEDANCE_LEVELS),
        [round_sig(share) for share in realised] if known else [],
        known,
        summary.held_out,
        summary.days,
    )


def list_limitations(card: ModelCard, replay_result: ReplayResult | None = None) -> Iterator[str]:
    """Say what a fingerprint cannot be good at, and what it was not good at."""
    if replay_result is not None and replay_result.missed:
        yield replay_result.describe()
    portrait = card.portrait
    if card.rung != SCOPE_OWN:
        share = f"{card.own_share:.0%}"
        yield f"{share} of what it was learnt from is the user's own; the rest is of {card.rung}."
    if portrait is None:
        return
    if portrait.weeks * 7 < SHORT_HISTORY_DAYS and card.events:
        days = f"{portrait.weeks * 7:.0f} days"
        yield f"The history spans {days}: a weekly habit may be unknown to it."
    if portrait.held_out < FEW_HELD_OUT_EVENTS:
        least = f"{1 / (portrait.held_out + 1):.3f}"
        yield f"{portrait.held_out} events were held out: no p-value is below {least}."
    lively = [f"{name} ({rate:.0%})" for name, rate in portrait.lively if rate >= HIGH_NOVELTY_RATE]
    if lively:
        yield f"New values are usual, so that one more says little, in {', '.join(lively)}."


MAX_TIMELINE_CELLS = 400
"""Cells of a lane, at most."""
MAX_USERS = 2000
"""Users with a lane of their own, at most: the highest."""
CONTEXT_SECONDS, MAX_CONTEXT_CELLS = 12 * 3600, 96
"""Seconds shown on either side of an incident, and cells at most."""
CELL_HOURS = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
"""Hours that cells are wide."""


class IncidentTimeline(msgspec.Struct, frozen=True):
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
    def from_histogram(
        cls, histogram: TimeHistogram, bucket_seconds: int, since: float, until: float
    ) -> Self:
        """Look twelve hours back, and twelve ahead."""
        first, last = (
            int(since - CONTEXT_SECONDS) // bucket_seconds,
            int(until + CONTEXT_SECONDS) // bucket_seconds,
        )
        last = min(last, first + MAX_CONTEXT_CELLS - 1)
        near = (histogram.buckets >= first) & (histogram.buckets <= last)
        counts, flagged = (np.zeros(last - first + 1, dtype=int) for _ in range(2))
        counts[histogram.buckets[near] - first] = histogram.events[near]
        flagged[histogram.buckets[near] - first] = histogram.flagged[near]
        return cls(first * bucket_seconds, bucket_seconds, counts.tolist(), flagged.tolist())


class TimeAxis(msgspec.Struct, frozen=True):
    """The lanes' axis: beginning in seconds since 1970, seconds of a cell, and how many cells."""

    start: int
    step: int
    cells: int


class IncidentView(msgspec.Struct, frozen=True):
    """An incident, and what else the user did around it."""

    incident: Incident
    around: IncidentTimeline


class ReportData(msgspec.Struct, frozen=True):
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
    account: RunCounts
    rule: str
    ranking: str | None
    reach: float | None
    hidden: int
    lacks: list[MissingFeature]
    gaps: list[tuple[int, int]]
    axis: TimeAxis | None
    people: list[UserView]
    others: int
    incidents: list[IncidentView]


def build_report_data(
    aggregator: ReportAggregator,
    counts: RunCounts,
    alerts_per_day: float,
    *,
    models_hint: str,
    origin: tuple[str, str],
) -> ReportData:
    """Make findings ready to be looked at.

    Args:
        aggregator: All of a run.
        counts: What became of its events.
        alerts_per_day: Incidents shown, at most, where `filter` has not chosen them.
        models_hint: What to type for the cards of fingerprints.
        origin: Word of the source, and the column of the user.
    """
    lanes = aggregator.histograms
    lanes.compact()
    found = select_incidents(aggregator, alerts_per_day)
    measures = {user: found.resolve_scale(aggregator.find_scale(user)) for user in aggregator.users}
    axis, wide = _build_time_axis(aggregator)
    people = _build_user_views(aggregator, measures, wide)
    rhythms = {
        one.name: one.rhythm.hourly_rates for one in people if one.rhythm and one.rhythm.learnt
    }
    none = TimeHistogram.empty()
    return ReportData(
        "morpheus-report",
        1,
        *origin,
        counts,
        found.rule,
        aggregator.ranking,
        found.reference,
        found.hidden,
        list(find_missing_features(aggregator, models_hint)),
        find_gaps(lanes, rhythms),
        axis,
        people[:MAX_USERS],
        max(len(people) - MAX_USERS, 0),
        [
            IncidentView(
                one,
                IncidentTimeline.from_histogram(
                    lanes.users.get(one.user, none), lanes.bucket_seconds, one.since, one.until
                ),
            )
            for one in found.incidents
        ],
    )


def _build_time_axis(aggregator: ReportAggregator) -> tuple[TimeAxis | None, tuple[int, int]]:
    """The lanes' axis, and how cells of the findings become cells of the page."""
    period, step = aggregator.histograms.bucket_range, aggregator.histograms.bucket_seconds
    if period is None:
        return None, (1, 0)
    fits = (each for each in CELL_HOURS if (period[1] - period[0]) / each <= MAX_TIMELINE_CELLS)
    factor = next(fits, -(-(period[1] - period[0]) // MAX_TIMELINE_CELLS))
    first, last = period[0] // factor, (period[1] - 1) // factor
    return TimeAxis(first * factor * step, factor * step, last - first + 1), (factor, first)


def _build_user_views(
    aggregator: ReportAggregator,
    scales: dict[str | None, ScoreScale],
    page_buckets: tuple[int, int],
) -> list[UserView]:
    """All users, the highest first."""
    lanes, none = aggregator.histograms, TimeHistogram.empty()
    everybody: Sequence[tuple[str | None, UserAggregate]] = list(aggregator.users.items())
    people = [
        UserView.from_aggregate(
            user,
            seen,
            lanes.users.get(user, none),
            scales[user],
            lanes.bucket_seconds,
            page_buckets,
        )
        for user, seen in everybody
    ]
    return sorted(people, key=lambda one: (-one.worst, one.name or ""))
