"""Alerts in files: JSON lines or Parquet, and the folders of a security lake."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol

import polars as pl

from morpheus.atomic import Draft, whole_file
from morpheus.bucket import is_address
from morpheus.errors import UsageError
from morpheus.folder import Folder
from morpheus.sinks.formats import EXTENSIONS, PACKED, packed
from morpheus.sinks.to_file import ToFile


class Lines(Protocol):
    """Takes JSON objects, one a line."""

    def write(self, line: bytes) -> object:
        """Take an object, with the line's end."""


def format_of(stage: str, filename: str, *formats: str) -> tuple[str, str]:
    """Format and packing that a file's name asks for.

    Args:
        stage: The word of the sink.
        filename: The file.
        formats: Those that it can write: `json`, `parquet`.

    Raises:
        UsageError: It asks for another.
    """
    name = Path(filename).name.lower()
    packing = next((end for end in PACKED if name.endswith(end)), "")
    extension = Path(name.removesuffix(packing)).suffix
    known = [one for one, kind in EXTENSIONS.items() if kind in formats]
    if extension not in known or (packing and EXTENSIONS[extension] == "parquet"):
        raise UsageError(
            f"{stage}: --filename: `{filename}` is of no format that it writes. Use "
            f"{', '.join(known)}; JSON lines may be packed, `.jsonl.gz` or `.jsonl.zst`."
        )
    return EXTENSIONS[extension], packing


def check_file(stage: str, filename: str, *, overwrite: bool) -> None:
    """Refuse a place that no file can be written to.

    Raises:
        UsageError: Says what to type.
    """
    if not filename or is_address(filename):
        raise UsageError(
            f"{stage}: `{filename}` names no file on disk. Give `--filename alerts.jsonl`."
        )
    try:
        ToFile(filename=filename, overwrite=overwrite).check()
    except UsageError as error:
        raise UsageError(str(error).replace("to-file", stage)) from error


@contextmanager
def json_lines(path: Path, packing: str) -> Iterator[Lines]:
    """A file of JSON lines, which appears whole or not at all.

    Raises:
        Unavailable: The disk refuses.
    """
    with Draft(path) as draft:
        file = packed(draft.file, packing)
        yield _Guarded(draft, file)
        if file is not draft.file:
            with draft.writing():
                file.close()


@dataclass(frozen=True)
class _Guarded:
    """Tells of the disk what it refuses."""

    draft: Draft
    file: BinaryIO

    def write(self, line: bytes) -> object:
        with self.draft.writing():
            return self.file.write(line)


@contextmanager
def parquet_file(path: Path, schema: pl.Schema) -> Iterator[Lines]:
    """A Parquet file of the objects written to it, in order of `time`, whole or not at all."""
    with _beside(path.parent) as folder:
        spilt = folder / "lines"
        with spilt.open("wb") as lines:
            yield lines
        with whole_file(path) as file:
            file.write(_parquet(spilt, schema))


@contextmanager
def lake(folder: Folder, schema: pl.Schema) -> Iterator[Lake]:
    """Parquet files of the objects written to their partitions, all of them at the end."""
    with TemporaryDirectory(prefix="morpheus-") as spilt:
        made = Lake(Path(spilt))
        yield made
        made.publish(folder, schema)


@dataclass
class Lake:
    """Objects by partition, aside until all are there.

    Attributes:
        spilt: Where they lie.
        files: The files being written, by partition.
    """

    spilt: Path
    parts: dict[str, Path] = field(default_factory=dict)

    def write(self, partition: str, line: bytes) -> None:
        """Lay an object aside."""
        path = self.parts.setdefault(partition, self.spilt / f"{len(self.parts):06}")
        with path.open("ab") as file:
            file.write(line)

    def publish(self, folder: Folder, schema: pl.Schema) -> None:
        """Write one file a partition; the same objects make the same file of the same name."""
        for partition, spilt in sorted(self.parts.items()):
            name = hashlib.sha256(spilt.read_bytes()).hexdigest()[:16]
            folder.write(f"{partition}/morpheus-{name}.parquet", _parquet(spilt, schema))


def _parquet(lines: Path, schema: pl.Schema) -> bytes:
    """A Parquet file of JSON lines, in order of `time`."""
    frame = pl.DataFrame(schema=schema)
    if lines.stat().st_size:
        frame = pl.read_ndjson(lines, schema=schema)
    file = io.BytesIO()
    frame.sort("time", maintain_order=True).write_parquet(file, compression="zstd")
    return file.getvalue()


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder to work in, gone afterwards, on the same disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".morpheus-", dir=folder) as name:
        yield Path(name)
