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

from morpheus.errors import UsageError
from morpheus.sinks.formats import COMPRESSED_SUFFIXES, FORMAT_BY_EXTENSION, open_compressed
from morpheus.sinks.to_file import ToFile
from morpheus.storage.atomic import AtomicWriter, atomic_write
from morpheus.storage.folder import Store
from morpheus.storage.object_store import is_s3_url


class LineWriter(Protocol):
    """Takes JSON objects, one a line."""

    def write(self, line: bytes) -> object:
        """Take an object, with the line's end."""


def detect_format(stage_name: str, filename: str, *formats: str) -> tuple[str, str]:
    """Format and packing that a file's name asks for.

    Args:
        stage_name: The word of the sink.
        filename: The file.
        formats: Those that it can write: `json`, `parquet`.

    Raises:
        UsageError: It asks for another.
    """
    name = Path(filename).name.lower()
    packing = next((end for end in COMPRESSED_SUFFIXES if name.endswith(end)), "")
    extension = Path(name.removesuffix(packing)).suffix
    known = [one for one, kind in FORMAT_BY_EXTENSION.items() if kind in formats]
    if extension not in known or (packing and FORMAT_BY_EXTENSION[extension] == "parquet"):
        raise UsageError(
            f"{stage_name}: --filename: `{filename}` is of no format that it writes. Use "
            f"{', '.join(known)}; JSON lines may be packed, `.jsonl.gz` or `.jsonl.zst`."
        )
    return FORMAT_BY_EXTENSION[extension], packing


def validate_alert_path(stage_name: str, filename: str, *, overwrite: bool) -> None:
    """Refuse a place that no file can be written to.

    Raises:
        UsageError: Says what to type.
    """
    if not filename or is_s3_url(filename):
        raise UsageError(
            f"{stage_name}: `{filename}` names no file on disk. Give `--filename alerts.jsonl`."
        )
    try:
        ToFile(filename=filename, overwrite=overwrite).validate()
    except UsageError as error:
        raise UsageError(str(error).replace("to-file", stage_name)) from error


@contextmanager
def open_json_lines(path: Path, compression: str) -> Iterator[LineWriter]:
    """A file of JSON lines, which appears whole or not at all.

    Raises:
        Unavailable: The disk refuses.
    """
    with AtomicWriter(path) as draft:
        file = open_compressed(draft.file, compression)
        yield _ErrorTranslatingWriter(draft, file)
        if file is not draft.file:
            with draft.guard_io():
                file.close()


@dataclass(frozen=True)
class _ErrorTranslatingWriter:
    """Tells of the disk what it refuses."""

    draft: AtomicWriter
    file: BinaryIO

    def write(self, line: bytes) -> object:
        with self.draft.guard_io():
            return self.file.write(line)


@contextmanager
def open_parquet(path: Path, schema: pl.Schema) -> Iterator[LineWriter]:
    """A Parquet file of the objects written to it, in order of `time`, whole or not at all."""
    with _temp_dir_beside(path.parent) as folder:
        spilt = folder / "lines"
        with spilt.open("wb") as lines:
            yield lines
        with atomic_write(path) as file:
            file.write(_to_parquet(spilt, schema))


@contextmanager
def security_lake(folder: Store, schema: pl.Schema) -> Iterator[SecurityLakeWriter]:
    """Parquet files of the objects written to their partitions, all of them at the end."""
    with TemporaryDirectory(prefix="morpheus-") as spilt:
        made = SecurityLakeWriter(Path(spilt))
        yield made
        made.commit(folder, schema)


@dataclass
class SecurityLakeWriter:
    """Objects by partition, aside until all are there.

    Attributes:
        spill_dir: Where they lie.
        files: The files being written, by partition.
    """

    spill_dir: Path
    partition_files: dict[str, Path] = field(default_factory=dict)

    def write(self, partition: str, line: bytes) -> None:
        """Lay an object aside."""
        path = self.partition_files.setdefault(
            partition, self.spill_dir / f"{len(self.partition_files):06}"
        )
        with path.open("ab") as file:
            file.write(line)

    def commit(self, folder: Store, schema: pl.Schema) -> None:
        """Write one file a partition; the same objects make the same file of the same name."""
        for partition, spilt in sorted(self.partition_files.items()):
            name = hashlib.sha256(spilt.read_bytes()).hexdigest()[:16]
            folder.write(f"{partition}/morpheus-{name}.parquet", _to_parquet(spilt, schema))


def _to_parquet(lines: Path, schema: pl.Schema) -> bytes:
    """A Parquet file of JSON lines, in order of `time`."""
    frame = pl.DataFrame(schema=schema)
    if lines.stat().st_size:
        frame = pl.read_ndjson(lines, schema=schema)
    file = io.BytesIO()
    frame.sort("time", maintain_order=True).write_parquet(file, compression="zstd")
    return file.getvalue()


@contextmanager
def _temp_dir_beside(folder: Path) -> Iterator[Path]:
    """A folder to work in, gone afterwards, on the same disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".morpheus-", dir=folder) as name:
        yield Path(name)
