"""The reference network for comparison: the dfencoder autoencoder of NVIDIA Morpheus 22.09.

Its sizes, losses and scores are those of upstream's `train-ae`: two hidden layers of 512 units
around one of 500. Only the computation differs: one pass for all columns, over distinct rows. This
module imports torch, so it is imported only when a reference network is trained or loaded.

Sizes in shapes: B events, C columns, N number columns, K category columns, V codes of all
categories together, E embedding values of an event.
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
NOISE = 0.2
"""Swaps per epoch and column, as a share of the rows. Several can hit the same cell."""
EPOCHS = 25
"""Default number of passes over the rows."""
LEARNING_RATE, LEARNING_RATE_DECAY = 0.01, 0.99
"""Learning rate of the first epoch, and the factor after each epoch."""
BATCH_SIZE = 512
"""Events in a step."""
MAX_WEIGHT = 8
"""Maximum number of events that one training row represents.

Equal events in one row are corrupted alike, which makes seeds differ more. At 8 an event's score
varies by 4 % from seed to seed, and by 3 % with one row per event, which takes twice as long; the
means over seeds agree to 1 %.
"""
NAN = "nan"
"""Value that stands for a missing one."""
HAS_FAST_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
TRAIN_DTYPE = torch.bfloat16 if HAS_FAST_BF16 else torch.float32
"""Type of training: bfloat16 if the processor multiplies it twice as fast as float32.

Weights are kept and updated in float32, and scores are computed in float32. So scores differ in the
third digit between processors, which is far less than between seeds.
"""


@dataclass(frozen=True)
class DfencoderConfig(NetworkConfig):
    """Sizes of a reference network.

    A category of w values has w + 1 codes here: there is no code for a missing value.
    """

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter, in memory order."""
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
        """Number of codes of each category: its values, and one for all others, (K,)."""
        return tuple(self.code_counts[c] - 1 for c in self.category_columns)

    @cached_property
    def embedding_widths(self) -> tuple[int, ...]:
        """Width of the embedding of each category, (K,)."""
        return tuple(embedding_width(size) for size in self.category_sizes)


def embedding_width(codes: int) -> int:
    """Return the width of the embedding of a category.

    >>> [embedding_width(codes) for codes in (0, 5, 20, 40_000)]
    [0, 4, 9, 600]
    """
    return min(600, round(1.6 * math.pow(codes, 0.56)))


