"""Why an event is strange: the columns that are most of its risk, and what came before it.

Two numbers are additive, in decimals and to the last of six. The `strangeness` of the columns and
of the `others` adds up to the event's `surprise`. Its `risk` is what `own`, `hour` and
`month` add up to, and what the `risk` of the columns and `others_risk` add up to.
"""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Self

import msgspec

from morpheus.models.evidence import ANOMALY_DECIMALS
from morpheus.models.fingerprint import ModelCard

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
        return cls(card.rung, card.events, card.events + card.borrowed, days)


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
