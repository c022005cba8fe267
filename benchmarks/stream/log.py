"""CloudTrail events that cost little to make, and fingerprints for all their users."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import msgspec
from soak.events import FIRST, HABITS, Events
from soak.trial import train

from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model

TAUGHT = 20
"""Users that are trained. Their fingerprints are given to all users, under other names."""
STRANGE_EVERY = 1000
"""Each event of so many is strange, so that it is an alert."""


@dataclass
class Log:
    """Events in order. Users take turns.

    Attributes:
        users: Number of users.
        start: Time of the first event, in seconds since 1970.
        step: Seconds between two events.
    """

    users: int
    start: float
    step: float
    _templates: list[list[tuple[bytes, bytes, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the texts of which events consist."""
        taught = Events(1, TAUGHT)
        for user in range(TAUGHT):
            self._templates.append(
                [_split(taught.record(FIRST + TAUGHT * turn + user)) for turn in range(HABITS)]
            )

    def line(self, number: int, seconds: float | None = None) -> bytes:
        """Return an event.

        Args:
            number: Its number.
            seconds: Its time; by default it follows from its number.
        """
        user = number % self.users
        taught = self._templates[user % TAUGHT]
        head, middle, end = taught[number // self.users % HABITS]
        when = self.start + number * self.step if seconds is None else seconds
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)).encode()
        line = b"%b%b%b%012x%b" % (head, text, middle, number, end)
        line = line.replace(b"role-0000", b"role-%07d" % user)
        if number % STRANGE_EVERY == 0:
            line = line.replace(b'amazonaws.com"', b'strange.example"').replace(b"client/", b"x/")
        return line


def _split(record: dict[str, object]) -> tuple[bytes, bytes, bytes]:
    """Return an event without its time, its id and its user, which are put in later."""
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


def make_models(folder: Path, users: int) -> Path:
    """Train a few users, and give their fingerprints to all users; return the folder."""
    taught = ModelStore.open(train(folder / "taught", Events(1, TAUGHT)))
    prints = [taught.load(name) for name in sorted(taught.cards)]
    models, cards = folder / "models", {}
    with patch(
        "os.fsync"
    ):  # a sync for each of many files takes minutes, and protects nothing here
        for number in range(users):
            one = prints[number % TAUGHT]
            if one is None:
                raise RuntimeError("a user was not trained")
            name = user_name(number)
            own = msgspec.structs.replace(one.card, user=name)
            cards[name] = put_model(models, replace(one, card=own))
    commit_index(
        models,
        ModelIndex.from_cards(
            cards, taught.global_card, taught.inputs, taught.trained_until, taught.empty_features
        ),
    )
    return models
