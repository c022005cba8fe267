"""Time as numbered bins: durations as people type them, and which bin an event falls into."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from morpheus.errors import UsageError

IntArray = NDArray[np.int64]

MICROSECONDS_PER_DAY = 86_400_000_000
"""Microseconds in a day."""

_MICROSECONDS_PER_SECOND = 1_000_000
_SECONDS_PER_UNIT = {
    "w": 604_800.0,
    "week": 604_800.0,
    "d": 86_400.0,
    "day": 86_400.0,
    "h": 3_600.0,
    "hr": 3_600.0,
    "hour": 3_600.0,
    "m": 60.0,
    "t": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "ms": 1e-3,
    "l": 1e-3,
    "milli": 1e-3,
    "millisecond": 1e-3,
    "us": 1e-6,
    "u": 1e-6,
    "micro": 1e-6,
    "microsecond": 1e-6,
}
_PART_PATTERN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([a-zA-Z]+)\s*,?\s*", re.ASCII)
_CLOCK_PATTERN = re.compile(r"\s*(\d{1,4}):([0-5]\d)(?::([0-5]\d))?\s*", re.ASCII)


def parse_duration(text: str, *, option: str) -> int:
    """Read a duration, in pandas' spelling, as whole seconds.

    Parts of a second are rounded; there is no bin shorter than a second.

    Args:
        text: Numbers with units (`10m`, `1h30m`, `2 days`), or a clock (`01:30:00`).
        option: The option that it was given to, for the message.

    Raises:
        UsageError: `text` is not a duration, or it is shorter than a second.

    >>> [parse_duration(text, option="--resolution") for text in ("10m", "1 h", "1h30m", "2 days")]
    [600, 3600, 5400, 172800]
    """
    total = _parse_seconds(text)
    if total is None:
        raise UsageError(
            f"{option}: {text!r} is not a duration. "
            f"Give a number with a unit, such as `{option} 10m`, `1h30m` or `12 h`."
        )
    if not 1 <= total <= MICROSECONDS_PER_DAY:  # as many seconds as a day has microseconds: 2,700 years
        raise UsageError(
            f"{option}: {text!r} is {'shorter' if total < 1 else 'longer'} than can be counted. "
            f"Give a second or more, such as `{option} 10m`."
        )
    return round(total)


def _parse_seconds(text: str) -> float | None:
    """Seconds, None for what is not a duration."""
    if clock := _CLOCK_PATTERN.fullmatch(text):
        hours, minutes, rest = (int(part or 0) for part in clock.groups())
        return float(hours * 3600 + minutes * 60 + rest)
    parts = _PART_PATTERN.findall(text)
    if not parts or "".join(match[0] for match in _PART_PATTERN.finditer(text)) != text:
        return None
    sizes = [_unit_seconds(unit) for _, unit in parts]
    if None in sizes:
        return None
    return sum(float(number) * (size or 0) for (number, _), size in zip(parts, sizes, strict=True))


def _unit_seconds(word: str) -> float | None:
    """Seconds in a unit; `M` is a month to pandas, which has no fixed length."""
    word = "" if word == "M" else word.lower()
    return _SECONDS_PER_UNIT.get(word, _SECONDS_PER_UNIT.get(word.removesuffix("s")) if len(word) > 2 else None)  # noqa: PLR2004 - `ds` is no plural


def start_of_day(microseconds: int) -> int:
    """Start of the day, in UTC, both in microseconds since 1970."""
    return microseconds // MICROSECONDS_PER_DAY * MICROSECONDS_PER_DAY


def assign_bins(microseconds: IntArray, *, start: int, resolution: int) -> IntArray:
    """Bin of each event. Bins are half-open: an event at 10:00:00 opens the 10 o'clock bin.

    Args:
        microseconds: Times since 1970, shape (N,); rounded to whole seconds, as upstream does.
        start: Start of bin 0, in microseconds since 1970.
        resolution: Seconds in a bin.

    Returns:
        Bin numbers, shape (N,); negative before `start`.

    >>> assign_bins(np.array([0, 599_499_999, 599_500_000]), start=0, resolution=600).tolist()
    [0, 0, 1]
    """
    return (microseconds - start + _MICROSECONDS_PER_SECOND // 2) // _MICROSECONDS_PER_SECOND // resolution
