"""Fingerprints on disk: a folder with one safetensors file a user behind a JSON index.

    models/
      index.json                          version, and the card of each user
      fingerprints/<sha256>.safetensors

A fingerprint's file holds its numbers as tensors and its words as JSON in one more tensor: no raw
rows, and nothing that can run code. Files are named by what they hold, never by a user's name. The
index is replaced in one step after all files are there, so that a run that stops half-way leaves
the last good fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from morpheus.atomic import whole_file
from morpheus.errors import BrokenModel
from morpheus.features.categories import Category
from morpheus.features.encoder import Column, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Autoencoder, Shape
from morpheus.models.calibration import HeldOut
from morpheus.models.evidence import Chances, Evidence, Usual, offsets_of
from morpheus.models.fingerprint import Card, Fingerprint, Network, shape_of

INDEX = "index.json"
VERSION = 3
RETRAIN = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"


class Words(msgspec.Struct, frozen=True, tag="category", omit_defaults=True):
    """A category column of a fingerprint."""

    name: str
    words: tuple[str, ...]
    missing: str | None = None

    def column(self) -> Category:
        """The column it describes."""
        return Category(self.name, self.words, self.missing)


class Scale(msgspec.Struct, frozen=True, tag="number"):
    """A number column of a fingerprint."""

    name: str
    at: tuple[float, ...]
    to: tuple[float, ...]

    def column(self) -> Number:
        """The column it describes."""
        return Number(self.name, self.at, self.to)


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a fingerprint's file says in words and whole numbers.

    `events`, `days` and `hour` are those of the held-out part; `network` is `compact` or
    `reference`; files written before there were `twins` have none.
    """

    card: Card
    columns: tuple[Words | Scale, ...]
    widths: tuple[int, int]
    events: int
    days: int
    hour: float
    network: str = "compact"
    twins: tuple[int, ...] = ()


class Cards(msgspec.Struct, frozen=True):
    """The cards of all users' fingerprints, and that of everyone's."""

    users: dict[str, Card]
    everyone: Card | None = None


class Index(msgspec.Struct, frozen=True):
    """The index file: `cards` as JSON text, and its SHA-256."""

    version: int
    sha256: str
    cards: msgspec.Raw


@dataclass(frozen=True)
class Store:
    """A folder of fingerprints, opened: the index is read, files only when a user needs one."""

    folder: Path
    cards: Mapping[str, Card]
    everyone: Card | None = None

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Read and check the index.

        Raises:
            BrokenModel: There is no index, or it is not as it was written.
        """
        path = folder / INDEX
        try:
            index = msgspec.json.decode(path.read_bytes(), type=Index)
            whole = sha256(index.cards).hexdigest() == index.sha256
            cards = msgspec.json.decode(index.cards, type=Cards)
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise BrokenModel(message + "--models_output_filename=...` wrote.") from error
        except msgspec.DecodeError as error:
            raise BrokenModel(f"{path}: is no index of fingerprints. {RETRAIN}.") from error
        if not whole or index.version != VERSION:
            raise BrokenModel(f"{path}: does not match its checksum. {RETRAIN}.")
        return cls(folder, cards.users, cards.everyone)

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
            return _decoded(content, card)
        except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise BrokenModel(f"{named} is damaged. {RETRAIN}.") from error

    def copy(self, folder: Path) -> None:
        """Write all fingerprints to another folder, whose own they replace in one step.

        Raises:
            BrokenModel: A file is missing or is not as it was written.
            Unavailable: The folder cannot be written.
        """
        whose = [*self.cards.items(), *([] if self.everyone is None else [("", self.everyone)])]
        for user, card in whose:
            content = self._content(card, user)
            with whole_file(_place(folder, card)) as file:
                file.write(content)
        publish(folder, self.cards, self.everyone)

    def _content(self, card: Card, user: str) -> bytes:
        """What a card's file holds, checked against it."""
        named = self._named(card, user)
        try:
            content = _place(self.folder, card).read_bytes()
        except OSError as error:
            raise BrokenModel(f"{named} cannot be read ({error.strerror}). {RETRAIN}.") from error
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise BrokenModel(f"{named} does not match its checksum. {RETRAIN}.")
        return content

    def _named(self, card: Card, user: str) -> str:
        return f"{_place(self.folder, card)}: fingerprint of {user!r}"


def add(folder: Path, fingerprint: Fingerprint) -> Card:
    """Write a fingerprint's file; it takes effect when an index has the card that is returned.

    Raises:
        Unavailable: The folder cannot be written.
    """
    content = _encoded(fingerprint)
    digest = sha256(content).hexdigest()
    card = replace(fingerprint.card, size=len(content), sha256=digest)
    with whole_file(_place(folder, card)) as file:
        file.write(content)
    return card


