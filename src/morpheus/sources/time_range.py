"""Parses times, and limits the input to a time range.

`TimeRange` filters events by time. It also skips files and folders by the dates in their names
(partition pruning).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.seasonality.detector import parse_duration

UTC_DATETIME = pl.Datetime("us", "UTC")
DEFAULT_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

_ISO_PATTERN = (
    r"^\s*(?<date>\d{4}-\d{2}-\d{2})[Tt ](?<clock>\d{2}:\d{2})(?<second>:\d{2})?"
    r"(?:[.,](?<fraction>\d+))?\s*(?:[Zz]|UTC|(?<sign>[+-])(?<hours>\d{2}):?(?<minutes>\d{2})?)?\s*$"
)
_EPOCH_PATTERN = r"^\s*(?<seconds>\d{9,10})(?:(?<parts>\d{3}|\d{6}|\d{9})|\.(?<fraction>\d+))?\s*$"


def parse_times(texts: pl.Series, time_format: str = "") -> pl.Series:
    """Parse ISO 8601 times and epoch numbers.

    The separator may be `T` or a space. Fraction and zone are optional; times without a zone are
    UTC. A number is seconds since 1970; with 13, 16 or 19 digits it is milliseconds, microseconds
    or nanoseconds.

    Args:
        texts: The times.
        time_format: Another format to try first, for `strftime`; empty for none.

    Returns:
        Datetimes in UTC with microseconds; null for a missing or invalid time.

    >>> texts = pl.Series(["2021-10-01T01:54:25Z", "2021-10-01 03:54:25.5+02:00", "yesterday"])
    >>> [str(time) for time in parse_times(texts)]
    ['2021-10-01 01:54:25+00:00', '2021-10-01 01:54:25.500000+00:00', 'None']
    >>> str(parse_times(pl.Series(["1633053265500"]))[0])
    '2021-10-01 01:54:25.500000+00:00'
    """
    if time_format:
        times = texts.str.to_datetime(time_format, strict=False, time_unit="us", time_zone="UTC")
        return times.zip_with(times.is_not_null(), parse_times(texts))
    times = texts.str.to_datetime(
        DEFAULT_TIME_FORMAT, strict=False, time_unit="us"
    ).dt.replace_time_zone("UTC")
    # Most logs have one format, which Polars parses fast; regular expressions parse the rest.
    unparsed = times.is_null() & texts.is_not_null()
    if not unparsed.any():
        return times
    rest = texts.filter(unparsed)
    return times.scatter(
        unparsed.arg_true(), _parse_iso(rest).zip_with(~_is_epoch(rest), _parse_epoch(rest))
    )


def _is_epoch(texts: pl.Series) -> pl.Series:
    return texts.str.contains(_EPOCH_PATTERN)


def _parse_epoch(texts: pl.Series) -> pl.Series:
    """Parse epoch numbers."""
    part = texts.str.extract_groups(_EPOCH_PATTERN).struct.unnest()
    fraction = pl.coalesce("parts", "fraction", pl.lit("")).str.slice(0, 6).str.pad_end(6, "0")
    microseconds = pl.concat_str("seconds", fraction).cast(pl.Int64, strict=False)
    return part.select(microseconds.cast(UTC_DATETIME).alias(texts.name)).to_series()


def _parse_iso(texts: pl.Series) -> pl.Series:
    part = texts.str.extract_groups(_ISO_PATTERN).struct.unnest()
    second = pl.col("second").fill_null(":00")
    clock = pl.concat_str("date", pl.lit("T"), "clock", second)
    fraction = pl.col("fraction").fill_null("").str.slice(0, 6).str.pad_end(6, "0")
    hours, minutes = (pl.col(unit).fill_null("0").cast(pl.Int64) for unit in ("hours", "minutes"))
    east = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    return part.select(
        (
            clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False, time_unit="us")
            + pl.duration(microseconds=fraction.cast(pl.Int64))
            - pl.duration(minutes=east * (hours * 60 + minutes))
        )
        .dt.replace_time_zone("UTC")
        .alias(texts.name)
    ).to_series()


YEAR_KEYS, MONTH_KEYS, DAY_KEYS, HOUR_KEYS = (
    {"year", "y"},
    {"month", "m"},
    {"day", "d"},
    {"hour", "h"},
)
DATE_KEYS = {
    "date",
    "day",
    "dt",
    "ds",
    "eventday",
    "event_day",
    "eventdate",
    "event_date",
    "event_dt",
}
"""Names of partitions whose value is the time of the events, or of their delivery."""

_DATE_PATTERN = re.compile(r"(20\d\d)-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])")
_DELIVERY_TIME_PATTERN = re.compile(r"_(20\d{6}T\d{4})Z_")
"""The minute of delivery in the names of CloudTrail's files."""
_YEAR_PATTERN = re.compile(r"20\d\d")
_DATE_PARTS = (
    (YEAR_KEYS, _YEAR_PATTERN),
    (MONTH_KEYS, re.compile(r"0?[1-9]|1[0-2]")),
    (DAY_KEYS, re.compile(r"0?[1-9]|[12]\d|3[01]")),
    (HOUR_KEYS, re.compile(r"[01]?\d|2[0-3]")),
)


