"""Events in memory: data frames of Polars, pandas or any Arrow library.

`as_polars` and `return_like` convert frames. `FrameLog` recognises the kind of log and makes the
source that reads it. `FromFrame` is a source for other sources to use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
import polars as pl
from msgspec import structs

from morpheus.columns import ACTOR, ACTOR_OPTION, INDEX, ROW, TIME
from morpheus.core.batch import Events, RunMetrics
from morpheus.core.stage import PipelineOptions, Values, to_user_column
from morpheus.errors import RecordError, UsageError
from morpheus.models.input_check import DatasetProfile, InputProfile
from morpheus.models.profile import FeatureSpec, InputSpec
from morpheus.models.store import ModelStore
from morpheus.sources.base import FileSource, Source
from morpheus.sources.group_by_user import (
    EventKey,
    UserGroups,
    UserStats,
    iter_batches,
    plan_partitions,
)
from morpheus.sources.json_records import clear_missing_texts, flatten_name
from morpheus.sources.log_format import LogFormat, resolve_derived
from morpheus.sources.partitioning import SampleSpec
from morpheus.sources.pseudonyms import Pseudonymizer
from morpheus.sources.results import (
    KindTrial,
    LogKind,
    find_kind,
    find_log_format,
    find_users,
    list_kinds,
)
from morpheus.sources.schema_file import make_minimal_format
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import SpilledDataset
from morpheus.sources.tabular import (
    FRAME_NAME,
    RESERVED_COLUMNS,
    FrameInput,
    read_frame,
    to_text_columns,
    unnest_objects,
)
from morpheus.sources.time_range import UTC_DATETIME, parse_times
from morpheus.text import quote_backtick, suggest

INTERNAL_COLUMNS = RESERVED_COLUMNS | {TIME}
"""Columns that do not describe the event: row numbers, and columns that the pipeline adds."""
MAX_NAMED_COLUMNS = 10
"""Maximum number of columns in a message."""
ADDED_PREFIX = "morpheus_"
"""Prefix of an added column whose name the caller's frame has already."""
RECOGNISED_ROWS = 300
"""Number of rows by which the kind of log of a frame is recognised."""
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
    if _is_pyarrow(given):
        return result.to_arrow()
    return result


def append_columns(given: Any, rows: pl.Series, added: pl.DataFrame) -> Any:  # noqa: ANN401 - frames of the caller's library
    """Return some rows of the caller's frame, with more columns.

    Args:
        given: The frame that the caller gave.
        rows: Position of each row.
        added: The columns to add. A name that the frame has gets the prefix `ADDED_PREFIX`.
    """
    columns = given.column_names if _is_pyarrow(given) else as_polars(given).columns
    added = added.rename({n: f"{ADDED_PREFIX}{n}" for n in added.columns if n in columns})
    if is_pandas(given):
        frame = given.iloc[rows.to_list()].copy()
        for name, column in return_like(given, added, rows).items():
            frame[name] = column.array
        return frame
    if _is_pyarrow(given):
        table = given.take(rows.to_arrow())
        for column in added:
            table = table.append_column(column.name, column.to_arrow())
        return table
    return as_polars(given)[rows].hstack(added)


class FrameRows(msgspec.Struct, frozen=True):
    """The kind and the rows of a caller's frame, without its columns.

    Attributes:
        template: A frame of the same kind without columns; one of pandas has the index.
        height: Number of rows.
    """

    template: Any
    height: int

    @classmethod
    def from_frame(cls, frame: Any) -> FrameRows:  # noqa: ANN401 - a frame of the caller's library
        """Return the rows of a frame."""
        if is_pandas(frame):
            return cls(frame.iloc[:, :0].copy(), len(frame))
        if _is_pyarrow(frame):
            return cls(frame.select([]), frame.num_rows)
        return cls(pl.DataFrame(), as_polars(frame).height)

    def convert(self, result: pl.DataFrame, rows: pl.Series | None = None) -> Any:  # noqa: ANN401 - as above
        """Return a result in the caller's kind of frame; see `return_like`."""
        return return_like(self.template, result, rows)

    def find(self, label: object) -> list[int]:
        """Return the positions of the rows with a label: the index of pandas, else a row number."""
        if is_pandas(self.template):
            return np.flatnonzero(self.template.index == label).tolist()
        is_row = isinstance(label, int | np.integer) and 0 <= label < self.height
        return [int(label)] if is_row else []  # type: ignore[call-overload] # an integer


