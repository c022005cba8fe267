"""Reads log files from disk or S3, decompressed.

All sources read files through this module. Compression is recognised by the first bytes.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import shutil
import struct
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from io import BufferedReader, BytesIO, RawIOBase
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Self, cast

import msgspec
import zstandard
from isal import igzip, igzip_lib

from morpheus.errors import RecordError, UsageError
from morpheus.storage.object_store import (
    ObjectPath,
    RequestThreads,
    download_object,
    read_object,
    stream_object,
)
from morpheus.storage.spill import SpillDir, open_temp_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LogPath = Path | ObjectPath
"""A file on disk or in a bucket."""
FILE_TYPES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSED_SUFFIXES = (".gz", ".zst")
_ROTATION_NUMBER = re.compile(r"\.\d{1,4}")
_ROTATION_DATE = re.compile(r"-\d{8,14}$")
"""What log rotation adds to a name: `audit.jsonl.1`, `audit.jsonl-20240531`."""
_MAX_LAYERS = 4
"""How often a file may be compressed, such as by CloudWatch and again by Firehose."""
STREAMING_THRESHOLD, BLOCK_SIZE = 1 << 26, 1 << 24
"""Decompressed bytes above which a file is read in blocks, and the size of a block."""
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PARQUET_MAGIC = b"PAR1"
_OTHER_PACKING = {
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
}
"""How files begin that are packed in a way that is not read."""
OTHER_PACKED_SUFFIXES = (".bz2", ".xz", ".zip", ".7z", ".lz4")


_MAX_RATIO = 200
"""How many times its stored size a file may have unpacked. Logs compress 5 to 50 times."""
_MAX_WHOLE_MB = 1000
_MAX_TABLE_ROWS = 1_000_000
"""Number of rows up to which a Parquet file may have more rows than bytes."""
_MIN_ROW_BYTES = 16
"""Minimum number of bytes of text in a row."""
_MB = 1_000_000
_ZSTD_PIECE = 1 << 12
"""Bytes of zstd that are decompressed at a time. One byte can become 32 KiB."""


class ReadLimits(msgspec.Struct, frozen=True):
    """Limits for one file, so that a small hostile file does not take all memory.

    Attributes:
        max_file_mb: Size after decompression, in MB. None for 200 times the stored size, but at
            least 64 MiB, or 1,000 MB of a Parquet file; and for 1,000 MB of a file that must be
            read as a whole.
        max_columns: Number of columns of a table, of fields of a record, and of different fields
            of all records.
        max_record_bytes: Size of one line or record.
        max_records: Number of records of a file after which the rest is not read, for a sample;
            None for all.
    """

    max_file_mb: float | None = None
    max_columns: int = 10_000
    max_record_bytes: int = 1 << 26
    max_records: int | None = None

    @property
    def max_whole(self) -> int:
        """Maximum size of a file that is read as a whole, in bytes."""
        return int((self.max_file_mb or _MAX_WHOLE_MB) * _MB)

    def max_unpacked(self, stored: int) -> int:
        """Return the maximum size of a compressed file after decompression, in bytes."""
        if self.max_file_mb is not None:
            return self.max_whole
        return max(STREAMING_THRESHOLD, _MAX_RATIO * stored)

    def max_table(self, stored: int) -> int:
        """Return the maximum size of the text in a Parquet file, in bytes."""
        return self.max_whole if self.max_file_mb else max(self.max_whole, _MAX_RATIO * stored)

    def check_rows(self, rows: int, stored: int, path: LogPath) -> None:
        """Reject a Parquet file with so many rows that nearly all of them must be equal.

        Args:
            rows: Number of rows that the file states.
            stored: Size of the file, in bytes.
            path: The file, for messages.

        Raises:
            RecordError: It has more than a million rows, and more rows than bytes.
        """
        most = max(_MAX_TABLE_ROWS, stored)
        if self.max_file_mb is not None:
            most = max(most, self.max_whole // _MIN_ROW_BYTES)
        if rows > most:
            reason = (
                f"the file has {rows:,} rows in {stored:,} bytes, so nearly all of them are equal; "
                f"if you trust it, give `--max_file_size={-(-rows * _MIN_ROW_BYTES // _MB)}` (MB)"
            )
            raise RecordError(reason, file=path, records=rows)

    def make_error(self, path: LogPath, most: int, lost: int | None = None) -> RecordError:
        """Make the error for a file that is larger than a number of bytes.

        Args:
            path: The file.
            most: The number of bytes.
            lost: Number of records that are not read; None if it is not known.
        """
        reason = (
            f"the file has more than {most // _MB:,} MB after decompression; if you trust it, give "
            f"a higher limit, such as `--max_file_size={10 * most // _MB}` (MB)"
        )
        return RecordError(reason, file=path, records=lost)

    def check_blocks(self, blocks: Iterable[bytes], path: LogPath, most: int) -> Iterator[bytes]:
        """Pass on the blocks of a file.

        Raises:
            RecordError: The file has more than `most` bytes.
        """
        size = 0
        for block in blocks:
            size += len(block)
            if size > most:
                raise self.make_error(path, most)
            yield block

    def check_columns(self, number: int, path: LogPath) -> None:
        """Reject a table with too many columns.

        Raises:
            RecordError: It has more than `max_columns`.
        """
        if number > self.max_columns:
            reason = (
                f"the file has {number:,} columns, and at most {self.max_columns:,} are read; if "
                f"you trust it, give `--max_columns={number}`"
            )
            raise RecordError(reason, file=path)

    def check_record(self, size: int, path: LogPath, line: int) -> None:
        """Reject a line that is too long.

        Raises:
            RecordError: It has more than `max_record_bytes`.
        """
        if size > self.max_record_bytes:
            reason = (
                f"the line has more than {self.max_record_bytes >> 20} MiB, so it is not a record; "
                "the rest of the file is not read"
            )
            raise RecordError(reason, file=path, line=line)


DEFAULT_LIMITS = ReadLimits()


class LargeFileError(Exception):
    """A file is too large to be read as a whole. It may be read in blocks."""


def detect_file_type(path: LogPath) -> str | None:
    """Return the file type by its suffix; None if the file is not a log.

    >>> detect_file_type(Path("us-east-1/x.json.gz")), detect_file_type(Path("notes.txt"))
    ('json', None)
    >>> detect_file_type(Path("audit.jsonl.2.gz")), detect_file_type(Path("audit.json-20240531"))
    ('json', 'json')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-3:]]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    if suffixes and _ROTATION_NUMBER.fullmatch(suffixes[-1]):
        suffixes.pop()
    return FILE_TYPES.get(_ROTATION_DATE.sub("", suffixes[-1])) if suffixes else None


