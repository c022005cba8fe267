"""What happens in a cloud account: calls, from somewhere, with their answers.

A *call* is what is asked of the cloud, an *origin* is where and with what it is asked, an *event*
is a call from an origin at a time, with the answer. A *task* is a few calls that belong together.
Times are in UTC. Whatever is drawn comes from the random generator that is handed in: the same
generator, the same events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from random import Random


@dataclass(frozen=True)
class Error:
    """An answer other than success.

    In the message `{action}` stands for `service:Name`, and `{arn}` for whoever asked.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Call:
    """What is asked of the cloud.

    Attributes:
        service: First word of the event source: `iam` of `iam.amazonaws.com`.
        name: The event's name.
        version: Version of the service's API; empty where the service has none.
        host: What the client says it talks to; empty where it says nothing.
        details: Further columns, each with the values that it takes, one picked for each call;
            `{new}` in a value stands for an identifier that no other call has.
        error: The error that the call meets at times.
        fails: Share of the calls that meet it.
    """

    service: str
    name: str
    version: str = ""
    host: str = ""
    details: tuple[tuple[str, tuple[str, ...]], ...] = ()
    error: Error | None = None
    fails: float = 0.0

    def failing(self, error: Error, share: float) -> Call:
        """The same call where it fails at times."""
        return replace(self, error=error, fails=share)

    def answer(self, random: Random) -> Error | None:
        """Pick the error, or mostly none."""
        return self.error if random.random() < self.fails else None


@dataclass(frozen=True)
class Tool:
    """A program and the credentials that it was given."""

    agent: str
    key: str


@dataclass(frozen=True)
class Origin:
    """Where a call comes from.

    Attributes:
        address: Of the network.
        tool: The program.
        session: The name that whoever asks has logged in under.
    """

    address: str
    tool: Tool
    session: str


@dataclass(frozen=True)
class Event:
    """A call from somewhere, with its answer; `details` holds the values that were picked."""

    when: datetime
    call: Call
    origin: Origin
    error: Error | None
    details: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """Calls that belong together.

    Attributes:
        calls: Calls, and how often each comes up beside the others.
        length: Fewest and most calls in one go, where they are picked by weight.
        pause: Mean seconds from one call to the next.
        retry: Whether a call that failed is made once more.
        in_order: Whether `calls` are all made, one after the other.
    """

    calls: Mapping[Call, float]
    length: tuple[int, int] = (1, 4)
    pause: float = 60.0
    retry: bool = False
    in_order: bool = False

    def plan(self, random: Random) -> list[Call]:
        """Pick the calls of one go."""
        if self.in_order:
            return list(self.calls)
        weights = list(self.calls.values())
        return random.choices(list(self.calls), weights, k=random.randint(*self.length))

    def events(self, start: datetime, origin: Origin, random: Random) -> Iterator[Event]:
        """Do the task once, from `start` on."""
        when = start
        for call in self.plan(random):
            error = call.answer(random)
            yield made(call, when, origin, error, random)
            when += wait(self.pause, random)
            if error is not None and self.retry:
                yield made(call, when, origin, None, random)
                when += wait(self.pause, random)


def made(call: Call, when: datetime, origin: Origin, error: Error | None, random: Random) -> Event:
    """Make a call: pick its details."""
    new = f"{random.getrandbits(64):016x}"
    details = {column: random.choice(values).format(new=new) for column, values in call.details}
    return Event(when.replace(microsecond=0), call, origin, error, details)


def wait(mean: float, random: Random) -> timedelta:
    """How long until the next call: from half the mean to three times the mean."""
    return timedelta(seconds=mean * min(0.5 + random.expovariate(2), 3))


def at(day: date, hour: float) -> datetime:
    """That hour of that day."""
    return datetime.combine(day, time(tzinfo=UTC)) + timedelta(hours=hour)


def in_time(events: Iterable[Event]) -> list[Event]:
    """Order events by time; those of one second keep their order."""
    return sorted(events, key=lambda event: event.when)
