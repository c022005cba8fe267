from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.errors import UsageError
from morpheus.sources.time_range import (
    UTC_DATETIME,
    PlausibleTimes,
    check_time_format,
    parse_times,
    suggest_time_formats,
)


def one(text: str | None) -> datetime | None:
    [time] = parse_times(pl.Series([text], dtype=pl.String)).to_list()
    assert time is None or isinstance(time, datetime)
    return time


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-31T09:30:00Z",
        "2024-05-31 09:30:00Z",
        "2024-05-31 09:30:00",
        "2024-05-31T09:30",
        "2024-05-31T09:30:00.000Z",
        "2024-05-31 09:30:00.000 UTC",
        "2024-05-31T11:30:00+02:00",
        "2024-05-31T06:00:00-0330",
        "2024-05-31T11:30:00+02",
        " 2024-05-31T09:30:00z ",
        "1717147800",
        "1717147800.0",
        "1717147800000",
        "1717147800000.0",
        "1717147800000000",
        "1717147800000000000",
        "1.7171478000E9",
        "1.71714780e+12",
        "2024/05/31 09:30:00",
        "2024-05-31 09:30:00,000",
        "2024-05-31, 9:30 AM",
        "2024-05-31T09:30:00Z[UTC]",
        "2024-05-31T11:30:00+02:00[Europe/Berlin]",
        "20240531T093000Z",
        "20240531T1130+0200",
        "20240531 093000",
        "20240531093000",
        "Fri, 31 May 2024 09:30:00 +0000",
        "31 May 2024 11:30:00 +0200 (CEST)",
        "31/May/2024:09:30:00 +0000",
        "May 31, 2024 9:30:00 AM",
        "May 31, 2024 @ 09:30:00.000",
        "May 31, 2024, 09:30:00 (UTC+00:00)",
        "Friday, May 31, 2024 9:30:00 AM",
        "Fri May 31 09:30:00 2024",
        "Fri May 31 09:30:00 UTC 2024",
        "Fri May 31 2024 11:30:00 GMT+0200 (Central European Summer Time)",
        "/Date(1717147800000)/",
        "/Date(1717147800000+0200)/",
        r"\/Date(1717147800000)\/",
        '{"$date":"2024-05-31T09:30:00Z"}',
        '{"$date":{"$numberLong":"1717147800000"}}',
        '{"DisplayHint":2,"value":"/Date(1717147800000)/"}',
        '{"nanos":0,"seconds":"1717147800"}',
    ],
)
def test_all_formats_give_the_same_time(text: str) -> None:
    assert one(text) == datetime(2024, 5, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-13-01T00:00:00Z",
        "2024-02-30T00:00:00Z",
        "2024-05-31T25:00:00Z",
        "2024-05-31 13:00 PM",
        "17171478",
        "1.71715E+12",
        "May 31",
        "31 Mai 2024 09:30:00",
        "Fri, 31 May 2024 09:30:00 EST",
        "2024-05-31T09:30:00[Europe/Berlin]",
        "10/1/2024, 8:00:00 AM",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-05:00",
        "99999999999999999999",
        "2024-05-31T09:30:00+25:00",
        "2024-05-31T09:30:00+99:99",
        "2024-05-31T09:30:00-24:00",
        "2024-05-31 09:30:00 +0560",
        "20240531T093000+9900",
        "Fri, 31 May 2024 09:30:00 +2500",
        "31/May/2024:09:30:00 +0075",
        "May 31, 2024, 09:30:00 (UTC+25:00)",
        "Fri May 31 09:30:00 GMT+30 2024",
        None,
    ],
)
def test_invalid_time_is_null(text: str | None) -> None:
    assert one(text) is None


@pytest.mark.parametrize("offset", ["+25:00", "-24:00", "+05:60"])
def test_an_offset_of_no_time_zone_is_null_in_a_format_of_the_user_too(offset: str) -> None:
    texts = pl.Series([f"31.05.2024 09:30 {offset}", f"2024-05-31T09:30:00{offset}"])
    for time_format in ("%d.%m.%Y %H:%M %z", "%Y-%m-%dT%H:%M:%S%z"):
        assert parse_times(texts, time_format).to_list() == [None, None]


