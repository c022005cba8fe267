"""The reference: the network that NVIDIA Morpheus 22.09 trains, for comparison.

Its sizes, losses and scores are those of its `train-ae`: two hidden layers of 512 around one of
500. What differs is how it is computed: one pass for all columns, over distinct rows. How it is
trained: `reference_training`.
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

from morpheus.features.encoder import UNKNOWN, Category, Column, EncodedRows, Encoder, Number
from morpheus.models.autoencoder import MAX_LOGIT, Array, NetworkConfig, unflatten
from morpheus.models.calibration import CalibrationSet
from morpheus.models.fit import UserHistory
from morpheus.models.profile import Fingerprint, make_network_config, raw_losses
from morpheus.models.scoring import BaselineStats
from morpheus.models.training import derive_user_seed

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
        widths = [
            len(self.number_columns) + sum(self.embedding_widths),
            self.hidden,
            self.bottleneck,
            self.hidden,
        ]
        parts: dict[str, tuple[int, ...]] = {
            "embedding": (
                sum(
                    n * width
                    for n, width in zip(self.category_sizes, self.embedding_widths, strict=True)
                ),
            )
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

    >>> shape = DfencoderConfig((3, 5, 3), number_columns=(2,), hidden=8, bottleneck=4)
    >>> net = DfencoderNetwork(shape, torch.zeros(shape.n_parameters))
    >>> loss = net.losses(torch.ones(7, 3, dtype=torch.long), torch.zeros(7, 1))
    >>> loss[0].exp().round().tolist()          # 2 codes, 4 codes, and a number guessed right
    [2.0, 4.0, 1.0]
    """

    def __init__(self, config: NetworkConfig, weights: Tensor | NDArray[np.float32]) -> None:
        self.config = DfencoderConfig(
            config.code_counts, config.number_columns, config.hidden, config.bottleneck
        )
        self.weights = torch.as_tensor(weights)
        self.parameters: dict[str, Tensor] = unflatten(self.config, self.weights)
        self.category_columns = torch.tensor(self.config.category_columns, dtype=torch.long)  # (K,)
        sizes = torch.tensor(self.config.category_sizes, dtype=torch.long)  # (K,)
        widths = torch.tensor(self.config.embedding_widths, dtype=torch.long)  # (K,)
        columns = torch.arange(len(sizes))
        self.offsets = sizes.cumsum(0) - sizes  # (K,)
        self.column_one_hot = (
            columns.repeat_interleave(sizes)[:, None] == columns
        ).float()  # (V, K)
        # Cell e of an event lies in the embedding at its column's word * width + start.
        self.embedding_columns = columns.repeat_interleave(widths)  # (E,)
        before = (sizes * widths).cumsum(0) - sizes * widths - (widths.cumsum(0) - widths)
        self.embedding_widths = widths[self.embedding_columns][:, None]  # (E, 1)
        self.embedding_starts = (
            before[self.embedding_columns] + torch.arange(len(self.embedding_columns))
        )[:, None]  # (E, 1)

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
        nats = (logits.exp() @ self.column_one_hot.to(logits.dtype)).log() - logits.gather(
            1, places
        )
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
        back = self._output_gradient(guess, target, sample_weight).to(
            self.weights.dtype
        )  # (B, N + V)
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
        return (
            words.T.contiguous()
            .index_select(0, self.embedding_columns)
            .mul_(self.embedding_widths)
            .add_(self.embedding_starts)
        )

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


NOISE = 0.2
"""Swaps in an epoch, for each column, as a share of the rows; some hit the same cell."""
EPOCHS = 25
"""Passes over the rows, by default."""
LEARNING_RATE, LEARNING_RATE_DECAY = 0.01, 0.99
"""Rate of the first epoch, and what it is multiplied by after each."""
BATCH_SIZE = 512
"""Events in a step."""
MAX_WEIGHT = 8
"""Events that one row of training stands for, at most.

Equal events are corrupted alike where they are one row, which makes seeds differ more. At 8 an
event's score varies by 4 % from seed to seed, and by 3 % with one row an event, which takes twice
as long; the means over seeds agree to 1 %.
"""
NAN = "nan"
"""The word that stands where there is no value."""
HAS_FAST_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
TRAIN_DTYPE = torch.bfloat16 if HAS_FAST_BF16 else torch.float32
"""What training multiplies in: half as wide where the processor does so at twice the speed.

Weights are kept and moved in float32, and scores are computed in it, so that scores differ in the
third digit between processors, far less than between seeds.
"""


def fit_dfencoder_fingerprints(
    histories: Sequence[UserHistory],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = EPOCHS,
    seed: int = 0,
) -> list[Fingerprint]:
    """Learn fingerprints as the reference does, from all of a history at once.

    Nothing is held out: the usual losses are those of the events that the network was trained on,
    and training runs for all epochs. The arguments are those of `morpheus.models.learning`.
    """
    return [_fit_fingerprint(history, columns, scaler, epochs, seed) for history in histories]


