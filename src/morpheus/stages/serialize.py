"""`serialize`: which columns are written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from morpheus.columns import ROW
from morpheus.core.batch import Batch, OutputRows
from morpheus.core.stage import Transform, option
from morpheus.errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serialize(Transform):
    r"""Choose the columns that are written.

    Takes events at any point of the chain and gives them with the columns chosen, in their order.
    A pattern is a regular expression that is compared with the beginning of a column's name. The
    unnamed first column stays: `to-file --include-index-col=false` leaves it out.

    Example: `serialize --include="event" --include="ae_" --exclude="eventID$"`
    """

    name = "serialize"
    takes = (Batch,)
    gives = OutputRows
    needs_model = False

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

    def validate(self) -> None:
        """Refuse what is no regular expression."""
        for name, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                _compile_pattern(pattern, option=name)

    def __call__(self, batches: Iterator[Batch]) -> Iterator[OutputRows]:
        """Keep the chosen columns; the fingerprint, of no more use, is let go."""
        fixed: list[str] | None = None
        left_out: set[str] = set()
        for batch in batches:
            columns = list(_choose_columns(self.include, self.exclude, tuple(batch.frame.columns)))
            if self.fixed_columns and fixed is not None:
                _warn_dropped_columns(columns, fixed, left_out)
                columns = fixed
            fixed = columns
            yield batch.evolve(
                OutputRows, frame=_select_columns(batch.frame, columns), fingerprint=None
            )


@lru_cache(maxsize=16)
def _choose_columns(
    include: tuple[str, ...], exclude: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, ...]:
    """Columns that a pattern of --include matches, and none of --exclude."""
    wanted = [_compile_pattern(pattern, option="--include") for pattern in include or ("",)]
    unwanted = [_compile_pattern(pattern, option="--exclude") for pattern in exclude]
    return tuple(
        name
        for name in columns
        if name == ROW
        or (any(p.match(name) for p in wanted) and not any(p.match(name) for p in unwanted))
    )


def _compile_pattern(pattern: str, *, option: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"serialize: {option} {pattern!r} is not a regular expression: {error}. Write a "
            f"backslash before a sign that is meant as itself, as in `{option} 'a\\(b'`."
        ) from error


def _select_columns(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Those columns, in that order; empty where the frame has none of that name."""
    if columns == frame.columns:
        return frame
    there = set(frame.columns)
    return frame.select(
        pl.col(name) if name in there else pl.lit(None, pl.String).alias(name) for name in columns
    )


def _warn_dropped_columns(columns: list[str], fixed: list[str], dropped: set[str]) -> None:
    """Say which columns are left out, each once."""
    new = set(columns) - set(fixed) - dropped
    if new:
        dropped |= new
        logger.warning(
            "serialize: column %s came after the first events and is left out. "
            "Use `serialize --fixed_columns=false` to keep it.",
            ", ".join(repr(name) for name in sorted(new)),
        )
