"""Alerts and the findings that they are part of, for alert formats.

An `Alert` is one event with its scores, explanation and normalised fields. A `Finding` is an
incident, one user's alerts on one day, as `FindingBuilder` makes it of the batches of a sink.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Self

import msgspec
import numpy as np
from msgspec.structs import replace

from morpheus.columns import (
    RISK,
    TIME,
    TS_ANOMALY,
    EventFields,
    ExplanationColumns,
    LogDescription,
)
from morpheus.core.batch import Batch
from morpheus.core.stage import Stage
from morpheus.errors import UsageError
from morpheus.models.calibration import name_severity
from morpheus.models.explanation import Explanation
from morpheus.models.scoring import number_days
from morpheus.report.aggregate import (
    IDENTITY_SCALE,
    EventArrays,
    IncidentCounts,
    ScoreScale,
    choose_ranking,
    count_incidents,
    find_severities,
)
from morpheus.report.incidents import find_lead, find_severity, format_day, incident_id
from morpheus.sources.results import complete_log
from morpheus.text import display_value

# Begins account numbers in the lessons' tables, and in what we read from CSV.
_ACCOUNT_PREFIX = "Account-"
_NO_ERROR_CODES = {"0"}
_FAILURE_RESULTS = {"failure", "failed", "denied", "deny", "forbid", "fraud", "error"}
_SUCCESS_RESULTS = {"success", "allow"}


class NormalisedFields(msgspec.Struct, frozen=True):
    """Fields of an event under names that are the same for all logs; None if missing.

    The names are those of `EventFields`.
    """

    event_id: str | None = None
    action: str | None = None
    service: str | None = None
    resource: str | None = None
    source_address: str | None = None
    country: str | None = None
    city: str | None = None
    user_agent: str | None = None
    account: str | None = None
    region: str | None = None
    session: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    result: str | None = None

    @classmethod
    def from_event(cls, event: Mapping[str, str], event_fields: EventFields) -> Self:
        """Read the fields from the columns of an event.

        >>> columns = EventFields(error_code=("code",))
        >>> NormalisedFields.from_event({"code": "AccessDenied"}, columns).failed
        True
        """
        found = {
            field_name: next((event[name] for name in names if event.get(name)), None)
            for field_name, names in event_fields.items()
        }
        if found["error_code"] in _NO_ERROR_CODES:
            found |= {"error_code": None, "result": found["result"] or "success"}
        if found["account"]:
            found["account"] = found["account"].removeprefix(_ACCOUNT_PREFIX)
        return cls(**found)

    @property
    def ip(self) -> str | None:
        """The source address, if it is an IP address.

        >>> NormalisedFields(source_address="203.0.113.7").ip
        '203.0.113.7'
        >>> NormalisedFields(source_address="s3.amazonaws.com").ip is None
        True
        """
        try:
            return str(ip_address(self.source_address or ""))
        except ValueError:
            return None

    @property
    def failed(self) -> bool | None:
        """Whether the operation failed; None if the event does not say."""
        if self.error_code or (self.result or "").lower() in _FAILURE_RESULTS:
            return True
        return False if (self.result or "").lower() in _SUCCESS_RESULTS else None


VENDOR = PRODUCT = "morpheus"
VERSION = version("morpheus-dfp")
MAX_FINDING_EVENTS = 25
"""Maximum number of events inside a finding: the most severe ones. All are counted."""
MAX_DAYS_OPEN = 2
"""Days for which a finding is updated on an input without end."""

_FINDING = "finding:"
"""Starts the names of open findings in the position of a sink."""
_ID_DIGITS = 32  # hexadecimal digits of an id: 128 bits
_MAX_TITLE_NAME = 128  # characters of a user's name in a title


@dataclass(frozen=True)
class Alert:
    """One event, its scores, and why it is unusual.

    Attributes:
        id: The same for the same event in each run, whatever its scores.
        user: User of the event; None if the log names none.
        time: Time of the event.
        source: Name of the source stage.
        log: Description of the kind of log.
        event: Columns of the log, as text, without empty ones.
        scores: Finite scores of `add-scores`, by label.
        reason: Reason in one sentence; None without `explain`.
        columns: Columns named in the reason.
        explanation: The full explanation; None without `explain`.
        ts_anomaly: Whether it is a time-series anomaly; None without `timeseries`.
        training_data_scope: Whose history the model was trained on (`own`, `peers`, `everyone`);
            None without a model.
    """

    id: str
    user: str | None
    time: datetime
    source: str
    log: LogDescription
    event: Mapping[str, str]
    scores: Mapping[str, float]
    reason: str | None = None
    columns: tuple[str, ...] = ()
    explanation: Explanation | None = None
    ts_anomaly: bool | None = None
    training_data_scope: str | None = None

    @cached_property
    def fields(self) -> NormalisedFields:
        """The normalised fields of the event."""
        return NormalisedFields.from_event(self.event, self.log.event_fields)

    @property
    def provider(self) -> str | None:
        """Cloud provider: `aws`, `azure`, `gcp`; None for other logs."""
        return self.log.cloud_provider

    @property
    def title(self) -> str:
        """A line with the user and the unusual columns, safe to display."""
        user = display_value(self.user, _MAX_TITLE_NAME) if self.user is not None else "no user"
        if self.columns:
            return f"{user}: unusual {', '.join(display_value(name) for name in self.columns)}"
        return f"{user}: {'break of rhythm' if self.ts_anomaly else 'unusual event'}"

    @property
    def message(self) -> str:
        """The reason; the title without one."""
        return self.reason or self.title

    @property
    def risk(self) -> float | None:
        """The score `risk`; None without it."""
        return self.scores.get(RISK)

    @property
    def raw_event(self) -> str:
        """The columns of the log, as JSON."""
        return msgspec.json.encode(self.event).decode()


class Finding(msgspec.Struct, frozen=True):
    """An incident: the alerts of one user on one day.

    Attributes:
        incident: Id of the incident; see `incident_id`.
        user: The user; None for events without one.
        counts: What is counted of all its events.
        severity: Severity from 0 to 100; None if no score tells.
        alerts: The most severe events, in time order.
        worst: The event that describes it; see `find_lead`.
        is_update: Whether it was emitted before, with fewer events.
    """

    incident: str
    user: str | None
    counts: IncidentCounts
    severity: int | None
    alerts: tuple[Alert, ...]
    worst: Alert
    is_update: bool = False

    @property
    def id(self) -> str:
        """Id of the message: the incident's; an update has the number of events, too."""
        return f"{self.incident}-{self.counts.events}" if self.is_update else self.incident

    @property
    def start(self) -> datetime:
        """Time of the first event."""
        return datetime.fromtimestamp(self.counts.start, UTC)

    @property
    def end(self) -> datetime:
        """Time of the last event."""
        return datetime.fromtimestamp(self.counts.end, UTC)

    @property
    def severity_name(self) -> str | None:
        """Name of the severity."""
        return None if self.severity is None else name_severity(self.severity)

    @property
    def message(self) -> str:
        """The reason of the event that describes the incident; the title without one."""
        return self.worst.message


