"""Which files to read, and how to open them: the one door to the disk."""

from __future__ import annotations

import codecs
import glob
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard
from isal import igzip, igzip_lib

from morpheus.errors import BadRecord, UsageError

KINDS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst")
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload")
LARGE, BLOCK = 1 << 26, 1 << 24
"""Bytes, inflated: of a file that is not read whole, about, and of what is read of it at a time."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def kind(path: Path) -> str | None:
    """Say what a file holds by its suffix; None if that is no log.

    >>> kind(Path("CloudTrail/us-east-1/x.json.gz")), kind(Path("notes.txt"))
    ('json', None)
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


@dataclass(frozen=True)
class Found:
    """The files that match, in sorted order, and how many were left out by their folder."""

    paths: list[Path]
    skipped: int


@dataclass(frozen=True)
class LogFiles:
    """The files that a pattern stands for.

    Attributes:
        pattern: A glob, a file or a folder.
        option: The option that gave it, named in messages.
        recursive: Also match, in every subfolder, what follows the first wildcard's folder.
        max_files: Take the first so many in sorted order; None or -1 for all.
        file_type: `csv`, `json`, `parquet`, or `auto` to go by suffix, leaving out other files.
        without: Folders whose files are left out, and counted.
    """

    pattern: str
    option: str = "--input_glob"
    recursive: bool = True
    max_files: int | None = None
    file_type: str = "auto"
    without: tuple[str, ...] = ()

    def find(self) -> Found:
        """List the files there are now; hidden and unfinished ones are none."""
        logs = sorted(path for path in self._matches() if self._is_log(path))
        paths = [path for path in logs if not set(self.without) & set(path.parts)]
        limit = None if self.max_files in {None, -1} else self.max_files
        return Found(paths[:limit], len(logs) - len(paths))

    def need(self) -> Found:
        """List the files there are now, at least one.

        Raises:
            UsageError: No file matches.
        """
        found = self.find()
        if not found.paths:
            raise UsageError(f"{self.option}: no log file matches `{self.pattern}`. {self._hint()}")
        return found

    def kind(self, path: Path) -> str:
        """Say how to read a file: `csv`, `json` or `parquet`."""
        return kind(path) or "json" if self.file_type == "auto" else self.file_type

    def _is_log(self, path: Path) -> bool:
        if path.suffix.lower() in UNFINISHED or not path.is_file():
            return False
        return self.file_type != "auto" or kind(path) is not None

    def _matches(self) -> set[Path]:
        whole = Path(self.pattern).expanduser()
        if whole.is_dir():
            return _globbed(whole, "*", recursive=self.recursive)
        if whole.exists() or not glob.has_magic(self.pattern):
            return {whole}
        base, rest = _cut(whole)
        return _globbed(base, rest, recursive=self.recursive)

    def _hint(self) -> str:
        if "://" in self.pattern:
            return "Only local files are read; copy them here first, as with `aws s3 sync`."
        base, _ = _cut(Path(self.pattern).expanduser())
        if not base.is_dir():
            return f"There is no folder `{base}`. Give a glob in quotes, a file or a folder."
        others = Counter("".join(path.suffixes[-2:]) for path in self._matches() if path.is_file())
        if others:
            return (
                f"What matches ends in {', '.join(sorted(others))}, read by suffix are "
                f"{', '.join(KINDS)}, also .gz and .zst. Give `--file_type json`, csv or parquet."
            )
        held = sorted({path.suffix for path in base.iterdir() if path.is_file() and path.suffix})
        holds = f"files ending in {', '.join(held[:8])}" if held else "no files of its own"
        return f"The folder `{base}` holds {holds}. Give a glob in quotes, a file or a folder."


def _cut(pattern: Path) -> tuple[Path, str]:
    """Cut a glob before its first component with a wildcard."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first]), os.path.join(*parts[first:])  # noqa: PTH118 - a glob is no path


def _globbed(base: Path, rest: str, *, recursive: bool) -> set[Path]:
    deep = recursive and not rest.startswith("**")
    pattern = f"**{os.sep}{rest}" if deep else rest
    return {base / name for name in glob.glob(pattern, root_dir=base, recursive=True)}  # noqa: PTH207 - Path.glob would find hidden files


def read_bytes(path: Path) -> bytes:
    """Read a file whole, inflated if it is gzip or zstd by its first bytes, whatever its name.

    Raises:
        UsageError: The file must not be read.
        BadRecord: The file is gone, or its compression is broken.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(error, path) from error
    return inflate(data, path)


def is_large(path: Path) -> bool:
    """Whether a file is better read block by block."""
    try:
        return path.stat().st_size > (LARGE // 8 if path.suffix.lower() in PACKED else LARGE)
    except OSError:
        return False


def read_blocks(path: Path, size: int = BLOCK) -> Iterator[bytes]:
    """Read a file in blocks of some `size` bytes, inflated as `read_bytes` does.

    Raises:
        UsageError: The file must not be read.
        BadRecord: The file is gone, or its compression is broken.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            stream: IO[bytes] = file
            if start.startswith(GZIP):
                stream = igzip.open(file)  # type: ignore[no-untyped-call] # isal has no types here
            elif start.startswith(ZSTD):
                yield from _unzstd_blocks(file, size)
            while block := stream.read(size):
                yield block
    except (EOFError, zlib.error, igzip_lib.IsalError, zstandard.ZstdError) as error:  # type: ignore[misc] # isal's types call IsalError a value
        raise _damaged(error, path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(error, path) from error
        raise _unreadable(error, path) from error


def _unzstd_blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    frame = None
    while data := file.read(size // 8 or 1):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _damaged(error: Exception, path: Path) -> BadRecord:
    reason = f"the compressed file is cut off or damaged ({error}); fetch it again"
    return BadRecord(reason, file=path)


def _unreadable(error: OSError, path: Path) -> BadRecord | UsageError:
    if isinstance(error, FileNotFoundError):
        reason = "the file was there and is gone; start again, or leave it out of the glob"
        return BadRecord(reason, file=path)
    told = f"{path}: cannot be read ({error.strerror}). Give yourself read access to it"
    return UsageError(f"{told}, or leave it out of the glob.")


def inflate(data: bytes, path: Path) -> bytes:
    """Inflate gzip or zstd; anything else is plain.

    Raises:
        BadRecord: The compression is broken.
    """
    if not data and path.suffix.lower() in PACKED:
        raise BadRecord("the compressed file is empty; fetch it again", file=path)
    try:
        if data.startswith(GZIP):
            return _ungzip(data)
        if data.startswith(ZSTD):
            return _unzstd(data)
    except (  # type: ignore[misc] # isal's types call IsalError a value
        OSError,
        EOFError,
        igzip_lib.IsalError,
        zstandard.ZstdError,
    ) as error:
        raise _damaged(error, path) from error
    return data


def _ungzip(data: bytes) -> bytes:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    whole = member.decompress(data)
    if not member.eof or member.unused_data:
        # Several members behind each other, or padding, or cut off: the slower way knows them all.
        return bytes(igzip.decompress(data))  # type: ignore[no-untyped-call] # isal has no types here
    return whole


def _unzstd(data: bytes) -> bytes:
    whole = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        whole.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("it ends in the middle of a frame")
        data = frame.unused_data
    return b"".join(whole)


def utf8(data: bytes) -> bytes:
    """Drop a byte order mark, and re-encode UTF-16, which PowerShell's `>` writes.

    >>> utf8("été".encode("utf-16")).decode()
    'été'
    """
    if is_utf16(data):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def is_utf16(data: bytes) -> bool:
    """Whether text begins with the mark of UTF-16."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
