"""Incidents: alerts of one user that are close in time, which are looked into together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Self

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import INDEX, ROW, TIME, ExplanationColumns
from morpheus.models.calibration import SESSION_GAP
from morpheus.models.explanation import Explanation
from morpheus.report.aggregate import (
    FLAGGED,
    IDENTITY_SCALE,
    INTERNAL_COLUMNS,
    LEVEL,
    SECONDS,
    USER,
    ReportAggregator,
    ScoreScale,
    classify_severity,
    sort_events,
)

MAX_EVENTS_SHOWN = 25
"""Events of an incident that are shown in full: the highest."""
ACTION_COLUMNS = ("eventName", "operationName", "appDisplayName", "application", "integration")
"""Columns that say what was done, the first that there is."""
MAX_ACTIONS = 6
"""Different actions that are named."""
TRUNCATION_SUFFIX = "signs in all)"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event in full.

    Attributes:
        at: When, in seconds since 1970.
        level: How high its score is for its user.
        score: The score.
        pvalue: Share of held-out events at least as risky.
        flagged: Whether it breaks the user's rhythm.
        reason: Why it is strange, in a sentence.
        why: The same in numbers.
        raw: Its columns.
    """

    at: float
    level: float
    score: float | None = None
    pvalue: float | None = None
    flagged: bool = False
    reason: str | None = None
    why: Explanation | None = None
    raw: dict[str, Any] = {}


class ColumnValue(msgspec.Struct, frozen=True):
    """A column, and what stood in it."""

    column: str
    value: str | None


class Incident(msgspec.Struct, frozen=True):
    """Alerts of one user that are close in time.

    Attributes:
        id: 16 hex digits: SHA-256 of the user, a line feed, and the first event's time.
        user: Whose events.
        start: Time of the first, ISO 8601 in UTC.
        end: Time of the last.
        since: The first, in seconds since 1970.
        until: The last.
        count: How many there are.
        level: The highest level.
        severity: What it is called.
        pvalue: The smallest p-value.
        flagged: Events that break the user's rhythm.
        actions: What was done, and how often, the most frequent first.
        columns: What the reason of the highest event names, the strongest first, in full.
        worst: Which of the events is the highest.
        events: The highest events, in time order.
        times: When each event was, in seconds after the first.
    """

    id: str
    user: str | None
    start: str
    end: str
    since: float
    until: float
    count: int
    level: float
    severity: str
    pvalue: float | None
    flagged: int
    actions: list[tuple[str, int]]
    columns: list[ColumnValue]
    worst: int
    events: list[Event]
    times: list[int]

    @classmethod
    def from_events(cls, events: pl.DataFrame, ranking: str) -> Self:
        """Tell of some events of one user, in time order, with the columns of `CandidateFilter`."""
        seconds, levels = events[SECONDS].to_numpy(), events[LEVEL].to_numpy()
        rows = np.sort(np.argsort(-levels, kind="stable")[:MAX_EVENTS_SHOWN])
        words = ExplanationColumns.find_in(events.columns)
        shown = [_build_event(row, ranking, words) for row in events[rows].iter_rows(named=True)]
        worst = int(np.argmax([event.level for event in shown]))
        user, first, last = events[USER][0], float(seconds[0]), float(seconds[-1])
        known = [event.pvalue for event in shown if event.pvalue is not None]
        return cls(
            id=incident_id(user, first),
            user=user,
            start=format_iso(first),
            end=format_iso(last),
            since=first,
            until=last,
            count=events.height,
            level=round_sig(float(levels.max())),
            severity=classify_severity(float(levels.max())),
            pvalue=min(known, default=None),
            flagged=int(events[FLAGGED].sum()),
            actions=_count_actions(events),
            columns=_find_top_columns(events.row(int(rows[worst]), named=True), words),
            worst=worst,
            events=shown,
            times=np.rint(seconds - first).astype(int).tolist(),
        )


