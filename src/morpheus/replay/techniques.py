"""Attack techniques: the CloudTrail records that each leaves, one file a technique."""

from __future__ import annotations

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
from morpheus.sources.json_records import split_records
from morpheus.sources.time_range import parse_times

CloudTrailRecord = dict[str, Any]
AWS_SERVICE = "AWSService"


class _TechniqueInfo(msgspec.Struct):
    """What a technique's file says beside its records."""

    title: str = ""
    mitre: tuple[str, ...] = ()


@dataclass(frozen=True)
class Technique:
    """What an attack technique leaves in the log.

    Attributes:
        name: As its file is named.
        records: Native CloudTrail records of the intruder, at least one, in time order.
        title: What the intruder does, in a few words.
        mitre: The technique's ids in MITRE ATT&CK.
    """

    name: str
    records: tuple[CloudTrailRecord, ...]
    title: str = ""
    mitre: tuple[str, ...] = ()

    @cached_property
    def offsets(self) -> tuple[timedelta, ...]:
        """Time of each record since the first one."""
        times = _parse_times(self.records)
        return tuple(time - times[0] for time in times)

    @property
    def duration(self) -> timedelta:
        """Time from the first record to the last."""
        return self.offsets[-1]


def load_techniques(folder: str | None = None) -> list[Technique]:
    """Load the techniques of a folder, by name; the shipped ones by default.

    A file holds one technique: CloudTrail records in any JSON that `from-cloudtrail` reads. Beside
    `Records` it may have a `title`, and `mitre`, a list of ids. What AWS services did meanwhile is
    left out: it is in the service's log, not in the victim's.

    Raises:
        UsageError: There is no such folder, or it holds no technique.
        BadRecord: A file is no CloudTrail.

    >>> [one.mitre for one in load_techniques() if one.name == "stop-trail"]
    [('T1562.008',)]
    """
    place = Path(str(resources.files("morpheus") / "data" / "techniques"))
    if folder is not None:
        place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(
            f"--techniques: there is no folder `{place}`. Give a folder that holds a JSON file of "
            "CloudTrail records for each technique, or leave the option out for those shipped."
        )
    files = sorted(
        path for path in place.iterdir() if path.is_file() and detect_file_type(path) == "json"
    )
    if not files:
        raise UsageError(
            f"--techniques: folder `{place}` holds no `.json` or `.jsonl` file. Put the CloudTrail "
            "records of each technique into a file of its own, named as the technique is."
        )
    return [read_technique(path) for path in files]


def read_technique(path: Path) -> Technique:
    """Read one technique.

    Raises:
        BadRecord: The file is no CloudTrail, or holds no record of an intruder.
    """
    data = to_utf8(read_bytes(path))
    found = split_records(data, CLOUDTRAIL_FORMAT.unwrap)
    if found.errors:
        line, why = found.errors[0]
        raise RecordError(why, file=path, line=line)
    records = [
        _parse_record(text, path, at)
        for text, at in zip(found.raw_records, found.line_numbers, strict=True)
    ]
    own = [one for one in records if one["userIdentity"].get("type") != AWS_SERVICE]
    if not own:
        raise RecordError("no record of an intruder is in it; put some there", file=path)
    name = path.name.partition(".json")[0]
    about = _decode_info(data)
    return Technique(name, tuple(_sort_by_time(own)), about.title, about.mitre)


def _parse_record(text: bytes | msgspec.Raw, path: Path, line: int) -> CloudTrailRecord:
    wanted = "an object with `eventTime`, `eventName`, `eventSource` and `userIdentity`"
    try:
        record = msgspec.json.decode(text, type=CloudTrailRecord)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{error}; a record is {wanted}", file=path, line=line) from error
    there = all(isinstance(record.get(n), str) for n in ("eventTime", "eventName", "eventSource"))
    if not there or not isinstance(record.get("userIdentity"), dict):
        raise RecordError(f"a CloudTrail record is {wanted}", file=path, line=line)
    if parse_times(pl.Series([record["eventTime"]])).has_nulls():
        found = f"`eventTime` is {record['eventTime']!r}, which is not a time like"
        raise RecordError(f"{found} 2024-05-31T09:30:00Z", file=path, line=line)
    return record


def _decode_info(data: bytes) -> _TechniqueInfo:
    try:
        return msgspec.json.decode(data, type=_TechniqueInfo)
    except msgspec.MsgspecError:
        return _TechniqueInfo()


def _sort_by_time(records: list[CloudTrailRecord]) -> list[CloudTrailRecord]:
    """Put records in time order; LookupEvents gives the latest first, equal times included."""
    times = _parse_times(records)
    if times[0] > times[-1]:
        records, times = records[::-1], times[::-1]
    order = sorted(range(len(records)), key=times.__getitem__)
    return [records[at] for at in order]


def _parse_times(records: list[CloudTrailRecord] | tuple[CloudTrailRecord, ...]) -> list[datetime]:
    return parse_times(pl.Series([one["eventTime"] for one in records])).to_list()
