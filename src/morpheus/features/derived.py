"""Columns that are derived from an event, or from what its user did before it.

Each function takes events in time order, as a frame with `USER`, `TIME` and the columns that it
needs as text, and gives one column. None looks at what comes later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import polars as pl

from morpheus.columns import TIME

USER = "_user_"
"""Column of the user, in the frames that are derived from."""
NOVELTY_PREFIX = "new:"
"""`new:userAgent` says whether an event's `userAgent` is new to its user."""
NOVELTY_TTL = timedelta(days=90)
"""A value that a user has not had for so long is new again."""
NOVELTY_WARMUP = timedelta(days=7)
"""So long after a user's first event nothing is called new: all of it would be."""

_DAY = pl.col(TIME).dt.date()
_SATURDAY = 6


@dataclass(frozen=True)
class DerivedColumn:
    """A column that no log holds.

    Attributes:
        inputs: Columns that it is made of.
        compute: Makes it of events in time order.
    """

    inputs: tuple[str, ...]
    compute: Callable[[pl.DataFrame], pl.Series]


def log_count() -> DerivedColumn:
    """How many events the user has had that day, before this one."""
    return DerivedColumn((), _log_count)


def distinct_count_today(*columns: str, joined: bool = False) -> DerivedColumn:
    """How many different values the user has had that day, this one included.

    Args:
        columns: One column, whose missing values do not count; or, `joined`, several that are one
            value together, and count even if all are missing.
        joined: Whether they are.
    """
    return DerivedColumn(columns, partial(_distinct_count_today, columns=columns, joined=joined))


def hour_of_week() -> DerivedColumn:
    """Day and hour, `Mon 09`: one of 168."""
    return DerivedColumn((), _hour_of_week)


def hour_kind() -> DerivedColumn:
    """Hour of a weekday or of the weekend, `weekend 23`: one of 48."""
    return DerivedColumn((), _hour_kind)


def map_values(function: Callable[..., str | None], *columns: str) -> DerivedColumn:
    """What a function says of the values of some columns, called once for equal ones."""
    return DerivedColumn(columns, partial(_map_values, columns=columns, function=function))


def is_new_value(column: str) -> DerivedColumn:
    """Whether a value is new to its user: "True" or "False", nothing where there is no value.

    New is what the user has not had for `NOVELTY_TTL`; see `NOVELTY_WARMUP` too.
    """
    return DerivedColumn((column,), partial(_is_new_value, column=column))


def _log_count(frame: pl.DataFrame) -> pl.Series:
    return frame.select(pl.int_range(pl.len(), dtype=pl.Int64).over(USER, _DAY)).to_series()


def _distinct_count_today(frame: pl.DataFrame, columns: tuple[str, ...], *, joined: bool) -> pl.Series:
    known = pl.lit(joined) | pl.col(columns[0]).is_not_null()
    value = pl.concat_str([pl.col(name).fill_null("nan") for name in columns], separator=", ")
    first = pl.struct(USER, _DAY, value.alias("value")).is_first_distinct() & known
    return frame.select(first.cast(pl.Int64).cum_sum().over(USER, _DAY)).to_series()


def _hour_of_week(frame: pl.DataFrame) -> pl.Series:
    return frame[TIME].dt.strftime("%a %H")


def _hour_kind(frame: pl.DataFrame) -> pl.Series:
    weekend = pl.col(TIME).dt.weekday() >= _SATURDAY
    kind = pl.when(weekend).then(pl.lit("weekend ")).otherwise(pl.lit("weekday "))
    return frame.select(kind + pl.col(TIME).dt.strftime("%H")).to_series()


def _map_values(
    frame: pl.DataFrame, columns: tuple[str, ...], function: Callable[..., str | None]
) -> pl.Series:
    distinct = frame.select(columns).unique(maintain_order=True)
    told = pl.Series("told", [function(*row) for row in distinct.iter_rows()], dtype=pl.String)
    both = frame.select(columns).join(
        distinct.with_columns(told), on=columns, nulls_equal=True, how="left", maintain_order="left"
    )
    return both["told"]


def _is_new_value(frame: pl.DataFrame, column: str) -> pl.Series:
    before = pl.col(TIME).shift().over(USER, column)
    forgotten = (pl.col(TIME) - before > NOVELTY_TTL).fill_null(value=True)
    old = pl.col(TIME) - pl.col(TIME).first().over(USER) > NOVELTY_WARMUP
    new = (forgotten & old).cast(pl.String).str.to_titlecase()
    return frame.select(pl.when(pl.col(column).is_not_null()).then(new)).to_series()
