"""The Python API: train, score and explain data frames in memory.

`Fingerprints` holds the trained models of a frame's users. Each method runs a pipeline of the
stages that the command line runs, with the same results.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from os import PathLike, fspath
from typing import Any, cast

import polars as pl

from morpheus.columns import INDEX, RISK, SCORE, TIME, ExplanationColumns
from morpheus.core.batch import Events, RunMetrics, Step
from morpheus.core.stage import PipelineOptions, Requirements, Sink, Transform, to_user_column
from morpheus.errors import UsageError
from morpheus.models.profile import InputSpec, ModelCard
from morpheus.models.store import ModelStore, read_key
from morpheus.models.training import EPOCHS
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.sources.base import FileSource
from morpheus.sources.dataframe import (
    INTERNAL_COLUMNS,
    FrameLike,
    FromFrame,
    as_polars,
    require_columns,
)
from morpheus.sources.results import LogKind, silence_log
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import TempFolder
from morpheus.text import format_count, quote_backtick

logger = logging.getLogger(__name__)

MAX_NAMED_USERS = 3
"""Maximum number of users in a message about users without a model."""
SCORE_SCHEMA = pl.Schema(
    {
        SCORE: pl.Float64(),
        RISK: pl.Float64(),
        "pvalue": pl.Float64(),
        "rung": pl.String(),
        "own_share": pl.Float64(),
    }
)
"""Columns of `Fingerprints.score`, which the stage `add-scores` describes."""
REASON_SCHEMA = pl.Schema(dict.fromkeys(ExplanationColumns(), pl.String()))
"""Columns of `Fingerprints.explain`, which the stage `explain` describes."""
TRAINING_SHARE = 0.7
"""Share of the days that are for training, if there is no history."""
USERS_PER_WEEKLY_INCIDENT = 20
"""Default budget: one incident per week for so many users ..."""
MIN_INCIDENTS = 15
"""... but at least so many incidents of all days together. As many are shown."""
MAX_SHARE_OF_USER_DAYS = 0.2
"""Maximum share of the days of users that the budget asks for, in spite of `MIN_INCIDENTS`."""
DAYS_PER_WEEK = 7
RESULT_COLUMNS = frozenset({SCORE, ExplanationColumns().top_columns})
"""Columns of output files that no log has."""
_EXPLAIN_PREFIX = "_explained_"
"""Prefix of the columns that `explain` adds, in case the frame has columns of these names."""


@dataclass(frozen=True)
class Fingerprints:
    """The trained models of the users of a frame. Create it with `train` or `load`.

    Methods accept frames of Polars, of pandas, and of any library with `__arrow_c_stream__`. They
    return Polars frames with one row per row of the input, in the same order.

    Attributes:
        user: Name of the user column.
        time: Name of the time column: datetimes, or text as in logs. UTC without a time zone.
        store: The model store.
        key_file: File with the key of a signed store; None for the key of the environment.
    """

    user: str
    time: str
    store: ModelStore
    key_file: str | None = None

    @classmethod
    def train(  # noqa: PLR0913 - keyword options of training
        cls,
        frame: FrameLike,
        *,
        user: str,
        time: str,
        columns: Sequence[str] | None = None,
        scaler: str = "standard",
        epochs: int = EPOCHS,
        min_history: int = 300,
        seed: int = 0,
        threads: int = 1,
    ) -> Fingerprints:
        """Train a model for each user, as `train-ae` does with training files.

        Args:
            frame: The history of all users, in any order.
            user: Name of the user column. Events without a user are not used. `@actor` finds the
                actor of each event if the frame has the flat columns of a known log.
            time: Name of the time column.
            columns: Feature columns. By default all columns except the user and the time.
            scaler: How to scale numeric columns: "none", "standard" or "gauss_rank".
            epochs: Maximum number of passes over a user's distinct rows.
            min_history: Minimum number of events of a user. Users with fewer are trained with
                events of other users as well.
            seed: Random seed.
            threads: Maximum number of parallel workers. Does not affect results. Above 1, worker
                processes start, so a script must protect its entry point with
                `if __name__ == "__main__":`.

        Raises:
            UsageError: A column does not exist, or no user has enough history.
            RecordError: An event has no valid time.
        """
        events = as_polars(frame)
        if columns is None:
            columns = [
                name
                for name in events.columns
                if name not in {*INTERNAL_COLUMNS, to_user_column(user), time}
            ]
        require_columns(events, "columns", list(columns))
        temp_folder = TempFolder()
        folder = temp_folder.path
        trainer = TrainAe(
            train_epochs=epochs,
            train_min_history=min_history,
            train_max_history=max(1, events.height),
            seed=seed,
            models_output_filename=str(folder),
        )
        options = PipelineOptions(
            userid_column_name=user,
            columns=tuple(columns),
            feature_scaler=scaler,
            num_threads=threads,
        )
        try:
            metrics = Pipeline([FromFrame(events, time), trainer], options).run()
            fingerprints = cls(user, time, ModelStore.open(folder))
            _check_trained(fingerprints.store, metrics)
        except BaseException:  # an interrupt, too, must not leave the folder
            temp_folder.close()
            raise
        weakref.finalize(fingerprints, temp_folder.close)
        return fingerprints

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        *,
        user: str,
        time: str,
        key_file: str | PathLike[str] | None = None,
    ) -> Fingerprints:
        """Open a model store that `save`, or `train-ae --models_output_filename`, wrote.

        A model is read and checked when it is first used.

        Args:
            folder: The folder, on disk or as `s3://bucket/folder`.
            user: Name of the user column of the frames to score.
            time: Name of their time column.

            key_file: File with the key of a signed store. Default: the key of the environment.

        Raises:
            ModelCorruptedError: The index is missing or damaged.
            UsageError: The models name users by another column, or the key is wrong or missing.
        """
        key_path = None if key_file is None else fspath(key_file)
        store = ModelStore.open(folder, read_key(key_path))
        wrong = store.inputs and store.inputs.find_differences(InputSpec("", user, ()))
        if wrong:
            raise UsageError(f"load: the models in `{store.folder}` do not fit. {wrong[0]}.")
        return cls(user, time, store, key_path)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write a model store for `load`, and for `train-ae --pretrained_filename`.

        Existing models in the folder are replaced in one step.

        Raises:
            ModelCorruptedError: A file of a model is missing or has changed.
            TransientError: The folder cannot be written.
        """
        self.store.copy(folder)

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The model card of each user."""
        return self.store.cards

    def score(self, frame: FrameLike, *, missing_features: str = "fail") -> pl.DataFrame:
        """Score how unusual each event is for its user.

        `risk` depends on the user's earlier events in the frame, so pass a user's events together.
        Users without a model are scored by the global model. Without a global model, and for events
        without a user, all values are null, and a warning counts these events.

        Args:
            frame: The events.
            missing_features: What to do if columns that the models depend on have no value in any
                event: `fail`, or `warn` and score without them.

        Returns:
            The columns of `SCORE_SCHEMA`, shape (rows,) each.

        Raises:
            UsageError: The frame lacks columns that the models depend on.
        """
        stages = [AddScores(label=tuple(SCORE_SCHEMA))]
        return self._run_chain(frame, stages, SCORE_SCHEMA, missing_features)

    def explain(
        self,
        frame: FrameLike,
        *,
        top: int = 3,
        threshold: float | None = None,
        missing_features: str = "fail",
    ) -> pl.DataFrame:
        """Explain why events are unusual.

        Args:
            frame: As in `score`.
            top: Maximum number of columns to name.
            threshold: Minimum `risk` of an event to explain. By default, all are explained.
            missing_features: As in `score`.

        Returns:
            The columns of `REASON_SCHEMA`, shape (rows,) each: a sentence, the most unusual
            columns, and the evidence as JSON.
        """
        explain = Explain(top=top, threshold=threshold, prefix=_EXPLAIN_PREFIX)
        prefixed = pl.Schema({_EXPLAIN_PREFIX + name: kind for name, kind in REASON_SCHEMA.items()})
        stages = [AddScores(label=(RISK,)), explain]
        reasons = self._run_chain(frame, stages, prefixed, missing_features)
        return reasons.rename(dict(zip(prefixed, REASON_SCHEMA, strict=True)))

    def _run_chain(
        self,
        frame: FrameLike,
        stages: Sequence[Transform],
        schema: pl.Schema,
        missing_features: str,
    ) -> pl.DataFrame:
        """Run stages on a frame. Return the columns of a schema, in the order of the frame."""
        events, sink = as_polars(frame), CollectSink()
        models = TrainAe(pretrained_filename=str(self.store.folder), models_key_file=self.key_file)
        source = FromFrame(events, self.time)
        options = PipelineOptions(
            userid_column_name=self.user,
            columns=tuple(events.columns),
            num_threads=1,
            missing_features=missing_features,
        )
        chain = [source, models, Preprocess(), InfPytorch(), *stages, sink]
        _warn_unscored(Pipeline(chain, options).run())
        indexed = pl.Schema({INDEX: pl.Int64(), **schema})
        rows = [
            pl.DataFrame(schema=indexed),
            *(
                batch.table.select(indexed.names()).to_frame().cast(indexed)
                for batch in sink.batches
            ),
        ]
        in_order = pl.concat(rows).sort(INDEX).select(schema.names())
        numeric = [name for name, kind in schema.items() if kind.is_float()]
        return in_order.with_columns(pl.col(numeric).fill_nan(None))


def _check_trained(store: ModelStore, metrics: RunMetrics) -> None:
    """Fail if no user has a model. Log the users without one."""
    without_model = [
        (user, reason) for user, reason in metrics.unscored_reasons.items() if user is not None
    ]
    named = without_model[:MAX_NAMED_USERS]
    reasons = ", ".join(f"{user!r} ({reason})" for user, reason in named)
    if not store.cards and store.global_card is None:
        raise UsageError(
            f"train: no user could be trained: {reasons or 'the frame has no event of a user'}. "
            "Give more history, or a smaller `min_history`."
        )
    if without_model:
        logger.warning("%d users have no model of their own: %s", len(without_model), reasons)


def _warn_unscored(metrics: RunMetrics) -> None:
    """Log how many events have no score, and whose they are."""
    unscored = metrics.unscored
    if not unscored:
        return
    named = [
        f"{'no user' if user is None else repr(user)} ({metrics.unscored_reasons[user]})"
        for user in list(unscored)[:MAX_NAMED_USERS]
    ]
    users = len(unscored.keys() - {None})
    logger.warning(
        "%s%s not scored: %s",
        format_count(sum(unscored.values()), "event"),
        f" of {format_count(users, 'user')}" if users else "",
        ", ".join(named),
    )


# What `detect` decides, on the command line and for frames.


@dataclass(frozen=True)
class TimesSink(Sink):
    """Find the first and the last time of some events, without writing anything.

    Attributes:
        logs: Name of the argument with the logs, for messages.
        times: The first and the last time, once there are events.
    """

    name = "times"
    takes = (Events,)
    needs = Requirements()

    logs: str = "LOGS"
    times: list[datetime] = field(default_factory=list)

    def process(self, batch: Events, state: None) -> Iterator[Events]:  # noqa: ARG002 - no state
        """Look at a batch.

        Raises:
            UsageError: It has columns of an output file.
        """
        found = RESULT_COLUMNS & set(batch.table.names)
        if found:
            raise UsageError(
                f"{self.logs}: there are results of an earlier run among the logs: some events "
                f"have a column {quote_backtick(min(found))}. Give the logs without the outputs."
            )
        if batch.table.height:
            column = batch.table[TIME]
            ends = [cast("datetime", column.min()), cast("datetime", column.max()), *self.times]
            self.times[:] = [min(ends), max(ends)]
        yield batch


@dataclass(frozen=True)
class LogOverview:
    """What the logs have.

    Attributes:
        events: Number of events.
        files: Number of files.
        users: Number of users.
        first: First day, in UTC.
        last: Last day.
    """

    events: int
    files: int
    users: int
    first: date
    last: date

    @classmethod
    def from_source(
        cls,
        kind: LogKind,
        source: FileSource,
        logs: str = "LOGS",
        on_step: Callable[[Step], None] | None = None,
    ) -> LogOverview:
        """Read the times and users of all events.

        Args:
            kind: The kind of log.
            source: The source of that kind.
            logs: As in `TimesSink`.
            on_step: Called when the reading begins; see `RunMetrics.on_step`.

        Raises:
            UsageError: There is no event with a user.
        """
        sink = TimesSink(logs)
        # Of the features, one is enough: they are not looked at.
        columns = (source.get_log_format().time_column,) if not kind.columns_file else ()
        options = PipelineOptions(columns=columns, **kind.pipeline_values)

        def begin(step: Step) -> None:
            if on_step is not None and step.unit == "file":
                on_step(replace(step, name="Counting events"))

        with silence_log():
            metrics = Pipeline([source, sink], options).run(on_step=begin)
        users = len(metrics.users.keys() - {None})
        if not users:
            raise UsageError(
                f"{logs}: {metrics.empty_reason or 'no event has a user'}, so there is nothing to "
                "learn. Give other logs."
            )
        first, last = (time.astimezone(UTC).date() for time in sink.times)
        return cls(metrics.users.total(), metrics.input.files, users, first, last)

    @property
    def days(self) -> int:
        """Number of days from the first to the last."""
        return (self.last - self.first).days + 1


@dataclass(frozen=True)
class Plan:
    """What a run trains on and scores.

    Attributes:
        trained: What the fingerprints are trained on, in words.
        source_values: Options of the source.
        training_values: Options of `train-ae`.
        first: First day to score.
        days: Number of days to score.
    """

    trained: str
    source_values: Mapping[str, Any]
    training_values: Mapping[str, Any]
    first: date
    days: int

    @classmethod
    def split(cls, overview: LogOverview, training_values: Mapping[str, Any]) -> Plan:
        """Train on the first days of logs of several days, and score the others."""
        number = min(max(int(TRAINING_SHARE * overview.days), 1), overview.days - 1)
        start = overview.first + timedelta(days=number)
        words = (
            f"{overview.first} to {start - timedelta(days=1)}: "
            f"the first {number:,} of {format_count(overview.days, 'day')}"
        )
        period = {"start_time": str(start), "train_duration": f"{number}d"}
        return cls(words, period, training_values, start, overview.days - number)

    @classmethod
    def after(
        cls, overview: LogOverview, trained_until: str, models: str, loading: Mapping[str, Any]
    ) -> Plan:
        """Score the days after the training of fingerprints; all days if none is after it.

        Args:
            overview: What the logs have.
            trained_until: As in `ModelStore`.
            models: The fingerprints, in words.
            loading: Options of `train-ae` that load them.
        """
        words = f"earlier; {models} are used"
        if not trained_until:
            return cls(words, {}, loading, overview.first, overview.days)
        until = datetime.fromisoformat(trained_until).astimezone(UTC).date()
        words = f"{until} and before; {models} are used"
        if not overview.first <= until < overview.last:
            return cls(words, {}, loading, overview.first, overview.days)
        start = until + timedelta(days=1)
        days = (overview.last - start).days + 1
        return cls(words, {"start_time": str(start)}, loading, start, days)


def choose_budget(users: int, days: int) -> float:
    """Return the default number of incidents per day.

    >>> choose_budget(users=50, days=18)  # 15 in 18 days; one per week for 20 users were 6
    0.833
    >>> choose_budget(users=1000, days=18), choose_budget(users=2, days=10)
    (7.14, 0.4)
    """
    usual = users / USERS_PER_WEEKLY_INCIDENT / DAYS_PER_WEEK
    wanted = min(max(usual, MIN_INCIDENTS / days), MAX_SHARE_OF_USER_DAYS * users)
    return float(f"{wanted:.3g}")
