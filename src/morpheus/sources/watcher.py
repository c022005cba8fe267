"""Watch a directory: new files, files that grow, and files that log rotation replaces.

A file is known by its identity (device and inode) and by the bytes before the place up to which it
was read, not by its name. So a renamed file is not read again, and a new file under an old name is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from morpheus.sources.compression import GZIP_MAGIC, ZSTD_MAGIC, detect_file_type, is_utf16

logger = logging.getLogger(__name__)

_MAX_WAIT_FACTOR = 10
"""A micro-batch waits at most this many idle timeouts, even while new files arrive."""
_ANCHOR_BYTES = 512
"""Bytes before the place up to which a file was read, by which it is recognised."""
_PARQUET_MAGIC = b"PAR1"
_BLOCK_BYTES = 1 << 20
"""Bytes that are read at a time, and the longest first line that is looked at."""


class FilePart(NamedTuple):
    """A part of a file that has not been read yet.

    Attributes:
        path: The file.
        start: Offset of its first byte.
        end: Offset after its last byte; None for the whole file, whatever its size is when it is
            read.
        has_header: Whether the first line of the file is needed to read the part.
    """

    path: Path
    start: int = 0
    end: int | None = None
    has_header: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole file."""
        return self.end is None

    def write(self, folder: Path) -> Path:
        """Write the part to a file below a folder, and return that.

        The file keeps the names of the file's folders, because some of them hold values.

        Raises:
            OSError: The file is gone, or the disk is full.
        """
        copy = folder.joinpath(*self.path.absolute().parts[1:])
        copy.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("rb") as file, copy.open("wb") as part:
            if self.has_header and self.start:
                part.write(_read_header(file))
            file.seek(self.start)
            left = (self.end or 0) - self.start
            while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
                part.write(block)
                left -= len(block)
        return copy


class FileId(NamedTuple):
    """Identifies a file, whatever its name."""

    device: int
    inode: int


class FileStamp(NamedTuple):
    """Changes whenever a file is written to."""

    size: int
    modified: int


@dataclass(frozen=True)
class TakenFile:
    """What is remembered of a file that was taken.

    Attributes:
        stamp: When it was taken.
        end: Offset up to which it was taken.
        offset: Offset from which to go on: before the last line, if that was taken without an end.
        anchor: The bytes before `offset`, at most `_ANCHOR_BYTES`.
    """

    stamp: FileStamp
    end: int
    offset: int
    anchor: bytes

    def is_continued_by(self, path: Path, stamp: FileStamp) -> bool:
        """Return whether a file is the taken one, with nothing or something appended."""
        if stamp.size < self.end:
            return False
        with path.open("rb") as file:
            file.seek(self.offset - len(self.anchor))
            return file.read(len(self.anchor)) == self.anchor


