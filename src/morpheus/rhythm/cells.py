"""Events over time in a few numbers: how many there were in each cell, and how high they scored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

HOUR = 3600
"""Seconds of a cell, to begin with."""


@dataclass(frozen=True)
class Cells:
    """One user's events, cell by cell; cells without events are left out.

    Attributes:
        at: Which cells, counted from 1970, ascending, (cells,).
        events: Events in each, (cells,).
        worst: The highest score in each, -inf where none has a score, (cells,).
        flagged: Events in each that break the user's rhythm, (cells,).
    """

    at: NDArray[np.int64]
    events: NDArray[np.int64]
    worst: NDArray[np.float64]
    flagged: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        seconds: NDArray[np.float64],
        scores: NDArray[np.float64],
        flagged: NDArray[np.bool_],
        step: int = HOUR,
    ) -> Cells:
        """Count events, (rows,) each.

        Args:
            seconds: When they happened, since 1970.
            scores: How unusual they are; NaN without a score.
            flagged: Whether they break the rhythm.
            step: Seconds of a cell.

        >>> cells = Cells.of(np.array([0.0, 10, 7300]), np.array([1, 5, np.nan]), np.zeros(3, bool))
        >>> cells.at.tolist(), cells.events.tolist(), cells.worst.tolist()
        ([0, 2], [2, 1], [5.0, -inf])
        """
        at = np.floor_divide(seconds, step).astype(np.int64)
        worst = np.where(np.isnan(scores), -np.inf, scores)
        return _merged(at, np.ones(len(at), np.int64), worst, flagged.astype(np.int64))

    @classmethod
    def none(cls) -> Cells:
        """No events."""
        return cls.of(np.empty(0), np.empty(0), np.empty(0, np.bool_))

    def joined(self, other: Cells) -> Cells:
        """These events and others of the same user, in cells as wide."""
        return _merged(
            np.concatenate([self.at, other.at]),
            np.concatenate([self.events, other.events]),
            np.concatenate([self.worst, other.worst]),
            np.concatenate([self.flagged, other.flagged]),
        )

    def coarser(self, factor: int) -> Cells:
        """The same events in cells so many times as wide."""
        return _merged(self.at // factor, self.events, self.worst, self.flagged)


def _merged(
    at: NDArray[np.int64],
    events: NDArray[np.int64],
    worst: NDArray[np.float64],
    flagged: NDArray[np.int64],
) -> Cells:
    """Put together what lies in the same cell."""
    if not len(at):
        return Cells(at, events, worst, flagged)
    order = np.argsort(at, kind="stable")
    cells, starts = np.unique(at[order], return_index=True)
    return Cells(
        cells,
        np.add.reduceat(events[order], starts),
        np.maximum.reduceat(worst[order], starts),
        np.add.reduceat(flagged[order], starts),
    )


@dataclass
class Lanes:
    """The cells of many users, in bounded memory: where there are too many, all become wider.

    Attributes:
        most: Cells kept, about, of all users together.
        step: Seconds of a cell.
        users: The cells of each user.
    """

    most: int = 2_000_000
    step: int = HOUR

    def __post_init__(self) -> None:
        self.users: dict[str | None, Cells] = {}
        self._pending: dict[str | None, list[Cells]] = {}
        self._held = 0

    def add(self, user: str | None, cells: Cells) -> None:
        """Add events of a user, counted in cells of an hour."""
        if not len(cells.at):
            return
        wide = cells if self.step == HOUR else cells.coarser(self.step // HOUR)
        self._pending.setdefault(user, []).append(wide)
        self._held += len(wide.at)
        if self._held > self.most:
            self.settle()

    def settle(self) -> None:
        """Join what was added; widen all cells until they are few enough."""
        if not self._pending:
            return
        for user, some in self._pending.items():
            known = [self.users[user]] if user in self.users else []
            self.users[user] = reduce(Cells.joined, [*known, *some])
        self._pending.clear()
        while (held := sum(len(cells.at) for cells in self.users.values())) > self.most // 2:
            self.step *= 2
            self.users = {user: cells.coarser(2) for user, cells in self.users.items()}
        self._held = held

    @property
    def period(self) -> tuple[int, int] | None:
        """The first cell of anybody, and the one behind the last; call `settle` before."""
        if not self.users:
            return None
        return (
            min(int(cells.at[0]) for cells in self.users.values()),
            max(int(cells.at[-1]) for cells in self.users.values()) + 1,
        )
