"""The reference: the network that NVIDIA Morpheus 22.09 trains, for comparison.

Sizes, noise, optimiser, losses and scores are those of its `train-ae`: two hidden layers of 512
around one of 500, 25 epochs of plain gradient descent in batches of 512 events. What differs is how
it is computed: one pass for all columns, over distinct rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch
from torch import Tensor

from morpheus.features.categories import FIRST_WORD, UNSEEN, Category
from morpheus.features.encoder import Column, EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import LARGEST_LOGIT, Shape, views
from morpheus.models.fingerprint import (
    Card,
    Fingerprint,
    column_losses,
    shape_of,
    weighted,
)
from morpheus.models.training import one_thread, user_seed

HIDDEN, MIDDLE = 512, 500
LAYERS = ("squeeze_in", "squeeze", "widen", "guess")
NOISE = 0.2
"""Swaps in an epoch, for each column, as a share of the rows; some hit the same cell."""
LEARNING_RATE, DECAY = 0.01, 0.99
"""Rate of the first epoch, and what it is multiplied by after each."""
BATCH = 512
"""Events in a step."""
STANDS_FOR = 8
"""Events that one row of training stands for, at most.

Equal events are corrupted alike where they are one row. At 8 the mean score varies from seed to
seed as it does with one row an event (1-2 %); with no bound, twice as much.
"""
NAN = "nan"
"""The word that stands where there is no value."""
SHORT = (
    torch.bfloat16
    if torch.cpu.get_capabilities().get("avx512_bf16", False)
    or torch.cpu.get_capabilities().get("amx_bf16", False)
    else torch.float32
)
"""What training multiplies in: half as wide where the processor does so at twice the speed.

Weights are kept and moved in float32, and scores are computed in it, so that scores differ in the
third digit between processors, far less than between seeds.
"""


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
    return min(600, round(1.6 * codes**0.56))


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

    def __init__(self, shape: Shape, weights: Tensor) -> None:
        self.shape = ReferenceShape(shape.codes, shape.numbers, shape.hidden, shape.middle)
        self.weights = weights
        self.part = views(self.shape, weights)
        sizes, widths = torch.tensor(self.shape.sizes), torch.tensor(self.shape.widths)
        self.offsets = sizes.cumsum(0) - sizes  # (K,)
        starts = (sizes * widths).cumsum(0) - sizes * widths
        within = [torch.arange(width) for width in self.shape.widths]
        self.owner = torch.arange(len(sizes)).repeat_interleave(widths)  # (E,)
        self.width = widths[self.owner]  # (E,)
        self.start = starts[self.owner] + torch.cat([torch.arange(0), *within])  # (E,)

    @cached_property
    def column_of(self) -> Tensor:
        """Which category each code belongs to, one-hot, (V, K)."""
        columns = torch.arange(len(self.shape.sizes))
        owner = columns.repeat_interleave(torch.tensor(self.shape.sizes))
        return (owner[:, None] == columns).float()

    def losses(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for a category, squared standard deviations for a number; one that is missing counts
        as the mean.
        """
        places = self._codes(codes) + self.offsets  # (B, K)
        *_, guess = self._layers(codes, numbers)
        guessed, logits = self._split(guess)
        nats = (logits.exp() @ self.column_of.to(logits.dtype)).log() - logits.gather(1, places)
        loss = guess.new_empty(codes.shape)
        loss[:, self.shape.categories] = nats
        loss[:, self.shape.numbers] = (guessed - numbers).square()
        return loss

    def gradient(
        self,
        seen: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        share: Tensor,
        into: Tensor,
    ) -> None:
        """Fill `into` with the gradient of the loss of `target` when `seen` is shown.

        The loss is that of all number columns together, as a mean, and of each category.

        Args:
            seen: (B, C) codes and (B, N) numbers, corrupted.
            target: The same, as they are.
            share: Weight of each event, (B,).
            into: Laid out as the weights are.
        """
        slope = views(self.shape, into)
        *shown, guess = self._layers(*seen)
        back = self._slope_of_guess(guess, target, share).to(into.dtype)  # (B, N + V)
        for name, layer in zip(reversed(LAYERS), reversed(shown), strict=True):
            torch.mm(layer.T, back, out=slope[name])
            torch.sum(back, 0, out=slope[f"{name}_bias"])
            back = back @ self.part[name].T
            if name != LAYERS[0]:
                back *= layer > 0
        # Sums of many small numbers, for which a short type is too coarse.
        wide = torch.zeros(slope["embedding"].shape, dtype=share.dtype)
        cells, read = self._cells(seen[0]), back[:, len(self.shape.numbers) :]  # both (B, E)
        wide.index_add_(0, cells.flatten(), read.to(share.dtype).flatten())
        slope["embedding"].copy_(wide)

    def _slope_of_guess(
        self, guess: Tensor, target: tuple[Tensor, Tensor], share: Tensor
    ) -> Tensor:
        guessed, chance = self._split(guess)
        column_of = self.column_of.to(chance.dtype)
        chance.exp_()
        chance /= (chance @ column_of) @ column_of.T
        places = self._codes(target[0]) + self.offsets  # (B, K)
        chance.scatter_add_(1, places, chance.new_tensor(-1.0).expand(places.shape))
        guessed -= target[1]
        guessed *= 2 / max(len(self.shape.numbers), 1)
        return guess.mul_(share[:, None])

    def _codes(self, codes: Tensor) -> Tensor:
        # A missing value counts as unseen: where the history had any, NAN is a word.
        return codes[:, self.shape.categories].clamp(min=UNSEEN) - UNSEEN

    def _cells(self, codes: Tensor) -> Tensor:
        return self._codes(codes)[:, self.owner] * self.width + self.start

    def _layers(self, codes: Tensor, numbers: Tensor) -> list[Tensor]:
        read = self.part["embedding"][self._cells(codes)]  # (B, E)
        layers = [torch.cat([numbers.to(read.dtype), read], 1)]  # (B, N + E)
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


