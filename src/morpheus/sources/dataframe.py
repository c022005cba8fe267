"""The source of events in memory: data frames of Polars, pandas or any Arrow library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol

import polars as pl

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, ROW, TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import Values, to_user_column
from morpheus.errors import RecordError, UsageError
from morpheus.models.input_check import DatasetProfile, InputProfile
from morpheus.models.profile import FeatureSpec, InputSpec
from morpheus.sources.base import Source
from morpheus.sources.group_by_user import (
    EventKey,
    UserGroups,
    UserStats,
    iter_batches,
    plan_partitions,
)
from morpheus.sources.json_records import clear_missing_texts
from morpheus.sources.partitioning import SampleSpec
from morpheus.sources.pseudonyms import Pseudonymizer
from morpheus.sources.results import find_log_format, find_users
from morpheus.sources.schema_file import make_minimal_format
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import SpilledDataset
from morpheus.sources.tabular import to_text_columns
from morpheus.sources.time_range import UTC_DATETIME, parse_times

INTERNAL_COLUMNS = {ROW, INDEX, TIME, "Unnamed: 0"}
"""Columns that do not describe the event: row numbers, and columns that the pipeline adds."""
_BATCH_ROWS = 1 << 15


class ArrowStream(Protocol):
    """A data frame with the Arrow PyCapsule interface, such as those of pandas and pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the columns, without a copy if possible."""


FrameLike = pl.DataFrame | ArrowStream


def as_polars(frame: FrameLike) -> pl.DataFrame:
    """Convert a data frame to Polars, without copying its columns if possible.

    Text columns of pandas are copied if pyarrow is not installed.

    Raises:
        UsageError: The object is not a data frame.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if not hasattr(frame, "__arrow_c_stream__"):
        raise UsageError(
            f"A data frame of Polars, pandas or Arrow is required, not {type(frame).__name__}. "
            "Create one with `polars.DataFrame(...)`."
        )
    try:
        return pl.DataFrame(frame)
    except ImportError:
        return _convert_pandas(frame)


@dataclass(frozen=True)
class FromFrame(Source):
    """Read events from a data frame, one event per row.

    Each event keeps its row number as `INDEX_FILE`. Events with the same time stay in the order of
    the frame. Times without a zone are UTC. Text is read as in log files.

    Attributes:
        frame: The events.
        time: Name of the time column.
    """

    name = "from-frame"
    default_user: ClassVar[str] = ""

    frame: pl.DataFrame = field(default_factory=pl.DataFrame, compare=False, repr=False)
    time: str = TIME

    def validate(self) -> None:
        """Reject a user or time column that the frame does not have."""
        user = self.options.userid_column_name
        if user != ACTOR_OPTION:
            require_columns(self.frame, "user", [user])
        elif find_users(self.frame.clear(), user) is None:
            raise UsageError(
                f"user: `{user}` needs the flat columns of a known log, such as "
                "`userIdentitytype` and `userIdentityarn`, or a column `actor`."
            )
        require_columns(self.frame, "time", [self.time])

    def describe_input(self) -> InputSpec:
        """Describe what fingerprints of this input depend on. Frames have no log format."""
        names = self.frame.columns
        features = tuple(FeatureSpec(name) for name in self.options.columns if name in names)
        user = to_user_column(self.options.userid_column_name)
        return InputSpec("", user, features, source=self.name)

    def get_pseudonymizer(self) -> Pseudonymizer | None:
        """Return what replaces values by pseudonyms; see `Source.get_pseudonymizer`."""
        options = self.options
        user = to_user_column(options.userid_column_name)
        columns = make_minimal_format(options.columns, user, self.time)
        return Pseudonymizer.from_options(options, columns, user)

    def events(
        self,
        training_input: Values | None,
        metrics: RunMetrics,
        state: PartitionState | None = None,  # noqa: ARG002 - a frame is read once
    ) -> Iterator[Events]:
        """Yield the events of each user; see `Source.events`.

        Raises:
            UsageError: Training files are given.
            RecordError: An event has no time.
        """
        if training_input is not None:
            raise UsageError(
                "train-ae: --train_data_glob needs a source that reads files. "
                "To train on a frame, use `Fingerprints.train(frame, ...)`."
            )
        user, frame = to_user_column(self.options.userid_column_name), self._to_event_frame()
        metrics.input.read += frame.height
        dataset = SpilledDataset(
            user, UserStats.from_frame(frame, user), frame.columns, [frame], []
        )
        if self.options.needs_population:
            metrics.population_sample = SampleSpec().take_sample(dataset, self.options.columns)
        if metrics.on_input is not None and frame.height:
            stats = dataset.user_stats
            profile = DatasetProfile(stats.merge_users(), frame.height, stats.value_counts)
            present = tuple(name for name in self.options.columns if name in frame.columns)
            sample = metrics.population_sample
            metrics.on_input(InputProfile(profile, None, sample, present))
        users = plan_partitions(
            dataset.user_stats, None, frame.height * frame.width + 1, include_history_only=True
        )
        # Every row of a frame is scored, so no column is used as an event id.
        by_user = UserGroups.from_frame(frame, users, EventKey(user, ROW), metrics.input)
        by_user.feature_columns = self.options.columns
        yield from iter_batches(users, by_user, None, batch_size=_BATCH_ROWS)

    def _to_event_frame(self) -> pl.DataFrame:
        """Return `INDEX_FILE`, text columns and `TIME`."""
        kept = [name for name in self.frame.columns if name not in INTERNAL_COLUMNS]
        index = pl.int_range(self.frame.height, dtype=pl.Int64, eager=True).alias(INDEX)
        moments = _parse_time_column(self.frame[self.time])
        texts = clear_missing_texts(pl.DataFrame(to_text_columns(self.frame.select(kept))))
        log = find_log_format(texts.columns)
        caseless = [] if log is None else [n for n in log.caseless_columns if n in texts.columns]
        texts = texts.with_columns(pl.col(caseless).str.to_lowercase()) if caseless else texts
        if self.options.userid_column_name == ACTOR_OPTION:
            actors = find_users(texts, ACTOR_OPTION)
            texts = texts if actors is None else texts.with_columns(actors.alias(ACTOR))
        frame = pl.DataFrame([index, *texts, moments])
        pseudonymizer = self.get_pseudonymizer()
        return frame if pseudonymizer is None else pseudonymizer.apply(frame)


