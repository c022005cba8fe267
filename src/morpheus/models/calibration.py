"""Calibration: how high a user's scores and risks are on validation events.

`CalibrationSet` turns scores into z-scores. `UserDays` and `AlertBudget` turn a wanted number of
alerts into a threshold and a forecast. `ModelSummary` is what reports show of a fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.models.scoring import TAIL_DAYS, TAIL_DECADE

MAX_SCORES = 1000
"""Maximum number of scores kept, as evenly spaced quantiles."""
SECONDS_PER_DAY = 86400.0
Z95 = 1.96
"""Half-width of the 95 % interval of a normal distribution, in standard deviations."""
MIN_SCORE_STD = 0.01
"""Minimum standard deviation of scores: an account that always does the same varies by nothing."""
LOWEST_PVALUE = 1e-9
"""Lowest p-value of a budget, so that a budget of 0 gives no alert."""
MAX_POOLED_DAYS = 100
"""Maximum number of calibration days of a user in the pooled tail, so that none decides it."""
PRIOR_POOLED_DAYS = 20.0
"""Days that the rule of `daily_usage.TAIL_DECADE` counts as among the pooled days of all users."""
TAIL_SHARE = 0.1
"""Share of the pooled days from which the tail is fitted."""
FORECAST_LOG_VARIANCE, FORECAST_USER_VARIANCE = 0.16, 1.0
"""Variance of the logarithm of the number of alerts, and of the rate of a user in units of its
square: the forecast's interval, measured on generated fleets."""
MIN_FORECAST = 1e-9
"""Expected number of alerts below which there is none: its square would have no digits left."""
HOURS_PER_WEEK = 168
"""Hours of a week, from Monday, 00:00 UTC."""
EXCEEDANCE_LEVELS = (0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0)
"""Shares of validation events. A summary has the risk that each share exceeds; 0 is the maximum."""
TOP_NOVELTY = 6
"""Number of columns in a summary's list of the highest rates of new values."""
SEVERITY_PER_DECADE = 33.0
"""Severity of a p-value of one in ten; 99 is one benign user-day in a thousand."""
MAX_SEVERITY = 100.0
SEVERITY_NAMES = ((75, "critical"), (50, "high"), (25, "medium"), (0, "low"))
"""Lowest severity of each name, highest first."""
_FIRST_MONDAY = 4 * SECONDS_PER_DAY  # 1970 began on a Thursday.


