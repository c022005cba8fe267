"""The source of events in memory: data frames of Polars, pandas or any Arrow library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from morpheus.sources.tabular import RESERVED_COLUMNS, to_text_columns, unnest_objects
from morpheus.sources.time_range import UTC_DATETIME, parse_times
from morpheus.text import quote_backtick, suggest

INTERNAL_COLUMNS = RESERVED_COLUMNS | {TIME}
"""Columns that do not describe the event: row numbers, and columns that the pipeline adds."""
MAX_NAMED_COLUMNS = 10
"""Maximum number of columns in a message."""
_BATCH_ROWS = 1 << 15


class ArrowStream(Protocol):
    """A data frame with the Arrow PyCapsule interface, such as those of pandas and pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the columns, without a copy if possible."""


FrameLike = pl.DataFrame | ArrowStream


def as_polars(frame: FrameLike, argument: str = "frame") -> pl.DataFrame:
    """Convert a data frame to Polars. Columns of Arrow are not copied.

    Cells of pandas that are dictionaries, lists, or of several types become Python objects.

    Args:
        frame: The data frame.
        argument: Name of the argument, for messages.

    Raises:
        UsageError: The object is not a data frame, or two columns have one name.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if is_pandas(frame):
        return _convert_pandas(frame, argument)
    is_column = len(getattr(frame, "shape", (0, 0))) == 1
    if is_column or not hasattr(frame, "__arrow_c_stream__"):
        hint = "Call its method `collect()` first." if hasattr(frame, "collect") else ""
        raise UsageError(
            f"{argument}: a data frame of Polars, pandas or Arrow is required, not "
            f"{type(frame).__name__}. {hint or 'Create one with `polars.DataFrame(...)`.'}"
        )
    try:
        return pl.DataFrame(frame)
    except pl.exceptions.DuplicateError as error:
        raise UsageError(f"{argument}: {error}. Give each column a name of its own.") from error


def is_pandas(frame: object) -> bool:
    """Return whether an object is a `pandas.DataFrame`, without importing pandas."""
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas"
        for kind in type(frame).__mro__
    )


def return_like(given: FrameLike, result: pl.DataFrame, rows: pl.Series | None = None) -> Any:  # noqa: ANN401 - a frame of the caller's library
    """Return a result in the caller's kind of frame: pandas, pyarrow, and Polars for all others.

    Args:
        given: The frame that the caller gave.
        result: The result.
        rows: Position in `given` of each row of the result, whose index of pandas it gets; None
            for results without such rows.
    """
    if is_pandas(given):
        return _to_pandas(given, result, rows)
    if type(given).__module__.partition(".")[0] == "pyarrow":
        return result.to_arrow()
    return result


def _to_pandas(given: Any, result: pl.DataFrame, rows: pl.Series | None) -> Any:  # noqa: ANN401 - frames of pandas, which is not imported here
    """Convert a result to pandas, without pyarrow, which Polars would need."""
    import pandas as pd  # noqa: PLC0415 - only for callers who have it

    index = None if rows is None else given.index[rows.to_numpy()]
    columns = {column.name: _to_pandas_values(column) for column in result}
    return pd.DataFrame(columns, index=index, columns=pd.Index(result.columns, dtype=object))


