"""The Python API: train, score and explain data frames in memory.

`Fingerprints` holds the trained models of a frame's users. Each method runs a pipeline of the
stages that the command line runs, with the same results.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any, Self, overload

import polars as pl

from morpheus.columns import (
    ACTOR,
    ACTOR_OPTION,
    INDEX,
    RISK,
    SCORE,
    ExplanationColumns,
)
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import (
    Transform,
    to_user_column,
)
from morpheus.errors import UsageError
from morpheus.features.encoder import SCALERS
from morpheus.models.explanation import decode_explanations
from morpheus.models.profile import InputSpec, ModelCard
from morpheus.models.store import ModelStore, read_key
from morpheus.models.training import EPOCHS
from morpheus.models.versions import ModelVersion, open_models, save_models
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.report.page import render_table
from morpheus.sources.dataframe import (
    ArrowStream,
    FrameLike,
    FrameLog,
    as_polars,
    return_like,
)
from morpheus.sources.results import find_kind
from morpheus.sources.tabular import FRAME_NAME
from morpheus.sources.time_range import check_timezone
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.atomic import LocalStore, TempFolder, make_folders
from morpheus.text import format_count, quote_backtick, suggest

logger = logging.getLogger(__name__)

MAX_NAMED_USERS = 3
"""Maximum number of users in a message about users without a model."""
MAX_SHOWN = 10
"""Maximum number of rows of a table in a notebook."""
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
EXPLAIN_PREFIX = "_explained_"
"""Prefix of the columns that `explain` adds, in case the frame has columns of these names."""
PREFIXED_SCHEMA = pl.Schema({EXPLAIN_PREFIX + n: kind for n, kind in REASON_SCHEMA.items()})


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


class UnknownUserError(UsageError, KeyError):
    """There is no fingerprint of a user. It is a `KeyError`, too."""

    __str__ = Exception.__str__  # that of `KeyError` quotes the message


@dataclass(frozen=True, repr=False, eq=False)
class Fingerprints:
    """The trained models of the users of a frame. Create it with `train` or `load`.

    `len` counts the users, and `fingerprints[user]` is the card of a user's model. A copy is the
    same object, because nothing in it changes. A pickle has the models, if they were not loaded
    from a store; or else it names the store, which must exist where the pickle is read.

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
    store: ModelVersion
    key_file: str | None = None
    _folder: TempFolder | None = field(default=None, repr=False)

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
        check_choice("scaler", scaler, SCALERS)
        check_timezone(timezone, "timezone")
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
            fingerprints = cls._from_folder(*names, temp_folder)
            _check_trained(fingerprints.store, metrics)
        except BaseException:  # an interrupt, too, must not leave the folder
            temp_folder.close()
            raise
        return fingerprints

    @classmethod
    def _from_folder(cls, user: str, time: str, folder: TempFolder) -> Fingerprints:
        """Return the models in a folder that is removed when nothing needs them any more."""
        store = open_models(str(folder.path))
        weakref.finalize(store, folder.close)
        return cls(user, time, store, None, folder)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        if self._folder is not None:
            root = self._folder.path
            paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
            files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
            return _unpack, (self.user, self.time, files)
        folder = self.store.folder
        if isinstance(folder, LocalStore):
            folder = LocalStore(folder.path.absolute())
        location = f"{folder}@{self.store.number}"
        return _reopen, (self.user, self.time, location, self.key_file)

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
        if not fspath(folder):
            raise UsageError("load: the name of the folder is empty. Give the folder of `save`.")
        store = open_models(fspath(folder), read_key(key_path))
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

        In a folder with models, a new version replaces them in one step; see `morpheus models`.

        Raises:
            ModelCorruptedError: A file of a model is missing or has changed.
            TransientError: The folder cannot be written.
            UsageError: The name of the folder is empty.
        """
        if not fspath(folder):  # it would be the current folder
            raise UsageError("save: the name of the folder is empty. Give the name of a folder.")
        save_models(self.store, folder)

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
        explain = Explain(top=top, threshold=threshold, prefix=EXPLAIN_PREFIX)
        stages = [AddScores(label=(RISK,)), explain]
        reasons = self._run_chain(frame, stages, PREFIXED_SCHEMA, missing_features)
        reasons = reasons.rename(dict(zip(PREFIXED_SCHEMA, REASON_SCHEMA, strict=True)))
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
        models = TrainAe(pretrained_filename=self.store.location, models_key_file=self.key_file)
        source = log.make_source(events, keeps_rows=True, implausible_time="keep")
        options = replace(log.options, num_threads=1, missing_features=missing_features)
        chain = [source, models, Preprocess(), InfPytorch(), *stages, sink]
        warn_unscored(Pipeline(chain, options).run())
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


def _number_rows(frame: pl.DataFrame) -> pl.Series:
    return pl.int_range(frame.height, eager=True)


def _unpack(user: str, time: str, files: Mapping[str, bytes]) -> Fingerprints:
    """Return fingerprints whose models a pickle has.

    Raises:
        ModelCorruptedError: A file is damaged.
    """
    folder = TempFolder()
    try:
        for name, content in files.items():
            path = folder.path / name
            make_folders(path.parent)
            path.write_bytes(content)
        return Fingerprints._from_folder(user, time, folder)  # noqa: SLF001 - a part of the class
    except BaseException:
        folder.close()
        raise


def _reopen(user: str, time: str, location: str, key_file: str | None) -> Fingerprints:
    """Return fingerprints whose store a pickle names.

    Raises:
        ModelCorruptedError: There is no such store here, or it is damaged.
        UsageError: The version is gone, or the key is wrong or missing.
    """
    return Fingerprints(user, time, open_models(location, read_key(key_file)), key_file)


def _check_trained(store: ModelStore, metrics: RunMetrics) -> None:
    """Fail if no user has a model. Log the users without one."""
    without_model = [
        (user, reason) for user, reason in metrics.unscored_reasons.items() if user is not None
    ]
    named = without_model[:MAX_NAMED_USERS]
    reasons = ", ".join(f"{user!r} ({reason})" for user, reason in named)
    if not store.cards and store.global_card is None:
        advice = "Give more history, or a smaller `min_history`."
        if not reasons:
            reasons, advice = "the frame has no event of a user", "Give the column of users."
        raise UsageError(f"train: no user could be trained: {reasons}. {advice}")
    if without_model:
        logger.warning("%d users have no model of their own: %s", len(without_model), reasons)


def warn_unscored(metrics: RunMetrics) -> None:
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
