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

LARGEST_LOGIT = 30.0
"""Bound on a logit, so that its exponential stays finite without looking for a maximum."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network.

    Attributes:
        codes: How many codes each column has, (C,).
        numbers: Which columns are number columns, as positions, (N,).
        hidden: Width of the outer layers, H.
        middle: Width of the middle layer, M.
    """

    codes: tuple[int, ...]
    numbers: tuple[int, ...]
    hidden: int
    middle: int

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, in the order in which they lie in memory."""
        vocabulary, count = sum(self.codes), len(self.numbers)
        return {
            "look_up": (vocabulary, self.hidden),
            "read_numbers": (count, self.hidden),
            "hidden_bias": (self.hidden,),
            "squeeze": (self.hidden, self.middle),
            "middle_bias": (self.middle,),
            "widen": (self.middle, self.hidden),
            "wide_bias": (self.hidden,),
            "guess_codes": (self.hidden, vocabulary),
            "code_bias": (vocabulary,),
            "guess_numbers": (self.hidden, count),
            "number_bias": (count,),
        }

    @property
    def size(self) -> int:
        """How many weights there are."""
        return sum(math.prod(size) for size in self.parts.values())


class Autoencoder:
    """Guess every column of an event back through a narrow middle.

    Sizes: B events, C columns, N of them number columns, V codes of all columns together, H hidden,
    M middle. A column's codes lie side by side in one vocabulary, so that all guesses are one
    product, and all weights lie in one vector, so that a step of training is a few operations.
    Everything also works on a stack of users, with U before each of the sizes: `models.stack`.

    >>> shape = Shape(codes=(3, 5, 3), numbers=(2,), hidden=8, middle=4)
    >>> net = Autoencoder(shape, np.zeros(shape.size, dtype=np.float32))
    >>> net.losses(np.zeros((7, 3), dtype=np.int64), np.zeros((7, 1))).shape    # 7 events
    (7, 3)
    """

    arrays: ModuleType = np
    """What computes: numpy, which at this size is faster than torch and imported sooner."""

    def __init__(self, shape: Shape, weights: Array) -> None:
        self.shape, self.weights = shape, weights
        self.part = views(shape, weights)
        sizes = np.array(shape.codes)
        owner = np.arange(len(sizes)).repeat(sizes)
        self.offsets: Array = sizes.cumsum() - sizes  # (C,)
        self.column_of: Array = np.equal.outer(owner, np.arange(len(sizes))).astype(np.float32)
        self.number_columns = list(shape.numbers)  # (N,)

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for the code; in number columns the squared distance, in squared standard deviations,
        is added where there is a number.
        """
        places = self._places(codes)  # (B, C)
        *_, wide = self._layers(self._one_hot(places), numbers)
        logits = self._logits(wide)  # (B, V)
        picked = logits.reshape(-1)[places]  # (B, C)
        exponentials = self.arrays.exp(logits, out=logits)
        loss = self.arrays.log(exponentials @ self.column_of) - picked  # (B, C)
        if self.number_columns:
            loss[..., self.number_columns] += self._off(wide, codes, numbers) ** 2
        return loss

    def gradient(
        self,
        seen: tuple[Array, Array],
        target: tuple[Array, Array],
        share: Array,
        slope: Mapping[str, Array],
    ) -> None:
        """Fill `slope` with the gradient of the summed losses of `target` when `seen` is shown.

        Args:
            seen: (B, C) codes and (B, N) numbers, corrupted.
            target: The same, as they are.
            share: Weight of each event, (B,).
            slope: The parts of a vector that is laid out as the weights are; see `views`.
        """
        arrays, part = self.arrays, self.part
        codes, numbers = target
        shown = self._one_hot(self._places(seen[0]))  # (B, V)
        hidden, middle, wide = self._layers(shown, seen[1])
        guess = self._logits(wide)  # (B, V)
        arrays.exp(guess, out=guess)
        share = share[..., None]  # (B, 1)
        guess *= (share / (guess @ self.column_of)) @ self.column_of.mT
        guess.reshape(-1)[self._places(codes)] -= share
        back = guess @ part["guess_codes"].mT  # (B, H)
        if self.number_columns:
            off = self._off(wide, codes, numbers) * (2 * share)  # (B, N)
            arrays.matmul(wide.mT, off, out=slope["guess_numbers"])
            arrays.sum(off, -2, out=slope["number_bias"])
            back += off @ part["guess_numbers"].mT

        arrays.matmul(wide.mT, guess, out=slope["guess_codes"])
        arrays.sum(guess, -2, out=slope["code_bias"])
        back *= wide > 0
        arrays.matmul(middle.mT, back, out=slope["widen"])
        arrays.sum(back, -2, out=slope["wide_bias"])
        back = back @ part["widen"].mT  # (B, M)
        back *= middle > 0
        arrays.matmul(hidden.mT, back, out=slope["squeeze"])
        arrays.sum(back, -2, out=slope["middle_bias"])
        back = back @ part["squeeze"].mT  # (B, H)
        back *= hidden > 0
        arrays.matmul(shown.mT, back, out=slope["look_up"])
        if self.number_columns:
            arrays.matmul(seen[1].mT, back, out=slope["read_numbers"])
        arrays.sum(back, -2, out=slope["hidden_bias"])

    def _places(self, codes: Array) -> Array:
        """Where in a flat (B, V) array the codes lie, (B, C)."""
        vocabulary, rows = sum(self.shape.codes), math.prod(codes.shape[:-1])
        starts = (np.arange(rows) * vocabulary).reshape(*codes.shape[:-1], 1)
        return codes + self.offsets + starts

    def _zeros(self, *shape: int) -> Array:
        return np.zeros(shape, dtype=self.weights.dtype)

    def _rectify(self, rows: Array) -> Array:
        return np.maximum(rows, 0, out=rows)

    def _one_hot(self, places: Array) -> Array:
        shown = self._zeros(*places.shape[:-1], sum(self.shape.codes))
        shown.reshape(-1)[places] = 1
        return shown

    def _layers(self, shown: Array, numbers: Array) -> tuple[Array, Array, Array]:
        hidden = self._through("hidden_bias", shown, "look_up")  # (B, H)
        if self.number_columns:
            hidden += numbers @ self.part["read_numbers"]
        self._rectify(hidden)
        middle = self._rectify(self._through("middle_bias", hidden, "squeeze"))  # (B, M)
        wide = self._rectify(self._through("wide_bias", middle, "widen"))  # (B, H)
        return hidden, middle, wide

    def _logits(self, wide: Array) -> Array:
        logits = self._through("code_bias", wide, "guess_codes")  # (B, V)
        return self.arrays.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT, out=logits)

    def _off(self, wide: Array, codes: Array, numbers: Array) -> Array:
        guessed = self._through("number_bias", wide, "guess_numbers")  # (B, N)
        return (guessed - numbers) * (codes[..., self.number_columns] > 1)

    def _through(self, bias: str, rows: Array, weights: str) -> Array:
        out = rows @ self.part[weights]
        out += self.part[bias][..., None, :]
        return out


