"""Number columns: values to spreads from the mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.features.categories import FIRST_CODE, MISSING, UNKNOWN

MIN_DISTINCT_NUMBERS = 32
"""Distinct numbers from which a column of text is a quantity; below, they are words."""
N_QUANTILES = 101
"""Quantiles that describe a distribution to the rank scaler."""
MAX_ABS_Z = 1e6
"""Bound on a scaled value, in standard deviations, so that its square stays finite."""
NUMBER_PATTERN = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
"""No leading zeros and at most 15 digits: account ids and other identifiers are no quantities."""


@dataclass(frozen=True)
class Number:
    """A column of quantities.

    The scale is a line through knots, (KNOTS,) or (2,): `at` in the column's units, `to` in
    standard deviations; beyond the outermost knots it goes on as a line ("standard", "none") or
    stays level ("gauss_rank").
    """

    name: str
    quantiles: tuple[float, ...]
    z: tuple[float, ...]

    @classmethod
    def fit(cls, name: str, values: pl.Series, scaler: str) -> Number:
        """Learn the scale of a column; a constant column has spread 1."""
        numbers = _parse_numbers(values).drop_nulls().to_numpy()
        if scaler == "none":
            return cls(name, (0.0, 1.0), (0.0, 1.0))
        if scaler == "standard":
            mean, spread = float(numbers.mean()), float(numbers.std()) or 1.0
            return cls(name, (mean, mean + spread), (0.0, 1.0))
        levels = np.linspace(0, 1, N_QUANTILES)
        at, first = np.unique(np.quantile(numbers, levels), return_index=True)
        to = [NormalDist().inv_cdf(min(max(p, 1e-7), 1 - 1e-7)) for p in levels[first]]
        return cls(name, tuple(at.tolist()), tuple(to))

    @property
    def n_codes(self) -> int:
        """Missing, unseen, and there."""
        return FIRST_CODE + 1

    @property
    def missing_code(self) -> int:
        """The code of an event that has no value."""
        return MISSING

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """Say whether each value is there, (rows,); what is no number is unseen."""
        there = _parse_numbers(values).is_not_null().to_numpy()
        codes = np.where(there, FIRST_CODE, UNKNOWN).astype(np.int32)
        codes[values.is_null().to_numpy()] = MISSING
        return codes

    def scale(self, values: pl.Series) -> NDArray[np.float32]:
        """Scale each value, (rows,), in standard deviations; 0 where there is none."""
        numbers = _parse_numbers(values).fill_null(float("nan")).to_numpy()
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            width = self.quantiles[1] - self.quantiles[0]
            scaled = self.z[0] + (numbers - self.quantiles[0]) / width * (self.z[1] - self.z[0])
        else:
            scaled = np.interp(numbers, self.quantiles, self.z)
        return np.nan_to_num(np.clip(scaled, -MAX_ABS_Z, MAX_ABS_Z)).astype(np.float32)

    def inverse_scale(self, z: float) -> float:
        """The value, in the column's units, that is scaled to a number of standard deviations.

        >>> Number("bytes", (100.0, 150.0), (0.0, 1.0)).inverse_scale(-0.5)
        75.0
        """
        if len(self.quantiles) == 2:  # noqa: PLR2004 - two knots are a line
            share = (z - self.z[0]) / (self.z[1] - self.z[0])
            return self.quantiles[0] + share * (self.quantiles[1] - self.quantiles[0])
        return float(np.interp(z, self.z, self.quantiles))


def is_number(values: pl.Series, kind: str | None = None) -> bool:
    """Whether a column holds quantities: numbers by type, or text that is many plain numbers.

    Args:
        values: The column.
        kind: `category` if it is said to hold none, `number` if any number will do.
    """
    if kind is not None:
        return kind == "number" and not _parse_numbers(values).is_null().all()
    if values.dtype.is_numeric():
        return True
    if values.dtype != pl.String:
        return False
    # Nearly every column of text is told by its first value, or has none.
    if values.null_count() == len(values) or not re.match(NUMBER_PATTERN, values[0] or "0"):
        return False
    known = values.drop_nulls()
    return known.n_unique() > MIN_DISTINCT_NUMBERS and bool(known.str.contains(NUMBER_PATTERN).all())


def _parse_numbers(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(value=False), None)
