"""From the text of a time to a datetime, in UTC."""

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
    """Read ISO 8601 times: `T` or a space, with or without fraction and zone; without is UTC.

    A number is seconds since 1970; of 13, 16 or 19 digits, milliseconds, micro- or nanoseconds.

    Args:
        texts: The times.
        time_format: How they are written otherwise, as `strftime` has it; without a zone is UTC.

    Returns:
        Datetimes in UTC, to the microsecond; null where there is no text, or it is no time.

    >>> texts = pl.Series(["2021-10-01T01:54:25Z", "2021-10-01 03:54:25.5+02:00", "yesterday"])
    >>> [str(time) for time in parse_times(texts)]
    ['2021-10-01 01:54:25+00:00', '2021-10-01 01:54:25.500000+00:00', 'None']
    >>> str(parse_times(pl.Series(["1633053265500"]))[0])
    '2021-10-01 01:54:25.500000+00:00'
    """
    if time_format:
        told = texts.str.to_datetime(time_format, strict=False, time_unit="us", time_zone="UTC")
        return told.zip_with(told.is_not_null(), parse_times(texts))
    times = texts.str.to_datetime(
        DEFAULT_TIME_FORMAT, strict=False, time_unit="us"
    ).dt.replace_time_zone("UTC")
    odd = times.is_null() & texts.is_not_null()
    if not odd.any():
        return times
    rest = texts.filter(odd)
    return times.scatter(
        odd.arg_true(), _parse_iso(rest).zip_with(~_is_epoch(rest), _parse_epoch(rest))
    )


def _is_epoch(texts: pl.Series) -> pl.Series:
    return texts.str.contains(_EPOCH_PATTERN)


def _parse_epoch(texts: pl.Series) -> pl.Series:
    """Read times that are numbers."""
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
"""Names of partitions that say when the events in them were, or were delivered."""

_DATE_PATTERN = re.compile(r"(20\d\d)-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])")
_DELIVERY_TIME_PATTERN = re.compile(r"_(20\d{6}T\d{4})Z_")
"""How CloudTrail's own files are named: by the minute of their delivery."""
_YEAR_PATTERN = re.compile(r"20\d\d")
_DATE_PARTS = (
    (YEAR_KEYS, _YEAR_PATTERN),
    (MONTH_KEYS, re.compile(r"0?[1-9]|1[0-2]")),
    (DAY_KEYS, re.compile(r"0?[1-9]|[12]\d|3[01]")),
    (HOUR_KEYS, re.compile(r"[01]?\d|2[0-3]")),
)


