"""Where networks are trained: on the processor one after the other, or side by side on a GPU."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morpheus.errors import UsageError
from morpheus.models.autoencoder import Array, Autoencoder, NetworkConfig, init_weights, unflatten
from morpheus.models.training import (
    MAX_BATCHED_USERS,
    PATIENCE,
    Trainer,
    TrainingSet,
    TrainJob,
    TrainResult,
    code_frequencies,
    iter_minibatches,
    round_to_float16,
    train_sequentially,
    validation_loss,
)

GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Where there is none of these, `auto` need not ask torch, whose import takes a second."""
MIN_USERS_FOR_GPU = 16
"""Users from which `auto` asks torch for a GPU: fewer are trained before that is imported."""


def gpu_possible(name: str) -> bool:
    """Whether `auto`, `cpu` or `cuda` may mean a GPU here."""
    return name == "cuda" or (name == "auto" and any(map(Path.exists, GPU_DRIVERS)))


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        UsageError: It is not there.
    """
    import torch  # noqa: PLC0415 - takes a second to import

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError(
            "--device: no CUDA device is at hand, or torch is its CPU build. Leave the option out, "
            "or install torch for CUDA: `make setup TORCH_INDEX=...`, see the README."
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def select_trainer(name: str, n_users: int) -> Trainer:
    """What trains the networks of so many users on `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: The device is not there.
    """
    if not gpu_possible(name) or (name == "auto" and n_users < MIN_USERS_FOR_GPU):
        return train_sequentially
    device = resolve_device(name)
    if device.type == "cpu":
        return train_sequentially

    return partial(train_batched, device=device)


VOCABULARY_MULTIPLE = 128
"""Vocabularies are filled up to a multiple of this, so that networks of a stack are of one size."""
TrainBatch = tuple[Array, Array, Array, Array]
"""What is shown, what it was (both codes), numbers, and the share of each row."""
PAD_LOGIT = -1e4
"""Bias of a code that only fills up."""


class BatchedAutoencoder(Autoencoder):
    """Networks of users whose columns have different codes, filled up to one size.

    Args:
        shapes: Each user's own sizes; with the same columns, and one size of vocabulary when filled
            up.
        weights: Each user's, filled up, (U, P).
    """

    array_module = torch

    def __init__(self, configs: Sequence[NetworkConfig], weights: Tensor) -> None:
        padded = [pad_config(shape) for shape in configs]
        super().__init__(padded[0], weights)
        singles = [
            Autoencoder(shape, np.empty(shape.n_parameters, dtype=np.float32)) for shape in padded
        ]
        offsets = np.stack([single.offsets for single in singles])[:, None]  # (U, 1, C)
        column_of = np.stack([single.column_one_hot for single in singles])  # (U, V, C)
        self.offsets = torch.from_numpy(offsets).to(weights.device)
        self.column_one_hot = torch.from_numpy(column_of).to(weights.device)

    def _flat_positions(self, codes: Array) -> Array:
        rows = torch.arange(codes[..., 0].numel(), device=codes.device).view(*codes.shape[:-1], 1)
        return codes + self.offsets + rows * sum(self.config.code_counts)

    def _zeros(self, *shape: int) -> Array:
        return self.weights.new_zeros(shape)

    def _relu(self, rows: Array) -> Array:
        return rows.clamp_(min=0)


@dataclass
class JobState:
    """One user of a stack: what it is trained on, and how far it has come."""

    job: TrainJob
    rng: np.random.Generator
    data: TrainingSet
    weights: NDArray[np.float32]
    best_loss: float
    best_epoch: int
    done: bool = False
    loss_curve: list[float] = field(default_factory=list)

    @classmethod
    def from_job(cls, job: TrainJob) -> JobState:
        """Begin as `training.train` does, with the same random numbers."""
        random = np.random.default_rng(job.seed)
        data = TrainingSet.from_rows(job.rows).repeat()
        weights = init_weights(job.config, code_frequencies(data, job.config), random)
        return cls(job, random, data, weights, math.inf, job.epochs)

    def iter_batches(self) -> Iterator[TrainBatch]:
        """An epoch's batches; none for a user who is done."""
        if self.done:
            return
        seen, numbers = self.data.corrupt(self.rng)
        for batch in iter_minibatches(len(seen), self.rng):
            share = self.data.sample_weight[batch]
            yield seen[batch], self.data.codes[batch], numbers[batch], share / share.sum()

    def empty_batch(self) -> TrainBatch:
        """A batch of no rows."""
        codes = self.data.codes[:0]
        return codes, codes, self.data.numbers[:0], self.data.sample_weight[:0]

    def record_epoch(self, epoch: int, loss: float | None) -> bool:
        """Judge an epoch: whether its weights are the best so far, and whether it is the last."""
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
        """The outcome, from weights that were filled up."""
        own = round_to_float16(_unpad_weights(self.job.config, weights))
        return TrainResult(
            Autoencoder(self.job.config, own), self.best_epoch, tuple(self.loss_curve)
        )


class BatchedAdam:
    """`training.Adam` for a stack: a user without a batch in a step stays as it was.

    Args:
        weights: (U, P).
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.steps = weights.new_zeros(len(weights), 1)
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, grad: Tensor, active: Tensor, rate: Tensor) -> None:
        """Move the weights of the busy users, at the rate of each, (U, 1), against a gradient."""
        self.steps += active
        self.mean += 0.1 * active * (grad - self.mean)
        self.square += 0.001 * active * (grad.square() - self.square)
        steps = self.steps.clamp_min(1)
        spread = (self.square / (1 - 0.999**steps)).sqrt() + 1e-8
        self.weights -= rate * active / (1 - 0.9**steps) * self.mean / spread


def train_batched(jobs: Sequence[TrainJob], device: torch.device) -> list[TrainResult]:
    """Train networks side by side, as `training.train` does one after the other.

    The result is that of `train` up to rounding: sums are taken in another order on the device.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for at, task in enumerate(jobs):
        filled = pad_config(task.config)
        groups[len(filled.code_counts), filled.number_columns, sum(filled.code_counts)].append(at)
    trained: dict[int, TrainResult] = {}
    for places in groups.values():
        for start in range(0, len(places), MAX_BATCHED_USERS):
            some = places[start : start + MAX_BATCHED_USERS]
            results = _train_group([JobState.from_job(jobs[at]) for at in some], device)
            trained |= dict(zip(some, results, strict=True))
    return [trained[at] for at in range(len(jobs))]


def pad_config(config: NetworkConfig) -> NetworkConfig:
    """The same sizes with the vocabulary filled up: the last column's is the longer.

    >>> pad_config(NetworkConfig((3, 5), (), 8, 4)).codes
    (3, 125)
    """
    missing = -sum(config.code_counts) % VOCABULARY_MULTIPLE
    return replace(config, code_counts=(*config.code_counts[:-1], config.code_counts[-1] + missing))


def _train_group(states: Sequence[JobState], device: torch.device) -> list[TrainResult]:
    weights = np.stack([_pad_weights(pupil.job.config, pupil.weights) for pupil in states])
    net = BatchedAutoencoder(
        [pupil.job.config for pupil in states], torch.from_numpy(weights).to(device)
    )
    optimizer, slope = BatchedAdam(net.weights), torch.empty_like(net.weights)
    slopes, best = unflatten(net.config, slope), net.weights.clone()
    valid = _validation_set(states, device)
    for epoch in range(1, max(pupil.job.epochs for pupil in states) + 1):
        rates = [[pupil.job.learning_rate(epoch)] for pupil in states]
        rate = net.weights.new_tensor(rates)  # (U, 1)
        for seen, codes, numbers, share in _iter_steps(states, device):
            net.compute_gradient((seen, numbers), (codes, numbers), share, slopes)
            optimizer.step(slope, active=share.sum(1, keepdim=True) > 0, rate=rate)
        losses = None if valid is None else validation_loss(net, valid).tolist()
        for at, pupil in enumerate(states):
            if pupil.record_epoch(epoch, None if losses is None else losses[at]):
                best[at] = net.weights[at]
        if all(pupil.done for pupil in states):
            break
    finished = zip(states, best.cpu().numpy(), strict=True)
    return [pupil.to_result(weights) for pupil, weights in finished]


def _iter_steps(states: Sequence[JobState], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """An epoch's batches of all users at once; rows that only fill up have no share."""
    for step in zip_longest(*(pupil.iter_batches() for pupil in states)):
        batches = [batch or pupil.empty_batch() for batch, pupil in zip(step, states, strict=True)]
        yield _stack_padded(batches, device)


def _validation_set(states: Sequence[JobState], device: torch.device) -> TrainingSet | None:
    held_out = [p.job.validation for p in states if p.job.validation is not None]
    if not held_out:
        return None
    parts = [
        (rows.codes, rows.numbers, rows.sample_weight)
        for rows in map(TrainingSet.from_rows, held_out)
    ]
    codes, numbers, share = _stack_padded(parts, device)
    return TrainingSet(codes, numbers, share, inverse=torch.empty(0))


def _stack_padded(users: Sequence[tuple[Array, ...]], device: torch.device) -> tuple[Tensor, ...]:
    """Stack each part of what users have, filled up with rows of zeros to the longest."""
    return tuple(
        pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True).to(device)
        for parts in zip(*users, strict=True)
    )


def _pad_weights(config: NetworkConfig, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights with those of the codes that only fill up: they are never guessed."""
    filled = pad_config(config)
    wide = np.zeros(filled.n_parameters, dtype=np.float32)
    own, part = unflatten(config, weights), unflatten(filled, wide)
    for name, values in own.items():
        part[name][tuple(slice(0, size) for size in values.shape)] = values
    part["code_bias"][sum(config.code_counts) :] = PAD_LOGIT
    return wide


def _unpad_weights(config: NetworkConfig, padded: NDArray[np.float32]) -> NDArray[np.float32]:
    """A user's own weights out of those that were filled up."""
    own = np.empty(config.n_parameters, dtype=np.float32)
    wide = unflatten(pad_config(config), padded)
    for name, values in unflatten(config, own).items():
        values[:] = wide[name][tuple(slice(0, size) for size in values.shape)]
    return own