def learn(  # noqa: PLR0913 - what a fingerprint depends on, and nothing else
    user: str,
    history: pl.DataFrame,
    columns: Sequence[str],
    *,
    times: pl.Series,
    scaler: str = "standard",
    epochs: int = 25,
    seed: int = 0,
) -> Fingerprint:
    """Learn a user's fingerprint as the reference does, from all of a history at once.

    Nothing is held out: the usual losses are those of the events that the network was trained on,
    and the training runs for all epochs. Arguments are those of `morpheus.models.fingerprint.learn`.
    """
    encoder = encoder_of(history, columns, scaler)
    rows = encoder.encode(history)
    with one_thread():
        net = train(rows, encoder, epochs=epochs, seed=user_seed(seed, user))
    usual, spread = weighted(column_losses(net, None, rows), rows.counts)
    card = Card(
        user=user,
        events=history.height,
        distinct=len(rows.codes),
        first=times[0].isoformat(),
        last=times[-1].isoformat(),
        epochs=epochs,
        seed=seed,
    )
    return Fingerprint(card, encoder, net, None, usual, spread)


def encoder_of(history: pl.DataFrame, columns: Sequence[str], scaler: str) -> Encoder:
    """Learn the columns of a history as the reference types them.

    It reads them with pandas, puts the word `nan` where there is no value, and takes a column for
    one of numbers when every cell of it is one. All others are categories, of which every value
    seen is a word.

    >>> history = pl.DataFrame({"size": ["1", "20"], "code": ["1", None], "name": ["a", "b"]})
    >>> [type(c).__name__ for c in encoder_of(history, history.columns, "standard").columns]
    ['Number', 'Category', 'Category']
    """
    there = [history[name] for name in columns if name in history.columns]
    return Encoder(tuple(_fit(values, scaler) for values in there))


def _fit(values: pl.Series, scaler: str) -> Column:
    if _is_numeric(values):
        return Number.fit(values.name, values, scaler)
    return Category.fit(values.name, values, least=1, missing=NAN)


def _is_numeric(values: pl.Series) -> bool:
    if values.dtype.is_numeric():
        return values.null_count() == 0
    if values.dtype != pl.String or values.cast(pl.Float64, strict=False).is_finite().sum() < len(
        values
    ):
        return False
    # Whole numbers that 64 bits cannot hold stay text in pandas.
    return not values.str.contains(r"^[+-]?\d{19,}$").any()


def train(rows: EncodedRows, encoder: Encoder, *, epochs: int, seed: int) -> Reference:
    """Train a reference network.

    In each epoch every row is met once, in as many steps as batches of BATCH events make.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = shape_of(encoder, HIDDEN, MIDDLE, ReferenceShape)
    weights = first_weights(shape, generator)
    short = weights.to(SHORT)
    net, slope = Reference(shape, short), torch.empty_like(short)
    codes, numbers, share = _rows(rows)
    steps = -(-len(rows.row_of) // BATCH)
    for epoch in range(epochs):
        seen_codes = swapped(codes, share, generator)
        seen_numbers = swapped(numbers, share, generator)
        for batch in torch.randperm(len(codes), generator=generator).tensor_split(steps):
            seen, target = (seen_codes[batch], seen_numbers[batch]), (codes[batch], numbers[batch])
            net.gradient(seen, target, share[batch] * steps, slope)
            weights.sub_(slope, alpha=LEARNING_RATE * DECAY**epoch)
            short.copy_(weights)
    return Reference(shape, weights.half().float())


def first_weights(shape: ReferenceShape, generator: torch.Generator) -> Tensor:
    """Start where torch's own layers do.

    Embeddings are normal, weights and biases of a layer of n inputs uniform within 1/sqrt(n).
    """
    weights = torch.rand(shape.size, generator=generator)
    part = views(shape, weights)
    part["embedding"].normal_(generator=generator)
    for name in LAYERS:
        bound = max(part[name].shape[0], 1) ** -0.5
        for weight in (part[name], part[f"{name}_bias"]):
            weight.mul_(2 * bound).sub_(bound)
    return weights


def swapped(cells: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Put other events' values into some cells of each column of (R, C) cells.

    Args:
        cells: Codes or numbers of each row.
        share: Share of all events that each row stands for, (R,); values are drawn by it.
        generator: Source of the draws. A cell may be drawn twice, and its own value may be put in.
    """
    rows, columns = cells.shape
    swaps = round(rows * NOISE)
    if swaps * columns == 0:
        return cells
    shape = (swaps, columns)
    targets = torch.randint(rows, shape, generator=generator)
    sources = torch.multinomial(share, swaps * columns, replacement=True, generator=generator)
    return cells.scatter(0, targets, cells.gather(0, sources.view(shape)))


def _rows(rows: EncodedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, numbers and share of all events of the rows of training."""
    copies = -(-rows.counts // STANDS_FOR)
    of = np.repeat(np.arange(len(copies)), copies)
    codes = torch.from_numpy(rows.codes[of].astype(np.int64))
    share = torch.from_numpy((rows.counts / copies / rows.counts.sum())[of].astype(np.float32))
    return codes, torch.from_numpy(rows.numbers[of]), share
