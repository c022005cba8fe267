"""Column names: the reserved ones, and what the columns of one kind of log mean.

Column names are those of the flat table: the names of nested fields, joined without dots
(`userIdentity.arn` is `userIdentityarn`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

if TYPE_CHECKING:
    import polars as pl

ROW = ""
"""Number of an event among those of its user, from 0: the unnamed first column of the output."""
INDEX = "_index_"
"""Position of an event in its file, or the value of the file's own index column."""
EXCLUDED = "_excluded_"
"""Whether the schema excludes an event; only while files are read."""
ACTOR_OPTION = "@actor"
"""Given in place of a user column, it selects `ACTOR`."""
IDENTITY_OPTION = "@identity"
"""Given in place of columns to pseudonymize, it selects those that identify users."""
ACTOR = "actor"
"""Column of the actor of each event, by the rules of the log format."""
TIME = "event_dt"
"""Time of an event, in UTC, as a datetime."""
POPULATION_USER = "_owner_"
"""User column of a sample of all users' events."""
SCORE = "ae_anomaly_score"
"""Mean reconstruction loss of an event over its columns."""
RISK = "risk"
"""How unusual an event and the events before it are, comparable between users."""
INCIDENT_SCORE = "incident_score"
"""Highest risk of the user's day so far."""
PVALUE = "pvalue"
"""Probability that a usual day of the user has such a risk."""
SEVERITY = "severity"
"""Severity of the user's day so far, from 0 to 100."""
INCIDENT_ID = "incident_id"
"""Id of the incident that an alert belongs to."""
INCIDENT_SEVERITY = "incident_severity"
"""Severity of that incident, from 0 to 100."""
MODEL_VERSION = "model_version"
"""Number of the version of the model store that published the fingerprint of the user."""
TS_ANOMALY = "ts_anomaly"
"""Whether an event is in a time bin with a time-series anomaly."""
RATE_PVALUE = "rate_pvalue"
"""Probability that a benign day of the user has a burst as strong as the one up to an event."""


ROW_ID = "row_id"
"""Id of a row of an endless run: the same when the row is written again after a crash."""
LATE = "late"
"""Whether an event came after the run of its period, or after the allowance for late events."""
DAY_COUNTS = frozenset({"logcount", "locincrement", "appincrement"})
"""Derived columns that count what the user has done so far that day."""


class ExplanationColumns(NamedTuple):
    """Names of the columns that `explain` adds."""

    reason: str = "reason"
    top_columns: str = "top_columns"
    explanation: str = "explanation"

    def with_prefix(self, prefix: str) -> Self:
        """Return the same names with a prefix."""
        return type(self)(*(prefix + name for name in self))

    @classmethod
    def find_in(cls, columns: Iterable[str]) -> Self | None:
        """Find them among the columns of a frame, with any prefix; None if they are missing.

        Two of the three are needed. Logs of Duo and Kubernetes have a `reason` of their own.

        >>> columns = ["reason", "event_dt", "why_reason", "why_top_columns"]
        >>> ExplanationColumns.find_in(columns)[0]
        'why_reason'
        >>> ExplanationColumns.find_in(["reason", "event_dt"]) is None
        True
        """
        prefixes = Counter(
            column.removesuffix(name)
            for column in columns
            for name in cls()
            if column.endswith(name)
        )
        last = next((prefix for prefix in reversed(prefixes) if prefixes[prefix] > 1), None)
        return None if last is None else cls().with_prefix(last)


