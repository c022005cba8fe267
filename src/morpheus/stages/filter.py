"""What `filter --alerts_per_day` does: first with each user alone, then with all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from operator import or_

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME
from morpheus.core.batch import AlertBudgetReport, AlertCandidates, Batch, Losses, Scored
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.errors import UsageError
from morpheus.models.calibration import (
    SECONDS_PER_DAY,
    SESSION_GAP,
    AlertForecast,
    UserThreshold,
    global_margin,
)
from morpheus.stages.add_scores import ScoreState
from morpheus.stages.score_outputs import compute_scores, exceeds, mask_batch, validate_labels
from morpheus.suppressions.rules import NO_MATCH, Suppressions

logger = logging.getLogger(__name__)


class SessionState(ScoreState):
    """What a candidate filter remembers about one user.

    A session is a run of events without a pause of an hour.

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
        numbers = self.session_id + np.cumsum(starts)
        self.last_time, self.session_id = float(seconds[-1]), int(numbers[-1])
        return numbers, (float(seconds.min()), float(seconds.max()))


@dataclass(frozen=True)
class CandidateFilter(Transform):
    """Keep the events of a user that would be alerts if the whole budget were theirs."""

    name = "filter"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> SessionState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return SessionState()

    def process(self, batch: Losses | Scored, state: SessionState) -> Iterator[Losses | Scored]:
        """Drop and count what cannot be an alert."""
        collect_stats = self.options.keeps_dropped_stats
        scores = compute_scores(batch, state, (RISK,), self.options)
        sessions, time_range = state.assign_sessions(batch.frame[TIME])
        if batch.fingerprint is None or time_range is None:
            nothing = np.zeros(batch.frame.height, dtype=np.bool_)
            yield mask_batch(batch, nothing, collect_stats=collect_stats)
            return
        threshold = UserThreshold.from_calibration(batch.fingerprint.calibration)
        margins = scores[RISK].to_numpy() - threshold.mean_risk
        matches = self.rules.match(batch.user, batch.frame)
        candidates = AlertCandidates(threshold, margins, sessions, time_range, *matches)
        rows = margins > threshold.threshold_for(self.alerts_per_day)
        yield mask_batch(replace(batch, candidates=candidates), rows, collect_stats=collect_stats)


@dataclass(frozen=True)
class BudgetFilter(Transform):
    """Divide the budget: keep the candidates that are above their users' thresholds.

    All candidates are held until the last user has come: they are as few as alerts are. No
    threshold depends on suppressions, which hold back what would have been an alert.
    """

    name = "filter"
    # It may be moved after the user's other stages, which then still have the fingerprint: `explain`
    # explains candidates.
    scope = "global"
    takes = (Batch,)
    needs = Requirements(per_run=True)

    alerts_per_day: float = 1.0
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> _BudgetState:  # noqa: ARG002 - starts empty
        """Start without users."""
        return _BudgetState(self.rules)

    def process(self, batch: Batch, state: _BudgetState) -> Iterator[Batch]:
        """Hold the candidates of a batch until all users are known."""
        state.add(batch)
        return iter(())

    def flush(self, state: _BudgetState) -> Iterator[Batch]:
        """Keep the candidates above the limit that the budget allows."""
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
        suppressed: User and session of each alert that a suppression has stopped.
    """

    rules: Suppressions
    batches: list[Batch] = field(default_factory=list)
    thresholds: dict[str | None, UserThreshold] = field(default_factory=dict)
    time_ranges: dict[str | None, tuple[float, float]] = field(default_factory=dict)
    alerts: set[tuple[str | None, int]] = field(default_factory=set)
    suppressed: set[tuple[str | None, int]] = field(default_factory=set)

    @property
    def days_per_user(self) -> list[float]:
        """How many days there are of each user."""
        return [
            last // SECONDS_PER_DAY - first // SECONDS_PER_DAY + 1
            for first, last in self.time_ranges.values()
        ]

    def add(self, batch: Batch) -> None:
        """Add a batch, with its user's threshold and times."""
        self.batches.append(batch)
        if batch.candidates is not None:
            first, last = batch.candidates.time_range
            since, until = self.time_ranges.get(batch.user, (first, last))
            self.thresholds[batch.user] = batch.candidates.threshold
            self.time_ranges[batch.user] = min(first, since), max(last, until)

    def apply_budget(self, batch: Batch, limit: float, *, is_last: bool) -> Batch:
        """Leave out what is no alert; the last batch brings the account."""
        if batch.candidates is not None:
            batch = self._keep_alerts(batch, batch.candidates, batch.candidates.margins > limit)
        return replace(batch, budget_report=self._make_report(limit)) if is_last else batch

    def _keep_alerts(
        self, batch: Batch, candidates: AlertCandidates, alarming: NDArray[np.bool_]
    ) -> Batch:
        """Let pass what is alarming and held back by nothing."""
        rows = alarming & (candidates.suppressed_by == NO_MATCH)
        self.alerts |= {(batch.user, int(run)) for run in candidates.session_ids[rows]}
        self.suppressed |= {
            (batch.user, int(run)) for run in candidates.session_ids[alarming & ~rows]
        }
        met = self.rules.count(
            candidates.suppressed_by[alarming], candidates.expired_rule[alarming]
        )
        judged = replace(batch, candidates=None)
        return mask_batch(judged, rows, met, collect_stats=batch.dropped_stats is not None)

    def _make_report(self, limit: float) -> AlertBudgetReport:
        forecast = AlertForecast.from_thresholds(
            list(self.thresholds.values()), self.days_per_user, limit
        )
        return AlertBudgetReport(forecast, len(self.alerts), len(self.suppressed - self.alerts))


