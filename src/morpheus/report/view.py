"""The data of a report page: what `build_report_data` makes of a `ReportAggregator`.

The structs are encoded as JSON, which the page's programs read. Their field names are that format
and stay as they are; page format version 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Self

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import (
    ACTOR,
    ACTOR_OPTION,
    CONDITION_FIELDS,
    RISK,
    TS_ANOMALY,
    FieldCondition,
    Identity,
    LogDescription,
)
from morpheus.features.derived import NOVELTY_PREFIX, PREVIOUS_PREFIX
from morpheus.models.calibration import (
    EXCEEDANCE_LEVELS,
    HOURS_PER_WEEK,
    SEVERITY_NAMES,
    ModelSummary,
    hour_of_week,
)
from morpheus.models.profile import SCOPE_OWN, ModelCard
from morpheus.report.aggregate import (
    ReplayResult,
    ReportAggregator,
    ScoreScale,
    UserAggregate,
    levels_to_severity,
)
from morpheus.report.incidents import Incident, SelectedIncidents, round_sig, select_incidents
from morpheus.seasonality.detector import SECONDS_PER_HOUR, TimeHistogram, UserHistograms

MAX_USERS = 2000
"""Maximum number of users on a page: those with incidents first, then the most severe."""
MAX_TIMELINE_CELLS = 400
"""Maximum number of cells of a timeline."""
CELL_HOURS = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
"""Preferred widths of a cell, in hours."""
CONTEXT_SECONDS, MAX_CONTEXT_CELLS = 12 * 3600, 96
"""Time shown before and after an incident, and the maximum number of its cells."""
MIN_EXPECTED_EVENTS = 12.0
"""Expected events in a period without any that make it a gap. By the Poisson distribution, such a
period has no event by chance once in exp(12), about 160,000 periods."""
UNSCORED_SEVERITY = -1
"""Severity of a cell whose events have no score."""
HIGH_NOVELTY_RATE = 0.2
"""Share of events with a new value, from which new values of a column are weak evidence."""
SHORT_HISTORY_DAYS, FEW_VALIDATION_EVENTS = 14, 100
"""Amounts of data below which a model has a limitation to report."""
SECONDS_PER_WEEK = 7 * 24 * 3600


class AlertCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Alerts of a run whose `filter` has a budget; see `AlertBudgetReport`.

    Attributes:
        alerts: User-days that became alerts.
        suppressed: User-days that did not, because all their events are suppressed.
        wanted: Number of alerts that were asked for; None on an input without end.
        capped: User-days that did not become alerts, because of `--max_alerts_per_day`.
        next_pvalue: P-value of the most unusual of the other user-days.
        reason: Why the expected number is uncertain; empty otherwise.
    """

    alerts: int = 0
    suppressed: int = 0
    wanted: float | None = None
    capped: int = 0
    next_pvalue: float | None = None
    reason: str = ""

    @classmethod
    def from_report(cls, report: object) -> Self:
        """Take the numbers of an `AlertBudgetReport`, whose attributes have the same names."""
        return msgspec.convert(report, cls, from_attributes=True)


class RunCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many events of a run were read, scored and not scored.

    Attributes:
        read: Events found.
        refused: Events among them that could not be read.
        duplicates: Events delivered more than once.
        scored: Events with a score.
        unscored: Events without a score, by reason.
        training: Events used for training.
        rungs: Number of users by training source.
        forecast: Expected number of alerts, and its lower and upper bound.
        refusals: The first reasons why an event could not be read.
        alerts: Alerts of a budget; None without one.
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
    alerts: AlertCounts | None = None


class MissingFeature(msgspec.Struct, frozen=True):
    """A part of the page that is missing because the run did not provide its data.

    Attributes:
        what: What is not shown.
        add: What to add to the command.
    """

    what: str
    add: str


