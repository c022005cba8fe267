"""The training of many users' networks side by side: a step for all is one launch on a GPU."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morpheus.models.autoencoder import Array, Autoencoder, Shape, first_weights, views
from morpheus.models.training import (
    PATIENCE,
    SIDE_BY_SIDE,
    Task,
    Trained,
    Training,
    frequencies,
    shortened,
    shuffled,
    validation_loss,
)

WORDS = 128
"""Vocabularies are filled up to a multiple of this, so that networks of a stack are of one size."""
Batch = tuple[Array, Array, Array, Array]
"""What is shown, what it was (both codes), numbers, and the share of each row."""
NEVER = -1e4
"""Bias of a code that only fills up."""


class Stack(Autoencoder):
    """Networks of users whose columns have different codes, filled up to one size.

    Args:
        shapes: Each user's own sizes; with the same columns, and one size of vocabulary when filled
            up.
        weights: Each user's, filled up, (U, P).
    """

    arrays = torch

    def __init__(self, shapes: Sequence[Shape], weights: Tensor) -> None:
        padded = [filled_up(shape) for shape in shapes]
        super().__init__(padded[0], weights)
        singles = [Autoencoder(shape, np.empty(shape.size, dtype=np.float32)) for shape in padded]
        offsets = np.stack([single.offsets for single in singles])[:, None]  # (U, 1, C)
        column_of = np.stack([single.column_of for single in singles])  # (U, V, C)
        self.offsets = torch.from_numpy(offsets).to(weights.device)
        self.column_of = torch.from_numpy(column_of).to(weights.device)

    def _places(self, codes: Array) -> Array:
        rows = torch.arange(codes[..., 0].numel(), device=codes.device).view(*codes.shape[:-1], 1)
        return codes + self.offsets + rows * sum(self.shape.codes)

    def _zeros(self, *shape: int) -> Array:
        return self.weights.new_zeros(shape)

    def _rectify(self, rows: Array) -> Array:
        return rows.clamp_(min=0)


@dataclass
class Pupil:
    """One user of a stack: what it is trained on, and how far it has come."""

    task: Task
    random: np.random.Generator
    data: Training
    weights: NDArray[np.float32]
    best_loss: float
    best_epoch: int
    done: bool = False
    curve: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, task: Task) -> Pupil:
        """Begin as `training.train` does, with the same random numbers."""
        random = np.random.default_rng(task.seed)
        data = Training.of(task.rows).repeated()
        weights = first_weights(task.shape, frequencies(data, task.shape), random)
        return cls(task, random, data, weights, math.inf, task.epochs)

    def batches(self) -> Iterator[Batch]:
        """An epoch's batches; none for a user who is done."""
        if self.done:
            return
        seen, numbers = self.data.corrupted(self.random)
        for batch in shuffled(len(seen), self.random):
            share = self.data.share[batch]
            yield seen[batch], self.data.codes[batch], numbers[batch], share / share.sum()

    def none(self) -> Batch:
        """A batch of no rows."""
        codes = self.data.codes[:0]
        return codes, codes, self.data.numbers[:0], self.data.share[:0]

    def improved(self, epoch: int, loss: float | None) -> bool:
        """Judge an epoch: whether its weights are the best so far, and whether it is the last."""
        if self.done:
            return False
        better = loss is None or loss < self.best_loss
        if loss is not None:
            self.curve.append(loss)
        if loss is not None and better:
            self.best_loss, self.best_epoch = loss, epoch
        self.done = epoch >= self.task.epochs or epoch - self.best_epoch >= PATIENCE
        return better

    def trained(self, weights: NDArray[np.float32]) -> Trained:
        """The outcome, from weights that were filled up."""
        own = shortened(_cut(self.task.shape, weights))
        return Trained(Autoencoder(self.task.shape, own), self.best_epoch, tuple(self.curve))


