"""From the text of a time to a datetime, in UTC."""

from __future__ import annotations

import polars as pl

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
    times = texts.str.to_datetime(DEFAULT_TIME_FORMAT, strict=False, time_unit="us").dt.replace_time_zone("UTC")
    odd = times.is_null() & texts.is_not_null()
    if not odd.any():
        return times
    rest = texts.filter(odd)
    return times.scatter(odd.arg_true(), _parse_iso(rest).zip_with(~_is_epoch(rest), _parse_epoch(rest)))


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