class IncidentTimeline(msgspec.Struct, frozen=True):
    """All events of a user before, during and after an incident.

    Attributes:
        start: Start of the first cell, in seconds since 1970.
        step: Width of a cell, in seconds.
        n: Events in each cell.
        f: Time-series anomalies in each cell.
    """

    start: int
    step: int
    n: list[int]
    f: list[int]

    @classmethod
    def from_histogram(
        cls, histogram: TimeHistogram, bucket_seconds: int, since: float, until: float
    ) -> Self:
        """Count from `CONTEXT_SECONDS` before an incident to `CONTEXT_SECONDS` after it."""
        first = int(since - CONTEXT_SECONDS) // bucket_seconds
        last = int(until + CONTEXT_SECONDS) // bucket_seconds
        last = min(last, first + MAX_CONTEXT_CELLS - 1)
        near = (histogram.buckets >= first) & (histogram.buckets <= last)
        counts, flagged = (np.zeros(last - first + 1, dtype=int) for _ in range(2))
        counts[histogram.buckets[near] - first] = histogram.events[near]
        flagged[histogram.buckets[near] - first] = histogram.flagged[near]
        return cls(first * bucket_seconds, bucket_seconds, counts.tolist(), flagged.tolist())


class TimeAxis(msgspec.Struct, frozen=True):
    """Time axis of all users' timelines.

    Attributes:
        start: Start of the first cell, in seconds since 1970.
        step: Width of a cell, in seconds.
        cells: Number of cells.
    """

    start: int
    step: int
    cells: int


class Evidence(msgspec.Struct, frozen=True):
    """What queries select the events of an incident by.

    Attributes:
        ids: Ids of the known events. Empty if one of them has none.
        identity: What identifies the user in the log; see `Identity`.
    """

    ids: list[str]
    identity: Identity


class IncidentView(msgspec.Struct, frozen=True):
    """An incident, the user's activity before and after it, and what queries find it by."""

    incident: Incident
    around: IncidentTimeline
    evidence: Evidence


class UserTimeline(msgspec.Struct, frozen=True):
    """Events of a user over time. Cells without events are left out.

    Attributes:
        at: Position of each cell on the page's time axis.
        n: Events in each cell.
        w: Highest severity in each cell, from 0 to 100, or `UNSCORED_SEVERITY`.
        f: Positions in `at` of cells with a time-series anomaly.
    """

    at: list[int]
    n: list[int]
    w: list[int]
    f: list[int]

    @classmethod
    def from_histogram(cls, histogram: TimeHistogram, first_bucket: int, scale: ScoreScale) -> Self:
        """Convert a histogram whose buckets are as wide as the page's cells."""
        scored = np.isfinite(histogram.max_scores)
        levels = scale.to_levels(np.where(scored, histogram.max_scores, scale.baseline))
        severities = np.rint(levels_to_severity(levels)).astype(int)
        return cls(
            (histogram.buckets - first_bucket).tolist(),
            histogram.events.tolist(),
            np.where(scored, severities, UNSCORED_SEVERITY).tolist(),
            np.flatnonzero(histogram.flagged).tolist(),
        )


class WeeklyPattern(msgspec.Struct, frozen=True):
    """Events in each hour of the week. The first hour starts on Monday at 00:00 UTC.

    Attributes:
        hours: Events in each hour, shape (168,).
        weeks: Number of weeks that were counted.
        learnt: Whether the history was counted. Otherwise it was this run.
    """

    hours: list[int]
    weeks: float
    learnt: bool

    @classmethod
    def from_summary(
        cls, summary: ModelSummary | None, histogram: TimeHistogram, bucket_seconds: int
    ) -> Self | None:
        """Return the pattern of a user's history, or else of this run.

        None if this run was counted in buckets wider than an hour.
        """
        if summary is not None and any(summary.hours):
            return cls(list(summary.hours), summary.weeks, learnt=True)
        if bucket_seconds != SECONDS_PER_HOUR or not len(histogram.buckets):
            return None
        hours = hour_of_week(histogram.buckets.astype(np.float64) * SECONDS_PER_HOUR)
        counts = np.bincount(hours, weights=histogram.events, minlength=HOURS_PER_WEEK).astype(int)
        num_hours = int(histogram.buckets[-1]) - int(histogram.buckets[0])
        # A run of less than a day would make one hour's events look like a high weekly rate.
        weeks = max(num_hours * SECONDS_PER_HOUR / SECONDS_PER_WEEK, 1 / 7)
        return cls(counts.tolist(), round_sig(weeks), learnt=False)

    @property
    def hourly_rates(self) -> NDArray[np.float64]:
        """Mean events in each hour of the week, shape (168,)."""
        return np.array(self.hours) / self.weeks


