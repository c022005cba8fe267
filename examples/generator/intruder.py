"""Intruders: somebody with stolen credentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random

from generator.events import Call, Error, Event, Origin, made, wait


@dataclass(frozen=True)
class Intruder:
    """Somebody with stolen credentials, who knows what they want.

    Attributes:
        steps: The calls in order, each with its answer.
        pause: Mean seconds between them.
    """

    steps: Sequence[tuple[Call, Error | None]]
    origin: Origin
    pause: float = 20.0

    def events(self, start: datetime, random: Random) -> list[Event]:
        """Take the steps, from `start` on."""
        events, when = [], start
        for call, error in self.steps:
            events.append(made(call, when, self.origin, error, random))
            when += wait(self.pause, random)
        return events
