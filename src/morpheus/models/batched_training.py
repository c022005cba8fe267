"""Training of many networks at once on a GPU, and the choice between CPU and GPU.

torch is imported only when a network is trained on a GPU or the device is checked: the import takes
a second, and torch is an optional dependency.

Sizes in shapes: U users, P weights of a padded network; else as in `autoencoder`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.errors import UsageError
from morpheus.models.autoencoder import Array, Autoencoder, NetworkConfig, unflatten
from morpheus.models.training import (
    MAX_BATCHED_USERS,
    PATIENCE,
    TrainBatch,
    Trainer,
    TrainingSet,
    TrainJob,
    TrainResult,
    gpu_possible,
    round_to_float16,
    train_sequentially,
    validation_loss,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VOCABULARY_MULTIPLE = 128
"""Vocabularies are padded to a multiple of this size, so that the networks of a batch are equally
large."""
PAD_LOGIT = -1e4
"""Bias of a padding code, which is therefore never predicted."""


def require_torch(needed_by: str) -> None:
    """Check that torch, an optional dependency, is installed.

    Args:
        needed_by: The option that needs it, for the error message.

    Raises:
        UsageError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise UsageError(
            f"{needed_by}: needs torch, which is not installed. Install it with "
            "`pip install 'morpheus-dfp[torch]'`."
        )


def import_torch(needed_by: str) -> ModuleType:
    """Import torch. Importing it takes a second: `require_torch` only looks for it.

    Raises:
        UsageError: torch is not installed.
    """
    require_torch(needed_by)
    import torch  # noqa: PLC0415 - takes a second

    return torch


def resolve_device(name: str) -> torch.device | None:
    """Return the GPU that `auto`, `cpu` or `cuda` means on this machine; None for the CPU.

    Raises:
        UsageError: `cuda` is asked for, and torch or a GPU is missing.
    """
    if name == "cpu" or (name == "auto" and find_spec("torch") is None):
        return None
    module = import_torch("--device=cuda")
    if module.cuda.is_available():
        device: torch.device = module.device("cuda")
        return device
    if name == "cuda":
        raise UsageError(
            "--device: no CUDA device is available, or torch is its CPU build. Leave the option "
            "out, or install torch for CUDA: https://pytorch.org/get-started/locally/."
        )
    return None


def select_trainer(name: str, n_users: int) -> Trainer:
    """Return the trainer for a number of users on `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: The device is not available.
    """
    if not gpu_possible(name, n_users):
        return train_sequentially
    device = resolve_device(name)
    return train_sequentially if device is None else partial(train_batched, device=device)


class BatchedAutoencoder(Autoencoder):
    """The networks of several users, padded to one size.

    Args:
        configs: Each user's own sizes, with the same number columns and, when padded, the same
            vocabulary size.
        weights: Each user's padded weights, (U, P).
    """

    def __init__(self, configs: Sequence[NetworkConfig], weights: Tensor) -> None:
        self.array_module = torch = import_torch("--device=cuda")
        padded = [pad_config(config) for config in configs]
        super().__init__(padded[0], weights)
        singles = [
            Autoencoder(config, np.empty(config.n_parameters, dtype=np.float32))
            for config in padded
        ]
        offsets = np.stack([single.offsets for single in singles])[:, None]  # (U, 1, C)
        column_one_hot = np.stack([single.column_one_hot for single in singles])  # (U, V, C)
        self.offsets = torch.from_numpy(offsets).to(weights.device)
        self.column_one_hot = torch.from_numpy(column_one_hot).to(weights.device)

    def _flat_positions(self, codes: Array) -> Array:
        rows = self.array_module.arange(codes[..., 0].numel(), device=codes.device)
        starts = rows.view(*codes.shape[:-1], 1) * sum(self.config.code_counts)
        return codes + self.offsets + starts

    def _spread(self, rows: Array) -> Array:
        return rows @ self.column_one_hot.mT

    def _sum_rows(self, rows: Array, out: Array) -> None:
        self.array_module.sum(rows, -2, out=out)

    def _zeros(self, *shape: int) -> Array:
        return self.weights.new_zeros(shape)

    def _relu(self, rows: Array) -> Array:
        return rows.clamp_(min=0)


