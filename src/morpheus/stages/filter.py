"""`filter`: keep events with a high score, or the alerts of a budget.

A budget needs two stages. `CandidateFilter` sees one user at a time, and keeps the events that
could be alerts. `BudgetFilter` sees all users, divides the budget, and drops the other candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME
from morpheus.core.batch import (
    AlertBudgetReport,
    AlertCandidates,
    Batch,
    DroppedStats,
    Losses,
    Scored,
)
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.models.calibration import (
    SECONDS_PER_DAY,
    SESSION_GAP,
    AlertForecast,
    UserThreshold,
    count_exceedances,
    global_margin,
)
from morpheus.report.aggregate import EventArrays
from morpheus.sources.pseudonyms import is_pseudonym
from morpheus.stages.add_scores import ScoreState, compute_scores, exceeds, validate_labels
from morpheus.suppressions.rules import NO_MATCH, SuppressionCounts, Suppressions
from morpheus.text import suggest

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True)
class Filter(Transform):
    """Keep events with a score above a threshold, or the alerts of a budget.

    Takes events with losses or scores. An event is kept if any of its scores is above
    `--threshold`. Events without a score are dropped. The summary counts dropped events. A
    `timeseries` after this stage sees kept events only.

    With `--alerts_per_day`, an alert is a session of one user with at least one event above the
    user's own threshold; a session ends after a pause of one hour. The summary shows the expected
    number of alerts, with its 95 % interval, and the actual number. Stages between this one and
    `serialize` see all candidate events.

    `--suppressions` drops events that analysts have judged benign, for the users and until the day
    that each suppression names. The summary counts the events that each suppression has dropped,
    and those that it would have dropped if it had not expired. `morpheus tools suppress` writes and
    previews the file.

    Example: `filter --threshold=2.5`, `filter --alerts_per_day=2`,
    `filter --filter_source=DATAFRAME --field_name=max_abs_z`, or
    `filter --alerts_per_day=2 --suppressions=suppressions.toml`
    """

    name = "filter"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    threshold: float = option(
        0.5, "Score above which an event is kept. Scores are not probabilities."
    )
    label: tuple[str, ...] = option(
        (), "Score to compare; repeat for more. Default: every label of --labels_file."
    )
    copy: bool = option(
        True, "Accepted for old command lines; no effect. Kept events are not changed."
    )
    filter_source: str = option(
        "Auto",
        "What to compare: scores (TENSOR or Auto), or a column (DATAFRAME).",
        choices=("Auto", "TENSOR", "DATAFRAME"),
    )
    field_name: str = option("probs", "Number column to compare, for --filter_source=DATAFRAME.")
    alerts_per_day: float | None = option(
        None,
        "Alert budget, in place of --threshold: alerts per day, for all users together. The "
        "threshold of each user follows from the `risk` of the user's validation events.",
        min=0,
    )
    suppressions: tuple[str, ...] = option(
        (),
        "File of suppressions: events to drop although they are above the threshold; repeat for "
        "more.",
        location="local",
    )
    rules: Suppressions | None = None

    def expand(self) -> tuple[Transform, ...]:
        """Return one stage for a threshold, and two stages for a budget."""
        # Read here, because worker processes on other machines may not have the files.
        rules = self._load_suppressions()
        if self.alerts_per_day is None:
            return (replace(self, rules=rules),)
        return (
            CandidateFilter(self.alerts_per_day, rules, options=self.options),
            BudgetFilter(self.alerts_per_day, rules, options=self.options),
        )

    def validate(self) -> None:
        """Reject unknown labels, and options that a budget excludes."""
        self._warn_expired(datetime.now(UTC))
        if self.options.pseudonymize:
            self._warn_named_users()
        if self.alerts_per_day is not None:
            self._validate_budget()
        elif not self._uses_column:
            validate_labels(self.name, self.label, self.options)

    def open(self, context: StageContext) -> ScoreState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ScoreState()

    def process(self, batch: Losses | Scored, state: ScoreState) -> Iterator[Losses | Scored]:
        """Drop and count events. A batch without remaining events still carries the counts."""
        rules = self._load_suppressions()
        values = self._values(batch, state)
        rows = reduce(or_, (exceeds(each, self.threshold) for each in values)).to_numpy()
        suppressed_by, expired_rule = rules.match(batch.user, batch.table.to_frame())
        counts = rules.count(suppressed_by[rows], expired_rule[rows])
        mask = rows & (suppressed_by == NO_MATCH)
        yield mask_batch(batch, mask, counts, collect_stats=self.options.keeps_dropped_stats)

    def _load_suppressions(self) -> Suppressions:
        return self.rules or Suppressions.read(*self.suppressions)

    def _warn_expired(self, now: datetime) -> None:
        for rule in self._load_suppressions().rules:
            if rule.until <= now:
                logger.warning(
                    "filter: the suppression %s, has expired: later events are kept. Remove it "
                    "from its file, or review it and give it another `until`.",
                    rule.label,
                )

    def _warn_named_users(self) -> None:
        """Warn about suppressions that match nothing. The message has no names on purpose."""
        rules = self._load_suppressions().rules
        named = [rule for rule in rules if not any(map(is_pseudonym, rule.users))]
        if named:
            logger.warning(
                "filter: %d of %d suppressions match no event, because their users are not "
                "pseudonyms. Write pseudonyms, as alerts and `morpheus tools pseudonym` show them.",
                len(named),
                len(rules),
            )

    def _validate_budget(self) -> None:
        if set(self.label) - {RISK} or self._uses_column:
            raise UsageError(
                "filter: --alerts_per_day uses `risk` only, which is calibrated for it. Leave out "
                "--label, --filter_source and --field_name, or use --threshold instead."
            )
        if self.options.unbounded:
            raise UsageError(
                "filter: --alerts_per_day needs the events of all users first, and this input has "
                "no end. Use `--label=risk --threshold=...`; a run over past days with "
                "--alerts_per_day shows which threshold."
            )

    @property
    def _uses_column(self) -> bool:
        return self.filter_source.upper() == "DATAFRAME"

    def _values(self, batch: Losses | Scored, state: ScoreState) -> list[pl.Series]:
        """Return the values to compare with the threshold."""
        if self._uses_column:
            return [self._column_values(batch)]
        return list(compute_scores(batch, state, self.label, self.options).values())

    def _column_values(self, batch: Losses | Scored) -> pl.Series:
        if self.field_name not in batch.table:
            numbers = [name for name, kind in batch.table.schema.items() if kind.is_float()]
            hint = f" Number columns are {', '.join(numbers)}." if numbers else ""
            raise UsageError(
                f"filter: --field_name: events have no column `{self.field_name}` here."
                f"{suggest(self.field_name, numbers)}{hint} Put the stage that adds it in front of "
                "`filter`."
            )
        return batch.table[self.field_name]


class SessionState(ScoreState):
    """What a candidate filter remembers about one user.

    A session is a series of events without a pause of one hour.

    Attributes:
        last_time: Time of the latest event, in seconds since 1970.
        session_id: Number of the latest session, from 0; -1 before the first event.
    """

    last_time: float = -np.inf
    session_id: int = -1

    def assign_sessions(
        self, times: pl.Series
    ) -> tuple[NDArray[np.int64], tuple[float, float] | None]:
        """Return the session of each event, and the first and the last time in seconds."""
        seconds = times.dt.epoch("ms").to_numpy() / 1000
        if not len(seconds):
            return np.zeros(0, dtype=np.int64), None
        starts = np.diff(seconds, prepend=self.last_time) > SESSION_GAP
        session_ids = self.session_id + np.cumsum(starts)
        self.last_time, self.session_id = float(seconds[-1]), int(session_ids[-1])
        return session_ids, (float(seconds.min()), float(seconds.max()))


@dataclass(frozen=True)
class CandidateFilter(Transform):
    """Keep the events of a user that would be alerts if the whole budget were for this user."""

    name = "filter"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> SessionState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return SessionState()

    def process(self, batch: Losses | Scored, state: SessionState) -> Iterator[Losses | Scored]:
        """Drop and count events that cannot be alerts."""
        collect_stats = self.options.keeps_dropped_stats
        scores = compute_scores(batch, state, (RISK,), self.options)
        sessions, time_range = state.assign_sessions(batch.table[TIME])
        if batch.fingerprint is None or time_range is None:
            nothing = np.zeros(batch.table.height, dtype=np.bool_)
            yield mask_batch(batch, nothing, collect_stats=collect_stats)
            return
        threshold = UserThreshold.from_calibration(batch.fingerprint.calibration)
        margins = scores[RISK].to_numpy() - threshold.mean_risk
        matches = self.rules.match(batch.user, batch.table.to_frame())
        candidates = AlertCandidates(threshold, margins, sessions, time_range, *matches)
        rows = margins > threshold.threshold_for(self.alerts_per_day)
        yield mask_batch(replace(batch, candidates=candidates), rows, collect_stats=collect_stats)


@dataclass(frozen=True)
class BudgetFilter(Transform):
    """Divide the budget: keep the candidates above the threshold of their user.

    All candidates stay in memory until the last user is complete; there are about as few as alerts.
    Suppressions do not change thresholds. They only drop events that would have been alerts.
    """

    name = "filter"
    # A global stage moves behind the keyed stages, so `explain` still has the fingerprint.
    scope = "global"
    takes = (Batch,)
    needs = Requirements(
        per_run="--alerts_per_day divides the budget of one run. Use --threshold instead."
    )

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> _BudgetState:  # noqa: ARG002 - starts empty
        """Start without users."""
        return _BudgetState(self.rules)

    def process(self, batch: Batch, state: _BudgetState) -> Iterator[Batch]:
        """Keep the candidates of a batch until all users are complete."""
        state.add(batch)
        return iter(())

    def flush(self, state: _BudgetState) -> Iterator[Batch]:
        """Return the candidates above the limit that the budget allows."""
        limit = global_margin(
            list(state.thresholds.values()), state.days_per_user, self.alerts_per_day
        )
        for number, batch in enumerate(state.batches, start=1):
            yield state.apply_budget(batch, limit, is_last=number == len(state.batches))


@dataclass
class _BudgetState:
    """The users of a run, their time ranges, and their alerts.

    Attributes:
        rules: The suppressions.
        batches: Candidates of all users.
        thresholds: Threshold of each user.
        time_ranges: First and last time of each user's events, in seconds since 1970.
        alerts: User and session of each alert.
        suppressed: User and session of each alert with suppressed events.
    """

    rules: Suppressions
    batches: list[Batch] = field(default_factory=list)
    thresholds: dict[str | None, UserThreshold] = field(default_factory=dict)
    time_ranges: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    alerts: set[tuple[str | None, int]] = field(default_factory=set)
    suppressed: set[tuple[str | None, int]] = field(default_factory=set)

    @property
    def days_per_user(self) -> list[float]:
        """Number of calendar days between each user's first and last event."""
        return [
            last // SECONDS_PER_DAY - first // SECONDS_PER_DAY + 1
            for first, last in self.time_ranges.values()
        ]

    def add(self, batch: Batch) -> None:
        """Add a batch, with the threshold and the time range of its user."""
        self.batches.append(batch)
        if batch.candidates is not None:
            first, last = batch.candidates.time_range
            start, end = self.time_ranges.get(batch.user, (first, last))
            self.thresholds[batch.user] = batch.candidates.threshold
            self.time_ranges[batch.user] = min(first, start), max(last, end)

    def apply_budget(self, batch: Batch, limit: float, *, is_last: bool) -> Batch:
        """Drop the events of a batch that are not alerts. The last batch carries the report."""
        if batch.candidates is not None:
            batch = self._keep_alerts(batch, batch.candidates, batch.candidates.margins > limit)
        return replace(batch, budget_report=self._make_report(limit)) if is_last else batch

    def _keep_alerts(
        self, batch: Batch, candidates: AlertCandidates, above_limit: NDArray[np.bool_]
    ) -> Batch:
        rows = above_limit & (candidates.suppressed_by == NO_MATCH)
        self.alerts |= {(batch.user, int(each)) for each in candidates.session_ids[rows]}
        self.suppressed |= {
            (batch.user, int(each)) for each in candidates.session_ids[above_limit & ~rows]
        }
        counts = self.rules.count(
            candidates.suppressed_by[above_limit], candidates.expired_rule[above_limit]
        )
        batch = replace(batch, candidates=None)
        return mask_batch(batch, rows, counts, collect_stats=batch.dropped_stats is not None)

    def _make_report(self, limit: float) -> AlertBudgetReport:
        forecast = AlertForecast.from_thresholds(
            list(self.thresholds.values()), self.days_per_user, limit
        )
        return AlertBudgetReport(forecast, len(self.alerts), len(self.suppressed - self.alerts))