def require_columns(frame: pl.DataFrame, argument: str, names: list[str]) -> None:
    """Reject column names that a frame does not have.

    Args:
        frame: The frame.
        argument: Name of the argument, for the message.
        names: The column names.

    Raises:
        UsageError: A column is missing. The message suggests a similar name.
    """
    for name in names:
        if name not in frame.columns:
            close = get_close_matches(name, frame.columns, n=1)
            existing = ", ".join(f"`{column}`" for column in frame.columns[:10]) or "none"
            hint = f"Did you mean `{close[0]}`?" if close else f"Its columns are {existing}."
            raise UsageError(f"{argument}: the frame has no column `{name}`. {hint}")


def _parse_time_column(column: pl.Series) -> pl.Series:
    """Return `TIME` of each event, in UTC."""
    if column.dtype.is_temporal() and column.dtype != pl.Time:
        zoned = column.cast(pl.Datetime("us")) if column.dtype == pl.Date else column
        naive = getattr(zoned.dtype, "time_zone", None) is None
        moments = zoned.dt.replace_time_zone("UTC") if naive else zoned
        moments = moments.dt.convert_time_zone("UTC").cast(UTC_DATETIME)
    else:
        moments = parse_times(column.cast(pl.String))
    missing = moments.is_null().arg_true()
    if len(missing):
        row = int(missing[0])
        reason = (
            f"`{column.name}` is {column[row]!r}, which is not a valid time; use ISO 8601 in UTC"
        )
        raise RecordError(reason, file="frame", line=row + 1)
    return moments.alias(TIME)


def _convert_pandas(frame: Any) -> pl.DataFrame:  # noqa: ANN401 - a frame of pandas, which is not imported here
    return pl.DataFrame({str(name): _convert_pandas_column(frame[name]) for name in frame.columns})


def _convert_pandas_column(column: Any) -> pl.Series:  # noqa: ANN401 - a column of pandas
    values = column.to_numpy()
    if values.dtype != object:
        return pl.Series(values, nan_to_null=True)
    missing, cells = column.isna().tolist(), column.tolist()
    return pl.Series([None if m else c for m, c in zip(missing, cells, strict=True)], strict=False)
