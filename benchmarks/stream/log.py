"""CloudTrail events that cost little to make, and fingerprints for all their users."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from msgspec import structs
from soak.events import FIRST, START, Events
from soak.product import TRAIN
from soak.trial import HISTORY, train

from morpheus.models.profile import Fingerprint
from morpheus.models.versions import ModelFacts, VersionedStore, open_models

FEATURES = "eventSource", "eventName", "sourceIPAddress", "userAgent", "awsRegion"
TAUGHT = 20
"""Users that are trained. Their fingerprints are given to all users, under other names."""
STRANGE_EVERY = 1009
"""One event of so many is strange, and an alert. A prime number, so that each user has some."""


@dataclass
class Log:
    """Events in order. Users take turns.

    Attributes:
        users: Number of users.
        step: Seconds between two events.
    """

    users: int
    step: float
    _templates: list[list[tuple[bytes, bytes, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the texts of which events consist."""
        taught = Events(1, TAUGHT, bursts=False)
        for user in range(TAUGHT):
            first = FIRST - FIRST % TAUGHT + user
            past = [taught.record(first - TAUGHT * turn) for turn in range(1, HISTORY + 1)]
            # The usual values of the history, and each action as often as there.
            usual = [each for each in past if each["userAgent"] == f"client/{user % 3}"]
            self._templates.append([_split(record) for record in usual])

    def line(self, number: int) -> bytes:
        """Return an event."""
        user = number % self.users
        taught = self._templates[user % TAUGHT]
        head, middle, end = taught[number // self.users % len(taught)]
        when = START.timestamp() + number * self.step
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)).encode()
        line = b"%b%b%b%012x%b" % (head, text, middle, number, end)
        line = line.replace(b"role-0000", b"role-%07d" % user)
        if number % STRANGE_EVERY == 0:
            strange = b'"eventSource":"s%d.example","eventName":"Do%d","x":"' % (number, number)
            line = line.replace(b'"eventSource":"', strange, 1)
        return line


def _split(record: dict[str, object]) -> tuple[bytes, bytes, bytes]:
    """Return an event without its time and its id, which are put in later."""
    identity = {
        "type": "AssumedRole",
        "accountId": "111122223333",
        "sessionContext": {"sessionIssuer": {"type": "Role", "userName": "role-0000"}},
    }
    given = {"eventTime": "TIME", "eventID": "00000001-0000-4000-8000-NUMBER"}
    text = msgspec.json.encode(record | given | {"userIdentity": identity})
    head, rest = text.split(b"TIME")
    middle, end = rest.split(b"NUMBER")
    return head, middle, end


def user_name(number: int) -> str:
    """Return the name of a user."""
    return f"role-{number:07}"


def write_columns(folder: Path) -> str:
    """Write a feature list without the user's name, and return the option that names it.

    Fingerprints are given to users with other names, which would be new values.
    """
    path = folder / "columns.txt"
    path.write_text("\n".join(FEATURES))
    return f"--columns_file={path}"


def make_models(folder: Path, users: int) -> Path:
    """Train a few users, and give their fingerprints to all users; return the folder."""
    command = TRAIN.replace(" from-cloudtrail", f" {write_columns(folder)} from-cloudtrail")
    taught = open_models(str(train(folder / "taught", Events(1, TAUGHT), command)))
    prints = [taught.load(name) for name in sorted(taught.cards)]
    models = folder / "models"
    facts = ModelFacts.from_store(taught)

    def rename() -> Iterator[Fingerprint]:
        for number in range(users):
            one = prints[number % TAUGHT]
            if one is None:
                raise RuntimeError("a user was not trained")
            yield replace(one, card=structs.replace(one.card, user=user_name(number)))

    VersionedStore.open(models).publish(rename(), facts=facts)
    return models
