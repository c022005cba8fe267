"""Explanations of events: the columns that cause the risk, the context, and one sentence.

`Explanation` has the numbers, and `ReasonWriter` writes the sentence.

Two sums are exact to the last of six decimals. The `anomaly` of the columns and of the `others`
adds up to the event's anomaly. The event's `risk` is the sum of `own` and `earlier`, and also the
sum of the `risk` of the columns and `others_risk`.

The structs are encoded as JSON; a field with another name in JSON has it in `name=`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import NamedTuple, Self

import msgspec
import polars as pl
from msgspec import inspect

from morpheus.columns import DAY_COUNTS, INDEX, TIME, LogDescription
from morpheus.features.derived import NOVELTY_PREFIX, PREVIOUS_PREFIX
from morpheus.models.profile import SCOPE_OWN, SCOPE_PEER_GROUP, ModelCard
from morpheus.models.scoring import RISK_DECIMALS
from morpheus.text import ELLIPSIS, elide_middle, escape_control, format_count

SECONDS_PER_DAY = 86400
LEAST_REPORTED, MIN_REPORTED = 2.0, 10.0
"""Minimum anomaly of a column that is reported: half of the largest, between these."""
MIN_CONTEXT_SHARE = 0.25
"""Share of the risk from which the context is part of the reason."""
MAIN_CONTEXT_SHARE = 0.5
"""Share of the risk from which the context is the main reason."""
MAX_REASON_LENGTH = 160
"""Maximum number of characters of a reason."""
MAX_RARE_SHARE = 0.01
"""Share of the user's events up to which a known value is rare."""
MIN_COMMON_SHARE, MAX_UNCOMMON_SHARE = 0.02, 0.001
"""Mean share of other users' events from which a value is common, and up to which it is rare."""


def limit_reported(contributions: Iterable[float]) -> float:
    """Return the contribution from which columns are reported.

    >>> limit_reported([77.0, 8.8]), limit_reported([13.0, 8.7]), limit_reported([1.0])
    (10.0, 6.5, 2.0)
    """
    return max(LEAST_REPORTED, min(MIN_REPORTED, max(contributions, default=0.0) / 2))


def round_decimals(value: float) -> float:
    """Round to `RISK_DECIMALS`, without a negative zero."""
    return round(float(value), RISK_DECIMALS) + 0.0


class ExpectedValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that was more likely than the observed one.

    Attributes:
        value: The value; None for a missing value, or for any new one.
        probability: Its probability given the event's other values.
        new: Whether it stands for all new values together.
    """

    value: str | float | None
    probability: float
    new: bool = False


class ColumnReason(msgspec.Struct, frozen=True):
    """Explanation of one column of an event.

    Attributes:
        column: Name of the column.
        value: The observed value, ready for display; None for a missing value.
        new: Whether the value is new: it occurs at most once in the history, and on no day since.
        anomaly: Its part of the event's anomaly, in tenths of nats.
        risk: Its part of the event's risk, with the context.
        dominant_contribution: Its part of the larger of own and earlier, or of own if only earlier
            days contribute, which are not divided among columns. Columns are sorted by it.
        anomalous_before: Number of anomalous events in the 24 hours before in which the column was
            anomalous too, if earlier events contribute most; 0 if the event itself does.
        redundant_columns: Columns with the same information throughout the history, which are at
            most as anomalous.
        probability: Probability of the value given the event's other values; None for a number.
        bits: -log2 of it; for a number, with its squared error in nats added.
        typical_bits: Mean of `bits` in this column on validation events.
        likelihood_ratio_bits: log2 of how much more likely the value is among other users than for
            this user.
        marginal_dominates: Whether the likelihood ratio is more unusual than the probability.
        distance: Distance of a number from the expected one, in standard deviations; None without a
            number.
        expected: More likely values, most likely first; for a number the expected one.
    """

    column: str
    value: str | None
    new: bool
    anomaly: float = msgspec.field(name="strangeness")
    risk: float
    dominant_contribution: float = msgspec.field(name="loudest")
    anomalous_before: int = msgspec.field(name="strange_before")
    redundant_columns: tuple[str, ...] = msgspec.field(name="twins")
    probability: float | None
    bits: float
    typical_bits: float = msgspec.field(name="usual_bits")
    likelihood_ratio_bits: float = msgspec.field(name="habit_bits")
    marginal_dominates: bool = msgspec.field(name="habit")
    distance: float | None
    expected: tuple[ExpectedValue, ...]


class ContextContribution(msgspec.Struct, frozen=True):
    """The context of an event: how earlier events contribute to its risk.

    Attributes:
        risk: The event's risk.
        own: The risk if nothing unusual had come before.
        earlier: Contribution of the earlier events of the day, and of earlier days.
        anomalous_in_hour: Anomalous events in the hour before.
        anomalous_in_day: Anomalous events in the 24 hours before.
    """

    risk: float
    own: float
    earlier: float
    anomalous_in_hour: int = msgspec.field(name="strange_in_hour")
    anomalous_in_day: int = msgspec.field(name="strange_in_day")

    @property
    def dominant_index(self) -> int:
        """Position of the larger part: 0 for the event itself, 1 for earlier events."""
        return int(self.earlier > self.own)


class Baseline(msgspec.Struct, frozen=True):
    """The history that the event is compared with.

    Attributes:
        training_data_scope: Whose history: `own`, `peers` or `everyone`.
        own_events: Events in it that are the user's own.
        events: All events in it.
        days: Days that the user's own events span; None without any.
    """

    training_data_scope: str = msgspec.field(name="rung")
    own_events: int
    events: int
    days: int | None

    @classmethod
    def from_card(cls, card: ModelCard) -> Self:
        """Read the history from the card of a fingerprint."""
        days = None
        if card.first and card.last:
            span = datetime.fromisoformat(card.last) - datetime.fromisoformat(card.first)
            days = max(1, round(span.total_seconds() / SECONDS_PER_DAY))
        return cls(card.training_data_scope, card.events, card.events + card.borrowed_events, days)


class Counterfactual(msgspec.Struct, frozen=True):
    """A small change that would make an event normal.

    Attributes:
        columns: Values that the event would have; empty for a normal event.
        before: Its anomaly.
        after: Its anomaly with the change.
        limit: The highest normal anomaly.
    """

    columns: tuple[ReplacedValue, ...]
    before: float
    after: float
    limit: float


class ReplacedValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """Value of a column in another event.

    Attributes:
        column: Name of the column.
        value: The value; None for a missing value, or for any new one.
        new: Whether it was a new value.
    """

    column: str
    value: str | float | None
    new: bool = False


class NearestNormalEvent(msgspec.Struct, frozen=True):
    """An earlier normal event of the same user that is similar to this one.

    Attributes:
        seconds: Its time, in seconds since 1970.
        same: Number of columns with equal values.
        columns: Number of all columns.
        differs: Columns with other values, most anomalous first, with the values of the normal
            event.
    """

    seconds: float = msgspec.field(name="at")
    same: int
    columns: int
    differs: tuple[ReplacedValue, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Explanation of an event.

    Attributes:
        event_anomaly: Anomaly of all columns.
        columns: Columns that are shown, by contribution to the risk.
        others: Anomaly of the other columns.
        others_risk: Their part of the risk.
        preceding: The context.
        background: The history that the event is compared with.
        change: A change that would make it normal; None if it was not computed.
        nearest: The most similar normal events before it.
        normal_columns: Columns with a normal value.
    """

    event_anomaly: float = msgspec.field(name="surprise")
    columns: tuple[ColumnReason, ...]
    others: float
    others_risk: float
    preceding: ContextContribution
    background: Baseline
    change: Counterfactual | None = None
    nearest: tuple[NearestNormalEvent, ...] = ()
    normal_columns: tuple[str, ...] = msgspec.field(default=(), name="usual")

    @classmethod
    def from_columns(
        cls,
        event_anomaly: float,
        columns: tuple[ColumnReason, ...],
        preceding: ContextContribution,
        background: Baseline,
    ) -> Self:
        """Compute what the columns that are shown leave to the others."""
        others = round_decimals(event_anomaly - sum(column.anomaly for column in columns))
        others_risk = round_decimals(preceding.risk - sum(column.risk for column in columns))
        return cls(event_anomaly, columns, others, others_risk, preceding, background)

    def top_columns(self, max_columns: int) -> tuple[ColumnReason, ...]:
        """Return the columns that contribute most, without redundant ones.

        Columns with usual values have a small share, too. They are left out, unless none has more.
        """
        redundant = {name for reason in self.columns for name in reason.redundant_columns}
        top = [
            reason
            for reason in self.columns
            if reason.dominant_contribution > 0 and reason.column not in redundant
        ]
        limit = limit_reported(reason.dominant_contribution for reason in top)
        large = [reason for reason in top if reason.dominant_contribution >= limit]
        return tuple((large or top[:1])[:max_columns])


