"""Letters: events on their way to a receiver, who carries them, and what is answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self


@dataclass(frozen=True)
class OutboundEvent:
    """One event, as its receiver is to have it.

    Attributes:
        id: The same for the same event, however often it is sent.
        user: Whose event it is.
        time: When it happened, in seconds since 1970; None where that is not known.
        body: A JSON object.
    """

    id: str
    user: str | None
    time: float | None
    body: bytes


@dataclass(frozen=True)
class SendResult:
    """What became of letters that were handed over together; those not named here were taken.

    Attributes:
        rejected: Why letters are not taken and never will be, by their place.
        retryable: Why letters were not taken this time, by their place.
        retry_after: Seconds that the receiver wants to be left alone.
        fatal: Trying again would not help: somebody has to mend something.
        split_reason: Why all were refused together, where fewer at a time may be taken; else nothing.
    """

    rejected: Mapping[int, str] = field(default_factory=dict)
    retryable: Mapping[int, str] = field(default_factory=dict)
    retry_after: float = 0.0
    fatal: bool = False
    split_reason: str = ""

    @classmethod
    def from_failure(
        cls, events: Sequence[OutboundEvent], reason: str, *, retry_after: float = 0.0, fatal: bool = False
    ) -> Self:
        """No letter was taken, for a reason that is not theirs."""
        later = dict.fromkeys(range(len(events)), reason)
        return cls(retryable=later, retry_after=retry_after, fatal=fatal)


class Transport(Protocol):
    """Hands letters over."""

    @property
    def destination(self) -> str:
        """Whom to, for messages; no secret in it."""

    def send(self, events: Sequence[OutboundEvent]) -> SendResult:
        """Hand letters over once, and wait for the answer."""

    def close(self) -> None:
        """Let go of what is held open."""


class DeadLetterQueue(Protocol):
    """Where letters go that could not be delivered."""

    def add(self, events: Iterable[tuple[OutboundEvent, str]]) -> None:
        """Keep letters, each with the reason."""

    def replay(self) -> Iterator[list[OutboundEvent]]:
        """Letters from earlier, in lots; a lot is let go of when the next is asked for."""
