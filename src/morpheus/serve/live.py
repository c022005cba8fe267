"""Files that grow: what is new in a folder since one has last looked."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from morpheus.columns import POPULATION_USER, TIME
from morpheus.errors import RecordError, UsageError
from morpheus.models.profile import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.aggregate import ReportAggregator
from morpheus.report.view import ReportData, RunCounts, build_report_data
from morpheus.report_cli import USER_COLUMNS
from morpheus.sinks.formats import COMPRESSED_SUFFIXES, FORMAT_BY_EXTENSION
from morpheus.sources.results import read_results
from morpheus.sources.time_range import parse_times
from morpheus.status import Status

CHUNK_BYTES = 1 << 25
"""Bytes of a file that are read at a time."""


class FileReplaced(Exception):
    """A file is another than it was: everything has to be read again."""


@dataclass
class AppendedFile:
    """A text file to whose end rows are added.

    Attributes:
        path: Where it is.
        format: `csv` or `json`.
        inode: What tells it from another file of that name.
        offset: Bytes read so far; only whole rows are.
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
        """Read the rows that have been added, as text."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != self.inode or about.st_size < self.offset:
                raise FileReplaced
            file.seek(self.offset)
            while rows := self._take_complete_rows(file.read(CHUNK_BYTES)):
                self.offset += len(rows)
                file.seek(self.offset)
                yield self._parse_csv(rows) if self.format == "csv" else self._parse_json(rows)

    def _take_complete_rows(self, text: bytes) -> bytes:
        """As many whole rows as there are; one that is wider than `CHUNK_BYTES` is never whole."""
        end = text.rfind(b"\n") + 1
        # A line feed between quotes ends no row.
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
            return pl.read_csv(io.BytesIO(self.header + rows), infer_schema=False)
        except PolarsError:
            self.num_unreadable += rows.count(b"\n")
            return pl.DataFrame()

    def _parse_json(self, rows: bytes) -> pl.DataFrame:
        found = []
        for line in rows.splitlines():
            try:
                found.append(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
            except msgspec.DecodeError:
                self.num_unreadable += bool(line.strip())
        names = dict.fromkeys(name for one in found for name in one)
        return pl.DataFrame(
            {name: [_json_to_text(one.get(name)) for one in found] for name in names},
            schema_overrides=dict.fromkeys(names, pl.String),
        )


@dataclass
class WholeFile:
    """A file that is read once it is there, and read again if it is another.

    Attributes:
        path: Where it is.
        file_id: What tells it from another file of that name; None before it has been read.
        num_unreadable: 1 if it could not be read.
    """

    path: Path
    file_id: tuple[int, int, int] | None = None
    num_unreadable: int = 0

    def poll(self) -> Iterator[pl.DataFrame]:
        """Read it, the first time; of one that is broken, what comes before the break."""
        about = self.path.stat()
        mark = about.st_ino, about.st_size, about.st_mtime_ns
        if self.file_id is not None and self.file_id != mark:
            raise FileReplaced
        if self.file_id is None:
            self.file_id = mark
            try:
                yield from read_results(self.path)
            except (RecordError, UsageError):
                self.num_unreadable = 1


@dataclass
class FolderTail:
    """A folder into which a run writes.

    Attributes:
        folder: The folder; those in it are not looked into.
        files: The files known so far.
    """

    folder: Path
    files: dict[Path, AppendedFile | WholeFile] = field(default_factory=dict)

    def poll(self) -> Iterator[pl.DataFrame]:
        """Read what is new, as it is written: as text, but for Parquet and packed files.

        Raises:
            Replaced: A file is gone or another than it was; begin anew with another `FolderTail`.
        """
        there = sorted(
            path for path in self.folder.iterdir() if _detect_format(path) and path.is_file()
        )
        if set(self.files) - set(there):
            raise FileReplaced
        for path in there:
            if path not in self.files:
                self.files[path] = _open_file(path)
            try:
                yield from self.files[path].poll()
            except FileNotFoundError:
                raise FileReplaced from None

    @property
    def num_unreadable(self) -> int:
        """Rows and files that could not be read."""
        return sum(file.num_unreadable for file in self.files.values())


def _open_file(path: Path) -> AppendedFile | WholeFile:
    kind = _detect_format(path)
    if kind == "parquet" or path.suffix in COMPRESSED_SUFFIXES:
        return WholeFile(path)
    return AppendedFile(path, kind, path.stat().st_ino)


def _detect_format(path: Path) -> str:
    """Format of a file of rows; nothing for any other, hidden ones among them."""
    if path.name.startswith(".") or path.name == "status.json":
        return ""
    suffixes = [one for one in path.suffixes[-2:] if one not in COMPRESSED_SUFFIXES]
    return FORMAT_BY_EXTENSION.get(suffixes[-1].lower(), "") if suffixes else ""


def _json_to_text(raw: msgspec.Raw | None) -> str | None:
    """A JSON value as text: texts as they are, others as they are written."""
    if raw is None:
        return None
    value = bytes(raw)
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return None if value == b"null" else value.decode()


NO_STATUS = Status("morpheus-status", 1, True, "", "", False, None, RunCounts())  # noqa: FBT003 - fields in order
"""Stands for the status of a run that tells none."""


DEFAULT_ALERTS_PER_DAY = 5.0
"""Alerts a day that one is ready to look at, where nobody says otherwise."""
NO_STATUS_RULE = (
    "Shown are the {:g} highest incidents a day. The run tells no status, such as whether they are "
    "alerts already: give it --status_file, `status.json` in this folder."
)


class Health(msgspec.Struct, frozen=True):
    """How the run is doing.

    Attributes:
        version: Number of the page's data; another number, other data.
        now: By this machine's clock, in seconds since 1970.
        latest: Time of the latest event, in seconds since 1970; None before the first.
        grown: When rows last came, by the clock; None before the first.
        told: When the run last told its status; None if it does not.
        running: The run says that it has not ended.
        files: Files found.
        rows: Rows read.
        unread: Rows and files that could not be read.
        timeless: Rows left out because they have no time.
        read: Events that the run has read.
        refused: Those that it could not.
        refusals: The first few reasons.
        held: Alerts that suppressions hold back.
        allowed: Alerts a day that one is ready to look at.
    """

    version: int
    now: float
    latest: float | None
    grown: float | None
    told: float | None
    running: bool
    files: int
    rows: int
    unread: int
    timeless: int
    read: int
    refused: int
    refusals: list[str]
    held: int
    allowed: float


@dataclass
class LiveReport:
    """A folder of outputs, followed.

    Attributes:
        folder: The folder.
        user_column: Column that says whose event a row is; by default as the run's status says, or
            the first usual one that there is.
        alerts_per_day: Budget of alerts; None for that of the run's `filter`, or five.
        store: The fingerprints that scored, if they are at hand.
        clock: Seconds since 1970.
    """

    folder: Path
    user_column: str = ""
    alerts_per_day: float | None = None
    store: ModelStore | None = None
    clock: Callable[[], float] = time.time

    _lock: Lock = field(default_factory=Lock, repr=False)
    _encoded_data: bytes | None = None
    _timed_status: tuple[float, Status] | None = None
    _last_growth: float | None = None

    def __post_init__(self) -> None:
        # Pages that were open before a restart take its data for new.
        self._version = int(self.clock() * 1000)
        self._reset()

    def refresh(self) -> None:
        """Read what is new."""
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

    def get_health(self) -> Health:
        """How the run is doing."""
        told, status = self._timed_status or (None, NO_STATUS)
        return Health(
            version=self._version,
            now=self.clock(),
            latest=self._latest,
            grown=self._last_growth,
            told=told,
            running=status.running,
            files=len(self._tail.files),
            rows=self._rows,
            unread=self._tail.num_unreadable,
            timeless=self._rows_without_time,
            read=status.account.read,
            refused=status.account.refused,
            refusals=status.account.refusals,
            held=sum(status.held.values()),
            allowed=self._find_alert_budget(status),
        )

    def encode_data(self) -> bytes:
        """The page's data, as JSON."""
        with self._lock:
            if self._encoded_data is None:
                self._encoded_data = msgspec.json.encode(self._build_data())
            return self._encoded_data

    def _reset(self) -> None:
        """Forget all rows."""
        self._tail = FolderTail(self.folder)
        self._aggregator = ReportAggregator()
        self._rows = self._rows_without_time = 0
        self._latest: float | None = None

    def _build_data(self) -> ReportData:
        _, status = self._timed_status or (None, NO_STATUS)
        self._aggregator.filtered = status.filtered
        found = build_report_data(
            self._aggregator,
            status.account if self._timed_status else RunCounts(scored=self._rows),
            self._find_alert_budget(status),
            models_hint="--models=FOLDER (which train-ae --models_output_filename wrote)",
            origin=(status.source, self.user_column or status.user_column),
        )
        if self._timed_status is not None:
            return found
        return msgspec.structs.replace(
            found, rule=NO_STATUS_RULE.format(self._find_alert_budget(status))
        )

    def _find_alert_budget(self, status: Status) -> float:
        return self.alerts_per_day or status.alerts_per_day or DEFAULT_ALERTS_PER_DAY

    def _read_status(self) -> bool:
        """Read what the run tells; half-written or of another kind, it tells nothing.

        Returns:
            Whether the page would be another: counts alone are shown as health.
        """
        path, before = self.folder / "status.json", self._timed_status
        try:
            told = path.stat().st_mtime
            if before is not None and before[0] == told:
                return False
            self._timed_status = told, msgspec.json.decode(path.read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError):
            return False
        return before is None or _without_counts(before[1]) != _without_counts(
            self._timed_status[1]
        )

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
        """Add rows to what was found."""
        times = frame.get_column(TIME, default=pl.Series(TIME, [None] * frame.height))
        rows = frame.with_columns(
            parse_times(times.cast(pl.String)).alias(TIME),
            self._find_users(frame).alias(POPULATION_USER),
        )
        dated = rows.filter(pl.col(TIME).is_not_null())
        self._rows_without_time += rows.height - dated.height
        self._rows += dated.height
        for (user,), theirs in dated.partition_by(
            POPULATION_USER, as_dict=True, maintain_order=True, include_key=False
        ).items():
            self._aggregator.register_user(user, self._find_card(user), None)
            self._aggregator.add(user, theirs)
        if dated.height:
            latest = int(dated[TIME].dt.epoch("ms").to_numpy().max()) / 1000
            self._latest = max(latest, self._latest or latest)

    def _find_card(self, user: str | None) -> ModelCard | None:
        if self.store is None or user is None:
            return None
        return self.store.cards.get(user, self.store.global_card)

    def _find_users(self, frame: pl.DataFrame) -> pl.Series:
        """The user of each row."""
        told = self._timed_status[1].user_column if self._timed_status else ""
        names = filter(None, (self.user_column, told, *USER_COLUMNS))
        name = next((one for one in names if one in frame.columns), None)
        if name is None:
            return pl.Series([None] * frame.height, dtype=pl.String)
        return frame[name].cast(pl.String)


def _without_counts(status: Status) -> Status:
    return msgspec.structs.replace(status, account=NO_STATUS.account, held={})