def mask_batch(
    batch: BatchT,
    mask: NDArray[np.bool_],
    suppressed: tuple[SuppressionCounts, ...] = (),
    *,
    collect_stats: bool = False,
) -> BatchT:
    """Drop events of a batch and count them.

    Args:
        batch: The events.
        mask: Which events to keep, shape (rows,).
        suppressed: Counts of suppressed events, to be added to the batch.
        collect_stats: Summarise the dropped events for a later stage.
    """
    codes = batch.encoded and replace(batch.encoded, inverse=batch.encoded.inverse[mask])
    kept = replace(
        batch,
        table=batch.table.filter(mask),
        encoded=codes,
        filtered=batch.filtered + int((~mask).sum()),
        dropped_stats=_summarise_dropped(batch, ~mask) if collect_stats else batch.dropped_stats,
        suppressed=batch.suppressed + suppressed,
        candidates=batch.candidates and batch.candidates.filter(mask),
    )
    return replace(kept, losses=kept.losses[mask]) if isinstance(kept, Losses | Scored) else kept


def _summarise_dropped(batch: Batch, dropped: NDArray[np.bool_]) -> DroppedStats:
    """Summarise the dropped events of a batch, with those dropped before.

    Args:
        batch: The events, dropped ones included.
        dropped: Which events are dropped, shape (rows,).
    """
    arrays = EventArrays.from_frame(batch.table.filter(dropped).to_frame())
    summary = None if batch.card is None else batch.card.summary
    stats = DroppedStats(arrays.histogram, count_exceedances(summary, arrays.risks))
    return stats if batch.dropped_stats is None else batch.dropped_stats.merge(stats)
