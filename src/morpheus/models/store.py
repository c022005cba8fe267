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

from morpheus.errors import ModelCorruptedError, TransientError
from morpheus.folder import Store, Location, open_store
from morpheus.models import index
from morpheus.models.fingerprint import ModelCard, Fingerprint
from morpheus.models.fingerprint_file import load_fingerprint, dump_fingerprint

INDEX_FILE = "index.json"
MODEL_DIR = "fingerprints"
GC_GRACE = timedelta(days=1)
"""How long files stay that no index has: a run that is still learning may have written them."""
MAX_CAS_RETRIES = 5
"""How often an index is written anew because another run has written one meanwhile."""
RETRAIN_HINT = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"


@dataclass(frozen=True)
class ModelStore:
    """A folder of fingerprints, opened: the index is read, files only when a user needs one."""

    folder: Store
    cards: Mapping[str, ModelCard]
    global_card: ModelCard | None = None

    @classmethod
    def open(cls, location: Location) -> ModelStore:
        """Read and check the index.

        Raises:
            BrokenModel: There is no index, or it is not as it was written.
            UsageError: There is no such bucket, or it must not be read.
            Unavailable: S3 does not answer.
        """
        folder = open_store(location)
        named = _display_path(folder, INDEX_FILE)
        try:
            found = index.load_index(folder.read(INDEX_FILE))
        except OSError as error:
            message = f"{named}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise ModelCorruptedError(message + "--models_output_filename=...` wrote.") from error
        except msgspec.DecodeError as error:
            raise ModelCorruptedError(f"{named}: is no index of fingerprints. {RETRAIN_HINT}.") from error
        if found is None:
            raise ModelCorruptedError(
                f"{named}: does not match its checksum, or another version of morpheus wrote it. "
                f"{RETRAIN_HINT}."
            )
        return cls(folder, found.cards, found.everyone)

    def load(self, user: str) -> Fingerprint | None:
        """Read a user's fingerprint, or that of everyone; None where there is neither.

        Raises:
            BrokenModel: Its file is missing or is not as it was written.
        """
        card = self.cards.get(user, self.global_card)
        if card is None:
            return None
        content, named = self._read_content(card, user), self._describe(card, user)
        try:
            return load_fingerprint(content, card)
        except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise ModelCorruptedError(f"{named} is damaged. {RETRAIN_HINT}.") from error

    def copy(self, location: Location) -> None:
        """Write all fingerprints to another folder, whose own they replace in one step.

        Raises:
            BrokenModel: A file is missing or is not as it was written.
            Unavailable: The folder cannot be written.
        """
        whose = [*self.cards.items(), *([] if self.global_card is None else [("", self.global_card)])]
        for user, card in whose:
            open_store(location).write(_model_path(card.sha256), self._read_content(card, user))
        commit_index(location, self.cards, self.global_card)

    def _read_content(self, card: ModelCard, user: str) -> bytes:
        """What a card's file holds, checked against it."""
        named = self._describe(card, user)
        try:
            content = self.folder.read(_model_path(card.sha256))
        except OSError as error:
            raise ModelCorruptedError(f"{named} cannot be read ({error.strerror}). {RETRAIN_HINT}.") from error
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise ModelCorruptedError(f"{named} does not match its checksum. {RETRAIN_HINT}.")
        return content

    def _describe(self, card: ModelCard, user: str) -> str:
        return f"{_display_path(self.folder, _model_path(card.sha256))}: fingerprint of {user!r}"


def put_model(location: Location, fingerprint: Fingerprint) -> ModelCard:
    """Write a fingerprint's file; it takes effect when an index has the card that is returned.

    Raises:
        Unavailable: The folder cannot be written.
    """
    content = dump_fingerprint(fingerprint)
    digest = sha256(content).hexdigest()
    card = replace(fingerprint.card, size=len(content), sha256=digest)
    open_store(location).write(_model_path(card.sha256), content)
    return card


def commit_index(location: Location, cards: Mapping[str, ModelCard], global_card: ModelCard | None = None) -> None:
    """Make these the folder's fingerprints, in one step.

    Files are removed that neither this index nor the one before it has, once they are a day old.

    Args:
        location: The folder.
        cards: Those of users.
        global_card: That of everyone, for users who have none.

    Raises:
        Unavailable: The folder cannot be written.
    """
    folder = open_store(location)
    content = index.dump_index(cards, global_card)
    before = _swap_index(folder, content)
    kept = set(map(_model_path, index.find_referenced_digests(content) | index.find_referenced_digests(before)))
    old = datetime.now(UTC) - GC_GRACE
    listed = folder.list_files(MODEL_DIR)
    folder.remove([name for name, written in listed if name not in kept and written < old])


def _swap_index(folder: Store, content: bytes) -> bytes:
    """Write the index, and give what was there before."""
    for _ in range(MAX_CAS_RETRIES):
        before, mark = folder.get_with_etag(INDEX_FILE)
        if folder.put_if_match(INDEX_FILE, content, mark):
            return before
    raise TransientError(
        f"{_display_path(folder, INDEX_FILE)}: other runs keep writing it. Train again, or give this run a "
        "folder of its own with `--models_output_filename=...`."
    )


def _model_path(digest: str) -> str:
    return f"{MODEL_DIR}/{digest}.safetensors"


def _display_path(folder: Store, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"
