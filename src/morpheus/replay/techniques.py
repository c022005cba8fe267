"""Load attack techniques: the CloudTrail records that each leaves, one file per technique."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from morpheus.errors import RecordError, UsageError
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.compression import detect_file_type, read_bytes, to_utf8
from morpheus.sources.envelopes import split_records
from morpheus.sources.time_range import parse_times

CloudTrailRecord = dict[str, Any]
AWS_SERVICE = "AWSService"
"""Value of `userIdentity.type` for calls that AWS services make."""
_SHIPPED = "data/techniques"
_REQUIRED_FIELDS = ("eventTime", "eventName", "eventSource")


class _TechniqueInfo(msgspec.Struct):
    """Optional fields of a technique's file, next to its `Records`."""

    title: str = ""
    mitre: tuple[str, ...] = ()


@dataclass(frozen=True)
class Technique:
    """An attack technique, as the log records it.

    Attributes:
        name: Name of the file, without suffix.
        records: CloudTrail records of the intruder, at least one, in time order.
        title: What the intruder does, in a few words.
        mitre: Ids of the technique in MITRE ATT&CK.
    """

    name: str
    records: tuple[CloudTrailRecord, ...]
    title: str = ""
    mitre: tuple[str, ...] = ()

    @cached_property
    def offsets(self) -> tuple[timedelta, ...]:
        """Time of each record after the first."""
        times = _parse_times(self.records)
        return tuple(time - times[0] for time in times)

    @property
    def duration(self) -> timedelta:
        """Time from the first record to the last."""
        return self.offsets[-1]


def load_techniques(folder: str | None = None) -> list[Technique]:
    """Load the techniques of a folder, by name. By default, the shipped ones.

    A file holds one technique: CloudTrail records in any JSON that `from-cloudtrail` reads, and
    optionally `title`, and `mitre`, a list of ids. Calls that AWS services made are left out,
    because they are in the services' logs and not in the user's.

    Raises:
        UsageError: There is no such folder, or it holds no technique.
        RecordError: A file does not hold CloudTrail records.

    >>> [technique.mitre for technique in load_techniques() if technique.name == "stop-trail"]
    [('T1562.008',)]
    """
    place = Path(str(resources.files("morpheus") / _SHIPPED))
    if folder is not None:
        place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(
            f"--techniques: there is no folder `{place}`. Give a folder that holds a JSON file of "
            "CloudTrail records for each technique, or omit the option for the shipped techniques."
        )
    files = sorted(
        path for path in place.iterdir() if path.is_file() and detect_file_type(path) == "json"
    )
    if not files:
        raise UsageError(
            f"--techniques: folder `{place}` holds no `.json` or `.jsonl` file. Put the CloudTrail "
            "records of each technique into a file with the name of the technique."
        )
    return [read_technique(path) for path in files]


def read_technique(path: Path) -> Technique:
    """Read one technique.

    Raises:
        RecordError: The file does not hold CloudTrail records, or none of an intruder.
    """
    data = to_utf8(read_bytes(path))
    split = split_records(data, CLOUDTRAIL_FORMAT.record_finder)
    if split.errors:
        line, reason = split.errors[0]
        raise RecordError(reason, file=path, line=line)
    records = [
        _parse_record(text, path, line)
        for text, line in zip(split.raw_records, split.line_numbers, strict=True)
    ]
    own = [record for record in records if record["userIdentity"].get("type") != AWS_SERVICE]
    if not own:
        raise RecordError("the file has no record of an intruder; add one", file=path)
    name = path.name.partition(".json")[0]
    info = _decode_info(data)
    return Technique(name, tuple(_sort_by_time(own)), info.title, info.mitre)


def _parse_record(text: bytes | msgspec.Raw, path: Path, line: int) -> CloudTrailRecord:
    expected = "an object with `eventTime`, `eventName`, `eventSource` and `userIdentity`"
    try:
        record = msgspec.json.decode(text, type=CloudTrailRecord)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{error}; a record is {expected}", file=path, line=line) from error
    complete = all(isinstance(record.get(name), str) for name in _REQUIRED_FIELDS)
    if not complete or not isinstance(record.get("userIdentity"), dict):
        raise RecordError(f"a CloudTrail record is {expected}", file=path, line=line)
    if parse_times(pl.Series([record["eventTime"]])).has_nulls():
        found = f"`eventTime` is {record['eventTime']!r}, which is not a time like"
        raise RecordError(f"{found} 2024-05-31T09:30:00Z", file=path, line=line)
    return record


def _decode_info(data: bytes) -> _TechniqueInfo:
    try:
        return msgspec.json.decode(data, type=_TechniqueInfo)
    except msgspec.MsgspecError:  # a list of records, or JSON lines
        return _TechniqueInfo()


def _sort_by_time(records: list[CloudTrailRecord]) -> list[CloudTrailRecord]:
    """Sort records by time.

    LookupEvents lists the latest first. So a file that starts with its latest record is reversed,
    which also puts records of the same time in order.
    """
    times = _parse_times(records)
    if times[0] > times[-1]:
        records, times = records[::-1], times[::-1]
    order = sorted(range(len(records)), key=times.__getitem__)
    return [records[at] for at in order]


def _parse_times(records: Sequence[CloudTrailRecord]) -> list[datetime]:
    return parse_times(pl.Series([record["eventTime"] for record in records])).to_list()
