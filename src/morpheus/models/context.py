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

    def over(self, values: Values, seconds: Values) -> tuple[Values, Values]:
        """The mean as each event found it, itself included, and its weight in it, each (rows,)."""
        clock = np.maximum.accumulate(np.maximum(seconds, self.last * self.half)) / self.half
        (means, weights), start = np.empty((2, len(values))), 0
        while start < len(values):
            end = int(np.searchsorted(clock, clock[start] + SPAN, side="right"))
            piece = slice(start, end)
            means[piece], weights[piece] = self._piece(values[piece], clock[piece])
            start = end
        return means, weights

    def _piece(self, values: Values, clock: Values) -> tuple[Values, Values]:
        fade, growth = 0.5 ** (clock[0] - self.last), 2.0 ** (clock - clock[0])
        totals = fade * self.total + np.cumsum(values * growth)
        weights = fade * self.weight + np.cumsum(growth)
        self.total, self.weight = totals[-1] / growth[-1], weights[-1] / growth[-1]
        self.last = clock[-1]
        return totals / weights, growth / weights


@dataclass(frozen=True)
class Weighed:
    """Events, weighed with what came before them.

    Attributes:
        risk: Of each event, (rows,).
        before: What earlier events add to it by way of the mean of the last hour, day and week:
            the risk less what it would be had nothing strange happened before, (3, rows).
    """

    risk: Values
    before: Values


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
        return self.weighed(surprise, seconds).risk

    def weighed(self, surprise: Values, seconds: Values) -> Weighed:
        """The same, and how much of it is due to what came before; arguments as of `risk`."""
        risk, roots, whole = surprise.astype(np.float64), np.sqrt(surprise), sum(WEIGHTS.values())
        before = np.empty((len(self.means), len(roots)))
        for place, mean in enumerate(self.means):
            found, own = mean.over(roots, seconds)
            risk += WEIGHTS[mean.half] * found**2
            before[place] = WEIGHTS[mean.half] * (found**2 - (own * roots) ** 2)
        return Weighed(risk / (1 + whole), np.maximum(before, 0) / (1 + whole))


@dataclass
class Recent:
    """Marked events of the last week; fed in time order, in pieces of any size."""

    seconds: Values = field(default_factory=lambda: np.empty(0))

    def before(self, marked: NDArray[np.bool_], seconds: Values) -> NDArray[np.int64]:
        """How many marked events came in the hour, the day and the week before each, (3, rows).

        Args:
            marked: Which of these events are to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).

        >>> Recent().before(np.array([True, True, False]), np.array([0.0, 9.0, 4000.0])).tolist()
        [[0, 1, 0], [0, 1, 2], [0, 1, 2]]
        """
        if not len(seconds):
            return np.zeros((len(WEIGHTS), 0), dtype=np.int64)
        clock = np.maximum.accumulate(np.maximum(seconds, self.seconds[-1:].max(initial=-np.inf)))
        known = np.concatenate([self.seconds, clock[marked]])
        upto = len(self.seconds) + np.cumsum(marked) - marked
        counts = [upto - np.searchsorted(known, clock - span) for span in WEIGHTS]
        self.seconds = known[known >= clock[-1] - max(WEIGHTS)]
        return np.stack(counts)
