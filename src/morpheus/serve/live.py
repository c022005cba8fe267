"""What a folder of outputs says by now: the page's data, and how the run is doing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import msgspec
import polars as pl

from morpheus.columns import POPULATION_USER, TIME
from morpheus.models.fingerprint import ModelCard
from morpheus.models.store import ModelStore
from morpheus.report.account import Account
from morpheus.report.contents import Contents, contents
from morpheus.report.findings import Findings
from morpheus.review.outputs import USERS
from morpheus.serve.following import Following, Replaced
from morpheus.sources.times import parse_times
from morpheus.status import Status

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
            parse_times(times.cast(pl.String)).alias(TIME), self._owners(frame).alias(POPULATION_USER)
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
