"""The reference: the network that NVIDIA Morpheus 22.09 trains, for comparison.

Its sizes, losses and scores are those of its `train-ae`: two hidden layers of 512 around one of
500. What differs is how it is computed: one pass for all columns, over distinct rows. How it is
trained: `reference_training`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morpheus.features.categories import UNSEEN
from morpheus.models.autoencoder import LARGEST_LOGIT, Array, Shape, views

HIDDEN, MIDDLE = 512, 500
LAYERS = ("squeeze_in", "squeeze", "widen", "guess")


@dataclass(frozen=True)
class ReferenceShape(Shape):
    """Sizes of a reference network.

    A category of w words has w + 1 codes here: there is no code for a missing value.
    """

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, in the order in which they lie in memory."""
        outputs = len(self.numbers) + sum(self.sizes)
        widths = [len(self.numbers) + sum(self.widths), self.hidden, self.middle, self.hidden]
        parts: dict[str, tuple[int, ...]] = {
            "embedding": (sum(n * width for n, width in zip(self.sizes, self.widths, strict=True)),)
        }
        for name, taken, given in zip(LAYERS, widths, [*widths[1:], outputs], strict=True):
            parts |= {name: (taken, given), f"{name}_bias": (given,)}
        return parts

    @cached_property
    def categories(self) -> tuple[int, ...]:
        """Positions of the category columns, (K,)."""
        return tuple(c for c in range(len(self.codes)) if c not in self.numbers)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each category has: its words, and one for all others, (K,)."""
        return tuple(self.codes[c] - 1 for c in self.categories)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many numbers stand for a code of each category, (K,)."""
        return tuple(embedding_width(size) for size in self.sizes)


def embedding_width(codes: int) -> int:
    """How many numbers stand for one of so many codes.

    >>> [embedding_width(codes) for codes in (0, 5, 20, 40_000)]
    [0, 4, 9, 600]
    """
    return min(600, round(1.6 * math.pow(codes, 0.56)))


