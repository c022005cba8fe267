"""The Python API: train, score and explain data frames in memory.

`Fingerprints` holds the trained models of a frame's users. Each method runs a pipeline of the
stages that the command line runs, with the same results.
"""

from __future__ import annotations

import html
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from os import PathLike, fspath
from typing import Any, cast, overload

import msgspec
import polars as pl
from msgspec import inspect

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, RISK, SCORE, TIME, ExplanationColumns
from morpheus.core.batch import Events, RunMetrics, Step
from morpheus.core.stage import PipelineOptions, Requirements, Sink, Transform, to_user_column
from morpheus.errors import UsageError
from morpheus.models.explanation import Explanation
from morpheus.models.profile import InputSpec, ModelCard
from morpheus.models.store import ModelStore, read_key
from morpheus.models.training import EPOCHS
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.sources.base import FileSource
from morpheus.sources.dataframe import (
    INTERNAL_COLUMNS,
    MAX_NAMED_COLUMNS,
    ArrowStream,
    FrameLike,
    as_polars,
    check_names,
    return_like,
)
from morpheus.sources.json_records import flatten_name
from morpheus.sources.log_format import LogFormat, resolve_derived
from morpheus.sources.results import KindTrial, LogKind, find_kind, list_kinds, silence_log
from morpheus.sources.tabular import FRAME_NAME, FrameInput, read_frame, unnest_objects
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import TempFolder
from morpheus.text import display_value, format_count, quote_backtick, suggest

logger = logging.getLogger(__name__)

