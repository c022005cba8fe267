"""Incidents: alerts of one user that are close in time, which are looked into together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Self

import msgspec
import numpy as np
import polars as pl

from morpheus.columns import INDEX, ROW, TIME, ExplanationColumns
from morpheus.models.calibration import SESSION_GAP
from morpheus.models.explanation import Explanation
from morpheus.report.candidates import FLAGGED, LEVEL, OWN, SECONDS, USER
from morpheus.report.yardstick import severity

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
