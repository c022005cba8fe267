import numpy as np
import pytest

from morpheus.errors import UsageError
from morpheus.seasonality.detector import (
    MICROSECONDS_PER_DAY,
    assign_bins,
    parse_duration,
    start_of_day,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", 600),
        ("1 h", 3600),
        ("12 h", 43200),
        ("30s", 30),
        ("1d", 86400),
        ("1D", 86400),
        ("1h30m", 5400),
        ("90 min", 5400),
        ("1500ms", 2),
        ("1 hour", 3600),
        ("2 days", 172800),
        ("1 day, 2 hours", 93600),
        ("1.5 h", 5400),
        ("01:30:00", 5400),
        ("1w", 604800),
    ],
)
def test_duration_has_the_syntax_of_pandas(text, expected):
    assert parse_duration(text, option="--resolution") == expected


@pytest.mark.parametrize("text", ["", "10", "m", "ten m", "10 parsecs", "1M", "-1h", "1h x", "nan"])
def test_error_for_an_invalid_duration_has_an_example(text):
    with pytest.raises(UsageError, match=r"--resolution: .* is not a duration.*--resolution 10m"):
        parse_duration(text, option="--resolution")


@pytest.mark.parametrize("text", ["500ms", "0s", "0.2s", "146001d", "99999999999999 d"])
def test_duration_out_of_range_is_rejected(text):
    with pytest.raises(UsageError, match=r"--min_window: .* than can be counted"):
        parse_duration(text, option="--min_window")


def test_bins_are_half_open_and_count_from_the_start():
    times = np.array([0, 59_000_000, 60_000_000, -1_000_000]) + 3 * MICROSECONDS_PER_DAY
    assert assign_bins(times, start=3 * MICROSECONDS_PER_DAY, resolution=60).tolist() == [
        0,
        0,
        1,
        -1,
    ]


def test_the_day_starts_at_midnight_utc_before_1970_too():
    assert [start_of_day(t) for t in (0, MICROSECONDS_PER_DAY - 1, MICROSECONDS_PER_DAY, -1)] == [
        0,
        0,
        MICROSECONDS_PER_DAY,
        -MICROSECONDS_PER_DAY,
    ]