def views(shape: Shape, vector: Array) -> dict[str, Array]:
    """Name the parts of a vector, or of a stack of them, that is laid out as the weights are."""
    parts, start = {}, 0
    for name, size in shape.parts.items():
        end = start + math.prod(size)
        parts[name] = vector[..., start:end].reshape(*vector.shape[:-1], *size)
        start = end
    return parts


def first_weights(
    shape: Shape, frequencies: Sequence[NDArray[np.float64]], random: np.random.Generator
) -> NDArray[np.float32]:
    """Start where counting ends: each column is guessed by its own frequencies.

    Args:
        shape: Sizes of the network.
        frequencies: How often each code was seen, for each column, (codes,).
        random: Source of the small random numbers in all other places.
    """
    weights = random.standard_normal(shape.size, dtype=np.float32)
    part = views(shape, weights)
    for name in ("hidden_bias", "middle_bias", "wide_bias", "number_bias"):
        part[name][:] = 0
    part["look_up"] *= len(shape.codes) ** -0.5
    part["read_numbers"] *= len(shape.codes) ** -0.5
    part["squeeze"] *= (2 / shape.hidden) ** 0.5
    part["widen"] *= (2 / shape.middle) ** 0.5
    part["guess_codes"] *= 0.01
    part["guess_numbers"] *= 0.01
    shares = [(seen + 0.1) / (seen + 0.1).sum() for seen in frequencies]
    part["code_bias"][:] = np.log(np.concatenate(shares))
    return weights