class EventFacts(msgspec.Struct, frozen=True):
    """What the reason of an event says besides its explanation.

    Attributes:
        action: What was done; None if the log does not say.
        action_column: Column that says so.
        frequency: Share of the user's earlier events with the same value, by column.
        others: Mean share of other users' events with the same value, by column; only values that
            the history has, and only if there are other users.
        time: Time of day and weekday, such as `03:12 on a Saturday`.
        is_outside_hours: Whether the user is never active at that time.
        earlier: Latest unusual actions before, the latest first. Empty text stands for one that has
            no name.
        is_same_day: Whether they are of the same day.
    """

    action: str | None = None
    action_column: str = ""
    frequency: Mapping[str, float] = msgspec.field(default_factory=dict)
    others: Mapping[str, float] = msgspec.field(default_factory=dict)
    time: str = ""
    is_outside_hours: bool = False
    earlier: tuple[str, ...] = ()
    is_same_day: bool = True


class ColumnRole(NamedTuple):
    """How a reason names a column.

    Attributes:
        preposition: Word before it.
        label: Its name for people.
        rank: Its place among the columns: actions, sources and agents come first, identifiers last.
    """

    preposition: str
    label: str
    rank: int


_ACTION, _SOURCE, _AGENT, _OBJECT, _OTHER, _IDENTIFIER = range(6)
_FIELD_ROLES = {
    "event_id": ColumnRole("with", "event id", _IDENTIFIER),
    "action": ColumnRole("with", "action", _ACTION),
    "service": ColumnRole("in", "service", _OBJECT),
    "resource": ColumnRole("on", "resource", _OBJECT),
    "source_address": ColumnRole("from", "address", _SOURCE),
    "country": ColumnRole("from", "country", _SOURCE),
    "city": ColumnRole("from", "city", _SOURCE),
    "user_agent": ColumnRole("with", "agent", _AGENT),
    "account": ColumnRole("in", "account", _IDENTIFIER),
    "region": ColumnRole("in", "region", _OBJECT),
    "session": ColumnRole("with", "session", _IDENTIFIER),
    "error_code": ColumnRole("with", "error", _OBJECT),
    "error_message": ColumnRole("with", "error message", _OBJECT),
    "result": ColumnRole("with", "result", _OBJECT),
}
_DERIVED_ROLES = {
    "verbclass": ColumnRole("with", "kind of action", _ACTION),
    "addressnetwork": ColumnRole("from", "network", _SOURCE),
    "network": ColumnRole("from", "network", _SOURCE),
    "addresskind": ColumnRole("from", "kind of address", _SOURCE),
    "agentfamily": ColumnRole("with", "kind of program", _AGENT),
}
HOUR_COLUMNS = frozenset({"hourofweek", "hourkind"})
_IDENTIFIER_NAME = re.compile(r"(?:id|Id|ID|arn|Arn|ARN|[kK]ey)$")
_MAX_LABEL = 28  # characters of a label
_MAX_ESCAPED = 200  # characters of a value that are escaped, before it is shortened to its place
_VALUE_LENGTHS = (32, 20)
_SHORTEST_VALUE = 10


class _Part(NamedTuple):
    """A part of a reason.

    Attributes:
        before: Text before the values, with what separates it from the part before.
        values: Values of the log.
        after: Text after them.
        priority: The part with the highest number is left out first; 0 for a part that stays.
        whole_start: A long value keeps its start only.
    """

    before: str
    values: tuple[str, ...] = ()
    after: str = ""
    priority: int = 0
    whole_start: bool = False

    def render(self, length: int) -> str:
        """Return the text, with values of at most a number of characters."""
        if not self.values:
            return self.before + self.after
        quoted = [_quote(value, length, whole_start=self.whole_start) for value in self.values]
        *first, last = quoted
        listed = f"{', '.join(first)} and {last}" if first else last
        return f"{self.before}{listed}{self.after}"


