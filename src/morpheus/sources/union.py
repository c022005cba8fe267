"""Events below each other, of files that do not all have the same columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl

from morpheus.columns import INDEX, TIME
from morpheus.sources.by_user import REPLAY_NO
from morpheus.sources.census import UserStats


def coalesce_frames(frames: Iterable[pl.DataFrame], min_cells: int) -> Iterator[pl.DataFrame]:
    """Join small frames, so that each is of so many cells at least, but for the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(one.height * one.width for one in held) >= min_cells:
            # What is yielded is held no longer here.
            held, joined = [], [concat_frames(held)]
            yield joined.pop()
    if held:
        yield concat_frames(held)


def concat_frames(frames: list[pl.DataFrame], column_names: list[str] | None = None) -> pl.DataFrame:
    """Put frames below each other, in an order of columns that does not depend on theirs."""
    column_names = column_names or _merge_headers(frozenset(tuple(frame.columns) for frame in frames))
    if not frames:
        texts = {name: pl.String for name in column_names if name not in {INDEX, TIME}}
        return pl.DataFrame(schema={INDEX: pl.Int64, **texts, TIME: pl.Datetime("us", "UTC")})
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    there = set(whole.columns)
    absent = [pl.lit(None, pl.String).alias(n) for n in column_names if n not in there]
    copy = {REPLAY_NO} & there
    return whole.with_columns(absent).select(INDEX, *column_names, TIME, *copy)


def list_columns(user_stats: UserStats, leading_columns: tuple[str, ...] = ()) -> list[str]:
    """All columns; those that come first, then the others by name, or as the files have them."""
    names = _merge_headers(user_stats.headers)
    return list(dict.fromkeys([*leading_columns, *sorted(names)])) if leading_columns else names


def _merge_headers(headers: frozenset[tuple[str, ...]]) -> list[str]:
    """Those of the widest header, in its order, then those that others add."""
    known = sorted(headers, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in known for name in header)
    return [name for name in names if name not in {INDEX, TIME, REPLAY_NO}]