@dataclass(frozen=True)
class Interval:
    """A half-open time interval [start, end)."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class TimeRange:
    """Time range of the events to read. Other events are skipped and counted.

    Attributes:
        start: Start, inclusive, in UTC; None for no limit.
        end: End, exclusive; None for no limit.
        allowed_lateness: How long after the range its events may be delivered: files delivered
            until then are read. None to read the files of the days in the range.
    """

    start: datetime | None = None
    end: datetime | None = None
    allowed_lateness: timedelta | None = None

    @classmethod
    def from_options(
        cls, start: str | None, end: str | None, duration: str | None, allowed_lateness: str | None
    ) -> TimeRange | None:
        """Make a time range from options.

        A duration counts from `start`; without one, back from `end`; without either, back from now.

        Args:
            start: `--start_time`.
            end: `--end_time`.
            duration: `--duration`.
            allowed_lateness: `--delivery_delay`.

        Returns:
            The time range; None if no option is given.

        Raises:
            UsageError: An option cannot be parsed, or options contradict each other.

        >>> time_range = TimeRange.from_options("2024-05-31", None, "1d", None)
        >>> time_range.end.isoformat()
        '2024-06-01T00:00:00+00:00'
        """
        given = [text for text in (start, end, duration) if text is not None]
        if not given:
            if allowed_lateness is not None:
                raise UsageError("--delivery_delay: needs a time range. Add --start_time.")
            return None
        if len(given) > 2:  # noqa: PLR2004 - all three
            raise UsageError(
                "--duration: the time range has a start and an end already. Give two of the three."
            )
        first, last = _parse_moment(start, "--start_time"), _parse_moment(end, "--end_time")
        if duration is not None:
            length = timedelta(seconds=parse_duration(duration, option="--duration"))
            last = first + length if first else last or datetime.now(UTC)
            first = first or last - length
        if first and last and first >= last:
            raise UsageError(
                f"--end_time: the time range ends at {_format_moment(last)}, but starts at "
                f"{_format_moment(first)}. Give a later end."
            )
        late = (
            None
            if allowed_lateness is None
            else parse_duration(allowed_lateness, option="--delivery_delay")
        )
        return cls(first, last, None if late is None else timedelta(seconds=late))

    def preceding(self, duration: str, option: str) -> TimeRange:
        """Return the time range of a given length that ends where this one starts.

        Args:
            duration: The length.
            option: The option that gave it, for messages.

        Raises:
            UsageError: This range has no start, or the duration is not valid.
        """
        length = timedelta(seconds=parse_duration(duration, option=option))
        if self.start is None:
            raise UsageError(f"{option}: the time range has no start. Add --start_time.")
        return TimeRange(self.start - length, self.start, self.allowed_lateness)

    def base_depth(self, base: Sequence[str]) -> int:
        """Return how many folders of a base path to ignore when looking for dates.

        This is zero unless the dates in the base are outside the range. Such a base was given
        explicitly; its date may be the day on which the logs were copied.
        """
        date = _find_last_date(base)
        return 0 if date is None or self.may_overlap_dir(base) else date.end_index

    def may_overlap_dir(self, folders: Sequence[str]) -> bool:
        """Return whether a folder may contain events of the range, by the dates in its path.

        >>> day = TimeRange.from_options("2024-05-31", None, "1d", None)
        >>> day.may_overlap_dir(["2024", "05"]), day.may_overlap_dir(["2024", "06", "01"])
        (True, False)
        """
        interval = parse_interval(folders)
        if interval is None:
            return True
        lateness = self.allowed_lateness or timedelta(0)
        return (self.start is None or interval.end > self.start) and (
            self.end is None or interval.start < self.end + lateness
        )

    def may_contain_file(self, folders: Sequence[str], name: str) -> bool:
        """Return whether a file may contain events of the range, by its folders and its name."""
        delivered = _DELIVERY_TIME_PATTERN.search(name)
        if delivered:
            time = datetime.strptime(delivered[1] + "Z", "%Y%m%dT%H%M%z")
            # A file has no events after its delivery, but may have events from long before.
            if self.start is not None and time + timedelta(minutes=1) <= self.start:
                return False
            if (
                self.end is not None
                and self.allowed_lateness is not None
                and time > self.end + self.allowed_lateness
            ):
                return False
        return self.may_overlap_dir(folders)

    def filter(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the events in the range."""
        inside = [
            *([pl.col(TIME) >= self.start] if self.start else []),
            *([pl.col(TIME) < self.end] if self.end else []),
        ]
        return frame.filter(*inside)

    def __str__(self) -> str:
        start = f"from {_format_moment(self.start)}" if self.start else ""
        end = f"until before {_format_moment(self.end)}" if self.end else ""
        return f"{start} {end}".strip()


