"""The later days held out, where there is only one set of files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, RISK, TIME
from morpheus.core.batch import Batch, Events, OutputRows, RunMetrics, WithModel
from morpheus.core.stage import PipelineOptions, Requirements, Stage, StageContext, Transform
from morpheus.pipeline import Pipeline
from morpheus.replay.injection import (
    INJECTED,
    ReplayConfig,
    TargetUser,
    build_events,
    draw_start,
    merge_events,
    recompute_derived,
)
from morpheus.replay.techniques import Technique, load_techniques
from morpheus.runtime.chain import Segment
from morpheus.sinks.memory import CollectSink
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT
from morpheus.stages.add_scores import AddScores
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.train_ae import TrainAe, UserTraining
from morpheus.suppressions.rules import Suppressions

HELD_OUT_SHARE = 0.25
"""Share of the days that have events, the last ones, that are held out; at least one day."""


@dataclass(frozen=True)
class TimeSplit(Transform):
    """Keep the last days as events, and the days before as history.

    Takes events whose history is the same files' again.
    """

    name = "hold-out"
    takes = (Events,)
    gives = Events

    needs = Requirements(population=True)

    def open(self, context: StageContext) -> datetime | None:
        """Choose the days to hold out, from the times of all users."""
        population = context.population
        if population is None or population.is_empty():
            return None
        if self.name not in context.cache:
            context.cache[self.name] = find_split_time(population[TIME])
        split_time: datetime = context.cache[self.name]
        return split_time

    def process(self, batch: Events, state: datetime | None) -> Iterator[Events]:
        """Divide the events of a batch; a user's first batch brings the history."""
        if state is None:
            return
        past = None if batch.history is None else batch.history.filter(pl.col(TIME) < state)
        events = batch.frame.filter(pl.col(TIME) >= state)
        yield replace(batch, frame=events, history=past)


def find_split_time(times: pl.Series) -> datetime:
    """When the held-out days begin.

    >>> from morpheus.testing import events_at
    >>> str(find_split_time(events_at([day * 86400 + 3600 for day in range(8)])["event_dt"]))
    '2021-10-15 00:00:00+00:00'
    """
    days = times.dt.truncate("1d").unique().sort()
    first: datetime = days[-max(1, int(len(days) * HELD_OUT_SHARE))]
    return first


def select_before_split(population: pl.DataFrame) -> pl.DataFrame:
    """Those of everybody's events that are not held out."""
    return population.filter(pl.col(TIME) < find_split_time(population[TIME]))


CONTEXT_WINDOW = timedelta(days=35)
"""How much of what the user did before is scored along: to `risk`, the slowest to forget, what is
older counts a thousandth."""
TECHNIQUE, EVASION_LEVEL, SCORE, SUPPRESSED = "technique", "grade", "score", "held_by"
"""Columns of scored events; without a technique, the event is the user's own, and without
`held_by`, no suppression holds it back."""
SCORED_EVENT_SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        EVASION_LEVEL: pl.String(),
        TIME: pl.Datetime("us", "UTC"),
        SCORE: pl.Float64(),
        SUPPRESSED: pl.String(),
    }
)


@dataclass
class _ReplayState:
    """A user's batches, until the last one is there.

    Attributes:
        training: State of the training stage.
        batches: The batches.
    """

    training: UserTraining
    batches: list[Events] = field(default_factory=list)


