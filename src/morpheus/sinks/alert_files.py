"""`to-ocsf` and `to-ecs`: files of alerts, and the partitions of Amazon Security Lake."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import polars as pl

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Outputs, Requirements, Sink, StageContext, option
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
from morpheus.sinks.to_file import (
    AppendedOutput,
    list_outputs,
    validate_durable_output,
    validate_first_start,
    validate_output,
)
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


def open_alert_lines(
    sink: Sink, filename: str, compression: str, context: StageContext, *, replaces: bool
) -> LineWriter:
    """Open a file of JSON lines: written atomically, or on an endless run where it was.

    Args:
        sink: The sink.
        filename: The file.
        compression: `.gz`, `.zst`, or empty.
        context: Says where the run goes on, and closes the file.
        replaces: An endless run may replace an existing file when it starts for the first time.

    Raises:
        TransientError: The file cannot be written.
        UsageError: The file exists.
    """
    place = parse_output(filename)
    if context.position is None or not isinstance(place, Path):
        return context.resources.enter_context(open_json_lines(filename, compression))
    if not context.position:
        validate_first_start(place, overwrite=replaces, stage_name=sink.name)
    output = AppendedOutput(place, context.position, compression)
    context.resources.callback(output.close)
    return output


def finish_alert_lines(file: object, filename: str) -> None:
    """Complete a file of JSON lines of an endless run, if it has no line."""
    if isinstance(file, AppendedOutput):
        file.finish(empty_json(filename))


def sync_alert_lines(findings: FindingBuilder, file: object) -> Mapping[str, bytes] | None:
    """Write findings to disk, and return the position after them; see `Sink.sync`."""
    if isinstance(file, _ErrorTranslatingWriter):
        return None  # the file appears when the run ends
    changes = findings.take_changes()
    return changes | file.sync() if isinstance(file, AppendedOutput) else changes


class _ErrorTranslatingWriter(msgspec.Struct):
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


class SecurityLakeWriter(msgspec.Struct):
    """Spills JSON objects by partition, and writes the partitions at the end.

    Attributes:
        spill_dir: Folder of the spilled objects.
        partition_files: File of spilled objects of each partition.
    """

    spill_dir: Path
    partition_files: dict[str, Path] = msgspec.field(default_factory=dict)

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
            spill_file.unlink()
        self.partition_files = {}


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


_LAKE_SECONDS = 300.0
"""Seconds between two parts of a lake on an endless run, as Security Lake asks for."""


class _OpenOcsf(msgspec.Struct):
    """Where findings are written.

    Attributes:
        findings: Joins alerts to findings.
        name_partition: Returns the partition of a finding in a lake.
        write: Writes a line to a partition.
        file: The file; None for a lake.
        publish: Writes what a lake has got on an endless run; None elsewhere.
        published: When it was called last, by `time.monotonic`.
    """

    findings: FindingBuilder
    name_partition: Callable[[Finding], str]
    write: Callable[[str, bytes], object]
    file: LineWriter | None = None
    publish: Callable[[], None] | None = None
    published: float = msgspec.field(default_factory=time.monotonic)

    def write_all(self, findings: Iterator[Finding]) -> None:
        """Write findings."""
        for each in findings:
            partition = self.name_partition(each) if self.file is None else ""
            self.write(partition, encode_ocsf(each) + b"\n")


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
    needs = Requirements(card=True)

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
            kind, _ = detect_format(self.name, self.filename, "json", "parquet")
            if self.options.durable:
                validate_durable_output(self.name, self.filename, kind)
            replaces = self.overwrite or self.options.durable
            validate_alert_path(self.name, self.filename, overwrite=replaces)
            return
        _validate_name("--region", self.region or "", "eu-west-1")
        _validate_name("--lake_source", self.lake_source, "morpheus")
        open_store(self.lake_folder or "").check_access()

    def outputs(self) -> Outputs:
        """The file, or the folder of the lake."""
        if self.filename is not None:
            return list_outputs(self.filename)
        lake = parse_location(self.lake_folder or "")
        if isinstance(lake, ObjectPath):
            return Outputs(destinations=(str(lake),))
        return Outputs(folders=(lake,))

    def open(self, context: StageContext) -> _OpenOcsf:
        """Open the file or the lake."""
        findings = make_finding_builder(self, context.position)
        schema = to_polars_schema(DetectionFinding)
        enter = context.resources.enter_context
        if self.lake_folder is not None:
            folder = open_store(self.lake_folder)
            lake = enter(security_lake(folder, schema))
            publish = None if context.position is None else partial(lake.commit, folder, schema)
            return _OpenOcsf(findings, self._partition_path, lake.write, None, publish)
        filename = self.filename or ""
        kind, compression = detect_format(self.name, filename, "json", "parquet")
        if kind == "parquet":
            file = enter(open_parquet(parse_location(filename), schema))
        else:
            file = open_alert_lines(self, filename, compression, context, replaces=self.overwrite)
        return _OpenOcsf(findings, self._partition_path, lambda _, line: file.write(line), file)

    def process(self, batch: Batch, state: _OpenOcsf) -> Iterator[Batch]:
        """Write the findings that are complete, or have grown."""
        state.write_all(state.findings.build(batch))
        yield batch

    def flush(self, state: _OpenOcsf) -> Iterator[Batch]:
        """Write the last findings."""
        state.write_all(state.findings.flush())
        finish_alert_lines(state.file, self.filename or "")
        state.published = float("-inf")  # what waits for the lake need not wait any longer
        return iter(())

    def sync(self, state: _OpenOcsf) -> Mapping[str, bytes] | None:
        """Write the findings to disk; to a lake, at most every few minutes."""
        if state.publish is not None:
            if time.monotonic() - state.published < _LAKE_SECONDS:
                return None
            state.publish()
            state.published = time.monotonic()
        return sync_alert_lines(state.findings, state.file)

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
    needs = Requirements(card=True)

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
        durable = self.options.durable
        validate_alert_path(self.name, self.filename, overwrite=self.overwrite or durable)
        kind, _ = detect_format(self.name, self.filename, "json")
        if durable:
            validate_durable_output(self.name, self.filename, kind)

    def outputs(self) -> Outputs:
        """The file."""
        return list_outputs(self.filename)

    def open(self, context: StageContext) -> tuple[FindingBuilder, LineWriter]:
        """Open the file."""
        _, packing = detect_format(self.name, self.filename, "json")
        file = open_alert_lines(self, self.filename, packing, context, replaces=self.overwrite)
        return make_finding_builder(self, context.position), file

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
        finish_alert_lines(file, self.filename)
        return iter(())

    def sync(self, state: tuple[FindingBuilder, LineWriter]) -> Mapping[str, bytes] | None:
        """Write the documents to disk."""
        return sync_alert_lines(*state)
