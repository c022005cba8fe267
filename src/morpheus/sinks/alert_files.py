"""`to-ocsf` and `to-ecs`: files of alerts, and the partitions of Amazon Security Lake."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import polars as pl

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Outputs, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import Finding, FindingBuilder, make_finding_builder
from morpheus.sinks.alert_formats import encode_ecs, encode_ocsf
from morpheus.sinks.formats import (
    COMPRESSED_SUFFIXES,
    FORMAT_BY_EXTENSION,
    empty_json,
    open_compressed,
)
from morpheus.sinks.ocsf_schema import DetectionFinding, to_polars_schema
from morpheus.sinks.to_file import list_outputs, validate_output
from morpheus.storage.atomic import (
    AtomicWriter,
    Store,
    TempFolder,
    make_folders,
    open_output,
    open_store,
    parse_output,
)
from morpheus.storage.object_store import STDOUT, ObjectPath, parse_location


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
    if filename == STDOUT and "json" in formats:
        return "json", ""
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
    """Reject an output that cannot be written.

    Raises:
        UsageError: The message says what to type.
    """
    if not filename:
        raise UsageError(f"{stage_name}: no file given. Give `--filename alerts.jsonl`.")
    validate_output(filename, overwrite=overwrite, stage_name=stage_name)


@contextmanager
def open_json_lines(filename: str, compression: str) -> Iterator[LineWriter]:
    """Open a file of JSON lines that is written atomically.

    Raises:
        TransientError: The file cannot be written.
    """
    with open_output(parse_output(filename)) as writer:
        file = open_compressed(writer.file, compression)
        lines = _ErrorTranslatingWriter(writer, file)
        yield lines
        if lines.empty:
            lines.write(empty_json(filename))
        if file is not writer.file:
            with writer.guard_io():
                file.close()


@dataclass
class _ErrorTranslatingWriter:
    """Turns errors of the disk into errors that say what to do."""

    writer: AtomicWriter
    file: BinaryIO
    empty: bool = True

    def write(self, line: bytes) -> object:
        self.empty = False
        with self.writer.guard_io():
            return self.file.write(line)


@contextmanager
def open_parquet(path: Path | ObjectPath, schema: pl.Schema) -> Iterator[LineWriter]:
    """Open a Parquet file of JSON objects, sorted by `time` and written atomically."""
    beside = None
    if isinstance(path, Path):
        beside = path.parent
        make_folders(beside)
    with TempFolder(beside) as folder:
        spill_file = folder / "lines"
        with spill_file.open("wb") as lines:
            yield lines
        with open_output(path) as writer, writer.guard_io():
            writer.file.write(_to_parquet(spill_file, schema))


@contextmanager
def security_lake(folder: Store, schema: pl.Schema) -> Iterator[SecurityLakeWriter]:
    """Open a writer of partitioned Parquet files. They appear when the block ends."""
    with TempFolder() as spill_dir:
        writer = SecurityLakeWriter(spill_dir)
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


EXTERNAL_ACCOUNT = "external"
"""Partition of alerts without an AWS account, as Security Lake names it."""

_ACCOUNT_PATTERN = re.compile(r"\d{12}")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
WriteFinding = Callable[[Finding], object]


@dataclass(frozen=True)
class ToOcsf(Sink):
    """Write incidents as OCSF Detection Findings, to a file or to Amazon Security Lake.

    Takes events with scores, or rows, and passes them on. All events of a user on a day become one
    finding, so put `filter` before it. With `explain` before it, a finding contains the unusual
    columns and the expected values (`anomaly_analyses`). The severity is that of
    `filter --alerts_per_day`, or follows from the labels `severity` or `pvalue` of `add-scores`.
    The schema version is 1.8.

    Example: `to-ocsf --filename=findings.jsonl`, or `to-ocsf --lake_folder=lake --region=eu-west-1`
    """

    name = "to-ocsf"
    takes = (Scored, OutputRows)

    filename: str | None = option(
        None,
        "File to write: JSON lines, plain or compressed (`.gz`, `.zst`), or Parquet; `-` for "
        "stdout.",
        location="any",
    )
    overwrite: bool = option(
        False, "Replace an existing file. It stays until the new one is complete.", flag=True
    )
    lake_folder: str | None = option(
        None,
        "Folder, or `s3://bucket`, instead of a file: for Parquet files partitioned as Security "
        "Lake requires, `ext/SOURCE/region=.../accountId=.../eventDay=.../`.",
        location="any",
    )
    lake_source: str = option("morpheus", "Name of the custom source (SOURCE).")
    region: str | None = option(None, "AWS region of the lake. Required with --lake_folder.")

    def validate(self) -> None:
        """Require either a file or a lake, and reject what cannot be written."""
        if (self.filename is None) == (self.lake_folder is None):
            raise UsageError(
                "to-ocsf: give either `--filename findings.jsonl`, or `--lake_folder lake --region "
                "eu-west-1`."
            )
        if self.filename is not None:
            detect_format(self.name, self.filename, "json", "parquet")
            validate_alert_path(self.name, self.filename, overwrite=self.overwrite)
            return
        _validate_name("--region", self.region or "", "eu-west-1")
        _validate_name("--lake_source", self.lake_source, "morpheus")
        open_store(self.lake_folder or "").check_access()

    def outputs(self) -> Outputs:
        """The file."""
        return Outputs() if self.filename is None else list_outputs(self.filename)

    def open(self, context: StageContext) -> tuple[FindingBuilder, WriteFinding]:
        """Open the file or the lake."""
        write = context.resources.enter_context(self._open_output())
        return make_finding_builder(self), write

    def process(self, batch: Batch, state: tuple[FindingBuilder, WriteFinding]) -> Iterator[Batch]:
        """Write the findings that are complete, or have grown."""
        findings, write = state
        for finding in findings.build(batch):
            write(finding)
        yield batch

    def flush(self, state: tuple[FindingBuilder, WriteFinding]) -> Iterator[Batch]:
        """Write the last findings."""
        findings, write = state
        for finding in findings.flush():
            write(finding)
        return iter(())

    @contextmanager
    def _open_output(self) -> Iterator[WriteFinding]:
        """Open the output; yields a function that writes an alert."""
        schema = to_polars_schema(DetectionFinding)
        if self.lake_folder is not None:
            with security_lake(open_store(self.lake_folder), schema) as lake:
                yield lambda finding: lake.write(
                    self._partition_path(finding), encode_ocsf(finding) + b"\n"
                )
            return
        filename = self.filename or ""
        kind, compression = detect_format(self.name, filename, "json", "parquet")
        with (
            open_parquet(parse_location(filename), schema)
            if kind == "parquet"
            else open_json_lines(filename, compression) as file
        ):
            yield lambda finding: file.write(encode_ocsf(finding) + b"\n")

    def _partition_path(self, finding: Finding) -> str:
        """Return the partition of a finding, relative to the folder of the lake."""
        account = finding.worst.fields.account or ""
        folder = account if _ACCOUNT_PATTERN.fullmatch(account) else EXTERNAL_ACCOUNT
        return (
            f"ext/{self.lake_source}/region={self.region}"
            f"/accountId={folder}/eventDay={finding.end:%Y%m%d}"
        )


def _validate_name(option_name: str, value: str, example: str) -> None:
    if not _NAME_PATTERN.fullmatch(value):
        raise UsageError(
            f"to-ocsf: {option_name} is `{value}`, which is not valid in a folder's name. Give a "
            f"name such as `{option_name} {example}`."
        )


@dataclass(frozen=True)
class ToEcs(Sink):
    """Write incidents as documents of the Elastic Common Schema (ECS), one a line.

    Takes events with scores, or rows, and passes them on. All events of a user on a day become one
    document, so put `filter` before it. `event.id` is the id of the incident. Filebeat or
    Elastic Agent can ship such a file; `to-http --receiver=elasticsearch` sends the same documents.

    Example: `to-ecs --filename=alerts.jsonl`
    """

    name = "to-ecs"
    takes = (Scored, OutputRows)

    filename: str = option(
        "",
        "File to write: JSON lines, plain or compressed (`.gz`, `.zst`); `-` for stdout.",
        required=True,
        location="any",
    )
    overwrite: bool = option(
        False, "Replace an existing file. It stays until the new one is complete.", flag=True
    )

    def validate(self) -> None:
        """Reject a file that cannot be written."""
        validate_alert_path(self.name, self.filename, overwrite=self.overwrite)
        detect_format(self.name, self.filename, "json")

    def outputs(self) -> Outputs:
        """The file."""
        return list_outputs(self.filename)

    def open(self, context: StageContext) -> tuple[FindingBuilder, LineWriter]:
        """Open the file."""
        _, packing = detect_format(self.name, self.filename, "json")
        file = context.resources.enter_context(open_json_lines(self.filename, packing))
        return make_finding_builder(self), file

    def process(self, batch: Batch, state: tuple[FindingBuilder, LineWriter]) -> Iterator[Batch]:
        """Write the documents of the findings that are complete, or have grown."""
        findings, file = state
        for finding in findings.build(batch):
            file.write(encode_ecs(finding) + b"\n")
        yield batch

    def flush(self, state: tuple[FindingBuilder, LineWriter]) -> Iterator[Batch]:
        """Write the documents of the last findings."""
        findings, file = state
        for finding in findings.flush():
            file.write(encode_ecs(finding) + b"\n")
        return iter(())
