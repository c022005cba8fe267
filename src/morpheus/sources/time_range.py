"""Parses times, and limits the input to a time range.

`TimeRange` filters events by time. It also skips files and folders by the dates in their names
(partition pruning).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec
import polars as pl

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.seasonality.detector import parse_duration
from morpheus.text import suggest

UTC_DATETIME = pl.Datetime("us", "UTC")
_NAIVE_DATETIME = pl.Datetime("us")
DEFAULT_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_FRACTION_FORMAT = "%Y-%m-%dT%H:%M:%S%.fZ"

_CLOCK = (
    r"(?<hour>\d{1,2}):(?<minute>\d{2})(?::(?<second>\d{2})(?:[.,](?<fraction>\d+))?)?"
    r"\s*(?<half>[AaPp])?(?:\.?[Mm]\.?)?"
)
_OFFSET = r"(?<hours>[01]?\d|2[0-3]):?(?<minutes>[0-5]\d)?"
_ZONE = (
    rf"\s*(?:(?:[Zz]|\(?(?:UTC|GMT)\)?|\(?(?:UTC|GMT)?(?<sign>[+-]){_OFFSET}\)?)"
    r"(?:\[[\w/+-]+\]|\s*\([A-Za-z ]+\))?)?"
)
_WEEKDAY = r"^\s*(?:(?i:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_MONTHS = (
    "jan(?:uary)?",
    "feb(?:ruary)?",
    "mar(?:ch)?",
    "apr(?:il)?",
    "may",
    "june?",
    "july?",
    "aug(?:ust)?",
    "sept?(?:ember)?",
    "oct(?:ober)?",
    "nov(?:ember)?",
    "dec(?:ember)?",
)
_MONTH_NUMBERS = {name[:3]: f"{number:02}" for number, name in enumerate(_MONTHS, 1)}
_MONTH = rf"(?<name>(?i:{'|'.join(_MONTHS)}))\.?"
_YEAR = r"(?<year>\d{4})"
_DAY = r"(?<day>\d{1,2})"
_DIGITS = rf"{_YEAR}(?<month>\d{{2}})(?<day>\d{{2}})"
_CLOCK_DIGITS = r"(?<hour>\d{2})(?<minute>\d{2})"
_SECOND = r"(?<second>\d{2})"
_CALENDAR_PATTERNS = (
    # 2026-10-06T08:03:00Z, 2026/10/06 08:03:00 +0200
    rf"^\s*{_YEAR}[-/](?<month>\d{{1,2}})[-/]{_DAY}(?:[Tt]|,?\s+){_CLOCK}{_ZONE}\s*$",
    # 20261006T080300Z
    rf"^\s*{_DIGITS}[Tt ]{_CLOCK_DIGITS}(?:{_SECOND}(?:[.,](?<fraction>\d+))?)?{_ZONE}\s*$",
    # 20261006080300
    rf"^\s*{_DIGITS}{_CLOCK_DIGITS}{_SECOND}\s*$",
    # Oct 6, 2026 8:03:00 AM; October 06, 2026, 08:03:00 (UTC+00:00)
    rf"{_WEEKDAY}{_MONTH}\s+{_DAY}(?:st|nd|rd|th)?,?\s+{_YEAR},?\s+(?:(?:at|@)\s+)?{_CLOCK}{_ZONE}\s*$",
    # Tue, 06 Oct 2026 08:03:00 +0000 (RFC 2822); 06/Oct/2026:08:03:00 +0000
    rf"{_WEEKDAY}{_DAY}[\s/-]{_MONTH}[\s/-]{_YEAR}(?::|,?\s+)(?:(?:at|@)\s+)?{_CLOCK}{_ZONE}\s*$",
    # Tue Oct  6 08:03:00 UTC 2026
    rf"{_WEEKDAY}{_MONTH}\s+{_DAY}\s+{_CLOCK}{_ZONE}\s+{_YEAR}\s*$",
)
"""Times that have one meaning. A time without a zone is UTC."""
_CALENDAR_PARTS = (
    "year",
    "month",
    "name",
    "day",
    "hour",
    "minute",
    "second",
    "fraction",
    "half",
    "sign",
    "hours",
    "minutes",
)
_EPOCH_PATTERN = r"^\s*(?<whole>\d{9,10}|\d{12,13}|\d{15,16}|\d{18,19})(?:\.(?<fraction>\d*))?\s*$"
_EPOCH_DIGITS = ((10, 0), (13, 3), (16, 6), (19, 9))
"""Maximum length of an epoch number, and the number of its digits after the seconds."""
_EXPONENT_PATTERN = r"^\s*\d\.\d{7,}[eE]\+?(?:9|1[0-8])\s*$"
"""Numbers such as 1.79127378E12. Shorter ones are rounded, as in spreadsheets."""
_WRAPPED_PATTERNS = (
    (r"""/Date\((\d{1,15})(?:[+-]\d{4})?\)""", 1_000),
    (r"""^\{"\$date":(?:\{"\$numberLong":)?"?([^"{}]+)"?\}{1,2}$""", 0),
    (r"""^\{(?:"nanos":\d+,)?"seconds":"?(\d+)"?\}$""", 1_000_000),
)
"""Times inside other text, as PowerShell, MongoDB and Protocol Buffers write them, with the number
of microseconds of a unit; 0 for a time in another form."""
_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999, in microseconds since 1970."""


def current_time() -> datetime:
    """Return the time by the clock of this machine, in UTC."""
    return datetime.now(UTC)


_NO_TIME = re.compile(r"0+[a-z ]*")


def parse_allowance(text: str, *, option: str) -> timedelta:
    """Parse a duration that may be zero.

    Args:
        text: The duration, such as `20m` or `0`.
        option: Name of the option, for messages.

    Raises:
        UsageError: `text` is not a duration.

    >>> parse_allowance("20m", option="--lag"), parse_allowance("0s", option="--lag")
    (datetime.timedelta(seconds=1200), datetime.timedelta(0))
    """
    if _NO_TIME.fullmatch(text.strip().lower()):
        return timedelta(0)
    return timedelta(seconds=parse_duration(text, option=option))


def parse_times(texts: pl.Series, time_format: str = "") -> pl.Series:
    """Parse times that have one meaning: ISO 8601, epoch numbers, and names of months.

    The separator may be `T` or a space. Fraction and zone are optional; times without a zone are
    UTC. A number is seconds since 1970, with any fraction; with 12 or 13 digits before the point it
    is milliseconds, with 15 or 16 microseconds, with 18 or 19 nanoseconds. `/Date(...)/` is read
    too. Days and months as two numbers (`10/1/2026`) need a `time_format`.

    Args:
        texts: The times.
        time_format: Another format to try first, for `strftime`; empty for none.

    Returns:
        Datetimes in UTC with microseconds; null for a missing or invalid time, and for years
        outside 1 to 9999.

    >>> texts = pl.Series(["2021-10-01T01:54:25Z", "2021-10-01 03:54:25.5+02:00", "yesterday"])
    >>> [str(time) for time in parse_times(texts)]
    ['2021-10-01 01:54:25+00:00', '2021-10-01 01:54:25.500000+00:00', 'None']
    >>> str(parse_times(pl.Series(["1633053265500"]))[0])
    '2021-10-01 01:54:25.500000+00:00'
    """
    if time_format:
        times = texts.str.to_datetime(time_format, strict=False, time_unit="us", time_zone="UTC")
        times = _limit_years(times)
        return times.zip_with(times.is_not_null(), parse_times(texts))
    times = texts.str.to_datetime(DEFAULT_TIME_FORMAT, strict=False, time_unit="us")
    # Polars moves a leap second to the next minute, and accepts the year 0, which Python does not.
    moved = (times.dt.second() == 0) & texts.str.ends_with(":60Z")
    times = _limit_years(
        times.zip_with(~moved.fill_null(value=False), times - timedelta(seconds=1))
    )
    # Most logs have one format, which Polars parses fast; regular expressions parse the rest.
    unparsed = times.is_null() & texts.is_not_null()
    if not unparsed.any():
        return times.dt.replace_time_zone("UTC")
    rest = _parse_other_forms(texts.filter(unparsed))
    return times.scatter(unparsed.arg_true(), rest).dt.replace_time_zone("UTC")


def _parse_other_forms(texts: pl.Series) -> pl.Series:
    times = texts.str.to_datetime(_FRACTION_FORMAT, strict=False, time_unit="us")
    times = times.set((times.dt.second() == 0) & texts.str.contains(":60.", literal=True), None)
    parsers: list[Callable[[pl.Series], pl.Series]] = [
        _parse_epoch,
        *(partial(_parse_calendar, pattern=pattern) for pattern in _CALENDAR_PATTERNS),
        _parse_exponent,
        *(partial(_parse_wrapped, pattern=p, unit=unit) for p, unit in _WRAPPED_PATTERNS),
    ]
    for parse in parsers:
        unparsed = times.is_null()
        if not unparsed.any():
            break
        times = times.scatter(unparsed.arg_true(), parse(texts.filter(unparsed)))
    return _limit_years(times)


def _limit_years(times: pl.Series) -> pl.Series:
    """Replace times that Python cannot represent with null."""
    number = times.to_physical()
    possible = number.is_between(_FIRST_MICROSECOND, _LAST_MICROSECOND)
    return times if possible.all() else times.set(~possible.fill_null(value=True), None)


def _parse_epoch(texts: pl.Series) -> pl.Series:
    """Parse epoch numbers exactly, digit by digit."""
    part = texts.str.extract_groups(_EPOCH_PATTERN).struct.unnest()
    length = pl.col("whole").str.len_chars()
    digits = pl.lit(0)
    for longest, after in reversed(_EPOCH_DIGITS):
        digits = pl.when(length <= longest).then(after).otherwise(digits)
    fraction = pl.concat_str(
        pl.col("whole").str.tail(digits), pl.col("fraction").fill_null("")
    ).str.slice(0, 6)
    seconds = pl.col("whole").str.head(length.cast(pl.Int64) - digits)
    microseconds = pl.concat_str(seconds, fraction.str.pad_end(6, "0"))
    return part.select(_from_microseconds(microseconds).alias(texts.name)).to_series()


def _from_microseconds(number: pl.Expr) -> pl.Expr:
    return number.cast(pl.Int64, strict=False).cast(_NAIVE_DATETIME)


def _parse_exponent(texts: pl.Series) -> pl.Series:
    """Parse numbers with an exponent, such as 1.79127378E12."""
    number = pl.when(texts.str.contains(_EXPONENT_PATTERN)).then(
        pl.col(texts.name).str.strip_chars().cast(pl.Float64, strict=False)
    )
    whole = texts.to_frame().select(number.round().cast(pl.Int64, strict=False).cast(pl.String))
    return _parse_epoch(whole.to_series())


def _parse_wrapped(texts: pl.Series, pattern: str, unit: int) -> pl.Series:
    """Parse times inside other text, such as `/Date(1790841600000)/`."""
    inner = texts.str.extract(pattern, 1)
    if not unit:
        return parse_times(inner).dt.replace_time_zone(None)
    return (inner.cast(pl.Int64, strict=False) * unit).cast(_NAIVE_DATETIME)


def _parse_calendar(texts: pl.Series, pattern: str) -> pl.Series:
    """Parse dates with a time of day."""
    part = texts.str.extract_groups(pattern).struct.unnest()
    absent = [name for name in _CALENDAR_PARTS if name not in part.columns]
    part = part.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    month = pl.coalesce(
        "month", pl.col("name").str.to_lowercase().str.head(3).replace(_MONTH_NUMBERS)
    )
    numbers = (month, "day", _hour_of_day(), "minute", _second())
    date_parts = (pl.col(x) if isinstance(x, str) else x for x in numbers)
    text = pl.concat_str("year", *(each.str.zfill(2) for each in date_parts), separator=" ")
    fraction = pl.col("fraction").fill_null("").str.slice(0, 6).str.pad_end(6, "0")
    hours, minutes = (pl.col(unit).fill_null("0").cast(pl.Int64) for unit in ("hours", "minutes"))
    east = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    return part.select(
        (
            text.str.to_datetime("%Y %m %d %H %M %S", strict=False, time_unit="us")
            + pl.duration(microseconds=fraction.cast(pl.Int64))
            - pl.duration(minutes=east * (hours * 60 + minutes))
        ).alias(texts.name)
    ).to_series()


def _second() -> pl.Expr:
    """Return the second; a leap second stays in its minute."""
    second = pl.col("second").fill_null("00")
    return pl.when(second == "60").then(pl.lit("59")).otherwise(second)


def _hour_of_day() -> pl.Expr:
    """Return the hour from 0 to 23, of a clock with 12 or 24 hours."""
    hour = pl.col("hour").cast(pl.Int64, strict=False)
    afternoon = pl.when(pl.col("half").str.to_lowercase() == "p").then(12).otherwise(0)
    twelve = pl.when(hour.is_between(1, 12)).then(hour % 12 + afternoon)
    return pl.when(pl.col("half").is_null()).then(hour).otherwise(twelve).cast(pl.String)


_TWO_NUMBERS = re.compile(
    r"^\s*(\d{1,2})([/.-])(\d{1,2})[/.-](\d{2}|\d{4})"
    r"(?:(,?\s+|T)(\d{1,2}):\d{2}(:\d{2})?([.]\d+)?(\s*[AaPp][Mm])?)?\s*$"
)
"""A date whose day and month are numbers, in either order."""
_EXAMPLE_MOMENT = datetime(2024, 5, 31, 9, 30, 17, tzinfo=UTC)


def suggest_time_formats(text: str) -> list[str]:
    """Suggest formats of a time whose day and month may be in either order; the likely one first.

    >>> suggest_time_formats("10/1/2026, 8:00:00 AM")
    ['%m/%d/%Y, %I:%M:%S %p', '%d/%m/%Y, %I:%M:%S %p']
    >>> suggest_time_formats("31.05.2024 09:30"), suggest_time_formats("yesterday")
    (['%d.%m.%Y %H:%M'], [])
    """
    found = _TWO_NUMBERS.match(text)
    if not found:
        return []
    first, mark, second, year, between, hour, seconds, fraction, half = found.groups()
    clock = ("%I" if half else "%H") + ":%M" + (":%S" if seconds else "")
    clock += "%.f" if fraction else ""
    clock += half[:-2].replace("\u202f", " ") + "%p" if half else ""
    rest = f"{mark}{'%Y' if len(year) == 4 else '%y'}" + (f"{between}{clock}" if hour else "")  # noqa: PLR2004 - digits
    day_first, month_first = f"%d{mark}%m{rest}", f"%m{mark}%d{rest}"
    if int(first) > 12:  # noqa: PLR2004 - months
        return [day_first]
    if int(second) > 12:  # noqa: PLR2004 - months
        return [month_first]
    return [day_first, month_first] if mark == "." else [month_first, day_first]


def check_time_format(time_format: str, option: str) -> None:
    """Check that a format for `strftime` describes a complete time.

    Args:
        time_format: The format; empty for none.
        option: The option that gave it, for messages.

    Raises:
        UsageError: The format is not valid, or lacks a part of the date.
    """
    if not time_format:
        return
    if "%Z" in time_format:
        raise UsageError(
            f"{option}: `%Z`, the name of a time zone, has no fixed meaning and cannot be read. "
            "Use `%z` for offsets such as +0200."
        )
    try:
        text = pl.Series([_EXAMPLE_MOMENT]).dt.strftime(time_format)
        parsed = text.str.to_datetime(time_format, strict=False, time_unit="us", time_zone="UTC")[0]
    except pl.exceptions.PolarsError:
        parsed = None
    if parsed is None or parsed.date() != _EXAMPLE_MOMENT.date():
        raise UsageError(
            f"{option}: `{time_format}` is not the format of a time with year, month and day. "
            "Write it as for `strftime`: `%d.%m.%Y %H:%M:%S`, or `%m/%d/%Y, %I:%M:%S %p`."
        )


def check_timezone(name: str, option: str) -> None:
    """Check the name of a time zone.

    Args:
        name: Name in the IANA database, such as `Europe/Berlin`.
        option: The option that gave it, for messages.

    Raises:
        UsageError: There is no such time zone.
    """
    if not isinstance(name, str):  # in Python, anything can be given
        raise UsageError(
            f"{option}: a text such as `Europe/Berlin` is required, not {type(name).__name__}."
        )
    try:
        pl.Series([_EXAMPLE_MOMENT]).dt.convert_time_zone(ZoneInfo(name).key)
    except (ZoneInfoNotFoundError, ValueError, OSError, pl.exceptions.PolarsError) as error:
        hint = suggest(name, available_timezones()) or " Give a name such as `Europe/Berlin`."
        raise UsageError(f"{option}: there is no time zone `{name}`.{hint}") from error


EARLIEST_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""Earlier events are implausible: no log of this kind is older."""
CLOCK_TOLERANCE = timedelta(days=1)
"""Events that are this much later than the clock are implausible."""


