"""The training of one user's network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from morpheus.features.encoder import EncodedRows
from morpheus.models.autoencoder import Autoencoder, Shape, first_weights, views

NOISE = 0.2
"""Share of cells that are corrupted: half become unseen, half another event's value."""
LEARNING_RATE = 0.01
PATIENCE = 3
"""Epochs without a better validation loss before training stops."""
STEPS = 4
"""Steps in an epoch, at least, as far as batches of SMALLEST rows allow."""
SMALLEST, LARGEST = 32, 256
"""Bounds on the distinct rows in a batch of training."""


@dataclass(frozen=True)
class Training:
    """Distinct rows as tensors, with the share of each in all events.

    Sizes: D distinct rows, C columns, N number columns, E events.

    Attributes:
        codes: Code of each column, (D, C).
        numbers: Scaled numbers, (D, N).
        share: Share of all events, (D,).
        row_of: Which distinct row each event is, (E,).
    """

    codes: Tensor
    numbers: Tensor
    share: Tensor
    row_of: Tensor

    @classmethod
    def of(cls, rows: EncodedRows) -> Training:
        """Make tensors of encoded rows."""
        counts = torch.from_numpy(rows.counts).to(torch.float32)
        codes = torch.from_numpy(rows.codes.astype(np.int64))
        row_of = torch.from_numpy(rows.row_of)
        return cls(codes, torch.from_numpy(rows.numbers), counts / counts.sum(), row_of)

    def corrupted(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt NOISE of the cells, as codes (D, C) and numbers (D, N)."""
        rows, columns = self.codes.shape
        events = torch.randint(len(self.row_of), (rows, columns), generator=generator)
        other = self.row_of[events]
        dice = torch.rand(rows, columns, generator=generator)
        swapped = torch.where(dice < NOISE, self.codes.gather(0, other), self.codes)
        return swapped.masked_fill_(dice < NOISE / 2, 1), self.numbers


@dataclass(frozen=True)
class Trained:
    """A network, and after how many epochs it was best."""

    net: Autoencoder
    epochs: int


class Adam:
    """The optimiser of Kingma and Ba (2014), on one vector of weights.

    torch's own costs more here than the network: it loops over parameters, and its import takes a
    second.
    """

    def __init__(self, weights: Tensor, rate: float) -> None:
        self.weights, self.rate, self.steps = weights, rate, 0
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, slope: Tensor) -> None:
        """Move the weights against a gradient."""
        self.steps += 1
        self.mean.lerp_(slope, 0.1)
        self.square.mul_(0.999).addcmul_(slope, slope, value=0.001)
        grown = 1 - 0.999**self.steps
        spread = self.square.sqrt().mul_(1 / math.sqrt(grown)).add_(1e-8)
        self.weights.addcdiv_(self.mean, spread, value=-self.rate / (1 - 0.9**self.steps))


def train(
    rows: EncodedRows,
    shape: Shape,
    *,
    epochs: int,
    seed: int,
    validation: EncodedRows | None = None,
) -> Trained:
    """Train a network on distinct rows, weighted by how many events each stands for.

    With validation rows, training stops when their loss has not improved for PATIENCE epochs, and
    the best weights are kept; without, it runs for all epochs.
    """
    generator = torch.Generator().manual_seed(seed)
    data = Training.of(rows)
    valid = None if validation is None else Training.of(validation)
    weights = first_weights(shape, frequencies(data, shape), generator)
    net = Autoencoder(shape, weights)
    optimizer, slope = Adam(weights, LEARNING_RATE), torch.empty_like(weights)
    slopes = views(shape, slope)
    best_loss, best_epoch, best_weights = math.inf, epochs, weights
    for epoch in range(1, epochs + 1):
        seen = data.corrupted(generator)
        for batch in shuffled(len(data.codes), generator):
            share = data.share[batch]
            target = (data.codes[batch], data.numbers[batch])
            net.gradient((seen[0][batch], seen[1][batch]), target, share / share.sum(), slopes)
            optimizer.step(slope)
        if valid is None:
            continue
        loss = validation_loss(net, valid)
        if loss < best_loss:
            best_loss, best_epoch, best_weights = loss, epoch, weights.clone()
        elif epoch - best_epoch >= PATIENCE:
            break
    return Trained(Autoencoder(shape, best_weights.half().float()), best_epoch)


def validation_loss(net: Autoencoder, valid: Training) -> float:
    """Mean over events of the summed losses of the columns whose value is not unseen."""
    losses = net.losses(valid.codes, valid.numbers) * (valid.codes != 1)
    return float((losses.sum(1) * valid.share).sum())


def shuffled(rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Cut a random order of rows into batches."""
    size = min(max(rows // STEPS, SMALLEST), LARGEST)
    return torch.split(torch.randperm(rows, generator=generator), size)


def frequencies(data: Training, shape: Shape) -> list[Tensor]:
    """How often each code of each column was seen, in events of a thousand."""
    return [
        torch.bincount(data.codes[:, c], weights=data.share, minlength=size).float() * 1000
        for c, size in enumerate(shape.codes)
    ]


def user_seed(seed: int, user: str) -> int:
    """Derive a user's own seed, so that no other user's presence changes a result.

    >>> user_seed(42, "ann") != user_seed(42, "bob")
    True
    """
    digest = blake2b(f"{seed}:{user}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: users are the unit of parallel work, and results must not vary."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