class _OpenFinding(msgspec.Struct):
    """A finding to which events can still be added.

    Attributes:
        counts: What is counted of its events.
        alerts: The most severe events, each with its level and number.
        level: Highest level of an event; NaN if it is not known.
        emitted: Whether it was emitted before.
    """

    counts: IncidentCounts
    alerts: list[tuple[float, int, Alert]]
    level: float
    emitted: bool = False

    def add(self, other: _OpenFinding) -> None:
        """Add later events."""
        numbered = ((level, self.counts.events + n, alert) for level, n, alert in other.alerts)
        self.alerts = _keep_most_severe([*self.alerts, *numbered])
        self.level = float(np.fmax(self.level, other.level))
        self.counts.add(other.counts)

    def to_finding(self, user: str | None, day: int) -> Finding:
        """Return the finding as it is now."""
        _, _, worst = self.alerts[_find_lead(self.alerts)]
        in_order = sorted(self.alerts, key=lambda entry: entry[1])
        alerts = tuple(alert for _, _, alert in in_order)
        identity = incident_id(user, format_day(day))
        counts = replace(self.counts)
        return Finding(identity, user, counts, self._severity, alerts, worst, self.emitted)

    @property
    def _severity(self) -> int | None:
        if np.isnan(self.level) and np.isnan(self.counts.severity) and not self.counts.flagged:
            return None
        return find_severity(self.counts, float(np.nan_to_num(self.level)))


def _keep_most_severe(alerts: list[tuple[float, int, Alert]]) -> list[tuple[float, int, Alert]]:
    """Return the most severe alerts, most severe first, the first ones among equals.

    The one that describes the incident is one of them.
    """
    ordered = sorted(alerts, key=lambda entry: (-entry[0], entry[1]))
    lead = _find_lead(ordered)
    if lead < MAX_FINDING_EVENTS:
        return ordered[:MAX_FINDING_EVENTS]
    return [*ordered[: MAX_FINDING_EVENTS - 1], ordered[lead]]