@dataclass
class DirectoryWatcher:
    """Watches a directory for new files, and for what is appended to files.

    Of uncompressed JSON lines and CSV, all complete lines are taken at once. Other files, and the
    last line of a file if it has no end, are taken when the file has not changed between two scans.
    Files that are rewritten, truncated or replaced are taken from their start. Of the events that
    were taken before, `DedupWindow` recognises those with unique ids.

    Attributes:
        list_files: Lists the current files.
        detect_type: Returns how to read a file: `csv`, `json` or `parquet`.
        idle_timeout: Seconds without news after which a micro-batch is complete.
        max_files: Maximum number of files in all; None for no limit.
        poll_interval: Seconds between two scans.
        sleep: Waits for a number of seconds.
        last_stamps: Stamp of each file in the last scan.
        taken: The files that were taken and still exist.
        num_taken: Number of files that were taken.
    """

    list_files: Callable[[], list[Path]]
    idle_timeout: float
    max_files: int | None = None
    detect_type: Callable[[Path], str] = lambda path: detect_file_type(path) or "json"
    poll_interval: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    last_stamps: dict[FileId, FileStamp] = field(default_factory=dict)
    taken: dict[FileId, TakenFile] = field(default_factory=dict)
    num_taken: int = 0

    def iter_micro_batches(self) -> Iterator[list[FilePart]]:
        """Yield what is there at the start, which may be nothing; then what comes."""
        self._scan()
        self.sleep(self.poll_interval)
        ready, _ = self._scan()
        yield _sort_parts(ready)
        while self.max_files is None or self.num_taken < self.max_files:
            yield self._wait_for_micro_batch()

    def _wait_for_micro_batch(self) -> list[FilePart]:
        parts: list[FilePart] = []
        idle = waited = 0.0
        while not parts or (
            idle < self.idle_timeout and waited < _MAX_WAIT_FACTOR * self.idle_timeout
        ):
            self.sleep(self.poll_interval)
            ready, changed = self._scan()
            waited += self.poll_interval if parts else 0.0
            parts += ready
            idle = 0.0 if changed else idle + self.poll_interval
        return _sort_parts(parts)

    def _scan(self) -> tuple[list[FilePart], bool]:
        """Take what is ready, and return whether anything has changed since the last scan."""
        ready, stamps, changed = [], dict[FileId, FileStamp](), False
        for path in self.list_files():
            try:
                identity, stamp = _stat(path)
                stamps[identity] = stamp
                is_stable = self.last_stamps.get(identity) == stamp
                changed |= not is_stable
                # A file that is new may be complete at the next scan, and is then read in place.
                if identity in self.last_stamps:
                    ready += self._take(path, identity, stamp, is_stable=is_stable)
            except OSError:
                continue  # it is gone, or cannot be read yet
        # Forget deleted files, so that memory does not grow with time.
        self.taken = {each: file for each, file in self.taken.items() if each in stamps}
        self.last_stamps = stamps
        return ready, changed or bool(ready)

    def _take(
        self, path: Path, identity: FileId, stamp: FileStamp, *, is_stable: bool
    ) -> list[FilePart]:
        """Take what is new in a file; nothing if it is not ready."""
        known = self.taken.get(identity)
        if known is not None and known.stamp == stamp and known.end == stamp.size:
            return []
        if known is None and self.max_files is not None and self.num_taken >= self.max_files:
            return []
        is_csv = self.detect_type(path) == "csv"
        with path.open("rb") as file:
            has_lines = _has_lines(file, is_csv=is_csv)
            is_continued = has_lines and known is not None and known.is_continued_by(path, stamp)
            start = known.offset if known is not None and is_continued else 0
            lines = _find_end_of_lines(file, start, stamp.size, is_csv=is_csv) if has_lines else 0
            end = stamp.size if is_stable else lines
            if known is not None and is_continued and known.end == end:
                return []
            if not is_stable and end <= start:
                return []
            offset = lines if has_lines else stamp.size
            if not is_csv and end > offset and _is_json_object(_read(file, offset, end)):
                offset = end  # the last line is complete, only its line feed is missing
            taken = TakenFile(stamp, end, offset, _read(file, offset - _ANCHOR_BYTES, offset))
        if known is not None and not is_continued:
            logger.warning(
                "%s: it was rewritten, and is read again from its start. Of the events that were "
                "read before, those with unique ids are recognised.",
                path,
            )
        self.num_taken += known is None
        self.taken[identity] = taken
        if is_stable and not start:
            return [FilePart(path)]
        return [FilePart(path, start, end, is_csv)] if end > start else []


def _sort_parts(parts: list[FilePart]) -> list[FilePart]:
    return sorted(parts, key=lambda part: (part.path, part.start))


def _stat(path: Path) -> tuple[FileId, FileStamp]:
    found = path.stat()
    return FileId(found.st_dev, found.st_ino), FileStamp(found.st_size, found.st_mtime_ns)


def _has_lines(file: IO[bytes], *, is_csv: bool) -> bool:
    """Return whether a file can be read up to any of its lines."""
    file.seek(0)
    start = file.read(_BLOCK_BYTES)
    if start.startswith((GZIP_MAGIC, ZSTD_MAGIC, _PARQUET_MAGIC)) or is_utf16(start):
        return False
    line, end, _ = start.partition(b"\n")
    return bool(end) and (is_csv or _is_json_object(line.removeprefix(b"\xef\xbb\xbf")))


def _is_json_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return False
    return True


def _find_end_of_lines(file: IO[bytes], start: int, size: int, *, is_csv: bool) -> int:
    """Return the offset after the last complete line of a part; its start if there is none."""
    file.seek(start)
    end, at, is_quoted = start, start, False
    while at < size and (block := file.read(min(size - at, _BLOCK_BYTES))):
        if is_csv:
            # A line feed between quotes does not end a line.
            for line in block.splitlines(keepends=True):
                at += len(line)
                is_quoted ^= bool(line.count(b'"') % 2)
                if line.endswith(b"\n") and not is_quoted:
                    end = at
            continue
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = at + newline + 1
        at += len(block)
    return end


def _read(file: IO[bytes], start: int, end: int) -> bytes:
    """Return a part of a file, from its start if `start` is negative; at most `_BLOCK_BYTES`."""
    start = max(start, 0)
    file.seek(start)
    return file.read(min(end - start, _BLOCK_BYTES))


def _read_header(file: IO[bytes]) -> bytes:
    """Return the first line of CSV."""
    file.seek(0)
    start = file.read(_BLOCK_BYTES)
    end = start.index(b"\n") + 1
    while start.count(b'"', 0, end) % 2:
        end = start.index(b"\n", end) + 1
    return start[:end]
