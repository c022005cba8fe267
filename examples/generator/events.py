"""Events in a cloud account.

A *call* is a request to the cloud. An *origin* is the address, program and session that a call
comes from. An *event* is a call from an origin at a time, with its result. A *task* is a group of
calls that belong together. Times are in UTC. All random values come from the random generator
that is passed in, so the same generator gives the same events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from random import Random


@dataclass(frozen=True)
class Error:
    """An error that a call returns.

    In the message, `{action}` is replaced by `service:Name`, and `{arn}` by the caller.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Call:
    """A request to the cloud.

    Attributes:
        service: First word of the event source: `iam` of `iam.amazonaws.com`.
        name: The event's name.
        version: API version of the service; empty if it has none.
        host: Host name that the client sends; empty if it sends none.
        details: Further columns and their values. Each call picks one value per column. `{new}`
            in a value is replaced by a new identifier.
        error: The error of failed calls.
        fails: Share of calls that fail.
    """

    service: str
    name: str
    version: str = ""
    host: str = ""
    details: tuple[tuple[str, tuple[str, ...]], ...] = ()
    error: Error | None = None
    fails: float = 0.0

    def failing(self, error: Error, share: float) -> Call:
        """Return the same call with an error that occurs in a share of calls."""
        return replace(self, error=error, fails=share)

    def draw_error(self, random: Random) -> Error | None:
        """Draw the result: the error, or None for success."""
        return self.error if random.random() < self.fails else None


@dataclass(frozen=True)
class Tool:
    """A program and its access key."""

    agent: str
    key: str


@dataclass(frozen=True)
class Origin:
    """Where a call comes from.

    Attributes:
        address: IP address.
        tool: Program and key.
        session: Session name of the caller.
    """

    address: str
    tool: Tool
    session: str


@dataclass(frozen=True)
class Event:
    """A call from an origin, with its result. `details` holds the values that were drawn."""

    when: datetime
    call: Call
    origin: Origin
    error: Error | None
    details: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """Calls that belong together.

    Attributes:
        calls: Calls and their weights.
        length: Minimum and maximum number of calls, if they are drawn by weight.
        pause: Mean seconds between calls.
        retry: Whether a failed call is repeated once.
        in_order: Whether all `calls` are made in order, without a draw.
    """

    calls: Mapping[Call, float]
    length: tuple[int, int] = (1, 4)
    pause: float = 60.0
    retry: bool = False
    in_order: bool = False

    def plan(self, random: Random) -> list[Call]:
        """Draw the calls of one run of the task."""
        if self.in_order:
            return list(self.calls)
        weights = list(self.calls.values())
        return random.choices(list(self.calls), weights, k=random.randint(*self.length))

    def events(self, start: datetime, origin: Origin, random: Random) -> Iterator[Event]:
        """Run the task once, starting at `start`."""
        when = start
        for call in self.plan(random):
            error = call.draw_error(random)
            yield make_event(call, when, origin, error, random)
            when += wait(self.pause, random)
            if error is not None and self.retry:
                yield make_event(call, when, origin, None, random)
                when += wait(self.pause, random)


def make_event(
    call: Call, when: datetime, origin: Origin, error: Error | None, random: Random
) -> Event:
    """Make an event: draw the details of its call."""
    new = f"{random.getrandbits(64):016x}"
    details = {column: random.choice(values).format(new=new) for column, values in call.details}
    return Event(when.replace(microsecond=0), call, origin, error, details)


def wait(mean: float, random: Random) -> timedelta:
    """Draw the time until the next call: from half the mean to three times the mean."""
    return timedelta(seconds=mean * min(0.5 + random.expovariate(2), 3))


def at(day: date, hour: float) -> datetime:
    """Return the time at this hour of this day."""
    return datetime.combine(day, time(tzinfo=UTC)) + timedelta(hours=hour)


def sort_by_time(events: Iterable[Event]) -> list[Event]:
    """Sort events by time. Events of the same second keep their order."""
    return sorted(events, key=lambda event: event.when)