def _fit_fingerprint(
    history: UserHistory, columns: Sequence[str], scaler: str, epochs: int, seed: int
) -> Fingerprint:
    encoder = fit_encoder(history.events, columns, scaler)
    rows = encoder.encode(history.events)
    with single_torch_thread():
        net = train_dfencoder(
            rows, encoder, epochs=epochs, seed=derive_user_seed(seed, history.user)
        )
        losses = raw_losses(net, rows)
    scores = losses.mean(1, dtype=np.float64)[rows.inverse]
    card, seconds = history.make_card(len(rows.codes), epochs, seed), history.seconds
    # It has no risk of its own to calibrate: the mean loss stands for it.
    usual, held_out = (
        BaselineStats.fit(losses, rows.counts),
        CalibrationSet.from_scores(scores, scores, seconds),
    )
    return Fingerprint(card, encoder, net, None, usual, held_out)


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Compute on one of torch's threads, as `training.one_thread` does for numpy's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_encoder(history: pl.DataFrame, columns: Sequence[str], scaler: str) -> Encoder:
    """Learn the columns of a history as the reference types them.

    It reads them with pandas, puts the word `nan` where there is no value, and takes a column for
    one of numbers when every cell of it is one. All others are categories, of which every value
    seen is a word.

    >>> history = pl.DataFrame({"size": ["1", "20"], "code": ["1", None], "name": ["a", "b"]})
    >>> [type(c).__name__ for c in fit_encoder(history, history.columns, "standard").columns]
    ['Number', 'Category', 'Category']
    """
    there = [history[name] for name in columns if name in history.columns]
    return Encoder(tuple(_fit_column(values, scaler) for values in there))


def _fit_column(values: pl.Series, scaler: str) -> Column:
    if _is_numeric(values):
        return Number.fit(values.name, values, scaler)
    return Category.fit(values.name, values, min_count=1, missing=NAN)


def _is_numeric(values: pl.Series) -> bool:
    if values.dtype.is_numeric():
        return values.null_count() == 0
    if values.dtype != pl.String or values.cast(pl.Float64, strict=False).is_finite().sum() < len(
        values
    ):
        return False
    # Whole numbers that 64 bits cannot hold stay text in pandas.
    return not values.str.contains(r"^[+-]?\d{19,}$").any()


def train_dfencoder(
    rows: EncodedRows, encoder: Encoder, *, epochs: int, seed: int
) -> DfencoderNetwork:
    """Train a reference network.

    In each epoch every row is met once, in as many steps as batches of BATCH events make.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = make_network_config(encoder, HIDDEN_UNITS, BOTTLENECK_UNITS, DfencoderConfig)
    weights = init_dfencoder_weights(shape, generator)
    short = weights.to(TRAIN_DTYPE)
    net, move = DfencoderNetwork(shape, short), torch.empty_like(short)
    slope = unflatten(shape, move)
    copy_of, share = replicate_rows(rows.counts)
    words = net.to_category_codes(torch.from_numpy(rows.codes[copy_of].astype(np.int64)))
    numbers = torch.from_numpy(rows.numbers[copy_of])
    events = torch.from_numpy(np.searchsorted(copy_of, rows.inverse))
    steps = -(-len(events) // BATCH_SIZE)
    for epoch in range(epochs):
        seen_words = swap_values(words, events, generator)
        seen_numbers = swap_values(numbers, events, generator)
        for batch in weighted_minibatches(share, steps, generator):
            seen, target = (seen_words[batch], seen_numbers[batch]), (words[batch], numbers[batch])
            net.compute_gradient(seen, target, share[batch] * steps, slope)
            weights.sub_(move, alpha=LEARNING_RATE * LEARNING_RATE_DECAY**epoch)
            short.copy_(weights)
    return DfencoderNetwork(shape, weights.half().float())


def replicate_rows(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], Tensor]:
    """Repeat distinct rows until none stands for more than STANDS_FOR events.

    Returns:
        Which distinct row each row of training is, ascending, and its share of all events.

    >>> copy_of, share = replicate_rows(np.array([3, 12, 1]))
    >>> copy_of.tolist(), share.tolist()
    ([0, 1, 1, 2], [0.1875, 0.375, 0.375, 0.0625])
    """
    times = -(-counts // MAX_WEIGHT)
    copy_of = np.repeat(np.arange(len(counts)), times)
    share = (counts / times / counts.sum())[copy_of]
    return copy_of, torch.from_numpy(share.astype(np.float32))


def weighted_minibatches(
    sample_weight: Tensor, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Deal the rows out at random, light ones first, so that all batches weigh about the same.

    Batches come in random order: a row that always came last would be remembered best.
    """
    order = torch.randperm(len(sample_weight), generator=generator)
    by_weight = order[sample_weight[order].argsort(stable=True)]
    steps_at_random = torch.randperm(steps, generator=generator).tolist()
    return [by_weight[step::steps] for step in steps_at_random]


def init_dfencoder_weights(config: NetworkConfig, generator: torch.Generator) -> Tensor:
    """Start where torch's own layers do.

    Embeddings are normal, weights and biases of a layer of n inputs uniform within 1/sqrt(n).
    """
    weights = torch.rand(config.n_parameters, generator=generator)
    part = unflatten(config, weights)
    part["embedding"].normal_(generator=generator)
    for name in LAYER_NAMES:
        bound = max(part[name].shape[0], 1) ** -0.5
        for weight in (part[name], part[f"{name}_bias"]):
            weight.mul_(2 * bound).sub_(bound)
    return weights


def swap_values(cells: Tensor, events: Tensor, generator: torch.Generator) -> Tensor:
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
