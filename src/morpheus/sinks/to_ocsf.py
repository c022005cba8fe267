"""`to-ocsf`: alerts as Detection Findings of the Open Cybersecurity Schema Framework."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from morpheus.core.batch import Batch, OutputRows, Scored
from morpheus.core.stage import Outputs, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import Alert, AlertBuilder
from morpheus.sinks.alert_files import (
    detect_format,
    open_json_lines,
    open_parquet,
    security_lake,
    validate_alert_path,
)
from morpheus.sinks.alert_formats import make_detection_finding
from morpheus.sinks.ocsf_schema import DetectionFinding, to_polars_schema
from morpheus.storage.folder import open_store

EXTERNAL_ACCOUNT = "external"
"""Partition of alerts without an AWS account, as Security Lake names it."""

_ACCOUNT_PATTERN = re.compile(r"\d{12}")
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
WriteAlert = Callable[[Alert], object]


@dataclass(frozen=True)
class ToOcsf(Sink):
    """Write alerts as OCSF Detection Findings, to a file or to Amazon Security Lake.

    Takes events with scores, or rows, and passes them on. It writes every event that reaches it, so
    put `filter` before it. With `explain` before it, a finding contains the unusual columns and the
    expected values (`anomaly_analyses`). The severity follows from `pvalue`: request it with
    `add-scores --label`. The schema version is 1.8.

    Example: `to-ocsf --filename=findings.jsonl`, or `to-ocsf --lake_folder=lake --region=eu-west-1`
    """

    name = "to-ocsf"
    takes = (Scored, OutputRows)

    filename: str | None = option(
        None, "File to write: JSON lines, plain or compressed (`.gz`, `.zst`), or Parquet."
    )
    overwrite: bool = option(
        False, "Replace an existing file. It stays until the new one is complete.", flag=True
    )
    lake_folder: str | None = option(
        None,
        "Folder, or `s3://bucket`, instead of a file: for Parquet files partitioned as Security "
        "Lake requires, `ext/SOURCE/region=.../accountId=.../eventDay=.../`.",
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
        return Outputs() if self.filename is None else Outputs(files=(Path(self.filename),))

    def open(self, context: StageContext) -> tuple[AlertBuilder, WriteAlert]:
        """Open the file or the lake."""
        write = context.resources.enter_context(self._open_output())
        return AlertBuilder(self.name, self.options.source), write

    def process(self, batch: Batch, state: tuple[AlertBuilder, WriteAlert]) -> Iterator[Batch]:
        """Write one finding for each alert of a batch."""
        alerts, write = state
        for alert in alerts.build(batch):
            write(alert)
        yield batch

    @contextmanager
    def _open_output(self) -> Iterator[WriteAlert]:
        """Open the output; yields a function that writes an alert."""
        schema = to_polars_schema(DetectionFinding)
        if self.lake_folder is not None:
            with security_lake(open_store(self.lake_folder), schema) as lake:
                yield lambda alert: lake.write(self._partition_path(alert), _encode_line(alert))
            return
        path = Path(self.filename or "")
        kind, compression = detect_format(self.name, path.name, "json", "parquet")
        with (
            open_parquet(path, schema)
            if kind == "parquet"
            else open_json_lines(path, compression) as file
        ):
            yield lambda alert: file.write(_encode_line(alert))

    def _partition_path(self, alert: Alert) -> str:
        """Return the partition of an alert, relative to the folder of the lake."""
        account = alert.fields.account or ""
        is_account = _ACCOUNT_PATTERN.fullmatch(account)
        return (
            f"ext/{self.lake_source}/region={self.region}"
            f"/accountId={account if is_account else EXTERNAL_ACCOUNT}/eventDay={alert.time:%Y%m%d}"
        )


def _encode_line(alert: Alert) -> bytes:
    return msgspec.json.encode(make_detection_finding(alert)) + b"\n"


def _validate_name(option_name: str, value: str, example: str) -> None:
    if not _NAME_PATTERN.fullmatch(value):
        raise UsageError(
            f"to-ocsf: {option_name} is `{value}`, which is not valid in a folder's name. Give a "
            f"name such as `{option_name} {example}`."
        )
