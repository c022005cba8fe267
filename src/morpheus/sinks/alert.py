"""What the columns of the logs we know mean, whatever each log calls them."""

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

from morpheus.columns import RISK, TIME, TS_ANOMALY, ExplanationColumns
from morpheus.core.batch import Batch
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.text import display_value

FIELD_MAP = {
    "event": ("eventID", "id", "txid"),
    "operation": ("eventName", "operationName", "eventtype"),
    "service": ("eventSource", "appDisplayName", "applicationname"),
    "address": ("sourceIPAddress", "ipAddress", "accessdeviceip"),
    "country": ("locationcountryOrRegion", "accessdevicelocationcountry"),
    "city": ("locationcity", "accessdevicelocationcity"),
    "agent": ("userAgent",),
    "account": ("recipientAccountId", "userIdentityaccountId"),
    "region": ("awsRegion",),
    "error": ("errorCode", "statuserrorCode"),
    "message": ("errorMessage", "statusfailureReason"),
    "result": ("result", "responseElementsConsoleLogin"),
}
"""Flat columns of CloudTrail, Entra ID and Duo that tell each trait; the first that does counts."""

CLOUD_PROVIDERS = {"from-cloudtrail": "aws", "from-azure": "azure"}
"""Whose cloud a source's logs are of."""
SOURCES_WITH_EVENT_IDS = {"from-cloudtrail", "from-azure", "from-duo"}
"""Sources of logs in which `event` tells events apart, at one moment and of one user."""
SIGN_IN_SOURCES = {"from-azure", "from-duo"}
"""Sources of logs of people signing in."""

_ACCOUNT_PREFIX = (
    "Account-"  # how the lessons' tables, and our reading of CSV, begin an account's number
)
_NO_ERROR_CODES = {"0"}
_FAILURE_RESULTS = {"failure", "failed", "denied", "deny", "fraud", "error"}
_SUCCESS_RESULTS = {"success", "allow"}


@dataclass(frozen=True)
class NormalisedFields:
    """What an event says of itself; None where it does not.

    Attributes:
        event: Its id in its own log.
        operation: What was asked for.
        service: Of whom.
        address: From where: an IP address, or the name of a service.
        country: Where that is.
        city: The same.
        agent: With which program.
        account: In which account, by its number alone.
        region: In which region of a cloud.
        error: Code of an error.
        message: What the log says of the error.
        result: How it ended, in the log's own word.
    """

    event: str | None = None
    operation: str | None = None
    service: str | None = None
    address: str | None = None
    country: str | None = None
    city: str | None = None
    agent: str | None = None
    account: str | None = None
    region: str | None = None
    error: str | None = None
    message: str | None = None
    result: str | None = None

    @classmethod
    def from_event(cls, event: Mapping[str, str]) -> Self:
        """Find the traits in an event's columns.

        >>> NormalisedFields.of({"eventName": "GetUser", "errorCode": "AccessDenied"}).failed
        True
        """
        found = {
            trait: next((event[name] for name in names if event.get(name)), None)
            for trait, names in FIELD_MAP.items()
        }
        if found["error"] in _NO_ERROR_CODES:
            found |= {"error": None, "result": found["result"] or "success"}
        if found["account"]:
            found["account"] = found["account"].removeprefix(_ACCOUNT_PREFIX)
        return cls(**found)

    @property
    def ip(self) -> str | None:
        """The address, where it is one.

        >>> NormalisedFields(address="203.0.113.7").ip, NormalisedFields(address="s3.amazonaws.com").ip
        ('203.0.113.7', None)
        """
        try:
            return str(ip_address(self.address or ""))
        except ValueError:
            return None

    @property
    def failed(self) -> bool | None:
        """Whether what was asked for was refused; None where the event does not say."""
        if self.error or (self.result or "").lower() in _FAILURE_RESULTS:
            return True
        return False if (self.result or "").lower() in _SUCCESS_RESULTS else None


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
        known = (
            NormalisedFields.from_event(event).event
            if self.source in SOURCES_WITH_EVENT_IDS
            else None
        )
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


def _explanation_fields(
    row: Mapping[str, Any], columns: ExplanationColumns | None
) -> dict[str, Any]:
    if columns is None:
        return {}
    named, why = row.get(columns.top_columns), row.get(columns.explanation)
    return {
        "reason": row.get(columns.reason),
        "columns": tuple(named.split(", ")) if named else (),
        "explanation": msgspec.json.decode(why, type=Explanation) if why else None,
    }