def publish(folder: Path, cards: Mapping[str, Card], everyone: Card | None = None) -> None:
    """Make these the folder's fingerprints, in one step; files that no user has are removed.

    Args:
        folder: Where.
        cards: Those of users.
        everyone: That of everyone, for users who have none.

    Raises:
        Unavailable: The folder cannot be written.
    """
    text = msgspec.json.encode(Cards(dict(sorted(cards.items())), everyone))
    index = Index(VERSION, sha256(text).hexdigest(), msgspec.Raw(text))
    with whole_file(folder / INDEX) as file:
        file.write(msgspec.json.encode(index))
    kept = {_place(folder, card) for card in (*cards.values(), everyone) if card is not None}
    for path in (folder / "fingerprints").glob("*.safetensors"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _place(folder: Path, card: Card) -> Path:
    return folder / "fingerprints" / f"{bytes.fromhex(card.sha256).hex()}.safetensors"


def _encoded(fingerprint: Fingerprint) -> bytes:
    shape = fingerprint.net.shape
    header = Header(
        fingerprint.card,
        tuple(_described(column) for column in fingerprint.encoder.columns),
        (shape.hidden, shape.middle),
        fingerprint.held_out.events,
        fingerprint.held_out.days,
        fingerprint.held_out.hour,
        _name(fingerprint.net),
        fingerprint.twins,
    )
    tensors: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(msgspec.json.encode(header), dtype=np.uint8),
        "weights": np.asarray(fingerprint.net.weights, dtype=np.float16),
        **_laid_out("usual", fingerprint.usual),
        "scores": fingerprint.held_out.scores,
        "risks": fingerprint.held_out.risks,
        "peaks": fingerprint.held_out.peaks,
    }
    if fingerprint.novelty is not None:
        tensors["novelty"] = fingerprint.novelty
    if fingerprint.evidence is not None:
        tensors |= _laid_out("habit", fingerprint.evidence.habit)
        tensors |= _laid_out("company", fingerprint.evidence.company)
        tensors["chances_habit"] = fingerprint.evidence.chances.habit
        tensors["chances_others"] = fingerprint.evidence.chances.others
        tensors["chances_shared"] = fingerprint.evidence.chances.shared
    return save(tensors)


def _laid_out(name: str, usual: Usual) -> dict[str, NDArray[Any]]:
    return {f"{name}_mean": usual.mean, f"{name}_spread": usual.spread}


def _name(net: Network) -> str:
    return "compact" if isinstance(net, Autoencoder) else "reference"


def _kinds(name: str) -> tuple[type[Shape], Callable[[Shape, NDArray[np.float32]], Network]]:
    if name == "compact":
        return Shape, Autoencoder
    from morpheus.models import reference  # noqa: PLC0415 - torch takes a second to import

    return reference.ReferenceShape, reference.Reference


def _described(column: Column) -> Words | Scale:
    if isinstance(column, Category):
        return Words(column.name, column.words, column.missing)
    return Scale(column.name, column.at, column.to)


def _decoded(content: bytes, card: Card) -> Fingerprint:
    tensors = load(content)
    header = msgspec.json.decode(tensors["header"].tobytes(), type=Header)
    encoder = Encoder(tuple(column.column() for column in header.columns))
    sizes, network = _kinds(header.network)
    shape = shape_of(encoder, *header.widths, sizes)
    weights = tensors["weights"].astype(np.float32)
    vocabulary, columns = (sum(shape.codes),), (len(shape.codes),)
    if weights.shape != (shape.size,):
        raise ValueError("weights do not fit the columns")
    if len(header.twins) not in {0, len(shape.codes)}:
        raise ValueError("twins do not fit the columns")

    def part(name: str, size: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        tensor: NDArray[np.float32] = tensors[name]
        if tensor.dtype != np.float32 or tensor.ndim != 1 or size not in {None, tensor.shape}:
            raise ValueError(f"{name} does not fit the columns")
        return tensor

    def usual(name: str) -> Usual:
        return Usual(part(f"{name}_mean", columns), part(f"{name}_spread", columns))

    measured = part("scores"), part("risks"), part("peaks")
    held_out = HeldOut(*measured, header.events, header.days, header.hour)
    if header.network != "compact":
        return Fingerprint(card, encoder, network(shape, weights), None, usual("usual"), held_out)
    tables = [part(f"chances_{name}", vocabulary) for name in ("habit", "others", "shared")]
    chances = Chances(tables[0], tables[1], tables[2], offsets_of(shape.codes))
    return Fingerprint(
        card,
        encoder,
        network(shape, weights),
        part("novelty", columns),
        usual("usual"),
        held_out,
        Evidence(chances, usual("habit"), usual("company")),
        header.twins,
    )
