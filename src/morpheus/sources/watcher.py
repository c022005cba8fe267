"""Watch a directory: new files, files that grow, and files that log rotation replaces.

A file is known by its identity (device and inode) and by digests of its first bytes and of those
before the place up to which it was read, not by its name. So a renamed file is not read again, and
a new file under an old name is. A copy of a file, also a compressed one, is known by the digests.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from msgspec.structs import replace

from morpheus.errors import MorpheusError, TransientError, UsageError
from morpheus.sources.compression import (
    COMPRESSED_SUFFIXES,
    GZIP_MAGIC,
    PARQUET_MAGIC,
    ZSTD_MAGIC,
    detect_file_type,
    is_utf16,
    read_blocks,
)
from morpheus.sources.tabular import parse_hive_partitions

logger = logging.getLogger(__name__)

_MAX_WAIT_FACTOR = 10
"""A micro-batch waits at most this many idle timeouts, even while new files arrive."""
_ANCHOR_BYTES = 512
"""First bytes of a file, and bytes before the place up to which it was read, that identify it."""
_MAX_DELETED = 2000
"""Number of deleted files that are remembered, because they may come back compressed."""
_OFFSET_PREFIX = "file"
_MAX_FIRST_SCANS = 5
"""Scans for which the first micro-batch waits at most, while new files appear."""
_MAX_COPIED_BYTES = 1 << 26
"""Size up to which a whole file is copied when it is taken. A larger one is read in place."""
_NEVER_EMPTY = {*COMPRESSED_SUFFIXES, ".parquet"}
"""A file with such a suffix is not complete while it is empty."""
_BOM = b"\xef\xbb\xbf"
_YOUNG_SECONDS = 60.0
"""A file that was written to in this time, and is not complete, is probably being written."""
_WRITING_SECONDS = 300.0
"""The same of a file without lines, in a run that ends: compressed files grow only now and then."""
_BLOCK_BYTES = 1 << 20
"""Bytes that are read at a time, and the longest first line that is looked at."""


class FileId(NamedTuple):
    """Identifies a file, whatever its name.

    Attributes:
        device: The file system.
        inode: The file.
        version: For the former content of a file that was rewritten, when that was written.
    """

    device: int
    inode: int
    version: int = 0


class FileStamp(NamedTuple):
    """Changes whenever a file is written to."""

    size: int
    modified: int


class FilePart(NamedTuple):
    """A part of a file that has not been read yet.

    Attributes:
        path: The file.
        start: Offset of its first byte.
        end: Offset after its last byte; None for the whole file, whatever its size is when it is
            read.
        has_header: Whether the first line of the file is needed to read the part.
        unpacks: Whether the offsets are those of the decompressed content.
        copy: A file with the part, if there is one already.
        identity: The file that had the path, if it is known.
    """

    path: Path
    start: int = 0
    end: int | None = None
    has_header: bool = False
    unpacks: bool = False
    copy: Path | None = None
    identity: FileId | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole file."""
        return self.end is None

    def has_moved(self) -> bool:
        """Return whether another file has the path now, or none."""
        try:
            return self.identity not in {None, _stat(self.path)[0]}
        except FileNotFoundError:
            return True

    def write(self, folder: Path) -> Path:
        """Write the part to a file below a folder, and return that.

        The file keeps the names of the file's folders, because some of them hold values.

        Raises:
            FileChangedError: The file was moved or cut.
            OSError: The file is gone.
            TransientError: The disk is full.
            MorpheusError: The file cannot be decompressed.
        """
        copy = folder.joinpath(*self.path.absolute().parts[1:])
        with _translate_spool_errors():
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.open("wb")
        with part:
            for block in self._iter_unpacked() if self.unpacks else self._iter_blocks():
                with _translate_spool_errors():
                    part.write(block)
            with _translate_spool_errors():
                part.flush()
        return copy

    def _iter_blocks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if self.identity not in {None, FileId(about.st_dev, about.st_ino)}:
                raise FileChangedError(f"{self.path}: another file has this name now")
            if self.has_header and self.start:
                yield _read_header(file)
            file.seek(self.start)
            left = (self.end or 0) - self.start
            while left > 0:
                block = file.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise FileChangedError(f"{self.path}: it was cut")
                yield block
                left -= len(block)

    def _iter_unpacked(self) -> Iterator[bytes]:
        at = 0
        for block in read_blocks(self.path):
            if self.has_header and not at:
                yield _cut_header(block)
            yield block[max(0, self.start - at) :]
            at += len(block)