class JobState(msgspec.Struct):
    """Progress of one job in a batch.

    Attributes:
        job: The job.
        rng: Its random numbers.
        data: Its training data.
        weights: Its initial weights, not padded.
        best_loss: Lowest validation loss so far.
        best_epoch: Epoch of that loss.
        done: Whether its training has stopped.
        loss_curve: Validation loss after each epoch.
    """

    job: TrainJob
    rng: np.random.Generator
    data: TrainingSet
    weights: NDArray[np.float32]
    best_loss: float
    best_epoch: int
    done: bool = False
    loss_curve: list[float] = msgspec.field(default_factory=list)

    @classmethod
    def from_job(cls, job: TrainJob) -> JobState:
        """Start as `training.train_network` does, with the same random numbers."""
        rng = np.random.default_rng(job.seed)
        data = TrainingSet.from_rows(job.rows).repeat()
        weights = job.make_weights(data, rng)
        done = job.first_epoch > job.epochs
        return cls(job, rng, data, weights, math.inf, job.epochs, done)

    def iter_batches(self) -> Iterator[TrainBatch]:
        """Yield the batches of an epoch; none for a job that is done."""
        if not self.done:
            yield from self.data.iter_batches(self.rng)

    def empty_batch(self) -> TrainBatch:
        """Return a batch without rows."""
        codes = self.data.codes[:0]
        return codes, codes, self.data.numbers[:0], self.data.sample_weight[:0]

    def record_epoch(self, epoch: int, loss: float | None) -> bool:
        """Record the end of an epoch.

        Args:
            epoch: The epoch, from 1.
            loss: Validation loss; None without validation rows.

        Returns:
            Whether its weights are the best so far.
        """
        if self.done:
            return False
        better = loss is None or loss < self.best_loss
        if loss is not None:
            self.loss_curve.append(loss)
        if loss is not None and better:
            self.best_loss, self.best_epoch = loss, epoch
        self.done = epoch >= self.job.epochs or epoch - self.best_epoch >= PATIENCE
        return better

    def to_result(self, weights: NDArray[np.float32]) -> TrainResult:
        """Return the result, given padded weights, (P,)."""
        own = round_to_float16(_unpad_weights(self.job.config, weights))
        return TrainResult(
            Autoencoder(self.job.config, own), self.best_epoch, tuple(self.loss_curve)
        )


class BatchedAdam:
    """`training.Adam` for several users. A user without rows in a step does not change.

    Args:
        weights: The weights, (U, P); they are updated in place.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.steps = weights.new_zeros(len(weights), 1)
        self.mean = weights.new_zeros(weights.shape)
        self.square = weights.new_zeros(weights.shape)

    def step(self, grad: Tensor, active: Tensor, rate: Tensor) -> None:
        """Update the weights of active users by a gradient.

        Args:
            grad: The gradient, (U, P).
            active: Which users have rows in this step, (U, 1).
            rate: Learning rate of each user, (U, 1).
        """
        self.steps += active
        self.mean += 0.1 * active * (grad - self.mean)
        self.square += 0.001 * active * (grad.square() - self.square)
        steps = self.steps.clamp_min(1)
        root = (self.square / (1 - 0.999**steps)).sqrt() + 1e-8
        self.weights -= rate * active / (1 - 0.9**steps) * self.mean / root


def train_batched(jobs: Sequence[TrainJob], device: torch.device) -> list[TrainResult]:
    """Train many networks at once, with the algorithm of `training.train_network`.

    Results equal those of `train_network` up to rounding: a GPU adds in another order.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        config = pad_config(job.config)
        sizes = len(config.code_counts), config.number_columns, sum(config.code_counts)
        groups[sizes].append(number)
    results: dict[int, TrainResult] = {}
    for group in groups.values():
        for start in range(0, len(group), MAX_BATCHED_USERS):
            numbers = group[start : start + MAX_BATCHED_USERS]
            trained = _train_group([JobState.from_job(jobs[n]) for n in numbers], device)
            results |= dict(zip(numbers, trained, strict=True))
    return [results[number] for number in range(len(jobs))]


