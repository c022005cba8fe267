"""Machines: programs that use a role on a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random

from generator.events import Event, Origin, Task, Tool, at, sort_by_time


@dataclass(frozen=True)
class Job:
    """A scheduled task of a machine.

    Attributes:
        hours: Start times in hours of the day (UTC), with fractions.
        minute: Minutes to add to each start time.
        jitter: Maximum delay of a start, in seconds.
        weekdays: Days of the week on which it runs; Monday is 0.
        missed: Share of runs that are skipped.
    """

    task: Task
    tool: Tool
    hours: Sequence[float]
    minute: int = 0
    jitter: float = 60.0
    weekdays: frozenset[int] = frozenset(range(7))
    missed: float = 0.0

    def starts(self, day: date, random: Random) -> Iterator[datetime]:
        """Generate the start times on this day."""
        if day.weekday() not in self.weekdays:
            return
        for hour in self.hours:
            late = timedelta(seconds=random.uniform(0, self.jitter))
            if random.random() >= self.missed:
                yield at(day, hour + self.minute / 60) + late


@dataclass(frozen=True)
class Host:
    """A computer of a machine: its address and its session name."""

    address: str
    session: str


@dataclass(frozen=True)
class Machine:
    """A role that programs use on a schedule. The host of each run is drawn by weight."""

    jobs: Sequence[Job]
    hosts: Mapping[Host, float]

    def events(self, first: date, days: int, random: Random) -> list[Event]:
        """Return the events of `days` days, by time."""
        return sort_by_time(
            event
            for n in range(days)
            for job in self.jobs
            for start in job.starts(first + timedelta(days=n), random)
            for event in self.run(job, start, random)
        )

    def run(self, job: Job, start: datetime, random: Random) -> Iterator[Event]:
        """Run a job on one of the hosts."""
        [host] = random.choices(list(self.hosts), list(self.hosts.values()))
        origin = Origin(host.address, job.tool, host.session)
        return job.task.events(start, origin, random)
