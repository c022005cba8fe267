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
from morpheus.replay.injection import INJECTED, Drill, Victim, called, derived_anew, put, starting
from morpheus.replay.techniques import Technique, load
from morpheus.runtime.chain import Segment
from morpheus.sinks.memory import CollectSink
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.time_range import DEFAULT_TIME_FORMAT
from morpheus.stages.add_scores import AddScores
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.train_ae import TrainAe, UserTraining
from morpheus.suppressions.rules import Suppressions

HELD_OUT = 0.25
"""Share of the days that have events, the last ones, that are held out; at least one day."""


@dataclass(frozen=True)
class HoldOut(Transform):
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
            context.cache[self.name] = cut_of(population[TIME])
        cut: datetime = context.cache[self.name]
        return cut

    def process(self, batch: Events, state: datetime | None) -> Iterator[Events]:
        """Divide the events of a batch; a user's first batch brings the history."""
        if state is None:
            return
        past = None if batch.history is None else batch.history.filter(pl.col(TIME) < state)
        events = batch.frame.filter(pl.col(TIME) >= state)
        yield replace(batch, frame=events, history=past)


def cut_of(times: pl.Series) -> datetime:
    """When the held-out days begin.

    >>> from morpheus.testing import events_at
    >>> str(cut_of(events_at([day * 86400 + 3600 for day in range(8)])["event_dt"]))
    '2021-10-15 00:00:00+00:00'
    """
    days = times.dt.truncate("1d").unique().sort()
    first: datetime = days[-max(1, int(len(days) * HELD_OUT))]
    return first


def before(everybody: pl.DataFrame) -> pl.DataFrame:
    """Those of everybody's events that are not held out."""
    return everybody.filter(pl.col(TIME) < cut_of(everybody[TIME]))


CONTEXT = timedelta(days=35)
"""How much of what the user did before is scored along: to `risk`, the slowest to forget, what is
older counts a thousandth."""
TECHNIQUE, GRADE, POINTS, HELD = "technique", "grade", "score", "held_by"
"""Columns of scored events; without a technique, the event is the user's own, and without
`held_by`, no suppression holds it back."""
SCORED_SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        GRADE: pl.String(),
        TIME: pl.Datetime("us", "UTC"),
        POINTS: pl.Float64(),
        HELD: pl.String(),
    }
)


@dataclass
class _TrialState:
    """A user's batches, until the last one is there.

    Attributes:
        training: State of the training stage.
        batches: The batches.
    """

    training: UserTraining
    batches: list[Events] = field(default_factory=list)


