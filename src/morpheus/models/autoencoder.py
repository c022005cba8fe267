"""The network: guess every column of an event back through a narrow middle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A numpy array; in a stack, a torch tensor, which answers to the same calls."""

MAX_LOGIT = 30.0
"""Bound on a logit, so that its exponential stays finite without looking for a maximum."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network.

    Attributes:
        code_counts: How many codes each column has, (C,).
        number_columns: Which columns are number columns, as positions, (N,).
        hidden: Width of the outer layers, H.
        bottleneck: Width of the middle layer, M.
    """

    code_counts: tuple[int, ...]
    number_columns: tuple[int, ...]
    hidden: int
    bottleneck: int

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, in the order in which they lie in memory."""
        vocabulary, count = sum(self.code_counts), len(self.number_columns)
        return {
            "look_up": (vocabulary, self.hidden),
            "read_numbers": (count, self.hidden),
            "hidden_bias": (self.hidden,),
            "squeeze": (self.hidden, self.bottleneck),
            "middle_bias": (self.bottleneck,),
            "widen": (self.bottleneck, self.hidden),
            "wide_bias": (self.hidden,),
            "guess_codes": (self.hidden, vocabulary),
            "code_bias": (vocabulary,),
            "guess_numbers": (self.hidden, count),
            "number_bias": (count,),
        }

    @property
    def n_parameters(self) -> int:
        """How many weights there are."""
        return sum(math.prod(size) for size in self.parameter_shapes.values())


class Autoencoder:
    """Guess every column of an event back through a narrow middle.

    Sizes: B events, C columns, N of them number columns, V codes of all columns together, H hidden,
    M middle. A column's codes lie side by side in one vocabulary, so that all guesses are one
    product, and all weights lie in one vector, so that a step of training is a few operations.
    Everything also works on a stack of users, with U before each of the sizes: `models.stack`.

    >>> shape = NetworkConfig(codes=(3, 5, 3), numbers=(2,), hidden=8, middle=4)
    >>> net = Autoencoder(shape, np.zeros(shape.size, dtype=np.float32))
    >>> net.losses(np.zeros((7, 3), dtype=np.int64), np.zeros((7, 1))).shape    # 7 events
    (7, 3)
    """

    array_module: ModuleType = np
    """What computes: numpy, which at this size is faster than torch and imported sooner."""

    def __init__(self, config: NetworkConfig, weights: Array) -> None:
        self.config, self.weights = config, weights
        self.parameters = unflatten(config, weights)
        sizes = np.array(config.code_counts)
        owner = np.arange(len(sizes)).repeat(sizes)
        self.offsets: Array = sizes.cumsum() - sizes  # (C,)
        self.column_one_hot: Array = np.equal.outer(owner, np.arange(len(sizes))).astype(np.float32)
        self.number_columns = list(config.number_columns)  # (N,)

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for the code; in number columns the squared distance, in squared standard deviations,
        is added where there is a number.
        """
        places = self._flat_positions(codes)  # (B, C)
        *_, wide = self._forward(self._one_hot(places), numbers)
        logits = self._logits(wide)  # (B, V)
        picked = logits.reshape(-1)[places]  # (B, C)
        exponentials = self.array_module.exp(logits, out=logits)
        loss = self.array_module.log(exponentials @ self.column_one_hot) - picked  # (B, C)
        if self.number_columns:
            loss[..., self.number_columns] += self._number_errors(wide, codes, numbers) ** 2
        return loss

    def compute_gradient(
        self,
        inputs: tuple[Array, Array],
        target: tuple[Array, Array],
        sample_weight: Array,
        grad: Mapping[str, Array],
    ) -> None:
        """Fill `slope` with the gradient of the summed losses of `target` when `seen` is shown.

        Args:
            inputs: (B, C) codes and (B, N) numbers, corrupted.
            target: The same, as they are.
            sample_weight: Weight of each event, (B,).
            grad: The parts of a vector that is laid out as the weights are; see `unflatten`.
        """
        arrays, part = self.array_module, self.parameters
        codes, numbers = target
        shown = self._one_hot(self._flat_positions(inputs[0]))  # (B, V)
        hidden, middle, wide = self._forward(shown, inputs[1])
        guess = self._logits(wide)  # (B, V)
        arrays.exp(guess, out=guess)
        sample_weight = sample_weight[..., None]  # (B, 1)
        guess *= (sample_weight / (guess @ self.column_one_hot)) @ self.column_one_hot.mT
        guess.reshape(-1)[self._flat_positions(codes)] -= sample_weight
        back = guess @ part["guess_codes"].mT  # (B, H)
        if self.number_columns:
            off = self._number_errors(wide, codes, numbers) * (2 * sample_weight)  # (B, N)
            arrays.matmul(wide.mT, off, out=grad["guess_numbers"])
            arrays.sum(off, -2, out=grad["number_bias"])
            back += off @ part["guess_numbers"].mT

        arrays.matmul(wide.mT, guess, out=grad["guess_codes"])
        arrays.sum(guess, -2, out=grad["code_bias"])
        back *= wide > 0
        arrays.matmul(middle.mT, back, out=grad["widen"])
        arrays.sum(back, -2, out=grad["wide_bias"])
        back = back @ part["widen"].mT  # (B, M)
        back *= middle > 0
        arrays.matmul(hidden.mT, back, out=grad["squeeze"])
        arrays.sum(back, -2, out=grad["middle_bias"])
        back = back @ part["squeeze"].mT  # (B, H)
        back *= hidden > 0
        arrays.matmul(shown.mT, back, out=grad["look_up"])
        if self.number_columns:
            arrays.matmul(inputs[1].mT, back, out=grad["read_numbers"])
        arrays.sum(back, -2, out=grad["hidden_bias"])

    def _flat_positions(self, codes: Array) -> Array:
        """Where in a flat (B, V) array the codes lie, (B, C)."""
        vocabulary, rows = sum(self.config.code_counts), math.prod(codes.shape[:-1])
        starts = (np.arange(rows) * vocabulary).reshape(*codes.shape[:-1], 1)
        return codes + self.offsets + starts

    def _zeros(self, *shape: int) -> Array:
        return np.zeros(shape, dtype=self.weights.dtype)

    def _relu(self, rows: Array) -> Array:
        return np.maximum(rows, 0, out=rows)

    def _one_hot(self, positions: Array) -> Array:
        shown = self._zeros(*positions.shape[:-1], sum(self.config.code_counts))
        shown.reshape(-1)[positions] = 1
        return shown

    def _forward(self, shown: Array, numbers: Array) -> tuple[Array, Array, Array]:
        hidden = self._linear("hidden_bias", shown, "look_up")  # (B, H)
        if self.number_columns:
            hidden += numbers @ self.parameters["read_numbers"]
        self._relu(hidden)
        middle = self._relu(self._linear("middle_bias", hidden, "squeeze"))  # (B, M)
        wide = self._relu(self._linear("wide_bias", middle, "widen"))  # (B, H)
        return hidden, middle, wide

    def _logits(self, wide: Array) -> Array:
        logits = self._linear("code_bias", wide, "guess_codes")  # (B, V)
        return self.array_module.clip(logits, -MAX_LOGIT, MAX_LOGIT, out=logits)

    def _number_errors(self, wide: Array, codes: Array, numbers: Array) -> Array:
        guessed = self._linear("number_bias", wide, "guess_numbers")  # (B, N)
        return (guessed - numbers) * (codes[..., self.number_columns] > 1)

    def _linear(self, bias: str, rows: Array, weights: str) -> Array:
        out = rows @ self.parameters[weights]
        out += self.parameters[bias][..., None, :]
        return out