MAX_NAMED_USERS = 3
"""Maximum number of users in a message about users without a model."""
MAX_SHOWN, MAX_CELL = 10, 200
"""Maximum number of rows, and of characters of a cell, of a table in a notebook."""
RECOGNISED_ROWS = 300
"""Number of rows by which the kind of log of a frame is recognised."""
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
class FrameLog:
    """The kind of log that the rows of frames are, and how they are read.

    Attributes:
        kind: The kind of log.
        options: Options of the pipeline: user, time, features and time zone.
        is_known: Whether the package knows the kind. Otherwise, all columns are those of the frame.
        chosen: Whether the caller has chosen the features.
        any_format: As in `FrameInput`.
    """

    kind: LogKind
    options: PipelineOptions
    is_known: bool = True
    chosen: bool = False
    any_format: bool = False

    @classmethod
    def recognise(
        cls,
        events: pl.DataFrame,
        user: str | None,
        time: str | None,
        columns: Sequence[str] | None = None,
        timezone: str = "UTC",
    ) -> FrameLog:
        """Recognise the kind of log of a frame.

        Args:
            events: The frame.
            user: Name of the user column; None for `@actor`, if the kind is known.
            time: Name of the time column; None for that of the kind, if it is known.
            columns: Feature columns; None for those of the kind or, if it is not known, for all.
            timezone: Time zone of days and hours.

        Raises:
            UsageError: A column does not exist, or the kind is not known and user or time is not
                given.
        """
        kind = recognise_frame(events)
        if kind is None:
            events = unnest_objects(events)
            if user is None or time is None:
                names = ", ".join(map(quote_backtick, events.columns[:MAX_NAMED_COLUMNS]))
                raise UsageError(
                    f"frame: the kind of log is not recognised by its columns ({names or 'none'}). "
                    "Give the columns with the user and the time: `user=` and `time=`."
                )
            left_out = {*INTERNAL_COLUMNS, to_user_column(user), time}
            features = columns or [name for name in events.columns if name not in left_out]
            options = PipelineOptions(columns=tuple(features), timezone=timezone)
            log = cls.make(None, options, user, time, chosen=columns is not None)
        else:
            form = kind.make_source([FRAME_NAME]).get_log_format()
            features = [flatten_name(name, form.drop_characters) for name in columns or ()]
            options = PipelineOptions(columns=tuple(features), timezone=timezone)
            user, time = user or ACTOR_OPTION, time or form.time_column
            log = cls.make(kind, options, user, time, chosen=columns is not None)
        log.check_frame(events)
        log.check_features(events)
        return log

    @classmethod
    def make(
        cls, kind: LogKind | None, options: PipelineOptions, user: str, time: str, *, chosen: bool
    ) -> FrameLog:
        """Describe a log.

        Args:
            kind: The kind; None if it is not known.
            options: Options without the user and the time.
            user: Name of the user column.
            time: Name of the time column.
            chosen: Whether the caller has chosen the features.
        """
        if kind is None:
            user = to_user_column(user)
            options = replace(options, userid_column_name=user, timestamp_column_name=time)
            kind = LogKind("log", "from-file")
            return cls(kind, options, is_known=False, chosen=chosen, any_format=True)
        drop = kind.make_source([FRAME_NAME]).get_log_format().drop_characters
        names = {
            "userid_column_name": user if user == ACTOR_OPTION else flatten_name(user, drop),
            "timestamp_column_name": flatten_name(time, drop),
        }
        return cls(kind, replace(options, **kind.pipeline_values | names), chosen=chosen)

    @classmethod
    def from_store(cls, store: ModelStore, user: str, time: str, frame: pl.DataFrame) -> FrameLog:
        """Return how a frame is read, for the fingerprints of a store to score it.

        Only the names of users are compared if the fingerprints are of a log that is described
        outside of the package, or if they have pseudonyms, which the frame has as well.
        """
        inputs = store.inputs
        if inputs is None:
            names = tuple(name for name in frame.columns if name not in INTERNAL_COLUMNS)
            return cls.make(None, PipelineOptions(columns=names), user, time, chosen=True)
        types = {each.name: each.kind for each in inputs.features if each.kind not in OTHER_KINDS}
        options = PipelineOptions(
            columns=inputs.feature_names, column_types=types, timezone=inputs.timezone
        )
        kind = None if inputs.pseudonyms else find_kind(inputs.source, inputs.columns_file)
        return cls.make(kind, options, user, time, chosen=kind is None)

    @property
    def form(self) -> LogFormat:
        """The format of the log."""
        return replace(self.kind.make_source([FRAME_NAME]), options=self.options).get_log_format()

    def check_frame(self, events: pl.DataFrame) -> None:
        """Reject a frame without the user or the time column.

        Raises:
            UsageError: It lacks one.
        """
        user, names = self.options.userid_column_name, self._list_columns(events)
        if user == ACTOR and not self.is_known and ACTOR not in names:
            raise UsageError(
                f"user: `{ACTOR_OPTION}` needs the flat columns of a known log, such as "
                "`userIdentitytype` and `userIdentityarn`, or a column `actor`. Give the name of "
                "the user column."
            )
        if user != ACTOR_OPTION:
            check_names("user", [user], names)
        check_names("time", [self.options.timestamp_column_name], names)

    def check_features(self, events: pl.DataFrame) -> None:
        """Reject features that neither the frame nor its kind of log has.

        Raises:
            UsageError: There is one.
        """
        features = self.options.columns
        derived = resolve_derived(features, self.form.derived_columns)
        existing = [name for name in features if name not in derived]
        check_names("columns", existing, self._list_columns(events))

    def _list_columns(self, events: pl.DataFrame) -> list[str]:
        """Return the columns that events have once they are read."""
        form = self.form
        header = read_frame(self.prepare(events.head(0)), form).frame
        names = header.columns if not self.is_known else form.rename_columns(header).columns
        known = form.columns if self.is_known else unnest_objects(events).columns
        return list(dict.fromkeys([*names, *known]))

    def make_source(
        self, events: pl.DataFrame, history: pl.DataFrame | None = None, **values: object
    ) -> FileSource:
        """Return the source that reads frames.

        Args:
            events: The events.
            history: Training events; None for those among `events`.
            values: Options of the source, and `keeps_rows` of `FrameInput`.
        """
        frames = FrameInput(
            self.prepare(events),
            None if history is None else self.prepare(history),
            keeps_rows=bool(values.pop("keeps_rows", False)),
            warns_empty=self.chosen,
            any_format=self.any_format,
        )
        return self.kind.make_source([FRAME_NAME], frames=frames, **values)

    def prepare(self, events: pl.DataFrame) -> pl.DataFrame:
        """Return a frame whose columns can be read by their names."""
        return events if self.is_known else unnest_objects(events)