class CalibrationSet(msgspec.Struct, frozen=True):
    """Scores of a user's validation events, by a network that was not trained on them.

    Attributes:
        scores: Mean losses, ascending, (n,).
        risks: Risks, ascending, (n,).
        day_maxima: Highest risk of each day, ascending, (days,).
        events: Number of events.
        typical_score: Median score of the whole history by the network that scores.
    """

    scores: NDArray[np.float32]
    risks: NDArray[np.float32]
    day_maxima: NDArray[np.float32]
    events: int
    typical_score: float = 0.0

    @classmethod
    def from_scores(
        cls,
        scores: NDArray[np.float64],
        risks: NDArray[np.float64],
        day_maxima: NDArray[np.float64],
    ) -> CalibrationSet:
        """Summarise validation events.

        Args:
            scores: Mean losses, (n,).
            risks: Risks, (n,).
            day_maxima: Highest risk of each day, (days,).
        """
        return cls(
            scores=_subsample(scores),
            risks=_subsample(risks),
            day_maxima=_subsample(day_maxima),
            events=len(scores),
            typical_score=float(np.median(scores)),
        )

    def center(self, typical_score: float) -> CalibrationSet:
        """Return the calibration for a network with another typical score.

        The network that scores is not the one that scored the validation events.
        """
        return replace(self, typical_score=typical_score)

    @property
    def days(self) -> int:
        """Number of days."""
        return len(self.day_maxima)

    def zscore(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distance of scores from the typical one, in standard deviations, (rows,)."""
        std = max(float(self.scores.std()), MIN_SCORE_STD)
        return np.asarray((scores - self.typical_score) / std)


def _subsample(values: NDArray[np.float64]) -> NDArray[np.float32]:
    positions = np.linspace(0, len(values) - 1, min(len(values), MAX_SCORES)).round().astype(int)
    return np.asarray(np.sort(values)[positions], dtype=np.float32)


class UserDays(msgspec.Struct, frozen=True):
    """Highest risks of a user's days, in the calibration and in the scored events.

    Attributes:
        calibration: Of each calibration day, (days,).
        scored: Of each scored day, (scored days,).
        dates: Number of each scored day, since 1970, (scored days,).
        bursts: Lowest p-value of a burst on each scored day; NaN if unknown, (scored days,).
        shared: Whether the calibration days are those of the global model.
    """

    calibration: NDArray[np.float64]
    scored: NDArray[np.float64]
    dates: NDArray[np.int64]
    bursts: NDArray[np.float64]
    shared: bool = False

    def merge(self, later: UserDays) -> UserDays:
        """Add later events of the same user."""
        dates, place = np.unique(np.append(self.dates, later.dates), return_inverse=True)
        scored = np.zeros(len(dates))
        np.maximum.at(scored, place, np.append(self.scored, later.scored))
        bursts = np.full(len(dates), np.nan)
        np.fmin.at(bursts, place, np.append(self.bursts, later.bursts))
        return UserDays(later.calibration, scored, dates, bursts, later.shared)


def combine_pvalues(risks: NDArray[np.float64], bursts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p-value of two tests: twice the lower one (Bonferroni).

    Args:
        risks: P-values of risks, (n,).
        bursts: P-values of bursts, (n,); NaN if they are not known, which leaves those of risks.

    >>> combine_pvalues(np.array([0.4, 0.4]), np.array([0.01, np.nan])).tolist()
    [0.02, 0.4]
    """
    both = np.minimum(2 * np.fmin(risks, bursts), 1)
    return np.asarray(np.where(np.isnan(bursts), risks, both))


class PooledTail(msgspec.Struct, frozen=True):
    """How often a day of any user has a risk as high: empirical, with a fitted tail.

    Attributes:
        maxima: Highest risks of calibration days of all users, ascending, (n,).
        start: Where the tail begins.
        share: Share of the days in the tail.
        shape: Shape of the generalised Pareto distribution of the tail.
        scale: Its scale.
    """

    maxima: NDArray[np.float64]
    start: float
    share: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, users: Sequence[UserDays]) -> PooledTail:
        """Fit the tail by L-moments (Hosking and Wallis 1987).

        The days of the global model count once, however many users share it.
        """
        shared = [user for user in users if user.shared]
        distinct = [*(user for user in users if not user.shared), *shared[:1]]
        pooled = [_thin(np.sort(user.calibration)) for user in distinct]
        maxima = np.sort(np.concatenate([np.empty(0), *pooled]))
        start = float(np.quantile(maxima, 1 - TAIL_SHARE)) if len(maxima) else 0.0
        excess = maxima[maxima > start] - start
        if len(excess) < 3:  # noqa: PLR2004 - two moments need three values
            return cls(maxima, start, TAIL_SHARE, 0.0, TAIL_DECADE / math.log(10))
        mean = float(excess.mean())
        ranks = np.arange(len(excess)) / (len(excess) - 1)
        second = max(2 * float((ranks * excess).mean()) - mean, 1e-9)
        shape = float(np.clip(2 - mean / second, -0.25, 0.5))
        return cls(maxima, start, len(excess) / len(maxima), shape, max(mean * (1 - shape), 1e-6))

    def exceed(self, risks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of days with at least this risk, (n,)."""
        below = np.searchsorted(self.maxima, risks, side="left") / max(len(self.maxima), 1)
        reach = np.maximum(risks - self.start, 0) / self.scale
        if abs(self.shape) < 1e-3:  # noqa: PLR2004 - there the formula below has no digits left
            tail = np.exp(-reach)
        else:
            tail = np.maximum(1 + self.shape * reach, 1e-12) ** (-1 / self.shape)
        seen = np.where(risks > self.start, self.share * tail, 1 - below)
        rule, days = 10 ** (-np.maximum(risks, 0) / TAIL_DECADE), len(self.maxima)
        return np.asarray((seen * days + rule * PRIOR_POOLED_DAYS) / (days + PRIOR_POOLED_DAYS))


def _thin(maxima: NDArray[np.float64]) -> NDArray[np.float64]:
    positions = np.linspace(0, len(maxima) - 1, min(len(maxima), MAX_POOLED_DAYS))
    return np.asarray(maxima[positions.round().astype(int)])


class AlertBudget(msgspec.Struct, frozen=True):
    """The p-value below which a user-day is an alert, and what to expect of it.

    Attributes:
        tail: Calibration days of all users.
        limit: The p-value; 0 for no alert.
        wanted: Number of alerts that were asked for.
        forecast: Expected number of alerts.
        reason: Why there is no budget, or why the forecast is uncertain; empty otherwise.
    """

    tail: PooledTail
    limit: float
    wanted: float
    forecast: AlertForecast
    reason: str = ""

    @classmethod
    def fit(cls, users: Sequence[UserDays], alerts_per_day: float) -> AlertBudget:
        """Divide the wanted number of alerts among all user-days.

        Days count if at least one in twenty of the users has events, so that an event with a wrong
        date adds no days.

        Args:
            users: The users.
            alerts_per_day: Wanted number of alerts per day, for all users together.
        """
        tail = PooledTail.fit(users)
        scored = [user for user in users if len(user.scored)]
        per_user = np.array([len(user.scored) for user in scored], dtype=np.float64)
        wanted = alerts_per_day * count_shared_days(scored)
        limit = min(wanted / max(float(per_user.sum()), 1.0), 1.0)
        forecast = AlertForecast.from_rates(limit * per_user)
        return cls(tail, limit, wanted, forecast, _explain_limit(limit, len(tail.maxima)))

    def pvalues(
        self,
        user: UserDays,
        risks: NDArray[np.float64],
        bursts: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the probability that a usual day of a user has such a risk or burst, (n,).

        Empirical Bayes: the user's own calibration days, and the pooled days of all users as
        `TAIL_DAYS` days.
        """
        own = np.sort(user.calibration)
        higher = len(own) - np.searchsorted(own, risks, side="left")
        share = (higher + TAIL_DAYS * self.tail.exceed(risks)) / (len(own) + TAIL_DAYS)
        pvalues = np.maximum(share, LOWEST_PVALUE)
        return pvalues if bursts is None else combine_pvalues(pvalues, bursts)


def _explain_limit(limit: float, days: int) -> str:
    """Return why a limit is uncertain; empty if it is not.

    Args:
        limit: P-value of an alert.
        days: Number of pooled calibration days.
    """
    if days < PRIOR_POOLED_DAYS:
        return f"learning: the histories have {days} calibration days"
    if 0 < limit < 1 / days:
        return f"extrapolated: one in {1 / limit:,.0f} days is asked for, {days:,} were seen"
    return ""


def count_shared_days(users: Sequence[UserDays]) -> int:
    """Count the days on which at least one in twenty of the users has events."""
    dates, counts = np.unique(
        np.concatenate([np.empty(0, np.int64), *(np.unique(user.dates) for user in users)]),
        return_counts=True,
    )
    return int((counts >= max(1.0, 0.05 * len(users))).sum()) if len(dates) else 0


class AlertForecast(msgspec.Struct, frozen=True):
    """Expected number of alerts.

    Attributes:
        alerts: The mean.
        low: Lower end of the 95 % interval.
        high: Upper end of it; at least 3, because none seen does not mean none to come.
    """

    alerts: float
    low: float
    high: float

    @classmethod
    def from_rates(cls, rates: NDArray[np.float64]) -> AlertForecast:
        """Forecast from the expected number of alerts of each user.

        The number is log-normal: Poisson, with rates that differ between users, and a level that is
        itself uncertain.
        """
        mean = float(rates.sum())
        if mean < MIN_FORECAST:
            return cls(mean, 0.0, 3.0)
        variance = mean + FORECAST_USER_VARIANCE * float((rates**2).sum())
        variance += FORECAST_LOG_VARIANCE * mean**2
        log_variance = math.log1p(variance / mean**2)
        middle, width = math.log(mean) - log_variance / 2, Z95 * math.sqrt(log_variance)
        low = max(math.floor(math.exp(middle - width) - 0.5), 0)
        return cls(mean, float(low), max(math.ceil(math.exp(middle + width) + 0.5), 3.0))


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


def compute_severity(pvalues: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the severity of user-days from their p-values, from 0 to 100, with one decimal.

    >>> compute_severity(np.array([1.0, 0.1, 0.001, 1e-9])).tolist()
    [0.0, 33.0, 99.0, 100.0]
    """
    severity = -SEVERITY_PER_DECADE * np.log10(pvalues)
    return np.clip(severity, 0, MAX_SEVERITY).round(1) + 0.0


def name_severity(severity: int) -> str:
    """Return the name of a severity.

    >>> [name_severity(severity) for severity in (0, 25, 74, 75, 100)]
    ['low', 'medium', 'high', 'critical', 'critical']
    """
    return next(name for lowest, name in SEVERITY_NAMES if severity >= lowest)
