"""`Fingerprints`: learn, score, explain, save and load, on frames in memory.

Each method is a chain of the stages that the command line runs, and gives what it gives.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import polars as pl

from morpheus.columns import INDEX, RISK, SCORE, ExplanationColumns
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, Transform
from morpheus.errors import UsageError
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelStore
from morpheus.models.training import EPOCHS
from morpheus.pipeline import Pipeline
from morpheus.sinks.memory import CollectSink
from morpheus.sources.dataframe import (
    INTERNAL_COLUMNS,
    FrameLike,
    FromFrame,
    as_polars,
    require_columns,
)
from morpheus.stages.add_scores import AddScores
from morpheus.stages.explain import Explain
from morpheus.stages.inf_pytorch import InfPytorch
from morpheus.stages.preprocess import Preprocess
from morpheus.stages.train_ae import TrainAe

logger = logging.getLogger(__name__)

MAX_NAMED_USERS = 3
"""Users who are named with the reason why they were not learnt, at most."""
SCORE_SCHEMA = pl.Schema(
    {
        SCORE: pl.Float64(),
        RISK: pl.Float64(),
        "pvalue": pl.Float64(),
        "rung": pl.String(),
        "own_share": pl.Float64(),
    }
)
"""What `Fingerprints.score` gives; see the stage `add-scores`."""
REASON_SCHEMA = pl.Schema(dict.fromkeys(ExplanationColumns(), pl.String()))
"""What `Fingerprints.explain` gives; see the stage `explain`."""
_EXPLAIN_PREFIX = "_explained_"
"""Keeps what `explain` adds apart from the frame's own columns, whatever these are called."""


