"""Score injected techniques, and evaluate which of them raise an alert.

`run_replay` runs a pipeline of `ReplayScorer`, which scores a user's own events and each technique.
`evaluate` compares the scores with a threshold that the alert budget determines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import ACTOR, ACTOR_OPTION, INCIDENT_ID, POPULATION_USER, RISK, TIME
from morpheus.core.batch import (
    Batch,
    Events,
    Losses,
    OutputRows,
    RunMetrics,
    Step,
    Table,
    WithModel,
)
from morpheus.core.stage import PipelineOptions, Requirements, Stage, StageContext, Transform
from morpheus.errors import UsageError
from morpheus.models.daily_usage import UsageState
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.replay.injection import (
    INJECTED,
    ReplayConfig,
    TargetUser,
    Technique,
    build_events,
    draw_start,
    load_techniques,
    merge_events,
    recompute_derived,
)
from morpheus.runtime.chain import Segment
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT
from morpheus.stages.add_scores import compute_scores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import NO_FINGERPRINT, TrainAe, UserTraining
from morpheus.suppressions.rules import Suppressions

HELD_OUT_SHARE = 0.25
"""Share of the days with events, the last ones, that techniques are injected into. At least one."""
CONTEXT_WINDOW = timedelta(days=35)
"""Events before a technique that are scored with it. Older events have a weight below a thousandth
in `risk`, the score with the longest memory."""
ALERTS_PER_USER_DAY = 1 / 7
"""Default alert budget per user and day."""

MAX_REASONS = 3
"""Maximum number of reasons to name."""

TECHNIQUE, EVASION_LEVEL, SCORE, SUPPRESSED = "technique", "grade", "score", "held_by"
REMAINING = "remaining"
SCORED_EVENT_SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        EVASION_LEVEL: pl.String(),
        TIME: pl.Datetime("us", "UTC"),
        SCORE: pl.Float64(),
        SUPPRESSED: pl.String(),
        REMAINING: pl.Float64(),
    }
)
"""Columns of scored events. `technique` is null for the user's own events. `held_by` names the
suppression that matches the event, if one does. `remaining` is the score without the suppressed
events."""
_SCORED = (TIME, SCORE, SUPPRESSED, REMAINING)
LOG_PREFIX = "log:"
"""Prefix of the columns of the log among those of scored events."""
FOLLOWS_SUPPRESSED = "unusual only after suppressed events"
"""In place of a suppression in `hidden_by`, if none matches an alert of the technique."""
USER, CAUGHT, SUPPRESSED_BY = "user", "caught", "hidden_by"
TRIAL_SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        USER: pl.String(),
        EVASION_LEVEL: pl.String(),
        CAUGHT: pl.Boolean(),
        "rank": pl.Int64(),
        "events_of_day": pl.Int64(),
        "seconds_to_catch": pl.Float64(),
        SCORE: pl.Float64(),
        "threshold": pl.Float64(),
        "start": pl.String(),
        SUPPRESSED_BY: pl.String(),
    }
)
"""Columns of trials, which are also those of the file that `morpheus tools replay` writes."""


def run_replay(
    config: ReplayConfig,
    suppressions: Suppressions | None = None,
    on_step: Callable[[Step], None] | None = None,
    columns: Sequence[str] = (),
    source_values: Mapping[str, Any] | None = None,
) -> tuple[list[Batch], RunMetrics]:
    """Inject techniques into the log of each user, and score the events.

    Args:
        config: The options of `morpheus tools replay`.
        suppressions: Suppressions to use instead of those in the options.
        on_step: Called with each step; see `Pipeline.run`.
        columns: Columns of the log that scored events have, as text.
        source_values: Further options of the source, such as the time range.

    Returns:
        For each user its scored events, as `ReplayScorer` outputs them, or the reason why there are
        none; and the metrics of the run.

    Raises:
        MorpheusError: An option or an input is wrong.
    """
    # One set of files is read twice: as events, and as the history before them.
    splits_input = config.train_data_glob is None and config.pretrained_filename is None
    scorer = ReplayScorer(
        techniques=tuple(load_techniques(config.techniques)),
        evasion_levels=config.evasion_levels,
        label=config.label,
        seed=config.seed,
        held_out=splits_input,
        trainer=TrainAe(
            train_data_glob=config.input_glob if splits_input else config.train_data_glob,
            pretrained_filename=config.pretrained_filename,
            train_min_history=config.train_min_history,
            seed=config.seed,
        ),
        suppressions=suppressions or Suppressions.read(*config.suppressions),
        columns=tuple(columns),
    )
    source = FromCloudtrail(
        input_glob=config.input_glob, bad_record=config.bad_record, **(source_values or {})
    )
    _check_output(config, source)
    sink = CollectSink()
    split = [TimeSplit()] if splits_input else []
    stages: Sequence[Stage] = [source, *split, scorer, sink]
    metrics = Pipeline(stages, _build_options(config)).run(on_step=on_step)
    return sink.batches, metrics


def _check_output(config: ReplayConfig, source: FromCloudtrail) -> None:
    """Reject a file for the trials that is one of the logs."""
    if config.filename is not None and source.overlaps_input(
        Path(config.filename), config.train_data_glob
    ):
        raise UsageError(
            f"--filename: `{config.filename}` is one of the input logs, and would be replaced. "
            "Give another file."
        )


def _build_options(config: ReplayConfig) -> PipelineOptions:
    options = PipelineOptions(
        userid_column_name=config.userid_column_name,
        userid_filter=config.userid_filter,
        skip_user=config.skip_user,
        timezone=config.timezone,
        columns_file=config.columns_file,
        labels=(config.label,),
    )
    if config.num_threads is None:
        return options
    return replace(options, num_threads=config.num_threads)


@dataclass(frozen=True)
class TimeSplit(Transform):
    """Keep the last days as events, and the days before as history.

    The history of its input is read from the same files as the events.
    """

    name = "hold-out"
    takes = (Events,)
    gives = Events
    needs = Requirements(population=True)

    def open(self, context: StageContext) -> datetime | None:
        """Return the split time, which is the same for all users; None without events."""
        population = context.population
        if population is None or population.is_empty():
            return None
        if self.name not in context.cache:
            context.cache[self.name] = find_split_time(population[TIME])
        split_time: datetime = context.cache[self.name]
        return split_time

    def process(self, batch: Events, state: datetime | None) -> Iterator[Events]:
        """Split a batch. The first batch of a user has the user's history."""
        if state is None:
            return
        history, table = batch.history, batch.table
        if history is not None:
            history = history.filter((history[TIME] < state).to_numpy())
        table = table.filter((table[TIME] >= state).to_numpy())
        yield replace(batch, table=table, history=history)


