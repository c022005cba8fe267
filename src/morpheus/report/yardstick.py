"""How high a score is for its user: the measure that all users of a page have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from morpheus.columns import RISK
from morpheus.models.portrait import Portrait

FAR = 4.0
"""Standard deviations above a user's mean from which a score is worth a look."""
SEVERITIES = ((4.0, "critical"), (2.0, "high"), (1.0, "medium"))
"""Least level of each severity; below all of them it is `low`."""


def severity(level: float) -> str:
    """What a level is called.

    >>> [severity(level) for level in (0.5, 1.0, 3.9, 12.0)]
    ['low', 'medium', 'high', 'critical']
    """
    return next((name for least, name in SEVERITIES if level >= least), "low")


@dataclass(frozen=True)
class Yardstick:
    """Turns a user's scores into levels: 0 is usual, 1 as high as it gets on ordinary days.

    Attributes:
        usual: The score whose level is 0.
        reach: The score whose level is 1.
    """

    usual: float
    reach: float

    @classmethod
    def of(cls, portrait: Portrait | None, ranking: str) -> Self | None:
        """Measure by a user's held-out events.

        Level 1 is the highest `risk` of any of them, or `FAR` standard deviations above the mean
        of the others; None if nothing is known of them.
        """
        if ranking == "zscore":
            return cls(0.0, FAR)
        if portrait is None:
            return None
        if ranking == RISK:
            return cls(0.0, max(portrait.risks[-1], 1e-6))
        return cls(portrait.usual, portrait.usual + FAR * max(portrait.spread, 1e-6))

    def levels(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of scores, at least 0; of no score, no level.

        >>> Yardstick(1.0, 3.0).levels(np.array([0.0, 2.0, 7.0])).tolist()
        [0.0, 0.5, 3.0]
        """
        return np.asarray(np.maximum((scores - self.usual) / (self.reach - self.usual), 0.0))
