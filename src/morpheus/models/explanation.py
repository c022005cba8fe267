"""Explanations of events: the columns that cause the risk, the context, and one sentence.

Two sums are exact to the last of six decimals. The `anomaly` of the columns and of the `others`
adds up to the event's anomaly. The event's `risk` is the sum of `own` and `earlier`, and also the
sum of the `risk` of the columns and `others_risk`.

The structs are encoded as JSON; a field with another name in JSON has it in `name=`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Self

import msgspec

from morpheus.models.profile import SCOPE_OWN, ModelCard
from morpheus.models.scoring import RISK_DECIMALS
from morpheus.text import escape_control, quote_backtick

SECONDS_PER_DAY = 86400
LEAST_REPORTED, MIN_REPORTED = 2.0, 10.0
"""Minimum anomaly of a column that is reported: half of the largest, between these."""
MIN_CONTEXT_SHARE = 0.25
"""Share of the risk from which the context is part of the reason."""
MAIN_CONTEXT_SHARE = 0.5
"""Share of the risk from which the context is the main reason."""
MAX_TIMES = 1000
"""Largest likelihood ratio that is printed."""


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


def render_reason(explanation: Explanation, max_columns: int) -> str:
    """Return the reason for an event's risk as one sentence.

    Args:
        explanation: The explanation.
        max_columns: Maximum number of columns in the sentence.

    >>> bits = {"bits": 8.97, "typical_bits": 0.2, "likelihood_ratio_bits": 3.0}
    >>> parts = {"anomaly": 90, "risk": 90, "dominant_contribution": 9, "anomalous_before": 0}
    >>> rest = {"redundant_columns": (), "probability": 0.002, "marginal_dominates": False}
    >>> value = {"column": "userAgent", "value": "Boto3 on Kali", "new": True}
    >>> agent = ColumnReason(**value, **bits, **parts, **rest, distance=None, expected=())
    >>> alone, own = ContextContribution(9, 9, 0, 0, 0), Baseline(SCOPE_OWN, 400, 400, 58)
    >>> render_reason(Explanation.from_columns(90.0, (agent,), alone, own), 3)
    'userAgent: saw `Boto3 on Kali`, p=.002, 9.0 bits, new in 58 days'
    """
    context = explanation.preceding
    limit = limit_reported(reason.anomaly for reason in explanation.columns)
    columns = [
        _describe_column(reason, explanation)
        for reason in explanation.top_columns(max_columns)
        if reason.anomaly >= limit or reason.anomalous_before
    ]
    share = context.earlier / (context.risk or 1)
    if share >= MAIN_CONTEXT_SHARE:
        columns = [f"mostly what came before: {_describe_context(context)}", *columns]
    elif share >= MIN_CONTEXT_SHARE:
        columns = [*columns, f"and {_describe_context(context)}"]
    return "; ".join(
        [*(columns or ["nothing unusual"]), *_describe_baseline(explanation.background)]
    )


def format_probability(value: float) -> str:
    """Format a probability.

    >>> [format_probability(p) for p in (0.934, 0.0021, 0.00001, 0.999)]
    ['p=.93', 'p=.002', 'p<.0001', 'p>.99']
    """
    if value > 0.99:  # noqa: PLR2004 - it would be rounded to one
        return "p>.99"
    for digits, minimum in ((2, 0.095), (2, 0.0095), (3, 0.00095), (4, 0.0001)):
        if value >= minimum:
            return f"p={value:.{digits}f}".replace("0.", ".", 1)
    return "p<.0001"


def _describe_column(reason: ColumnReason, explanation: Explanation) -> str:
    name = escape_control(reason.column)
    if reason.redundant_columns:
        name += f" (with it {', '.join(map(escape_control, reason.redundant_columns))})"
    value = "no value" if reason.value is None else quote_backtick(reason.value)
    details = [value, *_column_details(reason, explanation.background)]
    if reason.anomalous_before:
        count = _format_count(reason.anomalous_before, "event")
        details.append(f"strange in {count} of the 24 hours before")
    return f"{name}: saw {', '.join(details)}"


def _column_details(reason: ColumnReason, baseline: Baseline) -> Iterator[str]:
    if reason.distance is not None:
        yield f"expected about {reason.expected[0].value:,}"
        yield f"{abs(reason.distance):.1f} standard deviations off"
        return
    if reason.probability is not None:
        yield format_probability(reason.probability)
        yield f"{reason.bits:.1f} bits"
    if reason.marginal_dominates and not reason.new and reason.likelihood_ratio_bits >= 1:
        yield f"{_format_times(reason.likelihood_ratio_bits)} as likely with others"
    if reason.expected:
        yield f"expected {_describe_expected(reason.expected[0])}"
    if reason.new:
        own = baseline.training_data_scope == SCOPE_OWN and baseline.days
        yield f"new in {_format_count(baseline.days, 'day')}" if own else "new"


def _describe_expected(expected: ExpectedValue) -> str:
    value = expected.value
    if value is None:
        value = "a new value" if expected.new else "no value"
    elif isinstance(value, str):
        value = quote_backtick(value)
    return f"{value} {format_probability(expected.probability)}"


def _format_times(bits: float) -> str:
    times = 2 ** min(bits, 64)
    return f"over {MAX_TIMES:,} times" if times > MAX_TIMES else f"{float(f'{times:.2g}'):g} times"


def _describe_context(context: ContextContribution) -> str:
    if context.anomalous_in_hour:
        return f"{_format_count(context.anomalous_in_hour, 'strange event')} in the hour before"
    if context.anomalous_in_day:
        return f"{_format_count(context.anomalous_in_day, 'strange event')} in the 24 hours before"
    return "earlier events, each a little unusual"


def _describe_baseline(baseline: Baseline) -> Iterator[str]:
    if baseline.training_data_scope != SCOPE_OWN:
        own, events = baseline.own_events, _format_count(baseline.events, "event")
        yield f"compared with {baseline.training_data_scope}: {own:,} of {events} are their own"


def _format_count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
