"""What `filter --alerts_per_day` does: first with each user alone, then with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME
from morpheus.models.budget import AlertForecast, UserThreshold, global_margin
from morpheus.models.calibration import SECONDS_PER_DAY, SESSION_GAP
from morpheus.records import Batch, Losses, Scored, AlertBudgetReport, AlertCandidates
from morpheus.stage import Transform
from morpheus.stages.outputs import mask_batch, iter_with_scores
from morpheus.suppressions.rules import NO_MATCH, Suppressions


@dataclass(frozen=True)
class CandidateFilter(Transform):
    """Keep the events of a user that would be alerts if the whole budget were theirs."""

    name = "filter"
    takes = (Losses, Scored)

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Losses | Scored]:
        """Leave out what cannot be an alert, and count it."""
        runs = _Sessioniser()
        for batch, found in iter_with_scores(batches, (RISK,), self.options):
            numbers, seconds = runs.assign_sessions(batch.frame[TIME])
            if batch.fingerprint is None or seconds is None:
                nothing = np.zeros(batch.frame.height, dtype=np.bool_)
                yield mask_batch(batch, nothing, collect_stats=self.options.keeps_dropped_stats)
                continue
            level = UserThreshold.from_calibration(batch.fingerprint.calibration)
            margins = found[RISK].to_numpy() - level.mean_risk
            met = self.rules.match(batch.user, batch.frame)
            watched = AlertCandidates(level, margins, numbers, seconds, *met)
            rows = margins > level.threshold_for(self.alerts_per_day)
            yield mask_batch(replace(batch, candidates=watched), rows, collect_stats=self.options.keeps_dropped_stats)


@dataclass
class _Sessioniser:
    """Numbers the runs of a user's events, from batch to batch."""

    last_time: float = -np.inf
    session_id: int = -1

    def assign_sessions(self, times: pl.Series) -> tuple[NDArray[np.int64], tuple[float, float] | None]:
        """The run of each event, and the first and the last second."""
        seconds = times.dt.epoch("ms").to_numpy() / 1000
        if not len(seconds):
            return np.zeros(0, dtype=np.int64), None
        starts = np.diff(seconds, prepend=self.last_time) > SESSION_GAP
        numbers = self.session_id + np.cumsum(starts)
        self.last_time, self.session_id = float(seconds[-1]), int(numbers[-1])
        return numbers, (float(seconds.min()), float(seconds.max()))


@dataclass(frozen=True)
class BudgetFilter(Transform):
    """Divide the budget: keep the candidates that are above their users' thresholds.

    All candidates are held until the last user has come: they are as few as alerts are. No
    threshold depends on suppressions, which hold back what would have been an alert.
    """

    name = "filter"
    # It may be moved behind the user's other stages, which then still have the fingerprint at hand:
    # `explain` explains candidates.
    scope = "global"
    takes = (Batch,)
    needs_model = False

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Wait for everybody, then let alerts pass."""
        ledger = _BudgetState(self.rules)
        held = [ledger.add(batch) for batch in batches]
        limit = global_margin(list(ledger.thresholds.values()), ledger.days_per_user, self.alerts_per_day)
        for place, batch in enumerate(held):
            yield ledger.apply_budget(batch, limit, is_last=place == len(held) - 1)


@dataclass
class _BudgetState:
    """Who there is, since when and until when, and what has become an alert."""

    rules: Suppressions
    thresholds: dict[str | None, UserThreshold] = field(default_factory=dict)
    time_ranges: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    alerts: set[tuple[str | None, int]] = field(default_factory=set)
    suppressed: set[tuple[str | None, int]] = field(default_factory=set)

    @property
    def days_per_user(self) -> list[float]:
        """How many days there are of each user."""
        return [last // SECONDS_PER_DAY - first // SECONDS_PER_DAY + 1 for first, last in self.time_ranges.values()]

    def add(self, batch: Batch) -> Batch:
        """Take note of a batch's user and times."""
        if batch.candidates is not None:
            first, last = batch.candidates.time_range
            since, until = self.time_ranges.get(batch.user, (first, last))
            self.thresholds[batch.user] = batch.candidates.threshold
            self.time_ranges[batch.user] = min(first, since), max(last, until)
        return batch

    def apply_budget(self, batch: Batch, limit: float, *, is_last: bool) -> Batch:
        """Leave out what is no alert; the last batch brings the account."""
        if batch.candidates is not None:
            batch = self._keep_alerts(batch, batch.candidates, batch.candidates.margins > limit)
        return replace(batch, budget_report=self._make_report(limit)) if is_last else batch

    def _keep_alerts(self, batch: Batch, candidates: AlertCandidates, alarming: NDArray[np.bool_]) -> Batch:
        """Let pass what is alarming and held back by nothing."""
        rows = alarming & (candidates.suppressed_by == NO_MATCH)
        self.alerts |= {(batch.user, int(run)) for run in candidates.session_ids[rows]}
        self.suppressed |= {(batch.user, int(run)) for run in candidates.session_ids[alarming & ~rows]}
        met = self.rules.count(candidates.suppressed_by[alarming], candidates.expired_rule[alarming])
        judged = replace(batch, candidates=None)
        return mask_batch(judged, rows, met, collect_stats=batch.dropped_stats is not None)

    def _make_report(self, limit: float) -> AlertBudgetReport:
        forecast = AlertForecast.from_thresholds(list(self.thresholds.values()), self.days_per_user, limit)
        return AlertBudgetReport(forecast, len(self.alerts), len(self.suppressed - self.alerts))