class Calibration(msgspec.Struct, frozen=True):
    """How often a user's events exceed each risk level: stated by the model, and observed.

    Attributes:
        risks: Risk levels.
        stated: Share of validation events above each level.
        realised: Share of this run's events above each level. Empty without events.
        events: Events of this run with a risk.
        held_out: Number of validation events.
        days: Days that the validation events cover.
    """

    risks: list[float]
    stated: list[float]
    realised: list[float]
    events: int
    held_out: int
    days: int

    @classmethod
    def from_exceedances(cls, summary: ModelSummary, exceedances: NDArray[np.int64]) -> Self:
        """Compare a model's summary with `UserAggregate.exceedances`."""
        num_events = int(exceedances[0])
        realised = (exceedances[1:] / max(num_events, 1)).tolist()
        return cls(
            list(summary.risks),
            list(EXCEEDANCE_LEVELS),
            [round_sig(share) for share in realised] if num_events else [],
            num_events,
            summary.held_out,
            summary.days,
        )


class ModelSummaryView(msgspec.Struct, frozen=True):
    """The card of a user's model.

    Attributes:
        events: Events of the user's own history.
        borrowed: Events of other users added for training.
        rung: Training source.
        distinct: Number of distinct rows.
        first: Start of the history.
        last: End of the history.
        epochs: Epochs of training.
        curve: Validation loss after each epoch of the trial run.
        calibration: Stated and observed risks.
        weak: Limitations of the model, as sentences.
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
    def from_card(
        cls, card: ModelCard, aggregate: UserAggregate, labels: Mapping[str, str]
    ) -> Self:
        """Describe a card, with what the run observed of its user, and labels of columns."""
        summary = card.summary
        calibration = None
        if summary is not None:
            calibration = Calibration.from_exceedances(summary, aggregate.exceedances)
        return cls(
            card.events,
            card.borrowed_events,
            card.training_data_scope,
            card.distinct,
            card.first,
            card.last,
            card.epochs,
            [] if summary is None else list(summary.loss_curve),
            calibration,
            list(list_limitations(card, aggregate.replay_result, labels)),
        )


class UserView(msgspec.Struct, frozen=True):
    """A user of a page.

    Attributes:
        name: The user. None for events without a user.
        events: Number of events, dropped ones included.
        worst: Highest severity of an event.
        lane: Events over time.
        rhythm: Events in each hour of the week.
        profile: Card of the user's model.
        unscored: Why the user's events have no score.
    """

    name: str | None
    events: int
    worst: int
    lane: UserTimeline
    rhythm: WeeklyPattern | None
    profile: ModelSummaryView | None
    unscored: str | None

    @classmethod
    def from_aggregate(  # noqa: PLR0913, PLR0917 - the user's data, and the scales to show it by
        cls,
        name: str | None,
        aggregate: UserAggregate,
        histogram: TimeHistogram,
        scale: ScoreScale,
        bucket_seconds: int,
        page_buckets: tuple[int, int],
        labels: Mapping[str, str],
    ) -> Self:
        """Describe a user.

        Args:
            name: The user.
            aggregate: What is known about the user.
            histogram: The user's events over time.
            scale: Converts the user's scores to levels.
            bucket_seconds: Width of a bucket of the histogram, in seconds.
            page_buckets: Number of buckets in a cell of the page, and the page's first cell.
            labels: Labels of columns.
        """
        factor, first = page_buckets
        card, summary = aggregate.card, aggregate.summary
        timeline = UserTimeline.from_histogram(histogram.downsample(factor), first, scale)
        return cls(
            name,
            int(histogram.events.sum()),
            max(timeline.w, default=UNSCORED_SEVERITY),
            timeline,
            WeeklyPattern.from_summary(summary, histogram, bucket_seconds),
            None if card is None else ModelSummaryView.from_card(card, aggregate, labels),
            aggregate.unscored_reason,
        )


class Origin(NamedTuple):
    """Where the events of a report come from.

    Attributes:
        source: Name of the source stage. Empty if it is not known.
        user_column: Name of the user column.
        log: Description of the log.
    """

    source: str
    user_column: str
    log: LogDescription


_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,256}", re.ASCII)
"""Event ids that queries contain. Wildcards and quotes are in no id of a known log."""


def find_evidence(events: pl.DataFrame, user: str | None, origin: Origin) -> Evidence:
    """Find what queries select the events of an incident by.

    Args:
        events: The events.
        user: Their user.
        origin: Where they come from.
    """
    return Evidence(list(_find_event_ids(events, origin.log)), _find_identity(events, user, origin))


def _find_event_ids(events: pl.DataFrame, log: LogDescription) -> Iterable[str]:
    """Return the ids that other tools know the events by; none if an event has none."""
    names = [name for name in log.event_fields.event_id if name in events.columns]
    valid = [
        pl.when(text.str.contains(log.id_pattern)).then(text)
        for text in (pl.col(name).cast(pl.String) for name in names)
    ]
    ids = events.select(pl.coalesce(valid)).to_series().to_list() if valid else [None]
    found = [value for value in ids if value is not None and _SAFE_ID.fullmatch(value)]
    return dict.fromkeys(found) if len(found) == len(ids) else ()


def _find_identity(events: pl.DataFrame, user: str | None, origin: Origin) -> Identity:
    """Find what identifies a user, in the form that the log has it."""
    log, column = origin.log, origin.user_column
    if user is None:
        return ()
    found: Identity = ((FieldCondition(column, (user,)),),)
    if column in {ACTOR, ACTOR_OPTION}:
        found = () if log.identify is None else log.identify(events, user)
    return tuple(
        tuple(condition.remove_prefix(log.ignored_prefixes) for condition in conditions)
        for conditions in found
    )


class QueryView(msgspec.Struct, frozen=True):
    """A query that fetches the events of an incident; see `EvidenceQuery`.

    Attributes:
        name: Name of the tool.
        language: Language of the query.
        time_format: How times are written.
        template: Text of the query, with placeholders.
        max_length: Maximum length of the query, in characters.
        fields: Names of fields in the tool, by the columns of event ids and of users. A column
            that the tool has no field for has no names.
    """

    name: str
    language: str
    time_format: str
    template: str
    max_length: int
    fields: dict[str, list[str]]


class LogView(msgspec.Struct, frozen=True):
    """What a page knows about the kind of log.

    Attributes:
        name: Name of the log.
        actions: Columns that hold the action; the first one with a value counts.
        key_columns: Columns that help most to judge an event, in order.
        event_ids: Columns that hold the id of an event.
        caseless: Columns whose values ignore case, and are in lower case.
        conditions: Columns that suppressions have conditions on, by field of the log.
        queries: Queries that fetch the events of an incident.
    """

    name: str
    actions: list[str]
    key_columns: list[str]
    event_ids: list[str]
    caseless: list[str]
    conditions: dict[str, list[str]]
    queries: list[QueryView]


def build_log_view(origin: Origin) -> LogView:
    """Build what a page knows about the kind of log.

    >>> origin = Origin("from-file", "userid", LogDescription(sources={"userid": ("user.id",)}))
    >>> build_log_view(origin).queries[0].fields
    {'userid': ['user.id']}
    """
    _, user_column, log = origin
    is_actor = user_column in {ACTOR, ACTOR_OPTION}
    columns = [*log.event_fields.event_id, *(log.actor_columns if is_actor else [user_column])]
    return LogView(
        name=log.name,
        actions=list(log.summary_columns),
        key_columns=list(log.key_columns),
        event_ids=list(log.event_fields.event_id),
        caseless=list(log.caseless_columns),
        conditions={name: list(getattr(log.event_fields, name)) for name in CONDITION_FIELDS},
        queries=[
            QueryView(
                query.name,
                query.language,
                query.time_format,
                query.template.strip(),
                query.max_length,
                {name: list(log.list_fields(query, name)) for name in columns},
            )
            for query in log.evidence
        ],
    )


def label_columns(log: LogDescription, columns: Iterable[str] = ()) -> dict[str, str]:
    """Return a label for each column of some events, and for each one that the log describes.

    >>> log = LogDescription(labels={"agent": "User agent"})
    >>> label_columns(log, ["new:agent"])
    {'agent': 'User agent', 'new:agent': 'New: user agent'}
    """
    present = dict.fromkeys(columns)
    labels = log.list_labels() | log.label_columns(present)
    for prefix, text in ((NOVELTY_PREFIX, "New"), (PREVIOUS_PREFIX, "Previous")):
        for name in present:
            base = labels.get(name.removeprefix(prefix))
            if name.startswith(prefix) and base:
                labels[name] = f"{text}: {base[:1].lower()}{base[1:]}"
    return labels


class ReportData(msgspec.Struct, frozen=True):
    """The data of a page.

    Attributes:
        format: Name of the format.
        version: Version of the format.
        source: Name of the source stage. Empty if it is unknown.
        user_column: Name of the user column.
        timezone: Time zone of the days of incidents.
        labels: Labels of columns, for people.
        severity_names: Lowest severity of each name, and the name, the highest first.
        account: Number of events read, scored and not scored.
        rule: How alerts were chosen, as a sentence.
        ranking: The score that levels are computed from.
        hidden: Number of incidents that are not shown.
        lacks: Parts of the page that are missing.
        gaps: Start and end of each coverage gap, in seconds since 1970.
        axis: Time axis of the timelines. None without events.
        people: Users, those with incidents first, then most severe first.
        others: Number of users that are not shown.
        incidents: Incidents, most severe first.
    """

    format: str
    version: int
    source: str
    user_column: str
    timezone: str
    labels: dict[str, str]
    severity_names: tuple[tuple[int, str], ...]
    account: RunCounts
    rule: str
    ranking: str | None
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
    origin: Origin,
) -> ReportData:
    """Build the data of a page.

    Args:
        aggregator: Everything collected from a run.
        counts: Number of events read, scored and not scored.
        alerts_per_day: Incidents to show per day if `filter` did not choose them.
        models_hint: What to add to the command to show model cards.
        origin: Where the events come from.
    """
    histograms = aggregator.histograms
    histograms.compact()
    selected = select_incidents(aggregator, alerts_per_day, origin.log.summary_columns)
    axis, page_buckets = _build_time_axis(histograms)
    labels = label_columns(origin.log, aggregator.columns)
    users = _build_user_views(
        aggregator,
        {user: selected.resolve_scale(aggregator.find_scale(user)) for user in aggregator.users},
        page_buckets,
        labels,
    )
    with_incidents = {incident.user for incident in selected.incidents}
    users.sort(key=lambda user: user.name not in with_incidents)
    hourly_rates = {
        user.name: user.rhythm.hourly_rates
        for user in users
        if user.rhythm is not None and user.rhythm.learnt
    }
    return ReportData(
        "morpheus-report",
        2,
        origin.source,
        origin.user_column,
        aggregator.timezone,
        labels,
        SEVERITY_NAMES,
        counts,
        selected.rule,
        aggregator.ranking,
        selected.hidden,
        list(find_missing_features(aggregator, models_hint)),
        find_gaps(histograms, hourly_rates) if aggregator.has_all_events else [],
        axis,
        users[:MAX_USERS],
        max(len(users) - MAX_USERS, 0),
        list(_build_incident_views(selected, histograms, origin)),
    )


def find_missing_features(
    aggregator: ReportAggregator, models_hint: str
) -> Iterator[MissingFeature]:
    """List the parts of the page that are missing.

    Args:
        aggregator: Everything collected from a run.
        models_hint: What to add to the command to show model cards.
    """
    columns = aggregator.columns
    if aggregator.ranking != RISK:
        yield MissingFeature(
            f"One ranking for all users: severities use {aggregator.ranking or 'no score'}",
            "add-scores --label ae_anomaly_score --label risk --label pvalue",
        )
    elif "pvalue" not in columns:
        yield MissingFeature("p-values", "add-scores --label risk --label pvalue")
    if "explanation" not in columns:
        yield MissingFeature(
            "Reasons, expected values, the smallest change, the nearest normal events",
            "explain (after add-scores)",
        )
    if TS_ANOMALY not in columns:
        yield MissingFeature("Time-series anomalies", "timeseries --resolution=10m")
    if not any(aggregate.summary for aggregate in aggregator.users.values()):
        yield MissingFeature("Model cards, and severities based on validation data", models_hint)
    if not aggregator.has_all_events:
        yield MissingFeature("Activity other than the alerts, and coverage gaps", "to-report")


def find_gaps(
    histograms: UserHistograms, hourly_rates: Mapping[str | None, NDArray[np.float64]]
) -> list[tuple[int, int]]:
    """Find coverage gaps: periods without any event in which many were expected.

    Args:
        histograms: Events of all users, compacted.
        hourly_rates: For each user, expected events in each hour of the week, shape (168,). No
            event is expected before a user's first event or after the last.

    Returns:
        Start and end of each gap, in seconds since 1970.
    """
    if histograms.bucket_range is None:
        return []
    first, end = histograms.bucket_range
    silent = np.ones(end - first, dtype=np.bool_)
    starts, expected = np.arange(first, end) * histograms.bucket_seconds, np.zeros(end - first)
    # A bucket wider than an hour gets the rate of its first hour.
    hours = hour_of_week(starts.astype(np.float64))
    bucket_hours = histograms.bucket_seconds / SECONDS_PER_HOUR
    for user, histogram in histograms.users.items():
        silent[histogram.buckets - first] = False
        if user in hourly_rates:
            active = slice(int(histogram.buckets[0]) - first, int(histogram.buckets[-1]) - first)
            expected[active] += hourly_rates[user][hours[active]] * bucket_hours
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    return [
        (int(starts[a]), int(starts[b - 1]) + histograms.bucket_seconds)
        for a, b in edges.reshape(-1, 2)
        if expected[a:b].sum() >= MIN_EXPECTED_EVENTS
    ]


def list_limitations(
    card: ModelCard,
    replay_result: ReplayResult | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Describe the limitations of a model: missed techniques, few data, weak columns."""
    if replay_result is not None and replay_result.missed:
        yield replay_result.describe()
    summary = card.summary
    if card.training_data_scope != SCOPE_OWN:
        yield (
            f"{card.own_share:.0%} of the training data is the user's own. The rest is from "
            f"{card.training_data_scope}."
        )
    if summary is None:
        return
    if summary.weeks * 7 < SHORT_HISTORY_DAYS and card.events:
        days = f"{summary.weeks * 7:.0f} days"
        yield f"The history covers {days}: the model may not know weekly habits."
    if summary.held_out < FEW_VALIDATION_EVENTS:
        smallest = f"{1 / (summary.held_out + 1):.3f}"
        yield f"With {summary.held_out} validation events, the smallest p-value is {smallest}."
    rates = [
        f"{labels.get(name, name)} ({rate:.0%})"
        for name, rate in summary.high_novelty_columns
        if rate >= HIGH_NOVELTY_RATE
    ]
    if rates:
        yield f"New values are common, and so are weak evidence, in {', '.join(rates)}."


