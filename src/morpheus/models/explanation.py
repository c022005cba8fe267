"""Why an event is strange: the columns that are most of its risk, and what came before it.

Two numbers are additive, in decimals and to the last of six. The `strangeness` of the columns and
of the `others` adds up to the event's `surprise`. Its `risk` is what `own`, `hour` and
`month` add up to, and what the `risk` of the columns and `others_risk` add up to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Self

import msgspec

from morpheus.models.profile import SCOPE_OWN, ModelCard
from morpheus.models.scoring import ANOMALY_DECIMALS
from morpheus.text import escape_control, quote_backtick

SECONDS_PER_DAY = 86400
MIN_REPORTED = 0.5
"""Strangeness from which a column is worth a word."""


def round_decimals(value: float) -> float:
    """Round to what is additive, without a minus before nothing."""
    return round(float(value), ANOMALY_DECIMALS) + 0.0


class ExpectedValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that was likelier than the one seen.

    Attributes:
        value: The value; None where that is no value at all, or any new one.
        probability: Given the event's other values.
        new: It stands for all new values together.
    """

    value: str | float | None
    probability: float
    new: bool = False


class ColumnReason(msgspec.Struct, frozen=True):
    """What there is to say of one column of an event.

    Attributes:
        column: Its name.
        value: What was seen, made fit to be shown; None where there was nothing.
        new: The history did not hold this value twice.
        strangeness: Its part of the event's surprise, in spreads above the usual.
        risk: Its part of the event's risk, what came before included.
        loudest: Its part of the largest of own, hour and month: columns are in this order.
        strange_before: Strange events before in which it was strange too, in the hour or the
            month, whichever part is the largest; 0 where that is the event's own.
        twins: Columns that say the same: each value goes with one of theirs, all through the
            history. They are as strange as this one, or less.
        probability: Of the value, given the event's other values; None for a number.
        bits: -log2 of it; for a number, its squared distance as nats on top.
        usual_bits: What bits usually are in this column, on held-out events.
        habit_bits: log2 of how much likelier the value is among everybody than with this user.
        habit: Habit speaks louder than company.
        distance: Of a number from the expected one, in standard deviations; None without one.
        expected: Likelier values, the likeliest first; for a number the expected one.
    """

    column: str
    value: str | None
    new: bool
    strangeness: float
    risk: float
    loudest: float
    strange_before: int
    twins: tuple[str, ...]
    probability: float | None
    bits: float
    usual_bits: float
    habit_bits: float
    habit: bool
    distance: float | None
    expected: tuple[ExpectedValue, ...]


class ContextContribution(msgspec.Struct, frozen=True):
    """How much of an event's risk is due to what came before it.

    Attributes:
        risk: The event's surprise, weighed with what came before.
        own: What it would be had nothing strange come before.
        hour: What earlier events add by way of the mean that halves in an hour.
        month: The same, of the mean that halves in thirty days, by values that others have too.
        strange_in_hour: Strange events in the hour before.
        strange_in_month: Strange events in the thirty days before.
    """

    risk: float
    own: float
    hour: float
    month: float
    strange_in_hour: int
    strange_in_month: int

    @property
    def contributions(self) -> tuple[float, float, float]:
        """What the risk is made of: own, hour and month."""
        return self.own, self.hour, self.month

    @property
    def dominant_index(self) -> int:
        """Which of these is the largest."""
        return self.contributions.index(max(self.contributions))


class Baseline(msgspec.Struct, frozen=True):
    """What the event is compared with.

    Attributes:
        rung: Whose history: `own`, `peers` or `everyone`.
        own_events: Events of it that are the user's own.
        events: All events of it.
        days: Days that the user's own span; None where there are none.
    """

    rung: str
    own_events: int
    events: int
    days: int | None

    @classmethod
    def from_card(cls, card: ModelCard) -> Self:
        """Read a fingerprint's card."""
        days = None
        if card.first and card.last:
            span = datetime.fromisoformat(card.last) - datetime.fromisoformat(card.first)
            days = max(1, round(span.total_seconds() / SECONDS_PER_DAY))
        return cls(card.training_data_scope, card.events, card.events + card.borrowed_events, days)


class Counterfactual(msgspec.Struct, frozen=True):
    """What would have made an event ordinary.

    Attributes:
        columns: The values that it would have had; none if it is ordinary as it is.
        before: Its surprise.
        after: What its surprise would have been.
        limit: The highest surprise that is ordinary.
    """

    columns: tuple[ReplacedValue, ...]
    before: float
    after: float
    limit: float


