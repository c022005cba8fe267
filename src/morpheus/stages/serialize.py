"""`serialize`: which columns are written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from morpheus.columns import ROW
from morpheus.errors import UsageError
from morpheus.records import Batch, Rows
from morpheus.stage import Stage, option

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serialize(Stage):
    r"""Choose the columns that are written.

    Takes events at any point of the chain and gives them with the columns chosen, in their order.
    A pattern is a regular expression that is compared with the beginning of a column's name. The
    unnamed first column stays: `to-file --include-index-col=false` leaves it out.

    Example: `serialize --include="event" --include="ae_" --exclude="eventID$"`
    """

    name = "serialize"
    takes = (Batch,)
    gives = Rows
    needs_fingerprint = False

    include: tuple[str, ...] = option(
        (), "Pattern of columns to keep; repeat for more. By default all."
    )
    exclude: tuple[str, ...] = option(
        ("^ID$", "^_ts_"), "Pattern of columns to leave out, of those kept; repeat for more."
    )
    fixed_columns: bool = option(
        True,
        "A user's first events decide the columns: those missing later are written empty, new ones "
        "are left out with a warning.",
    )

    def check(self) -> None:
        """Refuse what is no regular expression."""
        for name, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _compiled(pattern, option=name)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Rows]:
        """Keep the chosen columns; the fingerprint, of no more use, is let go."""
        fixed: list[str] | None = None
        left_out: set[str] = set()
        for batch in batches:
            columns = list(_chosen(self.include, self.exclude, tuple(batch.frame.columns)))
            if self.fixed_columns and fixed is not None:
                _warn_once(columns, fixed, left_out)
                columns = fixed
            fixed = columns
            yield batch.become(Rows, frame=_select(batch.frame, columns), fingerprint=None)


@lru_cache(maxsize=16)
def _chosen(
    include: tuple[str, ...], exclude: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, ...]:
    """Columns that a pattern of --include matches, and none of --exclude."""
    wanted = [_compiled(pattern, option="--include") for pattern in include or ("",)]
    unwanted = [_compiled(pattern, option="--exclude") for pattern in exclude]
    return tuple(
        name
        for name in columns
        if name == ROW
        or (any(p.match(name) for p in wanted) and not any(p.match(name) for p in unwanted))
    )


def _compiled(pattern: str, *, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"serialize: {option} {pattern!r} is not a regular expression: {error}. Write a "
            f"backslash before a sign that is meant as itself, as in `{option} 'a\\(b'`."
        ) from error


def _select(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Those columns, in that order; empty where the frame has none of that name."""
    if columns == frame.columns:
        return frame
    there = set(frame.columns)
    return frame.select(
        pl.col(name) if name in there else pl.lit(None, pl.String).alias(name) for name in columns
    )


def _warn_once(columns: list[str], fixed: list[str], left_out: set[str]) -> None:
    """Say which columns are left out, each once."""
    new = set(columns) - set(fixed) - left_out
    if new:
        left_out |= new
        logger.warning(
            "serialize: column %s came after the first events and is left out. "
            "Use `serialize --fixed_columns=false` to keep it.",
            ", ".join(repr(name) for name in sorted(new)),
        )
