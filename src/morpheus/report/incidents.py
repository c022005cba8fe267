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
    LEVEL,
    OWN,
    PLAIN,
    SECONDS,
    USER,
    Findings,
    Yardstick,
    ordered,
    severity,
)

SHOWN = 25
"""Events of an incident that are shown in full: the highest."""
ACTIONS = ("eventName", "operationName", "appDisplayName", "application", "integration")
"""Columns that say what was done, the first that there is."""
NAMED = 6
"""Different actions that are named."""
CUT = "signs in all)"


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


class Value(msgspec.Struct, frozen=True):
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
    columns: list[Value]
    worst: int
    events: list[Event]
    times: list[int]

    @classmethod
    def of(cls, events: pl.DataFrame, ranking: str) -> Self:
        """Tell of some events of one user, in time order, with the columns of `CandidateFilter`."""
        seconds, levels = events[SECONDS].to_numpy(), events[LEVEL].to_numpy()
        rows = np.sort(np.argsort(-levels, kind="stable")[:SHOWN])
        words = ExplanationColumns.find_in(events.columns)
        shown = [_event(row, ranking, words) for row in events[rows].iter_rows(named=True)]
        worst = int(np.argmax([event.level for event in shown]))
        user, first, last = events[USER][0], float(seconds[0]), float(seconds[-1])
        known = [event.pvalue for event in shown if event.pvalue is not None]
        return cls(
            id=identity(user, first),
            user=user,
            start=iso(first),
            end=iso(last),
            since=first,
            until=last,
            count=events.height,
            level=brief(float(levels.max())),
            severity=severity(float(levels.max())),
            pvalue=min(known, default=None),
            flagged=int(events[FLAGGED].sum()),
            actions=_actions(events),
            columns=_named(events.row(int(rows[worst]), named=True), words),
            worst=worst,
            events=shown,
            times=np.rint(seconds - first).astype(int).tolist(),
        )