def _is_pyarrow(frame: object) -> bool:
    return type(frame).__module__.partition(".")[0] == "pyarrow"


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
    if kind == pl.Date:
        return _to_pandas_values(column.cast(pl.Datetime("us")))
    if isinstance(kind, pl.Datetime):
        import pandas as pd  # noqa: PLC0415 - as above

        times = pd.DatetimeIndex(column.dt.replace_time_zone(None).to_numpy())
        return times if kind.time_zone is None else times.tz_localize("UTC")
    if kind.is_integer() or kind == pl.Boolean:
        import pandas as pd  # noqa: PLC0415 - as above

        return pd.array(column.to_list(), dtype="Int64" if kind.is_integer() else "boolean")
    return column.to_list()


class FrameLog(msgspec.Struct, frozen=True):
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
        if isinstance(columns, str):
            raise UsageError(f"columns: give a list of names, such as `columns=[{columns!r}]`.")
        if columns is not None and not list(columns):
            raise UsageError("columns: the list is empty. Give names of columns, or no list.")
        check_texts("user", [user] if user is not None else [])
        check_texts("time", [time] if time is not None else [])
        check_texts("columns", columns or [])
        is_time_named = time is not None
        kind = recognise_frame(events)
        if kind is None:
            events = unnest_objects(events)
            if user is None or time is None:
                names = ", ".join(map(quote_backtick, events.columns[:MAX_NAMED_COLUMNS]))
                raise UsageError(
                    f"frame: the kind of log is not recognised by its columns ({names or 'none'}). "
                    "Give the columns with the user and the time: `user=` and `time=`."
                )
            features = columns or _list_features(events, to_user_column(user), time)
            options = PipelineOptions(columns=tuple(features), timezone=timezone)
            log = cls.make(None, options, user, time, chosen=columns is not None)
        else:
            form = kind.make_source([FRAME_NAME]).get_log_format()
            user, time = user or ACTOR_OPTION, time or form.time_column
            user, time, *features = _name_as_read(events, form, [user, time, *(columns or ())])
            options = PipelineOptions(columns=tuple(features), timezone=timezone)
            log = cls.make(kind, options, user, time, chosen=columns is not None)
        log.check_frame(events, is_time_named=is_time_named)
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
        source = self.kind.make_source([FRAME_NAME], frames=FrameInput(pl.DataFrame()))
        return replace(source, options=self.options).get_log_format()

    def check_frame(self, events: pl.DataFrame, *, is_time_named: bool = False) -> None:
        """Reject a frame without the user or the time column.

        Args:
            events: The frame.
            is_time_named: Whether the caller has named the time column. A known log may have any
                of the time columns of its kind, unless the caller names another one.

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
        time, others = self.options.timestamp_column_name, self.form.time_columns
        is_own = is_time_named and time not in others
        if is_own or not self.is_known or set(others).isdisjoint(names):
            check_names("time", [time], names)

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
        form, prepared = self.form, self.prepare(events)
        header = read_frame(prepared.head(0), form).frame
        if not self.is_known:
            return header.columns
        names = form.rename_columns(header).columns
        # What is inside of objects is not looked at.
        return list(dict.fromkeys([*names, *(form.columns if _has_objects(events) else ())]))

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


def _list_features(events: pl.DataFrame, user: str, time: str) -> list[str]:
    """Return the columns that describe the events of an unknown log.

    Raises:
        UsageError: There are none.
    """
    left_out = {*INTERNAL_COLUMNS, user, time}
    features = [name for name in events.columns if name not in left_out]
    if not features:
        check_names("user", [user], events.columns)
        raise UsageError(
            "frame: it has no columns besides the user and the time. Give a frame with more "
            'columns, or derived columns, such as `columns=["hourofweek"]`.'
        )
    return features


def _name_as_read(events: pl.DataFrame, form: LogFormat, names: Sequence[str]) -> list[str]:
    """Return the names that columns have once they are read: a header can have another name."""
    header = read_frame(events.head(0), form).frame
    read = dict(zip(header.columns, form.rename_columns(header).columns, strict=True))
    flat = [flatten_name(name, form.drop_characters) for name in names]
    return [read.get(name, name) for name in flat]


OTHER_KINDS = ("auto", "derived")
"""Kinds of features whose type is no option."""


def _has_objects(events: pl.DataFrame) -> bool:
    """Return whether some cells of a frame hold objects."""
    return any(
        column.dtype.is_nested()
        or column.dtype == pl.Object
        or (column.dtype == pl.String and column.head(RECOGNISED_ROWS).str.starts_with("{").any())
        for column in events
    )


def recognise_frame(events: pl.DataFrame) -> LogKind | None:
    """Return the kind of log of a frame, as `morpheus detect` does with files; None if unknown."""
    step = max(1, events.height // RECOGNISED_ROWS)
    rows = FrameInput(events[::step].head(RECOGNISED_ROWS), keeps_rows=True)
    trials = [
        KindTrial.from_source(kind, kind.make_source([FRAME_NAME], bad_record="skip", frames=rows))
        for kind in list_kinds()
    ]
    best = KindTrial.find_best(trials)
    form = best.kind.make_source([FRAME_NAME]).get_log_format()
    names = {flatten_name(name, form.drop_characters) for name in events.columns}
    is_sure = best.features > 1 or form.time_column in names
    return best.kind if best.is_recognised and is_sure else None


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
            metrics.on_input(structs.replace(described, in_memory=True, warns_empty=True))
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
        texts = clear_missing_texts(pl.DataFrame(to_text_columns(rows)))
        log = find_log_format(texts.columns)
        caseless = [] if log is None else [n for n in log.caseless_columns if n in texts.columns]
        texts = texts.with_columns(pl.col(caseless).str.to_lowercase()) if caseless else texts
        if self.options.userid_column_name == ACTOR_OPTION:
            actors = find_users(texts, ACTOR_OPTION)
            texts = texts if actors is None else texts.with_columns(actors.alias(ACTOR))
        frame = pl.DataFrame([index, *texts, moments])
        pseudonymizer = self.get_pseudonymizer()
        return frame if pseudonymizer is None else pseudonymizer.apply(frame)


def check_texts(argument: str, names: Iterable[object]) -> None:
    """Reject names of columns that are no text, such as the numbers of pandas.

    Args:
        argument: Name of the argument, for the message.
        names: The names.

    Raises:
        UsageError: A name is no text.
    """
    for name in names:
        if not isinstance(name, str):
            raise UsageError(
                f"{argument}: a text is required, not {type(name).__name__}. If the names of the "
                "columns are numbers, rename the columns, or give the number as text."
            )


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
    if type(column.dtype).__name__ == "ArrowDtype":
        return pl.Series(name, column.array.__arrow_array__())
    if getattr(column.dtype, "kind", "") == "M":
        zoned = getattr(column.dt, "tz", None) is not None
        naive = column.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else column
        times = pl.Series(name, naive.to_numpy(dtype="datetime64[us]"))
        return times.dt.replace_time_zone("UTC") if zoned else times
    values = column.to_numpy()
    kind = values.dtype.kind
    if kind in "biu":
        return pl.Series(name, values)
    if kind == "m":
        return pl.Series(name, values.astype("timedelta64[us]"))
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
