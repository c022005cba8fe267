"""Batches, partitions, and the metrics of a run.

A batch is a frozen value: consecutive events of one user, in time order. Its class says which
stages it has passed: `Events`, `WithModel`, `Encoded`, `Losses`, `Scored`, `OutputRows`.
`RunMetrics` counts what happened to every event of a run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, Self, TypeVar

import msgspec
import numpy as np
import polars as pl
from msgspec import structs
from numpy.typing import NDArray

from morpheus.columns import INDEX, ROW, TIME, TS_ANOMALY
from morpheus.errors import StageError
from morpheus.seasonality.detector import TimeHistogram
from morpheus.text import format_count, format_duration

if TYPE_CHECKING:
    from morpheus.core.stage import Transform
    from morpheus.core.state import StateKey
    from morpheus.features.encoder import EncodedRows, EncodedSlice
    from morpheus.models.calibration import AlertForecast, UserDays
    from morpheus.models.daily_usage import DayRecord
    from morpheus.models.input_check import InputProfile, ModelAge, NewValues
    from morpheus.models.profile import Fingerprint, ModelCard
    from morpheus.models.store import SavedModels
    from morpheus.models.versions import Replaced
    from morpheus.sources.source_state import PartitionState
    from morpheus.sources.spill_sort import LatenessBuffer
    from morpheus.suppressions.rules import SuppressionCounts

BatchT = TypeVar("BatchT", bound="Batch")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class AlertCandidates:
    """What `filter --alerts_per_day` knows about events that can become alerts.

    Attributes:
        user_days: Highest risk of each of the user's days in the batch, all events included.
        risks: Risk of each event, shape (rows,).
        days: Number of the day of each event, since 1970, shape (rows,).
        pvalues: P-value of each event without other users, shape (rows,).
        bursts: P-value of a burst at each event, NaN if it is not known, shape (rows,).
        severities: Severity of the user's day up to each event, from 0 to 100, shape (rows,).
        remaining: Risk of each event without the suppressed events, shape (rows,).
        remaining_pvalues: As `pvalues`, of `remaining`, shape (rows,).
        suppressed_by: Index of the suppression of each event, or `NO_MATCH`, shape (rows,).
        expired_rule: Index of the expired suppression of each event, or `NO_MATCH`, shape (rows,).
    """

    user_days: UserDays
    risks: NDArray[np.float64]
    days: NDArray[np.int64]
    pvalues: NDArray[np.float64]
    bursts: NDArray[np.float64]
    severities: NDArray[np.float64]
    remaining: NDArray[np.float64]
    remaining_pvalues: NDArray[np.float64]
    suppressed_by: NDArray[np.intp]
    expired_rule: NDArray[np.intp]

    def filter(self, rows: NDArray[np.bool_]) -> AlertCandidates:
        """Keep some events.

        Args:
            rows: Which events to keep, shape (rows,).
        """
        arrays = {
            name: getattr(self, name)[rows]
            for name in (each.name for each in fields(self) if each.name != "user_days")
        }
        return replace(self, **arrays)


class DroppedStats(msgspec.Struct, frozen=True):
    """Statistics of the events of one user that `filter` has dropped.

    Attributes:
        histogram: Number of events over time.
        exceedances: Number of events above each risk level; see
            `morpheus.models.calibration.count_exceedances`.
    """

    histogram: TimeHistogram
    exceedances: NDArray[np.int64]

    def merge(self, other: DroppedStats) -> DroppedStats:
        """Return the statistics of these events and of others of the same user."""
        return DroppedStats(
            self.histogram.merge(other.histogram), self.exceedances + other.exceedances
        )


class AlertBudgetReport(msgspec.Struct, frozen=True):
    """Expected and actual number of alerts.

    Attributes:
        forecast: Expected number of alerts.
        alerts: User-days that became alerts.
        suppressed: User-days that did not, because all their events are suppressed.
        wanted: Number of alerts that were asked for; None on an input without end.
        days: Number of user-days with a score.
        capped: User-days that did not become alerts, because of `--max_alerts_per_day`.
        next_pvalue: P-value of the most unusual of the other user-days; None if there is none.
        reason: Why there is no budget, or why the forecast is uncertain; empty otherwise.
    """

    forecast: AlertForecast
    alerts: int
    suppressed: int = 0
    wanted: float | None = None
    days: int = 0
    capped: int = 0
    next_pvalue: float | None = None
    reason: str = ""

    @property
    def interval(self) -> tuple[float, float, float]:
        """Expected number of alerts, and its lower and upper bound."""
        return self.forecast.alerts, self.forecast.low, self.forecast.high


_MICROSECONDS = pl.Datetime("us", "UTC")
_MAX_DISTINCT_PER_ROW = 4
"""Maximum number of distinct rows that are kept for each row of a table."""


class EqualRows(msgspec.Struct, frozen=True, eq=False):
    """Which rows of a table are equal in some columns, so that work on them is done once.

    Attributes:
        names: The columns; the table need not have all of them.
        sources: Frames that have the columns, each with the positions of some distinct rows there.
        groups: Distinct row of each row of the table, in the order of `sources`, shape (rows,).
    """

    names: frozenset[str]
    sources: tuple[tuple[pl.DataFrame, NDArray[np.intp]], ...]
    groups: NDArray[np.intp]

    def take(self, rows: NDArray[np.bool_] | slice) -> EqualRows:
        """Keep some rows of the table. Of few rows, only their own distinct rows are kept."""
        groups = self.groups[rows]
        ends = np.cumsum([len(positions) for _, positions in self.sources])
        if len(groups) * _MAX_DISTINCT_PER_ROW > ends[-1]:
            return structs.replace(self, groups=groups)
        used, groups = np.unique(groups, return_inverse=True)
        cuts = [0, *np.searchsorted(used, ends)]
        sources = [
            (frame, positions[used[start:end] - (last - len(positions))])
            for (frame, positions), last, (start, end) in zip(
                self.sources, ends, pairwise(cuts), strict=True
            )
            if start < end
        ]
        return EqualRows(self.names, tuple(sources) or self.sources[:1], groups)

    def distinct(self, names: Sequence[str]) -> tuple[pl.DataFrame, NDArray[np.intp]]:
        """Return the distinct rows of the table.

        Args:
            names: The columns to return, of `names`.

        Returns:
            The distinct rows, and which of them each row of the table equals, shape (rows,).
        """
        sizes = [len(rows) for _, rows in self.sources]
        is_used = np.bincount(self.groups, minlength=sum(sizes)).astype(np.bool_)
        parts = np.split(is_used, np.cumsum(sizes)[:-1])
        frames = [
            frame.select(names)[rows[used]]
            for (frame, rows), used in zip(self.sources, parts, strict=True)
        ]
        return pl.concat(frames), (is_used.cumsum() - 1)[self.groups]

    @classmethod
    def concat(cls, parts: Sequence[EqualRows]) -> EqualRows:
        """Return the equal rows of tables that are joined, in their order."""
        sources, groups, known = list[tuple[pl.DataFrame, list[NDArray[np.intp]]]](), [], 0
        for part in parts:
            groups.append(part.groups + known)
            for frame, rows in part.sources:
                known += len(rows)
                if sources and sources[-1][0] is frame:
                    sources[-1][1].append(rows)
                else:
                    sources.append((frame, [rows]))
        return cls(
            frozenset.intersection(*(part.names for part in parts)),
            tuple((frame, np.concatenate(rows)) for frame, rows in sources),
            np.concatenate(groups),
        )


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of named columns. How a column is held is known to this class alone.

    A table is not modified; methods return new tables, which share columns.

    Attributes:
        equal_rows: Which rows are equal in some columns; None if it is not known.

    >>> table = Table(pl.DataFrame({"action": ["Get", "Put", "Get"], "bytes": [1, 2, 3]}))
    >>> values, codes = table.distinct("action")
    >>> values.to_list(), codes.tolist()
    (['Get', 'Put'], [0, 1, 0])
    >>> table.filter(codes == 0)["bytes"].to_list()
    [1, 3]
    """

    _source: pl.DataFrame
    _start: int = 0
    _rows: int | None = None
    equal_rows: EqualRows | None = None

    @cached_property
    def _frame(self) -> pl.DataFrame:
        """The rows. A slice is made when it is needed: for a few rows, it costs more than they."""
        return self._source if self._rows is None else self._source.slice(self._start, self._rows)

    def __reduce__(self) -> tuple[type[Table], tuple[pl.DataFrame]]:
        """Pickle these rows alone, not those of other tables that share the columns."""
        return Table, (self._frame,)

    @property
    def height(self) -> int:
        """Number of rows."""
        return self._source.height if self._rows is None else self._rows

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return self._source.columns

    @property
    def schema(self) -> pl.Schema:
        """Names and types of the columns. A text column is `String`, however it is held."""
        return self._frame.schema

    @property
    def schema_key(self) -> tuple[list[str], list[pl.DataType]]:
        """Names and types of the columns, to compare; cheaper than `schema`."""
        return self._frame.columns, self._frame.dtypes

    @property
    def size(self) -> int:
        """Approximate size in memory, in bytes."""
        return int(self._frame.estimated_size())

    @property
    def times_us(self) -> NDArray[np.int64]:
        """Times of the rows, in microseconds since 1970, shape (rows,).

        Raises:
            KeyError: `serialize` has removed the times.
        """
        if TIME not in self:
            raise KeyError(TIME)
        times = self._frame[TIME]
        if times.dtype == _MICROSECONDS:
            return times.to_numpy().view(np.int64)
        return times.dt.epoch("us").to_numpy()

    def __contains__(self, name: str) -> bool:
        """Return whether there is a column of this name."""
        return name in self._source.columns

    def __getitem__(self, name: str) -> pl.Series:
        """Return the values of a column, one for each row."""
        return self._frame[name]

    def distinct(self, name: str) -> tuple[pl.Series, NDArray[np.intp]]:
        """Return the distinct values of a column, in the order of their first rows.

        Work on text belongs on these values, because most columns repeat a few of them.

        Returns:
            The values, null included; and the index of each row's value, shape (rows,).
        """
        column = self._frame[name]
        values = column.unique(maintain_order=True)
        index = pl.DataFrame([values.alias(name)]).with_row_index("code")
        codes = self._frame.select(name).join(
            index, on=name, how="left", nulls_equal=True, maintain_order="left"
        )["code"]
        return values, codes.to_numpy().astype(np.intp)

    def with_columns(self, columns: Iterable[pl.Series]) -> Table:
        """Return a table with columns added, or replaced in place where the name exists."""
        added, equal = list(columns), self.equal_rows
        if equal is not None:
            equal = structs.replace(
                equal, names=equal.names.difference(column.name for column in added)
            )
        if any(column.name in self._frame.columns for column in added):
            return Table(self._frame.with_columns(added), equal_rows=equal)
        # hstack, because with_columns costs ten times as much on a batch of a thousand events.
        return Table(self._frame.hstack(added), equal_rows=equal)

    def filter(self, rows: NDArray[np.bool_]) -> Table:
        """Return a table of some rows.

        Args:
            rows: Which rows to keep, shape (rows,).
        """
        equal = self.equal_rows
        if equal is not None:
            # Few rows must not keep the frame of all in memory.
            equal = equal.take(rows) if 2 * np.count_nonzero(rows) >= len(rows) else None
        return Table(self._frame.filter(pl.Series(rows, dtype=pl.Boolean)), equal_rows=equal)

    def select(self, names: Iterable[str]) -> Table:
        """Return a table of some columns, in the given order."""
        frame, equal = self._frame.select(names), self.equal_rows
        if equal is not None:
            equal = structs.replace(equal, names=equal.names.intersection(frame.columns))
        return Table(frame, equal_rows=equal)

    def with_equal_rows(self, equal_rows: EqualRows) -> Table:
        """Return the table with the knowledge of which rows are equal."""
        return Table(self._source, self._start, self._rows, equal_rows)

    def clear(self) -> Table:
        """Return a table of the same columns without rows."""
        return Table(self._frame.clear())

    def equals(self, other: Table) -> bool:
        """Return whether names, types and values are equal; null equals null."""
        return self._frame.equals(other.to_frame())

    def to_frame(self) -> pl.DataFrame:
        """Return the rows with plain columns: text as text. It may copy."""
        return self._frame

    def split(self, heights: Iterable[int]) -> list[Table]:
        """Cut into tables of consecutive rows, which share the columns.

        Args:
            heights: Number of rows of each.
        """
        start, tables, equal = 0, [], self.equal_rows
        for rows in heights:
            part = equal and equal.take(slice(start, start + rows))
            tables.append(Table(self._source, self._start + start, rows, part))
            start += rows
        return tables

    @classmethod
    def find_whole(cls, tables: Sequence[Table]) -> Table | None:
        """Return the table that `split` has cut into these; None if there is none."""
        source, start = tables[0]._source, tables[0]._start  # noqa: SLF001 - of this class
        end = start
        for table in tables:
            if table._source is not source or table._start != end or table._rows is None:  # noqa: SLF001 - of this class
                return None
            end += table._rows  # noqa: SLF001 - of this class
        whole = end - start == source.height
        return cls(source) if whole else cls(source.slice(start, end - start))

    @classmethod
    def concat(cls, tables: Iterable[Table]) -> Table:
        """Join tables of the same columns, one below the other."""
        parts = list(tables)
        whole = cls.find_whole(parts) if parts else None
        joined = whole or cls(pl.concat(table.to_frame() for table in parts))
        known = [table.equal_rows for table in parts if table.equal_rows is not None]
        if not parts or len(known) < len(parts):
            return joined
        return joined.with_equal_rows(EqualRows.concat(known))

    @classmethod
    def add_to_all(cls, tables: Sequence[Table], columns: Iterable[pl.Series]) -> list[Table]:
        """Add columns to several tables of the same columns, in one step.

        Args:
            tables: The tables.
            columns: The columns, with the rows of all tables.
        """
        return cls.concat(tables).with_columns(columns).split(each.height for each in tables)

    @classmethod
    def have_same_columns(cls, tables: Sequence[Table]) -> bool:
        """Return whether `concat` can join tables."""
        first = tables[0]
        return all(
            each._source is first._source or each.schema_key == first.schema_key  # noqa: SLF001 - of this class
            for each in tables
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive events of one user, in time order.

    Attributes:
        user: Value of the user column; None for events without a user.
        table: The events, one row each. The first columns are `ROW` and `INDEX` (integers), then
            the columns of the log as text, null if an event has no value, then `TIME` (datetime,
            UTC), then the columns that stages have added.
        fingerprint: Fingerprint of the user, after `train-ae`.
        card: Description of the fingerprint; kept when the fingerprint has been released.
        unscored_reason: Why the events get no score, for a user without a fingerprint.
        scores: Names of the score columns that `add-scores` has added to `table`.
        dict_codes: Dictionary codes of the events, from reading to `preprocess`; see
            `Encoder.encode`. None without a dictionary.
        encoded: The events as numbers, after `preprocess`; None without a fingerprint.
        filtered: Number of events that `filter` has dropped from this batch.
        filtered_flags: Number of these with a time-series anomaly.
        dropped_stats: Statistics of these, if `PipelineOptions.keeps_dropped_stats`.
        suppressed: Counts of suppressed events among these.
        accepted: Number of events that `train-ae` has added to the user's history, because they
            were judged harmless.
        excluded: Number of events that it has left out of the history, because they were judged
            dangerous.
        model_version: Number of the version of the model store that published the fingerprint; 0
            without a fingerprint. None if no store is used.
        replaced_model: The damaged fingerprint in place of which an earlier one is used.
        new_values: Counts of values that are new to the fingerprint, after `preprocess`. If users
            are encoded together, the first batch has those of a sample, and the others have none.
        candidates: The events as alert candidates, until `filter` has seen all users.
        budget_report: Alerts of the whole run; only the last batch has it.
    """

    user: str | None
    table: Table
    fingerprint: Fingerprint | None = None
    card: ModelCard | None = None
    unscored_reason: str | None = None
    scores: tuple[str, ...] = ()
    dict_codes: EncodedSlice | None = field(default=None, compare=False, repr=False)
    encoded: EncodedRows | None = None
    filtered: int = 0
    filtered_flags: int = 0
    dropped_stats: DroppedStats | None = None
    suppressed: tuple[SuppressionCounts, ...] = ()
    accepted: int = 0
    excluded: int = 0
    model_version: int | None = None
    replaced_model: Replaced | None = None
    new_values: NewValues | None = field(default=None, compare=False, repr=False)
    candidates: AlertCandidates | None = None
    budget_report: AlertBudgetReport | None = None

    @property
    def log_columns(self) -> list[str]:
        """The columns of the log; all columns of `table` if `serialize` has removed `TIME`."""
        names = self.table.names
        if TIME in names:
            names = names[: names.index(TIME)]
        return [name for name in names if name not in {ROW, INDEX}]

    def evolve(self, kind: type[BatchT], **changes: object) -> BatchT:
        """Return a batch of another class, with all fields of `Batch` and some changes.

        Args:
            kind: The class.
            changes: Values of changed and additional fields.
        """
        # As the constructor, which takes ten times as long: it sets the fields one by one.
        batch = object.__new__(kind)
        values, known = vars(batch), kind.__dataclass_fields__
        values.update(vars(self))
        for name in _list_own_fields(type(self)):  # type: ignore[arg-type]  # it asks instances
            values.pop(name, None)
        values.update(changes)
        if len(values) != len(known) or not known.keys() >= changes.keys():
            chosen = {name: values[name] for name in values if name in known or name in changes}
            return kind(**chosen)  # it says which field is missing
        return batch

    def change(self, **changes: object) -> Self:
        """Return a batch with other values in some fields, as `dataclasses.replace`, but faster."""
        if not self.__dataclass_fields__.keys() >= changes.keys():
            return replace(self, **changes)  # type: ignore[arg-type]  # it says which field is unknown
        batch = object.__new__(type(self))
        vars(batch).update(vars(self) | changes)
        return batch


@cache
def _list_own_fields(kind: type[Batch]) -> tuple[str, ...]:
    """Return the fields that a kind of batch has besides those of `Batch`."""
    return tuple(kind.__dataclass_fields__.keys() - Batch.__dataclass_fields__.keys())


@dataclass(frozen=True, kw_only=True)
class Events(Batch):
    """Events as read.

    A user with history but without events has one batch without rows.

    Attributes:
        history: Training events of the user, with the same columns; only the first batch has them.
    """

    history: Table | None = None


@dataclass(frozen=True, kw_only=True)
class WithModel(Batch):
    """Events with the fingerprint of their user, or with the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class Encoded(Batch):
    """Events with their encoded values."""


@dataclass(frozen=True, kw_only=True)
class Losses(Batch):
    """Events with the loss of each column.

    Attributes:
        losses: Reconstruction errors, shape (rows, columns), in the order of the fingerprint's
            columns: in nats for categories, in squared standard deviations for numbers. One column
            of NaN for a user without a fingerprint.
    """

    losses: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scored(Batch):
    """Events with their scores, as columns of `table`.

    Attributes:
        losses: As in `Losses`.
        daily: Scores by the days before, if `add-scores` has computed them.
    """

    losses: NDArray[np.float32]
    daily: DayRecord | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class OutputRows(Batch):
    """Events with only the columns that sinks write."""


@dataclass(frozen=True, kw_only=True)
class EncodedChunk(OutputRows):
    """Rows that are already formatted. `table` has only the columns that are counted.

    Attributes:
        path: File with the formatted rows of this batch, and of earlier ones without a path. The
            sink that takes the rows over deletes it.
    """

    path: Path | None = None


def take_outputs(stage: Transform, outputs: object, method: str = "process") -> list[Batch]:
    """Return the batches that a stage gives.

    Args:
        stage: The stage.
        outputs: What its method has returned.
        method: The method.

    Raises:
        StageError: These are no batches. A method without `yield` returns None.
    """
    if isinstance(outputs, Iterable):
        batches = list(outputs)
        wrong = [each for each in batches if not isinstance(each, Batch)]
        if not wrong:
            return batches
        found = f"gives an object that is no batch, {type(wrong[0]).__name__}"
    else:
        found = f"returns {'None' if outputs is None else type(outputs).__name__}, not batches"
    raise StageError(
        f"stage `{stage.name}`: `{type(stage).__name__}.{method}` {found}. It must yield each "
        "batch that goes on to the next stage, or return a list of them; an empty list for none."
    )


_MAX_ITEMS = 1024
"""Number of items from which their columns take more memory than their rows, if these are few."""


class RowBuffer(msgspec.Struct, Generic[ItemT]):
    """Rows that wait until there are enough of them.

    It keeps their number: adding it up again for each item would take longer with each.

    Attributes:
        items: What has the rows, such as tables.
        rows: Number of rows of all items.

    >>> buffer = RowBuffer()
    >>> buffer.add("two rows", 2)
    >>> buffer.has(2), buffer.has(3)
    (True, False)
    >>> buffer.take(), buffer.rows
    (['two rows'], 0)
    """

    items: list[ItemT] = msgspec.field(default_factory=list)
    rows: int = 0

    def add(self, item: ItemT, rows: int) -> None:
        """Add an item with a number of rows."""
        self.items.append(item)
        self.rows += rows

    def has(self, rows: int) -> bool:
        """Return whether there are as many rows, or more items than should wait."""
        return self.rows >= rows or len(self.items) >= _MAX_ITEMS

    def take(self) -> list[ItemT]:
        """Return the items, and begin again."""
        items, self.items, self.rows = self.items, [], 0
        return items


def has_flags(table: Table) -> bool:
    """Return whether `timeseries` has flagged the events of a table.

    A log can have a column of this name, with text: an output file that is read as a log.
    """
    return TS_ANOMALY in table and table[TS_ANOMALY].dtype == pl.Boolean


class FileSpan(NamedTuple):
    """What a run has found in a file.

    Attributes:
        line: Last line, or number of the last record, with an event.
        first: Time of the first event, in microseconds since 1970.
        last: Time of the last event.
        hours: The hours with an event, as numbers since 1970.
    """

    line: int
    first: int
    last: int
    hours: tuple[int, ...] = ()

    def merge(self, other: FileSpan) -> FileSpan:
        """Return the span of two parts of a file."""
        return FileSpan(
            max(self.line, other.line),
            min(self.first, other.first),
            max(self.last, other.last),
            tuple({*self.hours, *other.hours}),
        )


MAX_REFUSALS = 5
"""Number of records that cannot be read for which the reason is kept."""


@dataclass
class ReadStats:
    """Counts of the records of one set of files.

    Every record is counted in `read`, and in one other field if it is not accepted.

    Attributes:
        time_range: The time range of the options, as text; empty if there is none.
        files: Files that were read.
        empty_files: The files among them without a record.
        copied_files: Files with the same contents as another one, which were not read.
        skipped_files: Files in folders of other formats, which were not opened.
        outside_files: Files that were not opened, because they are outside the time range.
        outside_folders: Folders that were not opened, for the same reason.
        taken_files: Files that were not opened, because earlier runs have read all their events.
        read: Records found.
        taken: Records that earlier runs have taken from the same file.
        late: Accepted records that came after the run of their period, or after the allowance.
        outside_range: Records outside the time range.
        refused: Records that cannot be read.
        duplicates: Records that were read before.
        implausible: Records whose time is implausible.
        dead_letters: Messages that were put aside, in a dead-letter topic or a quarantine. They are
            also counted in `refused` or `other_records`.
        too_late: The implausible ones that are after the clock, not before 2000.
        unwanted_rows: Records that the schema excludes.
        other_records: What is no record of this log, such as digests.
        other_classes: Records of other event classes.
        other_users: Records that --userid_filter excludes.
        skipped_users: Records that --skip_user excludes.
        no_user: Training records without a user.
        kinds: Number of records of other kinds, by kind, in the singular.
        file_kinds: The same of the files in `skipped_files`.
        not_read: Files and folders that match and were not read, in words.
        refusals: Reasons for the first few records that cannot be read.
        copies: The first few copied files, each with the file that was read.
        implausible_times: Places and times of the first few records with an implausible time.
        file_spans: What was found in each file, if the next run must know it.
        gaps: Hours without an event in parts of the input that usually have some, in words.
    """

    time_range: str = ""
    files: int = 0
    empty_files: int = 0
    copied_files: int = 0
    skipped_files: int = 0
    outside_files: int = 0
    outside_folders: int = 0
    taken_files: int = 0
    read: int = 0
    taken: int = 0
    late: int = 0
    dead_letters: int = 0
    outside_range: int = 0
    refused: int = 0
    duplicates: int = 0
    implausible: int = 0
    too_late: int = 0
    unwanted_rows: int = 0
    other_records: int = 0
    other_classes: int = 0
    other_users: int = 0
    skipped_users: int = 0
    no_user: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    file_kinds: Counter[str] = field(default_factory=Counter)
    not_read: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    implausible_times: list[str] = field(default_factory=list)
    file_spans: dict[str, FileSpan] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)

    def note_file(self, name: str, span: FileSpan) -> None:
        """Remember what was found in a part of a file."""
        known = self.file_spans.get(name)
        self.file_spans[name] = span if known is None else known.merge(span)

    @property
    def needs_reasons(self) -> bool:
        """Whether the next reason for a record that cannot be read is kept."""
        return len(self.refusals) < MAX_REFUSALS

    def refuse(self, reason: str, number: int = 1) -> None:
        """Count records that cannot be read. The first few reasons are kept."""
        self.refused += number
        if self.needs_reasons:
            self.refusals = [*self.refusals, reason]

    def skip_copies(self, copies: Iterable[tuple[object, object]]) -> None:
        """Count copies of files, each with the file that is read. The first few are named."""
        names = [f"{copy} has the same contents as {file}" for copy, file in copies]
        self.copied_files += len(names)
        self.copies = [*self.copies, *names][:5]

    def leave_out(self, kind: str, number: int = 1, *, read: int = 1) -> None:
        """Count what is no record of this log.

        Args:
            kind: What it is, in the singular.
            number: How many.
            read: 1 to count them as read too; 0 if they are already.
        """
        self.read += number * read
        self.other_records += number
        self.kinds = self.kinds + Counter({kind: number})

    def add(self, other: ReadStats) -> None:
        """Add the counts of other files."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.kinds = self.kinds + other.kinds
        self.refusals = [*self.refusals, *other.refusals][:MAX_REFUSALS]
        self.copies = [*self.copies, *other.copies][:5]
        for name, span in other.file_spans.items():
            self.note_file(name, span)
        self.implausible_times = [*self.implausible_times, *other.implausible_times][:5]

    @property
    def accepted(self) -> int:
        """Records that became events of the pipeline."""
        dropped = self.refused + self.outside_range + self.duplicates + self.other_classes
        dropped += self.other_records + self.taken
        unwanted = self.other_users + self.skipped_users + self.no_user
        return self.read - dropped - unwanted - self.implausible - self.unwanted_rows


_COUNTS = tuple(each.name for each in fields(ReadStats) if each.type == "int")


class ClusterStats(msgspec.Struct, frozen=True):
    """How a run used a cluster.

    Attributes:
        workers: Number of workers at the end.
        lost_workers: Number of lost workers.
        tasks: Number of tasks, each for some users.
        retries: Number of restarted tasks.
        slowest_users: The slowest users and their seconds, the slowest first.
    """

    workers: int
    lost_workers: int
    tasks: int
    retries: int
    slowest_users: tuple[tuple[str | None, float], ...] = ()


class Step(msgspec.Struct, frozen=True):
    """A step of a run that can take long, to show how far it is.

    Attributes:
        name: What is done.
        count: Returns how many units are done, and how many events so far. Any thread may call it.
        unit: What is counted, in the singular; empty if only events are.
        total: Number of units; None if it is not known.
        prints: Whether sinks may write rows to stdout in this step.
        detail: Returns more about the progress, such as how far an endless run is behind.
    """

    name: str
    count: Callable[[], tuple[int, int]]
    unit: str = ""
    total: int | None = None
    prints: bool = False
    detail: Callable[[], str] = lambda: ""


class SinkStats(msgspec.Struct):
    """How a sink of an endless run keeps up.

    Attributes:
        delivered: Number of the last entry of the outbox that it has taken.
        behind_since: When it fell behind, by `time.monotonic`; None if it has all rows.
        errors: Number of attempts that have failed.
        last_error: Code of the last error (`find_error_code`); empty while it takes rows.
    """

    delivered: int = 0
    behind_since: float | None = None
    errors: int = 0
    last_error: str = ""


class StreamStats(msgspec.Struct):
    """How an endless run goes on.

    Attributes:
        micro_batches: Number of micro-batches with events.
        checkpoints: Number of checkpoints.
        checkpoint_seconds: Seconds that they took.
        outbox_entries: Number of entries that wait in the outbox.
        outbox_bytes: Their size.
        paused: Reading pauses, because the outbox is full, or the models cannot be read.
        sinks: How each sink keeps up, by its name.
        watermarks: Event time up to which each partition of the source was read, in seconds since
            1970.
        late: Number of events that came later than is allowed.
        live_users: Number of users whose state is in memory.
        progress: When the run last got on, by `time.monotonic`: with events or without.
    """

    micro_batches: int = 0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    outbox_entries: int = 0
    outbox_bytes: int = 0
    paused: bool = False
    sinks: dict[str, SinkStats] = msgspec.field(default_factory=dict)
    watermarks: dict[str, float] = msgspec.field(default_factory=dict)
    late: int = 0
    live_users: int = 0
    progress: float = 0.0

    def find_sink_lags(self) -> dict[str, float]:
        """Return for how many seconds each sink has not had all rows; 0 if it has them."""
        now = time.monotonic()
        return {
            name: 0.0 if sink.behind_since is None else max(now - sink.behind_since, 0.0)
            for name, sink in self.sinks.items()
        }

    def find_source_lags(self) -> dict[str, float]:
        """Return the seconds from the event time that each partition has reached until now."""
        now = time.time()
        return {name: max(now - at, 0.0) for name, at in dict(self.watermarks).items()}

    def describe(self) -> str:
        """Return how far the run is behind, in a few words; empty if it is not.

        >>> StreamStats(outbox_entries=3, outbox_bytes=2_000_000, paused=True).describe()
        '2 MB wait for sinks, reading pauses'
        """
        parts = []
        if source_lags := self.find_source_lags():
            parts.append(f"{_format_lag(max(source_lags.values()))} behind")
        late = {name: lag for name, lag in self.find_sink_lags().items() if lag >= 1}
        if late:
            sink = max(late, key=lambda name: late[name])
            parts.append(f"`{sink.partition(' ')[0]}` {_format_lag(late[sink])} behind")
        if self.outbox_bytes >= _MEGABYTE:
            parts.append(f"{self.outbox_bytes / _MEGABYTE:,.0f} MB wait for sinks")
        if self.paused:
            parts.append("reading pauses")
        return ", ".join(parts)


_MEGABYTE = 1_000_000
_DAY = 86_400


def _format_lag(seconds: float) -> str:
    """Return a lag in words. An old log that is read as a stream is years behind.

    >>> _format_lag(61), _format_lag(3e7)
    ('01:01', '347 days')
    """
    days = int(seconds / _DAY)
    return format_duration(seconds) if days <= 1 else format_count(days, "day")


OTHER_USERS = ""
"""Stands for users that are not counted by name. No user has this name: empty text is no value."""
_MAX_REASONS = 1000


@dataclass
class RunMetrics:
    """What happened to every event of a run.

    Attributes:
        input: Counts of the input files.
        training: Counts of the training files.
        users: Number of events that left the pipeline, by user.
        has_sink: Whether the pipeline has a sink.
        cards: Description of each fingerprint that was used, by user.
        unscored_reasons: Why events got no score, by user.
        unscored_filtered: Number of events without a score that `filter` has dropped, by user.
        max_users: Maximum number of users that are counted by name, on an input without end. Others
            are counted together, as `OTHER_USERS`. None for no limit.
        named_users: The users that are counted by name, if there is a limit.
        more_unscored: Number of events of other users without a score, by reason.
        scored: Number of events with a score that have left the pipeline; see `num_scored`.
        filtered: Number of events that `filter` has dropped.
        suppressed: Number of events that each suppression has dropped, by label. They are also
            counted in `filtered`.
        expired: Number of events that each expired suppression would have dropped, by label.
        followers: Number of events that `filter` has dropped because they are not unusual enough
            without the suppressed events before them. They are also counted in `filtered`.
        accepted: Number of events added to the training, because they were judged harmless.
        excluded: Number of events left out of the training, because they were judged dangerous.
        budget_report: Expected and actual alerts, if `filter` had a budget.
        flagged: Number of events with a time-series anomaly, those that `filter` has dropped
            included; None without `timeseries`.
        columns: Columns of the log that events have, or would have if there were any.
        seconds: Wall-clock time of the run.
        cluster_stats: How the run used a cluster, if there was one.
        interrupted: Whether Ctrl+C or SIGTERM ended an unbounded input.
        failed_outputs: Number of outputs that could not be finished.
        population_sample: Sample of all users' histories. The source draws it before it returns the
            first batch, if `PipelineOptions.needs_population`.
        empty_features: Features without a value in any event, in words.
        log_features: The features that come from the log.
        new_values: Counts of values that are new to the fingerprints; None without a fingerprint.
        model_age: How old the fingerprints are; None if it is not known.
        saved_models: The fingerprints that were saved; None if none were.
        replaced_models: The damaged fingerprint of each user, and the earlier one that was used in
            its place; None stands for a whole version.
        on_input: The source calls it with what it has read, before it returns the events. Raises an
            error if they do not fit the fingerprints. None for no check.
        on_step: Called with each step when it begins. None if nothing shows the progress.
        on_tick: Called often while the run makes progress, with events or without. None for
            nothing.
        lateness: Puts the events of an endless input in order; None if they stay as they come.
        stream: How an endless run goes on; None on one that ends.
    """

    input: ReadStats = field(default_factory=ReadStats)
    training: ReadStats = field(default_factory=ReadStats)
    users: Counter[str | None] = field(default_factory=Counter)
    has_sink: bool = True
    cards: dict[str, ModelCard] = field(default_factory=dict)
    unscored_reasons: dict[str | None, str] = field(default_factory=dict)
    unscored_filtered: Counter[str | None] = field(default_factory=Counter)
    max_users: int | None = None
    named_users: set[str | None] = field(default_factory=set, repr=False)
    more_unscored: Counter[str] = field(default_factory=Counter)
    scored: int = 0
    filtered: int = 0
    suppressed: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    followers: int = 0
    accepted: int = 0
    excluded: int = 0
    budget_report: AlertBudgetReport | None = None
    flagged: int | None = None
    columns: tuple[str, ...] = ()
    seconds: float = 0.0
    cluster_stats: ClusterStats | None = field(default=None, compare=False)
    interrupted: bool = False
    failed_outputs: int = 0
    population_sample: pl.DataFrame | None = field(default=None, compare=False, repr=False)
    empty_features: tuple[str, ...] = ()
    log_features: tuple[str, ...] = ()
    new_values: NewValues | None = field(default=None, compare=False, repr=False)
    model_age: ModelAge | None = field(default=None, compare=False)
    saved_models: SavedModels | None = field(default=None, compare=False)
    replaced_models: dict[str | None, Replaced] = field(default_factory=dict)
    on_input: Callable[[InputProfile], None] | None = field(default=None, compare=False, repr=False)
    on_step: Callable[[Step], None] | None = field(default=None, compare=False, repr=False)
    on_tick: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    lateness: LatenessBuffer | None = field(default=None, compare=False, repr=False)
    stream: StreamStats | None = field(default=None, compare=False)

    def begin(self, step: Step) -> None:
        """Say that a step begins. It ends when the next one begins."""
        if self.on_step is not None:
            self.on_step(step)

    def tick(self) -> None:
        """Say that the run makes progress, with events or without."""
        if self.stream is not None:
            self.stream.progress = time.monotonic()
        if self.on_tick is not None:
            self.on_tick()

    def add(self, batch: Batch) -> None:
        """Count a batch that has left the pipeline."""
        user, card = self._count_as(batch.user), batch.card
        # `train-ae` publishes all fingerprints that it has trained.
        is_kept = card is not None and (user == batch.user or not card.version)
        if card is not None and batch.user is not None and is_kept:
            self.cards[batch.user] = card
        self.filtered += batch.filtered
        for counts in batch.suppressed:
            self.suppressed.update(counts.suppressed)
            self.expired.update(counts.expired)
            self.followers += counts.followers
        if batch.replaced_model is not None:
            self.replaced_models[batch.user] = batch.replaced_model
        if batch.new_values is not None:
            found, known = batch.new_values, self.new_values
            self.new_values = found if known is None else known.merge(found)
        self.accepted += batch.accepted
        self.excluded += batch.excluded
        self.budget_report = batch.budget_report or self.budget_report
        if batch.unscored_reason is not None and (batch.table.height or batch.filtered):
            if user == batch.user:
                self.unscored_reasons[user] = batch.unscored_reason
            else:
                self._count_reason(batch.unscored_reason, batch.table.height + batch.filtered)
            self.unscored_filtered[user] += batch.filtered
        if (batch.table.height or batch.filtered) and has_flags(batch.table):
            flags = int(batch.table[TS_ANOMALY].sum()) + batch.filtered_flags
            self.flagged = (self.flagged or 0) + flags
        if not batch.table.height:
            return
        self.users[user] += batch.table.height
        if batch.unscored_reason is None and batch.scores:
            self.scored += batch.table.height

    @property
    def has_other_users(self) -> bool:
        """Whether there are users that are not counted by name."""
        return OTHER_USERS in self.users

    @property
    def num_users(self) -> int:
        """Number of users that are counted by name and have written events."""
        return len(self.users.keys() - {None, OTHER_USERS})

    def _count_as(self, user: str | None) -> str | None:
        """Return the name under which a user is counted."""
        if self.max_users is None or user in self.named_users:
            return user
        if len(self.named_users) < self.max_users:
            self.named_users.add(user)
            return user
        return OTHER_USERS

    def _count_reason(self, reason: str, number: int) -> None:
        known = reason in self.more_unscored or len(self.more_unscored) < _MAX_REASONS
        self.more_unscored[reason if known else "other reasons"] += number

    @property
    def unscored(self) -> dict[str | None, int]:
        """Number of events without a score, by user: those written, and those filtered."""
        return {
            user: self.users[user] + self.unscored_filtered[user] for user in self.unscored_reasons
        }

    @property
    def num_scored(self) -> int:
        """Number of events that got a score, those that `filter` has dropped included."""
        return self.scored + self.filtered - self.unscored_filtered.total()

    @property
    def num_unscored(self) -> int:
        """Number of events without a score, those that `filter` has dropped included."""
        return self.users.total() - self.scored + self.unscored_filtered.total()

    @property
    def num_waiting(self) -> int:
        """Number of events that wait for earlier ones, in the state file."""
        return 0 if self.lateness is None else self.lateness.num_held

    @property
    def empty_reason(self) -> str:
        """Why no event has left the pipeline; empty if any has.

        >>> RunMetrics(input=ReadStats(files=1, read=4, outside_range=4)).empty_reason
        'no event is in the period'
        """
        stats, unwanted = self.input, self.input.other_users + self.input.skipped_users
        not_opened = stats.outside_files or stats.outside_folders
        reasons = [
            (self.users.total(), ""),
            (self.filtered, f"all {self.filtered:,} events were filtered"),
            (
                not stats.read and stats.taken_files,
                "earlier runs have taken all events of the period",
            ),
            (not stats.read and not_opened, "no file is in the period, by the dates in its name"),
            (not stats.read, "the input has no event"),
            (stats.read == stats.outside_range, "no event is in the period"),
            (
                stats.read == stats.outside_range + stats.taken,
                "earlier runs have taken all events of the period",
            ),
            (stats.read == unwanted, "no event is of a wanted user"),
            (self.num_waiting, "the other events wait for earlier ones"),
            (True, f"all {stats.read:,} events that were read are left out"),
        ]
        return next(reason for applies, reason in reasons if applies)

    def add_read_stats(self, other: RunMetrics) -> None:
        """Add the counts of records that another process has read."""
        self.input.add(other.input)
        self.training.add(other.training)


class Partition(Protocol):
    """All events of some users: a value, from which any process can read them."""

    def user_names(self) -> list[str | None]:
        """Return the users in order, None for events without a user; empty if not known."""

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Batch]:
        """Read the events, user after user.

        Args:
            metrics: Counts the records that are read.
            state: State of the source for the users; updated. None if it is not saved.
        """


class MicroBatch(msgspec.Struct, frozen=True):
    """Events that an endless source has read together, and how far it has read with them.

    A source yields an empty one about once a second while nothing comes, so that the runtime can
    save a checkpoint, deliver rows and stop.

    Attributes:
        partitions: The events.
        offsets: Where to go on after these events, encoded by the source, by partition of the
            source: a file, a topic partition, a prefix of a bucket. Only those that have changed;
            empty bytes remove one.
        acknowledge: Called when the rows and the offsets are safe, so that the source may forget
            what it has read. None if there is nothing to do.
        restored: Encoded states of users that this process takes over from another one, before
            these events.
        journal: What `Source.replay` makes these events of again; None if it cannot.
        is_replay: The events were made of a journal, and their rows are in the outbox.
    """

    partitions: Sequence[Partition] = ()
    offsets: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    acknowledge: Callable[[], None] | None = None
    restored: Mapping[StateKey, bytes] = msgspec.field(default_factory=dict)
    journal: bytes | None = None
    is_replay: bool = False


class BatchPartition(msgspec.Struct, frozen=True):
    """A partition of one batch that is in memory."""

    batch: Batch

    def user_names(self) -> list[str | None]:
        """Return the user of the batch."""
        return [self.batch.user]

    def events(
        self,
        metrics: RunMetrics,  # noqa: ARG002 - the reader counts
        state: PartitionState | None = None,  # noqa: ARG002 - the reader has it
    ) -> Iterator[Batch]:
        """Return the batch."""
        return iter([self.batch])


class StreamPartition(msgspec.Struct, frozen=True):
    """A partition that only this process can read, because reading has started."""

    batches: Iterator[Batch]

    def user_names(self) -> list[str | None]:
        """Return no users, because they are not known before they are read."""
        return []

    def events(
        self,
        metrics: RunMetrics,  # noqa: ARG002 - the reader counts
        state: PartitionState | None = None,  # noqa: ARG002 - the reader has it
    ) -> Iterator[Batch]:
        """Return the events; can be called once."""
        return self.batches