def _to_pandas_values(column: pl.Series) -> Any:  # noqa: ANN401 - an array or a list
    """Return the values of a column: numbers and times as arrays, others as Python objects."""
    kind = column.dtype
    if kind.is_float() or (not column.null_count() and (kind.is_integer() or kind == pl.Boolean)):
        return column.to_numpy()
    if isinstance(kind, pl.Datetime):
        import pandas as pd  # noqa: PLC0415 - as above

        times = pd.DatetimeIndex(column.dt.replace_time_zone(None).to_numpy())
        return times if kind.time_zone is None else times.tz_localize("UTC")
    if kind.is_integer() or kind == pl.Boolean:
        import pandas as pd  # noqa: PLC0415 - as above

        return pd.array(column.to_list(), dtype="Int64" if kind.is_integer() else "boolean")
    return column.to_list()


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
            check_names("user", [user], self.frame.columns)
        elif find_users(self.frame.clear(), user) is None:
            raise UsageError(
                f"user: `{user}` needs the flat columns of a known log, such as "
                "`userIdentitytype` and `userIdentityarn`, or a column `actor`."
            )
        check_names("time", [self.time], self.frame.columns)

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
            described = InputProfile(profile, None, sample, present)
            metrics.on_input(replace(described, in_memory=True, warns_empty=True))
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
        rows = unnest_objects(self.frame.select(kept))
        index = pl.int_range(self.frame.height, dtype=pl.Int64, eager=True).alias(INDEX)
        moments = _parse_time_column(self.frame[self.time])
        texts = clear_missing_texts(pl.DataFrame(to_text_columns(rows, whole_numbers=True)))
        log = find_log_format(texts.columns)
        caseless = [] if log is None else [n for n in log.caseless_columns if n in texts.columns]
        texts = texts.with_columns(pl.col(caseless).str.to_lowercase()) if caseless else texts
        if self.options.userid_column_name == ACTOR_OPTION:
            actors = find_users(texts, ACTOR_OPTION)
            texts = texts if actors is None else texts.with_columns(actors.alias(ACTOR))
        frame = pl.DataFrame([index, *texts, moments])
        pseudonymizer = self.get_pseudonymizer()
        return frame if pseudonymizer is None else pseudonymizer.apply(frame)


def check_names(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Reject names of columns that a frame does not have.

    Args:
        argument: Name of the argument, for the message.
        names: The names.
        known: The columns.

    Raises:
        UsageError: A column is missing. The message suggests a similar name.
    """
    for name in names:
        if name not in known:
            existing = ", ".join(map(quote_backtick, known[:MAX_NAMED_COLUMNS])) or "none"
            hint = suggest(name, known) or f" Its columns are {existing}."
            raise UsageError(f"{argument}: the frame has no column {quote_backtick(name)}.{hint}")


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


def _convert_pandas(frame: Any, argument: str) -> pl.DataFrame:  # noqa: ANN401 - a frame of pandas, which is not imported here
    names = [_name_column(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{argument}: the frame has {names.count(twice)} columns {quote_backtick(twice)}. Give "
            "each column a name of its own."
        )
    columns = [frame.iloc[:, position] for position in range(len(names))]
    return pl.DataFrame(
        [_convert_pandas_column(n, column) for n, column in zip(names, columns, strict=True)]
    )


def _name_column(name: object) -> str:
    """Return the name of a column as text. The parts of a `MultiIndex` are joined by dots."""
    return ".".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _convert_pandas_column(name: str, column: Any) -> pl.Series:  # noqa: ANN401 - a column of pandas
    if getattr(column.dtype, "kind", "") == "M":
        zoned = getattr(column.dt, "tz", None) is not None
        naive = column.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else column
        times = pl.Series(name, naive.to_numpy(dtype="datetime64[us]"))
        return times.dt.replace_time_zone("UTC") if zoned else times
    values = column.to_numpy()
    kind = values.dtype.kind
    if kind in "biu":
        return pl.Series(name, values)
    if kind == "f":
        return pl.Series(name, values.astype("float64", copy=False), nan_to_null=True)
    missing, cells = column.isna().tolist(), column.tolist()
    return _make_column(name, [None if m else c for m, c in zip(missing, cells, strict=True)])


_PLAIN_TYPES: Mapping[type, Any] = {str: pl.String, bool: pl.Boolean, int: pl.Int64}


def _make_column(name: str, cells: list[object]) -> pl.Series:
    """Make a column of Python objects: of one plain type if they have one."""
    kinds = {type(cell) for cell in cells} - {type(None)}
    if not kinds:
        return pl.Series(name, cells, dtype=pl.String)
    plain = _PLAIN_TYPES.get(kinds.pop()) if len(kinds) == 1 else None
    if plain is not None:
        try:
            return pl.Series(name, cells, dtype=plain)
        except (OverflowError, TypeError, UnicodeEncodeError):
            pass  # a number or a text that Arrow cannot hold
    return pl.Series(name, cells, dtype=pl.Object)
