"""A company's account: its members, what they do day by day, and the incidents among it.

The seed decides everything. Each member, and each day of a member, is drawn from a generator of its
own, so that a fleet of ten members is the beginning of the fleet of ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from random import Random
from typing import NamedTuple

from generator.events import Event
from generator.incidents import KINDS, Incident, happen
from generator.office import Member, Span, member

FIRST_DAY = date(2025, 3, 3)
"""A Monday."""


class Logged(NamedTuple):
    """An event with whose it is, and the number of the incident that it belongs to, if any."""

    when: datetime
    member: int
    event: Event
    incident: int | None


@dataclass(frozen=True)
class Fleet:
    """A company of so many members, over so many days.

    Attributes:
        users: Members, 1 and up.
        days: Days in all.
        training: Days at the beginning that hold no incident.
        rate: Events of a member and day, about, in the mean.
        attacked: Share of members to whom something happens.
        seed: Decides everything.
    """

    users: int
    days: int = 60
    training: int = 42
    rate: float = 22.0
    attacked: float = 0.2
    seed: int = 42

    @property
    def span(self) -> Span:
        """The days looked at."""
        return Span(FIRST_DAY, self.days)

    @cached_property
    def members(self) -> Sequence[Member]:
        """Everybody."""
        return [member(n, self.span, self.rate, self.seed) for n in range(self.users)]

    @cached_property
    def incidents(self) -> Sequence[Incident]:
        """What happens, in the scored days: at least one of each kind, dealt to the attacked."""
        if not self.attacked:
            return []
        random = Random(f"{self.seed} incidents {self.users}")  # noqa: S311 - made-up logs, not secrets
        count = max(round(self.attacked * self.users), 1)
        victims = random.sample(range(self.users), count)
        kinds = [list(KINDS)[n % len(KINDS)] for n in range(max(count, len(KINDS)))]
        return [self._happen(kind, victims[n % count], random) for n, kind in enumerate(kinds)]

    def _happen(self, kind: str, victim: int, random: Random) -> Incident:
        last = max(self.days - 1, self.training + 1)  # what begins late has a day to end in
        day = FIRST_DAY + timedelta(days=random.randrange(self.training, last))
        return happen(kind, victim, self.members[victim].habits, day, random)

    def by_day(self) -> Iterator[tuple[date, list[Logged]]]:
        """Live day after day; each day's events come in the order of time, ties by member.

        What is begun on one day and ends after midnight lies in the next; the last day's rest is
        left out.
        """
        rest: list[Logged] = []
        for day in (FIRST_DAY + timedelta(days=n) for n in range(self.days)):
            lived = sorted([*rest, *self._day(day)], key=lambda logged: logged[:2])
            midnight = sum(logged.when.date() <= day for logged in lived)
            rest = lived[midnight:]
            yield day, lived[:midnight]

    def _day(self, day: date) -> Iterator[Logged]:
        for number, somebody in enumerate(self.members):
            random = Random(f"{self.seed} {number} {day}")  # noqa: S311 - made-up logs, not secrets
            for event in somebody.day(day, random):
                yield Logged(event.when, number, event, None)
        for number, incident in enumerate(self.incidents):
            if incident.events[0].when.date() == day:
                for event in incident.events:
                    yield Logged(event.when, incident.victim, event, number)
