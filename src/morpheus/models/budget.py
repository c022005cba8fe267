"""How far above their own usual users must be, for so many alerts a day among all of them.

An alert is a run of a user's events, with no hour's pause in it, of which at least one is above
the user's threshold: their usual risk and a margin, which is the same for all. How often each
margin was passed on held-out days says how often it will be on days like these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.models.calibration import HeldOut

SURE = 1.96
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

LONGEST = 4.0
"""Times the held-out days over which alerts a day are taken to grow."""


@dataclass(frozen=True)
class Level:
    """How risky a user's held-out days were.

    Attributes:
        usual: Mean risk of an event.
        margins: Margin of each run of events, the highest first, (runs,).
        days: Days that these are of.
    """

    usual: float
    margins: NDArray[np.float64]
    days: int

    @classmethod
    def of(cls, held_out: HeldOut) -> Level:
        """Read a calibration."""
        usual = float(held_out.risks.mean())
        return cls(usual, held_out.peaks.astype(np.float64) - usual, held_out.days)

    def alone(self, alerts: float) -> float:
        """Least margin at which this user alone has at most so many alerts a day.

        >>> Level(1.0, np.array([5.0, 3.0, 2.0]), days=2).alone(0.5)
        3.0
        """
        allowed = math.floor(alerts * self.days + 1e-9)
        return float(self.margins[allowed]) if allowed < len(self.margins) else -math.inf

    def expected(self, margin: float, days: float) -> float:
        """Alerts in so many days after learning, at a margin.

        A change that lasts, such as another computer, is met on every later day: alerts a day grow
        with the days that have passed, beyond those that were held out.
        """
        rate = float(np.count_nonzero(self.margins > margin)) / self.days
        return rate * days * self.lasting(days)

    def lasting(self, days: float) -> float:
        """How many times as many alerts a day there are in so many days as in those held out."""
        return min(max(days / self.days, 1.0), LONGEST)


def margin(levels: Sequence[Level], days: Sequence[float], alerts: float) -> float:
    """Least margin at which all users together have at most so many alerts a day.

    Args:
        levels: Those of the users.
        days: How many days of each there are now.
        alerts: Wanted, a day.

    >>> calm, lively = Level(0.0, np.array([1.0]), 1), Level(0.0, np.array([9.0, 4.0, 2.0]), 1)
    >>> margin([calm, lively], [1, 1], alerts=2)
    2.0
    """
    if not levels:
        return math.inf
    each = [level.lasting(span) / level.days for level, span in zip(levels, days, strict=True)]
    margins = np.concatenate([level.margins for level in levels])
    weights = np.repeat(each, [len(level.margins) for level in levels])
    order = np.argsort(-margins, kind="stable")
    over = np.flatnonzero(np.cumsum(weights[order]) > alerts + 1e-9)
    return float(margins[order][over[0]]) if len(over) else -math.inf


@dataclass(frozen=True)
class Forecast:
    """How many alerts are to be expected, and the interval that holds 95 % of such runs."""

    alerts: float
    low: float
    high: float

    @classmethod
    def of(cls, levels: Sequence[Level], days: Sequence[float], margin: float) -> Forecast:
        """Go by held-out days.

        Alerts come in clusters, one a user: the variance of a sum of clusters at random is the sum
        of their squares. It counts twice, for the held-out days were such a draw themselves.

        Args:
            levels: Those of the users.
            days: How many days of each there are now.
            margin: How far above their usual they must be.
        """
        pairs = zip(levels, days, strict=True)
        each = np.array([level.expected(margin, span) for level, span in pairs])
        mean = float(each.sum())
        off = SURE * math.sqrt(2 * float((each**2).sum()) + mean)
        return cls(mean, max(mean - off, 0.0), mean + off)