def is_rotated(path: LogPath) -> bool:
    """Return whether log rotation has renamed a file.

    >>> is_rotated(Path("audit.jsonl.1.gz")), is_rotated(Path("audit.jsonl.gz"))
    (True, False)
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] not in FILE_TYPES


def read_bytes(
    path: LogPath, limits: ReadLimits = DEFAULT_LIMITS, *, allow_large: bool = True
) -> bytes:
    """Read a whole file, decompressed if its first bytes are those of gzip or zstd.

    Args:
        path: The file.
        limits: Maximum sizes.
        allow_large: Whether it may unpack to more than `STREAMING_THRESHOLD`.

    Raises:
        LargeFileError: It does, and that is not allowed.
        UsageError: Access to the file is denied.
        RecordError: The file does not exist any more, or its compression is damaged.
        TransientError: S3 does not respond.
    """
    try:
        data = path.read_bytes() if isinstance(path, Path) else _read_object(path)
    except OSError as error:
        raise make_read_error(error, path) from error
    most = min(limits.max_unpacked(len(data)), limits.max_whole)
    try:
        return decompress(data, path, most if allow_large else min(most, STREAMING_THRESHOLD))
    except LargeFileError as error:
        if allow_large:
            raise limits.make_error(path, most) from error
        raise


def get_file_size(path: LogPath) -> int:
    """Return the size of a file as stored, in bytes; 0 if it does not exist any more."""
    if isinstance(path, ObjectPath):
        return path.size
    try:
        return path.stat().st_size
    except OSError:
        return 0


def is_large(path: LogPath) -> bool:
    """Return whether a file should be read in blocks."""
    return get_file_size(path) > (
        STREAMING_THRESHOLD // 8
        if path.suffix.lower() in COMPRESSED_SUFFIXES
        else STREAMING_THRESHOLD
    )


@contextmanager
def as_local_file(path: LogPath) -> Iterator[Path]:
    """Provide a file that can be read in any order: the file itself, or a copy of an object.

    Raises:
        UsageError: Access to the object is denied.
        RecordError: The object does not exist any more.
        TransientError: S3 does not respond, or the disk is full.
    """
    if isinstance(path, Path):
        yield path
        return
    kept = _find_kept(path)
    if kept is not None and kept.is_file():
        yield kept
        return
    with SpillDir() as spill_dir:
        with open_temp_file(spill_dir.folder) as file:
            try:
                for block in stream_object(path, BLOCK_SIZE):
                    file.write(block)
            except FileNotFoundError as error:
                raise make_read_error(error, path) from error
        yield _keep(Path(file.name), kept)


KEPT_OBJECTS = "MORPHEUS_KEPT_OBJECTS"
"""Variable with the folder of `keep_objects`. Worker processes inherit it."""
_MIN_FREE = 1 << 30
"""Bytes of the disk that stay free when copies of objects are kept."""


@contextmanager
def keep_objects(folder: Path) -> Iterator[None]:
    """Keep copies of the objects that are read in the block, so that each is downloaded once.

    An object that changes is read again, if it is listed again.

    Args:
        folder: An empty folder on the disk of temporary files. The caller removes it.
    """
    os.environ[KEPT_OBJECTS] = str(folder)
    try:
        yield
    finally:
        del os.environ[KEPT_OBJECTS]


def _find_kept(path: ObjectPath) -> Path | None:
    """Return the place for the copy of an object; None if copies are not kept."""
    folder = os.environ.get(KEPT_OBJECTS)
    if folder is None:
        return None
    version = f"{path}\n{path.size}\n{path.modified}"
    return Path(folder, blake2b(version.encode(), digest_size=16).hexdigest())


def _read_object(path: ObjectPath) -> bytes:
    kept = _find_kept(path)
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    content = read_object(path)
    if kept is not None and _has_space(kept, len(content)):
        with suppress(OSError):
            with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
                file.write(content)
            _keep(Path(file.name), kept)
    return content


def keep_object(path: ObjectPath) -> ObjectPath:
    """Download an object to the folder of `keep_objects`.

    Returns:
        The object as it was downloaded. `read_bytes` and `read_blocks` then read the copy.

    Raises:
        FileNotFoundError: It does not exist.
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer, or the disk is full.
    """
    gone: FileNotFoundError | None = None
    with open_temp_file(Path(os.environ[KEPT_OBJECTS])) as file:
        try:
            found = download_object(path, file, BLOCK_SIZE)
        except FileNotFoundError as error:
            gone = error  # an error of the file would look like a full disk
    if gone is not None:
        raise gone
    kept = _find_kept(found)
    if kept is not None:
        Path(file.name).replace(kept)
    return found


def _has_space(kept: Path, size: int) -> bool:
    return shutil.disk_usage(kept.parent).free > size + _MIN_FREE


def _keep(file: Path, kept: Path | None) -> Path:
    """Move a downloaded file to its place, if there is one and the disk has space.

    Returns:
        Where the file is.
    """
    if kept is None or not _has_space(kept, 0):
        return file
    with suppress(OSError):  # it is not needed
        return file.replace(kept)
    return file


def read_blocks(
    path: LogPath, size: int = BLOCK_SIZE, limits: ReadLimits = DEFAULT_LIMITS
) -> Iterator[bytes]:
    """Read a file in blocks of about `size` bytes, decompressed as `read_bytes` does.

    Raises:
        UsageError: Access to the file is denied.
        RecordError: The file does not exist any more, or its compression is damaged.
        TransientError: S3 does not respond.
    """
    try:
        with as_local_file(path) as local, local.open("rb") as file:
            blocks = _decompress_inner_blocks(_decompress_blocks(file, size), size)
            first = next(blocks, b"")
            _check_packing(first, path)
            blocks = chain([first] if first else [], blocks)
            most = limits.max_unpacked(get_file_size(local))
            yield from limits.check_blocks(blocks, path, most)
    except (EOFError, zlib.error, igzip_lib.IsalError, zstandard.ZstdError) as error:  # type: ignore[misc] # isal's types call IsalError a value
        raise _damaged_error(error, path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged_error(error, path) from error
        raise make_read_error(error, path) from error


def _decompress_blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    start = file.read(4)
    file.seek(0)
    stream: IO[bytes] = file
    if start.startswith(GZIP_MAGIC):
        stream = igzip.open(file)  # type: ignore[no-untyped-call] # untyped in isal
    elif start.startswith(ZSTD_MAGIC):
        yield from _decompress_zstd_blocks(file, size)
    while block := stream.read(size):
        yield block


def _decompress_inner_blocks(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Decompress blocks again, as long as they begin like a compressed file."""
    for _ in range(_MAX_LAYERS - 1):
        first = b""
        while len(first) < len(ZSTD_MAGIC) and (block := next(blocks, b"")):
            first += block
        blocks = chain([first] if first else [], blocks)
        if not first.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
            break
        stream = BufferedReader(_BlockReader(blocks))
        blocks = _decompress_blocks_of(cast("IO[bytes]", stream), first, size)
    yield from blocks


