"""From a place in one cell, `City, State, Country`, to its parts."""

from __future__ import annotations

import polars as pl


def extract_city(column: str) -> pl.Expr:
    """The city, where anything stands before the country."""
    return _extract_part(column, 0, min_parts=2)


def extract_state(column: str) -> pl.Expr:
    """The state, where one stands between city and country.

    >>> places = pl.DataFrame({"at": ["Dublin, Leinster, IE", "Dublin, IE", "IE", None]})
    >>> places.select(extract_state("at"), extract_country("at").alias("extract_country")).rows()
    [('Leinster', 'IE'), (None, 'IE'), (None, 'IE'), (None, None)]
    """
    return _extract_part(column, 1, min_parts=3)


def extract_country(column: str) -> pl.Expr:
    """The country."""
    return _extract_part(column, -1, min_parts=1)


def _extract_part(column: str, index: int, *, min_parts: int) -> pl.Expr:
    parts = pl.col(column).str.split(", ")
    return pl.when(parts.list.len() >= min_parts).then(parts.list.get(index, null_on_oob=True))
