"""Events below each other, of files that do not all have the same columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl

from morpheus.columns import INDEX, TIME
from morpheus.sources.by_user import COPY
from morpheus.sources.census import Census


def tables(frames: Iterable[pl.DataFrame], cells: int) -> Iterator[pl.DataFrame]:
    """Join small frames, so that each is of so many cells at least, but for the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(one.height * one.width for one in held) >= cells:
            # What is yielded is held no longer here.
            held, joined = [], [union(held)]
            yield joined.pop()
    if held:
        yield union(held)


def union(frames: list[pl.DataFrame], names: list[str] | None = None) -> pl.DataFrame:
    """Put frames below each other, in an order of columns that does not depend on theirs."""
    names = names or _names(frozenset(tuple(frame.columns) for frame in frames))
    if not frames:
        texts = {name: pl.String for name in names if name not in {INDEX, TIME}}
        return pl.DataFrame(schema={INDEX: pl.Int64, **texts, TIME: pl.Datetime("us", "UTC")})
    whole = pl.concat(frames, how="diagonal", rechunk=True)
    there = set(whole.columns)
    absent = [pl.lit(None, pl.String).alias(n) for n in names if n not in there]
    copy = {COPY} & there
    return whole.with_columns(absent).select(INDEX, *names, TIME, *copy)


def names_of(census: Census, first: tuple[str, ...] = ()) -> list[str]:
    """All columns; those that come first, then the others by name, or as the files have them."""
    names = _names(census.headers)
    return list(dict.fromkeys([*first, *sorted(names)])) if first else names


def _names(headers: frozenset[tuple[str, ...]]) -> list[str]:
    """Those of the widest header, in its order, then those that others add."""
    known = sorted(headers, key=lambda header: (-len(header), header))
    names = dict.fromkeys(name for header in known for name in header)
    return [name for name in names if name not in {INDEX, TIME, COPY}]
