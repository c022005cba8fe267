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

from morpheus.features.categories import UNKNOWN
from morpheus.models.autoencoder import MAX_LOGIT, Array, NetworkConfig, unflatten

HIDDEN_UNITS, BOTTLENECK_UNITS = 512, 500
LAYER_NAMES = ("squeeze_in", "squeeze", "widen", "guess")


@dataclass(frozen=True)
class DfencoderConfig(NetworkConfig):
    """Sizes of a reference network.

    A category of w words has w + 1 codes here: there is no code for a missing value.
    """

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, in the order in which they lie in memory."""
        outputs = len(self.number_columns) + sum(self.category_sizes)
        widths = [len(self.number_columns) + sum(self.embedding_widths), self.hidden, self.bottleneck, self.hidden]
        parts: dict[str, tuple[int, ...]] = {
            "embedding": (sum(n * width for n, width in zip(self.category_sizes, self.embedding_widths, strict=True)),)
        }
        for name, taken, given in zip(LAYER_NAMES, widths, [*widths[1:], outputs], strict=True):
            parts |= {name: (taken, given), f"{name}_bias": (given,)}
        return parts

    @cached_property
    def category_columns(self) -> tuple[int, ...]:
        """Positions of the category columns, (K,)."""
        return tuple(c for c in range(len(self.code_counts)) if c not in self.number_columns)

    @cached_property
    def category_sizes(self) -> tuple[int, ...]:
        """How many codes each category has: its words, and one for all others, (K,)."""
        return tuple(self.code_counts[c] - 1 for c in self.category_columns)

    @cached_property
    def embedding_widths(self) -> tuple[int, ...]:
        """How many numbers stand for a code of each category, (K,)."""
        return tuple(embedding_width(size) for size in self.category_sizes)


def embedding_width(codes: int) -> int:
    """How many numbers stand for one of so many codes.

    >>> [embedding_width(codes) for codes in (0, 5, 20, 40_000)]
    [0, 4, 9, 600]
    """
    return min(600, round(1.6 * math.pow(codes, 0.56)))


class DfencoderNetwork:
    """Guess every column of an event back through layers of 512, 500 and 512.

    Sizes: B events, C columns, N of them number columns, K category columns, V codes of all
    categories together, E numbers that stand for an event's codes.

    >>> shape = DfencoderConfig(codes=(3, 5, 3), numbers=(2,), hidden=8, middle=4)
    >>> net = DfencoderNetwork(shape, torch.zeros(shape.size))
    >>> loss = net.losses(torch.ones(7, 3, dtype=torch.long), torch.zeros(7, 1))
    >>> loss[0].exp().round().tolist()          # 2 codes, 4 codes, and a number guessed right
    [2.0, 4.0, 1.0]
    """

    def __init__(self, config: NetworkConfig, weights: Tensor | NDArray[np.float32]) -> None:
        self.config = DfencoderConfig(config.code_counts, config.number_columns, config.hidden, config.bottleneck)
        self.weights = torch.as_tensor(weights)
        self.parameters: dict[str, Tensor] = unflatten(self.config, self.weights)
        self.category_columns = torch.tensor(self.config.category_columns, dtype=torch.long)  # (K,)
        sizes = torch.tensor(self.config.category_sizes, dtype=torch.long)  # (K,)
        widths = torch.tensor(self.config.embedding_widths, dtype=torch.long)  # (K,)
        columns = torch.arange(len(sizes))
        self.offsets = sizes.cumsum(0) - sizes  # (K,)
        self.column_one_hot = (columns.repeat_interleave(sizes)[:, None] == columns).float()  # (V, K)
        # Cell e of an event lies in the embedding at its column's word * width + start.
        self.embedding_columns = columns.repeat_interleave(widths)  # (E,)
        before = (sizes * widths).cumsum(0) - sizes * widths - (widths.cumsum(0) - widths)
        self.embedding_widths = widths[self.embedding_columns][:, None]  # (E, 1)
        self.embedding_starts = (before[self.embedding_columns] + torch.arange(len(self.embedding_columns)))[:, None]  # (E, 1)

    def losses(self, codes: Array, numbers: Array) -> Tensor:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for a category, squared standard deviations for a number; one that is missing counts
        as the mean.
        """
        codes, numbers = torch.as_tensor(codes), torch.as_tensor(numbers)
        words = self.to_category_codes(codes)  # (B, K)
        places = words + self.offsets
        *_, guess = self._forward(words, numbers)
        guessed, logits = self._split_output(guess)
        nats = (logits.exp() @ self.column_one_hot.to(logits.dtype)).log() - logits.gather(1, places)
        loss = guess.new_empty(codes.shape)
        loss[:, self.config.category_columns] = nats
        loss[:, self.config.number_columns] = (guessed - numbers).square()
        return loss

    def to_category_codes(self, codes: Tensor) -> Tensor:
        """Which of a category's own codes each of (B, C) codes is, (B, K); 0 for all others.

        A missing value is one of these: where the history had any, NAN is a word.
        """
        return codes.index_select(1, self.category_columns).clamp_(min=UNKNOWN).sub_(UNKNOWN)

    def compute_gradient(
        self,
        inputs: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        sample_weight: Tensor,
        grad: Mapping[str, Tensor],
    ) -> None:
        """Fill `slope` with the gradient of the loss of `target` when `seen` is shown.

        The loss is that of all number columns together, as a mean, and of each category.

        Args:
            inputs: (B, K) `words` and (B, N) numbers, corrupted.
            target: The same, as they are.
            sample_weight: Weight of each event, (B,).
            grad: The parts of a vector that is laid out as the weights are; see `unflatten`.
        """
        *shown, guess = self._forward(*inputs)
        back = self._output_gradient(guess, target, sample_weight).to(self.weights.dtype)  # (B, N + V)
        for name, layer in zip(reversed(LAYER_NAMES), reversed(shown), strict=True):
            torch.mm(layer.T, back, out=grad[name])
            torch.sum(back, 0, out=grad[f"{name}_bias"])
            back = back @ self.parameters[name].T
            if name != LAYER_NAMES[0]:
                back *= layer.sign()  # 1 where the layer is awake; a comparison is slower
        # Sums of many small numbers, for which a short type is too coarse.
        wide = torch.zeros(grad["embedding"].shape, dtype=sample_weight.dtype)
        read = back[:, len(self.config.number_columns) :].T.to(sample_weight.dtype)  # (E, B)
        wide.index_add_(0, self._embedding_positions(inputs[0]).flatten(), read.flatten())
        grad["embedding"].copy_(wide)

    def _output_gradient(
        self, guess: Tensor, target: tuple[Tensor, Tensor], sample_weight: Tensor
    ) -> Tensor:
        guessed, chance = self._split_output(guess)
        column_of = self.column_one_hot.to(chance.dtype)
        chance.exp_()
        chance /= (chance @ column_of) @ column_of.T
        places = target[0] + self.offsets  # (B, K)
        chance.scatter_add_(1, places, chance.new_tensor(-1.0).expand(places.shape))
        guessed -= target[1]
        guessed *= 2 / max(len(self.config.number_columns), 1)
        return guess.mul_(sample_weight[:, None])

    def _embedding_positions(self, words: Tensor) -> Tensor:
        """Where in the embedding an event's numbers lie, (E, B); rows are copied fastest."""
        return words.T.contiguous().index_select(0, self.embedding_columns).mul_(self.embedding_widths).add_(self.embedding_starts)

    def _forward(self, words: Tensor, numbers: Tensor) -> list[Tensor]:
        cells = self._embedding_positions(words)  # (E, B)
        read = self.parameters["embedding"].index_select(0, cells.flatten()).view(cells.shape)
        layers = [torch.cat([numbers.T.to(read.dtype), read]).T]  # (B, N + E)
        for name in LAYER_NAMES:
            bias = self.parameters[f"{name}_bias"]
            layers.append(torch.addmm(bias, layers[-1], self.parameters[name]))
            if name != LAYER_NAMES[-1]:
                layers[-1].relu_()
        layers[-1] = layers[-1].to(numbers.dtype)
        return layers

    def _split_output(self, guess: Tensor) -> tuple[Tensor, Tensor]:
        numbers = len(self.config.number_columns)
        logits = guess[:, numbers:].clamp_(-MAX_LOGIT, MAX_LOGIT)  # (B, V)
        return guess[:, :numbers], logits
