"""Scorers: our pipeline, and other detectors with the same rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from morpheus.stages.add_scores import SCORE_FUNCTIONS
from quality import bayes, chain, frequencies, memory, rivals
from quality.trial import Trial

Floats = NDArray[np.float64]
WANTED = ("risk", "ae_anomaly_score", "max_abs_z", "mean_abs_z")
"""Our labels to show, if they exist."""
RIVALS: Mapping[str, tuple[str, Callable[[Trial, int], Floats]]] = {
    "frequencies-sum": (
        "column frequencies, summed",
        partial(frequencies.scores, of=frequencies.summed),
    ),
    "frequencies-z": (
        "column frequencies, largest held-out z",
        partial(frequencies.scores, of=frequencies.largest),
    ),
    "bayes": ("naive Bayes, self against others", partial(bayes.scores, of=bayes.events)),
    "bayes-session": (
        "naive Bayes, mean of the session so far",
        partial(bayes.scores, of=bayes.sessions),
    ),
    "bigrams": ("action pairs, self against others", partial(bayes.scores, of=bayes.bigrams)),
    "dfencoder": ("dfencoder 0.0.42", partial(rivals.scores, rival="dfencoder")),
    "forest": ("IsolationForest, one-hot", partial(rivals.scores, rival="forest")),
    "ecod": ("ECOD, one-hot", partial(rivals.scores, rival="ecod")),
}
"""Command line name -> title, and scores of a trial by seed.

Each scores single events: no score depends on other scored events, except the ranks of `ecod`,
`bayes-session` and `bigrams`.
"""
WITH_CONTEXT = ("frequencies-sum", "frequencies-z")
"""Detectors that are also shown with the temporal context of `risk`."""


def labels() -> list[str]:
    """Return our labels to show. The first one is compared."""
    return [label for label in WANTED if label in SCORE_FUNCTIONS]


def ours(trial: Trial, seed: int, threads: int) -> dict[str, Floats]:
    """Return our scores of each row of `trial.scored`."""
    output = chain.output(trial, labels(), seed=seed, threads=threads)
    return {f"`{label}`": output[label].cast(float).to_numpy() for label in labels()}


def theirs(trial: Trial, seed: int, chosen: Sequence[str]) -> dict[str, Floats]:
    """Return the other detectors' scores of each row of `trial.scored`, by name."""
    return {word: RIVALS[word][1](trial, seed) for word in chosen}


def shown(trial: Trial, known: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the same by title, after some with our temporal context, which do not compete."""
    named = {RIVALS[word][0]: each for word, each in known.items()}
    remembered = {
        f"{RIVALS[word][0]}, with `risk`'s context": memory.weighed(trial, known[word])
        for word in WITH_CONTEXT
        if word in known
    }
    return remembered | named
