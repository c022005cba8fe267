"""People: working hours, breaks, weekends, days off, projects that come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random

from generator.events import Event, Origin, Task, Tool, at, in_time

WORKDAYS = 5


@dataclass(frozen=True)
class Work:
    """A kind of task that a person has, with what they use for it.

    Attributes:
        weight: How often it comes up, beside the others.
        first: First day, for a project that comes and goes.
        last: Last day.
    """

    task: Task
    tool: Tool
    weight: float
    first: date = date.min
    last: date = date.max

    def runs(self, day: date) -> bool:
        """Whether there is such work on this day."""
        return self.first <= day <= self.last


@dataclass(frozen=True)
class Stay:
    """Some days spent elsewhere, such as a business trip."""

    first: date
    last: date
    address: str


@dataclass(frozen=True)
class Errand:
    """A task that comes once: the yearly clean-up, a demonstration."""

    start: datetime
    task: Task
    tool: Tool
    address: str


@dataclass(frozen=True)
class Person:
    """Somebody with working hours, breaks, weekends and days off.

    Attributes:
        session: The name that they log in under.
        work: What they do.
        addresses: Where they work from, with weights; one a day.
        hours: When they mostly start and stop, in hours after midnight.
        goes: Mean number of tasks on a working day.
        stays: Days elsewhere.
        errands: Tasks that come once.
        off: Days off.
        late: Share of working days with a last look in the evening.
        late_address: Where that look is taken from.
        lunch: When lunch mostly begins, in hours after midnight.
    """

    session: str
    work: Sequence[Work]
    addresses: Mapping[str, float]
    hours: tuple[float, float] = (8.5, 17.5)
    goes: float = 22.0
    stays: Sequence[Stay] = ()
    errands: Sequence[Errand] = ()
    off: frozenset[date] = frozenset()
    late: float = 0.15
    late_address: str | None = None
    lunch: float = 12.3

    def events(self, first: date, days: int, random: Random) -> list[Event]:
        """Live for some days; the events come in the order of time."""
        lived = (first + timedelta(days=n) for n in range(days))
        events = [event for day in lived for event in self.day(day, random)]
        return in_time(events + [event for e in self.errands for event in self.run(e, random)])

    def day(self, day: date, random: Random) -> Iterator[Event]:
        """Live one day."""
        if day.weekday() >= WORKDAYS or day in self.off:
            return
        address, free = self.address(day, random), at(day, 0)
        for start in self.starts(day, random):
            done = list(self.go(max(start, free), address, random))
            free = done[-1].when + timedelta(minutes=3)
            yield from done
        if random.random() < self.late:
            evening = at(day, self.hours[1] + random.uniform(2, 4))
            yield from self.go(evening, self.late_address or address, random)

    def go(self, start: datetime, address: str, random: Random) -> Iterator[Event]:
        """Do one of the tasks at hand."""
        at_hand = [work for work in self.work if work.runs(start.date())]
        [work] = random.choices(at_hand, [work.weight for work in at_hand])
        origin = Origin(address, work.tool, self.session)
        yield from work.task.events(start, origin, random)

    def run(self, errand: Errand, random: Random) -> Iterator[Event]:
        """Do what comes once."""
        origin = Origin(errand.address, errand.tool, self.session)
        return errand.task.events(errand.start, origin, random)

    def address(self, day: date, random: Random) -> str:
        """Where the day is spent."""
        for stay in self.stays:
            if stay.first <= day <= stay.last:
                return stay.address
        [address] = random.choices(list(self.addresses), list(self.addresses.values()))
        return address

    def starts(self, day: date, random: Random) -> list[datetime]:
        """When the day's tasks begin: within working hours, and not at lunch."""
        opens = self.hours[0] + random.gauss(0, 0.3)
        closes = self.hours[1] + random.gauss(0, 0.5)
        lunch = random.gauss(self.lunch, 0.25)
        wanted = round(random.gauss(self.goes, self.goes / 6))
        hours = (random.uniform(opens, closes) for _ in range(max(wanted, 4)))
        return sorted(at(day, hour) for hour in hours if not lunch <= hour <= lunch + 0.75)
