"""Fingerprints in a folder, on disk or in S3: one safetensors file a user behind a JSON index.

    models/
      index.json                          version, and the card of each user
      fingerprints/<sha256>.safetensors

Files are named by what they hold, never by a user's name. The index is replaced in one step after
all files are there, so that a run that stops half-way leaves the last good fingerprints, and of two
runs that end together one index wins whole. What it replaces stays for a while: runs that have read
the last index go on to fetch its files one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
from safetensors import SafetensorError

from morpheus.errors import BrokenModel, Unavailable
from morpheus.folder import Folder, Where, folder_at
from morpheus.models import index
from morpheus.models.fingerprint import Card, Fingerprint
from morpheus.models.fingerprint_file import decoded, encoded

INDEX = "index.json"
FILES = "fingerprints"
KEPT = timedelta(days=1)
"""How long files stay that no index has: a run that is still learning may have written them."""
TRIES = 5
"""How often an index is written anew because another run has written one meanwhile."""
RETRAIN = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"


@dataclass(frozen=True)
class Store:
    """A folder of fingerprints, opened: the index is read, files only when a user needs one."""

    folder: Folder
    cards: Mapping[str, Card]
    everyone: Card | None = None

    @classmethod
    def open(cls, where: Where) -> Store:
        """Read and check the index.

        Raises:
            BrokenModel: There is no index, or it is not as it was written.
            UsageError: There is no such bucket, or it must not be read.
            Unavailable: S3 does not answer.
        """
        folder = folder_at(where)
        named = _path(folder, INDEX)
        try:
            found = index.decoded(folder.read(INDEX))
        except OSError as error:
            message = f"{named}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise BrokenModel(message + "--models_output_filename=...` wrote.") from error
        except msgspec.DecodeError as error:
            raise BrokenModel(f"{named}: is no index of fingerprints. {RETRAIN}.") from error
        if found is None:
            raise BrokenModel(
                f"{named}: does not match its checksum, or another version of morpheus wrote it. "
                f"{RETRAIN}."
            )
        return cls(folder, found.cards, found.everyone)

    def load(self, user: str) -> Fingerprint | None:
        """Read a user's fingerprint, or that of everyone; None where there is neither.

        Raises:
            BrokenModel: Its file is missing or is not as it was written.
        """
        card = self.cards.get(user, self.everyone)
        if card is None:
            return None
        content, named = self._content(card, user), self._named(card, user)
        try:
            return decoded(content, card)
        except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise BrokenModel(f"{named} is damaged. {RETRAIN}.") from error

    def copy(self, where: Where) -> None:
        """Write all fingerprints to another folder, whose own they replace in one step.

        Raises:
            BrokenModel: A file is missing or is not as it was written.
            Unavailable: The folder cannot be written.
        """
        whose = [*self.cards.items(), *([] if self.everyone is None else [("", self.everyone)])]
        for user, card in whose:
            folder_at(where).write(_name(card.sha256), self._content(card, user))
        publish(where, self.cards, self.everyone)

    def _content(self, card: Card, user: str) -> bytes:
        """What a card's file holds, checked against it."""
        named = self._named(card, user)
        try:
            content = self.folder.read(_name(card.sha256))
        except OSError as error:
            raise BrokenModel(f"{named} cannot be read ({error.strerror}). {RETRAIN}.") from error
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise BrokenModel(f"{named} does not match its checksum. {RETRAIN}.")
        return content

    def _named(self, card: Card, user: str) -> str:
        return f"{_path(self.folder, _name(card.sha256))}: fingerprint of {user!r}"


def add(where: Where, fingerprint: Fingerprint) -> Card:
    """Write a fingerprint's file; it takes effect when an index has the card that is returned.

    Raises:
        Unavailable: The folder cannot be written.
    """
    content = encoded(fingerprint)
    digest = sha256(content).hexdigest()
    card = replace(fingerprint.card, size=len(content), sha256=digest)
    folder_at(where).write(_name(card.sha256), content)
    return card


def publish(where: Where, cards: Mapping[str, Card], everyone: Card | None = None) -> None:
    """Make these the folder's fingerprints, in one step.

    Files are removed that neither this index nor the one before it has, once they are a day old.

    Args:
        where: The folder.
        cards: Those of users.
        everyone: That of everyone, for users who have none.

    Raises:
        Unavailable: The folder cannot be written.
    """
    folder = folder_at(where)
    content = index.encoded(cards, everyone)
    before = _replaced(folder, content)
    kept = set(map(_name, index.named(content) | index.named(before)))
    old = datetime.now(UTC) - KEPT
    listed = folder.listed(FILES)
    folder.remove([name for name, written in listed if name not in kept and written < old])


def _replaced(folder: Folder, content: bytes) -> bytes:
    """Write the index, and give what was there before."""
    for _ in range(TRIES):
        before, mark = folder.read_marked(INDEX)
        if folder.replace_marked(INDEX, content, mark):
            return before
    raise Unavailable(
        f"{_path(folder, INDEX)}: other runs keep writing it. Train again, or give this run a "
        "folder of its own with `--models_output_filename=...`."
    )


def _name(digest: str) -> str:
    return f"{FILES}/{digest}.safetensors"


def _path(folder: Folder, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"
