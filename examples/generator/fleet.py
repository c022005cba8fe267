"""A company's cloud account: its members, their events of each day, and the incidents.

The seed determines everything. Each member and each day of a member has a separate random
generator. So a fleet of ten members is the start of a fleet of ten thousand.
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
from generator.traveller import travel

FIRST_DAY = date(2025, 3, 3)
"""A Monday."""


class Logged(NamedTuple):
    """An event, its member, and the number of its incident, if any."""

    when: datetime
    member: int
    event: Event
    incident: int | None


@dataclass(frozen=True)
class Fleet:
    """A company.

    Attributes:
        users: Number of members, at least 1.
        days: Number of days.
        training: Number of days at the start without incidents.
        rate: Approximate mean number of events per member and day.
        attacked: Share of members with an incident.
        seed: Random seed.
        noisy: Number of members, the first ones, with much benign variety in the scored days. Each
            of them also has an incident of each kind.
    """

    users: int
    days: int = 60
    training: int = 42
    rate: float = 22.0
    attacked: float = 0.2
    seed: int = 42
    noisy: int = 0

    @property
    def span(self) -> Span:
        """All days."""
        return Span(FIRST_DAY, self.days)

    @cached_property
    def members(self) -> Sequence[Member]:
        """All members."""
        drawn = [member(n, self.span, self.rate, self.seed) for n in range(self.users)]
        return [*map(self._make_noisy, range(self.noisy)), *drawn[self.noisy :]]

    def _make_noisy(self, number: int) -> Member:
        random = Random(f"{self.seed} traveller {number}")  # noqa: S311 - made-up logs, not secrets
        usual = member(number, self.span, self.rate, self.seed, kind="person")
        since = FIRST_DAY + timedelta(days=self.training)
        return travel(usual, since, self.span, random)

    @cached_property
    def incidents(self) -> Sequence[Incident]:
        """The incidents, all in scored days: at least one of each kind."""
        if not self.attacked:
            return []
        random = Random(f"{self.seed} incidents {self.users}")  # noqa: S311 - made-up logs, not secrets
        count = max(round(self.attacked * self.users), 1)
        victims = random.sample(range(self.users), count)
        kinds = [list(KINDS)[n % len(KINDS)] for n in range(max(count, len(KINDS)))]
        drawn = [self._happen(kind, victims[n % count], random) for n, kind in enumerate(kinds)]
        noisy = (self._happen_to_noisy(number) for number in range(self.noisy))
        return [*drawn, *(incident for incidents in noisy for incident in incidents)]

    def _happen_to_noisy(self, victim: int) -> Iterator[Incident]:
        """Draw an incident of each kind, on different days as long as there are enough."""
        random = Random(f"{self.seed} incidents of traveller {victim}")  # noqa: S311 - made-up logs, not secrets
        days = range(self.training, max(self.days - 1, self.training + 1))
        chosen = random.sample(days, min(len(KINDS), len(days)))
        for number, kind in enumerate(KINDS):
            day = FIRST_DAY + timedelta(days=chosen[number % len(chosen)])
            yield happen(kind, victim, self.members[victim].habits, day, random)

    def _happen(self, kind: str, victim: int, random: Random) -> Incident:
        last = max(self.days - 1, self.training + 1)  # leave a day for an incident to end
        day = FIRST_DAY + timedelta(days=random.randrange(self.training, last))
        return happen(kind, victim, self.members[victim].habits, day, random)

    def by_day(self) -> Iterator[tuple[date, list[Logged]]]:
        """Generate the events of each day, by time; ties are ordered by member.

        Events after midnight belong to the next day. Those after the last day are left out.
        """
        rest: list[Logged] = []
        for day in (FIRST_DAY + timedelta(days=n) for n in range(self.days)):
            events = sorted([*rest, *self._day(day)], key=lambda logged: logged[:2])
            midnight = sum(logged.when.date() <= day for logged in events)
            rest = events[midnight:]
            yield day, events[:midnight]

    def _day(self, day: date) -> Iterator[Logged]:
        for number, person in enumerate(self.members):
            random = Random(f"{self.seed} {number} {day}")  # noqa: S311 - made-up logs, not secrets
            for event in person.day(day, random):
                yield Logged(event.when, number, event, None)
        for number, incident in enumerate(self.incidents):
            if incident.events[0].when.date() == day:
                for event in incident.events:
                    yield Logged(event.when, incident.victim, event, number)