class PlausibleTimes(msgspec.Struct, frozen=True):
    """The times that events can have. Other times come from wrong clocks, or are damaged.

    Attributes:
        latest: Latest plausible time; None for no limit.
        action: What happens to other events: `fail`, `skip` or `keep`.
    """

    latest: datetime | None = None
    action: str = "keep"

    @classmethod
    def from_option(cls, action: str) -> PlausibleTimes:
        """Make the limits for this moment.

        Args:
            action: `--implausible_time`.
        """
        return cls(datetime.now(UTC) + CLOCK_TOLERANCE, action.lower())

    def at_this_moment(self) -> PlausibleTimes:
        """Return the limits for the present clock: a watched directory is read for a long time."""
        return self if self.latest is None else type(self).from_option(self.action)

    def find_implausible(self, times: pl.Series) -> pl.Series | None:
        """Return which events have an implausible time; None if none has.

        Args:
            times: Times of events.
        """
        if self.action == "keep" or times.is_empty():
            return None
        low, high = times.min(), times.max()
        too_late = self.latest is not None and high is not None and high > self.latest  # type: ignore[operator] # datetimes
        if low is None or (low >= EARLIEST_TIME and not too_late):  # type: ignore[operator] # datetimes
            return None
        implausible = times < EARLIEST_TIME
        if self.latest is not None:
            implausible |= times > self.latest
        return implausible.fill_null(value=False)

    def describe(self, time: datetime) -> str:
        """Return why a time is implausible."""
        if time < EARLIEST_TIME:
            return f"is before {EARLIEST_TIME.year}"
        return "is more than a day after the clock of this machine"


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


