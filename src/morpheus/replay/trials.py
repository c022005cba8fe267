"""Each technique tried on each user: the user's events scored, with the technique among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter

import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, RISK, TIME
from morpheus.engines.fold import chain_stages
from morpheus.pipeline import Pipeline
from morpheus.records import Batch, Events, WithModel, OutputRows, RunMetrics
from morpheus.replay import techniques
from morpheus.replay.drill import Drill
from morpheus.replay.hold_out import HoldOut, before
from morpheus.replay.injection import INJECTED, called, derived_anew, put, starting
from morpheus.replay.techniques import Technique
from morpheus.replay.victims import Victim
from morpheus.sinks.keep import CollectSink
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stage import PipelineOptions, Transform
from morpheus.stages.add_scores import AddScores
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.train_ae import TrainAe
from morpheus.suppressions.rules import Suppressions

CONTEXT = timedelta(days=35)
"""How much of what the user did before is scored along: to `risk`, the slowest to forget, what is
older counts a thousandth."""
TECHNIQUE, GRADE, POINTS, HELD = "technique", "grade", "score", "held_by"
"""Columns of scored events; without a technique, the event is the user's own, and without
`held_by`, no suppression holds it back."""
SCHEMA = pl.Schema(
    {
        TECHNIQUE: pl.String(),
        GRADE: pl.String(),
        TIME: pl.Datetime("us", "UTC"),
        POINTS: pl.Float64(),
        HELD: pl.String(),
    }
)


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

    def training_input(self) -> str | None:
        """What the fingerprints are learnt from."""
        return self.learning.training_input()

    def needs_population(self) -> bool:
        """Whom users are compared with is asked while learning."""
        return self.learning.needs_population()

    def with_population(self, population: pl.DataFrame | None) -> Trials:
        """Compare users with everybody, as before the days that are held out."""
        if self.held_out and population is not None and not population.is_empty():
            population = before(population)
        return replace(self, learning=self.learning.with_population(population))

    def is_cpu_bound(self) -> bool:
        """Learning and trying are."""
        return True

    def __call__(self, batches: Iterator[Events]) -> Iterator[OutputRows]:
        """Try the techniques on each user."""
        for _, group in groupby(batches, key=attrgetter("user")):
            yield self._tried(list(group))

    def _tried(self, group: list[Events]) -> OutputRows:
        learning = replace(self.learning, options=self.options)
        known = list(learning(iter(group)))
        events = pl.concat([batch.frame for batch in known])
        whole = replace(known[0], frame=events)
        if whole.fingerprint is None or whole.user is None or events.is_empty():
            reason = whole.unscored_reason or "no event to inject among"
            unscored = SCHEMA.to_frame()
            return whole.evolve(OutputRows, frame=unscored, fingerprint=None, unscored_reason=reason)
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
            return pl.DataFrame(nothing, schema_overrides=SCHEMA).select(*named, *nothing)
        injected = called(whole.frame, technique, victim, grade, start=start, seed=self.seed)
        window = put(_around(whole.frame, start, start + technique.lasts), injected)
        window = derived_anew(window, seen, victim.column)
        scored = self._scored(replace(whole, frame=window)).filter(INJECTED)
        return scored.select(*named, TIME, POINTS, HELD)

    def _scored(self, batch: WithModel) -> pl.DataFrame:
        """Pass a user's events through the rest of the chain, as if there were no others."""
        chain = [Preprocess(), InfPytorch(), AddScores(label=(self.label,))]
        settled = [replace(stage, options=self.options) for stage in chain]
        [scored] = chain_stages(settled, iter([batch]))
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
    loaded = techniques.load(drill.techniques)
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
    stages: Sequence[Transform] = [source, *([HoldOut()] if once else []), trials, keep]
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
    return pl.lit(None, SCHEMA[name]).alias(name)
