"""What a user's scores were on held-out events: the measure of the ones to come."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def global_margin(
    thresholds: Sequence[UserThreshold], days: Sequence[float], alerts_per_day: float
) -> float:
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
    each = [
        level.drift_factor(span) / level.days for level, span in zip(thresholds, days, strict=True)
    ]
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
    def from_thresholds(
        cls, thresholds: Sequence[UserThreshold], days: Sequence[float], margin: float
    ) -> AlertForecast:
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


def count_exceedances(
    summary: ModelSummary | None, risks: NDArray[np.float64]
) -> NDArray[np.int64]:
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
