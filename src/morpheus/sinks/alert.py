"""`Alert`: one event with its scores, explanation and normalised fields, for alert formats."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any, Self

import msgspec

from morpheus.columns import (
    PVALUE,
    RISK,
    SEVERITY,
    TIME,
    TS_ANOMALY,
    EventFields,
    ExplanationColumns,
    LogDescription,
)
from morpheus.core.batch import Batch
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.sources.results import complete_log
from morpheus.text import display_value

# Begins account numbers in the lessons' tables, and in what we read from CSV.
_ACCOUNT_PREFIX = "Account-"
_NO_ERROR_CODES = {"0"}
_FAILURE_RESULTS = {"failure", "failed", "denied", "deny", "forbid", "fraud", "error"}
_SUCCESS_RESULTS = {"success", "allow"}


@dataclass(frozen=True)
class NormalisedFields:
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
HIGH_PVALUE, MEDIUM_PVALUE = 0.02, 0.1
"""Largest p-values of alerts of high and of medium severity."""
HIGH_SEVERITY, MEDIUM_SEVERITY = 56.0, 33.0
"""Lowest scores `severity` of such alerts, for these p-values."""

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
    def severity(self) -> int:
        """Severity as in OCSF: 4 high, 3 medium, 2 low, 1 informational, 0 unknown.

        It follows from the score `severity` of the user's day so far; without it, from the score
        `pvalue` of the event. Events without scores are informational; without both it is unknown.
        """
        if not self.scores:
            return 1
        severity, pvalue = self.scores.get(SEVERITY), self.scores.get(PVALUE)
        if severity is not None:
            return 4 if severity >= HIGH_SEVERITY else 3 if severity >= MEDIUM_SEVERITY else 2
        if pvalue is not None:
            return 4 if pvalue <= HIGH_PVALUE else 3 if pvalue <= MEDIUM_PVALUE else 2
        return 0

    @property
    def raw_event(self) -> str:
        """The columns of the log, as JSON."""
        return msgspec.json.encode(self.event).decode()


@dataclass
class AlertBuilder:
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
    _counts: Counter[str] = field(default_factory=Counter)

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
