"""The network: guess every column of an event back through a narrow middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
        return sum(torch.Size(shape).numel() for shape in self.parts.values())


class Autoencoder:
    """Guess every column of an event back through a narrow middle.

    Sizes: B events, C columns, N of them number columns, V codes of all columns together, H hidden,
    M middle. A column's codes lie side by side in one vocabulary, so that all guesses are one
    product, and all weights lie in one vector, so that a step of training is a few operations.

    >>> shape = Shape(codes=(3, 5, 3), numbers=(2,), hidden=8, middle=4)
    >>> net = Autoencoder(shape, torch.zeros(shape.size))
    >>> loss = net.losses(torch.zeros(7, 3, dtype=torch.long), torch.zeros(7, 1))
    >>> tuple(loss.shape)              # 7 events, 3 columns
    (7, 3)
    """

    def __init__(self, shape: Shape, weights: Tensor) -> None:
        self.shape, self.weights = shape, weights
        self.part = views(shape, weights)
        sizes = torch.tensor(shape.codes)
        self.offsets = sizes.cumsum(0) - sizes  # (C,)
        self.number_columns = torch.tensor(shape.numbers, dtype=torch.long)  # (N,)

    @cached_property
    def column_of(self) -> Tensor:
        """Which column each code belongs to, one-hot, (V, C)."""
        columns = torch.arange(len(self.shape.codes))
        owner = columns.repeat_interleave(torch.tensor(self.shape.codes))
        return (owner[:, None] == columns).to(self.weights.dtype)

    def losses(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for the code; in number columns the squared distance, in squared standard deviations,
        is added where there is a number.
        """
        places = codes + self.offsets  # (B, C)
        *_, wide = self._layers(self._one_hot(places), numbers)
        logits = self._logits(wide)  # (B, V)
        loss = (logits.exp() @ self.column_of).log() - logits.gather(1, places)  # (B, C)
        if len(self.number_columns):
            loss.index_add_(1, self.number_columns, self._off(wide, codes, numbers).square())
        return loss

    def gradient(
        self,
        seen: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        share: Tensor,
        slope: Mapping[str, Tensor],
    ) -> None:
        """Fill `slope` with the gradient of the summed losses of `target` when `seen` is shown.

        Args:
            seen: (B, C) codes and (B, N) numbers, corrupted.
            target: The same, as they are.
            share: Weight of each event, (B,).
            slope: The parts of a vector that is laid out as the weights are; see `views`.
        """
        codes, numbers = target
        shown = self._one_hot(seen[0] + self.offsets)  # (B, V)
        hidden, middle, wide = self._layers(shown, seen[1])
        guess = self._logits(wide).exp_()  # (B, V)
        guess /= (guess @ self.column_of) @ self.column_of.T
        guess.scatter_add_(1, codes + self.offsets, guess.new_tensor(-1.0).expand(codes.shape))
        guess *= share[:, None]
        back = guess @ self.part["guess_codes"].T  # (B, H)
        if self.shape.numbers:
            off = self._off(wide, codes, numbers) * (2 * share[:, None])  # (B, N)
            torch.mm(wide.T, off, out=slope["guess_numbers"])
            torch.sum(off, 0, out=slope["number_bias"])
            back.addmm_(off, self.part["guess_numbers"].T)

        torch.mm(wide.T, guess, out=slope["guess_codes"])
        torch.sum(guess, 0, out=slope["code_bias"])
        back *= wide > 0
        torch.mm(middle.T, back, out=slope["widen"])
        torch.sum(back, 0, out=slope["wide_bias"])
        back = back @ self.part["widen"].T  # (B, M)
        back *= middle > 0
        torch.mm(hidden.T, back, out=slope["squeeze"])
        torch.sum(back, 0, out=slope["middle_bias"])
        back = back @ self.part["squeeze"].T  # (B, H)
        back *= hidden > 0
        torch.mm(shown.T, back, out=slope["look_up"])
        if self.shape.numbers:
            torch.mm(seen[1].T, back, out=slope["read_numbers"])
        torch.sum(back, 0, out=slope["hidden_bias"])

    def _one_hot(self, places: Tensor) -> Tensor:
        shape = (len(places), sum(self.shape.codes))
        return torch.zeros(shape, dtype=self.weights.dtype).scatter_(1, places, 1.0)

    def _layers(self, shown: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part = self.part
        hidden = torch.addmm(part["hidden_bias"], shown, part["look_up"])  # (B, H)
        hidden.addmm_(numbers, part["read_numbers"]).relu_()
        middle = torch.addmm(part["middle_bias"], hidden, part["squeeze"]).relu_()  # (B, M)
        wide = torch.addmm(part["wide_bias"], middle, part["widen"]).relu_()  # (B, H)
        return hidden, middle, wide

    def _logits(self, wide: Tensor) -> Tensor:
        logits = torch.addmm(self.part["code_bias"], wide, self.part["guess_codes"])  # (B, V)
        return logits.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)

    def _off(self, wide: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        guessed = torch.addmm(self.part["number_bias"], wide, self.part["guess_numbers"])  # (B, N)
        return (guessed - numbers) * (codes[:, self.number_columns] > 1)


def views(shape: Shape, vector: Tensor) -> dict[str, Tensor]:
    """Name the parts of a vector that is laid out as the weights are."""
    parts = shape.parts
    pieces = torch.split(vector, [torch.Size(size).numel() for size in parts.values()])
    return {
        name: piece.view(size) for (name, size), piece in zip(parts.items(), pieces, strict=True)
    }


def first_weights(
    shape: Shape, frequencies: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """Start where counting ends: each column is guessed by its own frequencies.

    Args:
        shape: Sizes of the network.
        frequencies: How often each code was seen, for each column, (codes,).
        generator: Source of the small random numbers in all other places.
    """
    weights = torch.randn(shape.size, generator=generator)
    part = views(shape, weights)
    for name in ("hidden_bias", "middle_bias", "wide_bias", "number_bias"):
        part[name].zero_()
    part["look_up"] *= len(shape.codes) ** -0.5
    part["read_numbers"] *= len(shape.codes) ** -0.5
    part["squeeze"] *= (2 / shape.hidden) ** 0.5
    part["widen"] *= (2 / shape.middle) ** 0.5
    part["guess_codes"] *= 0.01
    part["guess_numbers"] *= 0.01
    shares = [(seen + 0.1) / (seen + 0.1).sum() for seen in frequencies]
    part["code_bias"].copy_(torch.cat(shares).log())
    return weights
