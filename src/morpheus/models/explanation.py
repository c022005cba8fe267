"""Why an event is strange: its strangest columns, and what came before it.

Two numbers are additive, in decimals and to the last of six. The `strangeness` of the columns and
of the `others` adds up to the event's `surprise`; `own`, `hour`, `day` and `week` add up to its
`risk`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Self

import msgspec

from morpheus.models.fingerprint import Card

DAY = 86400


class Likelier(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that was likelier than the one seen.

    Attributes:
        value: The value; None where that is no value at all, or any new one.
        probability: Given the event's other values.
        new: It stands for all new values together.
    """

    value: str | float | None
    probability: float
    new: bool = False


class Fact(msgspec.Struct, frozen=True):
    """What there is to say of one column of an event.

    Attributes:
        column: Its name.
        value: What was seen, made fit to be shown; None where there was nothing.
        new: The history did not hold this value twice.
        strangeness: Its part of the event's surprise, in spreads above the usual.
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
    probability: float | None
    bits: float
    usual_bits: float
    habit_bits: float
    habit: bool
    distance: float | None
    expected: tuple[Likelier, ...]


class Preceding(msgspec.Struct, frozen=True):
    """How much of an event's risk is due to what came before it.

    Attributes:
        risk: The event's surprise, weighed with what came before.
        own: What it would be had nothing strange come before.
        hour: What earlier events add by way of the mean that halves in an hour.
        day: The same, of the mean that halves in a day.
        week: The same, of the mean that halves in a week.
        strange_in_hour: Strange events in the hour before.
        strange_in_day: Strange events in the day before.
        strange_in_week: Strange events in the week before.
    """

    risk: float
    own: float
    hour: float
    day: float
    week: float
    strange_in_hour: int
    strange_in_day: int
    strange_in_week: int


class Background(msgspec.Struct, frozen=True):
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
    def of(cls, card: Card) -> Self:
        """Read a fingerprint's card."""
        days = None
        if card.first and card.last:
            span = datetime.fromisoformat(card.last) - datetime.fromisoformat(card.first)
            days = max(1, round(span.total_seconds() / DAY))
        return cls(card.rung, card.events, card.events + card.borrowed, days)


class Explanation(msgspec.Struct, frozen=True):
    """Why an event is strange.

    Attributes:
        surprise: The strangeness of all columns.
        columns: The columns shown, the strangest first.
        others: The strangeness of those not shown.
        preceding: What came before.
        background: What it is compared with.
    """

    surprise: float
    columns: tuple[Fact, ...]
    others: float
    preceding: Preceding
    background: Background

    def strangest(self, most: int) -> tuple[Fact, ...]:
        """The strangest of the columns shown, as far as they are strange at all."""
        return tuple(fact for fact in self.columns[:most] if fact.strangeness > 0)