def _decompress_blocks_of(stream: IO[bytes], start: bytes, size: int) -> Iterator[bytes]:
    if start.startswith(ZSTD_MAGIC):
        yield from _decompress_zstd_blocks(stream, size)
        return
    packed = gzip.GzipFile(fileobj=stream)
    while block := packed.read(size):
        yield block


class _BlockReader(RawIOBase):
    """Reads blocks as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        while not self._rest and (block := next(self._blocks, b"")):
            self._rest = block
        part, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(part)] = part
        return len(part)


def _decompress_zstd_blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    frame = None
    parts, length = list[bytes](), 0
    while data := file.read(_ZSTD_PIECE):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(data))
            length += len(parts[-1])
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
        if length >= size:
            yield b"".join(parts)
            parts, length = [], 0
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")
    yield b"".join(parts)


def _damaged_error(error: Exception, path: LogPath) -> RecordError:
    reason = f"the compressed file is truncated or damaged ({error}); download it again"
    return RecordError(reason, file=path)


def make_read_error(error: OSError, path: LogPath) -> RecordError | UsageError:
    """Make the error for a file or folder that cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "the file was deleted during the run; start again, or exclude it from the glob"
        return RecordError(reason, file=path)
    return UsageError(
        f"{path}: cannot be read ({error.strerror}). Get read access to it, or exclude it from the "
        "glob."
    )