OTHER_KINDS = ("auto", "derived")
"""Kinds of features whose type is no option."""


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Reject a value that is not one of some choices.

    Raises:
        UsageError: It is not one of them. The message suggests a similar one.
    """
    if value not in choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        raise UsageError(
            f"{argument}: there is no choice {quote_backtick(str(value))}."
            f"{suggest(str(value), choices)} Give one of {listed}."
        )


def recognise_frame(events: pl.DataFrame) -> LogKind | None:
    """Return the kind of log of a frame, as `morpheus detect` does with files; None if unknown."""
    step = max(1, events.height // RECOGNISED_ROWS)
    rows = FrameInput(events[::step].head(RECOGNISED_ROWS), keeps_rows=True)
    trials = [
        KindTrial.from_source(kind, kind.make_source([FRAME_NAME], bad_record="skip", frames=rows))
        for kind in list_kinds()
    ]
    best = max(trials, key=lambda trial: trial.known_values)
    return best.kind if best.is_recognised else None


class UnknownUserError(UsageError, KeyError):
    """There is no fingerprint of a user. It is a `KeyError`, too."""

    __str__ = Exception.__str__  # that of `KeyError` quotes the message


@dataclass(frozen=True, repr=False, eq=False)
class Fingerprints:
    """The trained models of the users of a frame. Create it with `train` or `load`.

    `len` counts the users, and `fingerprints[user]` is the card of a user's model.

    Methods accept frames of pandas, of Polars, of pyarrow, and of any library with
    `__arrow_c_stream__`. They return a frame of the same kind (Polars for other libraries) with one
    row per row of the input, in the same order. A frame of pandas keeps its index.

    Attributes:
        user: Name of the user column; `@actor` for the actor by the rules of the log.
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
        user: str | None = None,
        time: str | None = None,
        columns: Sequence[str] | None = None,
        timezone: str = "UTC",
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
                actor of each event if the frame has the columns of a known log; the default for
                these.
            time: Name of the time column. Default: that of the known log.
            columns: Feature columns. Default: for a known log those that the command line uses,
                for others all columns except the user and the time.
            timezone: Time zone of the hours and days of derived columns.
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
        log = FrameLog.recognise(events, user, time, columns, timezone)
        temp_folder = TempFolder()
        folder = temp_folder.path
        trainer = TrainAe(
            train_epochs=epochs,
            train_min_history=min_history,
            train_max_history=max(1, events.height),
            seed=seed,
            models_output_filename=str(folder),
        )
        options = replace(log.options, feature_scaler=scaler, num_threads=threads)
        source = log.make_source(events, keeps_rows=True, implausible_time="keep")
        try:
            metrics = Pipeline([source, trainer], options).run()
            names = log.options.userid_column_name, log.options.timestamp_column_name
            fingerprints = cls(*names, ModelStore.open(folder))
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
        user: str | None = None,
        time: str | None = None,
        key_file: str | PathLike[str] | None = None,
    ) -> Fingerprints:
        """Open a model store that `save`, or `train-ae --models_output_filename`, wrote.

        A model is read and checked when it is first used.

        Args:
            folder: The folder, on disk or as `s3://bucket/folder`.
            user: Name of the user column of the frames to score. Default: that of the training.
            time: Name of their time column. Default: that of the log, if its kind is known.
            key_file: File with the key of a signed store. Default: the key of the environment.

        Raises:
            ModelCorruptedError: The index is missing or damaged.
            UsageError: The models name users by another column, or the key is wrong or missing.
        """
        key_path = None if key_file is None else fspath(key_file)
        store = ModelStore.open(folder, read_key(key_path))
        inputs = store.inputs
        if user is None and inputs is not None:
            user = ACTOR_OPTION if inputs.user_column == ACTOR else inputs.user_column
        kind = None if inputs is None else find_kind(inputs.source, inputs.columns_file)
        if time is None and kind is not None:
            time = kind.make_source([FRAME_NAME]).get_log_format().time_column
        if user is None or time is None:
            missing = "user" if user is None else "time"
            raise UsageError(
                f"load: the models in `{store.folder}` do not say which column has the {missing}. "
                f"Give `{missing}=`."
            )
        named = InputSpec("", to_user_column(user), ())
        wrong = inputs and inputs.find_differences(named)
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

    @property
    def users(self) -> list[str]:
        """The users who have a model, in alphabetical order."""
        return sorted(self.cards)

    @property
    def columns(self) -> tuple[str, ...]:
        """The feature columns that the models have learned; empty if they are not known."""
        return () if self.store.inputs is None else self.store.inputs.feature_names

    def __len__(self) -> int:
        return len(self.cards)

    def __iter__(self) -> Iterator[str]:
        return iter(self.users)

    def __contains__(self, user: object) -> bool:
        return user in self.cards

    def __getitem__(self, user: str) -> ModelCard:
        if user not in self.cards:
            raise UnknownUserError(
                f"There is no fingerprint of {quote_backtick(str(user))}."
                f"{suggest(str(user), self.cards)}"
            )
        return self.cards[user]

    def __repr__(self) -> str:
        return f"<Fingerprints of {self._describe()}>"

    def _repr_html_(self) -> str:
        cards = [self[user] for user in self.users[:MAX_SHOWN]]
        rows = [
            (card.user, f"{card.events:,}", card.training_data_scope, card.last[:10])
            for card in cards
        ]
        caption = f"Fingerprints of {self._describe()}"
        return render_table(caption, ("user", "events", "trained on", "last event"), rows)

    def _describe(self) -> str:
        until = self.store.trained_until[:10]
        features = f", {format_count(len(self.columns), 'column')}" if self.columns else ""
        trained = f", trained until {until}" if until else ""
        return (
            f"{format_count(len(self), 'user')} by {quote_backtick(self.user)}{features}{trained}"
        )

    @overload
    def score(self, frame: pl.DataFrame, *, missing_features: str = "fail") -> pl.DataFrame: ...

    @overload
    def score(self, frame: ArrowStream, *, missing_features: str = "fail") -> Any: ...  # noqa: ANN401 - a frame of the caller's library

    def score(self, frame: FrameLike, *, missing_features: str = "fail") -> Any:
        """Score how unusual each event is for its user.

        `risk` depends on the user's earlier events in the frame, so pass a user's events together.
        Users without a model are scored by the global model. Without a global model, and for events
        without a user, all values are null, and a warning counts these events.

        Args:
            frame: The events.
            missing_features: What to do if columns that the models depend on have no value in any
                event: `fail`, or `warn` and score without them.

        Returns:
            The columns of `SCORE_SCHEMA`, shape (rows,) each, in a frame of the caller's kind.

        Raises:
            UsageError: The frame lacks columns that the models depend on.
        """
        stages = [AddScores(label=tuple(SCORE_SCHEMA))]
        scores = self._run_chain(frame, stages, SCORE_SCHEMA, missing_features)
        return return_like(frame, scores, _number_rows(scores))

    @overload
    def explain(
        self,
        frame: pl.DataFrame,
        *,
        top: int = 3,
        threshold: float | None = None,
        structured: bool = False,
        missing_features: str = "fail",
    ) -> pl.DataFrame: ...

    @overload
    def explain(
        self,
        frame: ArrowStream,
        *,
        top: int = 3,
        threshold: float | None = None,
        structured: bool = False,
        missing_features: str = "fail",
    ) -> Any: ...  # noqa: ANN401 - a frame of the caller's library

    def explain(
        self,
        frame: FrameLike,
        *,
        top: int = 3,
        threshold: float | None = None,
        structured: bool = False,
        missing_features: str = "fail",
    ) -> Any:
        """Explain why events are unusual.

        Args:
            frame: As in `score`.
            top: Maximum number of columns to name.
            threshold: Minimum `risk` of an event to explain. By default, all are explained.
            structured: Return the evidence as a struct (pandas: as dictionaries), not as JSON text.
            missing_features: As in `score`.

        Returns:
            The columns of `REASON_SCHEMA`, shape (rows,) each, in a frame of the caller's kind: a
            sentence, the most unusual columns, and the evidence.
        """
        explain = Explain(top=top, threshold=threshold, prefix=_EXPLAIN_PREFIX)
        prefixed = pl.Schema({_EXPLAIN_PREFIX + name: kind for name, kind in REASON_SCHEMA.items()})
        stages = [AddScores(label=(RISK,)), explain]
        reasons = self._run_chain(frame, stages, prefixed, missing_features)
        reasons = reasons.rename(dict(zip(prefixed, REASON_SCHEMA, strict=True)))
        if structured:
            reasons = reasons.with_columns(decode_explanations(reasons["explanation"]))
        return return_like(frame, reasons, _number_rows(reasons))

    def _run_chain(
        self,
        frame: FrameLike,
        stages: Sequence[Transform],
        schema: pl.Schema,
        missing_features: str,
    ) -> pl.DataFrame:
        """Run stages on a frame. Return the columns of a schema, in the order of the frame."""
        check_choice("missing_features", missing_features, ("fail", "warn"))
        events, sink = as_polars(frame), CollectSink()
        log = FrameLog.from_store(self.store, self.user, self.time, events)
        log.check_frame(events)
        models = TrainAe(pretrained_filename=str(self.store.folder), models_key_file=self.key_file)
        source = log.make_source(events, keeps_rows=True, implausible_time="keep")
        options = replace(log.options, num_threads=1, missing_features=missing_features)
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
        numbers = pl.int_range(events.height, dtype=pl.Int64, eager=True).alias(INDEX)
        in_order = numbers.to_frame().join(
            pl.concat(rows), on=INDEX, how="left", maintain_order="left"
        )
        numeric = [name for name, kind in schema.items() if kind.is_float()]
        return in_order.select(schema.names()).with_columns(pl.col(numeric).fill_nan(None))


