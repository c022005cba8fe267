"""What a score gains by memory alone: weighed with the user's last hour and last day.

`risk` remembers what came before an event. A rival that looks at one event at a time has no such
help, so what memory is worth has to be told from what the model is worth. Half-lives and weight are
those of `risk`; none is chosen here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quality.trial import Trial, times

HALF_LIVES = (3_600.0, 86_400.0)
"""Seconds after which an event counts half."""
WEIGHT = 4.0
"""Weight of each mean, where that of the event itself is 1."""
Floats = NDArray[np.float64]


def weighed(trial: Trial, plain: Floats) -> Floats:
    """A score of each row of `trial.scored`, weighed with those of its user before it.

    Raises:
        ValueError: The events of a user are not in the order of time.
    """
    found, seconds = np.empty(len(plain)), times(trial.scored).dt.epoch("us").to_numpy() / 1e6
    for user, span in trial.spans.items():
        if (np.diff(seconds[span]) < 0).any():
            raise ValueError(f"{trial.name}: the events of {user} are not in the order of time")
        past = sum(faded(plain[span], seconds[span], half) for half in HALF_LIVES)
        found[span] = (plain[span] + WEIGHT * past) / (1 + WEIGHT * len(HALF_LIVES))
    return found


def faded(values: Floats, seconds: Floats, half: float) -> Floats:
    """The mean of each value and those before it, which count half after every `half` seconds.

    >>> faded(np.array([3.0, 0.0, 0.0]), np.array([0.0, 10.0, 1e6]), 10.0).tolist()
    [3.0, 1.0, 0.0]
    """
    means = np.empty(len(values))
    total = weight = 0.0
    fades = 0.5 ** (np.diff(seconds, prepend=seconds[:1]) / half)
    for row, (value, fade) in enumerate(zip(values, fades, strict=True)):
        total, weight = total * fade + value, weight * fade + 1
        means[row] = total / weight
    return means
