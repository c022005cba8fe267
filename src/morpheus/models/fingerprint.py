"""What was learnt of one user: encoder, network, usual losses, and a card that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import UNSEEN
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Array, Shape
from morpheus.models.training import Task, Trained, Trainer, one_thread, train_each, user_seed

LATER = 0.25
"""Share of the history, its end, that is held out to choose the epochs and to calibrate on."""
Scalar = TypeVar("Scalar", bound=np.generic)

BLOCK = 256
"""Rows in one pass through the network; always filled up, so that a row's result is its own."""


@dataclass(frozen=True)
class Card:
    """Describes a fingerprint to people: whose it is, and what it was learnt from.

    Attributes:
        user: Whose it is.
        events: Events of the history.
        distinct: Distinct rows among them.
        first: Time of the first event, ISO 8601; empty where times are unknown.
        last: Time of the last event.
        epochs: Epochs of training.
        seed: Seed of the run that trained it.
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
    size: int = 0
    sha256: str = ""


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
        usual: Mean loss of each column on held-out events, (C,), as in `losses`.
        spread: Standard deviation of these losses, (C,).
    """

    card: Card
    encoder: Encoder
    net: Network
    novelty: NDArray[np.float32] | None
    usual: NDArray[np.float32]
    spread: NDArray[np.float32]

    def losses(self, rows: EncodedRows) -> NDArray[np.float32]:
        """Loss of each column of each distinct row, (distinct, C).

        Nats for the code; squared standard deviations are added in number columns. An unseen value
        costs -log of its column's novelty rate, and a known one -log of the rest more than the
        network says, so that the probabilities of all that can happen add up to one.
        """
        return column_losses(self.net, self.novelty, rows)


@dataclass(frozen=True)
class History:
    """What there is to learn of a user.

    Attributes:
        user: Whose it is.
        events: One row an event, at least one, in time order.
        times: Time of each event.
    """

    user: str
    events: pl.DataFrame
    times: pl.Series

    def card(self, distinct: int, epochs: int, seed: int) -> Card:
        """Describe a fingerprint learnt from it."""
        first, last = self.times[0].isoformat(), self.times[-1].isoformat()
        return Card(self.user, self.events.height, distinct, first, last, epochs, seed)


def learn_all(  # noqa: PLR0913 - what fingerprints depend on, and nothing else
    histories: Sequence[History],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = 25,
    seed: int = 0,
    trainer: Trainer = train_each,
) -> list[Fingerprint]:
    """Learn the fingerprint of each user from its history alone.

    The earlier part is learnt first: how many epochs are best, how often each column brings new
    values, and what its losses usually are, is seen on the later part, which that network never
    met. Then the whole history is learnt anew, for as many epochs.

    Args:
        histories: Those of the users.
        columns: Feature columns; those that a history does not have are left out.
        scaler: How number columns are scaled: "none", "standard" or "gauss_rank".
        epochs: Passes over the distinct rows, at most.
        seed: Seed of the run; each user's own is derived from it.
        trainer: Trains the networks.
    """
    studies = [Study.of(history, columns, scaler, seed) for history in histories]
    tried = trainer([study.trial(epochs) for study in studies])
    wholes = [study.whole(best.epochs) for study, best in zip(studies, tried, strict=True)]
    outcomes = zip(studies, tried, trainer(wholes), strict=True)
    return [study.fingerprint(best.net, final) for study, best, final in outcomes]


def learn(
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    **options: Unpack[Options],
) -> Fingerprint:
    """Learn one user's fingerprint; see `learn_all`."""
    [fingerprint] = learn_all([History(user, history, times)], columns, **options)
    return fingerprint


class Options(TypedDict, total=False):
    """How fingerprints are learnt; see `learn_all`."""

    scaler: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class Study:
    """A history, encoded twice: its earlier part with the later one held out, and the whole.

    Attributes:
        history: What is learnt.
        trial_encoder: Knows the earlier part.
        early: The earlier part, encoded by it.
        held_out: The later part, encoded by it.
        encoder: Knows the whole.
        rows: The whole, encoded by it.
        seed: Seed of the run.
    """

    history: History
    trial_encoder: Encoder
    early: EncodedRows
    held_out: EncodedRows
    encoder: Encoder
    rows: EncodedRows
    seed: int

    @classmethod
    def of(cls, history: History, columns: Sequence[str], scaler: str, seed: int) -> Study:
        """Divide and encode a history."""
        events = history.events
        later = max(1, int(events.height * LATER))
        early, held_out = events.head(max(1, events.height - later)), events.tail(later)
        trial, whole = (Encoder.fit(part, columns, scaler) for part in (early, events))
        parts = trial.encode(early), trial.encode(held_out)
        return cls(history, trial, *parts, whole, whole.encode(events), seed)

    def trial(self, epochs: int) -> Task:
        """The training that finds out how many epochs are best."""
        shape = shape_of(self.trial_encoder)
        return Task(self.early, shape, epochs, self._own_seed, self.held_out)

    def whole(self, epochs: int) -> Task:
        """The training on all that there is."""
        return Task(self.rows, shape_of(self.encoder), epochs, self._own_seed)

    def fingerprint(self, tried: Network, trained: Trained) -> Fingerprint:
        """Put together what was learnt; the network that was tried says what is usual."""
        novelty = novelty_rates(self.held_out)
        losses = column_losses(tried, novelty, self.held_out)
        usual = weighted(losses, self.held_out.counts)
        card = self.history.card(len(self.rows.codes), trained.epochs, self.seed)
        return Fingerprint(card, self.encoder, trained.net, novelty, *usual)

    @property
    def _own_seed(self) -> int:
        return user_seed(self.seed, self.history.user)


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


def weighted(
    losses: NDArray[np.float32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each column over events, each (C,)."""
    share = (counts / counts.sum())[:, None]
    mean = (share * losses).sum(0)
    spread = np.sqrt((share * (losses - mean) ** 2).sum(0))
    return mean.astype(np.float32), spread.astype(np.float32)


def _padded(rows: NDArray[Scalar]) -> NDArray[Scalar]:
    missing = -len(rows) % BLOCK
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
