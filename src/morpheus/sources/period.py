"""The period whose events are read: from its options, and what folders and files tell of theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.rhythm.bins import seconds

YEARS, MONTHS, DAYS, HOURS = {"year", "y"}, {"month", "m"}, {"day", "d"}, {"hour", "h"}
DATES = {"date", "day", "dt", "ds", "eventday", "event_day", "eventdate", "event_date", "event_dt"}
"""Names of partitions that say when the events in them were, or were delivered."""

_DATE = re.compile(r"(20\d\d)-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])")
_DELIVERED = re.compile(r"_(20\d{6}T\d{4})Z_")
"""How CloudTrail's own files are named: by the minute of their delivery."""
_YEAR = re.compile(r"20\d\d")
_STEPS = (
    (YEARS, _YEAR),
    (MONTHS, re.compile(r"0?[1-9]|1[0-2]")),
    (DAYS, re.compile(r"0?[1-9]|[12]\d|3[01]")),
    (HOURS, re.compile(r"[01]?\d|2[0-3]")),
)


@dataclass(frozen=True)
class Span:
    """A time from its first moment to the one behind its last."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Period:
    """A time whose events are read; all others are left out, and counted.

    Attributes:
        start: Its first moment, in UTC; None for no beginning.
        end: The moment behind its last; None for no end.
        delay: How much later its events may have been delivered, so that what was delivered by then
            is read too; None to go by whole days, those that it touches.
    """

    start: datetime | None = None
    end: datetime | None = None
    delay: timedelta | None = None

    @classmethod
    def of(
        cls, start: str | None, end: str | None, duration: str | None, delay: str | None
    ) -> Period | None:
        """Read the options; None where none is given.

        A duration is counted from `start`, or else back from `end`, or else back from now.

        Raises:
            UsageError: One cannot be read, or they contradict each other.

        >>> period = Period.of("2024-05-31", None, "1d", None)
        >>> period.end.isoformat()
        '2024-06-01T00:00:00+00:00'
        """
        given = [text for text in (start, end, duration) if text is not None]
        if not given:
            if delay is not None:
                raise UsageError("--delivery_delay: it goes with a period. Give --start_time, too.")
            return None
        if len(given) > 2:  # noqa: PLR2004 - all three
            raise UsageError(
                "--duration: the period has a start and an end. Give two of the three."
            )
        first, last = _moment(start, "--start_time"), _moment(end, "--end_time")
        if duration is not None:
            length = timedelta(seconds=seconds(duration, option="--duration"))
            last = first + length if first else last or datetime.now(UTC)
            first = first or last - length
        if first and last and first >= last:
            raise UsageError(
                f"--end_time: the period ends at {_written(last)}, and begins at "
                f"{_written(first)}. Give an end that is later."
            )
        late = None if delay is None else seconds(delay, option="--delivery_delay")
        return cls(first, last, None if late is None else timedelta(seconds=late))

    def before(self, duration: str, option: str) -> Period:
        """The time of some length just before this one.

        Raises:
            UsageError: It has no beginning, or that is no duration.
        """
        length = timedelta(seconds=seconds(duration, option=option))
        if self.start is None:
            raise UsageError(f"{option}: the period has no beginning. Give --start_time, too.")
        return Period(self.start - length, self.start, self.delay)

    def ignored(self, base: Sequence[str]) -> int:
        """How many folders of a base say nothing of what is below it.

        None do, unless by their dates the base would lie outside: it has been asked for, and may
        be called after the day on which somebody put the logs there.
        """
        date = _date(base)
        return 0 if date is None or self.reaches(base) else date.end

    def reaches(self, folders: Sequence[str]) -> bool:
        """Whether a folder may hold some of its events, by the dates in its name and those above.

        >>> day = Period.of("2024-05-31", None, "1d", None)
        >>> day.reaches(["us-east-1", "2024", "05"]), day.reaches(["us-east-1", "2024", "06", "01"])
        (True, False)
        """
        span = span_of(folders)
        return span is None or (
            (self.start is None or span.end > self.start)
            and (self.end is None or span.start < self.end + (self.delay or timedelta(0)))
        )

    def holds(self, folders: Sequence[str], name: str) -> bool:
        """Whether a file may hold some of its events, by its folders and its own name."""
        delivered = _DELIVERED.search(name)
        if delivered:
            time = datetime.strptime(delivered[1] + "Z", "%Y%m%dT%H%M%z")
            # A file holds nothing that was later than its delivery, but what was long before it.
            if self.start is not None and time + timedelta(minutes=1) <= self.start:
                return False
            if self.end is not None and self.delay is not None and time > self.end + self.delay:
                return False
        return self.reaches(folders)

    def kept(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The events in it."""
        inside = [
            *([pl.col(TIME) >= self.start] if self.start else []),
            *([pl.col(TIME) < self.end] if self.end else []),
        ]
        return frame.filter(*inside)

    def __str__(self) -> str:
        start = f"from {_written(self.start)}" if self.start else ""
        end = f"until before {_written(self.end)}" if self.end else ""
        return f"{start} {end}".strip()