def _find_lead(alerts: Sequence[tuple[float, int, Alert]]) -> int:
    return find_lead(
        [level for level, *_ in alerts], [", ".join(alert.columns) for *_, alert in alerts]
    )


class _SavedAlert(msgspec.Struct, array_like=True):
    """An `Alert` without the description of its log, which is the same for all."""

    id: str
    user: str | None
    time: datetime
    event: dict[str, str]
    scores: dict[str, float]
    reason: str | None
    columns: tuple[str, ...]
    explanation: Explanation | None
    ts_anomaly: bool | None
    training_data_scope: str | None


class _SavedFinding(msgspec.Struct, array_like=True):
    """An `_OpenFinding` with its user and the number of its day."""

    user: str | None
    day: int
    counts: IncidentCounts
    alerts: list[tuple[float, int, _SavedAlert]]
    level: float


class FindingBuilder(msgspec.Struct):
    """Joins the alerts of a sink to findings, one for each user and day.

    On an input with an end, a finding is complete when a later day or another user follows. On one
    without an end, it is emitted at once, and again whenever it has grown.

    Args:
        alerts: Builds alerts from events.
        timezone: Time zone of days.
        unbounded: The input has no end.
    """

    alerts: AlertBuilder
    timezone: str = "UTC"
    unbounded: bool = False
    _open: dict[tuple[str | None, int], _OpenFinding] = msgspec.field(default_factory=dict)
    _changed: set[tuple[str | None, int]] = msgspec.field(default_factory=set)

    def restore(self, saved: Mapping[str, bytes]) -> None:
        """Go on with the findings of an earlier run, on an input without end.

        Args:
            saved: What `take_changes` has returned, put together.
        """
        for data in saved.values():
            each = msgspec.msgpack.decode(data, type=_SavedFinding)
            alerts = [(level, n, self.alerts.restore(alert)) for level, n, alert in each.alerts]
            self._open[each.user, each.day] = _OpenFinding(
                each.counts, alerts, each.level, emitted=True
            )

    def take_changes(self) -> dict[str, bytes]:
        """Return findings that have changed since the last call; empty bytes for closed ones."""
        changes = {}
        for user, day in self._changed:
            found = self._open.get((user, day))
            name = _FINDING + incident_id(user, format_day(day))
            changes[name] = b"" if found is None else _encode_finding(user, day, found)
        self._changed = set()
        return changes

    def build(self, batch: Batch) -> Iterator[Finding]:
        """Add the events of a batch. Yield the findings that are complete, or have grown."""
        if not batch.table.height:
            return
        found = dict(self._group(batch))
        latest = max(found)
        if not self.unbounded:
            yield from self._close(lambda user, day: user != batch.user or day < min(found))
        for day, added in found.items():
            known = self._open.setdefault((batch.user, day), added)
            self._changed.add((batch.user, day))
            if known is not added:
                known.add(added)
            if self.unbounded:
                yield known.to_finding(batch.user, day)
                known.emitted = True
        if self.unbounded:
            self._forget(latest - MAX_DAYS_OPEN)
        else:
            yield from self._close(lambda _, day: day < latest)

    def flush(self) -> Iterator[Finding]:
        """Yield the last findings, at the end of the input."""
        if not self.unbounded:
            yield from self._close(lambda _, day: True)  # noqa: ARG005 - all of them

    def _close(self, is_complete: Callable[[str | None, int], bool]) -> Iterator[Finding]:
        for user, day in [key for key in self._open if is_complete(*key)]:
            yield self._open.pop((user, day)).to_finding(user, day)

    def _forget(self, day: int) -> None:
        for key in [key for key in self._open if key[1] < day]:
            self._changed.add(key)
            del self._open[key]

    def _group(self, batch: Batch) -> Iterator[tuple[int, _OpenFinding]]:
        """Yield the number of each day and what the batch has of it, in time order."""
        alerts = list(self.alerts.build(batch))
        frame = batch.table.to_frame()
        arrays, severities = EventArrays.from_frame(frame), find_severities(frame)
        days = number_days(frame[TIME], self.timezone)
        scale = _find_scale(batch)
        levels = np.nan_to_num((scale or IDENTITY_SCALE).to_levels(arrays.scores))
        for day, counts in count_incidents(
            days, arrays, severities, np.ones(len(days), dtype=np.bool_)
        ):
            rows = np.flatnonzero(days == day).tolist()
            entries = [(float(levels[row]), n, alerts[row]) for n, row in enumerate(rows)]
            level = float("nan") if scale is None else float(levels[rows].max())
            yield day, _OpenFinding(counts, _keep_most_severe(entries), level)