def pad_config(config: NetworkConfig) -> NetworkConfig:
    """Return the sizes with a padded vocabulary; the padding codes belong to the last column.

    >>> pad_config(NetworkConfig((3, 5), (), 8, 4)).code_counts
    (3, 125)
    """
    missing = -sum(config.code_counts) % VOCABULARY_MULTIPLE
    return replace(config, code_counts=(*config.code_counts[:-1], config.code_counts[-1] + missing))


def _train_group(states: Sequence[JobState], device: torch.device) -> list[TrainResult]:
    torch = import_torch("--device=cuda")
    weights = np.stack([_pad_weights(state.job.config, state.weights) for state in states])
    net = BatchedAutoencoder(
        [state.job.config for state in states], torch.from_numpy(weights).to(device)
    )
    optimizer, grad = BatchedAdam(net.weights), torch.empty_like(net.weights)
    grad_parts, best = unflatten(net.config, grad), net.weights.clone()
    valid = _validation_set(states, device)
    first = [state.job.first_epoch for state in states]
    longest = max(state.job.epochs - state.job.first_epoch for state in states)
    for later in range(longest + 1):
        rates = [
            [state.job.learning_rate(start + later)]
            for state, start in zip(states, first, strict=True)
        ]
        rate = net.weights.new_tensor(rates)  # (U, 1)
        for inputs, codes, numbers, weight in _iter_steps(states, device):
            net.compute_gradient((inputs, numbers), (codes, numbers), weight, grad_parts)
            optimizer.step(grad, active=weight.sum(1, keepdim=True) > 0, rate=rate)
        losses = None if valid is None else validation_loss(net, valid).tolist()
        for user, state in enumerate(states):
            if state.record_epoch(first[user] + later, None if losses is None else losses[user]):
                best[user] = net.weights[user]
        if all(state.done for state in states):
            break
    finished = zip(states, best.cpu().numpy(), strict=True)
    return [state.to_result(weights) for state, weights in finished]


def _iter_steps(states: Sequence[JobState], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield the steps of an epoch for all users; padding rows have the weight 0."""
    for step in zip_longest(*(state.iter_batches() for state in states)):
        batches = [batch or state.empty_batch() for batch, state in zip(step, states, strict=True)]
        yield _stack_padded(batches, device)


def _validation_set(states: Sequence[JobState], device: torch.device) -> TrainingSet | None:
    validation = [state.job.validation for state in states if state.job.validation is not None]
    if not validation:
        return None
    parts = [
        (rows.codes, rows.numbers, rows.sample_weight)
        for rows in map(TrainingSet.from_rows, validation)
    ]
    codes, numbers, weight = _stack_padded(parts, device)
    return TrainingSet(codes, numbers, weight, inverse=np.empty(0))


def _stack_padded(users: Sequence[tuple[Array, ...]], device: torch.device) -> tuple[Tensor, ...]:
    """Stack each array of several users, padded with zero rows to the longest."""
    torch = import_torch("--device=cuda")
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    return tuple(
        pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True).to(device)
        for parts in zip(*users, strict=True)
    )


def _pad_weights(config: NetworkConfig, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add the weights of padding codes, which are never predicted, (P,)."""
    padded_config = pad_config(config)
    padded = np.zeros(padded_config.n_parameters, dtype=np.float32)
    parameters, views = unflatten(config, weights), unflatten(padded_config, padded)
    for name, values in parameters.items():
        views[name][tuple(slice(0, size) for size in values.shape)] = values
    views["code_bias"][sum(config.code_counts) :] = PAD_LOGIT
    return padded


def _unpad_weights(config: NetworkConfig, padded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Extract a user's own weights."""
    own = np.empty(config.n_parameters, dtype=np.float32)
    views = unflatten(pad_config(config), padded)
    for name, values in unflatten(config, own).items():
        values[:] = views[name][tuple(slice(0, size) for size in values.shape)]
    return own
