from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.sources.time_range import UTC_DATETIME, parse_times


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
    ],
)
def test_all_formats_give_the_same_time(text: str) -> None:
    assert one(text) == datetime(2024, 5, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "2024-13-01T00:00:00Z", "2024-02-30T00:00:00Z", "17171478", "May 31", None]
)
def test_invalid_time_is_null(text: str | None) -> None:
    assert one(text) is None


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
