"""Delivery of events to a server or broker: retries, splitting, dead letters, counts.

Every event is accepted, rejected, or kept in the dead-letter file, and counted. A `Transport` sends
events once; `Delivery` decides what happens next. Events carry stable ids, so that a receiver can
recognise one that is sent twice: delivery is at least once.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, Self, TypeVar

import msgspec

from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.sinks.to_file import validate_output
from morpheus.storage.atomic import create_file, make_folders, sync_folder
from morpheus.storage.object_store import is_object_url
from morpheus.text import NOTICE, display_value

logger = logging.getLogger(__name__)

_MAX_REASON_LENGTH = 300  # characters of a receiver's response in a message

T = TypeVar("T")


class Clock(msgspec.Struct, frozen=True):
    """The time; tests replace it.

    Attributes:
        now: Returns the seconds since 1970.
        sleep: Waits for a number of seconds.
        elapsed: Returns seconds since some moment. They go on evenly when the time is set.
    """

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    elapsed: Callable[[], float] = time.monotonic


class OutboundEvent(msgspec.Struct, frozen=True):
    """One event, encoded for its receiver.

    Attributes:
        id: The same each time the event is sent.
        user: User of the event.
        time: Time of the event in seconds since 1970; None if it is unknown.
        body: The event as a JSON object.
    """

    id: str
    user: str | None
    time: float | None
    body: bytes


class KeptEvent(msgspec.Struct, frozen=True):
    """An event that was not accepted.

    Attributes:
        event: The event.
        reason: Why it was not accepted.
        rejected: The receiver rejected it for good.
    """

    event: OutboundEvent
    reason: str
    rejected: bool = False


class SendResult(msgspec.Struct, frozen=True):
    """Result of one attempt to send some events. Events that it does not list were accepted.

    Attributes:
        rejected: Reasons why events will never be accepted, by position.
        retryable: Reasons why events were not accepted this time, by position.
        retry_after: Seconds to wait before a retry, as the receiver asks.
        fatal: A retry would not help: a person must fix something.
        split_reason: Why the receiver rejected all events together, when it may accept fewer at a
            time; else empty.
        silent: The receiver did not answer in time.
    """

    rejected: Mapping[int, str] = msgspec.field(default_factory=dict)
    retryable: Mapping[int, str] = msgspec.field(default_factory=dict)
    retry_after: float = 0.0
    fatal: bool = False
    split_reason: str = ""
    silent: bool = False

    @classmethod
    def from_failure(
        cls,
        events: Sequence[OutboundEvent],
        reason: str,
        *,
        retry_after: float = 0.0,
        fatal: bool = False,
        silent: bool = False,
    ) -> Self:
        """Return the result that no event was accepted, for a reason that is not theirs."""
        retryable = dict.fromkeys(range(len(events)), reason)
        return cls(retryable=retryable, retry_after=retry_after, fatal=fatal, silent=silent)


class Transport(Protocol):
    """Sends events to one destination."""

    @property
    def destination(self) -> str:
        """Name of the receiver, for messages. It contains no secret."""

    def send(self, events: Sequence[OutboundEvent], seconds: float | None = None) -> SendResult:
        """Send events once, and wait for the result.

        Args:
            events: The events.
            seconds: Maximum number of seconds to wait; None for no limit.
        """

    def close(self) -> None:
        """Close connections."""


class DeadLetterQueue(Protocol):
    """Keeps events that could not be delivered."""

    def add(self, events: Iterable[tuple[OutboundEvent, str]], *, rejected: bool = False) -> None:
        """Keep events, each with the reason.

        Args:
            events: The events and the reasons.
            rejected: The receiver rejected them for good.
        """

    def replay(self) -> Iterator[list[KeptEvent]]:
        """Yield the kept events in batches. Requesting the next batch removes one."""


_REPLAY_BATCH = 500  # dead letters sent together


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the dead-letter file.

    Attributes:
        id: Id of the event.
        user: User of the event.
        time: Time of the event in seconds since 1970; None if it is unknown.
        reason: Why the event was not accepted.
        body: The event as a JSON object.
        rejected: The receiver rejected it for good.
    """

    id: str
    user: str | None
    time: float | None
    reason: str
    body: msgspec.Raw
    rejected: bool = False