@dataclass(frozen=True)
class Trials(Transform):
    """Score a user's events, and each technique among them as if it alone had happened.

    Gives one row an event: the user's own, then those injected, technique by technique and grade by
    grade. A technique that no time is right for is one row without time and score.
    """

    name = "trials"
    takes = (Events,)
    gives = OutputRows

    techniques: tuple[Technique, ...] = ()
    grades: tuple[str, ...] = ()
    label: str = RISK
    seed: int = 0
    held_out: bool = False
    learning: TrainAe = field(default_factory=TrainAe)
    rules: Suppressions = field(default_factory=Suppressions)

    def validate(self) -> None:
        """Refuse what cannot be learnt from."""
        self.learning.validate()

    @property
    def needs(self) -> Requirements:
        """What training needs; each user is worth a worker process."""
        return replace(self._learning().needs, cpu_bound=True, users_per_bundle=1)

    def open(self, context: StageContext) -> _TrialState:
        """Train on the days that are not held out."""
        if self.held_out and context.population is not None and not context.population.is_empty():
            if self.name not in context.cache:
                context.cache[self.name] = before(context.population)
            context = replace(context, population=context.cache[self.name])
        return _TrialState(self._learning().open(context))

    def process(self, batch: Events, state: _TrialState) -> Iterator[OutputRows]:
        """Wait for all events of the user."""
        state.batches.append(batch)
        return iter(())

    def flush(self, state: _TrialState) -> Iterator[OutputRows]:
        """Try the techniques on the user."""
        if state.batches:
            yield self._tried(state)

    def _learning(self) -> TrainAe:
        return replace(self.learning, options=self.options)

    def _tried(self, state: _TrialState) -> OutputRows:
        learning, group = self._learning(), state.batches
        known = [out for batch in group for out in learning.process(batch, state.training)]
        known += learning.flush(state.training)
        events = pl.concat([batch.frame for batch in known])
        whole = replace(known[0], frame=events)
        if whole.fingerprint is None or whole.user is None or events.is_empty():
            reason = whole.unscored_reason or "no event to inject among"
            unscored = SCORED_SCHEMA.to_frame()
            return whole.evolve(
                OutputRows, frame=unscored, fingerprint=None, unscored_reason=reason
            )
        past = group[0].history
        seen = events if past is None else pl.concat([past, events], how="diagonal")
        named = self.options.userid_column_name
        victim = Victim.of(whole.user, ACTOR if named == ACTOR_OPTION else named, seen)
        own = self._scored(whole).select(_null(TECHNIQUE), _null(GRADE), TIME, POINTS, HELD)
        trials = (
            self._trial(whole, seen, victim, technique, grade)
            for technique in self.techniques
            for grade in self.grades
        )
        return whole.evolve(OutputRows, frame=pl.concat([own, *trials]), fingerprint=None)

    def _trial(
        self,
        whole: WithModel,
        seen: pl.DataFrame,
        victim: Victim,
        technique: Technique,
        grade: str,
    ) -> pl.DataFrame:
        """The scores of a technique's events."""
        named = (pl.lit(technique.name).alias(TECHNIQUE), pl.lit(grade).alias(GRADE))
        start = starting(whole.frame, technique, victim, grade, self.seed)
        if start is None:
            nothing = {TIME: [None], POINTS: [None], HELD: [None]}
            return pl.DataFrame(nothing, schema_overrides=SCORED_SCHEMA).select(*named, *nothing)
        injected = called(whole.frame, technique, victim, grade, start=start, seed=self.seed)
        window = put(_around(whole.frame, start, start + technique.lasts), injected)
        window = derived_anew(window, seen, victim.column)
        scored = self._scored(replace(whole, frame=window)).filter(INJECTED)
        return scored.select(*named, TIME, POINTS, HELD)

    def _scored(self, batch: WithModel) -> pl.DataFrame:
        """Pass a user's events through the rest of the chain, as if there were no others."""
        stages = [Preprocess(), InfPytorch(), AddScores(label=(self.label,))]
        bound = [replace(stage, options=self.options) for stage in stages]
        [scored] = Segment.from_stages(bound).open().run([batch])
        titles = pl.Series(HELD, self.rules.find_labels(scored.user, scored.frame), pl.String)
        return scored.frame.with_columns(pl.col(self.label).cast(pl.Float64).alias(POINTS), titles)


def run(drill: Drill, suppressions: Suppressions | None = None) -> tuple[list[Batch], RunMetrics]:
    """Try what a drill asks for.

    Args:
        drill: What is asked for.
        suppressions: In place of the drill's.

    Returns:
        For each user its scored events, as `Trials` gives them, or why there are none; and the
        run's summary.

    Raises:
        MorpheusError: What the person at the prompt can act on.
    """
    loaded = load(drill.techniques)
    once = drill.train_data_glob is None and drill.pretrained_filename is None
    trials = Trials(
        techniques=tuple(loaded),
        grades=drill.grades,
        label=drill.label,
        seed=drill.seed,
        held_out=once,
        learning=TrainAe(
            train_data_glob=drill.input_glob if once else drill.train_data_glob,
            pretrained_filename=drill.pretrained_filename,
            train_min_history=drill.train_min_history,
            seed=drill.seed,
        ),
        rules=suppressions or Suppressions.read(*drill.suppressions),
    )
    source = FromCloudtrail(input_glob=drill.input_glob, bad_record=drill.bad_record)
    keep = CollectSink()
    stages: Sequence[Stage] = [source, *([HoldOut()] if once else []), trials, keep]
    summary = Pipeline(stages, _settings(drill)).run()
    return keep.batches, summary


def _settings(drill: Drill) -> PipelineOptions:
    settings = PipelineOptions(
        userid_column_name=drill.userid_column_name,
        userid_filter=drill.userid_filter,
        columns_file=drill.columns_file,
        labels=(drill.label,),
    )
    if drill.num_threads is None:
        return settings
    return replace(settings, num_threads=drill.num_threads)


def _around(events: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    return events.filter(pl.col(TIME).is_between(start - CONTEXT, end))


def _null(name: str) -> pl.Expr:
    return pl.lit(None, SCORED_SCHEMA[name]).alias(name)


A_WEEK = 1 / 7
"""Alerts a day for each user, where no other budget is given."""
USER, CAUGHT, HIDDEN = "user", "caught", "hidden_by"
TRIAL_SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        USER: pl.String(),
        GRADE: pl.String(),
        CAUGHT: pl.Boolean(),
        "rank": pl.Int64(),
        "events_of_day": pl.Int64(),
        "seconds_to_catch": pl.Float64(),
        POINTS: pl.Float64(),
        "threshold": pl.Float64(),
        "start": pl.String(),
        HIDDEN: pl.String(),
    }
)


