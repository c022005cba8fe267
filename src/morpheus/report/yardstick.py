"""How high a score is for its user: the measure that all users of a page have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from morpheus.columns import RISK
from morpheus.models.portrait import ModelSummary

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
    """Turns scores into levels: 0 is usual, 1 as high as it gets on ordinary days.

    Attributes:
        usual: The score whose level is 0.
        reach: The score whose level is 1.
    """

    usual: float
    reach: float

    @classmethod
    def of(cls, portrait: ModelSummary | None, ranking: str) -> Self | None:
        """Measure by a user's held-out events: level 1 is `FAR` deviations above their mean.

        None where scores need no measure of each user, or nothing is known of them.
        """
        if ranking == "zscore":
            return cls(0.0, FAR)
        if ranking == RISK or portrait is None:
            return None
        return cls(portrait.usual, portrait.usual + FAR * max(portrait.spread, 1e-6))

    @classmethod
    def common(cls, portraits: Sequence[ModelSummary]) -> Self | None:
        """Measure `risk`, which ranks the events of all users in one list.

        Level 1 is the highest risk that the median user came to on held-out days; None without any.
        """
        highest = [portrait.risks[-1] for portrait in portraits]
        return cls(0.0, max(float(np.median(highest)), 1e-6)) if highest else None

    def levels(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of scores, at least 0; of no score, no level.

        >>> Yardstick(1.0, 3.0).levels(np.array([0.0, 2.0, 7.0])).tolist()
        [0.0, 0.5, 3.0]
        """
        return np.asarray(np.maximum((scores - self.usual) / (self.reach - self.usual), 0.0))
