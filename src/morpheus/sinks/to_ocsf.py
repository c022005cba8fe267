"""`to-ocsf`: alerts as Detection Findings of the Open Cybersecurity Schema Framework."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from morpheus.errors import UsageError
from morpheus.folder import folder_at
from morpheus.records import Batch, Rows, Scored
from morpheus.sinks.alert import Alert, Alerts
from morpheus.sinks.alert_files import check_file, format_of, json_lines, lake, parquet_file
from morpheus.sinks.detection_finding import DetectionFinding, schema_of
from morpheus.sinks.ocsf import finding
from morpheus.stage import Stage, option

NO_ACCOUNT = "external"
"""Partition of alerts from outside any AWS account, as Security Lake wants it."""

_ACCOUNT = re.compile(r"\d{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Write = Callable[[Alert], object]


@dataclass(frozen=True)
class ToOcsf(Stage):
    """Write alerts as OCSF Detection Findings, to a file or into the folders of Security Lake.

    Takes events with scores, or rows, and hands them on; all that reach it are written, so put
    `filter` in front of it. With `explain` before it, a finding says which columns are unusual and
    what would have been usual (`anomaly_analyses`). Its severity goes by `pvalue`: ask for that
    with `add-scores --label`. The schema's version is 1.8.

    Example: `to-ocsf --filename=findings.jsonl`, or `to-ocsf --lake_folder=lake --region=eu-west-1`
    """

    name = "to-ocsf"
    takes = (Scored, Rows)
    scope = "run"
    sink = True
    needs_fingerprint = False

    filename: str | None = option(None, "File to write: JSON lines, plain or packed, or Parquet.")
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )
    lake_folder: str | None = option(
        None,
        "Instead of a file: folder, or `s3://bucket`, for Parquet files as Security Lake wants "
        "them, `ext/SOURCE/region=.../accountId=.../eventDay=.../`.",
    )
    lake_source: str = option("morpheus", "SOURCE: name of the custom source.")
    region: str | None = option(None, "AWS region that the lake is in.")

    def check(self) -> None:
        """Refuse neither and both of a file and a lake, and what cannot be written."""
        if (self.filename is None) == (self.lake_folder is None):
            raise UsageError(
                "to-ocsf: where to? Give either `--filename findings.jsonl`, or "
                "`--lake_folder lake --region eu-west-1`."
            )
        if self.filename is not None:
            format_of(self.name, self.filename, "json", "parquet")
            check_file(self.name, self.filename, overwrite=self.overwrite)
            return
        _check_name("--region", self.region or "", "eu-west-1")
        _check_name("--lake_source", self.lake_source, "morpheus")
        folder_at(self.lake_folder or "").reach()

    def writes(self) -> Path | None:
        """The file."""
        return None if self.filename is None else Path(self.filename)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Write the findings of each batch, and hand it on."""
        alerts = Alerts(self.name, self.settings.source)
        with self._open() as write:
            for batch in batches:
                for alert in alerts.of(batch):
                    write(alert)
                yield batch

    @contextmanager
    def _open(self) -> Iterator[Write]:
        """Where alerts are written to."""
        schema = schema_of(DetectionFinding)
        if self.lake_folder is not None:
            with lake(folder_at(self.lake_folder), schema) as parts:
                yield lambda alert: parts.write(self._partition(alert), _line(alert))
            return
        path = Path(self.filename or "")
        kind, packing = format_of(self.name, path.name, "json", "parquet")
        with parquet_file(path, schema) if kind == "parquet" else json_lines(path, packing) as file:
            yield lambda alert: file.write(_line(alert))

    def _partition(self, alert: Alert) -> str:
        """Folder of an alert, below the lake's."""
        account = alert.traits.account or ""
        known = _ACCOUNT.fullmatch(account)
        return (
            f"ext/{self.lake_source}/region={self.region}"
            f"/accountId={account if known else NO_ACCOUNT}/eventDay={alert.time:%Y%m%d}"
        )


def _line(alert: Alert) -> bytes:
    return msgspec.json.encode(finding(alert)) + b"\n"


def _check_name(option_: str, value: str, example: str) -> None:
    if not _NAME.fullmatch(value):
        raise UsageError(
            f"to-ocsf: {option_} is `{value}`, which cannot be part of a folder's name. Give one "
            f"such as `{option_} {example}`."
        )