class DfencoderNetwork:
    """Reconstructs every column of an event through layers of 512, 500 and 512 units.

    Args:
        config: Sizes of the network.
        weights: All weights, (P,).

    >>> config = DfencoderConfig((3, 5, 3), number_columns=(2,), hidden=8, bottleneck=4)
    >>> net = DfencoderNetwork(config, torch.zeros(config.n_parameters))
    >>> loss = net.losses(torch.ones(7, 3, dtype=torch.long), torch.zeros(7, 1))
    >>> loss[0].exp().round().tolist()      # 2 codes, 4 codes, and a correct number
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
        # Embedding value e of an event is at its column's code * width + start.
        self.embedding_columns = columns.repeat_interleave(widths)  # (E,)
        before = (sizes * widths).cumsum(0) - sizes * widths - (widths.cumsum(0) - widths)
        self.embedding_widths = widths[self.embedding_columns][:, None]  # (E, 1)
        self.embedding_starts = (
            before[self.embedding_columns] + torch.arange(len(self.embedding_columns))
        )[:, None]  # (E, 1)

    def losses(self, codes: Array, numbers: Array) -> Tensor:
        """Compute the loss of each column of (B, C) codes and (B, N) numbers, (B, C).

        Nats for a category, squared standard deviations for a number. A missing number counts as
        the mean.
        """
        codes, numbers = torch.as_tensor(codes), torch.as_tensor(numbers)
        category_codes = self.to_category_codes(codes)  # (B, K)
        positions = category_codes + self.offsets
        *_, guess = self._forward(category_codes, numbers)
        predicted, logits = self._split_output(guess)
        nats = (logits.exp() @ self.column_one_hot.to(logits.dtype)).log() - logits.gather(
            1, positions
        )
        loss = guess.new_empty(codes.shape)
        loss[:, self.config.category_columns] = nats
        loss[:, self.config.number_columns] = (predicted - numbers).square()
        return loss

    def to_category_codes(self, codes: Tensor) -> Tensor:
        """Convert (B, C) codes to the codes of the categories, (B, K); 0 for all other values.

        A missing value is another value, unless the history had some: then NAN is a value.
        """
        return codes.index_select(1, self.category_columns).clamp_(min=UNKNOWN).sub_(UNKNOWN)

    def compute_gradient(
        self,
        inputs: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        sample_weight: Tensor,
        grad: Mapping[str, Tensor],
    ) -> None:
        """Compute the gradient of the loss of `target` given `inputs`.

        The loss is the mean over the number columns, plus the loss of each category.

        Args:
            inputs: Corrupted category codes, (B, K), and numbers, (B, N).
            target: The original codes and numbers.
            sample_weight: Weight of each event, (B,).
            grad: Parts of a vector in the layout of the weights, which are overwritten; see
                `unflatten`.
        """
        *layers, guess = self._forward(*inputs)
        back = self._output_gradient(guess, target, sample_weight).to(
            self.weights.dtype
        )  # (B, N + V)
        for name, layer in zip(reversed(LAYER_NAMES), reversed(layers), strict=True):
            torch.mm(layer.T, back, out=grad[name])
            torch.sum(back, 0, out=grad[f"{name}_bias"])
            back = back @ self.parameters[name].T
            if name != LAYER_NAMES[0]:
                back *= layer.sign()  # 1 where ReLU passes; faster than a comparison
        # Sums of many small numbers need more precision than bfloat16 has.
        embedding_grad = torch.zeros(grad["embedding"].shape, dtype=sample_weight.dtype)
        values_grad = back[:, len(self.config.number_columns) :].T.to(sample_weight.dtype)  # (E, B)
        embedding_grad.index_add_(
            0, self._embedding_positions(inputs[0]).flatten(), values_grad.flatten()
        )
        grad["embedding"].copy_(embedding_grad)

    def _output_gradient(
        self, guess: Tensor, target: tuple[Tensor, Tensor], sample_weight: Tensor
    ) -> Tensor:
        predicted, probabilities = self._split_output(guess)
        one_hot = self.column_one_hot.to(probabilities.dtype)
        probabilities.exp_()
        probabilities /= (probabilities @ one_hot) @ one_hot.T
        positions = target[0] + self.offsets  # (B, K)
        probabilities.scatter_add_(
            1, positions, probabilities.new_tensor(-1.0).expand(positions.shape)
        )
        predicted -= target[1]
        predicted *= 2 / max(len(self.config.number_columns), 1)
        return guess.mul_(sample_weight[:, None])

    def _embedding_positions(self, category_codes: Tensor) -> Tensor:
        """Return the positions of an event's embedding values, (E, B)."""
        return (
            category_codes.T.contiguous()
            .index_select(0, self.embedding_columns)
            .mul_(self.embedding_widths)
            .add_(self.embedding_starts)
        )

    def _forward(self, category_codes: Tensor, numbers: Tensor) -> list[Tensor]:
        positions = self._embedding_positions(category_codes)  # (E, B)
        embedded = (
            self.parameters["embedding"].index_select(0, positions.flatten()).view(positions.shape)
        )
        layers = [torch.cat([numbers.T.to(embedded.dtype), embedded]).T]  # (B, N + E)
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


