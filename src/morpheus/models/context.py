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
    total: Values | float = 0.0
    weight: float = 0.0
    last: float = -np.inf

    def over(self, values: Values, seconds: Values) -> tuple[Values, Values]:
        """The means as each event found them, itself included, and its weight in them.

        Args:
            values: Of each event, (rows, quantities).
            seconds: When it happened, (rows,).

        Returns:
            The means, (rows, quantities), and the weights, (rows,).
        """
        clock = np.maximum.accumulate(np.maximum(seconds, self.last * self.half)) / self.half
        means, weights, start = np.empty(values.shape), np.empty(len(values)), 0
        while start < len(values):
            end = int(np.searchsorted(clock, clock[start] + SPAN, side="right"))
            piece = slice(start, end)
            means[piece], weights[piece] = self._piece(values[piece], clock[piece])
            start = end
        return means, weights

    def _piece(self, values: Values, clock: Values) -> tuple[Values, Values]:
        fade, growth = 0.5 ** (clock[0] - self.last), 2.0 ** (clock - clock[0])
        totals = fade * self.total + np.cumsum(values * growth[:, None], axis=0)
        weights = fade * self.weight + np.cumsum(growth)
        self.total, self.weight = totals[-1] / growth[-1], weights[-1] / growth[-1]
        self.last = clock[-1]
        return totals / weights[:, None], growth / weights


@dataclass(frozen=True)
class Weighed:
    """Events, weighed with what came before them.

    Attributes:
        risk: Of each event, (rows,).
        parts: What each column adds to it, (4, rows, C): first by way of the event itself, as if
            nothing strange had happened before; then by way of earlier events, in the mean of the
            last hour, day and week.
    """

    risk: Values
    parts: Values


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
        return self.weighed(surprise, surprise[:, None], seconds).risk

    def weighed(self, surprise: Values, columns: Values, seconds: Values) -> Weighed:
        """The same, divided among columns.

        Each event divides its root among its columns as they divide its surprise; the means divide
        like the events in them, and the square of a mean like the mean.

        Args:
            surprise: Of each event, (rows,).
            columns: What each column adds to it, (rows, C).
            seconds: When it happened, since any fixed moment, (rows,).
        """
        roots, whole = np.sqrt(surprise)[:, None], 1 + sum(WEIGHTS.values())
        divided = np.hstack([roots, columns / np.where(roots > 0, roots, 1)])
        risk, own, past = surprise.astype(np.float64), columns.astype(np.float64), []
        for mean in self.means:
            weight, (means, share) = WEIGHTS[mean.half], mean.over(divided, seconds)
            its = share[:, None] ** 2 * columns
            risk += weight * means[:, 0] ** 2
            own += weight * its
            past.append(weight * np.maximum(means[:, :1] * means[:, 1:] - its, 0))
        return Weighed(risk / whole, np.stack([own, *past]) / whole)


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
