"""The reference: the network that NVIDIA Morpheus 22.09 trains, for comparison.

Sizes, noise, optimiser, losses and scores are those of its `train-ae`: two hidden layers of 512
around one of 500, 25 epochs of plain gradient descent in batches of 512 events. What differs is how
it is computed: one pass for all columns, over distinct rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from morpheus.features.categories import UNSEEN, Category
from morpheus.features.encoder import Column, EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import LARGEST_LOGIT, Array, Shape, views
from morpheus.models.calibration import HeldOut
from morpheus.models.evidence import Usual
from morpheus.models.fingerprint import Fingerprint, plain_losses, shape_of
from morpheus.models.learning import History
from morpheus.models.training import user_seed

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

Equal events are corrupted alike where they are one row, which makes seeds differ more. At 8 an
event's score varies by 4 % from seed to seed, and by 3 % with one row an event, which takes twice
as long; the means over seeds agree to 1 %.
"""
NAN = "nan"
"""The word that stands where there is no value."""
FAST = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
SHORT = torch.bfloat16 if FAST else torch.float32
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


def learn_all(
    histories: Sequence[History],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = 25,
    seed: int = 0,
) -> list[Fingerprint]:
    """Learn fingerprints as the reference does, from all of a history at once.

    Nothing is held out: the usual losses are those of the events that the network was trained on,
    and training runs for all epochs. The arguments are those of `morpheus.models.learning`.
    """
    return [_learn(history, columns, scaler, epochs, seed) for history in histories]


def _learn(
    history: History, columns: Sequence[str], scaler: str, epochs: int, seed: int
) -> Fingerprint:
    encoder = encoder_of(history.events, columns, scaler)
    rows = encoder.encode(history.events)
    with one_thread():
        net = train(rows, encoder, epochs=epochs, seed=user_seed(seed, history.user))
        losses = plain_losses(net, rows)
    scores = losses.mean(1, dtype=np.float64)[rows.row_of]
    card, seconds = history.card(len(rows.codes), epochs, seed), history.seconds
    # It has no risk of its own to calibrate: the mean loss stands for it.
    usual, held_out = Usual.of(losses, rows.counts), HeldOut.of(scores, scores, seconds)
    return Fingerprint(card, encoder, net, None, usual, held_out)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one of torch's threads, as `training.one_thread` does for numpy's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    net, move = Reference(shape, short), torch.empty_like(short)
    slope = views(shape, move)
    copy_of, share = copies(rows.counts)
    words = net.words(torch.from_numpy(rows.codes[copy_of].astype(np.int64)))
    numbers = torch.from_numpy(rows.numbers[copy_of])
    events = torch.from_numpy(np.searchsorted(copy_of, rows.row_of))
    steps = -(-len(events) // BATCH)
    for epoch in range(epochs):
        seen_words = swapped(words, events, generator)
        seen_numbers = swapped(numbers, events, generator)
        for batch in dealt(share, steps, generator):
            seen, target = (seen_words[batch], seen_numbers[batch]), (words[batch], numbers[batch])
            net.gradient(seen, target, share[batch] * steps, slope)
            weights.sub_(move, alpha=LEARNING_RATE * DECAY**epoch)
            short.copy_(weights)
    return Reference(shape, weights.half().float())


def copies(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], Tensor]:
    """Repeat distinct rows until none stands for more than STANDS_FOR events.

    Returns:
        Which distinct row each row of training is, ascending, and its share of all events.

    >>> copy_of, share = copies(np.array([3, 12, 1]))
    >>> copy_of.tolist(), share.tolist()
    ([0, 1, 1, 2], [0.1875, 0.375, 0.375, 0.0625])
    """
    times = -(-counts // STANDS_FOR)
    copy_of = np.repeat(np.arange(len(counts)), times)
    share = (counts / times / counts.sum())[copy_of]
    return copy_of, torch.from_numpy(share.astype(np.float32))


def dealt(share: Tensor, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Deal the rows out at random, light ones first, so that all batches weigh about the same.

    Batches come in random order: a row that always came last would be remembered best.
    """
    order = torch.randperm(len(share), generator=generator)
    by_weight = order[share[order].argsort(stable=True)]
    steps_at_random = torch.randperm(steps, generator=generator).tolist()
    return [by_weight[step::steps] for step in steps_at_random]


def first_weights(shape: Shape, generator: torch.Generator) -> Tensor:
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


def swapped(cells: Tensor, events: Tensor, generator: torch.Generator) -> Tensor:
    """Put other events' values into some cells of each column of (R, columns) cells.

    Args:
        cells: Words or numbers of each row.
        events: A row that each event equals.
        generator: Source of the draws. A cell may be drawn twice, and its own value may be put in.
    """
    rows, columns = cells.shape
    swaps = round(rows * NOISE)
    shape = (swaps, columns)
    targets = torch.randint(rows, shape, generator=generator)
    sources = events[torch.randint(len(events), shape, generator=generator)]
    return cells.scatter(0, targets, cells.gather(0, sources))