@dataclass(frozen=True)
class Outcome:
    """What came of a drill.

    Attributes:
        trials: One row for each technique, user and grade. `caught` is null where the technique
            could not be placed; `rank` is that of its most unusual event among the `events_of_day`
            of the user's own, 1 for the most unusual of all; `seconds_to_catch` go from its first
            event to the first that raises an alert; `hidden_by` is the suppression that holds all
            alerts of the technique back, where one does.
        allowed: Alerts that the budget allows on the users' own events.
        raised: Alerts that these events do raise.
        untried: Users on whom nothing could be tried, with the reason.
    """

    trials: pl.DataFrame
    allowed: int
    raised: int
    untried: dict[str | None, str]

    @property
    def recall(self) -> float | None:
        """Share of trials caught; None where there was none."""
        share = self.trials[CAUGHT].mean()
        return share if isinstance(share, float) else None

    def share(self, *by: str) -> pl.DataFrame:
        """Caught and tried, for each of the values of some columns."""
        caught = pl.col(CAUGHT)
        return self.trials.group_by(by, maintain_order=True).agg(
            caught.sum().alias(CAUGHT), caught.count().alias("tried")
        )


def judged(batches: Iterable[Batch], alerts_per_day: float | None = None) -> Outcome:
    """Judge the scored events of all users, as `Trials` gives them.

    A user's own events may raise as many alerts as the budget allows in the days from the first to
    the last of them: the highest of their scores that raises none is the user's threshold.

    Args:
        batches: One for each user.
        alerts_per_day: For all users tried together; None for one for each user and week.
    """
    batches = list(batches)
    tried = [batch for batch in batches if batch.frame.height]
    untried = {one.user: one.unscored_reason or "" for one in batches if not one.frame.height}
    daily = A_WEEK if alerts_per_day is None else alerts_per_day / max(1, len(tried))
    users = [_user(batch, daily) for batch in tried]
    trials = pl.concat([TRIAL_SCHEMA.to_frame(), *(user.trials for user in users)])
    return Outcome(
        trials.sort(TECHNIQUE, USER, maintain_order=True),
        sum(user.allowed for user in users),
        sum(user.raised for user in users),
        untried,
    )


def threshold(scores: pl.Series, allowed: int) -> float:
    """The score above which at most so many of these lie.

    >>> threshold(pl.Series([1.0, 5.0, 3.0, 3.0]), 1), threshold(pl.Series([1.0]), 1)
    (3.0, -inf)
    """
    ordered = scores.sort(descending=True)
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def _user(batch: Batch, daily: float) -> Outcome:
    """What came of one user's trials."""
    is_own = pl.col(TECHNIQUE).is_null()
    own, injected = batch.frame.filter(is_own), batch.frame.filter(~is_own)
    allowed = math.floor(daily * _days(own[TIME].to_list()) + 1e-9)
    limit = threshold(own[POINTS], allowed)
    trials = [
        {USER: batch.user, "threshold": limit, **_trial(part, own, limit)}
        for part in injected.partition_by(TECHNIQUE, GRADE, maintain_order=True)
    ]
    raised = own.filter((pl.col(POINTS) > limit) & pl.col(HELD).is_null()).height
    return Outcome(pl.DataFrame(trials, schema=TRIAL_SCHEMA), allowed, raised, {})


def _days(times: list[datetime]) -> int:
    """Days from the first event to the last, both counted."""
    return (max(times).date() - min(times).date()).days + 1


def _trial(events: pl.DataFrame, own: pl.DataFrame, limit: float) -> dict[str, Any]:
    """What came of one trial, but for what all trials of the user share."""
    named = {TECHNIQUE: events[TECHNIQUE][0], GRADE: events[GRADE][0]}
    if events[TIME].has_nulls():
        return named
    times: list[datetime] = events[TIME].to_list()
    scores: list[float] = events[POINTS].to_list()
    days = times[0].date(), times[-1].date()
    of_day = own.filter(pl.col(TIME).dt.date().is_between(*days))[POINTS]
    alarming = events.filter(pl.col(POINTS) > limit)
    alerts: list[datetime] = alarming.filter(pl.col(HELD).is_null())[TIME].to_list()
    return named | {
        CAUGHT: bool(alerts),
        "rank": 1 + int((of_day >= max(scores)).sum()),
        "events_of_day": len(of_day),
        "seconds_to_catch": (alerts[0] - times[0]).total_seconds() if alerts else None,
        POINTS: max(scores),
        "start": times[0].strftime(DEFAULT_TIME_FORMAT),
        HIDDEN: None if alerts or alarming.is_empty() else alarming[HELD][0],
    }