def decompress(data: bytes, path: LogPath, most: int) -> bytes:
    """Decompress gzip or zstd; other data is returned unchanged.

    Args:
        data: Contents of the file.
        path: The file, for messages.
        most: Maximum size, decompressed.

    Raises:
        LargeFileError: It is larger.
        RecordError: The compression is damaged.
    """
    if not data and path.suffix.lower() in COMPRESSED_SUFFIXES:
        raise RecordError("the compressed file is empty; download it again", file=path)
    try:
        for _ in range(_MAX_LAYERS):
            if data.startswith(GZIP_MAGIC):
                data = _decompress_gzip(data, most)
            elif data.startswith(ZSTD_MAGIC):
                data = _decompress_zstd(data, most)
    except (  # type: ignore[misc] # isal's types call IsalError a value
        OSError,
        EOFError,
        igzip_lib.IsalError,
        zstandard.ZstdError,
    ) as error:
        raise _damaged_error(error, path) from error
    _check_packing(data, path)
    return data


def _check_packing(start: bytes, path: LogPath) -> None:
    """Reject a file that is packed in a way that is not read."""
    for magic, name in _OTHER_PACKING.items():
        if start.startswith(magic):
            raise RecordError(
                f"the file is packed with {name}, which is not read; unpack it, or pack it with "
                "gzip or zstd",
                file=path,
            )


