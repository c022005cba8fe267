"""Who scores: ours by the chain, rivals by the same rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from morpheus.stages.add_scores import LABELS
from quality import chain, frequencies, memory, rivals
from quality.trial import Trial

Floats = NDArray[np.float64]
WANTED = ("risk", "ae_anomaly_score", "max_abs_z", "mean_abs_z")
"""Labels of ours that are shown, as far as there are such."""
SUMMED = partial(frequencies.scores, of=frequencies.summed)
LARGEST = partial(frequencies.scores, of=frequencies.largest)
RIVALS: Mapping[str, tuple[str, Callable[[Trial, int], Floats]]] = {
    "frequencies-sum": ("column frequencies, summed", SUMMED),
    "frequencies-z": ("column frequencies, largest held-out z", LARGEST),
    "memory-sum": ("the sum, with `risk`'s memory", partial(memory.scores, of=SUMMED)),
    "memory-z": ("the largest z, with `risk`'s memory", partial(memory.scores, of=LARGEST)),
    "dfencoder": ("dfencoder 0.0.42", partial(rivals.scores, rival="dfencoder")),
    "forest": ("IsolationForest, one-hot", partial(rivals.scores, rival="forest")),
    "ecod": ("ECOD, one-hot", partial(rivals.scores, rival="ecod")),
}
"""Word on the command line -> what it is called, and its scores of a trial, by seed."""


def labels() -> list[str]:
    """The labels of ours that are shown; the first is the one that is compared."""
    return [label for label in WANTED if label in LABELS]


def ours(trial: Trial, seed: int, threads: int) -> dict[str, Floats]:
    """Our scores of each row of `trial.scored`."""
    output = chain.output(trial, labels(), seed=seed, threads=threads)
    return {f"`{label}`": output[label].cast(float).to_numpy() for label in labels()}


def theirs(trial: Trial, seed: int, chosen: Sequence[str]) -> dict[str, Floats]:
    """The rivals' scores of each row of `trial.scored`."""
    named = (RIVALS[word] for word in chosen)
    return {name: score(trial, seed) for name, score in named}
