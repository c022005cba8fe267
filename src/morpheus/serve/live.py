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
from morpheus.report.aggregate import Findings
from morpheus.report.view import Account, Contents, contents
from morpheus.report_cli import USERS
from morpheus.sinks.formats import COMPRESSED_SUFFIXES, FORMAT_BY_EXTENSION
from morpheus.sources.results import read_results
from morpheus.sources.time_range import parse_times
from morpheus.status import Status

AT_ONCE = 1 << 25
"""Bytes of a file that are read at a time."""


class Replaced(Exception):
    """A file is another than it was: everything has to be read again."""


@dataclass
class Growing:
    """A text file to whose end rows are added.

    Attributes:
        path: Where it is.
        kind: `csv` or `json`.
        mark: What tells it from another file of that name.
        at: Bytes read so far; only whole rows are.
        head: First line of a CSV file.
        unread: Rows that could not be read.
    """

    path: Path
    kind: str
    mark: int
    at: int = 0
    head: bytes = b""
    unread: int = 0

    def news(self) -> Iterator[pl.DataFrame]:
        """Read the rows that have been added, as text."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != self.mark or about.st_size < self.at:
                raise Replaced
            file.seek(self.at)
            while rows := self._whole(file.read(AT_ONCE)):
                self.at += len(rows)
                file.seek(self.at)
                yield self._csv(rows) if self.kind == "csv" else self._json(rows)

    def _whole(self, text: bytes) -> bytes:
        """As many whole rows as there are; one that is wider than `AT_ONCE` is never whole."""
        end = text.rfind(b"\n") + 1
        # A line feed between quotes ends no row.
        while self.kind == "csv" and text.count(b'"', 0, end) % 2:
            end = text.rfind(b"\n", 0, end - 1) + 1
        return text[:end]

    def _csv(self, rows: bytes) -> pl.DataFrame:
        if not self.head:
            end = rows.index(b"\n") + 1
            while rows.count(b'"', 0, end) % 2:
                end = rows.index(b"\n", end) + 1
            self.head, rows = rows[:end], rows[end:]
        try:
            return pl.read_csv(io.BytesIO(self.head + rows), infer_schema=False)
        except PolarsError:
            self.unread += rows.count(b"\n")
            return pl.DataFrame()

    def _json(self, rows: bytes) -> pl.DataFrame:
        found = []
        for line in rows.splitlines():
            try:
                found.append(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
            except msgspec.DecodeError:
                self.unread += bool(line.strip())
        names = dict.fromkeys(name for one in found for name in one)
        return pl.DataFrame(
            {name: [_text(one.get(name)) for one in found] for name in names},
            schema_overrides=dict.fromkeys(names, pl.String),
        )


@dataclass
class Whole:
    """A file that is read once it is there, and read again if it is another.

    Attributes:
        path: Where it is.
        mark: What tells it from another file of that name; None before it has been read.
        unread: 1 if it could not be read.
    """

    path: Path
    mark: tuple[int, int, int] | None = None
    unread: int = 0

    def news(self) -> Iterator[pl.DataFrame]:
        """Read it, the first time; of one that is broken, what comes before the break."""
        about = self.path.stat()
        mark = about.st_ino, about.st_size, about.st_mtime_ns
        if self.mark is not None and self.mark != mark:
            raise Replaced
        if self.mark is None:
            self.mark = mark
            try:
                yield from read_results(self.path)
            except (RecordError, UsageError):
                self.unread = 1


@dataclass
class Following:
    """A folder into which a run writes.

    Attributes:
        folder: The folder; those in it are not looked into.
        files: The files known so far.
    """

    folder: Path
    files: dict[Path, Growing | Whole] = field(default_factory=dict)

    def news(self) -> Iterator[pl.DataFrame]:
        """Read what is new, as it is written: as text, but for Parquet and packed files.

        Raises:
            Replaced: A file is gone or another than it was; begin anew with another `Following`.
        """
        there = sorted(path for path in self.folder.iterdir() if _kind(path) and path.is_file())
        if set(self.files) - set(there):
            raise Replaced
        for path in there:
            if path not in self.files:
                self.files[path] = _followed(path)
            try:
                yield from self.files[path].news()
            except FileNotFoundError:
                raise Replaced from None

    @property
    def unread(self) -> int:
        """Rows and files that could not be read."""
        return sum(file.unread for file in self.files.values())


def _followed(path: Path) -> Growing | Whole:
    kind = _kind(path)
    if kind == "parquet" or path.suffix in COMPRESSED_SUFFIXES:
        return Whole(path)
    return Growing(path, kind, path.stat().st_ino)


def _kind(path: Path) -> str:
    """Format of a file of rows; nothing for any other, hidden ones among them."""
    if path.name.startswith(".") or path.name == "status.json":
        return ""
    suffixes = [one for one in path.suffixes[-2:] if one not in COMPRESSED_SUFFIXES]
    return FORMAT_BY_EXTENSION.get(suffixes[-1].lower(), "") if suffixes else ""


def _text(raw: msgspec.Raw | None) -> str | None:
    """A JSON value as text: texts as they are, others as they are written."""
    if raw is None:
        return None
    value = bytes(raw)
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return None if value == b"null" else value.decode()


PLAIN = Status("morpheus-status", 1, True, "", "", False, None, Account())  # noqa: FBT003 - fields in order
"""Stands for the status of a run that tells none."""


ALERTS = 5.0
"""Alerts a day that one is ready to look at, where nobody says otherwise."""
UNTOLD = (
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
class Live:
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
    _data: bytes | None = None
    _told: tuple[float, Status] | None = None
    _grown: float | None = None

    def __post_init__(self) -> None:
        # Pages that were open before a restart take its data for new.
        self._version = int(self.clock() * 1000)
        self._begin()

    def look(self) -> None:
        """Read what is new."""
        with self._lock:
            changed = self._read_status()
            try:
                changed |= self._read_rows()
            except Replaced:
                self._begin()
                self._read_rows()
                changed = True
            if changed:
                self._version += 1
                self._data = None

    def health(self) -> Health:
        """How the run is doing."""
        told, status = self._told or (None, PLAIN)
        return Health(
            version=self._version,
            now=self.clock(),
            latest=self._latest,
            grown=self._grown,
            told=told,
            running=status.running,
            files=len(self._following.files),
            rows=self._rows,
            unread=self._following.unread,
            timeless=self._timeless,
            read=status.account.read,
            refused=status.account.refused,
            refusals=status.account.refusals,
            held=sum(status.held.values()),
            allowed=self._allowed(status),
        )

    def data(self) -> bytes:
        """The page's data, as JSON."""
        with self._lock:
            if self._data is None:
                self._data = msgspec.json.encode(self._contents())
            return self._data

    def _begin(self) -> None:
        """Forget all rows."""
        self._following = Following(self.folder)
        self._findings = Findings()
        self._rows = self._timeless = 0
        self._latest: float | None = None

    def _contents(self) -> Contents:
        _, status = self._told or (None, PLAIN)
        self._findings.filtered = status.filtered
        found = contents(
            self._findings,
            status.account if self._told else Account(scored=self._rows),
            self._allowed(status),
            cards="--models=FOLDER (which train-ae --models_output_filename wrote)",
            about=(status.source, self.user_column or status.user_column),
        )
        if self._told is not None:
            return found
        return msgspec.structs.replace(found, rule=UNTOLD.format(self._allowed(status)))

    def _allowed(self, status: Status) -> float:
        return self.alerts_per_day or status.alerts_per_day or ALERTS

    def _read_status(self) -> bool:
        """Read what the run tells; half-written or of another kind, it tells nothing.

        Returns:
            Whether the page would be another: counts alone are shown as health.
        """
        path, before = self.folder / "status.json", self._told
        try:
            told = path.stat().st_mtime
            if before is not None and before[0] == told:
                return False
            self._told = told, msgspec.json.decode(path.read_bytes(), type=Status)
        except (OSError, msgspec.DecodeError):
            return False
        return before is None or _uncounted(before[1]) != _uncounted(self._told[1])

    def _read_rows(self) -> bool:
        changed = False
        for frame in self._following.news():
            if frame.height:
                self._add(frame)
                changed = True
        if changed:
            self._grown = self.clock()
        return changed

    def _add(self, frame: pl.DataFrame) -> None:
        """Add rows to what was found."""
        times = frame.get_column(TIME, default=pl.Series(TIME, [None] * frame.height))
        rows = frame.with_columns(
            parse_times(times.cast(pl.String)).alias(TIME),
            self._owners(frame).alias(POPULATION_USER),
        )
        dated = rows.filter(pl.col(TIME).is_not_null())
        self._timeless += rows.height - dated.height
        self._rows += dated.height
        for (user,), theirs in dated.partition_by(
            POPULATION_USER, as_dict=True, maintain_order=True, include_key=False
        ).items():
            self._findings.see(user, self._card(user), None)
            self._findings.add(user, theirs)
        if dated.height:
            latest = int(dated[TIME].dt.epoch("ms").to_numpy().max()) / 1000
            self._latest = max(latest, self._latest or latest)

    def _card(self, user: str | None) -> ModelCard | None:
        if self.store is None or user is None:
            return None
        return self.store.cards.get(user, self.store.global_card)

    def _owners(self, frame: pl.DataFrame) -> pl.Series:
        """The user of each row."""
        told = self._told[1].user_column if self._told else ""
        names = filter(None, (self.user_column, told, *USERS))
        name = next((one for one in names if one in frame.columns), None)
        if name is None:
            return pl.Series([None] * frame.height, dtype=pl.String)
        return frame[name].cast(pl.String)


def _uncounted(status: Status) -> Status:
    return msgspec.structs.replace(status, account=PLAIN.account, held={})