class _HeldFile(NamedTuple):
    """A file whose end is not taken, because it is not complete.

    Attributes:
        stamp: When it was looked at.
        is_line: Whether it is only the last line, which is never taken without its rest.
        is_reported: Whether a warning has said so.
    """

    stamp: FileStamp
    is_line: bool = False
    is_reported: bool = False


class FileChangedError(OSError):
    """A file is not the one that was looked at before, or has less content."""


@contextmanager
def _translate_spool_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransientError(
            f"Cannot write to the folder for temporary files: {error.strerror}. Make space "
            "there, or choose another one with TMPDIR."
        ) from error


class TakenFile(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of a file that was taken.

    Attributes:
        path: Its name.
        stamp: When it was taken.
        end: Offset up to which it was taken.
        offset: Offset from which to go on: before the last line, if that was taken without an end.
        head: Digest of its first bytes, at most `_ANCHOR_BYTES` of those before `offset`.
        anchor: Digest of the bytes before `offset`, at most `_ANCHOR_BYTES`.
        deleted: When it was deleted, in seconds since 1970; 0 if it exists.
    """

    path: str
    stamp: FileStamp
    end: int
    offset: int
    head: bytes
    anchor: bytes
    deleted: int = 0

    def is_continued_by(self, path: Path, stamp: FileStamp) -> bool:
        """Return whether a file is the taken one, with nothing or something appended."""
        if stamp.size < self.end:
            return False
        with path.open("rb") as file:
            # The last bytes of another record can be the same, as the user is.
            return self.head == _digest(_read(file, 0, min(self.offset, _ANCHOR_BYTES))) and (
                self.anchor == _digest_before(file, self.offset)
            )

    def is_in(self, blocks: Iterator[bytes]) -> int | None:
        """Return the size of some content that has the taken one at its start; None if it has not.

        Args:
            blocks: The content.
        """
        at, first, last = 0, b"", b""
        for block in blocks:
            if len(first) < _ANCHOR_BYTES:
                first += block[: _ANCHOR_BYTES - len(first)]
            if at < self.offset:
                last = (last + block[: self.offset - at])[-_ANCHOR_BYTES:]
            at += len(block)
        size = min(_ANCHOR_BYTES, self.offset)
        same = _digest(first[:size]) == self.head and _digest(last) == self.anchor
        return at if same and at >= self.offset else None


class DirectoryWatcher(msgspec.Struct):
    """Watches a directory for new files, and for what is appended to files.

    Of uncompressed JSON lines and CSV, all complete lines are taken at once. Other files, and the
    last line of a file if it has no end, are taken when the file has not changed between two scans.
    What is not complete then is probably being written: a JSON record waits for its rest, a last
    line of CSV and any other file for a minute. Files that are rewritten, truncated or replaced are
    taken from their start. Of the events that were taken before, `DedupWindow` recognises those
    with unique ids.

    With a folder for copies, what is taken is copied at once: until it is read, log rotation may
    rename or cut the file, and then another file has its name.

    Attributes:
        list_files: Lists the current files.
        detect_type: Returns how to read a file: `csv`, `json` or `parquet`.
        idle_timeout: Seconds without news after which a micro-batch is complete.
        max_files: Maximum number of files in all; None for no limit.
        poll_interval: Seconds between two scans.
        sleep: Waits for a number of seconds.
        last_stamps: Stamp of each file in the last scan.
        taken: The files that were taken; of deleted ones, the latest `_MAX_DELETED`.
        num_taken: Number of files that were taken.
        copies: Files that have the same contents as others, with these, until `take_copies`.
        copy_folder: Folder for copies of what is taken, which the reader removes; None for none.
    """

    list_files: Callable[[], list[Path]]
    idle_timeout: float
    max_files: int | None = None
    detect_type: Callable[[Path], str] = lambda path: detect_file_type(path) or "json"
    poll_interval: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    last_stamps: dict[FileId, FileStamp] = msgspec.field(default_factory=dict)
    taken: dict[FileId, TakenFile] = msgspec.field(default_factory=dict)
    num_taken: int = 0
    copies: list[tuple[str, str]] = msgspec.field(default_factory=list)
    copy_folder: Path | None = None
    _num_copies: int = 0
    _has_new_file: bool = False
    _rewritten: set[FileId] = msgspec.field(default_factory=set)
    _changed: set[FileId] = msgspec.field(default_factory=set)
    _held: dict[FileId, _HeldFile] = msgspec.field(default_factory=dict)
    _is_last_scan: bool = False
    _offsets: dict[str, bytes] = msgspec.field(default_factory=dict)

    def restore(self, offsets: Mapping[str, bytes]) -> None:
        """Go on where an earlier run has stopped.

        Args:
            offsets: What `take_offsets` has returned, put together.

        Raises:
            UsageError: They are those of another source.
        """
        for name, data in offsets.items():
            kind, _, identity = name.partition(":")
            if kind != _OFFSET_PREFIX:
                raise UsageError(
                    "--state: the file is of a run that read another source. Give another file."
                )
            key = FileId(*map(int, identity.split(":")))
            self.taken[key] = _decode_taken(data)
        self.num_taken = len(self.taken)

    def take_offsets(self) -> dict[str, bytes]:
        """Return the offsets that belong to the micro-batch that was yielded last."""
        offsets, self._offsets = self._offsets, {}
        return offsets

    def take_again(self, part: FilePart) -> None:
        """Forget a whole file that has moved before it was read, so that it is found again."""
        if part.identity is not None and self.taken.pop(part.identity, None) is not None:
            self.num_taken -= 1
            self._offsets[_offset_name(part.identity)] = b""

    def take_copies(self) -> list[tuple[str, str]]:
        """Return the copies that were found since the last call."""
        copies, self.copies = self.copies, []
        return copies

    def iter_micro_batches(self) -> Iterator[list[FilePart]]:
        """Yield what is there at the start, which may be nothing; then what comes.

        While nothing comes, it yields nothing at each scan.
        """
        self._scan()
        self.sleep(self.poll_interval)
        ready, _ = self._scan()
        for _ in range(_MAX_FIRST_SCANS):
            if not self._has_new_file:
                break
            # It may be a compressed copy with lines that are earlier than others that are ready.
            self.sleep(self.poll_interval)
            more, _ = self._scan()
            ready += more
        yield self._finish_batch(ready)
        while self.max_files is None or self.num_taken < self.max_files:
            yield from self._wait_for_micro_batch()
        self._is_last_scan = True  # nothing waits for its rest any more
        ready, _ = self._scan()
        if ready:
            yield self._finish_batch(ready)

    def _wait_for_micro_batch(self) -> Iterator[list[FilePart]]:
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
            if not parts:
                yield self._finish_batch([])
            elif not ready:
                yield []
        yield self._finish_batch(parts)

    def _finish_batch(self, parts: list[FilePart]) -> list[FilePart]:
        """Sort the parts of a micro-batch, and keep its offsets until they are asked for."""
        for identity in self._changed:
            taken = self.taken.get(identity)
            self._offsets[_offset_name(identity)] = b"" if taken is None else _encode_taken(taken)
        self._changed = set()
        return sorted(parts, key=lambda part: (part.path, part.start))

    def _scan(self) -> tuple[list[FilePart], bool]:
        """Take what is ready, and return whether anything has changed since the last scan."""
        ready, stamps, changed = [], dict[FileId, FileStamp](), False
        self._has_new_file = False
        for path in self.list_files():
            try:
                identity, stamp = _stat(path)
                stamps[identity] = stamp
                is_stable = self.last_stamps.get(identity) == stamp
                changed |= not is_stable
                # A file that is new may be complete at the next scan, and is then read in place.
                if identity not in self.last_stamps:
                    self._has_new_file = True
                    self._rewritten.add(identity)  # if it is: a copy was here before this scan
                else:
                    ready += self._take(path, identity, stamp, is_stable=is_stable)
            except OSError:
                continue  # it is gone, or cannot be read yet
        self._forget_deleted(stamps)
        self._held = {each: held for each, held in self._held.items() if each in stamps}
        self.last_stamps = stamps
        return ready, changed or bool(ready)

    def _forget_deleted(self, stamps: Mapping[FileId, FileStamp]) -> None:
        """Mark deleted files, and forget all but the latest, so that memory does not grow."""
        now = int(time.time())
        for identity, file in self.taken.items():
            if identity not in stamps and not file.deleted:
                self._changed.add(identity)
                self.taken[identity] = replace(file, deleted=now)
            elif file.deleted and stamps.get(identity) == file.stamp:  # it was moved away and back
                self._changed.add(identity)
                self.taken[identity] = replace(file, deleted=0)
        gone = [identity for identity, file in self.taken.items() if file.deleted]
        for identity in sorted(gone, key=lambda each: self.taken[each].deleted)[:-_MAX_DELETED]:
            del self.taken[identity]
            self._changed.add(identity)

    def _take(
        self, path: Path, identity: FileId, stamp: FileStamp, *, is_stable: bool
    ) -> list[FilePart]:
        """Take what is new in a file; nothing if it is not ready."""
        known = self.taken.get(identity)
        if self._is_done(known, stamp) or self._is_held(path, identity, stamp):
            return []
        is_csv = self.detect_type(path) == "csv"
        with path.open("rb") as file:
            has_lines = _has_lines(file, is_csv=is_csv)
            is_continued = has_lines and known is not None and known.is_continued_by(path, stamp)
            if self._is_new_content(identity, known, is_continued=is_continued):
                return []
            copied = None if is_continued else self._look_for_copy(path, identity, stamp, known)
            if copied is not None:
                return copied
            if not has_lines and (
                not is_stable or self._waits(path, identity, stamp, is_csv=is_csv)
            ):
                return []
            start = _find_start(file, known, is_csv=is_csv) if is_continued and known else 0
            end, offset = stamp.size, stamp.size
            if has_lines:
                lines = _find_end_of_lines(file, start, stamp.size, is_csv=is_csv)
                keeps = is_stable and self._has_tail(file, identity, stamp, lines, is_csv=is_csv)
                end = stamp.size if keeps else lines
                offset = lines if is_csv else end
            if (has_lines and end <= start) or (is_continued and known and known.end == end):
                return []
            head = _digest(_read(file, 0, min(offset, _ANCHOR_BYTES)))
            anchor = _digest_before(file, offset)
        is_whole = is_stable and not start and end == stamp.size
        in_place = is_whole and not (has_lines and end <= _MAX_COPIED_BYTES)
        part = FilePart(path, start, end, is_csv)
        parts = self._copy(part, identity, is_whole=is_whole, in_place=in_place)
        if known is not None and not is_continued:
            self._forget_content(path, identity, known)
        self._remember(identity, TakenFile(str(path), stamp, end, offset, head, anchor))
        return parts

    def _is_done(self, known: TakenFile | None, stamp: FileStamp) -> bool:
        """Return whether a file has nothing new, or is a new one beyond the limit."""
        if known is None:
            return self.max_files is not None and self.num_taken >= self.max_files
        return known.stamp == stamp and known.end == stamp.size

    def _is_held(self, path: Path, identity: FileId, stamp: FileStamp) -> bool:
        """Return whether the end of a file is known to be not complete yet."""
        held = self._held.get(identity)
        if held is None or held.stamp != stamp or self._is_last_scan:
            return False
        if _is_young(stamp):
            return True
        if held.is_line and not held.is_reported:
            self._held[identity] = held._replace(is_reported=True)
            logger.warning(
                "%s: the last line is not complete. It is read when its rest is there.", path
            )
        return held.is_line

    def _waits(self, path: Path, identity: FileId, stamp: FileStamp, *, is_csv: bool) -> bool:
        """Return whether a file without lines is not complete, and may become so soon."""
        waits = (
            _is_young(stamp) and not self._is_last_scan and not _is_complete(path, is_csv=is_csv)
        )
        if waits:
            self._held[identity] = _HeldFile(stamp)
        return waits

    def _has_tail(
        self, file: IO[bytes], identity: FileId, stamp: FileStamp, lines: int, *, is_csv: bool
    ) -> bool:
        """Return whether the last line of a file, which has no line feed, can be taken."""
        if lines == stamp.size or self._is_last_scan:
            return True
        file.seek(lines)
        is_ready = not _is_young(stamp) if is_csv else _is_json_object(file.read())
        if not is_ready:
            self._held[identity] = _HeldFile(stamp, is_line=not is_csv)
        return is_ready

    def _copy(
        self, part: FilePart, identity: FileId, *, is_whole: bool = False, in_place: bool = False
    ) -> list[FilePart]:
        """Copy what was taken, if there is a folder for that; return nothing for an empty part.

        Args:
            part: The part.
            identity: Its file.
            is_whole: Whether it is a whole file.
            in_place: Whether a whole file is read in place.
        """
        if self.copy_folder is None:
            if is_whole:
                return [FilePart(part.path)]
            return [part] if part.end != part.start else []
        if in_place:
            return [FilePart(part.path, identity=identity)]
        if part.end == part.start:
            return []
        self._num_copies += 1
        part = part._replace(identity=identity)
        return [part._replace(copy=part.write(self.copy_folder / str(self._num_copies)))]

    def _is_new_content(
        self, identity: FileId, known: TakenFile | None, *, is_continued: bool
    ) -> bool:
        """Return whether a file was rewritten since the last scan.

        A copy with the last lines of the former content can be there, and is taken at the next
        scan. The new content is taken with it, because its events are later.
        """
        is_rewritten = known is not None and not known.deleted and not is_continued
        is_new = is_rewritten and identity not in self._rewritten
        self._rewritten.discard(identity)
        if is_new:
            self._rewritten.add(identity)
        return is_new

    def _forget_content(self, path: Path, identity: FileId, known: TakenFile) -> None:
        """Remember the former content of a file that was rewritten, and say that it was.

        A copy that log rotation has made of it may come later.
        """
        self._remember(identity._replace(version=known.stamp.modified), known)
        if not known.deleted:  # else a new file has got the inode of a deleted one
            logger.warning(
                "%s: it was rewritten, and is read again from its start. Of the events that "
                "were read before, those with unique ids are recognised.",
                path,
            )

    def _remember(self, identity: FileId, taken: TakenFile) -> None:
        self.num_taken += identity not in self.taken
        self.taken[identity] = taken
        self._changed.add(identity)

    def _look_for_copy(
        self, path: Path, identity: FileId, stamp: FileStamp, known: TakenFile | None
    ) -> list[FilePart] | None:
        """Take a copy if it is complete; nothing if it is being written; None for no copy."""
        if self.last_stamps.get(identity) == stamp:
            return self._take_copy(path, identity, stamp, known)
        return [] if self._is_being_copied(path, stamp.size) else None

    def _is_being_copied(self, path: Path, size: int) -> bool:
        """Return whether a file that grows has, so far, what a taken file has."""
        with path.open("rb") as file:
            head = _digest(_read(file, 0, _ANCHOR_BYTES))
            for each in self.taken.values():
                if each.offset < _ANCHOR_BYTES or each.head != head:
                    continue
                if size >= each.offset:
                    if _digest_before(file, each.offset) == each.anchor:
                        return True
                    continue
                with suppress(OSError), Path(each.path).open("rb") as original:
                    if _digest_before(original, size) == _digest_before(file, size):
                        return True
        return False

    def _take_copy(
        self, path: Path, identity: FileId, stamp: FileStamp, known: TakenFile | None
    ) -> list[FilePart] | None:
        """Take what is new in a copy of a taken file, compressed or not; None for no copy.

        A copy is not counted as a file. The taken file may be deleted, as after log rotation.

        Args:
            path: The copy.
            identity: Its identity, which another file may have had before.
            stamp: Its stamp.
            known: That other file.
        """
        try:
            found = self._find_original(path, known)
        except (MorpheusError, OSError):
            return None  # the reader says what is wrong with it
        if found is None:
            return None
        original, size, unpacks = found
        is_csv = self.detect_type(path) == "csv"
        start = min(original.offset, size)
        head = anchor = b""
        if not unpacks:
            with path.open("rb") as file:
                if _has_lines(file, is_csv=is_csv):
                    lines = _find_end_of_lines(file, start, size, is_csv=is_csv)
                    keeps = self._has_tail(file, identity, stamp, lines, is_csv=is_csv)
                    size = size if keeps else lines
                head, anchor = _digest(_read(file, 0, _ANCHOR_BYTES)), _digest_before(file, size)
        end = stamp.size if unpacks else size
        taken = TakenFile(str(path), stamp, end, end, head, anchor)
        parts = self._copy(FilePart(path, start, size, is_csv, unpacks), identity)
        if known is not None:
            self._remember(identity._replace(version=known.stamp.modified), known)
        self.taken[identity] = taken
        self._changed.add(identity)
        self.copies.append((str(path), original.path))
        return parts

    def _find_original(
        self, path: Path, known: TakenFile | None
    ) -> tuple[TakenFile, int, bool] | None:
        """Find the longest taken file, but a known one, with which another file begins.

        Returns:
            The taken file, the size of the other one's content, and whether that was compressed.
        """
        place = parse_hive_partitions(path)
        heads = defaultdict[bytes, list[TakenFile]](list)
        for each in self.taken.values():
            if each is known:
                continue
            if each.offset >= _ANCHOR_BYTES and parse_hive_partitions(Path(each.path)) == place:
                heads[each.head].append(each)
        for unpacks in (False, True):
            first = next(_iter_blocks(path, unpacks=unpacks), b"")[:_ANCHOR_BYTES]
            same = heads.get(_digest(first), [])
            for candidate in sorted(same, key=lambda each: each.offset, reverse=True):
                with closing(_iter_blocks(path, unpacks=unpacks)) as blocks:
                    size = candidate.is_in(blocks)
                if size is not None:
                    return candidate, size, unpacks
            if not unpacks and not first.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
                break
        return None


def _offset_name(identity: FileId) -> str:
    return ":".join((_OFFSET_PREFIX, *map(str, identity)))


_NOT_UTF8, _ESCAPE = re.compile("[\udc80-\udcff]"), re.compile("\0(..)")
"""A byte of a name that is not UTF-8, as Python has it in text, and as the state file has it."""


def _encode_taken(taken: TakenFile) -> bytes:
    """Encode what is remembered of a file. No name has a NUL, so one stands for other bytes."""
    path = _NOT_UTF8.sub(lambda found: f"\0{ord(found[0]) & 0xFF:02x}", taken.path)
    return msgspec.msgpack.encode(replace(taken, path=path))


def _decode_taken(data: bytes) -> TakenFile:
    """Decode what `_encode_taken` has returned."""
    taken = msgspec.msgpack.decode(data, type=TakenFile)
    path = _ESCAPE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), taken.path)
    return replace(taken, path=path)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _digest_before(file: IO[bytes], offset: int) -> bytes:
    """Digest the bytes before an offset, at most `_ANCHOR_BYTES`."""
    return _digest(_read(file, offset - _ANCHOR_BYTES, offset))


def _iter_blocks(path: Path, *, unpacks: bool) -> Generator[bytes]:
    if unpacks:
        yield from read_blocks(path)
        return
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _stat(path: Path) -> tuple[FileId, FileStamp]:
    found = path.stat()
    return FileId(found.st_dev, found.st_ino), FileStamp(found.st_size, found.st_mtime_ns)


def _has_lines(file: IO[bytes], *, is_csv: bool) -> bool:
    """Return whether a file can be read up to any of its lines."""
    file.seek(0)
    start = file.read(_BLOCK_BYTES)
    if start.startswith((GZIP_MAGIC, ZSTD_MAGIC, PARQUET_MAGIC)) or is_utf16(start):
        return False
    line, end, _ = start.partition(b"\n")
    return bool(end) and (is_csv or _is_json_object(line.removeprefix(_BOM)))


def find_unfinished_line(path: Path, *, is_csv: bool) -> int | None:
    """Return where the last line of a file begins, if it is being written; else None.

    That is a JSON object without its end, or a row without a line feed in a CSV file that changed
    less than a minute ago.

    Args:
        path: The file.
        is_csv: Whether it is CSV, not JSON.
    """
    stamp = _stat(path)[1]
    with path.open("rb") as file:
        file.seek(max(0, stamp.size - 1))
        if file.read(1) in {b"", b"\n"} or not _has_lines(file, is_csv=is_csv):
            return None
        if is_csv and not _is_young(stamp):
            return None
        start = _find_end_of_lines(file, 0, stamp.size, is_csv=is_csv)
        file.seek(start)
        return None if not is_csv and _is_json_object(file.read()) else start


def is_being_written(path: Path, *, is_csv: bool) -> bool:
    """Return whether a file without lines has no end yet, and changed in the last minutes.

    Args:
        path: The file: compressed, Parquet or one JSON document.
        is_csv: Whether it is CSV, not JSON.
    """
    return _is_young(_stat(path)[1], _WRITING_SECONDS) and _is_unfinished(path, is_csv=is_csv)


def is_cut(path: Path, line: int | None, *, is_csv: bool) -> bool:
    """Return whether a place that cannot be read is the end of a file that may be being written.

    Args:
        path: The file.
        line: The last line that was read; None for a file without lines.
        is_csv: Whether it is CSV, not JSON.
    """
    if line is None or not _is_last_line(path, line):
        return _is_unfinished(path, is_csv=is_csv)
    return find_unfinished_line(path, is_csv=is_csv) is not None


def _is_unfinished(path: Path, *, is_csv: bool) -> bool:
    with path.open("rb") as file:
        if _has_lines(file, is_csv=is_csv):
            return False
    return not _is_complete(path, is_csv=is_csv)


def _is_last_line(path: Path, line: int) -> bool:
    with path.open("rb") as file:
        return line == 1 + sum(
            block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b"")
        )


def _is_young(stamp: FileStamp, seconds: float = _YOUNG_SECONDS) -> bool:
    return abs(time.time() - stamp.modified / 1e9) < seconds


def _is_complete(path: Path, *, is_csv: bool) -> bool:
    """Return whether a file without lines has an end, so far as that can be seen."""
    with path.open("rb") as file:
        start = file.read(_BLOCK_BYTES)
        file.seek(max(0, os.fstat(file.fileno()).st_size - len(PARQUET_MAGIC)))
        last = file.read()
    if not start:
        return path.suffix.lower() not in _NEVER_EMPTY
    if start.startswith(PARQUET_MAGIC):
        return last == PARQUET_MAGIC
    try:
        if start.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
            return _ends_as_json(read_blocks(path)) or is_csv
        if is_csv:
            return b"\n" in start
        if not is_utf16(start):
            msgspec.json.decode(path.read_bytes().removeprefix(_BOM), type=msgspec.Raw)
    except (MorpheusError, msgspec.DecodeError) as error:
        return "malformed" in str(error)  # it is no JSON, as the reader will say
    except RecursionError:
        pass  # the reader rejects it
    return True


def _ends_as_json(blocks: Iterable[bytes]) -> bool:
    """Return whether text that begins as JSON ends so; true for any other text. Reads all of it."""
    first = last = b""
    for block in blocks:
        text = block.strip(b" \t\r\n,\0")
        first, last = first or text[:1], text[-1:] or last
    return first not in {b"{", b"["} or last in {b"}", b"]"}


def _find_start(file: IO[bytes], known: TakenFile, *, is_csv: bool) -> int:
    """Return the offset from which to go on with a taken file that was continued."""
    if not is_csv:
        return known.offset
    file.seek(0)
    if b"\n" not in file.read(min(known.offset, _BLOCK_BYTES)):
        return 0  # there was only a part of the header
    tail = _read(file, known.offset, known.end)
    following = _read(file, known.end, known.end + 2)
    if tail.count(b'"') % 2 == 0 and following.startswith((b"\n", b"\r\n")):
        return known.end  # the last line was complete
    return known.offset


def _is_json_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True  # the reader rejects it
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
    return _cut_header(file.read(_BLOCK_BYTES))


def _cut_header(start: bytes) -> bytes:
    end = start.index(b"\n") + 1
    while start.count(b'"', 0, end) % 2:
        end = start.index(b"\n", end) + 1
    return start[:end]
