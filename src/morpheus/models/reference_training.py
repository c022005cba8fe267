"""How the reference learns: as the `train-ae` of NVIDIA Morpheus 22.09, for comparison.

Noise, optimiser and schedule are its own: 25 epochs of plain gradient descent in batches of 512
events. What differs is how it is computed: over distinct rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from morpheus.features.categories import Category
from morpheus.features.encoder import Column, EncodedRows, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import NetworkConfig, unflatten
from morpheus.models.calibration import CalibrationSet
from morpheus.models.evidence import BaselineStats
from morpheus.models.fingerprint import Fingerprint, raw_losses, make_network_config
from morpheus.models.learning import UserHistory
from morpheus.models.reference import HIDDEN_UNITS, LAYER_NAMES, BOTTLENECK_UNITS, DfencoderNetwork, DfencoderConfig
from morpheus.models.training import derive_user_seed

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
        net = train_dfencoder(rows, encoder, epochs=epochs, seed=derive_user_seed(seed, history.user))
        losses = raw_losses(net, rows)
    scores = losses.mean(1, dtype=np.float64)[rows.inverse]
    card, seconds = history.make_card(len(rows.codes), epochs, seed), history.seconds
    # It has no risk of its own to calibrate: the mean loss stands for it.
    usual, held_out = BaselineStats.fit(losses, rows.counts), CalibrationSet.from_scores(scores, scores, seconds)
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


def train_dfencoder(rows: EncodedRows, encoder: Encoder, *, epochs: int, seed: int) -> DfencoderNetwork:
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


def weighted_minibatches(sample_weight: Tensor, steps: int, generator: torch.Generator) -> list[Tensor]:
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