def _decompress_gzip(data: bytes, most: int) -> bytes:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    whole = member.decompress(data, most + 1)
    if len(whole) <= most and (not member.eof or member.unused_data):
        # Several members, padding, or a truncated file: the slower function handles all three.
        return _join_blocks(_decompress_blocks(BytesIO(data), BLOCK_SIZE), most)
    return _join_blocks([whole], most)


def _decompress_zstd(data: bytes, most: int) -> bytes:
    return _join_blocks(_decompress_zstd_blocks(BytesIO(data), BLOCK_SIZE), most)


def _join_blocks(blocks: Iterable[bytes], most: int) -> bytes:
    parts: list[bytes] = []
    for block in blocks:
        parts.append(block)
        if sum(map(len, parts)) > most:
            raise LargeFileError
    return parts[0] if len(parts) == 1 else b"".join(parts)


_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


_PADDING_BYTES = 1 << 12


def strip_padding(data: bytes) -> bytes:
    """Remove white space at the end if there is much of it: each blank line costs time.

    >>> strip_padding(b"a" + b" " * 5000).decode().splitlines()
    ['a']
    """
    tail = data[-_PADDING_BYTES:]
    return data.rstrip() + b"\n" if len(tail) == _PADDING_BYTES and tail.isspace() else data


def to_utf8(data: bytes) -> bytes:
    """Remove a byte order mark, and convert UTF-16, which PowerShell's `>` writes.

    >>> to_utf8("été".encode("utf-16")).decode()
    'été'
    """
    if is_utf16(data):
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
        encoding = "utf-16" if data.startswith(_UTF16_MARKS) else encoding
        return data.decode(encoding, "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def is_utf16(data: bytes) -> bool:
    """Return whether text is UTF-16: it has a byte order mark, or zeros as only UTF-16 has."""
    if data.startswith(_UTF16_MARKS):
        return True
    zeros = [byte == 0 for byte in data[:4]]
    return zeros in ([False, True, False, True], [True, False, True, False])


MAX_CONCURRENCY = 16
"""Maximum number of parallel downloads."""
PREFETCH_BYTES = 1 << 26
"""Approximate maximum of stored bytes that are downloaded ahead."""


class Prefetcher:
    """Reads files in order, and downloads objects ahead of use.

    Large objects are not downloaded ahead: they are read in blocks, see `read_blocks`.

    Args:
        paths: The files that will be read, in order.
        limits: Maximum sizes.
        allow_large: See `read_bytes`.
    """

    def __init__(
        self,
        paths: Iterable[LogPath],
        limits: ReadLimits = DEFAULT_LIMITS,
        *,
        allow_large: bool = True,
    ) -> None:
        self._read = partial(read_bytes, limits=limits, allow_large=allow_large)
        self._pending = deque(p for p in paths if isinstance(p, ObjectPath) and not is_large(p))
        self._futures: dict[LogPath, Future[bytes]] = {}
        self._pool = RequestThreads(MAX_CONCURRENCY) if self._pending else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def read(self, path: LogPath) -> bytes:
        """Read a whole file; see `read_bytes`, also for the errors."""
        if self._pool is None:
            return self._read(path)
        self._submit_ahead(self._pool)
        future = self._futures.pop(path, None)
        return self._read(path) if future is None else future.result()

    def _submit_ahead(self, pool: RequestThreads) -> None:
        size = sum(path.size for path in self._futures if isinstance(path, ObjectPath))
        while self._pending and len(self._futures) < 2 * MAX_CONCURRENCY and size < PREFETCH_BYTES:
            path = self._pending.popleft()
            self._futures[path] = pool.submit(self._read, path)
            size += path.size


_MIN_COPY_BYTES = 512
"""Size of a file below which an equal one can be equal by chance, such as an empty delivery."""
_HEAD_BYTES = 1 << 12


def find_copies(
    paths: Sequence[LogPath], place: Callable[[LogPath], object] = lambda _: None
) -> dict[LogPath, LogPath]:
    """Find local files with the same contents, compressed or not, as an earlier one.

    Only files of equal size are opened, and only those that begin alike are read.

    Args:
        paths: The files, in order.
        place: What else must be equal, such as values in the names of folders.

    Returns:
        The earlier file, by copy.
    """
    copies: dict[LogPath, LogPath] = {}
    contents = {path: _describe_content(path) for path in paths}
    known = [path for path in paths if contents[path] is not None]
    for same_size in _group(
        known, lambda path: (contents[path] or (0,))[0], lambda path: str(place(path))
    ):
        sums = [(contents[path] or (0,))[1:] for path in same_size]
        # A checksum in each file tells them apart without a look at the contents.
        alike = _group(same_size, contents.__getitem__) if all(sums) else [same_size]
        for candidates in alike:
            for same_head in _group(candidates, _hash_head):
                for first, *others in _group(same_head, _hash_content):
                    copies |= dict.fromkeys(others, first)
    return copies


def _group(
    paths: Iterable[LogPath], *keys: Callable[[LogPath], Hashable]
) -> Iterator[list[LogPath]]:
    """Yield groups of several files with equal keys. Files that cannot be read are left out."""
    groups: dict[Hashable, list[LogPath]] = defaultdict(list)
    for path in paths:
        with suppress(OSError, EOFError, RecordError, UsageError):
            groups[tuple(key(path) for key in keys)].append(path)
    yield from (group for group in groups.values() if len(group) > 1)


def _describe_content(path: LogPath) -> tuple[int, ...] | None:
    """Return the decompressed size of a file, and the checksum that gzip stores.

    None for an object, or a file too small to compare or that cannot be read.
    """
    if isinstance(path, ObjectPath):
        return None
    try:
        content: tuple[int, ...] = (path.stat().st_size,)
        if path.suffix.lower() in COMPRESSED_SUFFIXES:
            with path.open("rb") as file:
                content = _read_stated_size(file) or content
    except OSError:
        return None
    return None if content[0] < _MIN_COPY_BYTES else content


def _read_stated_size(file: IO[bytes]) -> tuple[int, ...] | None:
    head = file.read(18)
    if head.startswith(GZIP_MAGIC):
        file.seek(-8, os.SEEK_END)
        checksum, size = struct.unpack("<II", file.read(8))
        return size, checksum
    if head.startswith(ZSTD_MAGIC):
        with suppress(zstandard.ZstdError):
            size = zstandard.frame_content_size(head)
            return None if size < 0 else (size,)
    return None


def _hash_head(path: LogPath) -> bytes:
    return blake2b(next(read_blocks(path, _HEAD_BYTES), b"")[:_HEAD_BYTES]).digest()


def _hash_content(path: LogPath) -> bytes:
    digest = blake2b()
    for block in read_blocks(path):
        digest.update(block)
    return digest.digest()
