"""Letters: events on their way to a receiver, who carries them, and what is answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self


@dataclass(frozen=True)
class Letter:
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
class Answer:
    """What became of letters that were handed over together; those not named here were taken.

    Attributes:
        refused: Why letters are not taken and never will be, by their place.
        later: Why letters were not taken this time, by their place.
        wait: Seconds that the receiver wants to be left alone.
        hopeless: Trying again would not help: somebody has to mend something.
        divide: Why all were refused together, where fewer at a time may be taken; else nothing.
    """

    refused: Mapping[int, str] = field(default_factory=dict)
    later: Mapping[int, str] = field(default_factory=dict)
    wait: float = 0.0
    hopeless: bool = False
    divide: str = ""

    @classmethod
    def none_taken(
        cls, letters: Sequence[Letter], reason: str, *, wait: float = 0.0, hopeless: bool = False
    ) -> Self:
        """No letter was taken, for a reason that is not theirs."""
        later = dict.fromkeys(range(len(letters)), reason)
        return cls(later=later, wait=wait, hopeless=hopeless)


class Carrier(Protocol):
    """Hands letters over."""

    @property
    def to(self) -> str:
        """Whom to, for messages; no secret in it."""

    def carry(self, letters: Sequence[Letter]) -> Answer:
        """Hand letters over once, and wait for the answer."""

    def close(self) -> None:
        """Let go of what is held open."""


class Refuge(Protocol):
    """Where letters go that could not be delivered."""

    def add(self, letters: Iterable[tuple[Letter, str]]) -> None:
        """Keep letters, each with the reason."""

    def waiting(self) -> Iterator[list[Letter]]:
        """Letters from earlier, in lots; a lot is let go of when the next is asked for."""