def _build_time_axis(histograms: UserHistograms) -> tuple[TimeAxis | None, tuple[int, int]]:
    """Return the page's time axis, and the `page_buckets` of `UserView.from_aggregate`."""
    period, step = histograms.bucket_range, histograms.bucket_seconds
    if period is None:
        return None, (1, 0)
    num_buckets = period[1] - period[0]
    factors = (hours for hours in CELL_HOURS if num_buckets / hours <= MAX_TIMELINE_CELLS)
    factor = next(factors, -(-num_buckets // MAX_TIMELINE_CELLS))
    first, last = period[0] // factor, (period[1] - 1) // factor
    return TimeAxis(first * factor * step, factor * step, last - first + 1), (factor, first)


def _build_user_views(
    aggregator: ReportAggregator,
    scales: Mapping[str | None, ScoreScale],
    page_buckets: tuple[int, int],
    labels: Mapping[str, str],
) -> list[UserView]:
    """Describe all users, most severe first."""
    histograms, empty = aggregator.histograms, TimeHistogram.empty()
    users = [
        UserView.from_aggregate(
            user,
            aggregate,
            histograms.users.get(user, empty),
            scales[user],
            histograms.bucket_seconds,
            page_buckets,
            labels,
        )
        for user, aggregate in aggregator.users.items()
    ]
    return sorted(users, key=lambda user: (-user.worst, user.name or ""))


def _build_incident_views(
    selected: SelectedIncidents, histograms: UserHistograms, origin: Origin
) -> Iterator[IncidentView]:
    events = selected.group_events()
    for incident in selected.incidents:
        evidence = find_evidence(events[incident.id], incident.user, origin)
        yield IncidentView(incident, _build_timeline(incident, histograms), evidence)


def _build_timeline(incident: Incident, histograms: UserHistograms) -> IncidentTimeline:
    histogram = histograms.users.get(incident.user, TimeHistogram.empty())
    return IncidentTimeline.from_histogram(
        histogram, histograms.bucket_seconds, incident.since, incident.until
    )
