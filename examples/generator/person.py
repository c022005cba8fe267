"""People: working hours, breaks, weekends, days off and temporary projects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random

from generator.events import Event, Origin, Task, Tool, at, sort_by_time

WORKDAYS = 5


@dataclass(frozen=True)
class Work:
    """A kind of task of a person.

    Attributes:
        task: The task.
        tool: The program that it uses.
        weight: Relative frequency.
        first: First day, for a temporary project.
        last: Last day.
    """

    task: Task
    tool: Tool
    weight: float
    first: date = date.min
    last: date = date.max

    def runs(self, day: date) -> bool:
        """Return whether the work is done on this day."""
        return self.first <= day <= self.last


@dataclass(frozen=True)
class Stay:
    """Days at another place, such as a business trip."""

    first: date
    last: date
    address: str


@dataclass(frozen=True)
class Errand:
    """A task that is done once, such as a yearly cleanup or a demonstration."""

    start: datetime
    task: Task
    tool: Tool
    address: str


@dataclass(frozen=True)
class Person:
    """A person with working hours, breaks, weekends and days off.

    Attributes:
        session: Session name.
        work: Kinds of tasks.
        addresses: Addresses to work from and their weights; one address per day.
        hours: Mean start and end of the working day, in hours after midnight.
        goes: Mean number of tasks per working day.
        stays: Days at other places.
        errands: Tasks that are done once.
        off: Days off.
        late: Share of working days with one more task in the evening.
        late_address: Address of that task.
        lunch: Mean start of the lunch break, in hours after midnight.
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
        """Return the events of `days` days, by time."""
        all_days = (first + timedelta(days=n) for n in range(days))
        events = [event for day in all_days for event in self.day(day, random)]
        return sort_by_time(events + [event for e in self.errands for event in self.run(e, random)])

    def day(self, day: date, random: Random) -> Iterator[Event]:
        """Generate the events of one day."""
        if day.weekday() >= WORKDAYS or day in self.off:
            return
        address, free = self.address(day, random), at(day, 0)
        for start in self.starts(day, random):
            events = list(self.go(max(start, free), address, random))
            free = events[-1].when + timedelta(minutes=3)
            yield from events
        if random.random() < self.late:
            evening = at(day, self.hours[1] + random.uniform(2, 4))
            yield from self.go(evening, self.late_address or address, random)

    def go(self, start: datetime, address: str, random: Random) -> Iterator[Event]:
        """Do one of the tasks of that day."""
        current = [work for work in self.work if work.runs(start.date())]
        [work] = random.choices(current, [work.weight for work in current])
        origin = Origin(address, work.tool, self.session)
        yield from work.task.events(start, origin, random)

    def run(self, errand: Errand, random: Random) -> Iterator[Event]:
        """Do a task that is done once."""
        origin = Origin(errand.address, errand.tool, self.session)
        return errand.task.events(errand.start, origin, random)

    def address(self, day: date, random: Random) -> str:
        """Return the address of the day."""
        for stay in self.stays:
            if stay.first <= day <= stay.last:
                return stay.address
        [address] = random.choices(list(self.addresses), list(self.addresses.values()))
        return address

    def starts(self, day: date, random: Random) -> list[datetime]:
        """Draw the start times of the day's tasks: in working hours, outside the lunch break."""
        opens = self.hours[0] + random.gauss(0, 0.3)
        closes = self.hours[1] + random.gauss(0, 0.5)
        lunch = random.gauss(self.lunch, 0.25)
        num_tasks = round(random.gauss(self.goes, self.goes / 6))
        hours = (random.uniform(opens, closes) for _ in range(max(num_tasks, 4)))
        return sorted(at(day, hour) for hour in hours if not lunch <= hour <= lunch + 0.75)