def grouped(events: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut events, by user and time, where the user changes or pauses for an hour."""
    if events.is_empty():
        return
    pause = (pl.col(SECONDS).diff() > SESSION_GAP) | pl.col(USER).ne_missing(pl.col(USER).shift())
    number = events.select(pause.fill_null(value=False).cum_sum()).to_series().to_numpy()
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    for start, end in zip(starts, [*starts[1:], events.height], strict=True):
        yield events[int(start) : int(end)]


def identity(user: str | None, first: float) -> str:
    """The name of an incident, the same in every page that shows it.

    >>> identity("ann", 0.0)
    'f110bd3473e3c206'
    """
    return sha256(f"{user or ''}\n{iso(first)}".encode()).hexdigest()[:16]


def iso(seconds: float) -> str:
    """A time as text, cut to milliseconds, as JSON has them; they are written where there are any.

    >>> iso(1.5), iso(0)
    ('1970-01-01T00:00:01.500Z', '1970-01-01T00:00:00Z')
    """
    thousandths = round(seconds * 1e6) // 1000
    moment = datetime.fromtimestamp(thousandths / 1000, UTC)
    detail = "milliseconds" if thousandths % 1000 else "seconds"
    return moment.isoformat(timespec=detail).replace("+00:00", "Z")


def brief(value: float) -> float:
    """Four digits of a number are enough to be looked at."""
    return float(f"{value:.4g}")


def _event(row: dict[str, Any], ranking: str, words: ExplanationColumns | None) -> Event:
    unseen = {*OWN, *(words or ()), ROW, INDEX, TIME}
    return Event(
        at=row[SECONDS],
        level=brief(row[LEVEL]),
        score=_number(row.get(ranking)),
        pvalue=_number(row.get("pvalue")),
        flagged=bool(row[FLAGGED]),
        reason=row.get(words.reason) if words else None,
        why=_explanation(row.get(words.explanation)) if words else None,
        raw={
            name: _plain(value)
            for name, value in row.items()
            if value is not None and name not in unseen
        },
    )


def _plain(value: object) -> object:
    if isinstance(value, float):
        return brief(value) if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is refused by the next line
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _explanation(text: str | None) -> Explanation | None:
    """What `explain` wrote; None if it did not, or somebody else did."""
    try:
        return None if text is None else msgspec.json.decode(text, type=Explanation)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _actions(events: pl.DataFrame) -> list[tuple[str, int]]:
    name = next((name for name in ACTIONS if name in events.columns), None)
    done = [] if name is None else events[name].drop_nulls().cast(pl.String).to_list()
    return Counter(done).most_common(NAMED)


def _named(row: dict[str, Any], words: ExplanationColumns | None) -> list[Value]:
    """The columns that a reason names, with what stood in them; not those that were cut."""
    said = row.get(words.top_columns) if words else None
    names: Sequence[str] = [name for name in (said or "").split(", ") if name]
    values = {name: row.get(name) for name in names}
    return [
        Value(name, None if value is None else str(value))
        for name, value in values.items()
        if not str(value).endswith(CUT)
    ]


INCIDENTS = 2500
"""Incidents shown, at most."""
BY_FILTER = "Alerts are the events that filter let pass."


@dataclass(frozen=True)
class Admitted:
    """The incidents that a page shows.

    Attributes:
        incidents: The highest first.
        hidden: Alerts for which there was no room.
        rule: What made alerts of events, in a sentence.
        common: What `PLAIN` scores are measured by; None if nothing is known of them.
        reach: The risk of level 1, if held-out days say so.
    """

    incidents: list[Incident]
    hidden: int
    rule: str
    common: Yardstick | None
    reach: float | None

    def yardstick(self, own: Yardstick) -> Yardstick:
        """What a user's scores are measured by in the end."""
        return self.common if own is PLAIN and self.common is not None else own

    def measured(self) -> Admitted:
        """Call the lowest incident level 1, where nothing is known."""
        if self.common is not None or not self.incidents:
            return self
        common = Yardstick(0.0, max(min(one.level for one in self.incidents), 1e-9))
        return replace(
            self, common=common, incidents=[_measured(one, common) for one in self.incidents]
        )


def admitted(findings: Findings, alerts_per_day: float) -> Admitted:
    """Choose the incidents to show.

    What `filter` let pass is shown. Without it, what is at least as high as it gets on ordinary
    days is, as far as `alerts_per_day` incidents a day allow.
    """
    common = findings.common()
    own = any(findings.yardstick(user) is not PLAIN for user in findings.users)
    events = _events(findings, common)
    if (common or own) and not findings.filtered:
        events = events.filter(pl.col(LEVEL) >= 1)
    told = [Incident.of(group, findings.ranking or "") for group in grouped(events)]
    told.sort(key=lambda one: (-one.level, one.since, one.user or ""))
    rule, hidden = BY_FILTER, findings.candidates.left_out + findings.offbeat.left_out
    if not findings.filtered:
        days = _days(findings)
        most, hidden = max(round(alerts_per_day * days), 1), 0
        rule = _rule(findings, alerts_per_day, most, days, measured=bool(common or own))
        told = told[:most]
    hidden += sum(one.count for one in told[INCIDENTS:])
    reach = None if common is None else brief(common.reach)
    known = common or (PLAIN if own else None)
    return Admitted(told[:INCIDENTS], hidden, rule, known, reach).measured()


def _events(findings: Findings, common: Yardstick | None) -> pl.DataFrame:
    """The highest events; a break in the rhythm is worth a look, whatever the event itself is."""
    parts = [findings.candidates.events(), findings.offbeat.events()]
    every = pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")
    if not every.height:
        return every
    level = pl.col(LEVEL) / (1.0 if common is None else common.reach)
    least = pl.when(pl.col(FLAGGED)).then(1.0).otherwise(0.0)
    return ordered(every.with_columns(pl.max_horizontal(level, least).alias(LEVEL)))


def _rule(
    findings: Findings, alerts_per_day: float, most: int, days: int, *, measured: bool
) -> str:
    limit = " that are higher than it gets on ordinary days (level 1)" if measured else ""
    return (
        f"No filter in the chain: alerts are the {alerts_per_day:g} highest incidents a day, at "
        f"most {most:,} in {days:,} days,{limit} by {findings.ranking or 'no score'}."
    )


def _days(findings: Findings) -> int:
    period, step = findings.lanes.bucket_range, findings.lanes.bucket_seconds
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
