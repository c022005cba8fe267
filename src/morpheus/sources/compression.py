"""What log files hold, inflated: the one door to the disk, and to S3."""

from __future__ import annotations

import codecs
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

import zstandard
from isal import igzip, igzip_lib

from morpheus.errors import RecordError, UsageError
from morpheus.storage.object_store import S3Path, read_object, stream_object
from morpheus.storage.spill import SpillDir, open_temp_file

LogPath = Path | S3Path
"""A file, on disk or in a bucket."""
FILE_TYPES = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSED_SUFFIXES = (".gz", ".zst")
STREAMING_THRESHOLD, BLOCK_SIZE = 1 << 26, 1 << 24
"""Bytes, inflated: of a file that is not read whole, about, and of what is read of it at a time."""
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def detect_file_type(path: LogPath) -> str | None:
    """Say what a file holds by its suffix; None if that is no log.

    >>> detect_file_type(Path("CloudTrail/us-east-1/x.json.gz")), detect_file_type(Path("notes.txt"))
    ('json', None)
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return FILE_TYPES.get(suffixes[-1]) if suffixes else None


def read_bytes(path: LogPath) -> bytes:
    """Read a file whole, inflated if it is gzip or zstd by its first bytes, whatever its name.

    Raises:
        UsageError: The file must not be read.
        BadRecord: The file is gone, or its compression is broken.
        Unavailable: S3 does not answer.
    """
    try:
        data = path.read_bytes() if isinstance(path, Path) else read_object(path)
    except OSError as error:
        raise make_read_error(error, path) from error
    return decompress(data, path)


def get_file_size(path: LogPath) -> int:
    """Bytes of a file as it lies there; 0 for one that is gone."""
    if isinstance(path, S3Path):
        return path.size
    try:
        return path.stat().st_size
    except OSError:
        return 0


def is_large(path: LogPath) -> bool:
    """Whether a file is better read block by block."""
    return get_file_size(path) > (
        STREAMING_THRESHOLD // 8
        if path.suffix.lower() in COMPRESSED_SUFFIXES
        else STREAMING_THRESHOLD
    )


@contextmanager
def as_local_file(path: LogPath) -> Iterator[Path]:
    """A file where it can be read in any order: itself, or a copy of an object for as long.

    Raises:
        UsageError: The object must not be read.
        BadRecord: The object is gone.
        Unavailable: S3 does not answer, or the disk is full.
    """
    if isinstance(path, Path):
        yield path
        return
    with SpillDir() as scratch:
        with open_temp_file(scratch.folder) as file:
            try:
                for block in stream_object(path, BLOCK_SIZE):
                    file.write(block)
            except FileNotFoundError as error:
                raise make_read_error(error, path) from error
        yield Path(file.name)


def read_blocks(path: LogPath, size: int = BLOCK_SIZE) -> Iterator[bytes]:
    """Read a file in blocks of some `size` bytes, inflated as `read_bytes` does.

    Raises:
        UsageError: The file must not be read.
        BadRecord: The file is gone, or its compression is broken.
        Unavailable: S3 does not answer.
    """
    try:
        with as_local_file(path) as here, here.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            stream: IO[bytes] = file
            if start.startswith(GZIP_MAGIC):
                stream = igzip.open(file)  # type: ignore[no-untyped-call] # isal has no types here
            elif start.startswith(ZSTD_MAGIC):
                yield from _decompress_zstd_blocks(file, size)
            while block := stream.read(size):
                yield block
    except (EOFError, zlib.error, igzip_lib.IsalError, zstandard.ZstdError) as error:  # type: ignore[misc] # isal's types call IsalError a value
        raise _damaged_error(error, path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged_error(error, path) from error
        raise make_read_error(error, path) from error


def _decompress_zstd_blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    frame = None
    while data := file.read(size // 8 or 1):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _damaged_error(error: Exception, path: LogPath) -> RecordError:
    reason = f"the compressed file is cut off or damaged ({error}); fetch it again"
    return RecordError(reason, file=path)


def make_read_error(error: OSError, path: LogPath) -> RecordError | UsageError:
    """Say why a file, or a folder, cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "the file was there and is gone; start again, or leave it out of the glob"
        return RecordError(reason, file=path)
    told = f"{path}: cannot be read ({error.strerror}). Give yourself read access to it"
    return UsageError(f"{told}, or leave it out of the glob.")


def decompress(data: bytes, path: LogPath) -> bytes:
    """Inflate gzip or zstd; anything else is plain.

    Raises:
        BadRecord: The compression is broken.
    """
    if not data and path.suffix.lower() in COMPRESSED_SUFFIXES:
        raise RecordError("the compressed file is empty; fetch it again", file=path)
    try:
        if data.startswith(GZIP_MAGIC):
            return _decompress_gzip(data)
        if data.startswith(ZSTD_MAGIC):
            return _decompress_zstd(data)
    except (  # type: ignore[misc] # isal's types call IsalError a value
        OSError,
        EOFError,
        igzip_lib.IsalError,
        zstandard.ZstdError,
    ) as error:
        raise _damaged_error(error, path) from error
    return data


def _decompress_gzip(data: bytes) -> bytes:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    whole = member.decompress(data)
    if not member.eof or member.unused_data:
        # Several members behind each other, or padding, or cut off: the slower way knows them all.
        return bytes(igzip.decompress(data))  # type: ignore[no-untyped-call] # isal has no types here
    return whole


def _decompress_zstd(data: bytes) -> bytes:
    whole = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        whole.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("it ends in the middle of a frame")
        data = frame.unused_data
    return b"".join(whole)


def to_utf8(data: bytes) -> bytes:
    """Drop a byte order mark, and re-encode UTF-16, which PowerShell's `>` writes.

    >>> to_utf8("été".encode("utf-16")).decode()
    'été'
    """
    if is_utf16(data):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def is_utf16(data: bytes) -> bool:
    """Whether text begins with the mark of UTF-16."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


MAX_CONCURRENCY = 16
"""Objects on their way at a time."""
PREFETCH_BYTES = 1 << 26
"""Bytes, as they lie in the bucket, that are fetched and not yet read, about."""


class Prefetcher:
    """Reads files one after the other, in the order given; objects of a bucket come ahead of that.

    Large ones do not: they are read block by block, see `read_blocks`.

    Args:
        paths: The files that will be read, in order.
    """

    def __init__(self, paths: Iterable[LogPath]) -> None:
        self._pending = deque(p for p in paths if isinstance(p, S3Path) and not is_large(p))
        self._futures: dict[LogPath, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(MAX_CONCURRENCY) if self._pending else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, path: LogPath) -> bytes:
        """Read a file whole; see `read_bytes`, which also says what can go wrong."""
        if self._pool is None:
            return read_bytes(path)
        self._submit_ahead(self._pool)
        begun = self._futures.pop(path, None)
        return read_bytes(path) if begun is None else begun.result()

    def _submit_ahead(self, pool: ThreadPoolExecutor) -> None:
        held = sum(one.size for one in self._futures if isinstance(one, S3Path))
        while self._pending and len(self._futures) < 2 * MAX_CONCURRENCY and held < PREFETCH_BYTES:
            one = self._pending.popleft()
            self._futures[one] = pool.submit(read_bytes, one)
            held += one.size