class DeadLetterFile(msgspec.Struct, frozen=True):
    """A JSON lines file of undelivered events, synced before the run continues.

    While its events are sent again, the file is renamed to end in `.again`, so that new ones are
    not mixed with them. If the run is interrupted, the next run starts with that file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def add(self, events: Iterable[tuple[OutboundEvent, str]], *, rejected: bool = False) -> None:
        """Append events, each with the reason; see `DeadLetterQueue.add`.

        Raises:
            TransientError: The file cannot be written.
        """
        lines = [
            msgspec.json.encode(
                DeadLetter(
                    event.id, event.user, event.time, reason, msgspec.Raw(event.body), rejected
                )
            )
            for event, reason in events
        ]
        if not lines:
            return
        try:
            make_folders(self.path.parent)
            with create_file(self.path, append=True) as file:
                _end_last_line(self.path, file)
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            raise TransientError(
                f"--dead_letters: cannot write `{self.path}`: {error.strerror or error}. Free disk "
                "space, fix the folder's permissions, or choose another path."
            ) from error

    def replay(self) -> Iterator[list[KeptEvent]]:
        """Yield the kept events in batches.

        Raises:
            RecordError: A line is not a dead letter.
        """
        in_progress = self.path.with_name(f"{self.path.name}.again")
        if in_progress.exists():
            yield from _drain(in_progress)
        if self.path.exists():
            self.path.replace(in_progress)
            sync_folder(self.path.parent)
            yield from _drain(in_progress)


JSON_SUFFIXES = (".jsonl", ".jsonlines", ".json", ".ndjson")
"""Suffixes of a file of events; one without a suffix is accepted too."""


def validate_dlq_path(path: str | None) -> None:
    """Reject a dead-letter file that is not on disk.

    Raises:
        UsageError: The message says what to type.
    """
    if path is None:
        return
    if not path or is_object_url(path) or Path(path).is_dir():
        raise UsageError(
            f"--dead_letters: `{path}` is not a file on disk. Give `--dead_letters letters.jsonl`."
        )
    suffixes = JSON_SUFFIXES if Path(path).suffix else ()
    validate_output(
        path, overwrite=True, stage_name="run", option="--dead_letters", suffixes=suffixes
    )


def list_dlq(path: str | None) -> tuple[Path, ...]:
    """Return the dead-letter file of an option as `Outputs` has it."""
    return () if path is None else (Path(path),)


def open_dlq(path: str | None) -> DeadLetterFile | None:
    """Return the dead-letter file of an option; None without one."""
    return None if path is None else DeadLetterFile(Path(path))


def _drain(path: Path) -> Iterator[list[KeptEvent]]:
    """Yield the events of a file in batches, then remove the file."""
    with path.open("rb") as file:
        events = (
            _parse_dead_letter(line, path, number)
            for number, line in enumerate(file, start=1)
            if not _is_cut(line)
        )
        while batch := list(islice(events, _REPLAY_BATCH)):
            yield batch
    path.unlink()


def _end_last_line(path: Path, file: BinaryIO) -> None:
    """Make a file of dead letters end with a line feed, so that the next line is not added to it.

    If the power failed or the disk was full, the last line can be cut. `add` had not returned then,
    so its events are not lost: the run that added them failed, and reads them again.
    """
    with path.open("rb") as before:
        size = before.seek(0, os.SEEK_END)
        before.seek(max(size - 1, 0))
        if before.read() in {b"", b"\n"}:
            return
        before.seek(0)
        last = deque(before, 1)[0]
    if _is_cut(last):
        logger.warning("%s: the last line is cut, and is removed.", path)
        file.truncate(size - len(last))
    else:
        file.write(b"\n")  # a person has edited the file


def _is_cut(line: bytes) -> bool:
    """Return whether a line has no end, and is no dead letter."""
    if line.endswith(b"\n"):
        return False
    try:
        msgspec.json.decode(line, type=DeadLetter)
    except msgspec.MsgspecError:
        return True
    return False


def _parse_dead_letter(line: bytes, path: Path, number: int) -> KeptEvent:
    try:
        letter = msgspec.json.decode(line, type=DeadLetter)
    except msgspec.MsgspecError as error:
        raise RecordError(
            f"this line is not an event of `--dead_letters` ({error}); remove it from the file, or "
            "move the file away",
            file=path,
            line=number,
        ) from error
    event = OutboundEvent(letter.id, letter.user, letter.time, bytes(letter.body))
    return KeptEvent(event, letter.reason, letter.rejected)


class RetryPolicy(msgspec.Struct, frozen=True):
    """Number of retries, and the delays before them (exponential backoff).

    Attributes:
        max_retries: Number of retries after the first attempt.
        initial_delay: Seconds before the first retry. They double with each retry.
        max_delay: Maximum delay in seconds, even if the receiver asks for more.

    >>> [RetryPolicy(max_retries=4, initial_delay=1, max_delay=5).delay(n, 0) for n in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    max_retries: int = 5
    initial_delay: float = 0.5
    max_delay: float = 60.0

    def delay(self, attempt: int, retry_after: float) -> float:
        """Return the seconds to wait after failed attempt number `attempt`, counted from 0."""
        return float(min(self.max_delay, max(retry_after, self.initial_delay * 2**attempt)))


class DeliveryStats(msgspec.Struct):
    """Counts of the events of a run.

    Attributes:
        received: Events that came.
        accepted: Events that the receiver accepted.
        rejected: Events that the receiver rejected for good.
        first_error: Reason of the first failure.
        error_message: Error message at the end of the run; empty if all events were accepted.
    """

    received: int = 0
    accepted: int = 0
    rejected: int = 0
    first_error: str = ""
    error_message: str = ""

    @property
    def unsent(self) -> int:
        """Events that were neither accepted nor rejected."""
        return self.received - self.accepted - self.rejected

    def raise_if_undelivered(self, *, waits: bool = False) -> None:
        """Fail if any event was not accepted.

        Args:
            waits: Events that were not sent wait for the next run. Only rejected ones count.

        Raises:
            TransientError: The message says how many, and why.
        """
        if self.error_message and (self.rejected or not waits):
            raise TransientError(self.error_message)

    def reset(self) -> None:
        """Set all counts to 0."""
        self.received = self.accepted = self.rejected = 0
        self.first_error = self.error_message = ""

    def record_first_error(self, reasons: Iterable[str]) -> None:
        """Keep the first reason, made safe to display."""
        self.first_error = self.first_error or display_value(
            next(iter(reasons), ""), _MAX_REASON_LENGTH
        )


class Delivery:
    """Sends events through a transport until each is accepted, rejected or kept.

    Args:
        stage: Name of the sink, for messages.
        transport: Sends events.
        stats: Counts what happens to them.
        batch_size: Maximum number of events sent together.
        retry_policy: Number of retries and delays.
        dead_letters: Keeps events that could not be delivered. Without it, the first event whose
            retries are exhausted ends the run.
        clock: Tells the time.
        total_timeout: Seconds to send events, with all retries and waits; None for no limit.
        silence_limit: Seconds after which events are not sent again to a receiver that has not
            answered at all; None for no limit. Events that come in the next seconds, as many, are
            not sent at once, but kept.
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
        total_timeout: float | None = None,
        silence_limit: float | None = None,
    ) -> None:
        self.stage, self.transport, self.stats = stage, transport, stats
        self.batch_size, self.retry_policy, self.dead_letters = (
            batch_size,
            retry_policy,
            dead_letters,
        )
        self.clock = clock or Clock()
        self.total_timeout, self.silence_limit = total_timeout, silence_limit
        self._silent_until = -math.inf
        self._kept = 0
        self._replaying = False
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
            level,
            "%s: %s accepted %d of %d events.",
            *(self.stage, self.transport.destination, *counts),
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
        """Deliver the events that wait, and those that were kept in this run."""
        self._silent_until = -math.inf  # one try at the end: the receiver may answer again
        self._flush(0)
        self._retry_kept()
        self.stats.error_message = self._make_error_message()

    def _make_error_message(self) -> str:
        stats = self.stats
        parts = {"rejected": stats.rejected, "not delivered": stats.unsent}
        counts = [f"{number:,} {outcome}" for outcome, number in parts.items() if number]
        if not counts:
            return ""
        return (
            f"{self.stage}: {self.transport.destination} accepted {stats.accepted:,} of "
            f"{stats.received:,} events; {', '.join(counts)}. The first reason: "
            f"{stats.first_error}. {self._suggest_fix()}"
        )

    def _suggest_fix(self) -> str:
        if self.dead_letters is not None:
            return (
                f"The events are kept in `{self.dead_letters}`. Fix the cause and run again: "
                "queued events are sent first."
            )
        return (
            f"Fix the cause and run again. With `{self.stage} --dead_letters=letters.jsonl`, "
            "events that are not accepted are kept, and the next run sends them first."
        )

    def _replay_dead_letters(self) -> None:
        """Send the events that earlier runs kept."""
        for letters in self._replay():
            self.stats.received += len(letters)
            for part in self._cut(letters):
                self._deliver([letter.event for letter in part])

    def _retry_kept(self) -> None:
        """Send the events again that this run kept, except those that were rejected for good.

        It stops when the receiver does not take some of them.
        """
        if not self._kept or self.dead_letters is None or self._replaying:
            return
        self._kept, failed = 0, False
        for letters in self._replay():
            rejected = [letter for letter in letters if letter.rejected]
            self.dead_letters.add([(each.event, each.reason) for each in rejected], rejected=True)
            for part in self._cut([letter for letter in letters if not letter.rejected]):
                if failed:
                    self.dead_letters.add((each.event, each.reason) for each in part)
                    continue
                self._deliver([letter.event for letter in part])
                failed = self._circuit_open

    def _cut(self, letters: list[KeptEvent]) -> Iterator[list[KeptEvent]]:
        """Yield kept events in parts that can be sent together."""
        for start in range(0, len(letters), self.batch_size):
            yield letters[start : start + self.batch_size]

    def _replay(self) -> Iterator[list[KeptEvent]]:
        """Yield the kept events, and let no delivery of them start this again."""
        self._replaying = True
        try:
            yield from self.dead_letters.replay() if self.dead_letters else ()
        finally:
            self._replaying = False

    def _enqueue(self, events: Iterable[OutboundEvent]) -> None:
        before = len(self._buffer)
        self._buffer += events
        self.stats.received += len(self._buffer) - before

    def _flush(self, max_buffered: int) -> None:
        """Deliver batches until at most `max_buffered` events are left."""
        while len(self._buffer) > max_buffered:
            self._deliver(self._buffer[: self.batch_size])
            del self._buffer[: self.batch_size]

    def _deliver(self, events: list[OutboundEvent]) -> None:
        """Deliver events with retries. Once retries were exhausted, batches get one attempt."""
        if self._is_silent():
            self._handle_exhausted([(event, self.stats.first_error) for event in events])
            return
        retries = 0 if self._circuit_open else self.retry_policy.max_retries
        start = self.clock.elapsed()
        end = None if self.total_timeout is None else start + self.total_timeout
        limit = self.silence_limit or math.inf
        for attempt in range(retries + 1):
            result = self._send(events, end)
            if result.split_reason:
                self._split(events, result.split_reason)
                return
            self._record_result(events, result)
            if not result.retryable:
                self._close_circuit()
                return
            failed = [(events[position], reason) for position, reason in result.retryable.items()]
            events = [event for event, _ in failed]
            delay = self.retry_policy.delay(attempt, result.retry_after)
            limit = limit if result.silent else math.inf
            is_late = self.clock.elapsed() + delay >= min(end or math.inf, start + limit)
            if result.fatal or attempt == retries or is_late:
                break
            self._wait_before_retry(delay, failed[0][1])
        self._circuit_open = True
        if result.silent and self.silence_limit is not None:
            self._silent_until = self.clock.elapsed() + self.silence_limit
        self._handle_exhausted(failed)

    def _is_silent(self) -> bool:
        """Return whether the receiver has not answered shortly before: each try takes long."""
        is_kept = self.dead_letters is not None
        return is_kept and self._circuit_open and self.clock.elapsed() < self._silent_until

    def _send(self, events: list[OutboundEvent], end: float | None) -> SendResult:
        if end is None:
            return self.transport.send(events)
        return self.transport.send(events, max(0.0, end - self.clock.elapsed()))

    def _close_circuit(self) -> None:
        """Note that the receiver takes events; if it had not, send what was kept meanwhile."""
        if self._circuit_open:
            self._circuit_open = False
            self._retry_kept()

    def _wait_before_retry(self, delay: float, reason: str) -> None:
        shown = display_value(reason, _MAX_REASON_LENGTH)
        logger.warning(
            "%s: %s: %s. Retrying in %.1f seconds.",
            *(self.stage, self.transport.destination, shown, delay),
            extra=NOTICE,
        )
        self.clock.sleep(delay)

    def _split(self, events: list[OutboundEvent], reason: str) -> None:
        """Deliver two halves; a single event is rejected. Finds the event that spoils a batch."""
        if len(events) == 1:
            self._record_result(events, SendResult(rejected={0: reason}))
            return
        middle = len(events) // 2
        self._deliver(events[:middle])
        self._deliver(events[middle:])

    def _record_result(self, events: Sequence[OutboundEvent], result: SendResult) -> None:
        """Count accepted and rejected events, and keep the rejected ones."""
        self.stats.accepted += len(events) - len(result.rejected) - len(result.retryable)
        self.stats.rejected += len(result.rejected)
        rejected = [(events[position], reason) for position, reason in result.rejected.items()]
        self._store_dead_letters(rejected, rejected=True)

    def _handle_exhausted(self, events: list[tuple[OutboundEvent, str]]) -> None:
        self._store_dead_letters(events)
        self._kept += len(events)
        if self.dead_letters is None:
            self.stats.error_message = self._make_error_message()
            raise TransientError(self.stats.error_message)

    def _store_dead_letters(
        self, events: list[tuple[OutboundEvent, str]], *, rejected: bool = False
    ) -> None:
        if events:
            self.stats.record_first_error(reason for _, reason in events)
        if events and self.dead_letters is not None:
            self.dead_letters.add(events, rejected=rejected)

    def _log_interrupted(self) -> None:
        """Log how many events arrived, unless the error that ends the run says so."""
        if self.stats.error_message:
            return
        logger.warning(
            "%s: stopped: %s accepted %d events; %d more may not have arrived. Run again to send "
            "them.",
            *(self.stage, self.transport.destination, self.stats.accepted, self.stats.unsent),
        )
        self._store_dead_letters([(event, "the run was stopped") for event in self._buffer])
