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
from morpheus.models.autoencoder import Shape, views
from morpheus.models.calibration import HeldOut
from morpheus.models.evidence import Usual
from morpheus.models.fingerprint import Fingerprint, plain_losses, shape_of
from morpheus.models.learning import History
from morpheus.models.reference import HIDDEN, LAYERS, MIDDLE, Reference, ReferenceShape
from morpheus.models.training import user_seed

NOISE = 0.2
"""Swaps in an epoch, for each column, as a share of the rows; some hit the same cell."""
EPOCHS = 25
"""Passes over the rows, by default."""
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


def learn_all(
    histories: Sequence[History],
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
