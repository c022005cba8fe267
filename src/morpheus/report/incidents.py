"""Incidents: the alerts of one user on one day, which are investigated together.

`Incident` describes one, the same in every output: its id, severity, times, number of events and
reason. `select_incidents` chooses the incidents that a report shows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Any, Self

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import DAY_COUNTS, INDEX, ROW, TIME, ExplanationColumns
from morpheus.models.calibration import name_severity
from morpheus.models.explanation import Explanation
from morpheus.models.scoring import number_days
from morpheus.report.aggregate import (
    DAY,
    FLAGGED,
    IDENTITY_SCALE,
    INTERNAL_COLUMNS,
    LEVEL,
    SECONDS,
    TRUNCATION_SUFFIX,
    USER,
    EventArrays,
    IncidentCounts,
    ReportAggregator,
    ScoreScale,
    count_incidents,
    find_severities,
    levels_to_severity,
    sort_events,
)

MAX_INCIDENTS = 2500
"""Maximum number of incidents on a page."""
MAX_EVENTS_SHOWN = 25
"""Maximum number of events of an incident with all columns: those with the highest levels."""
MIN_LEAD_LEVEL = 0.5
"""Minimum level of the event that describes an incident, as a share of the highest level."""
MAX_ACTIONS = 6
"""Maximum number of different actions listed for an incident."""
MIN_ANOMALY_SEVERITY = 25.0
"""Lowest severity of an incident with a time-series anomaly, if no severity is stated."""
FILTER_RULE = "Alerts are the events that filter kept."


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event with all its columns. Field names are those of the page's JSON.

    Attributes:
        at: Time, in seconds since 1970.
        severity: Its part of the incident's severity, from 0 to 100; the most severe event has all
            of it.
        score: The score.
        pvalue: Probability that a usual day of the user has such a score.
        flagged: Whether the event is a time-series anomaly.
        reason: Why the event is unusual, as a sentence.
        why: The explanation in numbers.
        raw: Value of each column.
    """

    at: float
    severity: float
    score: float | None = None
    pvalue: float | None = None
    flagged: bool = False
    reason: str | None = None
    why: Explanation | None = None
    raw: dict[str, Any] = {}


class ColumnValue(msgspec.Struct, frozen=True):
    """The name of a column and its value in one event."""

    column: str
    value: str | None


class Incident(msgspec.Struct, frozen=True):
    """The alerts of one user on one day. Field names are those of the page's JSON.

    Attributes:
        id: See `incident_id`.
        user: The user.
        day: The day, as `2025-04-28`.
        start: Time of the first event, ISO 8601 in UTC.
        end: Time of the last event.
        since: Time of the first event, in seconds since 1970.
        until: Time of the last event, in seconds since 1970.
        count: Number of events.
        severity: Severity, an integer from 0 to 100.
        severity_name: Its name; see `name_severity`.
        reason: Reason of the event that describes it, see `find_lead`; None without `explain`.
        pvalue: Smallest p-value of an event.
        flagged: Number of time-series anomalies.
        actions: Actions and how often each occurred, the most frequent first.
        columns: Columns that explain this event, strongest first, with untruncated values.
        worst: Position in `events` of this event.
        events: The most severe events, in time order.
        times: Time of every event that is known, in seconds after the first.
    """

    id: str
    user: str | None
    day: str
    start: str
    end: str
    since: float
    until: float
    count: int
    severity: int
    severity_name: str
    reason: str | None
    pvalue: float | None
    flagged: int
    actions: list[tuple[str, int]]
    columns: list[ColumnValue]
    worst: int
    events: list[Event]
    times: list[int]

    @classmethod
    def from_events(
        cls, events: pl.DataFrame, ranking: str, actions: Sequence[str], counts: IncidentCounts
    ) -> Self:
        """Describe one incident.

        Args:
            events: Rows of `TopEvents.to_frame`, in time order.
            ranking: The score that levels are computed from.
            actions: Columns that hold the action. The first one with a value counts.
            counts: What is counted of all events, those that are not in `events` included.
        """
        seconds, levels = events[SECONDS].to_numpy(), events[LEVEL].to_numpy()
        severity = find_severity(counts, float(levels.max()))
        shares = _divide_severity(levels, severity)
        explained = ExplanationColumns.find_in(events.columns)
        lead = find_lead(levels.tolist(), _list_top_columns(events, explained))
        highest = np.argsort(-levels, kind="stable")[:MAX_EVENTS_SHOWN]
        rows = np.sort(highest if lead in highest else np.append(highest[:-1], lead))
        shown = [
            _build_event(row, share, ranking, explained)
            for row, share in zip(
                events[rows].iter_rows(named=True), shares[rows].tolist(), strict=True
            )
        ]
        worst = int(np.flatnonzero(rows == lead)[0])
        user, day = events[USER][0], format_day(events[DAY][0])
        pvalues = [event.pvalue for event in shown if event.pvalue is not None]
        return cls(
            id=incident_id(user, day),
            user=user,
            day=day,
            start=format_iso(counts.start),
            end=format_iso(counts.end),
            since=counts.start,
            until=counts.end,
            count=counts.events,
            severity=severity,
            severity_name=name_severity(severity),
            reason=shown[worst].reason,
            pvalue=min(pvalues, default=None),
            flagged=counts.flagged,
            actions=_count_actions(events, actions),
            columns=_find_top_columns(events.row(lead, named=True), explained),
            worst=worst,
            events=shown,
            times=np.rint(seconds - counts.start).astype(int).tolist(),
        )


