"""An event that someone should look at, as every form of alert needs it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec

from morpheus.columns import TS_ANOMALY, RISK, TIME, ExplanationColumns
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.quoting import display_value
from morpheus.records import Batch
from morpheus.sinks.traits import SOURCES_WITH_EVENT_IDS, CLOUD_PROVIDERS, NormalisedFields

VENDOR = PRODUCT = "morpheus"
VERSION = version(PRODUCT)
HIGH_PVALUE, MEDIUM_PVALUE = 0.02, 0.1
"""Share of a user's held-out events at least as risky, up to which an alert is so severe."""

_ID_DIGITS = 32  # hexadecimal digits of an id: 128 bits
_MAX_TITLE_NAME = 128  # signs of a user's name in a title


@dataclass(frozen=True)
class Alert:
    """One event, why it is strange, and who caused it.

    Attributes:
        id: The same for the same event in each run, whatever the fingerprint says of it.
        user: Whose event it is; None where the log names nobody.
        time: When it happened.
        source: Word of the source it was read by.
        event: Its own columns, as text, without those that are empty.
        scores: What `add-scores` says of it, by label, without what is no number.
        reason: Why it is strange, in one sentence; None without `explain`.
        columns: The columns named in it.
        explanation: All that `explain` says.
        ts_anomaly: Whether it breaks its user's rhythm; None where nothing looked at it.
        training_data_scope: Whose history it is compared with; None without a fingerprint.
    """

    id: str
    user: str | None
    time: datetime
    source: str
    event: Mapping[str, str]
    scores: Mapping[str, float]
    reason: str | None = None
    columns: tuple[str, ...] = ()
    explanation: Explanation | None = None
    ts_anomaly: bool | None = None
    training_data_scope: str | None = None

    @cached_property
    def fields(self) -> NormalisedFields:
        """What the event says of itself."""
        return NormalisedFields.from_event(self.event)

    @property
    def provider(self) -> str | None:
        """Whose cloud it happened in, `aws` or `azure`; None outside."""
        return CLOUD_PROVIDERS.get(self.source)

    @property
    def title(self) -> str:
        """A line that names the user and the columns, fit to be shown."""
        who = display_value(self.user, _MAX_TITLE_NAME) if self.user is not None else "no user"
        if self.columns:
            return f"{who}: unusual {', '.join(display_value(name) for name in self.columns)}"
        return f"{who}: {'break of rhythm' if self.ts_anomaly else 'unusual event'}"

    @property
    def message(self) -> str:
        """The reason, or else the title."""
        return self.reason or self.title

    @property
    def risk(self) -> float | None:
        """Its risk; None where it has none."""
        return self.scores.get(RISK)

    @property
    def severity(self) -> int:
        """4 high, 3 medium, 2 low, 1 without a score, 0 where scores do not say.

        It goes by `pvalue`; the numbers are those of OCSF.
        """
        if not self.scores:
            return 1
        chance = self.scores.get("pvalue")
        if chance is None:
            return 0
        return 4 if chance <= HIGH_PVALUE else 3 if chance <= MEDIUM_PVALUE else 2

    @property
    def raw_event(self) -> str:
        """The event's own columns, as JSON text."""
        return msgspec.json.encode(self.event).decode()


@dataclass
class AlertBuilder:
    """Makes alerts of events, and tells apart events that are alike.

    Args:
        stage: The word of the sink, for messages.
        source: The word of the source.
    """

    stage: str
    source: str
    _last_key: tuple[str | None, datetime] | None = None
    _counts: Counter[str] = field(default_factory=Counter)

    def build(self, batch: Batch) -> Iterator[Alert]:
        """Make an alert of each event.

        Raises:
            UsageError: `serialize` has left out the time.
        """
        frame = batch.frame
        if TIME not in frame.columns:
            raise UsageError(
                f"{self.stage}: events have no column `{TIME}` here: `serialize` left it out. Put "
                f"`{self.stage}` before `serialize`, or choose the column too: "
                f"`serialize --include={TIME}`."
            )
        words = ExplanationColumns.find_in(frame.columns)
        for row in frame.iter_rows(named=True):
            event = {name: str(row[name]) for name in batch.log_columns if row[name] is not None}
            yield Alert(
                id=self._make_id(batch.user, row[TIME], event),
                user=batch.user,
                time=row[TIME],
                source=self.source,
                event=event,
                scores=_finite_scores(batch.scores, row),
                ts_anomaly=row.get(TS_ANOMALY),
                training_data_scope=batch.card.rung if batch.card is not None else None,
                **_explanation_fields(row, words),
            )

    def _make_id(self, user: str | None, time: datetime, event: Mapping[str, str]) -> str:
        """A digest of who, when and what; of events alike in all of it, their number as well."""
        known = NormalisedFields.from_event(event).event if self.source in SOURCES_WITH_EVENT_IDS else None
        if self._last_key != (user, time):
            self._last_key = user, time
            self._counts.clear()
        what = stable_id(self.source, user, time.isoformat(), known or sorted(event.items()))
        self._counts[what] += 1
        return what if self._counts[what] == 1 else stable_id(what, self._counts[what])


def stable_id(*parts: object) -> str:
    """A short checksum of anything that is JSON.

    >>> stable_id("ann", 1) == stable_id("ann", 1) != stable_id("ann", 2)
    True
    """
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_ID_DIGITS]


def _finite_scores(labels: Sequence[str], row: Mapping[str, Any]) -> dict[str, float]:
    found = {label: row.get(label) for label in labels}
    return {
        label: value
        for label, value in found.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def _explanation_fields(row: Mapping[str, Any], columns: ExplanationColumns | None) -> dict[str, Any]:
    if columns is None:
        return {}
    named, why = row.get(columns.top_columns), row.get(columns.explanation)
    return {
        "reason": row.get(columns.reason),
        "columns": tuple(named.split(", ")) if named else (),
        "why": msgspec.json.decode(why, type=Explanation) if why else None,
    }
