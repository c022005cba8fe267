"""The index of a folder of fingerprints: the card of each user, decoded when somebody asks for it.

A hundred thousand cards are a hundred megabytes of JSON text, of which a run wants a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256

import msgspec

from morpheus.errors import ModelCorruptedError
from morpheus.models.fingerprint import ModelCard

INDEX_VERSION = 3
_CARD_DECODER = msgspec.json.Decoder(ModelCard)


class LazyModelCards(Mapping[str, ModelCard]):
    """Cards by user.

    Args:
        texts: The JSON text of each.
    """

    def __init__(self, texts: dict[str, msgspec.Raw]) -> None:
        self._texts = texts

    def __getitem__(self, user: str) -> ModelCard:
        text = self._texts[user]
        try:
            return _CARD_DECODER.decode(text)
        except msgspec.DecodeError as error:
            raise ModelCorruptedError(
                f"The card of {user!r} in an index of fingerprints is not one that morpheus wrote "
                f"({error}). Train again with `train-ae --train_data_glob=...`."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, user: object) -> bool:
        return user in self._texts

    def __repr__(self) -> str:
        return f"<cards of {len(self):,} users>"


class ModelIndex(msgspec.Struct, frozen=True):
    """The text of each user's card, and everyone's card if there is one."""

    users: dict[str, msgspec.Raw]
    everyone: ModelCard | None = None

    @property
    def cards(self) -> LazyModelCards:
        """Those of users."""
        return LazyModelCards(self.users)


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _DigestIndex(msgspec.Struct, frozen=True):
    users: dict[str, _Digest]
    everyone: _Digest | None = None


class _IndexFile(msgspec.Struct, frozen=True):
    """The file: `cards` as JSON text, and its SHA-256."""

    version: int
    sha256: str
    cards: msgspec.Raw


def dump_index(cards: Mapping[str, ModelCard], global_card: ModelCard | None) -> bytes:
    """Write an index, users in order."""
    users = {user: msgspec.Raw(msgspec.json.encode(card)) for user, card in sorted(cards.items())}
    text = msgspec.json.encode(ModelIndex(users, global_card))
    return msgspec.json.encode(_IndexFile(INDEX_VERSION, sha256(text).hexdigest(), msgspec.Raw(text)))


def load_index(content: bytes) -> ModelIndex | None:
    """Read an index; None if it is not as it was written, or by another version.

    Raises:
        msgspec.DecodeError: It is no index.
    """
    text = _extract_cards(content)
    return None if text is None else msgspec.json.decode(text, type=ModelIndex)


def find_referenced_digests(content: bytes) -> set[str]:
    """The checksums of all fingerprints that an index has; none if it is no index."""
    try:
        text = _extract_cards(content)
        names = _DigestIndex({}) if text is None else msgspec.json.decode(text, type=_DigestIndex)
    except msgspec.DecodeError:
        return set()
    return {one.sha256 for one in (*names.users.values(), names.everyone) if one is not None}


def _extract_cards(content: bytes) -> msgspec.Raw | None:
    file = msgspec.json.decode(content, type=_IndexFile)
    whole = sha256(file.cards).hexdigest() == file.sha256 and file.version == INDEX_VERSION
    return file.cards if whole else None