class StackedAdam:
    """`training.Adam` for a stack: a user without a batch in a step stays as it was.

    Args:
        weights: (U, P).
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.steps = weights.new_zeros(len(weights), 1)
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, slope: Tensor, busy: Tensor, rate: Tensor) -> None:
        """Move the weights of the busy users, at the rate of each, (U, 1), against a gradient."""
        self.steps += busy
        self.mean += 0.1 * busy * (slope - self.mean)
        self.square += 0.001 * busy * (slope.square() - self.square)
        steps = self.steps.clamp_min(1)
        spread = (self.square / (1 - 0.999**steps)).sqrt() + 1e-8
        self.weights -= rate * busy / (1 - 0.9**steps) * self.mean / spread


def train_stacked(tasks: Sequence[Task], device: torch.device) -> list[Trained]:
    """Train networks side by side, as `training.train` does one after the other.

    The result is that of `train` up to rounding: sums are taken in another order on the device.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for at, task in enumerate(tasks):
        filled = filled_up(task.shape)
        groups[len(filled.codes), filled.numbers, sum(filled.codes)].append(at)
    trained: dict[int, Trained] = {}
    for places in groups.values():
        for start in range(0, len(places), SIDE_BY_SIDE):
            some = places[start : start + SIDE_BY_SIDE]
            results = _train([Pupil.of(tasks[at]) for at in some], device)
            trained |= dict(zip(some, results, strict=True))
    return [trained[at] for at in range(len(tasks))]


def filled_up(shape: Shape) -> Shape:
    """The same sizes with the vocabulary filled up: the last column's is the longer.

    >>> filled_up(Shape((3, 5), (), 8, 4)).codes
    (3, 125)
    """
    missing = -sum(shape.codes) % WORDS
    return replace(shape, codes=(*shape.codes[:-1], shape.codes[-1] + missing))


def _train(pupils: Sequence[Pupil], device: torch.device) -> list[Trained]:
    weights = np.stack([_filled(pupil.task.shape, pupil.weights) for pupil in pupils])
    net = Stack([pupil.task.shape for pupil in pupils], torch.from_numpy(weights).to(device))
    optimizer, slope = StackedAdam(net.weights), torch.empty_like(net.weights)
    slopes, best = views(net.shape, slope), net.weights.clone()
    valid = _validation(pupils, device)
    for epoch in range(1, max(pupil.task.epochs for pupil in pupils) + 1):
        rates = [[pupil.task.rate(epoch)] for pupil in pupils]
        rate = net.weights.new_tensor(rates)  # (U, 1)
        for seen, codes, numbers, share in _steps(pupils, device):
            net.gradient((seen, numbers), (codes, numbers), share, slopes)
            optimizer.step(slope, busy=share.sum(1, keepdim=True) > 0, rate=rate)
        losses = None if valid is None else validation_loss(net, valid).tolist()
        for at, pupil in enumerate(pupils):
            if pupil.improved(epoch, None if losses is None else losses[at]):
                best[at] = net.weights[at]
        if all(pupil.done for pupil in pupils):
            break
    finished = zip(pupils, best.cpu().numpy(), strict=True)
    return [pupil.trained(weights) for pupil, weights in finished]


def _steps(pupils: Sequence[Pupil], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """An epoch's batches of all users at once; rows that only fill up have no share."""
    for step in zip_longest(*(pupil.batches() for pupil in pupils)):
        batches = [batch or pupil.none() for batch, pupil in zip(step, pupils, strict=True)]
        yield _stacked(batches, device)


def _validation(pupils: Sequence[Pupil], device: torch.device) -> Training | None:
    held_out = [p.task.validation for p in pupils if p.task.validation is not None]
    if not held_out:
        return None
    parts = [(rows.codes, rows.numbers, rows.share) for rows in map(Training.of, held_out)]
    codes, numbers, share = _stacked(parts, device)
    return Training(codes, numbers, share, row_of=torch.empty(0))


def _stacked(users: Sequence[tuple[Array, ...]], device: torch.device) -> tuple[Tensor, ...]:
    """Stack each part of what users have, filled up with rows of zeros to the longest."""
    return tuple(
        pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True).to(device)
        for parts in zip(*users, strict=True)
    )


def _filled(shape: Shape, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights with those of the codes that only fill up: they are never guessed."""
    filled = filled_up(shape)
    wide = np.zeros(filled.size, dtype=np.float32)
    own, part = views(shape, weights), views(filled, wide)
    for name, values in own.items():
        part[name][tuple(slice(0, size) for size in values.shape)] = values
    part["code_bias"][sum(shape.codes) :] = NEVER
    return wide


def _cut(shape: Shape, filled: NDArray[np.float32]) -> NDArray[np.float32]:
    """A user's own weights out of those that were filled up."""
    own = np.empty(shape.size, dtype=np.float32)
    wide = views(filled_up(shape), filled)
    for name, values in views(shape, own).items():
        values[:] = wide[name][tuple(slice(0, size) for size in values.shape)]
    return own