def group_incidents(events: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut events, by user and time, where the user changes or pauses for an hour."""
    if events.is_empty():
        return
    pause = (pl.col(SECONDS).diff() > SESSION_GAP) | pl.col(USER).ne_missing(pl.col(USER).shift())
    number = events.select(pause.fill_null(value=False).cum_sum()).to_series().to_numpy()
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    for start, end in zip(starts, [*starts[1:], events.height], strict=True):
        yield events[int(start) : int(end)]


def incident_id(user: str | None, first: float) -> str:
    """The name of an incident, the same in every page that shows it.

    >>> incident_id("ann", 0.0)
    'f110bd3473e3c206'
    """
    return sha256(f"{user or ''}\n{format_iso(first)}".encode()).hexdigest()[:16]


def format_iso(seconds: float) -> str:
    """A time as text, cut to milliseconds, as JSON has them; they are written where there are any.

    >>> format_iso(1.5), format_iso(0)
    ('1970-01-01T00:00:01.500Z', '1970-01-01T00:00:00Z')
    """
    thousandths = round(seconds * 1e6) // 1000
    moment = datetime.fromtimestamp(thousandths / 1000, UTC)
    detail = "milliseconds" if thousandths % 1000 else "seconds"
    return moment.isoformat(timespec=detail).replace("+00:00", "Z")


def round_sig(value: float) -> float:
    """Four digits of a number are enough to be looked at."""
    return float(f"{value:.4g}")


def _build_event(
    row: dict[str, Any], ranking: str, explanation_columns: ExplanationColumns | None
) -> Event:
    unseen = {*INTERNAL_COLUMNS, *(explanation_columns or ()), ROW, INDEX, TIME}
    return Event(
        at=row[SECONDS],
        level=round_sig(row[LEVEL]),
        score=_to_float(row.get(ranking)),
        pvalue=_to_float(row.get("pvalue")),
        flagged=bool(row[FLAGGED]),
        reason=row.get(explanation_columns.reason) if explanation_columns else None,
        why=_decode_explanation(row.get(explanation_columns.explanation))
        if explanation_columns
        else None,
        raw={
            name: _to_json_value(value)
            for name, value in row.items()
            if value is not None and name not in unseen
        },
    )


def _to_json_value(value: object) -> object:
    if isinstance(value, float):
        return round_sig(value) if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)


def _to_float(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is refused by the next line
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _decode_explanation(text: str | None) -> Explanation | None:
    """What `explain` wrote; None if it did not, or somebody else did."""
    try:
        return None if text is None else msgspec.json.decode(text, type=Explanation)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _count_actions(events: pl.DataFrame) -> list[tuple[str, int]]:
    name = next((name for name in ACTION_COLUMNS if name in events.columns), None)
    done = [] if name is None else events[name].drop_nulls().cast(pl.String).to_list()
    return Counter(done).most_common(MAX_ACTIONS)


def _find_top_columns(
    row: dict[str, Any], explanation_columns: ExplanationColumns | None
) -> list[ColumnValue]:
    """The columns that a reason names, with what stood in them; not those that were cut."""
    said = row.get(explanation_columns.top_columns) if explanation_columns else None
    names: Sequence[str] = [name for name in (said or "").split(", ") if name]
    values = {name: row.get(name) for name in names}
    return [
        ColumnValue(name, None if value is None else str(value))
        for name, value in values.items()
        if not str(value).endswith(TRUNCATION_SUFFIX)
    ]


MAX_INCIDENTS = 2500
"""Incidents shown, at most."""
FILTER_RULE = "Alerts are the events that filter let pass."


@dataclass(frozen=True)
class SelectedIncidents:
    """The incidents that a page shows.

    Attributes:
        incidents: The highest first.
        hidden: Alerts for which there was no room.
        rule: What made alerts of events, in a sentence.
        population_scale: What `IDENTITY_SCALE` scores are measured by; None if nothing is known of them.
        reference: The risk of level 1, if held-out days say so.
    """

    incidents: list[Incident]
    hidden: int
    rule: str
    population_scale: ScoreScale | None
    reference: float | None

    def resolve_scale(self, own_scale: ScoreScale) -> ScoreScale:
        """What a user's scores are measured by in the end."""
        return (
            self.population_scale
            if own_scale is IDENTITY_SCALE and self.population_scale is not None
            else own_scale
        )

    def rescale(self) -> SelectedIncidents:
        """Call the lowest incident level 1, where nothing is known."""
        if self.population_scale is not None or not self.incidents:
            return self
        common = ScoreScale(0.0, max(min(one.level for one in self.incidents), 1e-9))
        return replace(
            self,
            population_scale=common,
            incidents=[_rescale_incident(one, common) for one in self.incidents],
        )


def select_incidents(aggregator: ReportAggregator, alerts_per_day: float) -> SelectedIncidents:
    """Choose the incidents to show.

    What `filter` let pass is shown. Without it, what is at least as high as it gets on ordinary
    days is, as far as `alerts_per_day` incidents a day allow.
    """
    common = aggregator.fit_population_scale()
    own = any(aggregator.find_scale(user) is not IDENTITY_SCALE for user in aggregator.users)
    events = _merge_candidate_events(aggregator, common)
    if (common or own) and not aggregator.filtered:
        events = events.filter(pl.col(LEVEL) >= 1)
    told = [
        Incident.from_events(group, aggregator.ranking or "") for group in group_incidents(events)
    ]
    told.sort(key=lambda one: (-one.level, one.since, one.user or ""))
    rule, hidden = FILTER_RULE, aggregator.top_events.dropped + aggregator.ts_anomalies.dropped
    if not aggregator.filtered:
        days = _count_run_days(aggregator)
        most, hidden = max(round(alerts_per_day * days), 1), 0
        rule = _describe_rule(aggregator, alerts_per_day, most, days, has_scale=bool(common or own))
        told = told[:most]
    hidden += sum(one.count for one in told[MAX_INCIDENTS:])
    reach = None if common is None else round_sig(common.reference)
    known = common or (IDENTITY_SCALE if own else None)
    return SelectedIncidents(told[:MAX_INCIDENTS], hidden, rule, known, reach).rescale()


def _merge_candidate_events(
    aggregator: ReportAggregator, population_scale: ScoreScale | None
) -> pl.DataFrame:
    """The highest events; a break in the rhythm is worth a look, whatever the event itself is."""
    parts = [aggregator.top_events.to_frame(), aggregator.ts_anomalies.to_frame()]
    every = pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")
    if not every.height:
        return every
    level = pl.col(LEVEL) / (1.0 if population_scale is None else population_scale.reference)
    least = pl.when(pl.col(FLAGGED)).then(1.0).otherwise(0.0)
    return sort_events(every.with_columns(pl.max_horizontal(level, least).alias(LEVEL)))


def _describe_rule(
    aggregator: ReportAggregator,
    alerts_per_day: float,
    max_incidents: int,
    days: int,
    *,
    has_scale: bool,
) -> str:
    limit = " that are higher than it gets on ordinary days (level 1)" if has_scale else ""
    return (
        f"No filter in the chain: alerts are the {alerts_per_day:g} highest incidents a day, at "
        f"most {max_incidents:,} in {days:,} days,{limit} by {aggregator.ranking or 'no score'}."
    )


def _count_run_days(aggregator: ReportAggregator) -> int:
    period, step = aggregator.histograms.bucket_range, aggregator.histograms.bucket_seconds
    if period is None:
        return 1
    return -(-(period[1] * step) // 86400) - period[0] * step // 86400


def _rescale_incident(incident: Incident, scale: ScoreScale) -> Incident:
    """The same incident by another measure."""
    level = round_sig(incident.level / scale.reference)
    events = [
        msgspec.structs.replace(event, level=round_sig(event.level / scale.reference))
        for event in incident.events
    ]
    return msgspec.structs.replace(
        incident, level=level, severity=classify_severity(level), events=events
    )
