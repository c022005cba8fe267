"""Deterministic events: all of an event follows from its id and the seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

USER_COLUMN = "userIdentitysessionContextsessionIssueruserName"
START = datetime(2026, 3, 2, tzinfo=UTC)
STEP = timedelta(seconds=20)
"""Time between two events of the log. A day has 4,320 events, so a soak has several days."""
SERVICES = ("ec2", "s3", "iam", "sts", "kms", "lambda", "rds", "sqs")
ACTIONS = ("Describe", "List", "Get", "Put", "Create", "Delete")
HABITS = 5
"""Actions that a user repeats."""
RARE = 0.03
"""Share of events that are not among a user's habits."""
BURST, BLOCKS = 60, 9
"""Events of a burst, and every how many blocks of so many events is a burst of one user."""
ID = re.compile(r"[0-9a-f]{8}-0000-4000-8[0-9a-f]{3}-([0-9a-f]{12})")
FIRST = 10**12
"""Number of the first event, at which turns and blocks begin. Those before it are history."""


@dataclass(frozen=True)
class Events:
    """The events of a soak.

    Attributes:
        seed: Seed of all events.
        users: Number of users. They take turns.
        turn: Consecutive events of one user.
        bursts: At times, many events follow each other that are all of one user.
    """

    seed: int
    users: int
    turn: int = 1
    bursts: bool = True

    def record(self, number: int) -> dict[str, object]:
        """Return an event as a CloudTrail record."""
        user = self.user_number(number)
        own = random.Random(f"{self.seed} {user}")  # noqa: S311 - a seed, no secret
        habits = [(own.choice(SERVICES), own.choice(ACTIONS)) for _ in range(HABITS)]
        draw = random.Random(f"{self.seed} event {number}")  # noqa: S311 - the same
        rare = draw.random() < RARE
        service, action = (
            (draw.choice(SERVICES), draw.choice(ACTIONS)) if rare else draw.choice(habits)
        )
        name = f"role-{user:04}"
        return {
            "eventVersion": "1.08",
            "eventTime": f"{START + STEP * (number - FIRST):%Y-%m-%dT%H:%M:%SZ}",
            "eventID": self.event_id(number),
            "eventSource": f"{service}.amazonaws.com",
            "eventName": f"{action}{service.title()}",
            "awsRegion": "eu-west-1",
            "sourceIPAddress": f"10.{user % 250}.0.{draw.randrange(250) if rare else user % 4}",
            "userAgent": f"client/{draw.randrange(100) if rare else user % 3}",
            "recipientAccountId": "111122223333",
            "userIdentity": {
                "type": "AssumedRole",
                "accountId": "111122223333",
                "sessionContext": {"sessionIssuer": {"type": "Role", "userName": name}},
            },
        }

    def event_id(self, number: int) -> str:
        """Return the id of an event, in the form in which AWS writes ids."""
        return f"{self.seed & 0xFFFFFFFF:08x}-0000-4000-8000-{number:012x}"

    def user(self, number: int) -> str:
        """Return the user of an event."""
        return f"role-{self.user_number(number):04}"

    def user_number(self, number: int) -> int:
        """Return the number of an event's user."""
        block = number // BURST
        if self.bursts and block % BLOCKS == 0:
            return block // BLOCKS % self.users
        return number // self.turn % self.users

    def line(self, number: int) -> bytes:
        """Return an event as a line of JSON."""
        return msgspec.json.encode(self.record(number)) + b"\n"

    def document(self, numbers: Iterable[int]) -> bytes:
        """Return events as a CloudTrail file."""
        return msgspec.json.encode({"Records": [self.record(number) for number in numbers]})


def parse_id(text: object) -> int | None:
    """Return the number of an event; None if the id was not made here.

    >>> parse_id(Events(7, 3).event_id(12)), parse_id("other")
    (12, None)
    """
    match = ID.fullmatch(str(text))
    return int(match[1], 16) if match else None
