"""Files of alerts: JSON lines, Parquet, and the partitions of Amazon Security Lake."""

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
from morpheus.storage.atomic import AtomicWriter, atomic_write, make_folders
from morpheus.storage.folder import Store
from morpheus.storage.object_store import is_s3_url


class LineWriter(Protocol):
    """Writes JSON objects, one per line."""

    def write(self, line: bytes) -> object:
        """Write an object that ends with a line break."""


def detect_format(stage_name: str, filename: str, *formats: str) -> tuple[str, str]:
    """Return format and compression suffix of a file name.

    Args:
        stage_name: Name of the sink, for messages.
        filename: The file name.
        formats: Formats that the sink writes: `json`, `parquet`.

    Raises:
        UsageError: The extension is that of another format.
    """
    name = Path(filename).name.lower()
    compression = next((end for end in COMPRESSED_SUFFIXES if name.endswith(end)), "")
    extension = Path(name.removesuffix(compression)).suffix
    known = [known for known, kind in FORMAT_BY_EXTENSION.items() if kind in formats]
    if extension not in known or (compression and FORMAT_BY_EXTENSION[extension] == "parquet"):
        raise UsageError(
            f"{stage_name}: --filename: `{filename}` has an unsupported extension. Use "
            f"{', '.join(known)}; JSON lines may be compressed, `.jsonl.gz` or `.jsonl.zst`."
        )
    return FORMAT_BY_EXTENSION[extension], compression


def validate_alert_path(stage_name: str, filename: str, *, overwrite: bool) -> None:
    """Reject a path where no file can be written.

    Raises:
        UsageError: The message says what to type.
    """
    if not filename or is_s3_url(filename):
        raise UsageError(
            f"{stage_name}: `{filename}` is not a file on disk. Give `--filename alerts.jsonl`."
        )
    try:
        ToFile(filename=filename, overwrite=overwrite).validate()
    except UsageError as error:
        raise UsageError(str(error).replace("to-file", stage_name)) from error


@contextmanager
def open_json_lines(path: Path, compression: str) -> Iterator[LineWriter]:
    """Open a file of JSON lines that is written atomically.

    Raises:
        TransientError: The file cannot be written.
    """
    with AtomicWriter(path) as writer:
        file = open_compressed(writer.file, compression)
        yield _ErrorTranslatingWriter(writer, file)
        if file is not writer.file:
            with writer.guard_io():
                file.close()


@dataclass(frozen=True)
class _ErrorTranslatingWriter:
    """Turns errors of the disk into errors that say what to do."""

    writer: AtomicWriter
    file: BinaryIO

    def write(self, line: bytes) -> object:
        with self.writer.guard_io():
            return self.file.write(line)


@contextmanager
def open_parquet(path: Path, schema: pl.Schema) -> Iterator[LineWriter]:
    """Open a Parquet file of JSON objects, sorted by `time` and written atomically."""
    with _temp_dir_beside(path.parent) as folder:
        spill_file = folder / "lines"
        with spill_file.open("wb") as lines:
            yield lines
        with atomic_write(path) as file:
            file.write(_to_parquet(spill_file, schema))


@contextmanager
def security_lake(folder: Store, schema: pl.Schema) -> Iterator[SecurityLakeWriter]:
    """Open a writer of partitioned Parquet files. They appear when the block ends."""
    with TemporaryDirectory(prefix="morpheus-") as spill_dir:
        writer = SecurityLakeWriter(Path(spill_dir))
        yield writer
        writer.commit(folder, schema)


@dataclass
class SecurityLakeWriter:
    """Spills JSON objects by partition, and writes the partitions at the end.

    Attributes:
        spill_dir: Folder of the spilled objects.
        partition_files: File of spilled objects of each partition.
    """

    spill_dir: Path
    partition_files: dict[str, Path] = field(default_factory=dict)

    def write(self, partition: str, line: bytes) -> None:
        """Spill an object."""
        path = self.partition_files.setdefault(
            partition, self.spill_dir / f"{len(self.partition_files):06}"
        )
        with path.open("ab") as file:
            file.write(line)

    def commit(self, folder: Store, schema: pl.Schema) -> None:
        """Write one file per partition. The same objects give the same file of the same name."""
        for partition, spill_file in sorted(self.partition_files.items()):
            name = hashlib.sha256(spill_file.read_bytes()).hexdigest()[:16]
            folder.write(f"{partition}/morpheus-{name}.parquet", _to_parquet(spill_file, schema))


def _to_parquet(lines: Path, schema: pl.Schema) -> bytes:
    """Return the content of a Parquet file of JSON lines, sorted by `time`."""
    frame = pl.DataFrame(schema=schema)
    if lines.stat().st_size:
        frame = pl.read_ndjson(lines, schema=schema)
    file = io.BytesIO()
    frame.sort("time", maintain_order=True).write_parquet(file, compression="zstd")
    return file.getvalue()


@contextmanager
def _temp_dir_beside(folder: Path) -> Iterator[Path]:
    """Create a hidden temporary folder on the same disk, and remove it afterwards."""
    make_folders(folder)
    with TemporaryDirectory(prefix=".morpheus-", dir=folder) as name:
        yield Path(name)
