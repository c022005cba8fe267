"""From a place in one cell, `City, State, Country`, to its parts."""

from __future__ import annotations

import polars as pl


def city(column: str) -> pl.Expr:
    """The city, where anything stands before the country."""
    return _part(column, 0, least=2)


def state(column: str) -> pl.Expr:
    """The state, where one stands between city and country.

    >>> places = pl.DataFrame({"at": ["Dublin, Leinster, IE", "Dublin, IE", "IE", None]})
    >>> places.select(state("at"), country("at").alias("country")).rows()
    [('Leinster', 'IE'), (None, 'IE'), (None, 'IE'), (None, None)]
    """
    return _part(column, 1, least=3)


def country(column: str) -> pl.Expr:
    """The country."""
    return _part(column, -1, least=1)


def _part(column: str, at: int, *, least: int) -> pl.Expr:
    parts = pl.col(column).str.split(", ")
    return pl.when(parts.list.len() >= least).then(parts.list.get(at, null_on_oob=True))
