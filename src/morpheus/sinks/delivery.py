"""Delivery to a receiver elsewhere: nothing counts as sent until the receiver has said so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from morpheus.errors import Unavailable
from morpheus.quoting import legible
from morpheus.sinks.letters import Answer, Carrier, Letter, Refuge

logger = logging.getLogger(__name__)

_SHOWN = 300  # signs of a receiver's answer in a message

Parcel = TypeVar("Parcel")


@dataclass(frozen=True)
class Clock:
    """The time, and how to let it pass.

    Attributes:
        now: Seconds since 1970.
        sleep: Waits for so many seconds.
    """

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Patience:
    """How often to try again, and how long to wait before.

    Attributes:
        retries: Tries after the first.
        first: Seconds before the second try; they double with each.
        most: Seconds that are never exceeded, not even if the receiver asks for it.

    >>> [Patience(retries=4, first=1, most=5).pause(n, 0) for n in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    retries: int = 5
    first: float = 0.5
    most: float = 60.0

    def pause(self, tries: int, wished: float) -> float:
        """Seconds to wait after so many tries that came to nothing, counted from 0."""
        return float(min(self.most, max(wished, self.first * 2**tries)))


@dataclass
class Tally:
    """What became of all letters of a run.

    Attributes:
        came: How many there were.
        taken: How many the receiver has taken.
        refused: How many it will not take.
        reason: Why the first was not taken.
        complaint: At the end, what to say of those that were not; empty if all were.
    """

    came: int = 0
    taken: int = 0
    refused: int = 0
    reason: str = ""
    complaint: str = ""

    @property
    def left(self) -> int:
        """How many were not handed over."""
        return self.came - self.taken - self.refused

    def settle(self) -> None:
        """Fail if anything was not taken.

        Raises:
            Unavailable: Says how many events were not taken, and why.
        """
        if self.complaint:
            raise Unavailable(self.complaint)

    def clear(self) -> None:
        """Begin anew."""
        self.came = self.taken = self.refused = 0
        self.reason = self.complaint = ""

    def note(self, reasons: Iterable[str]) -> None:
        """Remember the first reason."""
        self.reason = self.reason or legible(next(iter(reasons), ""), _SHOWN)


class Delivery:
    """Hands letters to a carrier, and tries again, until each is taken, refused or kept.

    Args:
        stage: The word of the sink, for messages.
        carrier: Hands them over.
        tally: Counts what becomes of them.
        size: Letters handed over together, at most.
        patience: How often to try again.
        refuge: Where letters go that could not be delivered; without one, the first of them that
            no patience helps ends the run.
        clock: Tells the time.
    """

    def __init__(  # noqa: PLR0913 - what a delivery is made of
        self,
        stage: str,
        carrier: Carrier,
        tally: Tally,
        *,
        size: int,
        patience: Patience,
        refuge: Refuge | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.stage, self.carrier, self.tally = stage, carrier, tally
        self.size, self.patience, self.refuge = size, patience, refuge
        self.clock = clock or Clock()
        self._held: list[Letter] = []
        self._tired = False

    def along(
        self,
        parcels: Iterator[Parcel],
        letters: Callable[[Parcel], Iterable[Letter]],
        *,
        at_once: bool,
    ) -> Iterator[Parcel]:
        """Hand parcels on, and deliver their letters.

        Args:
            parcels: What comes; handed on as it is.
            letters: Writes a parcel's letters.
            at_once: Deliver each parcel's letters before it is handed on; else some parcels
                together, the last of them after that.

        Raises:
            Unavailable: The receiver takes no letters, and there is no place to keep them.
        """
        self.tally.clear()
        with closing(self.carrier):
            try:
                self._send_earlier()
                for parcel in parcels:
                    self._hold(letters(parcel))
                    self._send(0 if at_once else self.size - 1)
                    yield parcel
                self._send(0)
                self.tally.complaint = self._complaint()
            except BaseException:
                self._tell_stopped()
                raise
        level = logging.WARNING if self.tally.complaint else logging.INFO
        counts = self.tally.taken, self.tally.came
        logger.log(level, "%s: %s took %d of %d events.", self.stage, self.carrier.to, *counts)

    def _complaint(self) -> str:
        tally = self.tally
        parts = {"refused": tally.refused, "not handed over": tally.left}
        counts = [f"{number:,} {what}" for what, number in parts.items() if number]
        if not counts:
            return ""
        return (
            f"{self.stage}: {self.carrier.to} took {tally.taken:,} of {tally.came:,} events; "
            f"{', '.join(counts)}. The first reason: {tally.reason}. {self._remedy()}"
        )

    def _remedy(self) -> str:
        if self.refuge is not None:
            return f"They are kept in `{self.refuge}`. Mend that and run again: they go first."
        return (
            f"Mend that and run again. With `{self.stage} --dead_letters=letters.jsonl`, events "
            "that are not taken are kept, and the next run sends them first."
        )

    def _send_earlier(self) -> None:
        """Send what an earlier run had to keep."""
        for letters in self.refuge.waiting() if self.refuge else ():
            self.tally.came += len(letters)
            self._deliver(letters)

    def _hold(self, letters: Iterable[Letter]) -> None:
        before = len(self._held)
        self._held += letters
        self.tally.came += len(self._held) - before

    def _send(self, keep: int) -> None:
        """Deliver what is held, until no more than so many are."""
        while len(self._held) > keep:
            self._deliver(self._held[: self.size])
            del self._held[: self.size]

    def _deliver(self, letters: list[Letter]) -> None:
        """Deliver letters, over and over; once patience was lost, each gets a single try."""
        retries = 0 if self._tired else self.patience.retries
        for tries in range(retries + 1):
            answer = self.carrier.carry(letters)
            if answer.divide:
                self._divide(letters, answer.divide)
                return
            self._settle(letters, answer)
            if not answer.later:
                self._tired = False
                return
            left = [(letters[place], reason) for place, reason in answer.later.items()]
            letters = [letter for letter, _ in left]
            if answer.hopeless or tries == retries:
                break
            self._pause(tries, answer.wait, left[0][1])
        self._tired = True
        self._give_up(left)

    def _pause(self, tries: int, wished: float, reason: str) -> None:
        pause = self.patience.pause(tries, wished)
        logger.warning(
            "%s: %s: %s. Trying again in %.1f seconds.",
            *(self.stage, self.carrier.to, legible(reason, _SHOWN), pause),
        )
        self.clock.sleep(pause)

    def _divide(self, letters: list[Letter], reason: str) -> None:
        """Deliver halves; a single letter that is refused is refused."""
        if len(letters) == 1:
            self._settle(letters, Answer(refused={0: reason}))
            return
        middle = len(letters) // 2
        self._deliver(letters[:middle])
        self._deliver(letters[middle:])

    def _settle(self, letters: Sequence[Letter], answer: Answer) -> None:
        """Count what was taken and what was refused."""
        self.tally.taken += len(letters) - len(answer.refused) - len(answer.later)
        self.tally.refused += len(answer.refused)
        self._keep([(letters[place], why) for place, why in answer.refused.items()])

    def _give_up(self, letters: list[tuple[Letter, str]]) -> None:
        self._keep(letters)
        if self.refuge is None:
            self.tally.complaint = self._complaint()
            raise Unavailable(self.tally.complaint)

    def _keep(self, letters: list[tuple[Letter, str]]) -> None:
        if letters:
            self.tally.note(reason for _, reason in letters)
        if letters and self.refuge is not None:
            self.refuge.add(letters)

    def _tell_stopped(self) -> None:
        """Say what had arrived, unless the error that stops the run says it."""
        if self.tally.complaint:
            return
        logger.warning(
            "%s: stopped: %s took %d events; %d more had come, and are not known to have arrived. "
            "Run again to send them.",
            *(self.stage, self.carrier.to, self.tally.taken, self.tally.left),
        )
        self._keep([(letter, "the run was stopped") for letter in self._held])
