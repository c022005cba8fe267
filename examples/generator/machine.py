"""Machines: programs that act under a role, by the clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random

from generator.events import Event, Origin, Task, Tool, at, in_time


@dataclass(frozen=True)
class Job:
    """A task that a machine does by the clock.

    Attributes:
        hours: Hours of the day (UTC) at which it starts, parts of hours included.
        minute: Minute of the hour at which it starts.
        jitter: Most seconds by which it starts late.
        weekdays: Days of the week on which it runs; Monday is 0.
        missed: Share of its runs that do not happen.
    """

    task: Task
    tool: Tool
    hours: Sequence[float]
    minute: int = 0
    jitter: float = 60.0
    weekdays: frozenset[int] = frozenset(range(7))
    missed: float = 0.0

    def starts(self, day: date, random: Random) -> Iterator[datetime]:
        """When it runs on this day."""
        if day.weekday() not in self.weekdays:
            return
        for hour in self.hours:
            late = timedelta(seconds=random.uniform(0, self.jitter))
            if random.random() >= self.missed:
                yield at(day, hour + self.minute / 60) + late


@dataclass(frozen=True)
class Host:
    """A computer that acts for a machine: its address and the name of its session."""

    address: str
    session: str


@dataclass(frozen=True)
class Machine:
    """A role that programs act under, by the clock; each host takes its turn by weight."""

    jobs: Sequence[Job]
    hosts: Mapping[Host, float]

    def events(self, first: date, days: int, random: Random) -> list[Event]:
        """Run for some days; the events come in the order of time."""
        return in_time(
            event
            for n in range(days)
            for job in self.jobs
            for start in job.starts(first + timedelta(days=n), random)
            for event in self.run(job, start, random)
        )

    def run(self, job: Job, start: datetime, random: Random) -> Iterator[Event]:
        """Do a job on one of the hosts."""
        [host] = random.choices(list(self.hosts), list(self.hosts.values()))
        origin = Origin(host.address, job.tool, host.session)
        return job.task.events(start, origin, random)