def _quote(text: str, length: int, *, whole_start: bool) -> str:
    """Return a value between backticks, at most `length` characters of it.

    It is shortened after it was escaped, because an escape is longer than its character.
    """
    safe = escape_control(elide_middle(text, _MAX_ESCAPED)).replace("`", r"\x60")
    if whole_start and len(safe) > length:
        safe = safe[: length - len(ELLIPSIS)] + ELLIPSIS
    return f"`{elide_middle(safe, length)}`"


class ReasonWriter(msgspec.Struct, frozen=True, dict=True):
    """Writes the reasons of one kind of log.

    Attributes:
        log: The log.
    """

    log: LogDescription = msgspec.field(default_factory=LogDescription)

    def write(
        self, explanation: Explanation, max_columns: int, facts: EventFacts | None = None
    ) -> str:
        """Return the reason for an event's risk: a sentence of at most `MAX_REASON_LENGTH`.

        It begins with the action, if the log has one.

        Args:
            explanation: The explanation.
            max_columns: Maximum number of columns in the sentence.
            facts: What else is known about the event.

        >>> bits = {"bits": 8.97, "typical_bits": 0.2, "likelihood_ratio_bits": 3.0}
        >>> parts = {"anomaly": 90, "risk": 90, "dominant_contribution": 9, "anomalous_before": 0}
        >>> rest = {"redundant_columns": (), "probability": 0.002, "marginal_dominates": False}
        >>> value = {"column": "userAgent", "value": "Boto3 on Kali", "new": True}
        >>> agent = ColumnReason(**value, **bits, **parts, **rest, distance=None, expected=())
        >>> alone, own = ContextContribution(9, 9, 0, 0, 0), Baseline(SCOPE_OWN, 400, 400, 58)
        >>> explanation = Explanation.from_columns(90.0, (agent,), alone, own)
        >>> ReasonWriter().write(explanation, 3, EventFacts(action="DeleteTrail"))
        '`DeleteTrail` with user agent `Boto3 on Kali`, new in 58 days.'
        """
        sentence = _Sentence(self, explanation, facts or EventFacts(), max_columns)
        text = _fit(list(sentence.iter_parts())).lstrip(" ,;")
        first = text[:1].upper()
        return (first if len(first) == 1 else text[:1]) + text[1:]

    def role(self, column: str) -> ColumnRole:
        """Return how a column is named."""
        if column.startswith(NOVELTY_PREFIX):
            base = self.role(column.removeprefix(NOVELTY_PREFIX))
            return base._replace(label=_show_label(column))
        if column.startswith(PREVIOUS_PREFIX):
            base = self.role(column.removeprefix(PREVIOUS_PREFIX))
            return ColumnRole("with", _show_label(f"previous {base.label}"), _OTHER)
        role = self._roles.get(column)
        if role is None:
            role = ColumnRole(
                "with", _lower_first(self.log.name_column(column)), _rank_name(column)
            )
        return role._replace(label=_show_label(role.label))

    @cached_property
    def _roles(self) -> dict[str, ColumnRole]:
        roles = {
            name: ColumnRole("with", _lower_first(label), _rank_name(name))
            for name, label in self.log.labels.items()
        }
        roles |= {name: ColumnRole("as", "user", _IDENTIFIER) for name in self.log.user_columns}
        for name, role in self._field_roles():
            label = self.log.labels.get(name)
            roles[name] = role._replace(label=_lower_first(label)) if label else role
        return roles | _DERIVED_ROLES

    def _field_roles(self) -> Iterator[tuple[str, ColumnRole]]:
        for known, names in self.log.event_fields.items():
            yield from ((name, _FIELD_ROLES[known]) for name in names)


def _show_label(label: str) -> str:
    return elide_middle(escape_control(elide_middle(label)).replace("`", "'"), _MAX_LABEL)


def _rank_name(column: str) -> int:
    return _IDENTIFIER if _IDENTIFIER_NAME.search(column) else _OTHER


