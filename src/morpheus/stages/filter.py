"""`filter`: keep events with a high score, or the alerts of a budget.

A budget needs two stages. `CandidateFilter` sees one user at a time, and keeps the events that
could be alerts. `BudgetFilter` sees all users, divides the budget, and drops the other candidates;
on an input without end, `StreamBudgetFilter` decides at once. An alert is a user's day.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import TypeVar

import msgspec
import numpy as np
import polars as pl
from msgspec import structs
from numpy.typing import NDArray

from morpheus.columns import INCIDENT_ID, INCIDENT_SEVERITY, RATE_PVALUE, RISK, TIME, TS_ANOMALY
from morpheus.core.batch import (
    AlertBudgetReport,
    AlertCandidates,
    Batch,
    DroppedStats,
    Losses,
    Scored,
    Table,
    has_flags,
)
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.models.calibration import (
    AlertBudget,
    AlertForecast,
    UserDays,
    combine_pvalues,
    compute_severity,
    count_exceedances,
)
from morpheus.models.daily_usage import DailyScores, UsageState
from morpheus.models.profile import SCOPE_GLOBAL, Fingerprint
from morpheus.models.scoring import number_days
from morpheus.report.aggregate import EventArrays
from morpheus.report.incidents import format_day, incident_id
from morpheus.sources.pseudonyms import is_pseudonym
from morpheus.stages.add_scores import (
    DECIMALS,
    ScoreState,
    compute_scores,
    compute_scores_of_users,
    exceeds,
    record_days_of_users,
    score_days,
    validate_labels,
)
from morpheus.suppressions.rules import NO_MATCH, SuppressionCounts, Suppressions
from morpheus.text import suggest

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)

UserDay = tuple[str | None, int]
"""A user, and the number of a day."""
CANDIDATE_MARGIN = 10.0
"""Factor between the p-values of candidates and of alerts: the former are of one user alone."""
BUCKET_DAYS = 7
"""Days of `--max_alerts_per_day` that a quiet time saves up."""
MAX_BURST_PVALUE = 0.05
"""P-value of a burst below which an event without risk can be part of an alert."""
FIRST_USERS = 100
"""Number of user-days from which candidates are dropped before all users are complete."""
ADAPTATION = 0.1
"""How fast the threshold of a stream follows the number of alerts."""
MIN_FIRST_USERS = 20
"""Number of users that the first day of a stream has at least, for the threshold."""
MIN_FACTOR, MAX_FACTOR = 0.02, 5.0
"""Range of the factor by which a stream changes the p-value of alerts."""


class FilterState(ScoreState):
    """What `filter` remembers about one user.

    Attributes:
        remaining: The same as `usage`, without what suppressed events add to the risk of others.
            Not used for users without a suppression.
    """

    max_bytes = 1 << 21

    remaining: UsageState = msgspec.field(default_factory=UsageState)


@dataclass(frozen=True)
class Filter(Transform):
    """Keep events with a score above a threshold, or the alerts of a budget.

    Takes events with losses or scores. An event is kept if any of its scores is above
    `--threshold`. Events without a score are dropped. The summary counts dropped events. A
    `timeseries` after this stage sees kept events only.

    With `--alerts_per_day`, an alert is a day of one user. Days are ranked by the probability that
    a usual day of the user has an event with such a `risk`; the user's own days and those of all
    users count. After `timeseries --detector=rate`, bursts count too. The summary shows the
    expected number of alerts, with its 95 % interval, and the actual number.
    `incident_id` and `incident_severity` (0 to 100) say which alert an event belongs to.
    `--max_alerts_per_day` also limits the actual number: what a quiet week leaves can be used
    later. Stages between this one and `serialize` see all candidate events. On an input without
    end, each event is judged at once, and the threshold follows the actual number.

    `--suppressions` drops events that analysts have judged benign, for the users and until the day
    that each suppression names. The summary counts the events that each suppression has dropped,
    and those that it would have dropped if it had not expired. `morpheus tools suppress` writes and
    previews the file. A suppressed event does not raise the `risk` of later events either: events
    that are not unusual enough without it are dropped, too.

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
        "Alert budget, in place of --threshold: expected alerts per day, for all users together. "
        "An alert is a user's day, and the least probable days are alerts.",
        min=0,
    )
    max_alerts_per_day: float | None = option(
        None,
        "Maximum number of alerts per day, over seven days: the least probable come first. The "
        "summary counts the others. Alone it is the budget, too.",
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
        wanted = self.wanted
        if wanted is None:
            return (replace(self, rules=rules),)
        kind = StreamBudgetFilter if self.options.unbounded else BudgetFilter
        return (
            CandidateFilter(rules, options=self.options),
            kind(wanted, self.max_alerts_per_day, rules, options=self.options),
        )

    def validate(self) -> None:
        """Reject unknown labels, and options that a budget excludes."""
        self._warn_expired(datetime.now(UTC))
        if self.options.pseudonymize:
            self._warn_named_users()
        if self.wanted is not None:
            self._validate_budget()
        elif not self._uses_column:
            validate_labels(self.name, self.label, self.options)

    def open(self, context: StageContext) -> FilterState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return FilterState()

    def process(self, batch: Losses | Scored, state: FilterState) -> Iterator[Losses | Scored]:
        """Drop and count events. A batch without remaining events still carries the counts."""
        rules = self._load_suppressions()
        rows = self._find_exceeding(batch, state.usage)
        suppressed_by, expired_rule = rules.match(batch.user, batch.table.to_frame())
        matched, left = suppressed_by != NO_MATCH, rows
        if rules.concern(batch.user):
            left = rows & self._find_exceeding(batch, state.remaining, ignored=matched)
        followers = int((rows & ~left & ~matched).sum())
        counts = rules.count(suppressed_by[rows], expired_rule[rows], followers)
        mask = left & ~matched
        yield mask_batch(batch, mask, counts, collect_stats=self.options.keeps_dropped_stats)

    def select(self, batch: Batch, risk: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which events may be kept; see `SelectsByRisk`. All, if other scores count."""
        if self.label != (RISK,) or self._uses_column:
            return np.ones(batch.table.height, dtype=np.bool_)
        return exceeds(pl.Series(risk.round(DECIMALS)), self.threshold).to_numpy()

    def process_users(
        self, batches: Sequence[Losses | Scored], states: Sequence[FilterState]
    ) -> Iterator[list[Losses | Scored]]:
        """Drop and count events of several users."""
        tables = [batch.table for batch in batches]
        differ = self._load_suppressions().rules or self.options.keeps_dropped_stats
        if differ or not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        whole, usages = Table.concat(tables), [state.usage for state in states]
        if self._uses_column:
            values = [self._column_values(batches[0].change(table=whole))]
        else:
            values = compute_scores_of_users(batches, usages, self.label, self.options)
        mask = reduce(or_, (exceeds(each, self.threshold) for each in values)).to_numpy()
        bounds = np.cumsum([0, *(table.height for table in tables)]).tolist()
        kept = np.append(0, np.cumsum(mask))[bounds]
        parts = whole.filter(mask).split(np.diff(kept).tolist())
        for batch, table, (start, end) in zip(batches, parts, pairwise(bounds), strict=True):
            yield [_keep_rows(batch, table, mask[start:end])]

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
        most = self.max_alerts_per_day
        if most and not AlertBucket.fits_alert(most):
            raise UsageError(
                f"filter: --max_alerts_per_day: {most:g} allows {BUCKET_DAYS * most:.2g} alerts in "
                f"{BUCKET_DAYS} days, so no alert is possible. Give at least "
                f"{1 / BUCKET_DAYS:.3f}, which is one a week."
            )

    @property
    def wanted(self) -> float | None:
        """The expected number of alerts per day, if there is a budget."""
        return self.max_alerts_per_day if self.alerts_per_day is None else self.alerts_per_day

    @property
    def _uses_column(self) -> bool:
        return self.filter_source.upper() == "DATAFRAME"

    def _find_exceeding(
        self,
        batch: Losses | Scored,
        usage: UsageState,
        ignored: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.bool_]:
        """Return which events have a value above the threshold, (rows,)."""
        if self._uses_column:
            values = [self._column_values(batch)]
        else:
            scores = compute_scores(batch, usage, self.label, self.options, ignored)
            values = list(scores.values())
        return reduce(or_, (exceeds(each, self.threshold) for each in values)).to_numpy()

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


@dataclass(frozen=True)
class CandidateFilter(Transform):
    """Keep the events that add to a user's usual risk: only these can be part of an alert."""

    name = "filter"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> FilterState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return FilterState()

    def process(self, batch: Losses | Scored, state: FilterState) -> Iterator[Losses | Scored]:
        """Drop and count events that cannot be alerts."""
        collect_stats = self.options.keeps_dropped_stats
        scores = score_days(batch, state.usage, self.options.timezone)
        _check_incident_columns(batch)
        if batch.fingerprint is None or scores is None:
            nothing = np.zeros(batch.table.height, dtype=np.bool_)
            # A file has the columns of its first batch, so a batch without rows has all of them.
            table = batch.table.with_columns(_make_empty_incident_columns(batch.table.height))
            yield mask_batch(batch.change(table=table), nothing, collect_stats=collect_stats)
            return
        found = self._find_candidates(batch, batch.fingerprint, state, scores)
        table = batch.table.with_columns(_make_incident_columns([batch.user], [found]))
        batch = replace(batch, candidates=found, table=table)
        yield mask_batch(batch, self.select(batch, scores.risk), collect_stats=collect_stats)

    def process_users(
        self, batches: Sequence[Losses | Scored], states: Sequence[FilterState]
    ) -> Iterator[list[Losses | Scored]]:
        """Drop and count events of several users."""
        tables = [batch.table for batch in batches]
        differ = self.options.keeps_dropped_stats or not Table.have_same_columns(tables)
        usages = [state.usage for state in states]
        records = [] if differ else record_days_of_users(batches, usages, self.options.timezone)
        kept: dict[int, Losses | Scored] = {}
        found: dict[int, AlertCandidates] = {}
        for i, record in enumerate(records):
            fingerprint = batches[i].fingerprint
            if record is not None and fingerprint is not None:
                found[i] = self._find_candidates(batches[i], fingerprint, states[i], record.scores)
        if found:
            chosen = [batches[i] for i in found]
            kept = dict(zip(found, self._keep_candidates(chosen, [*found.values()]), strict=True))
        for i, (batch, state) in enumerate(zip(batches, states, strict=True)):
            yield [kept[i]] if i in kept else list(self.process(batch, state))

    def _keep_candidates(
        self, batches: Sequence[Losses | Scored], found: Sequence[AlertCandidates]
    ) -> Iterator[Losses | Scored]:
        """Drop and count the events of users with the same columns that cannot be alerts."""
        _check_incident_columns(batches[0])
        columns = _make_incident_columns([batch.user for batch in batches], found)
        whole = Table.concat(batch.table for batch in batches).with_columns(columns)
        masks = [self.select(batch, each.risks) for batch, each in zip(batches, found, strict=True)]
        parts = whole.filter(np.concatenate(masks)).split(int(mask.sum()) for mask in masks)
        for batch, each, mask, table in zip(batches, found, masks, parts, strict=True):
            yield _keep_rows(batch.change(candidates=each), table, mask)

    def _find_candidates(
        self,
        batch: Losses | Scored,
        fingerprint: Fingerprint,
        state: FilterState,
        scores: DailyScores,
    ) -> AlertCandidates:
        """Return the events of a batch as alert candidates."""
        days = number_days(batch.table[TIME], self.options.timezone)
        dates, first = np.unique(days, return_inverse=True)
        maxima = np.zeros(len(dates))
        np.maximum.at(maxima, first, scores.risk)
        bursts, day_bursts = _read_bursts(batch), np.full(len(dates), np.nan)
        np.fmin.at(day_bursts, first, bursts)
        calibration = fingerprint.calibration.day_maxima.astype(np.float64)
        shared = fingerprint.card.training_data_scope == SCOPE_GLOBAL
        suppressed_by, expired_rule = self.rules.match(batch.user, batch.table.to_frame())
        left = self._score_remaining(batch, state, scores, suppressed_by != NO_MATCH)
        remaining_pvalues = combine_pvalues(left.pvalue, bursts)
        severities = compute_severity(np.minimum(left.incident_pvalue, remaining_pvalues))
        return AlertCandidates(
            UserDays(calibration, maxima, dates, day_bursts, shared),
            *(scores.risk, days, combine_pvalues(scores.pvalue, bursts), bursts, severities),
            *(left.risk, remaining_pvalues, suppressed_by, expired_rule),
        )

    def select(self, batch: Batch, risk: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which events may be kept; see `SelectsByRisk`."""
        return (risk > 0) | (_read_bursts(batch) < MAX_BURST_PVALUE)

    def _score_remaining(
        self,
        batch: Losses | Scored,
        state: FilterState,
        scores: DailyScores,
        suppressed: NDArray[np.bool_],
    ) -> DailyScores:
        """Return the scores of the events without what the suppressed ones add to them."""
        if not self.rules.concern(batch.user):
            return scores
        left = score_days(batch, state.remaining, self.options.timezone, ignored=suppressed)
        if left is None:
            return scores
        # The days without suppressed events are quieter, which makes no other event unusual.
        return structs.replace(
            left,
            pvalue=np.maximum(left.pvalue, scores.pvalue),
            incident_pvalue=np.maximum(left.incident_pvalue, scores.incident_pvalue),
        )


def _check_incident_columns(batch: Batch) -> None:
    """Reject a log with columns that would be replaced.

    Raises:
        UsageError: It has a column of such a name.
    """
    clash = {INCIDENT_ID, INCIDENT_SEVERITY} & set(batch.log_columns)
    if clash:
        raise UsageError(
            f"filter: the log has a column `{min(clash)}`, which --alerts_per_day would replace. "
            "Rename it in the schema, or use --threshold."
        )


def _make_incident_columns(
    users: Sequence[str | None], candidates: Sequence[AlertCandidates]
) -> list[pl.Series]:
    """Return the id of the incident that each event can be part of, and its severity so far."""
    ids: list[str] = []
    for user, each in zip(users, candidates, strict=True):
        known = {day: incident_id(user, format_day(day)) for day in each.user_days.dates.tolist()}
        ids += [known[day] for day in each.days.tolist()]
    severities = np.concatenate([each.severities for each in candidates])
    return [
        pl.Series(INCIDENT_ID, ids, pl.String),
        pl.Series(INCIDENT_SEVERITY, np.rint(severities), dtype=pl.Int64),
    ]


def _make_empty_incident_columns(height: int) -> list[pl.Series]:
    """Return the columns of `_make_incident_columns` without values."""
    kinds = {INCIDENT_ID: pl.String, INCIDENT_SEVERITY: pl.Int64}
    return [pl.Series(name, [None] * height, kind) for name, kind in kinds.items()]


def _state_severity(batch: BatchT, highest: Mapping[UserDay, float]) -> BatchT:
    """Write the final severity of its incident into each row, unless the column was removed."""
    candidates = batch.candidates
    if candidates is None or INCIDENT_SEVERITY not in batch.table:
        return replace(batch, candidates=None)
    values = np.array([highest[batch.user, day] for day in candidates.days.tolist()])
    column = pl.Series(INCIDENT_SEVERITY, np.rint(values), dtype=pl.Int64)
    return replace(batch, candidates=None, table=batch.table.with_columns([column]))


def _read_bursts(batch: Batch) -> NDArray[np.float64]:
    """Return the p-values that `timeseries --detector=rate` has added; NaN without them."""
    if RATE_PVALUE not in batch.table:
        return np.full(batch.table.height, np.nan)
    pvalues = batch.table[RATE_PVALUE].cast(pl.Float64).fill_null(float("nan"))
    return np.asarray(pvalues.to_numpy())


@dataclass(frozen=True)
class BudgetFilter(Transform):
    """Divide the budget among all user-days, and keep the events of those that are alerts.

    Candidates stay in memory until the last user is complete. Once there are `FIRST_USERS`
    user-days, events that are far from an alert are dropped at once. Suppressions do not change
    thresholds. They only drop events that would have been alerts.
    """

    name = "filter"
    # A global stage moves behind the keyed stages, so `explain` still has the fingerprint.
    scope = "global"
    takes = (Batch,)
    needs = Requirements(
        per_run="--alerts_per_day divides the budget of one run. Start one run for each day, or "
        "use --threshold.",
        holds_events=True,
    )

    alerts_per_day: float = 1.0
    max_alerts_per_day: float | None = None
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> _BudgetState:  # noqa: ARG002 - starts empty
        """Start without users."""
        return _BudgetState(self.rules, self.alerts_per_day)

    def process(self, batch: Batch, state: _BudgetState) -> Iterator[Batch]:
        """Keep the candidates of a batch until all users are complete."""
        state.add(batch)
        yield from state.release_empty()

    def flush(self, state: _BudgetState) -> Iterator[Batch]:
        """Return the events of the user-days that the budget allows."""
        budget = AlertBudget.fit(list(state.user_days.values()), self.alerts_per_day)
        if state.lowest < budget.limit:
            logger.warning(
                "filter: candidates of the first users were dropped before the number of days was "
                "known, and alerts of theirs may be missing. Use a larger --alerts_per_day with "
                "--max_alerts_per_day."
            )
        chosen = state.choose_days(budget, self.max_alerts_per_day)
        kept = [state.keep_alerts(batch, chosen, budget) for batch in state.batches]
        for number, batch in enumerate(kept, start=1):
            rows = _state_severity(batch, state.severities)
            is_last = number == len(kept)
            yield replace(rows, budget_report=state.report(budget, chosen)) if is_last else rows


class _ChosenDays(msgspec.Struct, frozen=True):
    """The user-days that become alerts.

    Attributes:
        days: The user-days.
        capped: Number of user-days that `--max_alerts_per_day` has left out.
        next_pvalue: P-value of the most unusual day that is not an alert; None if there is none.
    """

    days: frozenset[UserDay]
    capped: int
    next_pvalue: float | None


class _BudgetState(msgspec.Struct):
    """The users of a run, their days, and the candidates.

    Attributes:
        rules: The suppressions.
        alerts_per_day: The budget.
        batches: Candidates of all users.
        user_days: Days of each user.
        num_days: Number of all user-days.
        longest: Number of days of the user with most days.
        lowest: Highest p-value of a candidate that was not dropped early.
        suppressed: User-days of which events are suppressed.
        severities: Highest severity of an event of each alert, by user-day.
    """

    rules: Suppressions
    alerts_per_day: float
    batches: list[Batch] = msgspec.field(default_factory=list)
    user_days: dict[str | None, UserDays] = msgspec.field(default_factory=dict)
    num_days: int = 0
    longest: int = 0
    lowest: float = 1.0
    suppressed: set[UserDay] = msgspec.field(default_factory=set)
    severities: dict[UserDay, float] = msgspec.field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Add a batch, with the days of its user."""
        candidates = batch.candidates
        if candidates is not None:
            known = self.user_days.get(batch.user)
            merged = candidates.user_days if known is None else known.merge(candidates.user_days)
            self.num_days += len(merged.dates) - (0 if known is None else len(known.dates))
            self.user_days[batch.user] = merged
            self.longest = max(self.longest, len(merged.dates))
            batch = self._drop_unlikely(batch, candidates)
        self.batches.append(batch)

    def release_empty(self) -> Iterator[Batch]:
        """Return the batch before the latest one if nothing is left of it.

        Of many users, most have no candidate, and a batch without rows takes memory, too. The
        latest batch stays: the last one of the run takes the report.
        """
        if len(self.batches) > 1 and not self.batches[-2].table.height:
            yield _state_severity(self.batches.pop(-2), {})

    def _drop_unlikely(self, batch: Batch, candidates: AlertCandidates) -> Batch:
        if self.num_days < FIRST_USERS:
            return batch
        # More user-days only lower the limit; the span of the days may still grow.
        wanted = self.alerts_per_day * 2 * self.longest
        limit = min(1.0, CANDIDATE_MARGIN * wanted / self.num_days)
        self.lowest = min(self.lowest, limit)
        collect_stats = batch.dropped_stats is not None
        return mask_batch(batch, candidates.pvalues <= limit, collect_stats=collect_stats)

    def choose_days(self, budget: AlertBudget, max_per_day: float | None) -> _ChosenDays:
        """Choose the user-days that become alerts."""
        ranked = sorted(
            (float(pvalue), int(day), user or "", user)
            for user, days in self.user_days.items()
            for pvalue, day, is_usual in zip(
                budget.pvalues(days, days.scored, days.bursts),
                days.dates,
                (days.scored <= 0) & ~(days.bursts < MAX_BURST_PVALUE),
                strict=True,
            )
            # A usual day has no event to show.
            if not is_usual and pvalue <= CANDIDATE_MARGIN * budget.limit
        )
        below = [(user, day) for pvalue, day, _, user in ranked if pvalue <= budget.limit]
        allowed = set(below)
        if max_per_day is not None:
            allowed = limit_by_bucket(below, max_per_day)
        left = [pvalue for pvalue, day, _, user in ranked if (user, day) not in allowed]
        return _ChosenDays(frozenset(allowed), len(below) - len(allowed), min(left, default=None))

    def keep_alerts(self, batch: Batch, chosen: _ChosenDays, budget: AlertBudget) -> Batch:
        """Drop the events of a batch that are not part of an alert."""
        candidates = batch.candidates
        if candidates is None:
            return batch
        user_days = self.user_days[batch.user]
        pvalues, left = (
            budget.pvalues(user_days, risks, candidates.bursts) <= budget.limit
            for risks in (candidates.risks, candidates.remaining)
        )
        days = candidates.days.tolist()
        is_alert = np.fromiter(((batch.user, day) in chosen.days for day in days), np.bool_)
        above = is_alert & pvalues
        rows = above & left & (candidates.suppressed_by == NO_MATCH)
        for day, severity in zip(
            candidates.days[rows].tolist(), candidates.severities[rows].tolist(), strict=True
        ):
            user_day = batch.user, day
            self.severities[user_day] = max(severity, self.severities.get(user_day, 0.0))
        self.suppressed |= {(batch.user, day) for day in candidates.days[above & ~rows].tolist()}
        return drop_suppressed(batch, self.rules, above, rows)

    def report(self, budget: AlertBudget, chosen: _ChosenDays) -> AlertBudgetReport:
        """Return the expected and the actual number of alerts."""
        return AlertBudgetReport(
            budget.forecast,
            len(self.severities),
            len(self.suppressed - self.severities.keys()),
            wanted=budget.wanted,
            days=self.num_days,
            capped=chosen.capped,
            next_pvalue=chosen.next_pvalue,
            reason=budget.reason,
        )


class AlertBucket(msgspec.Struct):
    """How many alerts `--max_alerts_per_day` still allows: a token bucket.

    Each day adds `max_alerts_per_day` tokens, up to those of `BUCKET_DAYS` days, and each alert
    takes one. Any `BUCKET_DAYS` consecutive days together have at most the tokens of as many days:
    after a full bucket, alerts of the days before count until these days are over.

    Attributes:
        tokens: Number of tokens.
        day: Number of the latest day.
        alerts: Number of alerts of each of the latest days, by day.
    """

    tokens: float = 0.0
    day: int | None = None
    alerts: dict[int, int] = {}

    @staticmethod
    def fits_alert(max_per_day: float) -> bool:
        """Return whether the bucket can ever hold the token of an alert."""
        return BUCKET_DAYS * max_per_day >= 1 - 1e-9

    def start_day(self, day: int, max_per_day: float) -> None:
        """Add the tokens of the days since the latest one."""
        passed = 1 if self.day is None else day - self.day
        self.tokens = min(self.tokens + passed * max_per_day, BUCKET_DAYS * max_per_day)
        self.day = day
        self.alerts = {d: n for d, n in self.alerts.items() if d > day - BUCKET_DAYS}

    def count_allowed(self, max_per_day: float) -> int:
        """Return how many more alerts the latest day may have."""
        left = BUCKET_DAYS * max_per_day - sum(self.alerts.values())
        # The sum of fractions can be slightly too small.
        return max(int(min(self.tokens, left) + 1e-9), 0)

    def take(self, alerts: int) -> None:
        """Take the tokens of alerts of the latest day."""
        if self.day is not None and alerts:
            self.tokens -= alerts
            self.alerts[self.day] = self.alerts.get(self.day, 0) + alerts


def limit_by_bucket(ranked: Sequence[UserDay], max_per_day: float) -> set[UserDay]:
    """Return the user-days that a token bucket allows; see `AlertBucket`.

    Args:
        ranked: User-days, the most unusual first.
        max_per_day: Maximum number of alerts per day.

    >>> sorted(limit_by_bucket([("ann", 1), ("bob", 1), ("cy", 2), ("dan", 9)], 1.0))
    [('ann', 1), ('cy', 2), ('dan', 9)]
    """
    allowed: set[UserDay] = set()
    by_day: dict[int, list[UserDay]] = {}
    for user_day in ranked:
        by_day.setdefault(user_day[1], []).append(user_day)
    bucket = AlertBucket()
    for day, user_days in sorted(by_day.items()):
        bucket.start_day(day, max_per_day)
        of_day = user_days[: bucket.count_allowed(max_per_day)]
        bucket.take(len(of_day))
        allowed.update(of_day)
    return allowed


class StreamBudgetState(State):
    """What a budget remembers on an input without end.

    Attributes:
        day: Number of the latest day.
        users: Users with events on that day.
        chosen: Users whose day is an alert.
        raised: Users among them with an event that is not suppressed.
        held: Users whose day would be an alert without `--max_alerts_per_day`.
        users_per_day: Mean number of users on the days before.
        days: Number of days before.
        factor: Factor of the p-value, by which the number of alerts is kept.
        bucket: What `--max_alerts_per_day` still allows.
        alerts: Number of alerts so far.
        suppressed: Number of user-days so far of which all events were suppressed.
        capped: Number of user-days so far that were not allowed.
        earlier: Users in `chosen`, `raised` and `held`, of the days before, by day. Events can come
            after those of the next day: late, or because another user was processed first.
        late: Users in `chosen` and `held` of the days before who came since the latest day began.
    """

    max_bytes = 1 << 24

    day: int = -(1 << 31)
    users: set[str] = msgspec.field(default_factory=set)
    chosen: set[str] = msgspec.field(default_factory=set)
    raised: set[str] = msgspec.field(default_factory=set)
    held: set[str] = msgspec.field(default_factory=set)
    users_per_day: float = 0.0
    days: int = 0
    factor: float = 1.0
    bucket: AlertBucket = msgspec.field(default_factory=AlertBucket)
    alerts: int = 0
    suppressed: int = 0
    capped: int = 0
    earlier: dict[int, tuple[set[str], set[str], set[str]]] = msgspec.field(default_factory=dict)
    late: int = 0

    def start_day(self, day: int, wanted: float, most: float | None) -> None:
        """Close the day before, if a new one starts, and adapt the threshold.

        Args:
            day: Number of the day of the next event.
            wanted: Wanted number of alerts per day.
            most: Maximum number of alerts per day; None for no limit.
        """
        if day <= self.day:
            return
        if self.users:
            self.days += 1
            self.users_per_day += (len(self.users) - self.users_per_day) / self.days
            alerts = len(self.chosen) + self.late + len(self.held)
            miss = (alerts - wanted) / max(wanted, 1.0)
            factor = self.factor * math.exp(-ADAPTATION * miss)
            self.factor = min(max(factor, MIN_FACTOR), MAX_FACTOR)
        if most is not None:
            self.bucket.start_day(day, most)
        if self.chosen or self.held:
            self.earlier[self.day] = self.chosen, self.raised, self.held
        self.earlier = {d: sets for d, sets in self.earlier.items() if d > day - BUCKET_DAYS}
        self.day, self.users, self.held = day, set(), set()
        self.chosen, self.raised, self.late = set(), set(), 0

    def find_limit(self, wanted: float) -> float:
        """Return the p-value of alerts on the latest day.

        The number of users is that of earlier days. On the first day it is not known, and is taken
        as at least `MIN_FIRST_USERS`, so that the first user is not an alert for being the first.
        """
        usual = self.users_per_day if self.days else MIN_FIRST_USERS
        return min(self.factor * wanted / max(usual, len(self.users)), 1.0)

    def allows(self, user: str, day: int, most: float | None) -> bool:
        """Return whether a day of a user may become an alert, and count it."""
        chosen, _, held = self._find_alerts(day)
        if user in chosen or user in held:
            return user in chosen
        self.late += day != self.day
        if most is not None and not self.bucket.count_allowed(most):
            held.add(user)
            self.capped += 1
            return False
        self.bucket.take(1)
        chosen.add(user)
        self.suppressed += 1
        return True

    def raise_alert(self, user: str, day: int) -> None:
        """Count an alert with an event that is not suppressed."""
        _, raised, _ = self._find_alerts(day)
        if user not in raised:
            raised.add(user)
            self.alerts += 1
            self.suppressed -= 1

    def _find_alerts(self, day: int) -> tuple[set[str], set[str], set[str]]:
        """Return the users in `chosen`, in `raised` and in `held` of a day."""
        if day == self.day:
            return self.chosen, self.raised, self.held
        return self.earlier.setdefault(day, (set(), set(), set()))


@dataclass(frozen=True)
class StreamBudgetFilter(Transform):
    """Judge each event at once, by the p-value that the budget leaves for each user's day."""

    name = "filter"
    scope = "global"
    takes = (Batch,)
    needs = Requirements()  # the state file has the threshold, so it is not per run

    alerts_per_day: float = 1.0
    max_alerts_per_day: float | None = None
    rules: Suppressions = field(default_factory=Suppressions)

    def open(self, context: StageContext) -> StreamBudgetState:  # noqa: ARG002 - starts empty
        """Start without users."""
        return StreamBudgetState()

    def process(self, batch: Batch, state: StreamBudgetState) -> Iterator[Batch]:
        """Keep the events whose user-day is an alert."""
        for kept in self.process_users([batch], [state]):
            yield from kept

    def process_users(
        self, batches: Sequence[Batch], states: Sequence[StreamBudgetState]
    ) -> Iterator[Sequence[Batch]]:
        """Judge the events of several users day by day, so that each day has all its users."""
        above = [np.zeros((2, batch.table.height), dtype=np.bool_) for batch in batches]
        by_day: dict[int, list[int]] = {}
        for number, batch in enumerate(batches):
            if batch.candidates is not None and batch.user is not None:
                for day in batch.candidates.user_days.dates.tolist():
                    by_day.setdefault(day, []).append(number)
        for day in sorted(by_day):
            for number in by_day[day]:
                self._choose_events(batches[number], day, states[number], above[number])
        for batch, state, found in zip(batches, states, above, strict=True):
            if batch.candidates is None or batch.user is None:
                yield [replace(batch, candidates=None)]
            else:
                kept = drop_suppressed(batch, self.rules, *found)
                yield [replace(kept, candidates=None, budget_report=self._report(state))]

    def _choose_events(
        self, batch: Batch, day: int, state: StreamBudgetState, found: NDArray[np.bool_]
    ) -> None:
        """Mark which events of a day are part of an alert, and which of them are left.

        Args:
            batch: Events of one user, with candidates.
            day: The day.
            state: What the budget remembers.
            found: The marks, 2 x (events,).
        """
        candidates, user = batch.candidates, batch.user
        if candidates is None or user is None:
            return
        state.start_day(day, self.alerts_per_day, self.max_alerts_per_day)
        if day == state.day:
            state.users.add(user)
        limit = state.find_limit(self.alerts_per_day)
        of_day = (candidates.days == day) & (candidates.pvalues <= limit)
        if of_day.any() and state.allows(user, day, self.max_alerts_per_day):
            left = of_day & (candidates.suppressed_by == NO_MATCH)
            left &= candidates.remaining_pvalues <= limit
            found |= np.stack([of_day, left])
            if left.any():
                state.raise_alert(user, day)

    def _report(self, state: StreamBudgetState) -> AlertBudgetReport:
        return AlertBudgetReport(
            AlertForecast.from_rates(np.full(state.days + 1, self.alerts_per_day)),
            state.alerts,
            state.suppressed,
            capped=state.capped,
            reason="" if state.days else "learning: the number of users per day is not known yet",
        )


def drop_suppressed(
    batch: BatchT, rules: Suppressions, above: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> BatchT:
    """Keep the alerts of a batch, and count what suppressions drop.

    Args:
        batch: The events, with candidates.
        rules: The suppressions.
        above: Which events would be alerts without suppressions, shape (rows,).
        rows: Which events are alerts, shape (rows,).
    """
    candidates = batch.candidates
    if candidates is None:
        return batch
    suppressed_by = candidates.suppressed_by[above]
    followers = int((above & ~rows).sum()) - int((suppressed_by != NO_MATCH).sum())
    counts = rules.count(suppressed_by, candidates.expired_rule[above], followers)
    return mask_batch(batch, rows, counts, collect_stats=batch.dropped_stats is not None)


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
    codes = batch.encoded and structs.replace(batch.encoded, inverse=batch.encoded.inverse[mask])
    kept = replace(
        batch,
        table=batch.table.filter(mask),
        encoded=codes,
        filtered=batch.filtered + int((~mask).sum()),
        filtered_flags=batch.filtered_flags + _count_flags(batch.table, ~mask),
        dropped_stats=_summarise_dropped(batch, ~mask) if collect_stats else batch.dropped_stats,
        suppressed=batch.suppressed + suppressed,
        candidates=batch.candidates and batch.candidates.filter(mask),
    )
    return replace(kept, losses=kept.losses[mask]) if isinstance(kept, Losses | Scored) else kept


def _keep_rows(batch: Losses | Scored, table: Table, mask: NDArray[np.bool_]) -> Losses | Scored:
    """Return what `mask_batch` does, with the rows that are left.

    Args:
        batch: The events.
        table: The events to keep.
        mask: Which events these are, shape (rows,).
    """
    encoded, dropped = batch.encoded, len(mask) - table.height
    changes: dict[str, object] = {"table": table, "filtered": batch.filtered + dropped}
    if dropped:
        changes["filtered_flags"] = batch.filtered_flags + _count_flags(batch.table, ~mask)
        changes["losses"] = batch.losses[mask]
        if encoded is not None:
            changes["encoded"] = structs.replace(encoded, inverse=encoded.inverse[mask])
    if batch.candidates is not None:
        changes["candidates"] = batch.candidates.filter(mask)
    if dropped and isinstance(batch, Scored):
        changes["daily"] = None  # of all events
    return batch.change(**changes)


def _count_flags(table: Table, dropped: NDArray[np.bool_]) -> int:
    """Return how many of the dropped events have a time-series anomaly."""
    return int(table[TS_ANOMALY].filter(dropped).sum()) if has_flags(table) else 0


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
