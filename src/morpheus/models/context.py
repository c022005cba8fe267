"""What came just before: somebody else at the keyboard stays there for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

HOUR, MONTH = 3600.0, 30 * 86400.0
"""Seconds after which an event counts half in the mean."""
HOUR_WEIGHT, MONTH_WEIGHT = 6.0, 4.0
"""Weights of these means, where that of the event itself is 1; see docs/decisions/005-risk.md."""
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
class Strange:
    """How strange events are.

    Attributes:
        total: Each event, (rows,).
        columns: What each column adds to it, (rows, C); with C = 0 nothing is divided.
    """

    total: Values
    columns: Values

    @classmethod
    def of(cls, columns: Values) -> Strange:
        """Add up columns, (rows, C)."""
        return cls(columns.sum(1), columns)

    @classmethod
    def undivided(cls, total: Values) -> Strange:
        """Say nothing of columns."""
        return cls(total, np.empty((len(total), 0)))

    def at(self, rows: NDArray[np.intp]) -> Strange:
        """Some of the events, or some of them several times."""
        return Strange(self.total[rows], self.columns[rows])


@dataclass(frozen=True)
class Weighed:
    """Events, weighed with what came before them.

    Attributes:
        risk: Of each event, (rows,).
        parts: What each column adds to it, (3, rows, C): first by way of the event itself, as if
            nothing strange had happened before; then by way of earlier events, in the mean of the
            last hour and of the last month.
    """

    risk: Values
    parts: Values


@dataclass
class Context:
    """The decayed past of one user; fed in time order, in pieces of any size."""

    hour: Decayed = field(default_factory=lambda: Decayed(HOUR))
    month: Decayed = field(default_factory=lambda: Decayed(MONTH))

    def risk(
        self, surprise: Values, shared: Values, seconds: Values, usual_hour: float = 0.0
    ) -> Values:
        """Weigh each event with what came before it, (rows,).

        Roots are averaged, and the mean is squared, so that what lasts weighs more than what is
        over: ten odd events in an hour count for more than a single one of ten times the oddness.
        Of the hour, only what is above the user's usual one counts: some always come in bursts. Of
        the month, only what others have too: new things that nobody else has are rather a change
        of habits than somebody else.

        Args:
            surprise: Of each event, (rows,).
            shared: The same, by way of values that others have too, (rows,).
            seconds: When it happened, since any fixed moment, (rows,).
            usual_hour: What the hour's mean of roots usually stays below.

        >>> nothing, seconds = np.zeros(3), np.array([0.0, 1.0, 1e9])
        >>> Context().risk(np.array([9.0, 0.0, 0.0]), nothing, seconds).round(2).tolist()
        [63.0, 13.5, 0.0]
        """
        strange, lasting = Strange.undivided(surprise), Strange.undivided(shared)
        return self.weighed(strange, lasting, seconds, usual_hour).risk

    def weighed(
        self, strange: Strange, shared: Strange, seconds: Values, usual_hour: float = 0.0
    ) -> Weighed:
        """The same, divided among columns.

        Each event divides its root among its columns as they divide its surprise; the means divide
        like the events in them, and the square of a mean like the mean.

        Args:
            strange: Events.
            shared: The same, by way of values that others have too.
            seconds: When they happened, since any fixed moment, (rows,).
            usual_hour: What the hour's mean of roots usually stays below.
        """
        hour = Lasting.of(self.hour, strange, seconds, usual_hour)
        month = Lasting.of(self.month, shared, seconds, 0.0)
        own = strange.columns + HOUR_WEIGHT * hour.own + MONTH_WEIGHT * month.own
        past = HOUR_WEIGHT * hour.past, MONTH_WEIGHT * month.past
        risk = strange.total + HOUR_WEIGHT * hour.total + MONTH_WEIGHT * month.total
        return Weighed(risk, np.stack([own, *past]))


@dataclass(frozen=True)
class Lasting:
    """What a mean of the last events adds to each.

    Attributes:
        total: In all, (rows,).
        own: By way of the event itself, as if nothing had come before, (rows, C).
        past: By way of those before it, (rows, C).
    """

    total: Values
    own: Values
    past: Values

    @classmethod
    def of(cls, mean: Decayed, strange: Strange, seconds: Values, usual: float) -> Lasting:
        """Feed a mean with roots, and square what it is above the usual."""
        roots = np.sqrt(strange.total)[:, None]
        divided = np.hstack([roots, strange.columns / np.where(roots > 0, roots, 1)])
        means, share = mean.over(divided, seconds)
        alone = share[:, None] * divided
        whole, own = (_per_root(one[:, :1], usual) * one[:, 1:] for one in (means, alone))
        return cls(np.maximum(means[:, 0] - usual, 0) ** 2, own, np.maximum(whole - own, 0))


def _per_root(level: Values, usual: float) -> Values:
    """The square of what a level is above the usual, for each unit of the level."""
    return np.asarray(np.maximum(level - usual, 0) ** 2 / np.where(level > 0, level, 1))


@dataclass
class Recent:
    """Marked events of the last month; fed in time order, in pieces of any size."""

    seconds: Values = field(default_factory=lambda: np.empty(0))

    def before(self, marked: NDArray[np.bool_], seconds: Values) -> NDArray[np.int64]:
        """How many marked events came in the hour and in the month before each, (2, rows).

        Args:
            marked: Which of these events are to be counted, (rows,).
            seconds: When they happened, since any fixed moment, (rows,).

        >>> Recent().before(np.array([True, True, False]), np.array([0.0, 9.0, 4000.0])).tolist()
        [[0, 1, 0], [0, 1, 2]]
        """
        if not len(seconds):
            return np.zeros((2, 0), dtype=np.int64)
        clock = np.maximum.accumulate(np.maximum(seconds, self.seconds[-1:].max(initial=-np.inf)))
        known = np.concatenate([self.seconds, clock[marked]])
        upto = len(self.seconds) + np.cumsum(marked) - marked
        counts = [upto - np.searchsorted(known, clock - span) for span in (HOUR, MONTH)]
        self.seconds = known[known >= clock[-1] - MONTH]
        return np.stack(counts)