_DATE_FOLDER = re.compile(r"/(?=(?:\w+=)?20\d\d(?:[-/\d]|$))")


def name_partition(file: str) -> str:
    """Return the folder whose files are delivered together: the one above the dates.

    >>> name_partition("s3://logs/AWSLogs/111111111111/CloudTrail/eu-west-1/2026/01/05/a.json.gz")
    's3://logs/AWSLogs/111111111111/CloudTrail/eu-west-1'
    >>> name_partition("/var/log/app/a.jsonl")
    '/var/log/app'
    """
    folder = _DATE_FOLDER.split(file.rpartition("/")[0], maxsplit=1)[0]
    # The state file and metrics take UTF-8 alone, which the name of a folder need not be.
    return folder.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


GAP_DAYS = 14
"""Days of hours with events that are remembered, to know what is usual."""
_MIN_GAP_HOURS, _MIN_USUAL_SHARE = 48, 0.9
_MAX_GAP_PARTITIONS = 1000


class Gap(NamedTuple):
    """Hours without an event.

    Attributes:
        partition: The folder, or the partition of a topic, without events.
        start: The first hour, as a number since 1970.
        hours: Number of hours.
    """

    partition: str
    start: int
    hours: int

    def __str__(self) -> str:
        start, end = (
            datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)
            for hour in (self.start, self.start + self.hours)
        )
        unit = "hour" if self.hours == 1 else "hours"
        return (
            f"{self.partition}: no event for {self.hours:,} {unit}, from {start:%Y-%m-%d %H:%M} to "
            f"{end:%Y-%m-%d %H:%M} UTC"
        )