def parse_interval(folders: Sequence[str]) -> Interval | None:
    """Return the time interval in folder names; None if there is no date.

    Supports days (`2024/05/31`, as in CloudTrail, or `2024-05-31`) and partitions (`year=2024`,
    `month=05`, `day=31`, `hour=07`; or `date=2024-05-31`, `eventDay=20240531` and similar). A year
    alone must be a partition. The last date counts, because it is nearest to the files.

    >>> parse_interval(["region=us-east-1", "eventDay=20240531"]).start.isoformat()
    '2024-05-31T00:00:00+00:00'
    >>> parse_interval(["users", "2024"]) is None
    True
    """
    date = _find_last_date(folders)
    if date is None:
        return None
    parts = date.parts
    year, month, day, hour = [*parts, *(1, 1, 1, 0)[len(parts) :]]
    try:
        start = datetime(year, month, day, hour, tzinfo=UTC)
    except ValueError:
        return None
    return Interval(start, _get_interval_end(start, len(parts)))


@dataclass
class _PartialDate:
    """Year, month, day and hour, as far as folder names give them.

    Attributes:
        parts: The numbers.
        is_partition: Whether the folders are partitions (`year=2024`).
        end_index: Index after the last folder of the date.
    """

    parts: list[int]
    is_partition: bool
    end_index: int

    def extend(self, name: str, value: str, index: int) -> bool:
        """Add the next part of the date, and return whether the folder has it."""
        names, pattern = _DATE_PARTS[min(len(self.parts), len(_DATE_PARTS) - 1)]
        fits = name in names if self.is_partition else not name and index == self.end_index
        if not fits or len(self.parts) == len(_DATE_PARTS) or not pattern.fullmatch(value):
            return False
        self.parts.append(int(value))
        self.end_index = index + 1
        return True


def _find_last_date(folders: Sequence[str]) -> _PartialDate | None:
    """Return the last date in folder names. A year alone must be a partition."""
    dates = [date for date in _find_dates(folders) if len(date.parts) > 1 or date.is_partition]
    return dates[-1] if dates else None


def _find_dates(folders: Sequence[str]) -> list[_PartialDate]:
    """Return all dates in folder names, in order."""
    found: list[_PartialDate] = []
    for index, folder in enumerate(folders):
        name, equals, value = folder.rpartition("=")
        name = name.lower()
        whole = _DATE_PATTERN.match(value)
        if whole and (name in DATE_KEYS if equals else value == whole[0]):
            found.append(
                _PartialDate(
                    [int(part) for part in whole.groups()], is_partition=True, end_index=index + 1
                )
            )
        elif found and found[-1].extend(name, value, index):
            continue
        elif _YEAR_PATTERN.fullmatch(value) and (name in YEAR_KEYS if equals else True):
            found.append(_PartialDate([int(value)], is_partition=bool(equals), end_index=index + 1))
    return found


def _get_interval_end(start: datetime, num_parts: int) -> datetime:
    """Return the end of a year, month, day or hour, exclusive."""
    if num_parts == 1:
        return start.replace(year=start.year + 1)
    if num_parts == 2:  # noqa: PLR2004 - year and month
        return (start + timedelta(days=31)).replace(day=1)
    return start + (timedelta(days=1) if num_parts == 3 else timedelta(hours=1))  # noqa: PLR2004 - year, month and day


def _parse_moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(
            f"{option}: {text!r} is not a valid time. Use `2024-05-31` or "
            "`2024-05-31T09:30:00Z`; times without a zone are UTC."
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _format_moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