@dataclass(frozen=True)
class Fingerprints:
    """What was learnt of the users of a frame.

    Made by `train` or `load`. Frames are those of Polars, of pandas, or of anything else that has
    `__arrow_c_stream__`; those given back are Polars', with a row for each of the frame's, in its
    order.

    Attributes:
        user: Column that says whose event it is.
        time: Column of an event's time: datetimes, or text as in logs; without a zone, UTC.
        store: The folder that the fingerprints lie in.
    """

    user: str
    time: str
    store: ModelStore

    @classmethod
    def train(  # noqa: PLR0913 - what fingerprints depend on, by name
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
        """Learn each user's fingerprint, as `train-ae` does from training files.

        Args:
            frame: The history of all users, in any order.
            user: Column that says whose event it is; events without a value teach nothing.
            time: Column of an event's time.
            columns: Feature columns; by default all but those of the user and the time.
            scaler: How number columns are scaled: "none", "standard" or "gauss_rank".
            epochs: Passes over a user's distinct rows, at most.
            min_history: Events that a user needs; fewer are filled up with others'.
            seed: Seed of everything random.
            threads: Users learnt side by side, at most. Above 1 worker processes are started, so
                that a script needs its `if __name__ == "__main__":`. No result depends on it.

        Raises:
            UsageError: A column is not there, or nobody has enough history.
            BadRecord: An event has no time.
        """
        events = as_polars(frame)
        if columns is None:
            columns = [
                name for name in events.columns if name not in {*INTERNAL_COLUMNS, user, time}
            ]
        require_columns(events, "columns", list(columns))
        folder = Path(tempfile.mkdtemp(prefix="morpheus-"))
        learning = TrainAe(
            train_epochs=epochs,
            train_min_history=min_history,
            train_max_history=max(1, events.height),
            seed=seed,
            models_output_filename=str(folder),
        )
        settings = PipelineOptions(
            userid_column_name=user,
            columns=tuple(columns),
            feature_scaler=scaler,
            num_threads=threads,
        )
        try:
            summary = Pipeline([FromFrame(events, time), learning], settings).run()
            learnt = cls(user, time, ModelStore.open(folder))
            _check_trained(learnt.store, summary)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(learnt, shutil.rmtree, folder, ignore_errors=True)
        return learnt

    @classmethod
    def load(cls, folder: str | PathLike[str], *, user: str, time: str) -> Fingerprints:
        """Open a folder that `save`, or `train-ae --models_output_filename`, wrote.

        Files are read when a user needs them, and checked then.

        Args:
            folder: The folder, on disk or as `s3://bucket/folder`.
            user: Column that says, in frames to come, whose event it is.
            time: Column of the time in them.

        Raises:
            BrokenModel: There is no index, or it is not as it was written.
        """
        return cls(user, time, ModelStore.open(folder))

    def save(self, folder: str | PathLike[str]) -> None:
        """Write a folder for `load`, and for `train-ae --pretrained_filename`.

        Fingerprints that are there are replaced, in one step.

        Raises:
            BrokenModel: A file is gone or changed since it was learnt.
            Unavailable: The folder cannot be written.
        """
        self.store.copy(folder)

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """What each user's fingerprint was learnt from, by user."""
        return self.store.cards

    def score(self, frame: FrameLike) -> pl.DataFrame:
        """Say how unusual each event is for its user.

        `risk` also weighs what the user did before within the frame, so hand over a user's events
        together. Users who were not learnt are measured against everyone; where that cannot be, and
        for events of no user, all is null.

        Returns:
            `SCORE_SCHEMA`, (rows).
        """
        return self._run_chain(frame, [AddScores(label=tuple(SCORE_SCHEMA))], SCORE_SCHEMA)

    def explain(
        self, frame: FrameLike, *, top: int = 3, threshold: float | None = None
    ) -> pl.DataFrame:
        """Say why events are strange.

        Args:
            frame: As in `score`.
            top: Columns that are named, at most.
            threshold: Explain only events whose `risk` is at least this; by default all.

        Returns:
            `REASON_SCHEMA`, (rows): a sentence, the strangest columns, and JSON text of the evidence.
        """
        explain = Explain(top=top, threshold=threshold, prefix=_EXPLAIN_PREFIX)
        apart = pl.Schema({_EXPLAIN_PREFIX + name: kind for name, kind in REASON_SCHEMA.items()})
        found = self._run_chain(frame, [AddScores(label=(RISK,)), explain], apart)
        return found.rename(dict(zip(apart, REASON_SCHEMA, strict=True)))

    def _run_chain(
        self, frame: FrameLike, stages: Sequence[Transform], schema: pl.Schema
    ) -> pl.DataFrame:
        """Pass a frame through a chain; what is given comes back in the frame's order."""
        events, keep = as_polars(frame), CollectSink()
        known = TrainAe(pretrained_filename=str(self.store.folder))
        source = FromFrame(events, self.time)
        settings = PipelineOptions(
            userid_column_name=self.user, columns=tuple(events.columns), num_threads=1
        )
        Pipeline([source, known, Preprocess(), InfPytorch(), *stages, keep], settings).run()
        wanted = pl.Schema({INDEX: pl.Int64(), **schema})
        rows = [
            pl.DataFrame(schema=wanted),
            *(batch.frame.select(wanted.names()).cast(wanted) for batch in keep.batches),
        ]
        ordered = pl.concat(rows).sort(INDEX).select(schema.names())
        numbers = [name for name, kind in schema.items() if kind.is_float()]
        return ordered.with_columns(pl.col(numbers).fill_nan(None))


def _check_trained(store: ModelStore, metrics: RunMetrics) -> None:
    """Refuse to have learnt nobody, and name who was not learnt."""
    without = {user: why for user, why in metrics.unscored_reasons.items() if user is not None}
    reasons = ", ".join(
        f"{user!r} ({why})" for user, why in list(without.items())[:MAX_NAMED_USERS]
    )
    if not store.cards and store.global_card is None:
        raise UsageError(
            f"train: nobody could be learnt: {reasons or 'the frame has no event of a user'}. "
            "Give more history, or a smaller `min_history`."
        )
    if without:
        logger.warning("%d users have no fingerprint of their own: %s", len(without), reasons)