def find_split_time(times: pl.Series) -> datetime:
    """Return the start of the last `HELD_OUT_SHARE` of the days with events.

    >>> from morpheus.testing import make_events
    >>> str(find_split_time(make_events([day * 86400 + 3600 for day in range(8)])["event_dt"]))
    '2021-10-15 00:00:00+00:00'
    """
    days = times.dt.truncate("1d").unique().sort()
    first: datetime = days[-max(1, int(len(days) * HELD_OUT_SHARE))]
    return first


def select_before_split(population: pl.DataFrame) -> pl.DataFrame:
    """Return the events before the split time."""
    return population.filter(pl.col(TIME) < find_split_time(population[TIME]))


class _ReplayState(msgspec.Struct):
    """The batches of a user, until the last one is there.

    Attributes:
        training: State of the training stage.
        batches: The batches.
    """

    training: UserTraining
    batches: list[Events] = msgspec.field(default_factory=list)


@dataclass(frozen=True)
class ReplayScorer(Transform):
    """Score a user's events, and each technique as if it were the only one.

    Outputs one row per event: the user's own events, then injected ones, by technique and evasion
    level. A technique for which no time fits is one row without a time and a score.

    Attributes:
        techniques: The techniques to inject.
        evasion_levels: The evasion levels to inject each of them at.
        label: Score of `add-scores` to use.
        seed: Random seed.
        held_out: Whether `TimeSplit` precedes this stage.
        trainer: Trains or loads the models.
        suppressions: Rules whose matches are noted in `held_by`, and taken out of `remaining`.
        columns: Further columns of the output, as text.
    """

    name = "trials"
    takes = (Events,)
    gives = OutputRows

    techniques: tuple[Technique, ...] = ()
    evasion_levels: tuple[str, ...] = ()
    label: str = RISK
    seed: int = 0
    held_out: bool = False
    trainer: TrainAe = field(default_factory=TrainAe)
    suppressions: Suppressions = field(default_factory=Suppressions)
    columns: tuple[str, ...] = ()

    def validate(self) -> None:
        """Validate the options of the trainer."""
        self.trainer.validate()

    @property
    def needs(self) -> Requirements:
        """What the trainer needs; each user is worth a worker process."""
        return replace(self._bind_trainer().needs, cpu_bound=True, users_per_bundle=1)

    def open(self, context: StageContext) -> _ReplayState:
        """Give the trainer the sample of all users, without the days that are injected into."""
        population = context.population
        if self.held_out and population is not None and not population.is_empty():
            if self.name not in context.cache:
                context.cache[self.name] = select_before_split(population)
            context = replace(context, population=context.cache[self.name])
        return _ReplayState(self._bind_trainer().open(context))

    def process(self, batch: Events, state: _ReplayState) -> Iterator[OutputRows]:
        """Wait for all events of the user."""
        state.batches.append(batch)
        return iter(())

    def flush(self, state: _ReplayState) -> Iterator[OutputRows]:
        """Score all events of the user."""
        if state.batches:
            yield self._score_user(state)

    def _bind_trainer(self) -> TrainAe:
        return replace(self.trainer, options=self.options)

    def _score_user(self, state: _ReplayState) -> OutputRows:
        trainer, batches = self._bind_trainer(), state.batches
        with_model = [out for each in batches for out in trainer.process(each, state.training)]
        with_model += trainer.flush(state.training)
        table = Table.concat(batch.table for batch in with_model)
        batch, events = replace(with_model[0], table=table), table.to_frame()
        if batch.fingerprint is None or batch.user is None or events.is_empty():
            reason = batch.unscored_reason or "no event to inject among"
            empty = Table(SCORED_EVENT_SCHEMA.to_frame())
            return batch.evolve(OutputRows, table=empty, fingerprint=None, unscored_reason=reason)
        history = batches[0].history
        known_events = events
        if history is not None:
            known_events = pl.concat([history.to_frame(), events], how="diagonal")
        column = self.options.userid_column_name
        victim = TargetUser.from_events(
            batch.user, ACTOR if column == ACTOR_OPTION else column, known_events
        )
        null = (_null_column(TECHNIQUE), _null_column(EVASION_LEVEL))
        own = self._score_events(batch).select(*null, *_SCORED, *self._prefixed)
        trials = (
            self._score_trial(batch, known_events, victim, technique, evasion_level)
            for technique in self.techniques
            for evasion_level in self.evasion_levels
        )
        rows = Table(pl.concat([own, *trials]))
        return batch.evolve(OutputRows, table=rows, fingerprint=None)

    def _score_trial(
        self,
        batch: WithModel,
        known_events: pl.DataFrame,
        victim: TargetUser,
        technique: Technique,
        evasion_level: str,
    ) -> pl.DataFrame:
        """Score the events of a technique, injected among the events of the batch."""
        keys = (
            pl.lit(technique.name).alias(TECHNIQUE),
            pl.lit(evasion_level).alias(EVASION_LEVEL),
        )
        events = batch.table.to_frame()
        start = draw_start(events, technique, victim, evasion_level, self.seed)
        if start is None:
            names = (*_SCORED, *self._prefixed)
            kinds = {name: SCORED_EVENT_SCHEMA.get(name, pl.String()) for name in names}
            nothing = pl.DataFrame({name: [None] for name in names}, schema_overrides=kinds)
            return nothing.select(*keys, *names)
        injected = build_events(
            events, technique, victim, evasion_level, start=start, seed=self.seed
        )
        context = _select_context(events, start, start + technique.duration)
        window = recompute_derived(
            merge_events(context, injected),
            known_events,
            victim.user_column,
            self.options.timezone,
        )
        scored = self._score_events(replace(batch, table=Table(window))).filter(INJECTED)
        return scored.select(*keys, *_SCORED, *self._prefixed)

    def _score_events(self, batch: WithModel) -> pl.DataFrame:
        """Score a batch as if the user had no other events."""
        stages = [Preprocess(), InfPytorch()]
        bound = [replace(stage, options=self.options) for stage in stages]
        [losses] = Segment.from_stages(bound).open().run([batch])
        if not isinstance(losses, Losses):
            raise TypeError(f"{InfPytorch.name} gives {type(losses).__name__}")
        rows = losses.table.to_frame()
        labels = pl.Series(SUPPRESSED, self.suppressions.find_labels(losses.user, rows), pl.String)
        score = self._compute_score(losses)
        remaining = score
        if self.suppressions.concern(losses.user):
            remaining = self._compute_score(losses, labels.is_not_null().to_numpy())
        texts = [
            pl.col(name).cast(pl.String) if name in rows.columns else pl.lit(None, pl.String)
            for name in self.columns
        ]
        return rows.with_columns(
            score.alias(SCORE),
            labels,
            remaining.alias(REMAINING),
            *(text.alias(name) for text, name in zip(texts, self._prefixed, strict=True)),
        )

    @property
    def _prefixed(self) -> list[str]:
        """Names of the further columns, which differ from all others."""
        return [LOG_PREFIX + name for name in self.columns]

    def _compute_score(self, batch: Losses, ignored: NDArray[np.bool_] | None = None) -> pl.Series:
        """Return the score of each event, without what the ignored ones add to it."""
        label = (self.label,)
        return compute_scores(batch, UsageState(), label, self.options, ignored)[self.label]


