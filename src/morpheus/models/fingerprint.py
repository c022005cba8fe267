"""What was learnt of one user: encoder, network, what is usual, and a card that describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from morpheus.features.categories import UNSEEN
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Array, Autoencoder, Shape
from morpheus.models.calibration import HeldOut
from morpheus.models.company import Company
from morpheus.models.evidence import Chances, Evidence, Usual
from morpheus.models.training import one_thread

Scalar = TypeVar("Scalar", bound=np.generic)

BLOCK = 256
"""Rows in one pass through the network; always filled up, so that a row's result is its own."""
OWN, PEERS, EVERYONE = "own", "peers", "everyone"
"""Rungs of the ladder: whose history a fingerprint is learnt from."""


@dataclass(frozen=True)
class Card:
    """Describes a fingerprint to people: whose it is, and what it was learnt from.

    Attributes:
        user: Whose it is.
        events: Events of the user's own history.
        distinct: Distinct rows among them.
        first: Time of the first event, ISO 8601; empty where times are unknown.
        last: Time of the last event.
        epochs: Epochs of training.
        seed: Seed of the run that trained it.
        rung: Whose history it was learnt from: the user's OWN, filled up with that of PEERS, or
            that of EVERYONE.
        borrowed: Events of others that it was filled up with.
        size: Bytes of its file, once it has one.
        sha256: Checksum of its file.
    """

    user: str
    events: int
    distinct: int
    first: str
    last: str
    epochs: int
    seed: int
    rung: str = OWN
    borrowed: int = 0
    size: int = 0
    sha256: str = ""

    @property
    def own_share(self) -> float:
        """Share of what it was learnt from that is the user's own."""
        return self.events / ((self.events + self.borrowed) or 1)


class Network(Protocol):
    """What guesses every column of an event back."""

    @property
    def shape(self) -> Shape:
        """Its sizes."""

    @property
    def weights(self) -> Array:
        """Its weights, in one vector."""

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C)."""


@dataclass(frozen=True)
class Fingerprint:
    """What was learnt of one user.

    Attributes:
        card: Describes it to people.
        encoder: How its columns become codes and numbers.
        net: The network.
        novelty: Share of held-out events that brought a new value, for each column, (C,); None
            where the network itself guesses at unseen values.
        usual: What is usual of the loss of each column.
        held_out: What is usual of the scores of whole events.
        evidence: What speaks against the user; None for the reference network, which has none.
    """

    card: Card
    encoder: Encoder
    net: Network
    novelty: NDArray[np.float32] | None
    usual: Usual
    held_out: HeldOut
    evidence: Evidence | None = None

    def losses(self, rows: EncodedRows) -> NDArray[np.float32]:
        """Loss of each column of each distinct row, (distinct, C).

        Nats for the code; squared standard deviations are added in number columns. An unseen value
        costs -log of its column's novelty rate, and a known one -log of the rest more than the
        network says, so that the probabilities of all that can happen add up to one.
        """
        return column_losses(self.net, self.novelty, rows)

    def strangeness(self, rows: EncodedRows) -> NDArray[np.float32]:
        """How strange each column of each distinct row is for the user, (distinct, C); from 0 up.

        Raises:
            ValueError: It was learnt with the reference network.
        """
        if self.evidence is None or self.novelty is None or not isinstance(self.net, Autoencoder):
            raise ValueError("the reference network says nothing of columns")
        found = evidence_of(self.net, self.evidence.chances, self.novelty, rows)
        return self.evidence.strangeness(*found)


def shape_of(
    encoder: Encoder, hidden: int = 64, middle: int = 32, kind: type[Shape] = Shape
) -> Shape:
    """Size a network for an encoder's columns."""
    columns = encoder.columns
    numbers = tuple(c for c, column in enumerate(columns) if isinstance(column, Number))
    return kind(tuple(column.codes for column in columns), numbers, hidden, middle)


def novelty_rates(held_out: EncodedRows) -> NDArray[np.float32]:
    """Share of held-out events with an unseen value, (C,), half an event added against zero.

    >>> rows = EncodedRows(np.array([[2, 1], [2, 2]]), np.zeros((2, 0)), np.array([0, 1, 1]))
    >>> novelty_rates(rows).tolist()
    [0.125, 0.375]
    """
    new = held_out.counts @ (held_out.codes == UNSEEN)
    return np.asarray((new + 0.5) / (held_out.counts.sum() + 1), dtype=np.float32)


def column_losses(
    net: Network, novelty: NDArray[np.float32] | None, rows: EncodedRows
) -> NDArray[np.float32]:
    """Loss of each column of each distinct row; see `Fingerprint.losses`."""
    codes, numbers = _padded(rows.codes.astype(np.int64)), _padded(rows.numbers)
    losses = np.empty(codes.shape, dtype=np.float32)
    with one_thread():
        for start in range(0, len(codes), BLOCK):
            block = slice(start, start + BLOCK)
            losses[block] = net.losses(codes[block], numbers[block])
    losses = losses[: len(rows.codes)]
    if novelty is None:
        return losses
    known = losses - np.log1p(-novelty)
    return np.where(rows.codes == UNSEEN, -np.log(novelty), known).astype(np.float32)


def evidence_of(
    net: Autoencoder, chances: Chances, novelty: NDArray[np.float32], rows: EncodedRows
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Evidence of habit and of company of each column of each distinct row, each (distinct, C).

    Both in nats; company in number columns adds the squared distance in standard deviations.
    """
    places = rows.codes + net.offsets
    return chances.habit[places], _company(net, chances.others[places], novelty, rows)


def _company(
    net: Autoencoder,
    others: NDArray[np.float32],
    novelty: NDArray[np.float32],
    rows: EncodedRows,
) -> NDArray[np.float32]:
    """-ln of the chance of each value, given the event's other values, (distinct, C).

    The network knows the chance of a value that is a habit; `others`, (distinct, C), is that by way
    of the population.
    """
    codes, numbers = _padded(rows.codes.astype(np.int64)), _padded(rows.numbers)
    chance, off = np.empty((2, *codes.shape), dtype=np.float32)
    with one_thread():
        for start in range(0, len(codes), BLOCK):
            block = slice(start, start + BLOCK)
            company = Company.of(net, codes[block], numbers[block])
            for c in range(codes.shape[1]):
                chance[block, c], off[block, c] = company.seen(c)
    chance, off = chance[: len(others)], off[: len(others)]
    known = np.where(rows.codes == UNSEEN, 0, (1 - novelty) * chance)
    return np.asarray(off**2 - np.log(known + others))


def _padded(rows: NDArray[Scalar]) -> NDArray[Scalar]:
    missing = -len(rows) % BLOCK
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
