"""Scorers: our pipeline, and other detectors with the same rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from morpheus.stages.add_scores import SCORE_FUNCTIONS
from quality import bayes, chain, frequencies, rivals
from quality.judge import Verdict
from quality.trial import Trial

Floats = NDArray[np.float64]
INCIDENT = "incident_score"
"""Our label for days: the highest risk of the user's day so far."""
WANTED = ("risk", INCIDENT, "ae_anomaly_score", "max_abs_z", "mean_abs_z")
"""Our labels to show, if they exist."""
SESSION_MEAN = "bayes-session"
"""The rival whose score of a day is the mean of the day's events."""
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


def labels() -> list[str]:
    """Return our labels to show. The first one is compared."""
    return [label for label in WANTED if label in SCORE_FUNCTIONS]


def ours(trial: Trial, seed: int, threads: int, extra: Sequence[str] = ()) -> dict[str, Floats]:
    """Return our scores of each row of `trial.scored`, and other labels that exist."""
    wanted = [*labels(), *(label for label in extra if label in SCORE_FUNCTIONS)]
    output = chain.output(trial, wanted, seed=seed, threads=threads)
    return {f"`{label}`": output[label].cast(float).to_numpy() for label in wanted}


def theirs(trial: Trial, seed: int, chosen: Sequence[str]) -> dict[str, Floats]:
    """Return the other detectors' scores of each row of `trial.scored`, by name."""
    return {word: RIVALS[word][1](trial, seed) for word in chosen}


def shown(known: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the same by title."""
    return {RIVALS[word][0]: each for word, each in known.items()}


def of_days(trial: Trial, scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the scores of days, for scorers that have their own.

    Args:
        trial: The trial.
        scores: Scores of events, by a label of ours, a rival's word or a rival's title.
    """
    means = {name: bayes.days for name in (SESSION_MEAN, RIVALS[SESSION_MEAN][0]) if name in scores}
    own = {name: score for name, score in scores.items() if name == f"`{INCIDENT}`"}
    return own | {name: mean(trial) for name, mean in means.items()}


def judge(verdict: Verdict, scores: Mapping[str, Floats]) -> dict[str, Mapping[str, float]]:
    """Return the figures of each scorer."""
    days = of_days(verdict.trial, scores)
    return {name: verdict.figures(score, days.get(name)) for name, score in scores.items()}
