"""The training of one user's network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from morpheus.features.categories import UNSEEN
from morpheus.features.encoder import EncodedRows
from morpheus.models.autoencoder import Array, Autoencoder, Shape, first_weights, views

NOISE = 0.2
"""Share of cells that are corrupted: half become unseen, half another event's value."""
LEARNING_RATE, LAST_RATE = 0.015, 0.05
"""Rate of the first epoch, and the share of it that is left at the end; it falls along a line."""
EPOCHS = 12
"""Passes over the distinct rows, by default and at most."""
SIDE_BY_SIDE = 128
"""Users whose networks are trained in one stack, at most, where that is faster; see `stack`."""
PATIENCE = 5
"""Epochs without a better validation loss before training stops."""
STEPS = 4
"""Steps in an epoch, at least."""
SMALLEST, LARGEST = 32, 256
"""Bounds on the distinct rows in a batch of training; see `Training.repeated`."""


@dataclass(frozen=True)
class Training:
    """What a network is trained on.

    Sizes: D distinct rows, C columns, N number columns, E events.

    Attributes:
        codes: Code of each column, (D, C).
        numbers: Scaled numbers, (D, N).
        share: Share of all events, (D,).
        row_of: Which distinct row each event is, (E,).
    """

    codes: Array
    numbers: Array
    share: Array
    row_of: Array

    @classmethod
    def of(cls, rows: EncodedRows) -> Training:
        """Weigh encoded rows."""
        share = (rows.counts / len(rows.row_of)).astype(np.float32)
        return cls(rows.codes.astype(np.int64), rows.numbers, share, rows.row_of)

    def repeated(self) -> Training:
        """Repeat few rows, each time to be corrupted anew, so that an epoch has STEPS steps."""
        copies = -(-STEPS * SMALLEST // len(self.codes))
        codes, numbers = (np.tile(part, (copies, 1)) for part in (self.codes, self.numbers))
        return Training(codes, numbers, np.tile(self.share / copies, copies), self.row_of)

    def corrupted(self, random: np.random.Generator) -> tuple[Array, Array]:
        """Corrupt NOISE of the cells, as codes (D, C) and numbers (D, N)."""
        events = random.integers(len(self.row_of), size=self.codes.shape)
        swapped = np.take_along_axis(self.codes, self.row_of[events], axis=0)
        dice = random.random(self.codes.shape, dtype=np.float32)
        seen = np.where(dice < NOISE, swapped, self.codes)
        seen[dice < NOISE / 2] = UNSEEN
        return seen, self.numbers


@dataclass(frozen=True)
class Task:
    """A network to train, and on what.

    Attributes:
        rows: Distinct rows, weighted by how many events each stands for.
        shape: Sizes of the network.
        epochs: Passes over the rows, at most.
        seed: Decides everything random.
        validation: Rows whose loss says when to stop; without them, all epochs are run.
    """

    rows: EncodedRows
    shape: Shape
    epochs: int
    seed: int
    validation: EncodedRows | None = None

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 1: large steps first, then ever smaller ones."""
        return LEARNING_RATE * max(LAST_RATE, 1 - (epoch - 1) / self.epochs)


@dataclass(frozen=True)
class Trained:
    """A network, after how many epochs it was best, and its validation loss after each."""

    net: Autoencoder
    epochs: int
    curve: tuple[float, ...] = ()


Trainer = Callable[[Sequence[Task]], list[Trained]]
"""Trains networks: one after the other, or side by side."""


class Adam:
    """The optimiser of Kingma and Ba (2014), on one vector of weights, (P,)."""

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square = np.zeros_like(weights), np.zeros_like(weights)
        self.scratch = np.empty_like(weights)

    def step(self, slope: NDArray[np.float32], rate: float) -> None:
        """Move the weights against a gradient, which is used up."""
        self.steps += 1
        scratch = np.multiply(slope, slope, out=self.scratch)
        scratch *= 0.001
        self.square *= 0.999
        self.square += scratch
        self.mean *= 0.9
        slope *= 0.1
        self.mean += slope
        spread = np.sqrt(self.square, out=scratch)
        spread *= 1 / math.sqrt(1 - 0.999**self.steps)
        spread += 1e-8
        move = np.divide(self.mean, spread, out=spread)
        move *= rate / (1 - 0.9**self.steps)
        self.weights -= move


def train_each(tasks: Sequence[Task]) -> list[Trained]:
    """Train networks one after the other, on one thread."""
    with one_thread():
        return [train(task) for task in tasks]


def train(task: Task) -> Trained:
    """Train a network.

    With validation rows, training stops when their loss has not improved for PATIENCE epochs, and
    the best weights are kept; without, it runs for all epochs.
    """
    random = np.random.default_rng(task.seed)
    data = Training.of(task.rows).repeated()
    valid = None if task.validation is None else Training.of(task.validation)
    weights = first_weights(task.shape, frequencies(data, task.shape), random)
    net = Autoencoder(task.shape, weights)
    optimizer, slope = Adam(weights), np.empty_like(weights)
    slopes = views(task.shape, slope)
    best_loss, best_epoch, best_weights = math.inf, task.epochs, weights
    curve: list[float] = []
    for epoch in range(1, task.epochs + 1):
        seen = data.corrupted(random)
        for batch in shuffled(len(data.codes), random):
            share = data.share[batch]
            target = (data.codes[batch], data.numbers[batch])
            net.gradient((seen[0][batch], seen[1][batch]), target, share / share.sum(), slopes)
            optimizer.step(slope, task.rate(epoch))
        if valid is None:
            continue
        loss = float(validation_loss(net, valid))
        curve.append(loss)
        if loss < best_loss:
            best_loss, best_epoch, best_weights = loss, epoch, weights.copy()
        elif epoch - best_epoch >= PATIENCE:
            break
    return Trained(Autoencoder(task.shape, shortened(best_weights)), best_epoch, tuple(curve))


def shortened(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 16 bits, so that a fingerprint scores alike before and after it was saved."""
    return weights.astype(np.float16).astype(np.float32)


def validation_loss(net: Autoencoder, valid: Training) -> Array:
    """Mean over events of the summed losses of the columns whose value is not unseen, ()."""
    losses = net.losses(valid.codes, valid.numbers) * (valid.codes != UNSEEN)
    return (losses.sum(-1) * valid.share).sum(-1)


def shuffled(rows: int, random: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Cut a random order of rows into batches, of which none is much smaller than the others.

    >>> [len(batch) for batch in shuffled(1030, np.random.default_rng(1))]
    [206, 206, 206, 206, 206]
    """
    steps = max(STEPS, math.ceil(rows / LARGEST))
    size = math.ceil(rows / steps)
    order = random.permutation(rows)
    return (order[start : start + size] for start in range(0, rows, size))


def frequencies(data: Training, shape: Shape) -> list[NDArray[np.float64]]:
    """How often each code of each column was seen, in events of a thousand."""
    return [
        np.bincount(data.codes[:, c], weights=data.share, minlength=size).astype(np.float64) * 1000
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
    """Multiply on one thread: users are the unit of parallel work, and results must not vary."""
    libraries = _libraries()
    # To ask takes a tenth of the time of telling.
    alone = all(library.num_threads == 1 for library in libraries.lib_controllers)
    with nullcontext() if alone else libraries.limit(limits=1):
        yield


@cache
def _libraries() -> ThreadpoolController:
    # Looking for the loaded libraries takes milliseconds.
    return ThreadpoolController()