@dataclass(frozen=True)
class Filter(Transform):
    """Hand on only the events whose score is above a threshold.

    Takes events with losses or scores. An event stays if any of its scores is above `--threshold`;
    events without a score go. The summary counts what was left out. `timeseries` behind it looks at
    what is left.

    With `--alerts_per_day`, an alert is a run of a user's events without an hour's pause, of which
    one at least is above the user's own threshold. The summary says how many alerts were to be
    expected, with the interval that 95 of 100 such runs should keep to, and how many there were.
    Stages between it and `serialize` still see the events that come into question.

    `--suppressions` holds back what people have judged harmless, for the users it names and until
    the day it says. The summary says how many events each suppression has held back, and how many
    it would have, had it not ended. `morpheus tools suppress` makes the file, and previews it.

    Example: `filter --threshold=2.5`, `filter --alerts_per_day=2`,
    `filter --filter_source=DATAFRAME --field_name=max_abs_z`, or
    `filter --alerts_per_day=2 --suppressions=suppressions.toml`
    """

    name = "filter"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    threshold: float = option(
        0.5, "Score above which an event stays. Scores are no probabilities: look first."
    )
    label: tuple[str, ...] = option(
        (), "Score looked at; repeat for more. By default every label of --labels_file."
    )
    copy: bool = option(
        True, "Accepted for old command lines. Events that stay are never changed here."
    )
    filter_source: str = option(
        "Auto",
        "What is looked at: the scores (TENSOR, and Auto), or a column (DATAFRAME).",
        choices=("Auto", "TENSOR", "DATAFRAME"),
    )
    field_name: str = option("probs", "Column of numbers to look at, with DATAFRAME.")
    alerts_per_day: float | None = option(
        None,
        "Instead of a threshold: alerts a day among all users together. Each user's threshold "
        "comes from how `risk` went on held-out days.",
        min=0,
    )
    suppressions: tuple[str, ...] = option(
        (), "File of suppressions, which hold back what would have stayed; repeat for more."
    )
    rules: Suppressions | None = None

    def expand(self) -> tuple[Transform, ...]:
        """With a budget, a look at each user and then one at everybody."""
        # Read here, where the files are: other parts of the chain may run on other machines.
        rules = self._load_suppressions()
        if self.alerts_per_day is None:
            return (replace(self, rules=rules),)
        return (
            CandidateFilter(self.alerts_per_day, rules, options=self.options),
            BudgetFilter(self.alerts_per_day, rules, options=self.options),
        )

    def validate(self) -> None:
        """Refuse labels that nothing computes, and what goes ill with a budget."""
        self._warn_expired(datetime.now(UTC))
        if self.alerts_per_day is not None:
            self._validate_budget()
            return
        if not self._uses_column:
            validate_labels(self.name, self.label, self.options)

    def open(self, context: StageContext) -> ScoreState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ScoreState()

    def process(self, batch: Losses | Scored, state: ScoreState) -> Iterator[Losses | Scored]:
        """Drop and count events; a batch of which nothing is left carries the count."""
        rules = self._load_suppressions()
        values = self._values(batch, state)
        rows = reduce(or_, (exceeds(each, self.threshold) for each in values)).to_numpy()
        suppressed_by, expired_rule = rules.match(batch.user, batch.frame)
        counts = rules.count(suppressed_by[rows], expired_rule[rows])
        mask = rows & (suppressed_by == NO_MATCH)
        yield mask_batch(batch, mask, counts, collect_stats=self.options.keeps_dropped_stats)

    def _load_suppressions(self) -> Suppressions:
        return self.rules or Suppressions.read(*self.suppressions)

    def _warn_expired(self, now: datetime) -> None:
        for rule in self._load_suppressions().rules:
            if rule.until <= now:
                logger.warning(
                    "filter: the suppression %s, has ended: later events stay. Take it out of its "
                    "file, or look again and give it another `until`.",
                    rule.label,
                )

    def _validate_budget(self) -> None:
        if set(self.label) - {RISK} or self._uses_column:
            raise UsageError(
                "filter: --alerts_per_day goes by `risk` alone, which is calibrated for it. Leave "
                "--label, --filter_source and --field_name out, or give a --threshold instead."
            )
        if self.options.unbounded:
            raise UsageError(
                "filter: --alerts_per_day needs to have met every user, and this input never ends. "
                "Give `--label=risk --threshold=...`; a run over past days says which threshold."
            )

    @property
    def _uses_column(self) -> bool:
        return self.filter_source.upper() == "DATAFRAME"

    def _values(self, batch: Losses | Scored, state: ScoreState) -> list[pl.Series]:
        """Return the values that are compared with the threshold."""
        if self._uses_column:
            return [self._column_values(batch)]
        return list(compute_scores(batch, state, self.label, self.options).values())

    def _column_values(self, batch: Losses | Scored) -> pl.Series:
        if self.field_name not in batch.frame.columns:
            numbers = [n for n, kind in batch.frame.schema.items() if kind.is_float()]
            known = f" Columns of numbers are {', '.join(numbers)}." if numbers else ""
            raise UsageError(
                f"filter: --field_name: events have no column `{self.field_name}` here.{known} "
                "Put the stage that adds it in front of `filter`."
            )
        return batch.frame[self.field_name]