@dataclass(frozen=True)
class Interval:
    """A time from its first moment to the one behind its last."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class TimeRange:
    """A time whose events are read; all others are left out, and counted.

    Attributes:
        start: Its first moment, in UTC; None for no beginning.
        end: The moment behind its last; None for no end.
        allowed_lateness: How much later its events may have been delivered, so that what was delivered by then
            is read too; None to go by whole days, those that it touches.
    """

    start: datetime | None = None
    end: datetime | None = None
    allowed_lateness: timedelta | None = None

    @classmethod
    def from_options(
        cls, start: str | None, end: str | None, duration: str | None, allowed_lateness: str | None
    ) -> TimeRange | None:
        """Read the options; None where none is given.

        A duration is counted from `start`, or else back from `end`, or else back from now.

        Raises:
            UsageError: One cannot be read, or they contradict each other.

        >>> period = TimeRange.of("2024-05-31", None, "1d", None)
        >>> period.end.isoformat()
        '2024-06-01T00:00:00+00:00'
        """
        given = [text for text in (start, end, duration) if text is not None]
        if not given:
            if allowed_lateness is not None:
                raise UsageError("--delivery_delay: it goes with a period. Give --start_time, too.")
            return None
        if len(given) > 2:  # noqa: PLR2004 - all three
            raise UsageError(
                "--duration: the period has a start and an end. Give two of the three."
            )
        first, last = _parse_moment(start, "--start_time"), _parse_moment(end, "--end_time")
        if duration is not None:
            length = timedelta(seconds=parse_duration(duration, option="--duration"))
            last = first + length if first else last or datetime.now(UTC)
            first = first or last - length
        if first and last and first >= last:
            raise UsageError(
                f"--end_time: the period ends at {_format_moment(last)}, and begins at "
                f"{_format_moment(first)}. Give an end that is later."
            )
        late = (
            None
            if allowed_lateness is None
            else parse_duration(allowed_lateness, option="--delivery_delay")
        )
        return cls(first, last, None if late is None else timedelta(seconds=late))

    def preceding(self, duration: str, option: str) -> TimeRange:
        """The time of some length just before this one.

        Raises:
            UsageError: It has no beginning, or that is no duration.
        """
        length = timedelta(seconds=parse_duration(duration, option=option))
        if self.start is None:
            raise UsageError(f"{option}: the period has no beginning. Give --start_time, too.")
        return TimeRange(self.start - length, self.start, self.allowed_lateness)

    def base_depth(self, base: Sequence[str]) -> int:
        """How many folders of a base say nothing of what is below it.

        None do, unless by their dates the base would lie outside: it has been asked for, and may
        be called after the day on which somebody put the logs there.
        """
        date = _find_last_date(base)
        return 0 if date is None or self.may_overlap_dir(base) else date.end_index

    def may_overlap_dir(self, folders: Sequence[str]) -> bool:
        """Whether a folder may hold some of its events, by the dates in its name and those above.

        >>> day = TimeRange.of("2024-05-31", None, "1d", None)
        >>> day.may_overlap_dir(["us-east-1", "2024", "05"]), day.may_overlap_dir(["us-east-1", "2024", "06", "01"])
        (True, False)
        """
        span = parse_interval(folders)
        return span is None or (
            (self.start is None or span.end > self.start)
            and (
                self.end is None or span.start < self.end + (self.allowed_lateness or timedelta(0))
            )
        )

    def may_contain_file(self, folders: Sequence[str], name: str) -> bool:
        """Whether a file may hold some of its events, by its folders and its own name."""
        delivered = _DELIVERY_TIME_PATTERN.search(name)
        if delivered:
            time = datetime.strptime(delivered[1] + "Z", "%Y%m%dT%H%M%z")
            # A file holds nothing that was later than its delivery, but what was long before it.
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
        """The events in it."""
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
    """The time that folders name, at least to the month or to the year of a partition.

    Known are days (`2024/05/31`, as CloudTrail's, or `2024-05-31`) and partitions (`year=2024`,
    `month=05`, `day=31`, `hour=07`; or `date=2024-05-31`, `eventDay=20240531` and the like). Of
    several dates the last counts, which is nearest to the files.

    >>> parse_interval(["region=us-east-1", "eventDay=20240531"]).start.isoformat()
    '2024-05-31T00:00:00+00:00'
    >>> parse_interval(["users", "2024"]) is None
    True
    """
    date = _find_last_date(folders)
    if date is None:
        return None
    numbers = date.parts
    year, month, day, hour = [*numbers, *(1, 1, 1, 0)[len(numbers) :]]
    try:
        start = datetime(year, month, day, hour, tzinfo=UTC)
    except ValueError:
        return None
    return Interval(start, _get_interval_end(start, len(numbers)))


@dataclass
class _PartialDate:
    """Year, month, day, hour, as far as folders name them.

    Attributes:
        parts: These.
        is_partition: Whether partitions name them.
        end_index: The place behind the last of them.
    """

    parts: list[int]
    is_partition: bool
    end_index: int

    def extend(self, name: str, value: str, index: int) -> bool:
        """Take over the next number, if it is that."""
        names, form = _DATE_PARTS[min(len(self.parts), len(_DATE_PARTS) - 1)]
        fits = name in names if self.is_partition else not name and index == self.end_index
        if not fits or len(self.parts) == len(_DATE_PARTS) or not form.fullmatch(value):
            return False
        self.parts.append(int(value))
        self.end_index = index + 1
        return True


def _find_last_date(folders: Sequence[str]) -> _PartialDate | None:
    """The last date that folders name; a year alone is none, unless it says so."""
    dates = [date for date in _find_dates(folders) if len(date.parts) > 1 or date.is_partition]
    return dates[-1] if dates else None


def _find_dates(folders: Sequence[str]) -> list[_PartialDate]:
    """The dates that folders name, one after the other."""
    found: list[_PartialDate] = []
    for place, folder in enumerate(folders):
        name, equals, value = folder.rpartition("=")
        name = name.lower()
        whole = _DATE_PATTERN.match(value)
        if whole and (name in DATE_KEYS if equals else value == whole[0]):
            found.append(
                _PartialDate(
                    [int(part) for part in whole.groups()], is_partition=True, end_index=place + 1
                )
            )
        elif found and found[-1].extend(name, value, place):
            continue
        elif _YEAR_PATTERN.fullmatch(value) and (name in YEAR_KEYS if equals else True):
            found.append(_PartialDate([int(value)], is_partition=bool(equals), end_index=place + 1))
    return found


def _get_interval_end(start: datetime, num_parts: int) -> datetime:
    """The moment behind a year, a month, a day or an hour."""
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
            f"{option}: {text!r} is no time. Give `2024-05-31`, or `2024-05-31T09:30:00Z`; "
            "without a zone it is in UTC."
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _format_moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
