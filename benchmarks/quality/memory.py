"""Effect of temporal context alone: a score combined with the user's last hour and month.

`risk` includes earlier events. Detectors that score single events do not. So the effect of the
context must be separated from the effect of the model. The context is that of `risk`, without the
parts that need columns or a typical hour. It has no settings here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from morpheus.models.temporal import TemporalContext
from quality.trial import Trial, times

Floats = NDArray[np.float64]


def weighed(trial: Trial, plain: Floats) -> Floats:
    """Return each row's score combined with the user's earlier scores.

    Scores below 0 count as 0, because only unusual events add to the context.

    Raises:
        ValueError: If a user's events are not sorted by time.
    """
    found, seconds = np.empty(len(plain)), times(trial.scored).dt.epoch("us").to_numpy() / 1e6
    for user, span in trial.spans.items():
        if (np.diff(seconds[span]) < 0).any():
            raise ValueError(f"{trial.name}: the events of {user} are not in the order of time")
        found[span] = _remembered(np.maximum(plain[span], 0), seconds[span])
    return found


def _remembered(surprise: Floats, seconds: Floats) -> Floats:
    return TemporalContext().compute_risk(surprise, surprise, seconds)
