"""What a source remembers about its users from one run to the next.

`SourceState` is the part that the runtime saves, one per user. `PartitionState` is the same for all
users of a partition, held in frames so that reading stays vectorised. `TakenFiles` says which
events of which files earlier runs have taken, and `FileMemory` is the same during a run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
import polars as pl
from msgspec.structs import replace
from numpy.typing import NDArray

from morpheus.columns import TIME
from morpheus.core.batch import FileSpan, ReadStats
from morpheus.core.state import State, decode_state, encode_state
from morpheus.features.derived import USER as ROW_USER
from morpheus.sources.compression import LogPath
from morpheus.sources.log_format import RecentRows
from morpheus.sources.seen_events import DIGEST_SIZE, DedupWindow, SeenEvents, no_parts
from morpheus.sources.time_range import TimeRange
from morpheus.storage.object_store import ObjectPath

logger = logging.getLogger(__name__)

_ENTRY_BYTES = 6
"""Bytes that MessagePack adds to a text or an array, at most, and some reserve."""


def _no_times() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _no_digests() -> NDArray[np.uint8]:
    return np.empty((0, DIGEST_SIZE), np.uint8)


class TextColumn(msgspec.Struct):
    """A text column, dictionary-coded.

    Attributes:
        values: The distinct values; None for no value.
        codes: Position in `values` of each row, (rows,).
    """

    values: list[str | None]
    codes: NDArray[np.int32]


class SourceState(State):
    """What a source remembers about one user.

    A run that restores it continues the row numbers and derived columns of earlier runs, and
    recognises their events. At most 250,000 recent rows are kept, the latest ones, and the latest
    event keys; earlier keys are in parts. Recent rows also give way where they would exceed
    `max_bytes`; the user's first stays.

    Attributes:
        rows: Events handed out so far, which is the next row number.
        recent_times: Time of each recent row, in microseconds since 1970, (recent rows,).
        recent_values: The columns that derived columns need, by name, (recent rows,) each.
        event_times: Time of each of the latest events, in microseconds since 1970, (events,).
        event_digests: 16-byte BLAKE2b digest of each of their keys, (events, 16).
        event_parts: Number, and earliest and latest time, of each part with the events before, the
            oldest part first, (parts, 3); see `SeenEvents`.
    """

    version: ClassVar[int] = 1
    max_bytes: ClassVar[int] = 1 << 25

    rows: int = 0
    recent_times: NDArray[np.int64] = msgspec.field(default_factory=_no_times)
    recent_values: dict[str, TextColumn] = msgspec.field(default_factory=dict)
    event_times: NDArray[np.int64] = msgspec.field(default_factory=_no_times)
    event_digests: NDArray[np.uint8] = msgspec.field(default_factory=_no_digests)
    event_parts: NDArray[np.int64] = msgspec.field(default_factory=no_parts)


class PartitionState(msgspec.Struct):
    """What is remembered of some users between partitions, batches of files, and runs.

    Attributes:
        recent_rows: Earlier events that derived columns look back on; None to keep none.
        dedup_window: Earlier events that are recognised; None to recognise none.
        row_offsets: Events handed out so far, by user.
        history_given: Users whose history this process has handed out.
    """

    recent_rows: RecentRows | None = None
    dedup_window: DedupWindow | None = None
    row_offsets: Counter[str | None] = msgspec.field(default_factory=Counter)
    history_given: set[str | None] = msgspec.field(default_factory=set)

    @classmethod
    def restore(
        cls,
        saved: Mapping[str | None, SourceState],
        parts: Mapping[str | None, dict[int, bytes]] | None = None,
    ) -> Self:
        """Continue from what `snapshot` returned; an empty mapping starts without state.

        Args:
            saved: The state of each user who has one.
            parts: What `take_parts` returned, by user; None for nothing.
        """
        parts = parts or {}
        recent = [
            _restore_rows(user, state) for user, state in saved.items() if len(state.recent_times)
        ]
        window = DedupWindow(
            seen_events={
                user: SeenEvents.from_bytes(
                    state.event_times, state.event_digests, state.event_parts, parts.get(user, {})
                )
                for user, state in saved.items()
                if len(state.event_times)
            }
        )
        return cls(
            RecentRows(pl.concat(recent, how="diagonal", rechunk=True) if recent else None),
            window,
            Counter({user: state.rows for user, state in saved.items()}),
        )

    def merge(self, other: PartitionState) -> None:
        """Add what is remembered of other users."""
        if other.recent_rows is not None and other.recent_rows.frame is not None:
            mine = self.recent_rows or RecentRows()
            frames = [each for each in (mine.frame, other.recent_rows.frame) if each is not None]
            self.recent_rows = RecentRows(pl.concat(frames, how="diagonal"))
        if other.dedup_window is not None:
            self.dedup_window = self.dedup_window or DedupWindow()
            self.dedup_window.seen_events.update(other.dedup_window.seen_events)
        self.row_offsets.update(other.row_offsets)

    def forget(self, users: Iterable[str | None]) -> None:
        """Drop what is remembered of some users, once it is saved."""
        names = list(users)
        gone = pl.Series(names, dtype=pl.String)
        rows, window = self.recent_rows, self.dedup_window
        if rows is not None and rows.frame is not None:
            rows.frame = rows.frame.filter(
                ~pl.col(ROW_USER).is_in(gone.implode(), nulls_equal=True)
            )
        for user in names if window is not None else ():
            window.seen_events.pop(user, None)  # type: ignore[union-attr]  # no None
        for user in names:
            self.row_offsets.pop(user, None)

    def snapshot(self, users: Iterable[str | None]) -> dict[str | None, SourceState]:
        """Describe what is remembered of some users.

        Args:
            users: Which users; those of whom nothing is remembered are left out.
        """
        names = list(dict.fromkeys(users))
        recent = (
            {} if self.recent_rows is None else _by_user(self.recent_rows.frame, ROW_USER, names)
        )
        seen = {} if self.dedup_window is None else self.dedup_window.seen_events
        states = {}
        for user in names:
            state, known = SourceState(rows=self.row_offsets.get(user, 0)), seen.get(user)
            if known is not None:
                known.make_parts()
                state.event_times, state.event_digests = known.times, known.to_bytes()
                state.event_parts = known.parts
            if user in recent:
                _save_rows(state, recent[user])
            if state.rows or known is not None or user in recent:
                states[user] = state
        return states

    def take_parts(self, users: Iterable[str | None]) -> dict[str | None, dict[int, bytes]]:
        """Return the parts of `SeenEvents` that `snapshot` has made, by user and number."""
        window = self.dedup_window or DedupWindow()
        changed = {user: window.seen_events[user] for user in users if user in window.seen_events}
        keep = window.load is None
        return {user: seen.take_unsaved(keep=keep) for user, seen in changed.items()}


def _by_user(
    frame: pl.DataFrame | None, column: str, users: Sequence[str | None]
) -> dict[str | None, pl.DataFrame]:
    if frame is None:
        return {}
    wanted = pl.DataFrame({column: users}, schema={column: pl.String})
    kept = frame.join(wanted, on=column, how="semi", nulls_equal=True, maintain_order="left")
    return {part[column][0]: part for part in kept.partition_by(column, maintain_order=True)}


def _to_microseconds(frame: pl.DataFrame) -> NDArray[np.int64]:
    return frame[TIME].to_physical().to_numpy()


def _to_times(microseconds: NDArray[np.int64]) -> pl.Series:
    return pl.Series(TIME, microseconds, pl.Int64).cast(pl.Datetime("us", "UTC"))


def _save_rows(state: SourceState, rows: pl.DataFrame) -> None:
    """Put recent rows into a state, as many of the latest as fit, and the first."""
    limit = state.max_bytes - state.event_times.nbytes - state.event_digests.nbytes
    names = [name for name in rows.columns if name not in {ROW_USER, TIME}]
    while True:
        times = _to_microseconds(rows)
        columns = {name: _encode_texts(rows[name]) for name in names}
        size = times.nbytes + sum(map(_text_bytes, columns.values()))
        if size + sum(len(name.encode()) for name in names) < limit or rows.height == 1:
            break
        rows = pl.concat([rows.head(1), rows.tail((rows.height - 1) // 2)])
    state.recent_times, state.recent_values = times, columns


def _text_bytes(column: TextColumn) -> int:
    """An upper bound of the encoded size."""
    texts = sum(_ENTRY_BYTES + len((text or "").encode()) for text in column.values)
    return column.codes.nbytes + texts + 8 * _ENTRY_BYTES


def _encode_texts(column: pl.Series) -> TextColumn:
    values = column.unique(maintain_order=True)
    positions = pl.DataFrame({"value": values}).with_row_index("code")
    codes = pl.DataFrame({"value": column}).join(
        positions, on="value", how="left", nulls_equal=True, maintain_order="left"
    )["code"]
    return TextColumn(values.to_list(), codes.cast(pl.Int32).to_numpy())


def _restore_rows(user: str | None, state: SourceState) -> pl.DataFrame:
    columns = {
        name: pl.Series(name, column.values, pl.String).gather(column.codes)
        for name, column in state.recent_values.items()
    }
    times = _to_times(state.recent_times)
    return pl.DataFrame(
        {ROW_USER: pl.repeat(user, len(times), dtype=pl.String, eager=True), TIME: times} | columns
    )


def _pack_digests(digests: pl.Series) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)


_ANCHOR_BYTES = 512
"""Bytes at the start and at the end of a file by which it is recognised when it has grown."""
_EARLIEST, _LATEST = -(1 << 62), 1 << 62
"""Stand for a period without start or end, in microseconds."""
_MAX_FILES = 500_000
"""Maximum number of files that are remembered, those with the latest events."""
_FILES_SCHEMA: dict[str, Any] = {
    "file": pl.Binary,
    "stamp": pl.Int64,
    "size": pl.Int64,
    "anchor": pl.Int64,
    "head": pl.Int64,
    "line": pl.Int64,
    "first": pl.Int64,
    "last": pl.Int64,
    "start": pl.Int64,
    "end": pl.Int64,
}


def _no_numbers() -> dict[str, NDArray[np.int64]]:
    return {name: np.empty(0, np.int64) for name in _FILES_SCHEMA if name != "file"}


class TakenFiles(State):
    """Which events earlier runs have taken: those of some periods, from some files.

    What was taken of a file is forgotten when all its events are before the look-back time, because
    no later run takes them. The file itself is kept as long as runs find it, or each run would open
    it. At most 500,000 files are kept, those with the latest events.

    Attributes:
        start: Start of the first period, in microseconds since 1970.
        end: End of the latest period, in microseconds since 1970.
        files: 16-byte digest of what identifies each file, (files, 16).
        numbers: More about each file, (files,) each: `stamp` changes whenever the file does;
            `size`, `anchor` and `head` are its size and the digests of its end and of its start,
            0 if that is not known; `line` is its last line with an event; `first` and `last` are
            the times of its first and last event; its events from `start` until before `end`, up
            to `line`, are taken.
        hours: Hours with events of each folder, as numbers since 1970, to find gaps.
        forgotten: Before this time, it is not known which events were taken.
    """

    version: ClassVar[int] = 1
    max_bytes: ClassVar[int] = 1 << 26

    start: int = _EARLIEST
    end: int = _EARLIEST
    forgotten: int = _EARLIEST
    files: NDArray[np.uint8] = msgspec.field(default_factory=_no_digests)
    numbers: dict[str, NDArray[np.int64]] = msgspec.field(default_factory=_no_numbers)
    hours: dict[str, set[int]] = msgspec.field(default_factory=dict)


class TakenPart(NamedTuple):
    """Events of a file that an earlier run has taken.

    Attributes:
        line: Last line of the file that it has read.
        start: Time of the first event, inclusive, in microseconds since 1970.
        end: Time after the last event, exclusive.
    """

    line: int
    start: int
    end: int


class _FileMark(NamedTuple):
    """What a file is known by.

    Attributes:
        file: Digest of device and inode, or of the address of an object.
        stamp: Digest of size and time of the last change.
        size: Size in bytes.
        anchor: Digest of the last bytes.
        head: Digest of the first bytes; 0 for an object.
    """

    file: bytes
    stamp: int
    size: int
    anchor: int
    head: int = 0


class Period(msgspec.Struct, frozen=True):
    """The period of a run, and what it takes of earlier periods.

    Attributes:
        takes: Time range of the events to take: the period, and the look-back time before it.
        until: End of the period, or the time of the run if the period has none.
        late_before: Events before this time are late: the run of their period has ended without
            them. None if there was no earlier run.
    """

    takes: TimeRange
    until: datetime
    late_before: datetime | None = None


_MAX_NAMED = 5
"""Number of files that the summary names."""


class FileMemory(msgspec.Struct):
    """Which events the runs that share a state file have taken.

    Attributes:
        saved: What earlier runs have taken.
        look_back: How long before the period late events are still taken.
        period: The period of this run; None before it is planned.
        marks: The files that this run reads, by name.
        hours: Hours with events of each folder, those of earlier runs included.
        ends: Where the last line of a file begins that is being written, by name of the file. The
            next run reads it.
        found: What identifies each file that this run has found, and what changes with it.
    """

    saved: TakenFiles
    look_back: timedelta
    period: Period | None = None
    marks: dict[str, _FileMark] = msgspec.field(default_factory=dict)
    hours: dict[str, set[int]] = msgspec.field(default_factory=dict)
    ends: dict[str, int] = msgspec.field(default_factory=dict)
    found: set[tuple[bytes, int]] = msgspec.field(default_factory=set)

    @classmethod
    def restore(cls, data: bytes | None, look_back: timedelta) -> Self:
        """Continue from what `snapshot` returned; None starts without memory."""
        saved = TakenFiles() if data is None else decode_state(TakenFiles, data)
        return cls(saved, look_back, hours=saved.hours)

    def plan(self, wanted: TimeRange, now: datetime) -> Period:
        """Plan which events a run takes.

        Args:
            wanted: The period of the options.
            now: The time of the run.

        >>> first = FileMemory(TakenFiles(), timedelta(days=1))
        >>> hour = TimeRange.from_options("2026-01-05T10:00", None, "1h", None)
        >>> str(first.plan(hour, hour.end).takes)
        'from 2026-01-05T10:00:00Z until before 2026-01-05T11:00:00Z'
        """
        until = wanted.end or now
        taken_from, taken_until = _to_time(self.saved.start), _to_time(self.saved.end)
        if taken_until is None:
            self.period = Period(wanted, until)
            return self.period
        base = taken_until if wanted.start is None else min(wanted.start, taken_until)
        start = base - self.look_back
        if taken_from is not None:
            floor = taken_from if wanted.start is None else min(wanted.start, taken_from)
            start = max(start, floor)
        start = max(start, self._find_first_known(wanted, start))
        self.period = Period(replace(wanted, start=start), until, taken_until)
        return self.period

    def _find_first_known(self, wanted: TimeRange, start: datetime) -> datetime:
        """Return where a time range must start so that no event is taken twice, if it can be.

        What is given as the time range is taken in any case; a warning says what that means.
        """
        known = _to_time(self.saved.forgotten)
        if known is None or wanted.start is None or wanted.start >= known:
            return known or start
        taken_from = _to_time(self.saved.start)
        if taken_from is None or (wanted.end is not None and wanted.end > taken_from):
            logger.warning(
                "--start_time: earlier runs with this --state have read files with events until "
                "%s and have forgotten them, because they are before the --look_back time. "
                "Events that these runs have taken are written again, except those with unique "
                "ids.",
                f"{known:%Y-%m-%d %H:%M} UTC",
            )
        return wanted.start

    def choose(self, paths: Sequence[LogPath], stats: ReadStats) -> list[LogPath]:
        """Return the files that may have events to take; count the others.

        Args:
            paths: The files.
            stats: Counts the files that earlier runs have read to their end.
        """
        stamps = [_stamp_file(path) for path in paths]
        self.found.update(stamps)
        given = pl.DataFrame(
            {"file": [each[0] for each in stamps], "stamp": [each[1] for each in stamps]},
            schema={name: _FILES_SCHEMA[name] for name in ("file", "stamp")},
        )
        done = set(self._find_done(given.with_row_index("position")))
        stats.taken_files += len(done)
        chosen = [path for position, path in enumerate(paths) if position not in done]
        for path in chosen:
            mark = _mark_file(path)
            if mark is not None:
                self.marks[str(path)] = mark
        return chosen

    def leave_growing(
        self, paths: Sequence[LogPath], is_growing: Callable[[LogPath], bool], stats: ReadStats
    ) -> list[LogPath]:
        """Leave the files without lines that are being written to the next run.

        Args:
            paths: The files.
            is_growing: Returns whether a file is one of these.
            stats: Counts them, and names the first few.

        Returns:
            The other files.
        """
        left = {path for path in paths if is_growing(path)}
        for path in left:
            self.marks.pop(str(path), None)
        names = sorted(map(str, left))
        if left:
            stats.skipped_files += len(left)
            stats.file_kinds = stats.file_kinds + Counter({"unfinished file": len(left)})
        stats.not_read += [f"{name}, which is being written" for name in names[:_MAX_NAMED]]
        if len(names) > _MAX_NAMED:
            stats.not_read.append(f"{len(names) - _MAX_NAMED} more files that are being written")
        return [path for path in paths if path not in left]

    def leave_unfinished(
        self, paths: Iterable[LogPath], find: Callable[[LogPath], int | None], stats: ReadStats
    ) -> None:
        """Leave the last lines that are being written to the next run.

        Args:
            paths: The files.
            find: Returns where such a line of a file begins; None if it has none.
            stats: Names the first few files.
        """
        for path in paths:
            end, mark = find(path), self.marks.get(str(path))
            if end is not None and mark is not None:
                self.ends[str(path)] = end
                # The file counts as changed in the next run, also if nothing is added to it.
                self.marks[str(path)] = mark._replace(stamp=~mark.stamp)
        names = list(self.ends)
        stats.not_read += [
            f"the last line of {name}, which is not complete" for name in names[:_MAX_NAMED]
        ]
        if len(names) > _MAX_NAMED:
            stats.not_read.append(f"the last lines of {len(names) - _MAX_NAMED} more files")

    def find_taken(self, paths: Iterable[LogPath]) -> dict[str, tuple[TakenPart, ...]]:
        """Return which parts of some files earlier runs have taken, by name of the file."""
        files = [mark.file for path in paths if (mark := self.marks.get(str(path))) is not None]
        wanted = pl.Series(files, dtype=pl.Binary).implode()
        known: dict[bytes, list[dict[str, Any]]] = {}
        for row in self._list_useful().filter(pl.col("file").is_in(wanted)).iter_rows(named=True):
            known.setdefault(row["file"], []).append(row)
        taken = {}
        for path in paths:
            mark = self.marks.get(str(path))
            rows = () if mark is None else known.get(mark.file, ())
            parts = [
                TakenPart(row["line"], row["start"], row["end"])
                for row in rows
                if mark is not None and _is_continued(path, mark, row)
            ]
            if parts:
                taken[str(path)] = tuple(parts)
        return taken

    def snapshot(self, spans: Mapping[str, FileSpan]) -> bytes:
        """Return what the next run must know.

        Args:
            spans: What this run has found in each file.
        """
        assert self.period is not None  # noqa: S101 - a run plans before it ends
        takes = self.period.takes
        start = _EARLIEST if takes.start is None else _to_microsecond(takes.start)
        end = _LATEST if takes.end is None else _to_microsecond(takes.end)
        rows = [
            {**mark._asdict(), **_to_row(span), "start": start, "end": end}
            for name, mark in self.marks.items()
            if (span := spans.get(name)) is not None
        ]
        files = _merge_parts(self._frame(), pl.DataFrame(rows, schema=_FILES_SCHEMA))
        old = files.filter(pl.col("last") < start)
        unchanged = old.join(self._list_found(), on=["file", "stamp"], how="semi")
        kept = pl.concat([files.filter(pl.col("last") >= start), unchanged])
        kept = kept.sort("last", descending=True)
        files, forgotten = kept.head(_MAX_FILES), [*old["last"], *kept["last"][_MAX_FILES:]]
        until = _to_microsecond(self.period.until)
        is_first = self.saved.end == _EARLIEST
        return encode_state(
            TakenFiles(
                start if is_first else min(start, self.saved.start),
                max(until, self.saved.end),
                max([self.saved.forgotten, *(last + 1 for last in forgotten)]),
                _pack_digests(files["file"]) if files.height else _no_digests(),
                {name: files[name].to_numpy() for name in _FILES_SCHEMA if name != "file"},
                self.hours,
            )
        )

    def _list_found(self) -> pl.DataFrame:
        schema = {name: _FILES_SCHEMA[name] for name in ("file", "stamp")}
        return pl.DataFrame(list(self.found), schema=schema, orient="row")

    def _list_useful(self) -> pl.DataFrame:
        """Return the remembered files that are not both forgotten and wanted by this run."""
        assert self.period is not None  # noqa: S101 - planned before files are chosen
        takes = self.period.takes
        start = _EARLIEST if takes.start is None else _to_microsecond(takes.start)
        last = pl.col("last")
        return self._frame().filter((last >= self.saved.forgotten) | (last < start))

    def _frame(self) -> pl.DataFrame:
        data = self.saved.files.tobytes()
        digests = [data[at : at + DIGEST_SIZE] for at in range(0, len(data), DIGEST_SIZE)]
        unknown = {"head": np.zeros(len(digests), np.int64)}  # in a file of an earlier version
        numbers = {"file": digests, **unknown, **self.saved.numbers}
        return pl.DataFrame(numbers, schema=_FILES_SCHEMA)

    def _find_done(self, given: pl.DataFrame) -> pl.Series:
        """Return the positions of unchanged files that have no event that is still to be taken."""
        assert self.period is not None  # noqa: S101 - planned before files are chosen
        takes = self.period.takes
        start = _EARLIEST if takes.start is None else _to_microsecond(takes.start)
        end = _LATEST if takes.end is None else _to_microsecond(takes.end)
        starts_before = pl.col("start") <= pl.max_horizontal("first", start)
        ends_after = pl.col("end") > pl.min_horizontal("last", end - 1)
        same = given.join(self._list_useful(), on=["file", "stamp"], how="inner")
        return same.filter(starts_before & ends_after)["position"].unique()


def _stamp_file(path: LogPath) -> tuple[bytes, int]:
    """Return digests of what identifies a file, and of what changes with it."""
    if isinstance(path, ObjectPath):
        return _digest(str(path)), _hash(f"{path.size} {path.modified}")
    try:
        found = path.stat()
    except OSError:
        return b"", 0
    stamp = _hash(f"{found.st_size} {found.st_mtime_ns}")
    return _digest(f"{found.st_dev} {found.st_ino}"), stamp


def _mark_file(path: LogPath) -> _FileMark | None:
    """Return what a file is known by; None if it cannot be read."""
    # Before it is read: what is written meanwhile is taken by the next run.
    file, stamp = _stamp_file(path)
    if isinstance(path, ObjectPath):
        return _FileMark(file, stamp, path.size, stamp)
    try:
        size = path.stat().st_size
        return _FileMark(file, stamp, size, _hash_end(path, size), _hash_start(path, size))
    except OSError:
        return None


def _is_continued(path: LogPath, mark: _FileMark, row: Mapping[str, Any]) -> bool:
    """Return whether a file is a remembered one, with nothing or something appended."""
    if row["stamp"] == mark.stamp:
        return True
    if isinstance(path, ObjectPath) or mark.size < row["size"]:
        return False
    try:
        # The last bytes of another record can be the same, as the user is.
        same_start = row["head"] in {0, _hash_start(path, row["size"])}
        return bool(same_start and _hash_end(path, row["size"]) == row["anchor"])
    except OSError:
        return False


def _hash_start(path: Path, size: int) -> int:
    with path.open("rb") as file:
        return _hash(file.read(min(size, _ANCHOR_BYTES)))


def _hash_end(path: Path, size: int) -> int:
    with path.open("rb") as file:
        file.seek(max(0, size - _ANCHOR_BYTES))
        return _hash(file.read(min(size, _ANCHOR_BYTES)))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=DIGEST_SIZE).digest()


def _hash(data: str | bytes) -> int:
    raw = data.encode() if isinstance(data, str) else data
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), signed=True)


def _to_row(span: FileSpan) -> dict[str, int]:
    return {"line": span.line, "first": span.first, "last": span.last}


def _merge_parts(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Join what earlier runs and this one have taken of each file, where the periods meet."""
    if before.is_empty() or now.is_empty():
        return pl.concat([before, now])
    both = before.join(now.select("file", "start", "end"), on="file", suffix="_now", how="inner")
    meets = (pl.col("end") >= pl.col("start_now")) & (pl.col("start") <= pl.col("end_now"))
    joined = both.filter(meets).group_by("file").agg(pl.col("start").min(), pl.col("end").max())
    merged = now.join(joined, on="file", suffix="_before", how="left").with_columns(
        start=pl.min_horizontal("start", "start_before"),
        end=pl.max_horizontal("end", "end_before"),
    )
    apart = both.filter(~meets).select(before.columns)
    unread = before.join(now, on="file", how="anti")
    return pl.concat([unread, apart, merged.select(before.columns)])


def _to_microsecond(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _to_time(microseconds: int) -> datetime | None:
    """Return a time; None for a period without start or end."""
    if not _EARLIEST < microseconds < _LATEST:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