class ReplacedValue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that a column has in another event.

    Attributes:
        column: Its name.
        value: The value; None where that is no value at all, or any new one.
        new: It is one of those that were new then.
    """

    column: str
    value: str | float | None
    new: bool = False


class NearestNormalEvent(msgspec.Struct, frozen=True):
    """An ordinary event of the same user that came before, and is like this one.

    Attributes:
        at: When it happened, in seconds since 1970.
        same: Columns in which both agree.
        columns: Columns there are.
        differs: Those in which they do not, the strangest first, with the other event's values.
    """

    at: float
    same: int
    columns: int
    differs: tuple[ReplacedValue, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Why an event is strange.

    Attributes:
        surprise: The strangeness of all columns.
        columns: The columns shown, the largest part of the risk first.
        others: The strangeness of those not shown.
        others_risk: Their part of the risk.
        preceding: What came before.
        background: What it is compared with.
        change: What would have made it ordinary; None if it was not asked for.
        nearest: The ordinary events before that are most like it.
        usual: Columns that have a value, which is nothing strange.
    """

    surprise: float
    columns: tuple[ColumnReason, ...]
    others: float
    others_risk: float
    preceding: ContextContribution
    background: Baseline
    change: Counterfactual | None = None
    nearest: tuple[NearestNormalEvent, ...] = ()
    usual: tuple[str, ...] = ()

    @classmethod
    def from_columns(
        cls,
        surprise: float,
        columns: tuple[ColumnReason, ...],
        preceding: ContextContribution,
        background: Baseline,
    ) -> Self:
        """Leave to the others what the columns shown do not explain."""
        others = round_decimals(surprise - sum(fact.strangeness for fact in columns))
        others_risk = round_decimals(preceding.risk - sum(fact.risk for fact in columns))
        return cls(surprise, columns, others, others_risk, preceding, background)

    def top_columns(self, max_columns: int) -> tuple[ColumnReason, ...]:
        """The first of the columns shown, as far as they are strange, without twins of others."""
        twins = {name for fact in self.columns for name in fact.twins}
        told = (fact for fact in self.columns if fact.loudest > 0 and fact.column not in twins)
        return tuple(islice(told, max_columns))


MIN_CONTEXT_SHARE = 0.25
"""Share of the risk from which what came before is part of the reason."""
MAIN_CONTEXT_SHARE = 0.5
"""Share of the risk from which it is the main reason."""
MAX_TIMES = 1000
"""How many times as likely is no longer counted."""


def render_reason(explanation: Explanation, max_columns: int) -> str:
    """Say why an event is strange, by so many columns at most.

    >>> about = {"probability": 0.002, "bits": 8.97, "usual_bits": 0.2, "habit_bits": 3.0}
    >>> parts = {"strangeness": 9, "risk": 9, "loudest": 9, "strange_before": 0, "twins": ()}
    >>> rest = {"new": True, "habit": False, "distance": None, "expected": ()}
    >>> agent = ColumnReason("userAgent", "Boto3 on Kali", **about, **parts, **rest)
    >>> alone, own = ContextContribution(9, 9, 0, 0, 0, 0), Baseline(SCOPE_OWN, 400, 400, 58)
    >>> render_reason(Explanation.from_columns(9.0, (agent,), alone, own), 3)
    'userAgent: saw `Boto3 on Kali`, p=.002, 9.0 bits, new in 58 days'
    """
    past = explanation.preceding
    worth = [
        fact
        for fact in explanation.top_columns(max_columns)
        if fact.strangeness >= MIN_REPORTED or fact.strange_before
    ]
    columns = [_describe_column(fact, explanation) for fact in worth]
    before, share = _describe_context(past), (past.risk - past.own) / (past.risk or 1)
    if share >= MAIN_CONTEXT_SHARE:
        columns = [f"mostly what came before: {before}", *columns]
    elif share >= MIN_CONTEXT_SHARE:
        columns = [*columns, f"and {before}"]
    return "; ".join(
        [*(columns or ["nothing unusual"]), *_describe_baseline(explanation.background)]
    )


def format_probability(value: float) -> str:
    """Write a probability.

    >>> [format_probability(p) for p in (0.934, 0.0021, 0.00001, 0.999)]
    ['p=.93', 'p=.002', 'p<.0001', 'p>.99']
    """
    if value > 0.99:  # noqa: PLR2004 - it would be rounded to one
        return "p>.99"
    for digits, least in ((2, 0.095), (2, 0.0095), (3, 0.00095), (4, 0.0001)):
        if value >= least:
            return f"p={value:.{digits}f}".replace("0.", ".", 1)
    return "p<.0001"


def _describe_column(reason: ColumnReason, explanation: Explanation) -> str:
    named, seen = (
        escape_control(reason.column),
        "no value" if reason.value is None else quote_backtick(reason.value),
    )
    if reason.twins:
        named += f" (with it {', '.join(map(escape_control, reason.twins))})"
    said = [seen, *_column_details(reason, explanation.background)]
    if reason.strange_before:
        _, span, _ = _context_spans(explanation.preceding)[explanation.preceding.dominant_index - 1]
        said.append(
            f"strange in {_format_count(reason.strange_before, 'event')} of the {span} before"
        )
    return f"{named}: saw {', '.join(said)}"


def _column_details(reason: ColumnReason, baseline: Baseline) -> Iterator[str]:
    if reason.distance is not None:
        yield f"expected about {reason.expected[0].value:,}"
        yield f"{abs(reason.distance):.1f} standard deviations off"
        return
    if reason.probability is not None:
        yield format_probability(reason.probability)
        yield f"{reason.bits:.1f} bits"
    if reason.habit and not reason.new and reason.habit_bits >= 1:
        yield f"{_format_times(reason.habit_bits)} as likely with others"
    if reason.expected:
        yield f"expected {_describe_expected(reason.expected[0])}"
    if reason.new:
        own = baseline.rung == SCOPE_OWN and baseline.days
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
    _, span, strange = max(_context_spans(context))
    if not strange:
        return f"events a little unusual all through the {span} before"
    return f"{_format_count(strange, 'strange event')} in the {span} before"


def _context_spans(context: ContextContribution) -> Sequence[tuple[float, str, int]]:
    return (
        (context.hour, "hour", context.strange_in_hour),
        (context.month, "month", context.strange_in_month),
    )


def _describe_baseline(baseline: Baseline) -> Iterator[str]:
    if baseline.rung != SCOPE_OWN:
        own, events = baseline.own_events, _format_count(baseline.events, "event")
        yield f"compared with {baseline.rung}: {own:,} of {events} are their own"


def _format_count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
