"""What a score gains by memory alone: weighed with the user's last hour and month.

`risk` remembers what came before an event. A rival that looks at one event at a time has no such
help, so what memory is worth has to be told from what the model is worth. The memory is that of
`risk` itself, as far as it needs no columns and no usual hour; nothing is chosen here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from morpheus.models.temporal import TemporalContext
from quality.trial import Trial, times

Floats = NDArray[np.float64]


def weighed(trial: Trial, plain: Floats) -> Floats:
    """A score of each row of `trial.scored`, weighed with those of its user before it.

    What is below 0 counts as 0: memory is of what is unusual.

    Raises:
        ValueError: The events of a user are not in the order of time.
    """
    found, seconds = np.empty(len(plain)), times(trial.scored).dt.epoch("us").to_numpy() / 1e6
    for user, span in trial.spans.items():
        if (np.diff(seconds[span]) < 0).any():
            raise ValueError(f"{trial.name}: the events of {user} are not in the order of time")
        found[span] = _remembered(np.maximum(plain[span], 0), seconds[span])
    return found


def _remembered(surprise: Floats, seconds: Floats) -> Floats:
    return TemporalContext().compute_risk(surprise, surprise, seconds)
