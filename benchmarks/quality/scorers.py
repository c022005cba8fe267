"""Who scores: ours by the chain, rivals by the same rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from morpheus.stages.add_scores import SCORE_FUNCTIONS
from quality import chain, frequencies, memory, rivals
from quality.trial import Trial

Floats = NDArray[np.float64]
WANTED = ("risk", "ae_anomaly_score", "max_abs_z", "mean_abs_z")
"""Labels of ours that are shown, as far as there are such."""
RIVALS: Mapping[str, tuple[str, Callable[[Trial, int], Floats]]] = {
    "frequencies-sum": (
        "column frequencies, summed",
        partial(frequencies.scores, of=frequencies.summed),
    ),
    "frequencies-z": (
        "column frequencies, largest held-out z",
        partial(frequencies.scores, of=frequencies.largest),
    ),
    "dfencoder": ("dfencoder 0.0.42", partial(rivals.scores, rival="dfencoder")),
    "forest": ("IsolationForest, one-hot", partial(rivals.scores, rival="forest")),
    "ecod": ("ECOD, one-hot", partial(rivals.scores, rival="ecod")),
}
"""Word on the command line -> what it is called, and its scores of a trial, by seed.

Each looks at one event at a time: no score depends on the other events that are scored, but that of
`ecod` by its ranks.
"""
REMEMBERED = ("frequencies-sum", "frequencies-z")
"""Those that are shown with `risk`'s memory too."""


def labels() -> list[str]:
    """The labels of ours that are shown; the first is the one that is compared."""
    return [label for label in WANTED if label in SCORE_FUNCTIONS]


def ours(trial: Trial, seed: int, threads: int) -> dict[str, Floats]:
    """Our scores of each row of `trial.scored`."""
    output = chain.output(trial, labels(), seed=seed, threads=threads)
    return {f"`{label}`": output[label].cast(float).to_numpy() for label in labels()}


def theirs(trial: Trial, seed: int, chosen: Sequence[str]) -> dict[str, Floats]:
    """The rivals' scores of each row of `trial.scored`, by their words."""
    return {word: RIVALS[word][1](trial, seed) for word in chosen}


def shown(trial: Trial, known: Mapping[str, Floats]) -> dict[str, Floats]:
    """The same by their names, behind what our memory makes of some: these are no rivals."""
    named = {RIVALS[word][0]: each for word, each in known.items()}
    remembered = {
        f"{RIVALS[word][0]}, with `risk`'s context": memory.weighed(trial, known[word])
        for word in REMEMBERED
        if word in known
    }
    return remembered | named
