"""Training of networks on the CPU, and passes through a network in batches of one size.

Results do not depend on the number of threads, on other users, or on the other rows of a batch.

Sizes in shapes: D distinct rows, C columns, N number columns, E events, P weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from morpheus.features.encoder import LINEAR_Z, UNKNOWN, EncodedRows
from morpheus.models.autoencoder import (
    Array,
    Autoencoder,
    NetworkConfig,
    init_weights,
    log_shares,
    unflatten,
)

NOISE = 0.2
"""Share of cells that are corrupted: half become UNKNOWN, half get another event's value."""
LEARNING_RATE, FINAL_RATE_SHARE = 0.015, 0.05
"""Learning rate of the first epoch, and the share of it that is left in the last; it falls
linearly."""
EPOCHS = 12
"""Default number of passes over the distinct rows; validation can stop earlier."""
MAX_BATCHED_USERS = 128
"""Maximum number of users whose networks are trained in one batch on a GPU."""
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Files of GPU drivers. Without any of them `auto` means the CPU, and torch is not imported."""
MIN_USERS_FOR_GPU = 16
"""Number of users from which `auto` looks for a GPU. Fewer users are trained before torch is
imported."""
PATIENCE = 5
"""Epochs without a lower validation loss after which training stops."""
LAST_SHARE = 1 / 3
"""Share of the epochs, the last ones, that a training runs which starts from a trained network."""
MIN_STEPS = 4
"""Minimum number of steps in an epoch."""
MIN_BATCH_SIZE, MAX_BATCH_SIZE = 32, 256
"""Bounds on the distinct rows in a training batch; see `TrainingSet.repeat`."""
FIXED_BATCH_SIZE = 32
"""Rows in a pass through the network. Batches are padded to it, so that a row has the same result
in any batch."""

ScalarT = TypeVar("ScalarT", bound=np.generic)
TrainBatch = tuple[Array, Array, Array, Array]
"""Corrupted codes, original codes, numbers, and the weight of each row; the weights add up to 1."""


class TrainingSet(msgspec.Struct, frozen=True):
    """Training data of one network.

    Attributes:
        codes: Code of each column, (D, C).
        numbers: Scaled numbers, (D, N).
        sample_weight: Share of all events, (D,).
        inverse: Distinct row of each event, (E,).
    """

    codes: Array
    numbers: Array
    sample_weight: Array
    inverse: Array

    @classmethod
    def from_rows(cls, rows: EncodedRows) -> TrainingSet:
        """Weight encoded rows by their number of events."""
        sample_weight = (rows.counts / len(rows.inverse)).astype(np.float32)
        # An extreme number is not learned: it would be as usual as the others.
        numbers = rows.numbers.clip(-LINEAR_Z, LINEAR_Z)
        return cls(rows.codes.astype(np.int64), numbers, sample_weight, rows.inverse)

    def repeat(self) -> TrainingSet:
        """Repeat few rows so that an epoch has MIN_STEPS steps.

        Each copy is corrupted by itself.
        """
        copies = -(-MIN_STEPS * MIN_BATCH_SIZE // len(self.codes))
        codes, numbers = (np.tile(part, (copies, 1)) for part in (self.codes, self.numbers))
        return TrainingSet(
            codes, numbers, np.tile(self.sample_weight / copies, copies), self.inverse
        )

    def code_frequencies(self, config: NetworkConfig) -> NDArray[np.float64]:
        """Count each code of all columns, per thousand events, (V,)."""
        sizes = np.array(config.code_counts)
        cells = (self.codes + (sizes.cumsum() - sizes)).ravel()
        counts = np.bincount(cells, self.sample_weight.repeat(len(sizes)), int(sizes.sum()))
        return np.asarray(counts * 1000)

    def corrupt(self, rng: np.random.Generator) -> Array:
        """Corrupt NOISE of the cells, and return the codes, (D, C)."""
        dice = rng.random(self.codes.shape, dtype=np.float32).ravel()
        # Few cells change, so only these are looked up, by their positions in the flat arrays.
        cells = np.flatnonzero(dice < NOISE)
        events = rng.integers(len(self.inverse), size=len(cells))
        columns = self.codes.shape[1]
        values = self.codes.take(self.inverse[events] * columns + cells % columns)
        values[dice[cells] < NOISE / 2] = UNKNOWN
        corrupted = self.codes.copy()
        corrupted.ravel()[cells] = values
        return corrupted

    def iter_batches(self, rng: np.random.Generator) -> Iterator[TrainBatch]:
        """Yield the batches of an epoch: rows in random order, in batches of nearly one size."""
        order = rng.permutation(len(self.codes))
        parts = self.corrupt(rng), self.codes, self.numbers, self.sample_weight
        # One look-up for an epoch is faster than one for each batch.
        corrupted, codes, numbers, weight = (part[order] for part in parts)
        for rows in split_batches(len(order)):
            share = weight[rows] / weight[rows].sum()
            yield corrupted[rows], codes[rows], numbers[rows], share


class TrainedWeights(msgspec.Struct, frozen=True):
    """A trained network, from which the training of one with other values starts.

    Attributes:
        net: The trained network.
        codes: Position in its vocabulary of each code of the other network, (V,); -1 for none.
        numbers: The same of the number columns, (N,).
        initial_bias: Its biases of codes before its training, (V of it,).
    """

    net: Autoencoder
    codes: NDArray[np.intp]
    numbers: NDArray[np.intp]
    initial_bias: NDArray[np.float64]

    @classmethod
    def from_training(
        cls, net: Autoencoder, data: TrainingSet, codes: NDArray[np.intp], numbers: NDArray[np.intp]
    ) -> TrainedWeights:
        """Find the initial biases from the data that the network was trained on."""
        initial = log_shares(net.config, data.code_frequencies(net.config))
        return cls(net, codes, numbers, initial)


class TrainJob(msgspec.Struct, frozen=True):
    """A network to train, and its data.

    Attributes:
        rows: Distinct rows, weighted by their number of events.
        config: Sizes of the network.
        epochs: Maximum number of passes over the rows.
        seed: Seed of all random numbers.
        validation: Rows whose loss decides when to stop; without them all epochs are run.
        start: Weights to start from; None for those of `init_weights`.
        first_epoch: The first epoch that is run, from 1; after the last one for no training.
    """

    rows: EncodedRows
    config: NetworkConfig
    epochs: int
    seed: int
    validation: EncodedRows | None = None
    start: TrainedWeights | None = None
    first_epoch: int = 1

    def make_weights(self, data: TrainingSet, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the weights at the start, (P,).

        Args:
            data: The rows.
            rng: Source of the random numbers.
        """
        frequencies = data.code_frequencies(self.config)
        if self.start is None:
            return init_weights(self.config, frequencies, rng)
        weights = np.zeros(self.config.n_parameters, dtype=np.float32)
        parameters = unflatten(self.config, weights)
        parameters["code_bias"][:] = log_shares(self.config, frequencies)
        copy_weights(self.start, parameters)
        return weights

    def adopt_network(self, rng: np.random.Generator) -> Autoencoder:
        """Return the network to start with, for a job that runs no epoch."""
        weights = self.make_weights(TrainingSet.from_rows(self.rows), rng)
        bias = unflatten(self.config, weights)["code_bias"]  # others are copied, so rounded already
        bias[:] = round_to_float16(bias)
        return Autoencoder(self.config, weights)

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, from 1; it falls linearly."""
        return LEARNING_RATE * max(FINAL_RATE_SHARE, 1 - (epoch - 1) / self.epochs)


class TrainResult(msgspec.Struct, frozen=True):
    """A trained network.

    Attributes:
        net: The network.
        epochs: The best epoch, from which the weights are.
        loss_curve: Validation loss after each epoch.
    """

    net: Autoencoder
    epochs: int
    loss_curve: tuple[float, ...] = ()


Trainer = Callable[[Sequence[TrainJob]], list[TrainResult]]
"""Trains networks, one after the other or several at once."""


class Adam:
    """The optimiser of Kingma and Ba (2014), on one vector of weights.

    Args:
        weights: The weights, (P,); they are updated in place.
    """

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square = np.zeros_like(weights), np.zeros_like(weights)
        self.scratch = np.empty_like(weights)

    def step(self, grad: NDArray[np.float32], rate: float) -> None:
        """Update the weights by a gradient, which is overwritten."""
        self.steps += 1
        self.mean *= 0.9
        self.mean += grad
        self.square *= 0.999
        self.square += np.multiply(grad, grad, out=grad)
        # The factors 0.1 and 0.001 of new gradients, and those of the first steps, are applied here
        # to both sums at once.
        scale = math.sqrt(0.001 / (1 - 0.999**self.steps))
        root = np.sqrt(self.square, out=self.scratch)
        root += 1e-8 / scale
        update = np.divide(self.mean, root, out=root)
        update *= 0.1 * rate / ((1 - 0.9**self.steps) * scale)
        self.weights -= update


def gpu_possible(name: str, n_users: int = MAX_BATCHED_USERS) -> bool:
    """Return whether `auto`, `cpu` or `cuda` can mean a GPU on this machine.

    Args:
        name: The device.
        n_users: Number of users that are trained together.
    """
    if name == "auto":
        return n_users >= MIN_USERS_FOR_GPU and any(map(Path.exists, GPU_DRIVERS))
    return name == "cuda"


def train_sequentially(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Train networks one after the other, on one thread."""
    with single_thread():
        return [train_network(job) for job in jobs]


