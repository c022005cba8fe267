"""Calibration: how high a user's scores and risks are on validation events.

`CalibrationSet` turns scores into z-scores and p-values. `UserThreshold`, `global_margin` and
`AlertForecast` turn an alert budget into thresholds. `ModelSummary` is what reports show of a
fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_SCORES = 1000
"""Maximum number of scores kept, as evenly spaced quantiles, and of highest session maxima."""
SESSION_GAP = 3600.0
"""Seconds without an event that end a session. The events of a session are one alert."""
SECONDS_PER_DAY = 86400.0
Z95 = 1.96
"""Half-width of the 95 % interval of a normal distribution, in standard deviations."""
MAX_DRIFT = 4.0
"""Maximum factor by which alerts per day grow; see `UserThreshold.drift_factor`."""
HOURS_PER_WEEK = 168
"""Hours of a week, from Monday, 00:00 UTC."""
EXCEEDANCE_LEVELS = (0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0)
"""Shares of validation events. A summary has the risk that each share exceeds; 0 is the maximum."""
TOP_NOVELTY = 6
"""Number of columns in a summary's list of the highest rates of new values."""
_FIRST_MONDAY = 4 * SECONDS_PER_DAY  # 1970 began on a Thursday.


@dataclass(frozen=True)
class CalibrationSet:
    """Scores of a user's validation events, by a network that was not trained on them.

    Attributes:
        scores: Mean losses, ascending, (n,).
        risks: Risks, ascending, (n,).
        session_maxima: Highest risk of each session, descending, (sessions,).
        events: Number of events.
        days: Number of days that they span, added up over the users they are from.
        short_ema_p90: 90th percentile of the short moving average (`temporal.TemporalContext`).
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
        """Summarise events in time order.

        Args:
            scores: Mean losses, (n,).
            risks: Risks, (n,).
            seconds: Times, (n,); a step back in time starts another user's events.
            short_ema_p90: As above.
        """
        steps = np.diff(seconds)
        starts = np.concatenate([[0], np.flatnonzero((steps < 0) | (steps > SESSION_GAP)) + 1])
        maxima = -np.sort(-np.maximum.reduceat(risks, starts))
        return cls(
            _subsample(scores),
            _subsample(risks),
            maxima[:MAX_SCORES].astype(np.float32),
            len(scores),
            _count_days(seconds),
            short_ema_p90,
        )

    def zscore(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distance of scores from their mean, in standard deviations, (rows,)."""
        std = max(float(self.scores.std()), 1e-6)
        return np.asarray((scores - float(self.scores.mean())) / std)

    def pvalue(self, risks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the conformal p-value of risks, (rows,).

        It is the share of validation events with a risk at least as high, (k + 1) / (n + 1), which
        is never below 1 / (n + 1) (Vovk, Gammerman, Shafer 2005).

        >>> calibration = CalibrationSet.from_scores(np.arange(9.0), np.arange(9.0), np.arange(9.0))
        >>> calibration.pvalue(np.array([100.0, 8.0, -1.0])).tolist()
        [0.1, 0.2, 1.0]
        """
        below = np.searchsorted(self.risks, risks.astype(np.float32)) / len(self.risks)
        share = ((1 - below) * self.events + 1) / (self.events + 1)
        return np.asarray(share.round(6))


def _subsample(values: NDArray[np.float64]) -> NDArray[np.float32]:
    positions = np.linspace(0, len(values) - 1, min(len(values), MAX_SCORES)).round().astype(int)
    return np.asarray(np.sort(values)[positions], dtype=np.float32)


def _count_days(seconds: NDArray[np.float64]) -> int:
    starts = np.flatnonzero(np.diff(seconds) < 0) + 1
    spans = (times // SECONDS_PER_DAY for times in np.split(seconds, starts))
    return int(sum(days[-1] - days[0] + 1 for days in spans))


@dataclass(frozen=True)
class UserThreshold:
    """Risk of a user's validation days, from which thresholds follow.

    A margin is a risk minus the user's mean risk, so that margins of different users can be
    compared.

    Attributes:
        mean_risk: Mean risk of an event.
        margins: Highest margin of each session, descending, (sessions,).
        days: Number of days that they span.
    """

    mean_risk: float
    margins: NDArray[np.float64]
    days: int

    @classmethod
    def from_calibration(cls, calibration: CalibrationSet) -> UserThreshold:
        """Compute the margins of a calibration."""
        mean_risk = float(calibration.risks.mean())
        return cls(
            mean_risk, calibration.session_maxima.astype(np.float64) - mean_risk, calibration.days
        )

    def threshold_for(self, alerts_per_day: float) -> float:
        """Return the lowest margin at which this user alone keeps to an alert budget.

        >>> UserThreshold(1.0, np.array([5.0, 3.0, 2.0]), days=2).threshold_for(0.5)
        3.0
        """
        allowed = math.floor(alerts_per_day * self.days + 1e-9)
        return float(self.margins[allowed]) if allowed < len(self.margins) else -math.inf

    def expected_alerts(self, margin: float, days: float) -> float:
        """Return the expected number of alerts in some days after training, at a margin.

        A lasting change, such as a new computer, is seen on every later day. So the number of
        alerts per day grows with the number of days beyond the validation days.
        """
        rate = float(np.count_nonzero(self.margins > margin)) / self.days
        return rate * days * self.drift_factor(days)

    def drift_factor(self, days: float) -> float:
        """Return by which factor alerts per day grow in `days` days; at most MAX_DRIFT."""
        return min(max(days / self.days, 1.0), MAX_DRIFT)


def global_margin(
    thresholds: Sequence[UserThreshold], days: Sequence[float], alerts_per_day: float
) -> float:
    """Return the lowest margin at which all users together keep to an alert budget.

    Args:
        thresholds: Thresholds of the users.
        days: Number of days of each user in the scored events.
        alerts_per_day: The budget.

    >>> quiet = UserThreshold(0.0, np.array([1.0]), 1)
    >>> active = UserThreshold(0.0, np.array([9.0, 4.0, 2.0]), 1)
    >>> global_margin([quiet, active], [1, 1], alerts_per_day=2)
    2.0
    """
    if not thresholds:
        return math.inf
    rates = [
        threshold.drift_factor(span) / threshold.days
        for threshold, span in zip(thresholds, days, strict=True)
    ]
    margins = np.concatenate([threshold.margins for threshold in thresholds])
    weights = np.repeat(rates, [len(threshold.margins) for threshold in thresholds])
    order = np.argsort(-margins, kind="stable")
    over = np.flatnonzero(np.cumsum(weights[order]) > alerts_per_day + 1e-9)
    return float(margins[order][over[0]]) if len(over) else -math.inf


@dataclass(frozen=True)
class AlertForecast:
    """Expected number of alerts.

    Attributes:
        alerts: The mean.
        low: Lower end of the 95 % interval.
        high: Upper end of it.
    """

    alerts: float
    low: float
    high: float

    @classmethod
    def from_thresholds(
        cls, thresholds: Sequence[UserThreshold], days: Sequence[float], margin: float
    ) -> AlertForecast:
        """Forecast from the validation days.

        Alerts come in clusters, one per user. The variance of a sum of random clusters is the sum
        of their squares. It counts twice, because the validation days are such a sample themselves.

        Args:
            thresholds: Thresholds of the users.
            days: Number of days of each user in the scored events.
            margin: Margin above which an event raises an alert.
        """
        pairs = zip(thresholds, days, strict=True)
        alerts = np.array([threshold.expected_alerts(margin, span) for threshold, span in pairs])
        mean = float(alerts.sum())
        half_width = Z95 * math.sqrt(2 * float((alerts**2).sum()) + mean)
        return cls(mean, max(mean - half_width, 0.0), mean + half_width)


class ModelSummary(msgspec.Struct, frozen=True):
    """Summary of a fingerprint for reports.

    Attributes:
        hours: The user's own events in each hour of the week, (168,).
        weeks: Number of weeks that they span.
        loss_curve: Validation loss after each epoch, (epochs,).
        risks: The risk that each of `EXCEEDANCE_LEVELS` of the validation events exceeds.
        score_mean: Mean of the validation scores.
        score_std: Their standard deviation.
        held_out: Number of validation events.
        days: Number of days that they span.
        high_novelty_columns: Columns with the highest shares of new values, with these shares.
    """

    hours: tuple[int, ...]
    weeks: float
    loss_curve: tuple[float, ...] = msgspec.field(name="curve")
    risks: tuple[float, ...]
    score_mean: float = msgspec.field(name="usual")
    score_std: float = msgspec.field(name="spread")
    held_out: int
    days: int
    high_novelty_columns: tuple[tuple[str, float], ...] = msgspec.field(name="lively")

    @classmethod
    def from_calibration(
        cls,
        seconds: NDArray[np.float64],
        loss_curve: tuple[float, ...],
        calibration: CalibrationSet,
        oov_rates: dict[str, float],
    ) -> ModelSummary:
        """Summarise a fingerprint.

        Args:
            seconds: Times of the user's own events, in seconds since 1970, (events,).
            loss_curve: As above.
            calibration: Its calibration.
            oov_rates: Share of events with a new value, by column.
        """
        novel = sorted(oov_rates.items(), key=lambda item: -item[1])[:TOP_NOVELTY]
        quantiles = np.quantile(calibration.risks, [1 - share for share in EXCEEDANCE_LEVELS])
        return cls(
            hours=tuple(np.bincount(hour_of_week(seconds), minlength=HOURS_PER_WEEK).tolist()),
            weeks=_count_weeks(seconds),
            loss_curve=tuple(map(_round_significant, loss_curve)),
            risks=tuple(map(_round_significant, quantiles.tolist())),
            score_mean=_round_significant(float(calibration.scores.mean())),
            score_std=_round_significant(float(calibration.scores.std())),
            held_out=calibration.events,
            days=calibration.days,
            high_novelty_columns=tuple((name, _round_significant(rate)) for name, rate in novel),
        )

    @property
    def hourly_rates(self) -> NDArray[np.float64]:
        """Mean number of events in each hour of the week, (168,)."""
        return np.array(self.hours) / self.weeks


def hour_of_week(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the hours since Monday, 00:00 UTC.

    >>> hour_of_week(np.array([1740994200.0])).tolist()  # Monday, 2025-03-03 09:30
    [9]
    """
    return np.asarray((seconds - _FIRST_MONDAY) % (7 * SECONDS_PER_DAY) // 3600, dtype=np.int64)


def _count_weeks(seconds: NDArray[np.float64]) -> float:
    """Return the length of the history in weeks; at least one day."""
    span = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
    return _round_significant(max(span, SECONDS_PER_DAY) / (7 * SECONDS_PER_DAY))


def _round_significant(value: float) -> float:
    return float(f"{value:.4g}")


def count_exceedances(
    summary: ModelSummary | None, risks: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Count the events with a risk, and those above each risk of a summary.

    Args:
        summary: Summary of the user's fingerprint; None without one.
        risks: Risks of the events, NaN for an event without one.

    Returns:
        Counts, (1 + EXCEEDANCE_LEVELS,).
    """
    limits = np.full(len(EXCEEDANCE_LEVELS), np.inf) if summary is None else np.array(summary.risks)
    known = np.sort(risks[~np.isnan(risks)])
    above = len(known) - np.searchsorted(known, limits, side="right")
    return np.concatenate([[len(known)], above]).astype(np.int64)
