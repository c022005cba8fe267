"""What a fingerprint looks like: for people, and for a page that shows it to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheus.models.calibration import SECONDS_PER_DAY, CalibrationSet

HOURS_PER_WEEK = 168
"""Hours of a week, from Monday, midnight UTC."""
EXCEEDANCE_LEVELS = (0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0)
"""Shares of held-out events for which a portrait says which risk they exceed; 0 is the highest."""
TOP_NOVELTY = 6
"""Columns that are named for bringing new values often."""
_FIRST_MONDAY = 4 * SECONDS_PER_DAY  # 1970 began on a Thursday


@dataclass(frozen=True)
class ModelSummary:
    """What there is to see of a fingerprint.

    Attributes:
        hours: The user's own events in each hour of the week, (168,).
        weeks: How many weeks these span.
        curve: Loss on held-out events after each epoch of the trial, (epochs,).
        risks: The risk that each of `EXCEEDANCE_LEVELS` of the held-out events exceeds.
        usual: Mean of the held-out scores.
        spread: Their standard deviation.
        held_out: How many events were held out.
        days: Days that these span.
        lively: Columns in which new values are most usual, with the share of events that bring one.
    """

    hours: tuple[int, ...]
    weeks: float
    curve: tuple[float, ...]
    risks: tuple[float, ...]
    usual: float
    spread: float
    held_out: int
    days: int
    lively: tuple[tuple[str, float], ...]

    @classmethod
    def from_calibration(
        cls,
        seconds: NDArray[np.float64],
        curve: tuple[float, ...],
        calibration: CalibrationSet,
        oov_rates: dict[str, float],
    ) -> ModelSummary:
        """Draw a fingerprint.

        Args:
            seconds: When the user's own events happened, since 1970, (events,).
            curve: As above.
            calibration: Its calibration.
            oov_rates: Of each column the share of events that bring a new value.
        """
        lively = sorted(oov_rates.items(), key=lambda one: -one[1])[:TOP_NOVELTY]
        quantiles = np.quantile(calibration.risks, [1 - share for share in EXCEEDANCE_LEVELS])
        return cls(
            hours=tuple(np.bincount(hour_of_week(seconds), minlength=HOURS_PER_WEEK).tolist()),
            weeks=_count_weeks(seconds),
            curve=tuple(map(_round_significant, curve)),
            risks=tuple(map(_round_significant, quantiles.tolist())),
            usual=_round_significant(float(calibration.scores.mean())),
            spread=_round_significant(float(calibration.scores.std())),
            held_out=calibration.events,
            days=calibration.days,
            lively=tuple((name, _round_significant(rate)) for name, rate in lively),
        )

    @property
    def hourly_rates(self) -> NDArray[np.float64]:
        """Events that are usual in each hour of the week, (168,)."""
        return np.array(self.hours) / self.weeks


def hour_of_week(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Hours since Monday, midnight UTC.

    >>> hour_of_week(np.array([1740994200.0])).tolist()  # Monday, 2025-03-03 09:30
    [9]
    """
    return np.asarray((seconds - _FIRST_MONDAY) % (7 * SECONDS_PER_DAY) // 3600, dtype=np.int64)


def _count_weeks(seconds: NDArray[np.float64]) -> float:
    """A day at least: less is no rhythm."""
    span = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
    return _round_significant(max(span, SECONDS_PER_DAY) / (7 * SECONDS_PER_DAY))


def _round_significant(value: float) -> float:
    return float(f"{value:.4g}")


def count_exceedances(summary: ModelSummary | None, risks: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many events have a risk at all, and more than each of those of a portrait.

    Args:
        summary: Of whom the events are; None for somebody of whom there is none.
        risks: Their risks, NaN without one.

    Returns:
        Counts, (1 + SHARES,).
    """
    levels = np.full(len(EXCEEDANCE_LEVELS), np.inf) if summary is None else np.array(summary.risks)
    known = np.sort(risks[~np.isnan(risks)])
    above = len(known) - np.searchsorted(known, levels, side="right")
    return np.concatenate([[len(known)], above]).astype(np.int64)