@dataclass(frozen=True)
class ReplayScorer(Transform):
    """Score a user's events, and each technique among them as if it alone had happened.

    Gives one row an event: the user's own, then those injected, technique by technique and grade by
    grade. A technique that no time is right for is one row without time and score.
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

    def validate(self) -> None:
        """Refuse what cannot be learnt from."""
        self.trainer.validate()

    @property
    def needs(self) -> Requirements:
        """What training needs; each user is worth a worker process."""
        return replace(self._bind_trainer().needs, cpu_bound=True, users_per_bundle=1)

    def open(self, context: StageContext) -> _ReplayState:
        """Compare users with all users, as they were before the days that are held out."""
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
        """Try the techniques on the user."""
        if state.batches:
            yield self._score_user(state)

    def _bind_trainer(self) -> TrainAe:
        return replace(self.trainer, options=self.options)

    def _score_user(self, state: _ReplayState) -> OutputRows:
        trainer, batches = self._bind_trainer(), state.batches
        known = [out for batch in batches for out in trainer.process(batch, state.training)]
        known += trainer.flush(state.training)
        events = pl.concat([batch.frame for batch in known])
        whole = replace(known[0], frame=events)
        if whole.fingerprint is None or whole.user is None or events.is_empty():
            reason = whole.unscored_reason or "no event to inject among"
            unscored = SCORED_EVENT_SCHEMA.to_frame()
            return whole.evolve(
                OutputRows, frame=unscored, fingerprint=None, unscored_reason=reason
            )
        past = batches[0].history
        seen = events if past is None else pl.concat([past, events], how="diagonal")
        named = self.options.userid_column_name
        victim = TargetUser.from_events(whole.user, ACTOR if named == ACTOR_OPTION else named, seen)
        own = self._score_events(whole).select(
            _null_column(TECHNIQUE), _null_column(EVASION_LEVEL), TIME, SCORE, SUPPRESSED
        )
        trials = (
            self._score_trial(whole, seen, victim, technique, grade)
            for technique in self.techniques
            for grade in self.evasion_levels
        )
        return whole.evolve(OutputRows, frame=pl.concat([own, *trials]), fingerprint=None)

    def _score_trial(
        self,
        whole: WithModel,
        known_events: pl.DataFrame,
        victim: TargetUser,
        technique: Technique,
        evasion_level: str,
    ) -> pl.DataFrame:
        """The scores of a technique's events."""
        named = (
            pl.lit(technique.name).alias(TECHNIQUE),
            pl.lit(evasion_level).alias(EVASION_LEVEL),
        )
        start = draw_start(whole.frame, technique, victim, evasion_level, self.seed)
        if start is None:
            nothing = {TIME: [None], SCORE: [None], SUPPRESSED: [None]}
            return pl.DataFrame(nothing, schema_overrides=SCORED_EVENT_SCHEMA).select(
                *named, *nothing
            )
        injected = build_events(
            whole.frame, technique, victim, evasion_level, start=start, seed=self.seed
        )
        window = merge_events(
            _select_context(whole.frame, start, start + technique.duration), injected
        )
        window = recompute_derived(window, known_events, victim.user_column)
        scored = self._score_events(replace(whole, frame=window)).filter(INJECTED)
        return scored.select(*named, TIME, SCORE, SUPPRESSED)

    def _score_events(self, batch: WithModel) -> pl.DataFrame:
        """Pass a user's events through the rest of the chain, as if there were no others."""
        stages = [Preprocess(), InfPytorch(), AddScores(label=(self.label,))]
        bound = [replace(stage, options=self.options) for stage in stages]
        [scored] = Segment.from_stages(bound).open().run([batch])
        titles = pl.Series(
            SUPPRESSED, self.suppressions.find_labels(scored.user, scored.frame), pl.String
        )
        return scored.frame.with_columns(pl.col(self.label).cast(pl.Float64).alias(SCORE), titles)


def run_replay(
    config: ReplayConfig, suppressions: Suppressions | None = None
) -> tuple[list[Batch], RunMetrics]:
    """Try what a drill asks for.

    Args:
        config: What is asked for.
        suppressions: In place of the drill's.

    Returns:
        For each user its scored events, as `ReplayScorer` gives them, or why there are none; and the
        run's summary.

    Raises:
        MorpheusError: What the person at the prompt can act on.
    """
    loaded = load_techniques(config.techniques)
    once = config.train_data_glob is None and config.pretrained_filename is None
    trials = ReplayScorer(
        techniques=tuple(loaded),
        evasion_levels=config.evasion_levels,
        label=config.label,
        seed=config.seed,
        held_out=once,
        trainer=TrainAe(
            train_data_glob=config.input_glob if once else config.train_data_glob,
            pretrained_filename=config.pretrained_filename,
            train_min_history=config.train_min_history,
            seed=config.seed,
        ),
        suppressions=suppressions or Suppressions.read(*config.suppressions),
    )
    source = FromCloudtrail(input_glob=config.input_glob, bad_record=config.bad_record)
    keep = CollectSink()
    stages: Sequence[Stage] = [source, *([TimeSplit()] if once else []), trials, keep]
    summary = Pipeline(stages, _build_options(config)).run()
    return keep.batches, summary


def _build_options(config: ReplayConfig) -> PipelineOptions:
    settings = PipelineOptions(
        userid_column_name=config.userid_column_name,
        userid_filter=config.userid_filter,
        columns_file=config.columns_file,
        labels=(config.label,),
    )
    if config.num_threads is None:
        return settings
    return replace(settings, num_threads=config.num_threads)


