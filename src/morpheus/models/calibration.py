"""What a user's scores were on held-out events: the measure of the ones to come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SCORES = 1000
"""Scores kept, evenly spaced among all; as many highest peaks."""
SESSION_GAP = 3600.0
"""Seconds without an event that end a run of events: what lies within one is one alert."""
SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True)
class CalibrationSet:
    """How a user's held-out events were scored, by a network that had not met them.

    Attributes:
        scores: Mean losses, ascending, (n,).
        risks: Risks, ascending, (n,).
        session_maxima: Highest risk of each run of events, highest first, (runs,).
        events: How many events there were.
        days: Days that they span, all users of whom there are some added.
        short_ema_p90: What the mean of the last hour (`context.Context`) stayed below, most of the time.
    """

    scores: NDArray[np.float32]
    risks: NDArray[np.float32]
    session_maxima: NDArray[np.float32]
    events: int
    days: int
    short_ema_p90: float = 0.0

    @classmethod
    def from_scores(
        cls,
        scores: NDArray[np.float64],
        risks: NDArray[np.float64],
        seconds: NDArray[np.float64],
        short_ema_p90: float = 0.0,
    ) -> CalibrationSet:
        """Measure events, (n,) each, in time order; a step back in time is another user."""
        steps = np.diff(seconds)
        runs = np.concatenate([[0], np.flatnonzero((steps < 0) | (steps > SESSION_GAP)) + 1])
        peaks = -np.sort(-np.maximum.reduceat(risks, runs))
        return cls(
            _subsample(scores),
            _subsample(risks),
            peaks[:MAX_SCORES].astype(np.float32),
            len(scores),
            _count_days(seconds),
            short_ema_p90,
        )

    def zscore(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard deviations by which scores differ from their mean, (rows,)."""
        spread = max(float(self.scores.std()), 1e-6)
        return np.asarray((scores - float(self.scores.mean())) / spread)

    def pvalue(self, risks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of held-out events at least as unusual, (k + 1) / (n + 1), (rows,).

        Conformal prediction's p (Vovk, Gammerman, Shafer 2005): never below 1 / (n + 1).

        >>> past = CalibrationSet.of(np.arange(9.0), np.arange(9.0), np.arange(9.0))
        >>> past.pvalue(np.array([100.0, 8.0, -1.0])).tolist()
        [0.1, 0.2, 1.0]
        """
        below = np.searchsorted(self.risks, risks.astype(np.float32)) / len(self.risks)
        share = ((1 - below) * self.events + 1) / (self.events + 1)
        return np.asarray(share.round(6))


def _subsample(values: NDArray[np.float64]) -> NDArray[np.float32]:
    places = np.linspace(0, len(values) - 1, min(len(values), MAX_SCORES)).round().astype(int)
    return np.asarray(np.sort(values)[places], dtype=np.float32)


def _count_days(seconds: NDArray[np.float64]) -> int:
    cuts = np.flatnonzero(np.diff(seconds) < 0) + 1
    spans = (part // SECONDS_PER_DAY for part in np.split(seconds, cuts))
    return int(sum(days[-1] - days[0] + 1 for days in spans))