def find_lead(levels: Sequence[float], top_columns: Sequence[str | None]) -> int:
    """Return the position of the event that describes an incident.

    It is the most severe event. But a reason that begins with a count of that day says above all
    that other events came before. So the most severe event with another reason is taken, unless it
    is less than half as severe.

    Args:
        levels: Level of each event.
        top_columns: Columns that the reason of each event names, strongest first, separated by
            commas; None or empty for an event without a reason.

    >>> find_lead([2.0, 5.0, 6.0], ["network", "network, logcount", "logcount"])
    1
    >>> find_lead([2.0, 6.0], ["network", "logcount"])
    1
    """
    order = sorted(range(len(levels)), key=lambda position: (-levels[position], position))
    lowest = MIN_LEAD_LEVEL * levels[order[0]]
    severe = (each for each in order if levels[each] >= lowest)
    telling = (
        each for each in severe if DAY_COUNTS.isdisjoint(_split_names(top_columns[each])[:1])
    )
    return next(telling, order[0])


def incident_id(user: str | None, day: str) -> str:
    """Return the id of an incident: 16 hexadecimal digits of SHA-256 of user and day.

    It does not change when events are added, and is the same in every output.

    Args:
        user: The user; None for events without one.
        day: The day, as `2025-04-28`.

    >>> incident_id("ann", "1970-01-01")
    '332acdf3dddaae32'
    """
    return sha256(f"{user or ''}\n{day}".encode()).hexdigest()[:16]


def format_day(day: int) -> str:
    """Return the date of a day, given in days since 1970.

    >>> format_day(20206)
    '2025-04-28'
    """
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def find_severity(counts: IncidentCounts, level: float) -> int:
    """Return the severity of an incident, an integer from 0 to 100.

    Args:
        counts: Its counts, with the severity that the rows state.
        level: Highest level of an event, for rows that state none. Then an incident with a
            time-series anomaly has at least `MIN_ANOMALY_SEVERITY`.
    """
    if not np.isnan(counts.severity):
        return round(counts.severity)
    lowest = MIN_ANOMALY_SEVERITY if counts.flagged else 0.0
    return round(max(float(levels_to_severity(np.array(level))), lowest))


def _divide_severity(levels: NDArray[np.float64], severity: int) -> NDArray[np.float64]:
    """Return the severity of each event in proportion to its level, shape (rows,)."""
    shares = levels_to_severity(levels)
    highest = float(shares.max())
    return (shares / highest if highest > 0 else np.ones_like(shares)) * severity


def format_iso(seconds: float) -> str:
    """Format a time as ISO 8601 in UTC, truncated to milliseconds, which are omitted if 0.

    JavaScript formats times the same way, so that the page computes the same ids.

    >>> format_iso(1.5), format_iso(0)
    ('1970-01-01T00:00:01.500Z', '1970-01-01T00:00:00Z')
    """
    milliseconds = round(seconds * 1e6) // 1000
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    precision = "milliseconds" if milliseconds % 1000 else "seconds"
    return time.isoformat(timespec=precision).replace("+00:00", "Z")