class Reference:
    """Guess every column of an event back through layers of 512, 500 and 512.

    Sizes: B events, C columns, N of them number columns, K category columns, V codes of all
    categories together, E numbers that stand for an event's codes.

    >>> shape = ReferenceShape(codes=(3, 5, 3), numbers=(2,), hidden=8, middle=4)
    >>> net = Reference(shape, torch.zeros(shape.size))
    >>> loss = net.losses(torch.ones(7, 3, dtype=torch.long), torch.zeros(7, 1))
    >>> loss[0].exp().round().tolist()          # 2 codes, 4 codes, and a number guessed right
    [2.0, 4.0, 1.0]
    """

    def __init__(self, shape: Shape, weights: Tensor | NDArray[np.float32]) -> None:
        self.shape = ReferenceShape(shape.codes, shape.numbers, shape.hidden, shape.middle)
        self.weights = torch.as_tensor(weights)
        self.part: dict[str, Tensor] = views(self.shape, self.weights)
        self.categories = torch.tensor(self.shape.categories, dtype=torch.long)  # (K,)
        sizes = torch.tensor(self.shape.sizes, dtype=torch.long)  # (K,)
        widths = torch.tensor(self.shape.widths, dtype=torch.long)  # (K,)
        columns = torch.arange(len(sizes))
        self.offsets = sizes.cumsum(0) - sizes  # (K,)
        self.column_of = (columns.repeat_interleave(sizes)[:, None] == columns).float()  # (V, K)
        # Cell e of an event lies in the embedding at its column's word * width + start.
        self.owner = columns.repeat_interleave(widths)  # (E,)
        before = (sizes * widths).cumsum(0) - sizes * widths - (widths.cumsum(0) - widths)
        self.width = widths[self.owner][:, None]  # (E, 1)
        self.start = (before[self.owner] + torch.arange(len(self.owner)))[:, None]  # (E, 1)

    def losses(self, codes: Array, numbers: Array) -> Tensor:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for a category, squared standard deviations for a number; one that is missing counts
        as the mean.
        """
        codes, numbers = torch.as_tensor(codes), torch.as_tensor(numbers)
        words = self.words(codes)  # (B, K)
        places = words + self.offsets
        *_, guess = self._layers(words, numbers)
        guessed, logits = self._split(guess)
        nats = (logits.exp() @ self.column_of.to(logits.dtype)).log() - logits.gather(1, places)
        loss = guess.new_empty(codes.shape)
        loss[:, self.shape.categories] = nats
        loss[:, self.shape.numbers] = (guessed - numbers).square()
        return loss

    def words(self, codes: Tensor) -> Tensor:
        """Which of a category's own codes each of (B, C) codes is, (B, K); 0 for all others.

        A missing value is one of these: where the history had any, NAN is a word.
        """
        return codes.index_select(1, self.categories).clamp_(min=UNSEEN).sub_(UNSEEN)

    def gradient(
        self,
        seen: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        share: Tensor,
        slope: Mapping[str, Tensor],
    ) -> None:
        """Fill `slope` with the gradient of the loss of `target` when `seen` is shown.

        The loss is that of all number columns together, as a mean, and of each category.

        Args:
            seen: (B, K) `words` and (B, N) numbers, corrupted.
            target: The same, as they are.
            share: Weight of each event, (B,).
            slope: The parts of a vector that is laid out as the weights are; see `views`.
        """
        *shown, guess = self._layers(*seen)
        back = self._slope_of_guess(guess, target, share).to(self.weights.dtype)  # (B, N + V)
        for name, layer in zip(reversed(LAYERS), reversed(shown), strict=True):
            torch.mm(layer.T, back, out=slope[name])
            torch.sum(back, 0, out=slope[f"{name}_bias"])
            back = back @ self.part[name].T
            if name != LAYERS[0]:
                back *= layer.sign()  # 1 where the layer is awake; a comparison is slower
        # Sums of many small numbers, for which a short type is too coarse.
        wide = torch.zeros(slope["embedding"].shape, dtype=share.dtype)
        read = back[:, len(self.shape.numbers) :].T.to(share.dtype)  # (E, B)
        wide.index_add_(0, self._cells(seen[0]).flatten(), read.flatten())
        slope["embedding"].copy_(wide)

    def _slope_of_guess(
        self, guess: Tensor, target: tuple[Tensor, Tensor], share: Tensor
    ) -> Tensor:
        guessed, chance = self._split(guess)
        column_of = self.column_of.to(chance.dtype)
        chance.exp_()
        chance /= (chance @ column_of) @ column_of.T
        places = target[0] + self.offsets  # (B, K)
        chance.scatter_add_(1, places, chance.new_tensor(-1.0).expand(places.shape))
        guessed -= target[1]
        guessed *= 2 / max(len(self.shape.numbers), 1)
        return guess.mul_(share[:, None])

    def _cells(self, words: Tensor) -> Tensor:
        """Where in the embedding an event's numbers lie, (E, B); rows are copied fastest."""
        return words.T.contiguous().index_select(0, self.owner).mul_(self.width).add_(self.start)

    def _layers(self, words: Tensor, numbers: Tensor) -> list[Tensor]:
        cells = self._cells(words)  # (E, B)
        read = self.part["embedding"].index_select(0, cells.flatten()).view(cells.shape)
        layers = [torch.cat([numbers.T.to(read.dtype), read]).T]  # (B, N + E)
        for name in LAYERS:
            bias = self.part[f"{name}_bias"]
            layers.append(torch.addmm(bias, layers[-1], self.part[name]))
            if name != LAYERS[-1]:
                layers[-1].relu_()
        layers[-1] = layers[-1].to(numbers.dtype)
        return layers

    def _split(self, guess: Tensor) -> tuple[Tensor, Tensor]:
        numbers = len(self.shape.numbers)
        logits = guess[:, numbers:].clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)  # (B, V)
        return guess[:, :numbers], logits