def train_network(job: TrainJob) -> TrainResult:
    """Train a network.

    With validation rows, training stops after PATIENCE epochs without a lower validation loss, and
    the best weights are kept. Without them it runs for all epochs.
    """
    rng = np.random.default_rng(job.seed)
    if job.start is not None and job.first_epoch > job.epochs:
        return TrainResult(job.adopt_network(rng), job.epochs)
    data = TrainingSet.from_rows(job.rows).repeat()
    valid = None if job.validation is None else TrainingSet.from_rows(job.validation)
    weights = job.make_weights(data, rng)
    net = Autoencoder(job.config, weights)
    optimizer, grad = Adam(weights), np.empty_like(weights)
    grad_parts = unflatten(job.config, grad)
    best_loss, best_epoch, best_weights = math.inf, job.epochs, weights
    loss_curve: list[float] = []
    for epoch in range(job.first_epoch, job.epochs + 1):
        for inputs, codes, numbers, weight in data.iter_batches(rng):
            net.compute_gradient((inputs, numbers), (codes, numbers), weight, grad_parts)
            optimizer.step(grad, job.learning_rate(epoch))
        if valid is None:
            continue
        loss = float(validation_loss(net, valid))
        loss_curve.append(loss)
        if loss < best_loss:
            best_loss, best_epoch, best_weights = loss, epoch, weights.copy()
        elif epoch - best_epoch >= PATIENCE:
            break
    return TrainResult(
        Autoencoder(job.config, round_to_float16(best_weights)), best_epoch, tuple(loss_curve)
    )