def round_sig(value: float) -> float:
    """Round to 4 significant digits, which keeps the page small."""
    return float(f"{value:.4g}")


def group_incidents(events: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split events, sorted by user and time, at a new user or a new day.

    Args:
        events: Rows of `TopEvents.to_frame`.
    """
    if events.is_empty():
        return
    keys = pl.struct(USER, DAY)
    starts = events.select(keys.ne_missing(keys.shift())).to_series().to_numpy().copy()
    starts[0] = True
    bounds = [*np.flatnonzero(starts).tolist(), events.height]
    for start, end in pairwise(bounds):
        yield events[start:end]


def _number_days(seconds: pl.Series, timezone: str) -> NDArray[np.int64]:
    microseconds = (seconds * 1e6).round().cast(pl.Int64)
    return number_days(microseconds.cast(pl.Datetime("us", "UTC")), timezone)


def _build_event(
    row: dict[str, Any], severity: float, ranking: str, explained: ExplanationColumns | None
) -> Event:
    hidden = {*INTERNAL_COLUMNS, *(explained or ()), ROW, INDEX, TIME}
    return Event(
        at=row[SECONDS],
        severity=round(severity, 1),
        score=_to_float(row.get(ranking)),
        pvalue=_to_float(row.get("pvalue")),
        flagged=bool(row[FLAGGED]),
        reason=row.get(explained.reason) if explained else None,
        why=_decode_explanation(row.get(explained.explanation)) if explained else None,
        raw={
            name: _to_json_value(value)
            for name, value in row.items()
            if value is not None and name not in hidden
        },
    )


def _to_json_value(value: object) -> object:
    if isinstance(value, float):
        return round_sig(value) if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)


def _to_float(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # other types raise, which is caught
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _decode_explanation(text: str | None) -> Explanation | None:
    """Decode what `explain` wrote. None for text in another format."""
    try:
        return None if text is None else msgspec.json.decode(text, type=Explanation)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _count_actions(events: pl.DataFrame, columns: Sequence[str]) -> list[tuple[str, int]]:
    values = (events[name].drop_nulls() for name in columns if name in events.columns)
    actions = next((found for found in values if len(found)), pl.Series(dtype=pl.String))
    return Counter(actions.cast(pl.String).to_list()).most_common(MAX_ACTIONS)


def _list_top_columns(
    events: pl.DataFrame, explained: ExplanationColumns | None
) -> list[str | None]:
    """Return the columns that the reason of each event names, separated by commas."""
    if explained is None or explained.top_columns not in events.columns:
        return [None] * events.height
    return events[explained.top_columns].to_list()


def _split_names(top_columns: str | None) -> list[str]:
    return [name for name in (top_columns or "").split(", ") if name]


def _find_top_columns(
    row: dict[str, Any], explained: ExplanationColumns | None
) -> list[ColumnValue]:
    """Return the columns that a reason names, with their values in the row.

    Verdicts on these columns become suppressions. A truncated value would match nothing, so it is
    left out.
    """
    names = _split_names(row.get(explained.top_columns) if explained else None)
    values = {name: row.get(name) for name in names}
    return [
        ColumnValue(name, None if value is None else str(value))
        for name, value in values.items()
        if not str(value).endswith(TRUNCATION_SUFFIX)
    ]


class SelectedIncidents(msgspec.Struct, frozen=True):
    """The incidents that a page shows.

    Attributes:
        incidents: The incidents, most severe first.
        hidden: Number of incidents that are not shown.
        rule: How alerts were chosen, as a sentence.
        lowest_scale: Scale of all users if no user has one: the lowest incident has level 1.
        events: Rows of the known events, also of incidents that are not shown.
    """

    incidents: list[Incident]
    hidden: int
    rule: str
    lowest_scale: ScoreScale | None
    events: pl.DataFrame

    def group_events(self) -> dict[str, pl.DataFrame]:
        """Return the known events of each incident, by its id."""
        return {
            incident_id(group[USER][0], format_day(group[DAY][0])): group
            for group in group_incidents(self.events)
        }

    def resolve_scale(self, own_scale: ScoreScale) -> ScoreScale:
        """Return the final scale of a user."""
        return self.lowest_scale or own_scale


def select_incidents(
    aggregator: ReportAggregator, alerts_per_day: float, actions: Sequence[str]
) -> SelectedIncidents:
    """Choose the incidents to show.

    After `filter`, all of its alerts are shown. Without it, the events of level 1 and above are
    alerts, and the highest incidents are shown, `alerts_per_day` of them for each day. `actions`
    are the columns that hold the action.
    """
    scales = [aggregator.find_scale(user) for user in aggregator.users]
    has_scale = any(scale is not IDENTITY_SCALE for scale in scales)
    events, lowest_scale = _merge_candidate_events(aggregator), None
    if has_scale and not aggregator.filtered:
        events = events.filter((pl.col(LEVEL) >= 1) | pl.col(FLAGGED))
    if events.height and not has_scale:
        lowest_scale = _fit_lowest_scale(events)
        events = events.with_columns(pl.col(LEVEL) / lowest_scale.reference)
    incidents = _build_incidents(aggregator, events, actions)
    rule, hidden = FILTER_RULE, 0
    if aggregator.filtered:
        hidden = max(len(aggregator.incident_counts) - min(len(incidents), MAX_INCIDENTS), 0)
    else:
        days = _count_run_days(aggregator)
        wanted = round(min(alerts_per_day * days, sys.maxsize))
        max_incidents = max(wanted, 1 if alerts_per_day else 0)
        rule = _describe_rule(aggregator, alerts_per_day, max_incidents, days, has_scale=has_scale)
        incidents = incidents[:max_incidents]
        hidden = max(len(incidents) - MAX_INCIDENTS, 0)
    return SelectedIncidents(incidents[:MAX_INCIDENTS], hidden, rule, lowest_scale, events)


def _fit_lowest_scale(events: pl.DataFrame) -> ScoreScale:
    """Return the scale on which the lowest incident has level 1."""
    highest = events.group_by(USER, DAY).agg(pl.col(LEVEL).max())[LEVEL]
    lowest = highest.filter(highest > 0).to_numpy().min(initial=np.inf)
    return ScoreScale(0.0, float(lowest) if np.isfinite(lowest) else 1.0)


def _build_incidents(
    aggregator: ReportAggregator, events: pl.DataFrame, actions: Sequence[str]
) -> list[Incident]:
    """Describe the incidents of some events, most severe first."""
    ranked = []
    for group in group_incidents(events):
        user, day, highest = group[USER][0], group[DAY][0], float(group[LEVEL].to_numpy().max())
        counts = aggregator.incident_counts[user, day]
        if not aggregator.filtered:
            counts = _count_shown_events(group)
        incident = Incident.from_events(group, aggregator.ranking or "", actions, counts)
        ranked.append((-incident.severity, -highest, incident.since, user or "", incident))
    return [incident for *_, incident in sorted(ranked, key=lambda entry: entry[:-1])]


def _count_shown_events(events: pl.DataFrame) -> IncidentCounts:
    """Count the events of one incident that are shown."""
    arrays, severities = EventArrays.from_frame(events), find_severities(events)
    alerts = np.ones(events.height, dtype=np.bool_)
    [(_, counts)] = count_incidents(events[DAY].to_numpy(), arrays, severities, alerts)
    return counts


def _merge_candidate_events(aggregator: ReportAggregator) -> pl.DataFrame:
    """Return the candidate events, by user and time."""
    parts = [aggregator.top_events.to_frame(), aggregator.ts_anomalies.to_frame()]
    events = pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")
    return sort_events(events) if events.height else events


def _describe_rule(
    aggregator: ReportAggregator,
    alerts_per_day: float,
    max_incidents: int,
    days: int,
    *,
    has_scale: bool,
) -> str:
    ranking = aggregator.ranking or "no score"
    limit = " Their severity is at least 25, the baseline maximum." if has_scale else ""
    return (
        f"No filter in the pipeline: alerts are the {alerts_per_day:g} highest incidents per day "
        f"by {ranking}, at most {max_incidents:,} in {days:,} days.{limit}"
    )


def _count_run_days(aggregator: ReportAggregator) -> int:
    """Count the days from the first event to the last, in the time zone of the report."""
    histograms = aggregator.histograms
    period, step = histograms.bucket_range, histograms.bucket_seconds
    if period is None:
        return 1
    ends = pl.Series([period[0] * step, period[1] * step - 1], dtype=pl.Float64)
    first, last = _number_days(ends, aggregator.timezone).tolist()
    return int(last - first + 1)