def unflatten(config: NetworkConfig, vector: Array) -> dict[str, Array]:
    """Name the parts of a vector, or of a stack of them, that is laid out as the weights are."""
    parts, start = {}, 0
    for name, size in config.parameter_shapes.items():
        end = start + math.prod(size)
        parts[name] = vector[..., start:end].reshape(*vector.shape[:-1], *size)
        start = end
    return parts


def init_weights(
    config: NetworkConfig, frequencies: Sequence[NDArray[np.float64]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Start where counting ends: each column is guessed by its own frequencies.

    Args:
        config: Sizes of the network.
        frequencies: How often each code was seen, for each column, (codes,).
        rng: Source of the small random numbers in all other places.
    """
    weights = rng.standard_normal(config.n_parameters, dtype=np.float32)
    part = unflatten(config, weights)
    for name in ("hidden_bias", "middle_bias", "wide_bias", "number_bias"):
        part[name][:] = 0
    part["look_up"] *= len(config.code_counts) ** -0.5
    part["read_numbers"] *= len(config.code_counts) ** -0.5
    part["squeeze"] *= (2 / config.hidden) ** 0.5
    part["widen"] *= (2 / config.bottleneck) ** 0.5
    part["guess_codes"] *= 0.01
    part["guess_numbers"] *= 0.01
    shares = [(seen + 0.1) / (seen + 0.1).sum() for seen in frequencies]
    part["code_bias"][:] = np.log(np.concatenate(shares))
    return weights