def decode_explanations(texts: pl.Series) -> pl.Series:
    """Convert explanations from JSON text to structs, whose fields have the names of the JSON."""
    decoded = [
        None if text is None else msgspec.to_builtins(_EXPLANATION_DECODER.decode(text))
        for text in texts
    ]
    kind = _to_polars_type(inspect.type_info(Explanation))
    return pl.Series(texts.name, decoded, dtype=kind, strict=False)


_EXPLANATION_DECODER = msgspec.json.Decoder(Explanation)
_PLAIN_KINDS: Mapping[type, pl.DataType] = {
    inspect.FloatType: pl.Float64(),
    inspect.IntType: pl.Int64(),
    inspect.BoolType: pl.Boolean(),
}


def _to_polars_type(info: inspect.Type) -> pl.DataType:
    """Return the type of a column for values of a type of msgspec.

    Several types in one place become text, because a column has one type.
    """
    if isinstance(info, inspect.StructType):
        return pl.Struct({each.encode_name: _to_polars_type(each.type) for each in info.fields})
    if isinstance(info, inspect.VarTupleType):
        return pl.List(_to_polars_type(info.item_type))
    if isinstance(info, inspect.UnionType):
        kinds = [each for each in info.types if not isinstance(each, inspect.NoneType)]
        return _to_polars_type(kinds[0]) if len(kinds) == 1 else pl.String()
    return _PLAIN_KINDS.get(type(info), pl.String())


def render_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML. All values are escaped, and characters that are not printable too."""
    lines = [f"<caption>{_escape(caption)}</caption>"]
    lines.append(f"<tr>{''.join(f'<th>{_escape(cell)}</th>' for cell in header)}</tr>")
    lines += [f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _escape(text: str) -> str:
    return html.escape(display_value(text, MAX_CELL))


def _number_rows(frame: pl.DataFrame) -> pl.Series:
    return pl.int_range(frame.height, eager=True)


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
