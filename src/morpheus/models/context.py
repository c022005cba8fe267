"""What came just before: somebody else at the keyboard stays there for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WEIGHTS = {3600.0: 4.0, 86400.0: 4.0, 7 * 86400.0: 2.0}
"""Weights of the last hour, day and week, where that of the event itself is 1.

By the seconds after which an event counts half in the mean; see docs/decisions/005-risk.md.
"""
SPAN = 40.0
"""Half-lives computed at a time: so far, powers of two are exact enough in a double."""

Values = NDArray[np.float64]


@dataclass
class Decayed:
    """Mean of the events so far, each of which counts half as much after every `half` seconds."""

    half: float
    total: float = 0.0
    weight: float = 0.0
    last: float = -np.inf

    def over(self, values: Values, seconds: Values) -> Values:
        """The mean as each event found it, itself included, (rows,)."""
        clock = np.maximum.accumulate(np.maximum(seconds, self.last * self.half)) / self.half
        means, start = np.empty(len(values)), 0
        while start < len(values):
            end = int(np.searchsorted(clock, clock[start] + SPAN, side="right"))
            means[start:end] = self._piece(values[start:end], clock[start:end])
            start = end
        return means

    def _piece(self, values: Values, clock: Values) -> Values:
        fade, growth = 0.5 ** (clock[0] - self.last), 2.0 ** (clock - clock[0])
        totals = fade * self.total + np.cumsum(values * growth)
        weights = fade * self.weight + np.cumsum(growth)
        self.total, self.weight = totals[-1] / growth[-1], weights[-1] / growth[-1]
        self.last = clock[-1]
        return np.asarray(totals / weights)


@dataclass
class Context:
    """The decayed past of one user; fed in time order, in pieces of any size."""

    means: tuple[Decayed, ...] = field(
        default_factory=lambda: tuple(Decayed(half) for half in WEIGHTS)
    )

    def risk(self, surprise: Values, seconds: Values) -> Values:
        """Weigh each event with what came before it, (rows,).

        Roots are averaged, and the mean is squared, so that what lasts weighs more than what is
        over: ten odd events in a day count for more than a single one of ten times the oddness.

        Args:
            surprise: Of each event, (rows,).
            seconds: When it happened, since any fixed moment, (rows,).

        >>> Context().risk(np.array([9.0, 0.0, 0.0]), np.array([0.0, 1.0, 1e9])).round(1).tolist()
        [9.0, 2.0, 0.0]
        """
        risk, roots = surprise.astype(np.float64), np.sqrt(surprise)
        for mean in self.means:
            risk += WEIGHTS[mean.half] * mean.over(roots, seconds) ** 2
        return np.asarray(risk / (1 + sum(WEIGHTS.values())))
