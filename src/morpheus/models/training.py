"""Encoded rows in blocks of one size, so that a row's result does not hang on its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from morpheus.features.encoder import UNKNOWN, EncodedRows
from morpheus.models.autoencoder import Array, Autoencoder, NetworkConfig, init_weights, unflatten

NOISE = 0.2
"""Share of cells that are corrupted: half become unseen, half another event's value."""
LEARNING_RATE, FINAL_RATE_SHARE = 0.015, 0.05
"""Rate of the first epoch, and the share of it that is left at the end; it falls along a line."""
EPOCHS = 12
"""Passes over the distinct rows, by default and at most."""
MAX_BATCHED_USERS = 128
"""Users whose networks are trained in one stack, at most, where that is faster; see `stack`."""
PATIENCE = 5
"""Epochs without a better validation loss before training stops."""
MIN_STEPS = 4
"""Steps in an epoch, at least."""
MIN_BATCH_SIZE, MAX_BATCH_SIZE = 32, 256
"""Bounds on the distinct rows in a batch of training; see `TrainingSet.repeat`."""


@dataclass(frozen=True)
class TrainingSet:
    """What a network is trained on.

    Sizes: D distinct rows, C columns, N number columns, E events.

    Attributes:
        codes: Code of each column, (D, C).
        numbers: Scaled numbers, (D, N).
        sample_weight: Share of all events, (D,).
        inverse: Which distinct row each event is, (E,).
    """

    codes: Array
    numbers: Array
    sample_weight: Array
    inverse: Array

    @classmethod
    def from_rows(cls, rows: EncodedRows) -> TrainingSet:
        """Weigh encoded rows."""
        share = (rows.counts / len(rows.inverse)).astype(np.float32)
        return cls(rows.codes.astype(np.int64), rows.numbers, share, rows.inverse)

    def repeat(self) -> TrainingSet:
        """Repeat few rows, each time to be corrupted anew, so that an epoch has STEPS steps."""
        copies = -(-MIN_STEPS * MIN_BATCH_SIZE // len(self.codes))
        codes, numbers = (np.tile(part, (copies, 1)) for part in (self.codes, self.numbers))
        return TrainingSet(
            codes, numbers, np.tile(self.sample_weight / copies, copies), self.inverse
        )

    def corrupt(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Corrupt NOISE of the cells, as codes (D, C) and numbers (D, N)."""
        events = rng.integers(len(self.inverse), size=self.codes.shape)
        swapped = np.take_along_axis(self.codes, self.inverse[events], axis=0)
        dice = rng.random(self.codes.shape, dtype=np.float32)
        seen = np.where(dice < NOISE, swapped, self.codes)
        seen[dice < NOISE / 2] = UNKNOWN
        return seen, self.numbers


@dataclass(frozen=True)
class TrainJob:
    """A network to train, and on what.

    Attributes:
        rows: Distinct rows, weighted by how many events each stands for.
        config: Sizes of the network.
        epochs: Passes over the rows, at most.
        seed: Decides everything random.
        validation: Rows whose loss says when to stop; without them, all epochs are run.
    """

    rows: EncodedRows
    config: NetworkConfig
    epochs: int
    seed: int
    validation: EncodedRows | None = None

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, from 1: large steps first, then ever smaller ones."""
        return LEARNING_RATE * max(FINAL_RATE_SHARE, 1 - (epoch - 1) / self.epochs)


@dataclass(frozen=True)
class TrainResult:
    """A network, after how many epochs it was best, and its validation loss after each."""

    net: Autoencoder
    epochs: int
    loss_curve: tuple[float, ...] = ()


Trainer = Callable[[Sequence[TrainJob]], list[TrainResult]]
"""Trains networks: one after the other, or side by side."""


class Adam:
    """The optimiser of Kingma and Ba (2014), on one vector of weights, (P,)."""

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square = np.zeros_like(weights), np.zeros_like(weights)
        self.scratch = np.empty_like(weights)

    def step(self, grad: NDArray[np.float32], rate: float) -> None:
        """Move the weights against a gradient, which is used up."""
        self.steps += 1
        scratch = np.multiply(grad, grad, out=self.scratch)
        scratch *= 0.001
        self.square *= 0.999
        self.square += scratch
        self.mean *= 0.9
        grad *= 0.1
        self.mean += grad
        spread = np.sqrt(self.square, out=scratch)
        spread *= 1 / math.sqrt(1 - 0.999**self.steps)
        spread += 1e-8
        move = np.divide(self.mean, spread, out=spread)
        move *= rate / (1 - 0.9**self.steps)
        self.weights -= move


def train_sequentially(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Train networks one after the other, on one thread."""
    with single_thread():
        return [train_network(task) for task in jobs]


def train_network(job: TrainJob) -> TrainResult:
    """Train a network.

    With validation rows, training stops when their loss has not improved for PATIENCE epochs, and
    the best weights are kept; without, it runs for all epochs.
    """
    random = np.random.default_rng(job.seed)
    data = TrainingSet.from_rows(job.rows).repeat()
    valid = None if job.validation is None else TrainingSet.from_rows(job.validation)
    weights = init_weights(job.config, code_frequencies(data, job.config), random)
    net = Autoencoder(job.config, weights)
    optimizer, slope = Adam(weights), np.empty_like(weights)
    slopes = unflatten(job.config, slope)
    best_loss, best_epoch, best_weights = math.inf, job.epochs, weights
    curve: list[float] = []
    for epoch in range(1, job.epochs + 1):
        seen = data.corrupt(random)
        for batch in iter_minibatches(len(data.codes), random):
            share = data.sample_weight[batch]
            target = (data.codes[batch], data.numbers[batch])
            net.compute_gradient(
                (seen[0][batch], seen[1][batch]), target, share / share.sum(), slopes
            )
            optimizer.step(slope, job.learning_rate(epoch))
        if valid is None:
            continue
        loss = float(validation_loss(net, valid))
        curve.append(loss)
        if loss < best_loss:
            best_loss, best_epoch, best_weights = loss, epoch, weights.copy()
        elif epoch - best_epoch >= PATIENCE:
            break
    return TrainResult(
        Autoencoder(job.config, round_to_float16(best_weights)), best_epoch, tuple(curve)
    )


def round_to_float16(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 16 bits, so that a fingerprint scores alike before and after it was saved."""
    return weights.astype(np.float16).astype(np.float32)


def validation_loss(net: Autoencoder, valid: TrainingSet) -> Array:
    """Mean over events of the summed losses of the columns whose value is not unseen, ()."""
    losses = net.losses(valid.codes, valid.numbers) * (valid.codes != UNKNOWN)
    return (losses.sum(-1) * valid.sample_weight).sum(-1)


def iter_minibatches(rows: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Cut a random order of rows into batches, of which none is much smaller than the others.

    >>> [len(batch) for batch in iter_minibatches(1030, np.random.default_rng(1))]
    [206, 206, 206, 206, 206]
    """
    steps = max(MIN_STEPS, math.ceil(rows / MAX_BATCH_SIZE))
    size = math.ceil(rows / steps)
    order = rng.permutation(rows)
    return (order[start : start + size] for start in range(0, rows, size))


def code_frequencies(data: TrainingSet, config: NetworkConfig) -> list[NDArray[np.float64]]:
    """How often each code of each column was seen, in events of a thousand."""
    return [
        np.bincount(data.codes[:, c], weights=data.sample_weight, minlength=size).astype(np.float64)
        * 1000
        for c, size in enumerate(config.code_counts)
    ]


def derive_user_seed(seed: int, user: str) -> int:
    """Derive a user's own seed, so that no other user's presence changes a result.

    >>> derive_user_seed(42, "ann") != derive_user_seed(42, "bob")
    True
    """
    digest = blake2b(f"{seed}:{user}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@contextmanager
def single_thread() -> Iterator[None]:
    """Multiply on one thread: users are the unit of parallel work, and results must not vary."""
    libraries = _threadpool_controller()
    # To ask takes a tenth of the time of telling.
    alone = all(library.num_threads == 1 for library in libraries.lib_controllers)
    with nullcontext() if alone else libraries.limit(limits=1):
        yield


@cache
def _threadpool_controller() -> ThreadpoolController:
    # Looking for the loaded libraries takes milliseconds.
    return ThreadpoolController()


ScalarT = TypeVar("ScalarT", bound=np.generic)

FIXED_BATCH_SIZE = 32
"""Rows in one pass through the network; always filled up, so that a row's result is its own."""


def iter_fixed_batches(
    rows: EncodedRows,
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
    """Where each block of rows lies, its codes (BLOCK, C) and its numbers (BLOCK, N).

    The last is filled up with rows of zeros. Everything is computed on one thread meanwhile.
    """
    codes, numbers = _pad_rows(rows.codes.astype(np.int64)), _pad_rows(rows.numbers)
    with single_thread():
        for start in range(0, len(codes), FIXED_BATCH_SIZE):
            block = slice(start, start + FIXED_BATCH_SIZE)
            yield block, codes[block], numbers[block]


def _pad_rows(rows: NDArray[ScalarT]) -> NDArray[ScalarT]:
    missing = -len(rows) % FIXED_BATCH_SIZE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