def span_of(folders: Sequence[str]) -> Span | None:
    """The time that folders name, at least to the month or to the year of a partition.

    Known are days (`2024/05/31`, as CloudTrail's, or `2024-05-31`) and partitions (`year=2024`,
    `month=05`, `day=31`, `hour=07`; or `date=2024-05-31`, `eventDay=20240531` and the like). Of
    several dates the last counts, which is nearest to the files.

    >>> span_of(["region=us-east-1", "eventDay=20240531"]).start.isoformat()
    '2024-05-31T00:00:00+00:00'
    >>> span_of(["users", "2024"]) is None
    True
    """
    date = _date(folders)
    if date is None:
        return None
    numbers = date.numbers
    year, month, day, hour = [*numbers, *(1, 1, 1, 0)[len(numbers) :]]
    try:
        start = datetime(year, month, day, hour, tzinfo=UTC)
    except ValueError:
        return None
    return Span(start, _next(start, len(numbers)))


@dataclass
class _Date:
    """Year, month, day, hour, as far as folders name them.

    Attributes:
        numbers: These.
        named: Whether partitions name them.
        end: The place behind the last of them.
    """

    numbers: list[int]
    named: bool
    end: int

    def goes_on(self, name: str, value: str, place: int) -> bool:
        """Take over the next number, if it is that."""
        names, form = _STEPS[min(len(self.numbers), len(_STEPS) - 1)]
        fits = name in names if self.named else not name and place == self.end
        if not fits or len(self.numbers) == len(_STEPS) or not form.fullmatch(value):
            return False
        self.numbers.append(int(value))
        self.end = place + 1
        return True


def _date(folders: Sequence[str]) -> _Date | None:
    """The last date that folders name; a year alone is none, unless it says so."""
    dates = [date for date in _dates(folders) if len(date.numbers) > 1 or date.named]
    return dates[-1] if dates else None


def _dates(folders: Sequence[str]) -> list[_Date]:
    """The dates that folders name, one after the other."""
    found: list[_Date] = []
    for place, folder in enumerate(folders):
        name, equals, value = folder.rpartition("=")
        name = name.lower()
        whole = _DATE.match(value)
        if whole and (name in DATES if equals else value == whole[0]):
            found.append(_Date([int(part) for part in whole.groups()], named=True, end=place + 1))
        elif found and found[-1].goes_on(name, value, place):
            continue
        elif _YEAR.fullmatch(value) and (name in YEARS if equals else True):
            found.append(_Date([int(value)], named=bool(equals), end=place + 1))
    return found


def _next(start: datetime, known: int) -> datetime:
    """The moment behind a year, a month, a day or an hour."""
    if known == 1:
        return start.replace(year=start.year + 1)
    if known == 2:  # noqa: PLR2004 - year and month
        return (start + timedelta(days=31)).replace(day=1)
    return start + (timedelta(days=1) if known == 3 else timedelta(hours=1))  # noqa: PLR2004 - year, month and day


def _moment(text: str | None, option: str) -> datetime | None:
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


def _written(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")