def test_time_keeps_microseconds() -> None:
    assert one("2024-05-31T09:30:00.1234567Z") == datetime(2024, 5, 31, 9, 30, 0, 123456, UTC)


def test_column_can_have_several_time_formats() -> None:
    texts = pl.Series(["2024-05-31T09:30:00Z", "nonsense", "2024-05-31 09:30:01", None])
    times = parse_times(texts)
    assert times.dtype == UTC_DATETIME
    assert times.is_null().to_list() == [False, True, False, True]


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=ZONES))  # noqa: DTZ001 - hypothesis adds the zone
def test_isoformat_is_read_back(moment: datetime) -> None:
    assert one(moment.isoformat()) == moment


def test_numbers_keep_their_fraction() -> None:
    assert one("1717147800.5") == datetime(2024, 5, 31, 9, 30, 0, 500_000, UTC)
    assert one("1717147800250.0") == datetime(2024, 5, 31, 9, 30, 0, 250_000, UTC)
    assert one("946684800000") == datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2024-05-31T09:30:60Z", "2024-05-31 09:30:60 UTC"])
def test_leap_second_stays_in_its_minute(text: str) -> None:
    assert one(text) == datetime(2024, 5, 31, 9, 30, 59, tzinfo=UTC)


def test_noon_and_midnight_of_a_twelve_hour_clock() -> None:
    assert one("May 31, 2024 12:05:00 AM") == datetime(2024, 5, 31, 0, 5, tzinfo=UTC)
    assert one("May 31, 2024 12:05:00 PM") == datetime(2024, 5, 31, 12, 5, tzinfo=UTC)


def test_given_format_comes_first_and_other_forms_are_still_read() -> None:
    texts = pl.Series(["1/10/2026, 8:00:00 AM", "2026-10-01T08:00:00Z"])
    times = parse_times(texts, "%d/%m/%Y, %I:%M:%S %p")
    assert times.to_list() == [datetime(2026, 10, 1, 8, 0, tzinfo=UTC)] * 2


@pytest.mark.parametrize(
    ("text", "formats"),
    [
        ("13/1/2026 08:00", ["%d/%m/%Y %H:%M"]),
        ("1/13/2026 08:00:00 AM", ["%m/%d/%Y %I:%M:%S %p"]),
        ("1.10.2026", ["%d.%m.%Y", "%m.%d.%Y"]),
        ("5/31/2024, 9:00:00.000 AM", ["%m/%d/%Y, %I:%M:%S%.f %p"]),
        ("31/5/24 9:00", ["%d/%m/%y %H:%M"]),
        ("soon", []),
    ],
)
def test_ambiguous_dates_suggest_their_formats(text: str, formats: list[str]) -> None:
    assert suggest_time_formats(text) == formats
    times = [parse_times(pl.Series([text]), each) for each in formats]
    assert not any(time.is_null().any() for time in times)


@pytest.mark.parametrize("wrong", ["%Q", "%d.%m. %H:%M", "%H:%M", "%Y-%m-%d %H:%M %Z", "now"])
def test_wrong_time_format_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="--time_format: "):
        check_time_format(wrong, "--time_format")
    check_time_format("%m/%d/%Y, %I:%M:%S %p", "--time_format")
    check_time_format("", "--time_format")


LIMITS = PlausibleTimes(datetime(2026, 11, 30, tzinfo=UTC), "skip")


@pytest.mark.parametrize("year", [1, 1970, 1999, 2027, 9999])
def test_times_before_2000_and_after_the_clock_are_implausible(year: int) -> None:
    times = pl.Series([datetime(2026, 11, 29, tzinfo=UTC), datetime(year, 1, 1, tzinfo=UTC), None])
    found = LIMITS.find_implausible(times)
    assert found is not None
    assert found.to_list() == [False, True, False]
    assert LIMITS.find_implausible(times[:1]) is None
    assert PlausibleTimes(LIMITS.latest, "keep").find_implausible(times) is None
