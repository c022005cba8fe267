"""A fingerprint as bytes, and back.

Its numbers are tensors, its words JSON in one more tensor: no raw rows, and nothing that can run
code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from morpheus.features.categories import Category
from morpheus.features.encoder import Column, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Autoencoder, Shape
from morpheus.models.calibration import HeldOut
from morpheus.models.evidence import Chances, Evidence, Usual, offsets_of
from morpheus.models.fingerprint import Card, Fingerprint, Network, shape_of


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


def encoded(fingerprint: Fingerprint) -> bytes:
    """Write a fingerprint; the same one is the same bytes."""
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


def decoded(content: bytes, card: Card) -> Fingerprint:
    """Read a fingerprint, given its card.

    Raises:
        SafetensorError, DecodeError, KeyError, ValueError: The bytes are not what `encoded` wrote.
    """
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
