"""The data of a live report: a folder of results, read while a run writes them.

`FolderTail` reads what is new in the files. `LiveReport` aggregates the rows, reads the run's
status file, and builds the data of the page.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import msgspec
import polars as pl
from msgspec.structs import replace
from polars.exceptions import PolarsError

from morpheus.columns import ACTOR_OPTION, POPULATION_USER, TIME
from morpheus.core.stage import to_user_column
from morpheus.errors import RecordError, UsageError
from morpheus.models.profile import ModelCard, list_names
from morpheus.models.store import ModelStore
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.view import Origin, ReportData, RunCounts, build_log_view, build_report_data
from morpheus.report_cli import warn_other_store
from morpheus.sources.compression import COMPRESSED_SUFFIXES, detect_file_type
from morpheus.sources.results import (
    find_log,
    find_user_column,
    find_users,
    parse_csv,
    parse_json_lines,
    read_results,
)
from morpheus.sources.time_range import parse_times
from morpheus.status import STATUS_FILE, Status
from morpheus.text import suggest

CHUNK_BYTES = 1 << 25
"""Bytes of a file that are read at a time."""
DEFAULT_ALERTS_PER_DAY = 5.0
NO_STATUS = Status("morpheus-status", 1, True, "", "", False, None, RunCounts())  # noqa: FBT003 - fields in order
"""Status of a run without a status file."""
NO_STATUS_RULE = (
    "Shown are the {:g} highest incidents per day. This run has no status file, which would tell "
    "whether the rows are alerts already. Add `--status_file`, with `status.json` in this folder."
)


class FileReplaced(Exception):
    """A file was replaced, truncated or removed. Everything must be read again."""


class AppendedFile(msgspec.Struct):
    """A text file to which rows are appended.

    Attributes:
        path: The file.
        format: `csv` or `json`.
        inode: Identifies the file, in case another one gets its name.
        offset: Bytes read so far. Only complete rows are read.
        header: First line of a CSV file.
        num_unreadable: Rows that could not be read.
    """

    path: Path
    format: str
    inode: int
    offset: int = 0
    header: bytes = b""
    num_unreadable: int = 0

    def poll(self) -> Iterator[pl.DataFrame]:
        """Read the rows that were appended, as text.

        Raises:
            FileReplaced: It is another file, or it is shorter than before.
        """
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self.inode or stat.st_size < self.offset:
                raise FileReplaced
            file.seek(self.offset)
            while rows := self._take_complete_rows(file.read(CHUNK_BYTES)):
                self.offset += len(rows)
                file.seek(self.offset)
                yield self._parse_csv(rows) if self.format == "csv" else self._parse_json(rows)

    def _take_complete_rows(self, text: bytes) -> bytes:
        """Return the complete rows of a chunk. A row longer than a chunk is never complete."""
        end = text.rfind(b"\n") + 1
        # A line feed between quotes does not end a row.
        while self.format == "csv" and text.count(b'"', 0, end) % 2:
            end = text.rfind(b"\n", 0, end - 1) + 1
        return text[:end]

    def _parse_csv(self, rows: bytes) -> pl.DataFrame:
        if not self.header:
            end = rows.index(b"\n") + 1
            while rows.count(b'"', 0, end) % 2:
                end = rows.index(b"\n", end) + 1
            self.header, rows = rows[:end], rows[end:]
        try:
            return parse_csv(self.header + rows)
        except PolarsError:
            self.num_unreadable += rows.count(b"\n")
            return pl.DataFrame()

    def _parse_json(self, rows: bytes) -> pl.DataFrame:
        frame, num_unreadable = parse_json_lines(rows.splitlines())
        self.num_unreadable += num_unreadable
        return frame


class WholeFile(msgspec.Struct):
    """A file that is written in one step: Parquet, or compressed.

    Attributes:
        path: The file.
        file_id: Identifies the file. None before it is read.
        num_unreadable: 1 if it could not be read.
    """

    path: Path
    file_id: tuple[int, int, int] | None = None
    num_unreadable: int = 0

    def poll(self) -> Iterator[pl.DataFrame]:
        """Read the file once. Of a damaged file, the rows before the damage are read.

        Raises:
            FileReplaced: It is another file than before.
        """
        stat = self.path.stat()
        file_id = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if self.file_id is not None and self.file_id != file_id:
            raise FileReplaced
        if self.file_id is None:
            self.file_id = file_id
            try:
                yield from read_results(self.path)
            except (RecordError, UsageError):
                self.num_unreadable = 1


class FolderTail(msgspec.Struct):
    """A folder in which a run writes results.

    Attributes:
        folder: The folder. Its subfolders are ignored.
        files: The files found so far.
    """

    folder: Path
    files: dict[Path, AppendedFile | WholeFile] = msgspec.field(default_factory=dict)

    def poll(self) -> Iterator[pl.DataFrame]:
        """Read what is new. Columns are text, except those of Parquet and compressed files.

        Raises:
            FileReplaced: A file is gone or was replaced. Start again with a new `FolderTail`.
        """
        paths = sorted(p for p in self.folder.iterdir() if _detect_format(p) and p.is_file())
        if set(self.files) - set(paths):
            raise FileReplaced
        for path in paths:
            if path not in self.files:
                self.files[path] = _open_file(path)
            try:
                yield from self.files[path].poll()
            except FileNotFoundError:
                raise FileReplaced from None

    @property
    def num_unreadable(self) -> int:
        """Number of rows and files that could not be read."""
        return sum(file.num_unreadable for file in self.files.values())


def _open_file(path: Path) -> AppendedFile | WholeFile:
    file_format = _detect_format(path)
    if file_format == "parquet" or path.suffix in COMPRESSED_SUFFIXES:
        return WholeFile(path)
    return AppendedFile(path, file_format, path.stat().st_ino)


def _detect_format(path: Path) -> str:
    """Return the format of a file of results. Empty for other files and hidden ones."""
    if path.name.startswith(".") or path.name == STATUS_FILE:
        return ""
    return detect_file_type(path) or ""


class Health(
    msgspec.Struct,
    frozen=True,
    rename={"last_growth": "grown", "status_time": "told", "rows_without_time": "timeless"},
):
    """The state of a run, as the page reads it.

    Attributes:
        version: Number of the page's data. It changes when the data changes.
        now: This machine's clock, in seconds since 1970.
        latest: Time of the latest event, in seconds since 1970. None before the first.
        last_growth: When rows were last added, by the clock. None before the first.
        status_time: When the run last wrote its status. None without a status file.
        running: Whether the run is still running.
        files: Number of files.
        rows: Number of rows with a time.
        unread: Number of rows and files that could not be read.
        rows_without_time: Number of rows without a time, which are left out.
        read: Number of events that the run read.
        refused: Number of events that the run could not read.
        refusals: The first reasons for that.
        held: Number of alerts suppressed.
        allowed: Alerts per day that you are ready to review.
        waiting: Which sinks of an endless run take no rows, and what waits for them, in words.
    """

    version: int
    now: float
    latest: float | None
    last_growth: float | None
    status_time: float | None
    running: bool
    files: int
    rows: int
    unread: int
    rows_without_time: int
    read: int
    refused: int
    refusals: list[str]
    held: int
    allowed: float
    waiting: str = ""


@dataclass
class LiveReport:
    """The report of a run that is writing results into a folder.

    Attributes:
        folder: The folder.
        user_column: The user column. By default the one in the status file, otherwise a known
            one in the data.
        alerts_per_day: The alert budget. None for the budget of the run's `filter`, or 5.
        store: The models that scored the events, if they are available.
        clock: Returns the time in seconds since 1970.
        timezone: Time zone of the days of incidents.
    """

    folder: Path
    user_column: str = ""
    alerts_per_day: float | None = None
    store: ModelStore | None = None
    clock: Callable[[], float] = time.time
    timezone: str = "UTC"

    _lock: Lock = field(default_factory=Lock, repr=False)
    _encoded_data: bytes | None = None
    _timed_status: tuple[float, Status] | None = None
    _last_growth: float | None = None

    def __post_init__(self) -> None:
        # After a restart of the server, open pages must take its data for new.
        self._version = int(self.clock() * 1000)
        self._reset()

    def refresh(self) -> None:
        """Read what is new in the folder.

        Raises:
            OSError: The folder cannot be read.
        """
        with self._lock:
            changed = self._read_status()
            try:
                changed |= self._read_rows()
            except FileReplaced:
                self._reset()
                self._read_rows()
                changed = True
            if changed:
                self._version += 1
                self._encoded_data = None

    def check(self, models: str | None) -> None:
        """Read the folder, and check the user column and the models against its rows.

        Args:
            models: Where the models are, for a warning if the rows were scored with others.

        Raises:
            UsageError: There are rows, and none has the user column.
        """
        with suppress(OSError):
            self.refresh()
        column, found = to_user_column(self.user_column), list(self._aggregator.columns)
        if self.user_column not in {"", ACTOR_OPTION} and found and column not in found:
            raise UsageError(
                f"--userid_column_name: the files in `{self.folder}` have no column `{column}`."
                f"{suggest(column, found)} Give one of their columns, such as "
                f"{list_names(found[:12])}."
            )
        if self.store is not None and models is not None:
            _, status = self._timed_status or (None, NO_STATUS)
            self._aggregator.filtered = status.filtered
            column = self._get_origin().user_column
            warn_other_store(self._aggregator, self.store, location=models, user_column=column)

    def get_health(self) -> Health:
        """Return the state of the run."""
        status_mtime, status = self._timed_status or (None, NO_STATUS)
        return Health(
            version=self._version,
            now=self.clock(),
            latest=self._latest,
            last_growth=self._last_growth,
            status_time=status_mtime,
            running=status.running,
            files=len(self._tail.files),
            rows=self._rows,
            unread=self._tail.num_unreadable,
            rows_without_time=self._rows_without_time,
            read=status.account.read,
            refused=status.account.refused,
            refusals=status.account.refusals,
            held=sum(status.held.values()),
            allowed=self._find_alert_budget(status),
            waiting="" if status.stream is None else status.stream.describe(),
        )

    def encode_data(self) -> bytes:
        """Return the page's data as JSON."""
        with self._lock:
            if self._encoded_data is None:
                data = msgspec.structs.asdict(self._build_data())
                log = build_log_view(self._get_origin())
                self._encoded_data = msgspec.json.encode(data | {"log": log})
            return self._encoded_data

    def _reset(self) -> None:
        """Discard all rows."""
        self._tail = FolderTail(self.folder)
        self._aggregator = ReportAggregator(timezone=self.timezone)
        self._rows = self._rows_without_time = 0
        self._latest: float | None = None

    def _build_data(self) -> ReportData:
        _, status = self._timed_status or (None, NO_STATUS)
        self._aggregator.filtered = status.filtered
        budget = self._find_alert_budget(status)
        data = build_report_data(
            self._aggregator,
            status.account if self._timed_status else RunCounts(scored=self._rows),
            budget,
            models_hint="--models=FOLDER (which train-ae --models_output_filename wrote)",
            origin=self._get_origin(),
        )
        if self._timed_status is not None:
            return data
        return replace(data, rule=NO_STATUS_RULE.format(budget))

    def _get_origin(self) -> Origin:
        _, status = self._timed_status or (None, NO_STATUS)
        log = find_log(status.source, self._aggregator.columns)
        return Origin(status.source, to_user_column(self.user_column or status.user_column), log)

    def _find_alert_budget(self, status: Status) -> float:
        budgets = (self.alerts_per_day, status.alerts_per_day, DEFAULT_ALERTS_PER_DAY)
        return next(budget for budget in budgets if budget is not None)

    def _read_status(self) -> bool:
        """Read the status file. An incomplete file, or one of another format, is ignored.

        Returns:
            Whether the page's data changes. Counts alone change only the state of the run.
        """
        path, before = self.folder / STATUS_FILE, self._timed_status
        try:
            mtime = path.stat().st_mtime
            if before is not None and before[0] == mtime:
                return False
            status = msgspec.json.decode(path.read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError):
            return False
        self._timed_status = mtime, status
        return before is None or _without_counts(before[1]) != _without_counts(status)

    def _read_rows(self) -> bool:
        changed = False
        for frame in self._tail.poll():
            if frame.height:
                self._add_rows(frame)
                changed = True
        if changed:
            self._last_growth = self.clock()
        return changed

    def _add_rows(self, frame: pl.DataFrame) -> None:
        """Aggregate rows, user by user."""
        times = frame.get_column(TIME, default=pl.Series(TIME, [None] * frame.height))
        rows = frame.with_columns(
            parse_times(times.cast(pl.String)).alias(TIME),
            self._find_users(frame).alias(POPULATION_USER),
        )
        with_time = rows.filter(pl.col(TIME).is_not_null())
        self._rows_without_time += rows.height - with_time.height
        self._rows += with_time.height
        for (user,), user_rows in with_time.partition_by(
            POPULATION_USER, as_dict=True, maintain_order=True, include_key=False
        ).items():
            self._aggregator.register_user(user, self._find_card(user), None)
            self._aggregator.add(user, user_rows)
        if with_time.height:
            latest = int(with_time[TIME].dt.epoch("ms").to_numpy().max()) / 1000
            self._latest = max(latest, self._latest or latest)

    def _find_card(self, user: str | None) -> ModelCard | None:
        if self.store is None or user is None:
            return None
        return self.store.cards.get(user, self.store.global_card)

    def _find_users(self, frame: pl.DataFrame) -> pl.Series:
        """Return the user of each row, shape (rows,)."""
        stated = self._timed_status[1].user_column if self._timed_status else ""
        known = find_user_column(frame.columns) or ""
        for column in filter(None, (self.user_column, stated, known)):
            users = find_users(frame, column)
            if users is not None:
                return users
        return pl.Series([None] * frame.height, dtype=pl.String)


def _without_counts(status: Status) -> Status:
    return replace(status, account=NO_STATUS.account, held={})