def copy_weights(start: TrainedWeights, parameters: Mapping[str, Array]) -> None:
    """Copy the weights of a trained network for all values that both networks have.

    The biases follow the frequencies of the other network's data: only what the training has added
    to them is copied. Other weights stay as they are. If they are zero, the network predicts other
    values by their frequencies.

    Args:
        start: The trained network.
        parameters: The weights of the other network, by name; see `unflatten`.
    """
    trained = start.net.parameters
    for name in ("hidden_bias", "squeeze", "middle_bias", "widen", "wide_bias"):
        parameters[name][:] = trained[name]
    codes, numbers = np.flatnonzero(start.codes >= 0), np.flatnonzero(start.numbers >= 0)
    same, same_numbers = start.codes[codes], start.numbers[numbers]
    parameters["look_up"][codes] = trained["look_up"][same]
    parameters["guess_codes"][:, codes] = trained["guess_codes"][:, same]
    parameters["code_bias"][codes] += (trained["code_bias"] - start.initial_bias)[same]
    parameters["read_numbers"][numbers] = trained["read_numbers"][same_numbers]
    parameters["guess_numbers"][:, numbers] = trained["guess_numbers"][:, same_numbers]
    parameters["number_bias"][numbers] = trained["number_bias"][same_numbers]


def round_to_float16(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to 16 bits, so that scores are equal before and after a fingerprint is saved."""
    return weights.astype(np.float16).astype(np.float32)


def validation_loss(net: Autoencoder, valid: TrainingSet) -> Array:
    """Mean over events of the summed losses of columns with a known or missing value, ()."""
    losses = net.losses(valid.codes, valid.numbers) * (valid.codes != UNKNOWN)
    return (losses.sum(-1) * valid.sample_weight).sum(-1)


def split_batches(rows: int) -> list[slice]:
    """Split rows into batches of nearly the same size.

    >>> split_batches(1030)[-2:]
    [slice(618, 824, None), slice(824, 1030, None)]
    """
    steps = max(MIN_STEPS, math.ceil(rows / MAX_BATCH_SIZE))
    size = math.ceil(rows / steps)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def derive_user_seed(seed: int, user: str) -> int:
    """Derive the seed of a user, which does not depend on the other users.

    >>> derive_user_seed(42, "ann") != derive_user_seed(42, "bob")
    True
    """
    digest = blake2b(f"{seed}:{user}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@contextmanager
def single_thread() -> Iterator[None]:
    """Run matrix products on one thread.

    Users are the unit of parallel work, and results must not depend on the number of threads.
    """
    controller = _threadpool_controller()
    # Reading the number of threads takes a tenth of the time of setting it.
    is_single = all(library.num_threads == 1 for library in controller.lib_controllers)
    with nullcontext() if is_single else controller.limit(limits=1):
        yield


@cache
def _threadpool_controller() -> ThreadpoolController:
    # Cached: the search for loaded libraries takes milliseconds.
    return ThreadpoolController()


def iter_fixed_batches(
    rows: EncodedRows, *, pad: bool = True
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
    """Split rows into batches of FIXED_BATCH_SIZE, the last one padded with zeros.

    Everything in the loop is computed on one thread.

    Args:
        rows: The rows.
        pad: Whether to pad. Networks with `Autoencoder.any_rows` need no padding.

    Yields: Position of the batch in the rows, its codes, (FIXED_BATCH_SIZE, C), and its numbers,
    (FIXED_BATCH_SIZE, N); fewer without padding.
    """
    codes, numbers = rows.codes.astype(np.int64), rows.numbers
    if pad:
        codes, numbers = _pad_rows(codes), _pad_rows(numbers)
    with single_thread():
        for start in range(0, len(codes), FIXED_BATCH_SIZE):
            batch = slice(start, start + FIXED_BATCH_SIZE)
            yield batch, codes[batch], numbers[batch]


def _pad_rows(rows: NDArray[ScalarT]) -> NDArray[ScalarT]:
    missing = -len(rows) % FIXED_BATCH_SIZE
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), dtype=rows.dtype)])