def find_gaps(hours: Mapping[str, Iterable[int]], end: int) -> list[Gap]:
    """Find hours without an event in parts of the input that have events in nearly all hours.

    Such a part has events in at least 48 hours, and in 90 % of the hours outside of its longest
    gaps: one, and another for each week. Others, such as those of office hours, have no gaps.

    Args:
        hours: Hours with events of each partition, as numbers since 1970.
        end: The hour in which the input ends; a partition can have none until then.

    >>> office = [24 * day + hour for day in range(9) for hour in range(8, 18)]
    >>> machines = [hour for hour in range(100) if not 70 <= hour < 75]
    >>> [gap[1:] for gap in find_gaps({"office": office, "machines": machines}, 100)]
    [(70, 5)]
    """
    gaps = []
    for name, given in hours.items():
        found = sorted(set(given))
        steps = [*pairwise(found), *([(found[-1], end)] if found and end > found[-1] else [])]
        silent = sorted(
            (Gap(name, before + 1, after - before - 1) for before, after in steps),
            key=lambda gap: (-gap.hours, gap.start),
        )
        span = found[-1] - found[0] + 1 if found else 0
        longest = [gap for gap in silent[: 1 + span // (7 * 24)] if gap.hours]
        inner = sum(gap.hours for gap in longest if gap.start <= found[-1])
        is_usual = len(found) >= _MIN_GAP_HOURS and len(found) >= _MIN_USUAL_SHARE * (span - inner)
        gaps += longest if is_usual else []
    return sorted(gaps, key=lambda gap: (gap.start, gap.partition))


def merge_hours(*parts: Mapping[str, Iterable[int]]) -> dict[str, set[int]]:
    """Join the hours with events of each partition; of the latest 14 days, and 1,000 partitions."""
    merged: dict[str, set[int]] = {}
    for part in parts:
        for name, hours in part.items():
            merged[name] = merged.pop(name, set()).union(hours)
    latest = max((max(hours) for hours in merged.values() if hours), default=0)
    kept = {
        name: {hour for hour in hours if hour > latest - 24 * GAP_DAYS}
        for name, hours in merged.items()
    }
    return {name: kept[name] for name in list(kept)[-_MAX_GAP_PARTITIONS:] if kept[name]}


class Interval(msgspec.Struct, frozen=True):
    """A half-open time interval [start, end)."""

    start: datetime
    end: datetime


class TimeRange(msgspec.Struct, frozen=True):
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
        cls,
        start: str | None,
        end: str | None,
        duration: str | None,
        allowed_lateness: str | None,
        lag: str | None = None,
    ) -> TimeRange | None:
        """Make a time range from options.

        A duration counts from `start`; without one, back from `end`; without either, back from now.
        With a lag, a range that would end now, or has no end, ends that long before now.

        Args:
            start: `--start_time`.
            end: `--end_time`.
            duration: `--duration`.
            allowed_lateness: `--delivery_delay`.
            lag: `--lag`.

        Returns:
            The time range; None if no option is given.

        Raises:
            UsageError: An option cannot be parsed, or options contradict each other.

        >>> time_range = TimeRange.from_options("2024-05-31", None, "1d", None)
        >>> time_range.end.isoformat()
        '2024-06-01T00:00:00+00:00'
        """
        given = [text for text in (start, end, duration) if text is not None]
        if lag is not None:
            if end is not None or (start is not None and duration is not None):
                raise UsageError(
                    "--lag: moves the end of a time range that ends now, but this one has an end. "
                    "Leave out --lag, or give only --duration or --start_time."
                )
            allowed_lateness = lag if allowed_lateness is None else allowed_lateness
            end = (current_time() - parse_allowance(lag, option="--lag")).isoformat()
            given.append(end)
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
            last = first + length if first else last or current_time()
            first = first or last - length
        if first and last and first >= last:
            name = "--end_time" if lag is None else "--lag"
            advice = "a later end" if lag is None else "an earlier --start_time"
            raise UsageError(
                f"{name}: the time range ends at {_format_moment(last)}, but starts at "
                f"{_format_moment(first)}. Give {advice}."
            )
        late = (
            None
            if allowed_lateness is None
            else parse_allowance(allowed_lateness, option="--delivery_delay")
        )
        return cls(first, last, late)

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


def find_date_format(folders: Sequence[str]) -> tuple[int, str] | None:
    """Return where the last date in folder names begins, and its format for `strftime`.

    Returns:
        Index of the first folder of the date, and the format; None if there is no date, or if
        folders in the order of their names are not in the order of their dates.

    >>> find_date_format(["eu-west-1", "2024", "05", "07"]), find_date_format(["dt=20240507", "x"])
    ((1, '%Y/%m/%d'), (0, 'dt=%Y%m%d'))
    >>> find_date_format(["year=2024", "month=5"]) is None
    True
    """
    date = _find_last_date(folders)
    if date is None:
        return None
    names = folders[date.start_index : date.end_index]
    codes = iter(("%Y", "%m", "%d", "%H"))
    formats = []
    for name in names:
        key, equals, value = name.rpartition("=")
        if _DATE_PATTERN.match(value):
            formats.append(f"{key}{equals}" + ("-" if "-" in value else "").join(islice(codes, 3)))
        else:
            formats.append(f"{key}{equals}{next(codes)}")
    year, month, day, hour = [*date.parts, *(1, 1, 1, 0)[len(date.parts) :]]
    try:
        shown = datetime(year, month, day, hour, tzinfo=UTC).strftime("/".join(formats))
    except ValueError:
        return None
    return (date.start_index, "/".join(formats)) if shown == "/".join(names) else None


def begins_date(folder: str) -> bool:
    """Return whether the name of a folder is a date or the year of one.

    >>> begins_date("2024"), begins_date("dt=2024-05-31"), begins_date("eu-west-1")
    (True, True, False)
    """
    return bool(_find_dates([folder]))


class _PartialDate(msgspec.Struct):
    """Year, month, day and hour, as far as folder names give them.

    Attributes:
        parts: The numbers.
        is_partition: Whether the folders are partitions (`year=2024`).
        end_index: Index after the last folder of the date.
        start_index: Index of its first folder.
    """

    parts: list[int]
    is_partition: bool
    end_index: int
    start_index: int = 0

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
                    [int(part) for part in whole.groups()],
                    is_partition=True,
                    end_index=index + 1,
                    start_index=index,
                )
            )
        elif found and found[-1].extend(name, value, index):
            continue
        elif _YEAR_PATTERN.fullmatch(value) and (name in YEAR_KEYS if equals else True):
            found.append(_PartialDate([int(value)], bool(equals), index + 1, index))
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