@dataclass(frozen=True)
class EventFields:
    """Which columns of one kind of log hold what most logs have.

    Each field names its columns, the best one first: the first one with a value counts. A field is
    empty if the log has no such column.

    Attributes:
        event_id: Id of the event in its log.
        action: What was done: the name of an operation, or the type of the event.
        service: Service or application that was used.
        resource: What the action was applied to.
        source_address: Where it came from: an IP address, or the name of a service.
        country: Country of the source.
        city: City of the source.
        user_agent: User agent.
        account: Account, project or organisation.
        region: Cloud region.
        session: Session or credential.
        error_code: Error code; empty or 0 if the action succeeded.
        error_message: Error message.
        result: Result in the log's own word, such as `success` or `denied`.
    """

    event_id: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    service: tuple[str, ...] = ()
    resource: tuple[str, ...] = ()
    source_address: tuple[str, ...] = ()
    country: tuple[str, ...] = ()
    city: tuple[str, ...] = ()
    user_agent: tuple[str, ...] = ()
    account: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    error_code: tuple[str, ...] = ()
    error_message: tuple[str, ...] = ()
    result: tuple[str, ...] = ()

    def items(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        """Yield the name and the columns of each field."""
        return ((each.name, getattr(self, each.name)) for each in fields(self))

    @property
    def columns(self) -> frozenset[str]:
        """All columns of the fields."""
        return frozenset(name for _, names in self.items() for name in names)


QUERY_LANGUAGES = ("sql", "splunk", "kusto", "esql", "logging")
"""Languages of queries, which determine how values and conditions are written."""
QUERY_TIME_FORMATS = ("iso", "sql", "epoch")
"""2026-05-31T09:30:00Z, 2026-05-31 09:30:00, and seconds since 1970."""
MAX_QUERY_LENGTH = 100_000
"""Characters of a query, unless its tool allows fewer."""


class EvidenceQuery(msgspec.Struct, frozen=True):
    """A query that fetches the events of an incident from another tool.

    Attributes:
        name: Name of the tool.
        template: Text of the query. A line with a placeholder that has no value is left out.
            Placeholders: `{event_ids}` and `{identity}`, conditions on the ids of the events and
            on the fields that identify the user; `{from}` and `{to}`, times; `{from_day}` and
            `{to_day}`, dates for partitions; `{ids}`, a list of event ids; `{user_column}` and
            `{user}`, for each field with one value. Values are quoted by the rules of the language.
        language: One of `QUERY_LANGUAGES`.
        time_format: One of `QUERY_TIME_FORMATS`.
        columns: Names of fields in the tool, by flat column; several if the tool has several.
            A name may be an expression: `tostring(field)`.
        only_columns: Whether the tool has no other fields. Otherwise the name of another field is
            its path in the record.
        max_length: Maximum length of a query, in characters.
    """

    name: str
    template: str
    language: str = "sql"
    time_format: str = "iso"
    columns: Mapping[str, str | tuple[str, ...]] = msgspec.field(default_factory=dict)
    only_columns: bool = False
    max_length: int = MAX_QUERY_LENGTH


SPLUNK_QUERY = EvidenceQuery(
    "Splunk",
    "search index=* earliest={from} latest={to}\n  {event_ids}\n| where {identity}\n| sort 0 _time",
    "splunk",
    "epoch",
)
"""Query for any log in Splunk."""


class FieldCondition(NamedTuple):
    """A condition on a column that identifies a user.

    Attributes:
        column: The column.
        values: Values that it may have.
        prefixes: Beginnings that its value may have. Without values and prefixes, the condition
            cannot be written: the values are too many or too long.
    """

    column: str
    values: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def remove_prefix(self, added: Mapping[str, str]) -> FieldCondition:
        """Remove the text that reading puts in front of values, by column.

        >>> FieldCondition("account", ("Account-1",)).remove_prefix({"account": "Account-"})
        FieldCondition(column='account', values=('1',), prefixes=())
        """
        text = added.get(self.column, "")
        values, prefixes = (
            tuple(value.removeprefix(text) for value in found)
            for found in (self.values, self.prefixes)
        )
        return FieldCondition(self.column, values, prefixes)


Identity = tuple[tuple[FieldCondition, ...], ...]
"""What identifies a user in a log: alternatives, each a list of conditions that all apply."""

FIELD_LABELS = {
    "event_id": "Event ID",
    "action": "Action",
    "service": "Service",
    "resource": "Resource",
    "source_address": "Source address",
    "country": "Country",
    "city": "City",
    "user_agent": "User agent",
    "account": "Account",
    "region": "Region",
    "session": "Session",
    "error_code": "Error code",
    "error_message": "Error message",
    "result": "Result",
}
"""Label of each field of `EventFields`."""
RESULT_LABELS = {
    TIME: "Time",
    ACTOR: "Actor",
    SCORE: "Anomaly score",
    RISK: "Risk",
    INCIDENT_SCORE: "Highest risk of the day so far",
    PVALUE: "P-value",
    SEVERITY: "Severity of the day so far",
    MODEL_VERSION: "Version of the fingerprint",
    TS_ANOMALY: "Time-series anomaly",
    LATE: "Late event",
    RATE_PVALUE: "P-value of the burst",
    "zscore": "Z-score",
}
"""Labels of the columns that stages add."""
_ABBREVIATIONS = {
    word: word.upper()
    for word in ("api", "arn", "asn", "aws", "dns", "id", "ip", "mfa", "os", "tls", "uid")
} | {word: word.upper() for word in ("upn", "uri", "url", "uuid", "vpc")}
"""Words that labels write in capitals."""
CONDITION_FIELDS = ("service", "action", "source_address", "user_agent", "error_code")
"""Fields on which proposed suppressions have conditions, also if they explain no incident."""
_KEY_FIELDS = (
    "user_agent",
    "source_address",
    "session",
    "service",
    "action",
    "error_code",
    "region",
)
"""Fields that help most to judge an event, in this order."""


@dataclass(frozen=True)
class LogDescription:
    """What outputs need to know about one kind of log.

    Attributes:
        name: Name of the log.
        time_column: Column of the time.
        user_columns: Usual user columns, the best one first.
        event_fields: Which columns hold what most logs have.
        labels: Labels of other columns, for people.
        evidence: Queries that fetch the events of an incident.
        cloud_provider: Cloud provider of the log: `aws`, `azure`, `gcp`; None for other logs.
        sign_ins: Whether all events are sign-ins.
        unique_event_ids: Whether `event_id` identifies an event among those of one user at one
            time.
        paths: Path of the field in a record, by flat column, where the two differ.
        sources: Paths of the fields that the values of a column come from, by flat column, where
            they are not the column itself. Empty for values that no field has.
        id_pattern: Regular expression of event ids that other tools know.
        ignored_prefixes: Text that reading puts in front of values, by flat column.
        caseless_columns: Flat columns that are read in lower case.
        actor_columns: Flat columns that name the actor.
        identify: Finds what identifies the actor of some events; see `find_identity`.
        volatile_columns: Columns that have another value in each event or session, or that depend
            on the time and on earlier events.
    """

    name: str = "log"
    time_column: str = ""
    user_columns: tuple[str, ...] = ()
    event_fields: EventFields = field(default_factory=EventFields)
    labels: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[EvidenceQuery, ...] = (SPLUNK_QUERY,)
    cloud_provider: str | None = None
    sign_ins: bool = False
    unique_event_ids: bool = True
    paths: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    id_pattern: str = "."
    ignored_prefixes: Mapping[str, str] = field(default_factory=dict)
    caseless_columns: tuple[str, ...] = ()
    actor_columns: tuple[str, ...] = ()
    identify: Callable[[pl.DataFrame, str], Identity] | None = field(default=None, compare=False)
    volatile_columns: frozenset[str] = frozenset()

    @property
    def summary_columns(self) -> tuple[str, ...]:
        """Columns that say in a word what was done; the first that exists is enough."""
        known = self.event_fields
        names = known.service + known.action if self.sign_ins else known.action + known.service
        return tuple(dict.fromkeys(names))

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns that help most to judge an event, in order."""
        names = (name for field in _KEY_FIELDS for name in getattr(self.event_fields, field))
        return tuple(dict.fromkeys(names))

    def list_fields(self, query: EvidenceQuery, column: str) -> tuple[str, ...]:
        """Return the names that a column has in the tool of a query; empty if it has no field.

        >>> log = LogDescription(sources={"who": ("user.name", "user.id")})
        >>> log.list_fields(EvidenceQuery("Mine", ""), "who")
        ('user.name', 'user.id')
        >>> log.list_fields(EvidenceQuery("Mine", "", columns={"who": "holder"}), "who")
        ('holder',)
        """
        names = query.columns.get(column)
        if names is None:
            return () if query.only_columns else self.sources.get(column, (column,))
        return (names,) if isinstance(names, str) else names

    def label_columns(self, columns: Iterable[str]) -> dict[str, str]:
        """Return a label for each of some columns: a different one for each.

        A column without a label is named by the words of its path. Columns with the same label are
        told apart by those words.

        >>> log = LogDescription(event_fields=EventFields(user_agent=("agent", "browser")))
        >>> log.label_columns(["agent", "userIdentity.arn"])
        {'agent': 'User agent', 'userIdentity.arn': 'ARN'}
        >>> log.label_columns(["agent", "browser", "ts_anomaly"])["browser"]
        'User agent (browser)'
        """
        known = RESULT_LABELS | self.list_labels()
        paths = {name: self._find_path(name) for name in columns}
        short = {name: " ".join(split_path(path)) for name, path in paths.items()}
        base = {name: known.get(name) or self.name_column(name) for name in paths}
        whole = {name: " ".join(_split_words(path)) for name, path in paths.items()}
        labels = base
        for details in (short, whole):
            shared = _find_shared(labels, known)
            labels = {
                name: f"{base[name]} ({details[name]})"
                if name in shared and base[name].casefold() != details[name].casefold()
                else label
                for name, label in labels.items()
            }
        shared = _find_shared(labels, known)
        return {
            name: f"{base[name]} ({name})" if name in shared else label
            for name, label in labels.items()
        }

    def name_column(self, column: str) -> str:
        """Return the words of a column's path, for a column without a label.

        >>> LogDescription().name_column("sourceIp")
        'Source IP'
        """
        return _capitalize(" ".join(split_path(self._find_path(column)))) or column

    def _find_path(self, column: str) -> str:
        """Return the path of a column; of a field that is not listed, what is below its group."""
        if column in self.paths:
            return self.paths[column]
        group = max((g for g in self._groups if column.startswith(g)), key=len, default="")
        return column.removeprefix(group) or column

    @cached_property
    def _groups(self) -> frozenset[str]:
        """Flat names of the groups that fields are in."""
        parents = (path.rpartition(".")[0] for path in self.paths.values())
        return frozenset(parent.replace(".", "") for parent in parents if parent)

    def list_labels(self) -> dict[str, str]:
        """Return the label of each column that the log's description has one for.

        >>> log = LogDescription(event_fields=EventFields(user_agent=("agent",)))
        >>> log.list_labels()
        {'agent': 'User agent'}
        """
        known = {
            name: FIELD_LABELS[field]
            for field, names in self.event_fields.items()
            for name in names
        }
        return known | dict(self.labels)


def _find_shared(labels: Mapping[str, str], known: Container[str]) -> set[str]:
    """Return the columns whose label others have as well, apart from the one it was written for."""
    groups: dict[str, list[str]] = {}
    for name, label in labels.items():
        groups.setdefault(label.casefold(), []).append(name)
    shared: set[str] = set()
    for names in groups.values():
        written = [name for name in names if name in known]
        if len(names) > 1:
            shared.update(set(names) - set(written) if len(written) == 1 else names)
    return shared


def split_path(path: str) -> list[str]:
    """Return the words of the last two names of a path; the first name only groups others.

    >>> split_path("requestParameters.maxResults"), split_path("responseElements.groupSet.items")
    (['max', 'results'], ['group', 'set', 'items'])
    >>> split_path("additionalEventData.MFAUsed")
    ['MFA', 'used']
    """
    names = path.split(".")
    return _split_words(" ".join((names[1:] or names)[-2:]))


def _split_words(text: str) -> list[str]:
    words = re.split(r"[\s._:-]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", text)
    return [word if word.isupper() else word.lower() for word in words if word]


def _capitalize(text: str) -> str:
    words = [_ABBREVIATIONS.get(word, word) for word in text.split()]
    return " ".join([word[:1].upper() + word[1:] for word in words[:1]] + words[1:])


def merge_descriptions(logs: Collection[LogDescription]) -> LogDescription:
    """Describe a log of unknown kind: each field has the columns of all known logs."""
    merged = {
        each.name: tuple(
            dict.fromkeys(n for log in logs for n in getattr(log.event_fields, each.name))
        )
        for each in fields(EventFields)
    }
    users = dict.fromkeys(name for log in logs for name in log.user_columns)
    return LogDescription(
        user_columns=tuple(users),
        event_fields=EventFields(**merged),
        unique_event_ids=False,
        volatile_columns=frozenset().union(*(log.volatile_columns for log in logs)),
    )