def fit_dfencoder_fingerprints(
    histories: Sequence[UserHistory],
    columns: Sequence[str],
    *,
    scaler: str = "standard",
    epochs: int = EPOCHS,
    seed: int = 0,
) -> list[Fingerprint]:
    """Train reference fingerprints on whole histories.

    There are no validation events: the baseline is the loss of the training events, and training
    runs for all epochs. The arguments are those of `fit.fit_fingerprints`.
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
    card = history.make_card(len(rows.codes), epochs, seed, encoder.names)
    # It has no risk: the mean loss is calibrated in its place.
    baseline, calibration = (
        BaselineStats.fit(losses, rows.counts),
        CalibrationSet.from_scores(scores, scores, scores),
    )
    return Fingerprint(card, encoder, net, None, baseline, calibration)


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Run torch on one thread, as `training.single_thread` does for numpy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_encoder(history: pl.DataFrame, columns: Sequence[str], scaler: str) -> Encoder:
    """Learn the columns of a history with upstream's types.

    Upstream reads logs with pandas, replaces missing values by the text `nan`, and makes a number
    column only if every cell is a number. All other columns are categories, in which every value
    has a code.

    >>> history = pl.DataFrame({"size": ["1", "20"], "code": ["1", None], "name": ["a", "b"]})
    >>> [type(c).__name__ for c in fit_encoder(history, history.columns, "standard").columns]
    ['Number', 'Category', 'Category']
    """
    columns_present = [history[name] for name in columns if name in history.columns]
    return Encoder(tuple(_fit_column(values, scaler) for values in columns_present))


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
    # pandas keeps integers as text if 64 bits cannot hold them.
    return not values.str.contains(r"^[+-]?\d{19,}$").any()


def train_dfencoder(
    rows: EncodedRows, encoder: Encoder, *, epochs: int, seed: int
) -> DfencoderNetwork:
    """Train a reference network.

    In each epoch every row is used once, in as many steps as there are batches of BATCH_SIZE
    events.
    """
    generator = torch.Generator().manual_seed(seed)
    config = make_network_config(encoder, HIDDEN_UNITS, BOTTLENECK_UNITS, DfencoderConfig)
    weights = init_dfencoder_weights(config, generator)
    working = weights.to(TRAIN_DTYPE)
    net, update = DfencoderNetwork(config, working), torch.empty_like(working)
    grad = unflatten(config, update)
    copy_of, sample_weight = replicate_rows(rows.counts)
    codes = net.to_category_codes(torch.from_numpy(rows.codes[copy_of].astype(np.int64)))
    numbers = torch.from_numpy(rows.numbers[copy_of])
    events = torch.from_numpy(np.searchsorted(copy_of, rows.inverse))
    steps = -(-len(events) // BATCH_SIZE)
    for epoch in range(epochs):
        corrupted_codes = swap_values(codes, events, generator)
        corrupted_numbers = swap_values(numbers, events, generator)
        for batch in weighted_minibatches(sample_weight, steps, generator):
            inputs, target = (
                (corrupted_codes[batch], corrupted_numbers[batch]),
                (codes[batch], numbers[batch]),
            )
            net.compute_gradient(inputs, target, sample_weight[batch] * steps, grad)
            weights.sub_(update, alpha=LEARNING_RATE * LEARNING_RATE_DECAY**epoch)
            working.copy_(weights)
    return DfencoderNetwork(config, weights.half().float())


def replicate_rows(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], Tensor]:
    """Repeat distinct rows until each represents at most MAX_WEIGHT events.

    Args:
        counts: Number of events for each distinct row, (D,).

    Returns:
        Distinct row of each training row, ascending, and its share of all events.

    >>> copy_of, weight = replicate_rows(np.array([3, 12, 1]))
    >>> copy_of.tolist(), weight.tolist()
    ([0, 1, 1, 2], [0.1875, 0.375, 0.375, 0.0625])
    """
    times = -(-counts // MAX_WEIGHT)
    copy_of = np.repeat(np.arange(len(counts)), times)
    weight = (counts / times / counts.sum())[copy_of]
    return copy_of, torch.from_numpy(weight.astype(np.float32))


def weighted_minibatches(
    sample_weight: Tensor, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Split the rows at random into batches of about the same weight.

    Rows are dealt out by weight, lightest first. The batches are in random order, because a row
    that always came last would be remembered best.
    """
    order = torch.randperm(len(sample_weight), generator=generator)
    by_weight = order[sample_weight[order].argsort(stable=True)]
    random_steps = torch.randperm(steps, generator=generator).tolist()
    return [by_weight[step::steps] for step in random_steps]


def init_dfencoder_weights(config: NetworkConfig, generator: torch.Generator) -> Tensor:
    """Return initial weights, (P,), as torch's own layers have them.

    Embeddings are normal. Weights and biases of a layer with n inputs are uniform within 1/sqrt(n).
    """
    weights = torch.rand(config.n_parameters, generator=generator)
    parameters = unflatten(config, weights)
    parameters["embedding"].normal_(generator=generator)
    for name in LAYER_NAMES:
        bound = max(parameters[name].shape[0], 1) ** -0.5
        for weight in (parameters[name], parameters[f"{name}_bias"]):
            weight.mul_(2 * bound).sub_(bound)
    return weights


def swap_values(cells: Tensor, events: Tensor, generator: torch.Generator) -> Tensor:
    """Replace some cells of each column by values of other events.

    Args:
        cells: Codes or numbers of each row, (R, columns).
        events: Row of each event.
        generator: Random numbers. A cell can be drawn twice, and can get its own value.
    """
    rows, columns = cells.shape
    swaps = round(rows * NOISE)
    shape = (swaps, columns)
    targets = torch.randint(rows, shape, generator=generator)
    sources = events[torch.randint(len(events), shape, generator=generator)]
    return cells.scatter(0, targets, cells.gather(0, sources))
