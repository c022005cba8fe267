"""Number of epochs: cost and detection of longer training.

Uses the trials for choosing settings, as in `ablation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import process_time

import numpy as np
from figures.ranking import average_precision, recall
from figures.table import Table

from quality.ablation import WAYS, Read, learnt
from quality.trial import Attacked

TRIED = 8, 12, 16, 25, 40
SHOWN = {"`risk`": "`risk`", "`ae_anomaly_score`": "mean loss, no context"}
"""Variant of each score."""


def table(kinds: Mapping[str, Attacked], seeds: int) -> Table:
    """Return a row per number of epochs, with means over seeds."""
    header = ["maximum epochs"]
    for kind in kinds:
        header += [f"{kind}: {shown} {what}" for shown in SHOWN for what in ("AP", "recall at 1 %")]
        header.append("training per user, CPU ms")
    found = Table(f"Epochs of training, {seeds} seeds", header)
    for epochs in TRIED:
        cells = [cell for trials in kinds.values() for cell in _cells(trials, epochs, seeds)]
        found.add(str(epochs), *(f"{cell:.3f}" if cell <= 1 else f"{cell:.0f}" for cell in cells))
    return found


def _cells(trials: Attacked, epochs: int, seeds: int) -> Iterator[float]:
    figures: list[list[float]] = []
    spent = 0.0
    for seed in range(1, seeds + 1):
        for trial, cases in trials:
            start = process_time()
            known = learnt(trial, cases, epochs=epochs, seed=seed)
            spent += process_time() - start
            reads = [Read(one, case) for one, case in zip(known, cases, strict=True)]
            figures += [_figures(read) for read in reads]
    yield from np.mean(figures, axis=0).tolist()
    yield 1000 * spent / len(figures)


def _figures(read: Read) -> list[float]:
    scores, marked = [WAYS[way](read) for way in SHOWN.values()], read.case.marked
    return [
        figure
        for score in scores
        for figure in (average_precision(score, marked), recall(score, marked, 0.01))
    ]