def _lower_first(label: str) -> str:
    """Return a label for the middle of a sentence; abbreviations keep their capitals."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


class _Sentence(msgspec.Struct, frozen=True, dict=True):
    """A reason in parts.

    Attributes:
        writer: Names the columns.
        explanation: The explanation.
        facts: What else is known about the event.
        max_columns: Maximum number of columns.
    """

    writer: ReasonWriter
    explanation: Explanation
    facts: EventFacts
    max_columns: int

    def iter_parts(self) -> Iterator[_Part]:
        """Yield the parts of the sentence, in order."""
        main = self._context_share >= MAIN_CONTEXT_SHARE
        context = self._context_share >= MIN_CONTEXT_SHARE
        has_action = self.facts.action is not None
        yield from self._iter_actions()
        yield from self._iter_columns()
        if not self._columns and not context:
            yield _Part(": nothing unusual" if has_action else "nothing unusual")
        if context:
            yield self._context_part(0 if main else 3)
            if self.facts.earlier and not self.facts.is_same_day:
                yield _Part(" on earlier days", priority=3)
        yield from self._iter_notes()

    @cached_property
    def _context_share(self) -> float:
        context = self.explanation.preceding
        return context.earlier / (context.risk or 1)

    @cached_property
    def _top(self) -> tuple[ColumnReason, ...]:
        return self.explanation.top_columns(self.max_columns)

    @cached_property
    def _unusual(self) -> list[ColumnReason]:
        """The columns that are unusual in this event, by contribution."""
        limit = limit_reported(reason.anomaly for reason in self.explanation.columns)
        return [reason for reason in self._top if reason.anomaly >= limit]

    @cached_property
    def _columns(self) -> list[ColumnReason]:
        """The same columns in the order of the sentence."""
        return sorted(self._unusual, key=lambda reason: self.writer.role(reason.column).rank)

    @cached_property
    def _action(self) -> ColumnReason | None:
        """The reason that is the action itself."""
        if self.facts.action is None:
            return None
        column = self.facts.action_column
        return next((reason for reason in self._columns if reason.column == column), None)

    @cached_property
    def _first_new(self) -> ColumnReason | None:
        return next((reason for reason in self._columns if reason.new), None)

    def _iter_actions(self) -> Iterator[_Part]:
        """Yield the action, if the log says what it is."""
        if self.facts.action is None:
            return
        yield _Part("Sign-in to " if self.writer.log.sign_ins else "", (self.facts.action,))
        if self._action is not None:
            priority = 0 if self._action is self._main else 1
            yield _Part(self._describe_rarity(self._action), priority=priority)
            yield self._frequency_part(self._action)

    def _iter_columns(self) -> Iterator[_Part]:
        """Yield the other columns, and the time."""
        others = [reason for reason in self._columns if reason is not self._action]
        shown = [
            reason for reason in others if reason.column not in HOUR_COLUMNS or not self.facts.time
        ]
        has_action = self.facts.action is not None
        quiet = self._action is None or self._is_joint(self._action)
        for number, reason in enumerate(shown):
            separator = " " if has_action and quiet and not number else ", "
            yield self._column_part(reason, separator, is_first=not (has_action or number))
            yield self._frequency_part(reason)
        if self._is_joint_event:
            is_several = len(shown) + has_action > 1
            yield _Part(f", unusual {'together' if is_several else 'in this combination'}")
        hours = len(others) > len(shown)
        if self.facts.time and (hours or (self.facts.is_outside_hours and self._columns)):
            is_main = self._main is not None and self._main.column in HOUR_COLUMNS
            yield _Part(f", at {self.facts.time}", priority=0 if is_main else 1)

    @cached_property
    def _main(self) -> ColumnReason | None:
        """The unusual column that contributes most."""
        return next(iter(self._unusual), None)

    @cached_property
    def _is_joint_event(self) -> bool:
        """Whether only the combination of the values is unusual."""
        return bool(self._columns) and all(map(self._is_joint, self._columns))

    def _is_joint(self, reason: ColumnReason) -> bool:
        """Return whether only the combination with other values is unusual."""
        return not (
            reason.new
            or reason.distance is not None
            or reason.marginal_dominates
            or self.facts.frequency.get(reason.column, 1.0) <= MAX_RARE_SHARE
        )

    def _column_part(self, reason: ColumnReason, separator: str, *, is_first: bool) -> _Part:
        role, value = self.writer.role(reason.column), reason.value
        priority = 0 if reason is self._main else 2
        rarity, kind = self._describe_rarity(reason), ""
        if reason.distance is not None:
            return self._number_part(reason, separator, priority)
        if reason.column.startswith(PREVIOUS_PREFIX) and value is not None:
            return _Part(f"{separator}right after ", (value,), rarity, priority)
        if reason.column.startswith(NOVELTY_PREFIX) and value in {"True", "False"}:
            kind = "new " if value == "True" else "known "
            role = self.writer.role(reason.column.removeprefix(NOVELTY_PREFIX))
            return _Part(f"{separator}{role.preposition} {kind}{role.label}", priority=priority)
        if value is None:
            return _Part(f"{separator}without {role.label}", (), rarity, priority)
        if reason.new and reason is not self._first_new:
            kind, rarity = "new ", ""
        elif self._is_joint(reason) and not self._is_joint_event:
            before = f"{separator}unusually {role.preposition} {role.label} "
            return _Part(before, (value,), "", priority, role.rank == _AGENT)
        before = separator if is_first else f"{separator}{role.preposition} "
        start = role.rank == _AGENT
        return _Part(f"{before}{kind}{role.label} ", (value,), rarity, priority, start)

    def _number_part(self, reason: ColumnReason, separator: str, priority: int) -> _Part:
        label, high = self.writer.role(reason.column).label, (reason.distance or 0) > 0
        if reason.column in DAY_COUNTS:
            many = "many" if high else "few"
            return _Part(f"{separator}with unusually {many} {label}", priority=priority)
        degree = "high" if high else "low"
        values = () if reason.value is None else (reason.value,)
        return _Part(f"{separator}with unusually {degree} {label} ", values, "", priority)

    def _describe_rarity(self, reason: ColumnReason) -> str:
        """Return how rare a value is for the user; empty if only the combination is unusual."""
        if reason.new:
            baseline = self.explanation.background
            if baseline.training_data_scope == SCOPE_OWN and baseline.days:
                return f", new in {format_count(baseline.days, 'day')}"
            return ", new to this user"
        if self._is_joint(reason) or reason.distance is not None:
            return ""
        is_rare = self.facts.frequency.get(reason.column, 0.0) <= MAX_RARE_SHARE
        return f", {'rare' if is_rare else 'unusual'} for this user"

    def _frequency_part(self, reason: ColumnReason) -> _Part:
        """Return how often the user has a value that is rare, but known."""
        share = self.facts.frequency.get(reason.column)
        known = not (reason.new or reason.distance is not None or self._is_joint(reason))
        is_class = reason.column.startswith(NOVELTY_PREFIX)
        text = f" (1 in {_round_two(1 / share):,} events)" if known and share else ""
        return _Part("" if is_class else text, priority=4)

    def _context_part(self, priority: int) -> _Part:
        """Name the earlier events that add to the risk."""
        facts = self.facts
        before = [reason for reason in self._top if reason.anomalous_before]
        hidden = [self.writer.role(r.column).label for r in before if r not in self._columns]
        by_columns = bool(hidden) and not self._columns
        labels = f" (unusual {' and '.join(hidden[:2])})" if by_columns else ""
        separator = ", " if self._columns else " "
        if not facts.earlier:
            return _Part(f"{separator}after slightly unusual events{labels}", priority=priority)
        names = tuple(filter(None, facts.earlier))
        if not names:
            return _Part(f"{separator}after unusual events{labels}", priority=priority)
        return _Part(f"{separator}after unusual ", names, labels, priority)

    def _iter_notes(self) -> Iterator[_Part]:
        """Yield what other users do, whose history was used, and the full stop."""
        lead = self._action or (self._columns[0] if self._columns else None)
        # Of a number, only whether others have one is known.
        has_share = lead is not None and not lead.new and lead.distance is None
        share = self.facts.others.get(lead.column) if lead is not None and has_share else None
        if share is not None and lead is not None and not self._is_joint(lead):
            if share >= MIN_COMMON_SHARE:
                yield _Part("; common among others", priority=5)
            elif share <= MAX_UNCOMMON_SHARE:
                yield _Part("; others rarely do this", priority=5)
        scope = self.explanation.background.training_data_scope
        if scope != SCOPE_OWN:
            whom = "similar users" if scope == SCOPE_PEER_GROUP else "all users"
            yield _Part(f"; compared with {whom}", priority=6)
        yield _Part(".")


def _fit(parts: Sequence[_Part]) -> str:
    """Return the text of the parts, shortened to `MAX_REASON_LENGTH`.

    Parts that are less important are left out before values are cut to a few characters.
    """
    shown = list(parts)
    while True:
        for length in _VALUE_LENGTHS:
            text = "".join(part.render(length) for part in shown)
            if len(text) <= MAX_REASON_LENGTH:
                return text
        last, least = max(enumerate(shown), key=lambda item: (item[1].priority, item[0]))
        if not least.priority:
            return "".join(part.render(_SHORTEST_VALUE) for part in shown)
        del shown[last]


def _round_two(value: float) -> int:
    """Round to two significant digits.

    >>> _round_two(394.7)
    390
    """
    return int(float(f"{value:.2g}"))


def decode_explanation(text: str) -> Explanation:
    """Decode what `explain` wrote.

    Raises:
        DecodeError: The text is in another format.
    """
    return _EXPLANATION_DECODER.decode(text)


def decode_explanations(texts: pl.Series) -> pl.Series:
    """Convert explanations from JSON text to structs, whose fields have the names of the JSON."""
    decoded = [
        None if text is None else msgspec.to_builtins(_EXPLANATION_DECODER.decode(text))
        for text in texts
    ]
    kind = _to_polars_type(inspect.type_info(Explanation))
    return pl.Series(texts.name, decoded, dtype=kind, strict=False)


_EXPLANATION_DECODER = msgspec.json.Decoder(Explanation)
_PLAIN_KINDS: Mapping[type, pl.DataType] = {
    inspect.FloatType: pl.Float64(),
    inspect.IntType: pl.Int64(),
    inspect.BoolType: pl.Boolean(),
}


def _to_polars_type(info: inspect.Type) -> pl.DataType:
    """Return the type of a column for values of a type of msgspec.

    Several types in one place become text, because a column has one type.
    """
    if isinstance(info, inspect.StructType):
        return pl.Struct({each.encode_name: _to_polars_type(each.type) for each in info.fields})
    if isinstance(info, inspect.VarTupleType):
        return pl.List(_to_polars_type(info.item_type))
    if isinstance(info, inspect.UnionType):
        kinds = [each for each in info.types if not isinstance(each, inspect.NoneType)]
        return _to_polars_type(kinds[0]) if len(kinds) == 1 else pl.String()
    return _PLAIN_KINDS.get(type(info), pl.String())


def list_column_reasons(events: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each column that explains some events.

    Args:
        events: Events with `INDEX`, `TIME`, `reason` and `explanation`.
    """
    rows = []
    for number, time, reason, text in events.select(
        INDEX, TIME, "reason", "explanation"
    ).iter_rows():
        for column in decode_explanation(text).columns if text else ():
            likely = column.expected[0] if column.expected else None
            expected = None if likely is None else _show_value(likely.value, is_new=likely.new)
            rows.append(
                {
                    "row": number,
                    "time": time,
                    "reason": reason,
                    "column": column.column,
                    "value": _show_value(column.value),
                    "expected": expected,
                    "probability": column.probability,
                    "bits": column.bits,
                    "usual_bits": column.typical_bits,
                    "new": column.new,
                    "risk": column.risk,
                }
            )
    return pl.DataFrame(rows, schema=_COLUMN_REASON_SCHEMA)


def _show_value(value: str | float | None, *, is_new: bool = False) -> str:
    """Return a value as text, in which no value differs from no entry."""
    if value is None:
        return "(new value)" if is_new else "(no value)"
    return str(value)


_COLUMN_REASON_SCHEMA = pl.Schema(
    {
        "row": pl.Int64(),
        "time": pl.Datetime("us", "UTC"),
        "reason": pl.String(),
        "column": pl.String(),
        "value": pl.String(),
        "expected": pl.String(),
        "probability": pl.Float64(),
        "bits": pl.Float64(),
        "usual_bits": pl.Float64(),
        "new": pl.Boolean(),
        "risk": pl.Float64(),
    }
)