def _select_context(events: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    return events.filter(pl.col(TIME).is_between(start - CONTEXT_WINDOW, end))


def _null_column(name: str) -> pl.Expr:
    return pl.lit(None, SCORED_EVENT_SCHEMA[name]).alias(name)


ALERTS_PER_USER_DAY = 1 / 7
"""Alerts a day for each user, where no other budget is given."""
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


@dataclass(frozen=True)
class ReplayReport:
    """What came of a drill.

    Attributes:
        trials: One row for each technique, user and grade. `caught` is null where the technique
            could not be placed; `rank` is that of its most unusual event among the `events_of_day`
            of the user's own, 1 for the most unusual of all; `seconds_to_catch` go from its first
            event to the first that raises an alert; `hidden_by` is the suppression that holds all
            alerts of the technique back, where one does.
        alerts_allowed: Alerts that the budget allows on the users' own events.
        alerts_raised: Alerts that these events do raise.
        skipped: Users on whom nothing could be tried, with the reason.
    """

    trials: pl.DataFrame
    alerts_allowed: int
    alerts_raised: int
    skipped: dict[str | None, str]

    @property
    def recall(self) -> float | None:
        """Share of trials caught; None where there was none."""
        share = self.trials[CAUGHT].mean()
        return share if isinstance(share, float) else None

    def count_caught(self, *by: str) -> pl.DataFrame:
        """Caught and tried, for each of the values of some columns."""
        caught = pl.col(CAUGHT)
        return self.trials.group_by(by, maintain_order=True).agg(
            caught.sum().alias(CAUGHT), caught.count().alias("tried")
        )


def evaluate(batches: Iterable[Batch], alerts_per_day: float | None = None) -> ReplayReport:
    """Judge the scored events of all users, as `ReplayScorer` gives them.

    A user's own events may raise as many alerts as the budget allows in the days from the first to
    the last of them: the highest of their scores that raises none is the user's threshold.

    Args:
        batches: One for each user.
        alerts_per_day: For all users tried together; None for one for each user and week.
    """
    batches = list(batches)
    tried = [batch for batch in batches if batch.frame.height]
    untried = {one.user: one.unscored_reason or "" for one in batches if not one.frame.height}
    daily = ALERTS_PER_USER_DAY if alerts_per_day is None else alerts_per_day / max(1, len(tried))
    users = [_evaluate_user(batch, daily) for batch in tried]
    trials = pl.concat([TRIAL_SCHEMA.to_frame(), *(user.trials for user in users)])
    return ReplayReport(
        trials.sort(TECHNIQUE, USER, maintain_order=True),
        sum(user.alerts_allowed for user in users),
        sum(user.alerts_raised for user in users),
        untried,
    )


def find_threshold(scores: pl.Series, allowed: int) -> float:
    """The score above which at most so many of these lie.

    >>> find_threshold(pl.Series([1.0, 5.0, 3.0, 3.0]), 1), find_threshold(pl.Series([1.0]), 1)
    (3.0, -inf)
    """
    ordered = scores.sort(descending=True)
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def _evaluate_user(batch: Batch, alerts_per_day: float) -> ReplayReport:
    """What came of one user's trials."""
    is_own = pl.col(TECHNIQUE).is_null()
    own, injected = batch.frame.filter(is_own), batch.frame.filter(~is_own)
    allowed = math.floor(alerts_per_day * _count_days(own[TIME].to_list()) + 1e-9)
    limit = find_threshold(own[SCORE], allowed)
    trials = [
        {USER: batch.user, "threshold": limit, **_evaluate_trial(part, own, limit)}
        for part in injected.partition_by(TECHNIQUE, EVASION_LEVEL, maintain_order=True)
    ]
    raised = own.filter((pl.col(SCORE) > limit) & pl.col(SUPPRESSED).is_null()).height
    return ReplayReport(pl.DataFrame(trials, schema=TRIAL_SCHEMA), allowed, raised, {})


def _count_days(times: list[datetime]) -> int:
    """Days from the first event to the last, both counted."""
    return (max(times).date() - min(times).date()).days + 1


def _evaluate_trial(events: pl.DataFrame, own: pl.DataFrame, limit: float) -> dict[str, Any]:
    """What came of one trial, but for what all trials of the user share."""
    named = {TECHNIQUE: events[TECHNIQUE][0], EVASION_LEVEL: events[EVASION_LEVEL][0]}
    if events[TIME].has_nulls():
        return named
    times: list[datetime] = events[TIME].to_list()
    scores: list[float] = events[SCORE].to_list()
    days = times[0].date(), times[-1].date()
    of_day = own.filter(pl.col(TIME).dt.date().is_between(*days))[SCORE]
    alarming = events.filter(pl.col(SCORE) > limit)
    alerts: list[datetime] = alarming.filter(pl.col(SUPPRESSED).is_null())[TIME].to_list()
    return named | {
        CAUGHT: bool(alerts),
        "rank": 1 + int((of_day >= max(scores)).sum()),
        "events_of_day": len(of_day),
        "seconds_to_catch": (alerts[0] - times[0]).total_seconds() if alerts else None,
        SCORE: max(scores),
        "start": times[0].strftime(DEFAULT_TIME_FORMAT),
        SUPPRESSED_BY: None if alerts or alarming.is_empty() else alarming[SUPPRESSED][0],
    }