def _encode_finding(user: str | None, day: int, finding: _OpenFinding) -> bytes:
    names = _SavedAlert.__struct_fields__
    alerts = [
        (level, n, _SavedAlert(*(getattr(alert, name) for name in names)))
        for level, n, alert in finding.alerts
    ]
    saved = _SavedFinding(user, day, finding.counts, alerts, finding.level)
    return msgspec.msgpack.encode(saved)


def _find_scale(batch: Batch) -> ScoreScale | None:
    """Return the scale of the best score, by the user's model; None if there is none."""
    ranking = choose_ranking(batch.table.names)
    summary = None if batch.card is None else batch.card.summary
    return None if ranking is None else ScoreScale.from_summary(summary, ranking)


class AlertBuilder(msgspec.Struct):
    """Builds alerts from events, and gives identical events different ids.

    Args:
        stage: Name of the sink, for messages.
        source: Name of the source stage.
        log: What the source says about the log. By default its columns tell.
    """

    stage: str
    source: str
    log: LogDescription | None = None
    _last_key: tuple[str | None, datetime] | None = None
    _counts: Counter[str] = msgspec.field(default_factory=Counter)

    def build(self, batch: Batch) -> Iterator[Alert]:
        """Build an alert from each event of a batch.

        Raises:
            UsageError: The events have no time, because `serialize` excludes it.
        """
        if TIME not in batch.table:
            raise UsageError(
                f"{self.stage}: events have no column `{TIME}`, because `serialize` excludes it. "
                f"Put `{self.stage}` before `serialize`, or include the column: "
                f"`serialize --include={TIME}`."
            )
        log = complete_log(self.log, self.source, batch.log_columns)
        explanation_columns = ExplanationColumns.find_in(batch.table.names)
        for row in batch.table.to_frame().iter_rows(named=True):
            event = {name: str(row[name]) for name in batch.log_columns if row[name] is not None}
            yield Alert(
                id=self._make_id(batch.user, row[TIME], event, log),
                user=batch.user,
                time=row[TIME],
                source=self.source,
                log=log,
                event=event,
                scores=_finite_scores(batch.scores, row),
                ts_anomaly=row.get(TS_ANOMALY),
                training_data_scope=batch.card.training_data_scope
                if batch.card is not None
                else None,
                **_explanation_fields(row, explanation_columns),
            )

    def restore(self, saved: _SavedAlert) -> Alert:
        """Return an alert of an earlier run."""
        log = complete_log(self.log, self.source, list(saved.event))
        return Alert(source=self.source, log=log, **msgspec.structs.asdict(saved))

    def _make_id(
        self, user: str | None, time: datetime, event: Mapping[str, str], log: LogDescription
    ) -> str:
        """Return a digest of user, time and content; identical events are numbered."""
        names = log.event_fields.event_id if log.unique_event_ids else ()
        event_id = next((event[name] for name in names if event.get(name)), None)
        if self._last_key != (user, time):
            self._last_key = user, time
            self._counts.clear()
        digest = stable_id(self.source, user, time.isoformat(), event_id or sorted(event.items()))
        self._counts[digest] += 1
        return digest if self._counts[digest] == 1 else stable_id(digest, self._counts[digest])


def make_finding_builder(
    stage: Stage, position: Mapping[str, bytes] | None = None
) -> FindingBuilder:
    """Return the builder of the findings of a sink.

    Args:
        stage: The sink.
        position: Where an endless run goes on; see `StageContext.position`.
    """
    options = stage.options
    alerts = AlertBuilder(stage.name, options.source, options.log)
    findings = FindingBuilder(alerts, options.timezone, options.unbounded)
    findings.restore({n: data for n, data in (position or {}).items() if n.startswith(_FINDING)})
    return findings


def stable_id(*parts: object) -> str:
    """Return a digest of values that JSON can hold: 128 bits of SHA-256, in hexadecimal.

    >>> stable_id("ann", 1) == stable_id("ann", 1) != stable_id("ann", 2)
    True
    """
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_ID_DIGITS]


def _finite_scores(labels: Sequence[str], row: Mapping[str, Any]) -> dict[str, float]:
    scores = {label: row.get(label) for label in labels}
    return {
        label: value
        for label, value in scores.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def _explanation_fields(
    row: Mapping[str, Any], columns: ExplanationColumns | None
) -> dict[str, Any]:
    if columns is None:
        return {}
    named, explanation = row.get(columns.top_columns), row.get(columns.explanation)
    return {
        "reason": row.get(columns.reason),
        "columns": tuple(named.split(", ")) if named else (),
        "explanation": msgspec.json.decode(explanation, type=Explanation) if explanation else None,
    }
