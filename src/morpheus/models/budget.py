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

from morpheus.models.calibration import CalibrationSet

Z95 = 1.96
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

MAX_DRIFT = 4.0
"""Times the held-out days over which alerts a day are taken to grow."""


@dataclass(frozen=True)
class UserThreshold:
    """How risky a user's held-out days were.

    Attributes:
        mean_risk: Mean risk of an event.
        margins: Margin of each run of events, the highest first, (runs,).
        days: Days that these are of.
    """

    mean_risk: float
    margins: NDArray[np.float64]
    days: int

    @classmethod
    def from_calibration(cls, calibration: CalibrationSet) -> UserThreshold:
        """Read a calibration."""
        usual = float(calibration.risks.mean())
        return cls(usual, calibration.session_maxima.astype(np.float64) - usual, calibration.days)

    def threshold_for(self, alerts_per_day: float) -> float:
        """Least margin at which this user alone has at most so many alerts a day.

        >>> UserThreshold(1.0, np.array([5.0, 3.0, 2.0]), days=2).serial_threshold_bytes(0.5)
        3.0
        """
        allowed = math.floor(alerts_per_day * self.days + 1e-9)
        return float(self.margins[allowed]) if allowed < len(self.margins) else -math.inf

    def expected_alerts(self, margin: float, days: float) -> float:
        """Alerts in so many days after learning, at a margin.

        A change that lasts, such as another computer, is met on every later day: alerts a day grow
        with the days that have passed, beyond those that were held out.
        """
        rate = float(np.count_nonzero(self.margins > margin)) / self.days
        return rate * days * self.drift_factor(days)

    def drift_factor(self, days: float) -> float:
        """How many times as many alerts a day there are in so many days as in those held out."""
        return min(max(days / self.days, 1.0), MAX_DRIFT)


def global_margin(thresholds: Sequence[UserThreshold], days: Sequence[float], alerts_per_day: float) -> float:
    """Least margin at which all users together have at most so many alerts a day.

    Args:
        thresholds: Those of the users.
        days: How many days of each there are now.
        alerts_per_day: Wanted, a day.

    >>> calm, lively = UserThreshold(0.0, np.array([1.0]), 1), UserThreshold(0.0, np.array([9.0, 4.0, 2.0]), 1)
    >>> global_margin([calm, lively], [1, 1], alerts=2)
    2.0
    """
    if not thresholds:
        return math.inf
    each = [level.drift_factor(span) / level.days for level, span in zip(thresholds, days, strict=True)]
    margins = np.concatenate([level.margins for level in thresholds])
    weights = np.repeat(each, [len(level.margins) for level in thresholds])
    order = np.argsort(-margins, kind="stable")
    over = np.flatnonzero(np.cumsum(weights[order]) > alerts_per_day + 1e-9)
    return float(margins[order][over[0]]) if len(over) else -math.inf


@dataclass(frozen=True)
class AlertForecast:
    """How many alerts are to be expected, and the interval that holds 95 % of such runs."""

    alerts: float
    low: float
    high: float

    @classmethod
    def from_thresholds(cls, thresholds: Sequence[UserThreshold], days: Sequence[float], margin: float) -> AlertForecast:
        """Go by held-out days.

        Alerts come in clusters, one a user: the variance of a sum of clusters at random is the sum
        of their squares. It counts twice, for the held-out days were such a draw themselves.

        Args:
            thresholds: Those of the users.
            days: How many days of each there are now.
            margin: How far above their usual they must be.
        """
        pairs = zip(thresholds, days, strict=True)
        each = np.array([level.expected_alerts(margin, span) for level, span in pairs])
        mean = float(each.sum())
        off = Z95 * math.sqrt(2 * float((each**2).sum()) + mean)
        return cls(mean, max(mean - off, 0.0), mean + off)
