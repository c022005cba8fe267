"""Intruders with stolen credentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random

from generator.events import Call, Error, Event, Origin, make_event, wait


@dataclass(frozen=True)
class Intruder:
    """An intruder with stolen credentials and a plan.

    Attributes:
        steps: The calls in order, each with its result.
        origin: Where the calls come from.
        pause: Mean seconds between calls.
    """

    steps: Sequence[tuple[Call, Error | None]]
    origin: Origin
    pause: float = 20.0

    def events(self, start: datetime, random: Random) -> list[Event]:
        """Generate the events of all steps, starting at `start`."""
        events, when = [], start
        for call, error in self.steps:
            events.append(make_event(call, when, self.origin, error, random))
            when += wait(self.pause, random)
        return events