def _select_context(events: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    return events.filter(pl.col(TIME).is_between(start - CONTEXT_WINDOW, end))


def _null_column(name: str) -> pl.Expr:
    return pl.lit(None, SCORED_EVENT_SCHEMA[name]).alias(name)


class ReplayReport(msgspec.Struct, frozen=True):
    """The result of an attack replay.

    Attributes:
        trials: One row per technique, user and evasion level, with the columns of `TRIAL_SCHEMA`.
            `caught` is null if the technique could not be injected. `rank` is the rank of its
            highest event among the user's own events of that day, of which there are
            `events_of_day`; 1 is the highest. `seconds_to_catch` is the time from its first event
            to the first that raises an alert. `hidden_by` names the suppression that suppresses all
            of its alerts, if one does.
        alerts_allowed: Alerts that the budget allows on the users' own events.
        alerts_raised: Alerts that the users' own events raise.
        skipped: Users without a trial, and the reason.
    """

    trials: pl.DataFrame
    alerts_allowed: int
    alerts_raised: int
    skipped: dict[str | None, str]

    @property
    def recall(self) -> float | None:
        """Share of trials caught. None without trials."""
        share = self.trials[CAUGHT].mean()
        return share if isinstance(share, float) else None

    @property
    def tried_users(self) -> set[str | None]:
        """Users with a trial."""
        return {*self.trials.filter(pl.col(CAUGHT).is_not_null())[USER]}

    def explain_no_trial(self, config: ReplayConfig, metrics: RunMetrics) -> str:
        """Say why nothing was tried, and what to do.

        Args:
            config: The options of the replay.
            metrics: The metrics of its run.
        """
        stats, reasons = metrics.input, list(dict.fromkeys(self.skipped.values()))
        left_out = stats.other_users + stats.skipped_users
        if self.trials.height:
            why = "no technique is short enough for the active hours of a user"
            advice = "Give --grade=recorded or --grade=agent, too."
        elif left_out and left_out == stats.read:
            why = "no event of the input is of a wanted user"
            advice = "Give another --userid_filter or --skip_user."
        elif self.skipped.keys() == {None}:
            why = f"no event has a user ({reasons[0]})"
            advice = "Give another --userid_column_name."
        elif not reasons:
            why, advice = metrics.empty_reason, "Give other files with --input_glob."
        elif config.pretrained_filename is not None and reasons == [NO_FINGERPRINT]:
            why = f"{config.pretrained_filename} has no fingerprint of a user of the input"
            advice = "Give another --pretrained_filename or --userid_column_name, or none to train."
        else:
            why = f"no user has a model and an event ({'; '.join(reasons[:MAX_REASONS])})"
            advice = "Give users more history, or lower --train_min_history."
        return f"nothing was tried: {why}. {advice}"

    def count_caught(self, *by: str) -> pl.DataFrame:
        """Count trials, and those caught, by the values of some columns."""
        caught = pl.col(CAUGHT)
        return self.trials.group_by(by, maintain_order=True).agg(
            caught.sum().alias(CAUGHT), caught.count().alias("tried")
        )


def evaluate(
    batches: Iterable[Batch],
    alerts_per_day: float | None = None,
    thresholds: Mapping[str | None, float] | None = None,
) -> ReplayReport:
    """Evaluate the scored events of all users.

    A user's threshold is the lowest score such that the user's own events above it are within the
    alert budget, for the days from the first of them to the last.

    Args:
        batches: Outputs of `ReplayScorer`, one per user.
        alerts_per_day: Alert budget of all users together. None for one alert per user and week.
        thresholds: Thresholds of users, in place of those by the budget.
    """
    known = thresholds or {}
    batches = list(batches)
    tried = [batch for batch in batches if batch.table.height]
    skipped = {
        batch.user: batch.unscored_reason or "" for batch in batches if not batch.table.height
    }
    if alerts_per_day is None:
        user_budget = ALERTS_PER_USER_DAY
    else:
        user_budget = alerts_per_day / max(1, len(tried))
    users = [_evaluate_user(batch, user_budget, known.get(batch.user)) for batch in tried]
    trials = pl.concat([TRIAL_SCHEMA.to_frame(), *(user.trials for user in users)])
    return ReplayReport(
        trials.sort(TECHNIQUE, USER, maintain_order=True),
        sum(user.alerts_allowed for user in users),
        sum(user.alerts_raised for user in users),
        skipped,
    )


def list_found_events(
    batches: Iterable[Batch], thresholds: Mapping[str | None, float] | None = None
) -> pl.DataFrame:
    """Return the injected events that raise an alert.

    Args:
        batches: Outputs of `ReplayScorer`, one per user.
        thresholds: As in `evaluate`.

    Returns:
        `POPULATION_USER`, the technique and its evasion level in `INCIDENT_ID`, and the further
        columns of the scorer.
    """
    batches = list(batches)
    trials = evaluate(batches, thresholds=thresholds).trials
    limits = dict(trials.select(USER, "threshold").unique().iter_rows())
    name = pl.format("{} ({})", TECHNIQUE, EVASION_LEVEL).alias(INCIDENT_ID)
    parts = [pl.DataFrame(schema={POPULATION_USER: pl.String, INCIDENT_ID: pl.String})]
    for batch in batches:
        if batch.user in limits:
            rows = batch.table.to_frame()
            above = pl.col(TECHNIQUE).is_not_null() & (pl.col(SCORE) > limits[batch.user])
            log = [
                pl.col(each).alias(each.removeprefix(LOG_PREFIX))
                for each in rows.columns
                if each.startswith(LOG_PREFIX)
            ]
            user = pl.lit(batch.user).alias(POPULATION_USER)
            parts.append(rows.filter(above).select(user, name, *log))
    return pl.concat(parts, how="diagonal")


def find_threshold(scores: pl.Series, allowed: int) -> float:
    """Return the lowest threshold that at most `allowed` of the scores exceed.

    >>> find_threshold(pl.Series([1.0, 5.0, 3.0, 3.0]), 1), find_threshold(pl.Series([1.0]), 1)
    (3.0, -inf)
    """
    ordered = scores.sort(descending=True)
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def _evaluate_user(
    batch: Batch, alerts_per_day: float, threshold: float | None = None
) -> ReplayReport:
    is_own = pl.col(TECHNIQUE).is_null()
    rows = batch.table.to_frame()
    own, injected = rows.filter(is_own), rows.filter(~is_own)
    # A budget of 1/7 for 7 days must give 1, whatever its last binary digit.
    allowed = math.floor(alerts_per_day * _count_days(own[TIME].to_list()) + 1e-9)
    if threshold is None:
        threshold = find_threshold(own[SCORE], allowed)
    trials = [
        {USER: batch.user, "threshold": threshold, **_evaluate_trial(trial, own, threshold)}
        for trial in injected.partition_by(TECHNIQUE, EVASION_LEVEL, maintain_order=True)
    ]
    raised = own.filter(_is_alert(threshold)).height
    return ReplayReport(pl.DataFrame(trials, schema=TRIAL_SCHEMA), allowed, raised, {})


def _count_days(times: list[datetime]) -> int:
    """Count the days from the first event to the last, both included."""
    return (max(times).date() - min(times).date()).days + 1


def _evaluate_trial(events: pl.DataFrame, own: pl.DataFrame, threshold: float) -> dict[str, Any]:
    """Return the columns of a trial that differ between the trials of a user."""
    keys = {TECHNIQUE: events[TECHNIQUE][0], EVASION_LEVEL: events[EVASION_LEVEL][0]}
    if events[TIME].has_nulls():
        return keys
    times: list[datetime] = events[TIME].to_list()
    scores: list[float] = events[SCORE].to_list()
    days = times[0].date(), times[-1].date()
    own_scores = own.filter(pl.col(TIME).dt.date().is_between(*days))[SCORE]
    above = events.filter(pl.col(SCORE) > threshold)
    alerts: list[datetime] = above.filter(_is_alert(threshold))[TIME].to_list()
    return keys | {
        CAUGHT: bool(alerts),
        "rank": 1 + int((own_scores >= max(scores)).sum()),
        "events_of_day": len(own_scores),
        "seconds_to_catch": (alerts[0] - times[0]).total_seconds() if alerts else None,
        SCORE: max(scores),
        "start": times[0].strftime(DEFAULT_TIME_FORMAT),
        SUPPRESSED_BY: None if alerts or above.is_empty() else _find_suppression(above),
    }


def _is_alert(threshold: float) -> pl.Expr:
    """Return which events raise an alert that no suppression hides."""
    above = (pl.col(SCORE) > threshold) & (pl.col(REMAINING) > threshold)
    return above & pl.col(SUPPRESSED).is_null()


def _find_suppression(hidden: pl.DataFrame) -> str:
    """Return the suppression that hides the alerts of a technique."""
    labels: list[str] = hidden[SUPPRESSED].drop_nulls().to_list()
    return labels[0] if labels else FOLLOWS_SUPPRESSED
