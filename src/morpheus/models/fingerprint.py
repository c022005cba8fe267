"""What was learnt of one user: encoder, network, usual losses, and a card that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from morpheus.features.categories import UNSEEN
from morpheus.features.encoder import EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Shape
from morpheus.models.training import one_thread, train, user_seed

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

    shape: Shape
    weights: Tensor

    def losses(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C)."""
        ...


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


def learn(  # noqa: PLR0913 - what a fingerprint depends on, and nothing else
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    scaler: str = "standard",
    epochs: int = 25,
    seed: int = 0,
) -> Fingerprint:
    """Learn a user's fingerprint from a history in time order.

    The earlier part is learnt first: how many epochs are best, how often each column brings new
    values, and what its losses usually are, is seen on the later part, which that network never
    met. Then the whole history is learnt anew, for as many epochs.

    Args:
        user: Whose it is.
        history: One row an event, at least one, in time order.
        columns: Feature columns; those that the history does not have are left out.
        times: Time of each event.
        scaler: How number columns are scaled: "none", "standard" or "gauss_rank".
        epochs: Passes over the distinct rows, at most.
        seed: Seed of the run; the user's own is derived from it.
    """
    later = max(1, int(history.height * LATER))
    early = history.head(max(1, history.height - later))
    own_seed = user_seed(seed, user)
    with one_thread():
        trial = Encoder.fit(early, columns, scaler)
        held_out = trial.encode(history.tail(later))
        tried = train(
            trial.encode(early), shape_of(trial), epochs=epochs, seed=own_seed, validation=held_out
        )
        novelty = novelty_rates(held_out)
        usual, spread = weighted(column_losses(tried.net, novelty, held_out), held_out.counts)
        encoder = Encoder.fit(history, columns, scaler)
        rows = encoder.encode(history)
        trained = train(rows, shape_of(encoder), epochs=tried.epochs, seed=own_seed)
    card = Card(
        user=user,
        events=history.height,
        distinct=len(rows.codes),
        first=times[0].isoformat(),
        last=times[-1].isoformat(),
        epochs=tried.epochs,
        seed=seed,
    )
    return Fingerprint(card, encoder, trained.net, novelty, usual, spread)


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
    codes = torch.from_numpy(_padded(rows.codes.astype(np.int64)))
    numbers = torch.from_numpy(_padded(rows.numbers))
    with one_thread():
        pairs = zip(torch.split(codes, BLOCK), torch.split(numbers, BLOCK), strict=True)
        blocks = [net.losses(*pair) for pair in pairs]
    losses: NDArray[np.float32] = torch.cat(blocks).numpy()[: len(rows.codes)]
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
