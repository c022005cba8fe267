"""Number columns: values to spreads from the mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_WORD, MISSING, UNSEEN

MANY = 32
"""Distinct numbers from which a column of text is a quantity; below, they are words."""
KNOTS = 101
"""Quantiles that describe a distribution to the rank scaler."""
FURTHEST = 1e6
"""Bound on a scaled value, in standard deviations, so that its square stays finite."""
PLAIN_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
"""No leading zeros and at most 15 digits: account ids and other identifiers are no quantities."""


@dataclass(frozen=True)
class Number:
    """A column of quantities.

    The scale is a line through knots, (KNOTS,) or (2,): `at` in the column's units, `to` in
    standard deviations; beyond the outermost knots it goes on as a line ("standard", "none") or
    stays level ("gauss_rank").
    """

    name: str
    at: tuple[float, ...]
    to: tuple[float, ...]

    @classmethod
    def fit(cls, name: str, values: pl.Series, scaler: str) -> Number:
        """Learn the scale of a column; a constant column has spread 1."""
        numbers = _parsed(values).drop_nulls().to_numpy()
        if scaler == "none":
            return cls(name, (0.0, 1.0), (0.0, 1.0))
        if scaler == "standard":
            mean, spread = float(numbers.mean()), float(numbers.std()) or 1.0
            return cls(name, (mean, mean + spread), (0.0, 1.0))
        levels = np.linspace(0, 1, KNOTS)
        at, first = np.unique(np.quantile(numbers, levels), return_index=True)
        to = [NormalDist().inv_cdf(min(max(p, 1e-7), 1 - 1e-7)) for p in levels[first]]
        return cls(name, tuple(at.tolist()), tuple(to))

    @property
    def codes(self) -> int:
        """Missing, unseen, and there."""
        return FIRST_WORD + 1

    @property
    def absent(self) -> int:
        """The code of an event that has no value."""
        return MISSING

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Say whether each value is there, (rows,); what is no number is unseen."""
        there = _parsed(values).is_not_null().to_numpy()
        codes = np.where(there, FIRST_WORD, UNSEEN).astype(np.int32)
        codes[values.is_null().to_numpy()] = MISSING
        return codes

    def scale(self, values: pl.Series) -> NDArray[np.float32]:
        """Scale each value, (rows,), in standard deviations; 0 where there is none."""
        numbers = _parsed(values).fill_null(float("nan")).to_numpy()
        if len(self.at) == 2:  # noqa: PLR2004 - two knots are a line
            width = self.at[1] - self.at[0]
            scaled = self.to[0] + (numbers - self.at[0]) / width * (self.to[1] - self.to[0])
        else:
            scaled = np.interp(numbers, self.at, self.to)
        return np.nan_to_num(np.clip(scaled, -FURTHEST, FURTHEST)).astype(np.float32)

    def unscaled(self, number: float) -> float:
        """The value, in the column's units, that is scaled to a number of standard deviations.

        >>> Number("bytes", (100.0, 150.0), (0.0, 1.0)).unscaled(-0.5)
        75.0
        """
        if len(self.at) == 2:  # noqa: PLR2004 - two knots are a line
            share = (number - self.to[0]) / (self.to[1] - self.to[0])
            return self.at[0] + share * (self.at[1] - self.at[0])
        return float(np.interp(number, self.to, self.at))


def is_number(values: pl.Series, kind: str | None = None) -> bool:
    """Whether a column holds quantities: numbers by type, or text that is many plain numbers.

    Args:
        values: The column.
        kind: `category` if it is said to hold none, `number` if any number will do.
    """
    if kind is not None:
        return kind == "number" and not _parsed(values).is_null().all()
    if values.dtype.is_numeric():
        return True
    if values.dtype != pl.String:
        return False
    # Nearly every column of text is told by its first value, or has none.
    if values.null_count() == len(values) or not re.match(PLAIN_NUMBER, values[0] or "0"):
        return False
    known = values.drop_nulls()
    return known.n_unique() > MANY and bool(known.str.contains(PLAIN_NUMBER).all())


def _parsed(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(value=False), None)
