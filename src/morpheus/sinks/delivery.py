"""Letters: events on their way to a receiver, who carries them, and what is answered."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, Self, TypeVar

import msgspec

from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.storage.object_store import is_s3_url
from morpheus.text import display_value


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
        cls,
        events: Sequence[OutboundEvent],
        reason: str,
        *,
        retry_after: float = 0.0,
        fatal: bool = False,
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


_REPLAY_BATCH = 500  # letters sent together


class DeadLetter(msgspec.Struct, frozen=True):
    """A line of the file.

    Attributes:
        id: As in `OutboundEvent`.
        user: The same.
        time: The same.
        reason: Why it was not taken.
        body: The event, as it would have been sent.
    """

    id: str
    user: str | None
    time: float | None
    reason: str
    body: msgspec.Raw


@dataclass(frozen=True)
class DeadLetterFile:
    """JSON lines, each on disk before the run goes on.

    While a file's letters are sent again it has another name, `.again` behind its own, so that new
    ones are not mixed with them; a run that breaks off leaves it, and the next one begins with it.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def add(self, events: Iterable[tuple[OutboundEvent, str]]) -> None:
        """Keep letters, each with the reason.

        Raises:
            Unavailable: The disk refuses.
        """
        lines = [
            msgspec.json.encode(
                DeadLetter(letter.id, letter.user, letter.time, reason, msgspec.Raw(letter.body))
            )
            for letter, reason in events
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TransientError(
                f"--dead_letters: cannot write `{self.path}`: {error.strerror or error}. Make room "
                "or mend the folder, or give another place."
            ) from error

    def replay(self) -> Iterator[list[OutboundEvent]]:
        """Letters from earlier runs, some at a time.

        Raises:
            BadRecord: A line is no letter.
        """
        begun = self.path.with_name(f"{self.path.name}.again")
        if begun.exists():
            yield from _drain(begun)
        if self.path.exists():
            self.path.replace(begun)
            yield from _drain(begun)


def validate_dlq_path(path: str | None) -> None:
    """Refuse a file of dead letters that is not on disk.

    Raises:
        UsageError: Says what to type.
    """
    if path is not None and (not path or is_s3_url(path) or Path(path).is_dir()):
        raise UsageError(
            f"--dead_letters: `{path}` names no file on disk. Give `--dead_letters letters.jsonl`."
        )


def open_dlq(path: str | None) -> DeadLetterFile | None:
    """The file that an option names; None where it names none."""
    return None if path is None else DeadLetterFile(Path(path))


def _drain(path: Path) -> Iterator[list[OutboundEvent]]:
    """The letters of a file, which goes when all are dealt with."""
    with path.open("rb") as file:
        letters = (
            _parse_dead_letter(line, path, number) for number, line in enumerate(file, start=1)
        )
        while lot := list(islice(letters, _REPLAY_BATCH)):
            yield lot
    path.unlink()


def _parse_dead_letter(line: bytes, path: Path, number: int) -> OutboundEvent:
    try:
        kept = msgspec.json.decode(line, type=DeadLetter)
    except msgspec.MsgspecError as error:
        raise RecordError(
            f"this line is no letter of `--dead_letters` ({error}); take it out of the file, or "
            "move the file away",
            file=path,
            line=number,
        ) from error
    return OutboundEvent(kept.id, kept.user, kept.time, bytes(kept.body))


logger = logging.getLogger(__name__)

_MAX_REASON_LENGTH = 300  # signs of a receiver's answer in a message

T = TypeVar("T")


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
class RetryPolicy:
    """How often to try again, and how long to wait before.

    Attributes:
        max_retries: Tries after the first.
        initial_delay: Seconds before the second try; they double with each.
        max_delay: Seconds that are never exceeded, not even if the receiver asks for it.

    >>> [RetryPolicy(retries=4, first=1, most=5).pause(n, 0) for n in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    max_retries: int = 5
    initial_delay: float = 0.5
    max_delay: float = 60.0

    def delay(self, attempt: int, retry_after: float) -> float:
        """Seconds to wait after so many tries that came to nothing, counted from 0."""
        return float(min(self.max_delay, max(retry_after, self.initial_delay * 2**attempt)))


@dataclass
class DeliveryStats:
    """What became of all letters of a run.

    Attributes:
        received: How many there were.
        accepted: How many the receiver has taken.
        rejected: How many it will not take.
        first_error: Why the first was not taken.
        error_message: At the end, what to say of those that were not; empty if all were.
    """

    received: int = 0
    accepted: int = 0
    rejected: int = 0
    first_error: str = ""
    error_message: str = ""

    @property
    def unsent(self) -> int:
        """How many were not handed over."""
        return self.received - self.accepted - self.rejected

    def raise_if_undelivered(self) -> None:
        """Fail if anything was not taken.

        Raises:
            Unavailable: Says how many events were not taken, and why.
        """
        if self.error_message:
            raise TransientError(self.error_message)

    def reset(self) -> None:
        """Begin anew."""
        self.received = self.accepted = self.rejected = 0
        self.first_error = self.error_message = ""

    def record_first_error(self, reasons: Iterable[str]) -> None:
        """Remember the first reason."""
        self.first_error = self.first_error or display_value(
            next(iter(reasons), ""), _MAX_REASON_LENGTH
        )


class Delivery:
    """Hands letters to a carrier, and tries again, until each is taken, refused or kept.

    Args:
        stage: The word of the sink, for messages.
        transport: Hands them over.
        stats: Counts what becomes of them.
        batch_size: Letters handed over together, at most.
        retry_policy: How often to try again.
        dead_letters: Where letters go that could not be delivered; without one, the first of them that
            no patience helps ends the run.
        clock: Tells the time.
    """

    def __init__(  # noqa: PLR0913 - what a delivery is made of
        self,
        stage: str,
        transport: Transport,
        stats: DeliveryStats,
        *,
        batch_size: int,
        retry_policy: RetryPolicy,
        dead_letters: DeadLetterQueue | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.stage, self.transport, self.stats = stage, transport, stats
        self.batch_size, self.retry_policy, self.dead_letters = (
            batch_size,
            retry_policy,
            dead_letters,
        )
        self.clock = clock or Clock()
        self._buffer: list[OutboundEvent] = []
        self._circuit_open = False

    @contextmanager
    def open(self) -> Iterator[Delivery]:
        """Connect for the length of the block, and send what an earlier run has kept.

        Raises:
            TransientError: The receiver takes no events, and there is no place to keep them.
        """
        self.stats.reset()
        with closing(self.transport):
            try:
                self._replay_dead_letters()
                yield self
            except BaseException:
                self._log_interrupted()
                raise
        level = logging.WARNING if self.stats.error_message else logging.INFO
        counts = self.stats.accepted, self.stats.received
        logger.log(
            level, "%s: %s took %d of %d events.", self.stage, self.transport.destination, *counts
        )

    def send(self, events: Iterable[OutboundEvent], *, at_once: bool) -> None:
        """Take events over, and deliver them once there are enough.

        Args:
            events: The events.
            at_once: Deliver them before returning; otherwise up to one batch waits for more.

        Raises:
            TransientError: The receiver takes no events, and there is no place to keep them.
        """
        self._enqueue(events)
        self._flush(0 if at_once else self.batch_size - 1)

    def finish(self) -> None:
        """Deliver the events that wait."""
        self._flush(0)
        self.stats.error_message = self._make_error_message()

    def _make_error_message(self) -> str:
        tally = self.stats
        parts = {"refused": tally.rejected, "not handed over": tally.unsent}
        counts = [f"{number:,} {what}" for what, number in parts.items() if number]
        if not counts:
            return ""
        return (
            f"{self.stage}: {self.transport.destination} took {tally.accepted:,} of {tally.received:,} events; "
            f"{', '.join(counts)}. The first reason: {tally.first_error}. {self._suggest_fix()}"
        )

    def _suggest_fix(self) -> str:
        if self.dead_letters is not None:
            return (
                f"They are kept in `{self.dead_letters}`. Mend that and run again: they go first."
            )
        return (
            f"Mend that and run again. With `{self.stage} --dead_letters=letters.jsonl`, events "
            "that are not taken are kept, and the next run sends them first."
        )

    def _replay_dead_letters(self) -> None:
        """Send what an earlier run had to keep."""
        for letters in self.dead_letters.replay() if self.dead_letters else ():
            self.stats.received += len(letters)
            self._deliver(letters)

    def _enqueue(self, events: Iterable[OutboundEvent]) -> None:
        before = len(self._buffer)
        self._buffer += events
        self.stats.received += len(self._buffer) - before

    def _flush(self, max_buffered: int) -> None:
        """Deliver what is held, until no more than so many are."""
        while len(self._buffer) > max_buffered:
            self._deliver(self._buffer[: self.batch_size])
            del self._buffer[: self.batch_size]

    def _deliver(self, events: list[OutboundEvent]) -> None:
        """Deliver letters, over and over; once patience was lost, each gets a single try."""
        retries = 0 if self._circuit_open else self.retry_policy.max_retries
        for tries in range(retries + 1):
            answer = self.transport.send(events)
            if answer.split_reason:
                self._split(events, answer.split_reason)
                return
            self._record_result(events, answer)
            if not answer.retryable:
                self._circuit_open = False
                return
            left = [(events[place], reason) for place, reason in answer.retryable.items()]
            events = [letter for letter, _ in left]
            if answer.fatal or tries == retries:
                break
            self._wait_before_retry(tries, answer.retry_after, left[0][1])
        self._circuit_open = True
        self._handle_exhausted(left)

    def _wait_before_retry(self, attempt: int, retry_after: float, reason: str) -> None:
        pause = self.retry_policy.delay(attempt, retry_after)
        logger.warning(
            "%s: %s: %s. Trying again in %.1f seconds.",
            *(
                self.stage,
                self.transport.destination,
                display_value(reason, _MAX_REASON_LENGTH),
                pause,
            ),
        )
        self.clock.sleep(pause)

    def _split(self, events: list[OutboundEvent], reason: str) -> None:
        """Deliver halves; a single letter that is refused is refused."""
        if len(events) == 1:
            self._record_result(events, SendResult(rejected={0: reason}))
            return
        middle = len(events) // 2
        self._deliver(events[:middle])
        self._deliver(events[middle:])

    def _record_result(self, events: Sequence[OutboundEvent], result: SendResult) -> None:
        """Count what was taken and what was refused."""
        self.stats.accepted += len(events) - len(result.rejected) - len(result.retryable)
        self.stats.rejected += len(result.rejected)
        self._store_dead_letters([(events[place], why) for place, why in result.rejected.items()])

    def _handle_exhausted(self, events: list[tuple[OutboundEvent, str]]) -> None:
        self._store_dead_letters(events)
        if self.dead_letters is None:
            self.stats.error_message = self._make_error_message()
            raise TransientError(self.stats.error_message)

    def _store_dead_letters(self, events: list[tuple[OutboundEvent, str]]) -> None:
        if events:
            self.stats.record_first_error(reason for _, reason in events)
        if events and self.dead_letters is not None:
            self.dead_letters.add(events)

    def _log_interrupted(self) -> None:
        """Say what had arrived, unless the error that stops the run says it."""
        if self.stats.error_message:
            return
        logger.warning(
            "%s: stopped: %s took %d events; %d more had come, and are not known to have arrived. "
            "Run again to send them.",
            *(self.stage, self.transport.destination, self.stats.accepted, self.stats.unsent),
        )
        self._store_dead_letters([(letter, "the run was stopped") for letter in self._buffer])
