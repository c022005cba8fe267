"""`AutoencoderDetector`: the fingerprint of one user, in scikit-learn's conventions.

This module alone needs scikit-learn, which is no dependency of `morpheus`.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from morpheus.models.fit import fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.models.training import EPOCHS
from morpheus.sources.time_range import UTC_DATETIME

DECIMALS = 6
TEXT_KINDS = "OUST"
"""Kinds of arrays that may hold text."""


class AutoencoderDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Learns what is usual of rows, taken as the events of one user, and finds the others.

    The rows of `fit` are in the order of time: the later quarter says when to stop learning.
    Columns are numbers, or, in an array of objects, text; equal values are one category.

    Args:
        contamination: Share of the rows of `fit` that are called outliers, at most; from 0 to 0.5.
        epochs: Passes over the distinct rows, at most.
        scaler: How number columns are scaled: "none", "standard" or "gauss_rank".
        random_state: Seed of everything random, a whole number.

    Attributes:
        fingerprint_: What was learnt.
        offset_: Score below which a row is an outlier.
        n_features_in_: Columns.
    """

    def __init__(
        self,
        *,
        contamination: float = 0.01,
        epochs: int = EPOCHS,
        scaler: str = "standard",
        random_state: int = 0,
    ) -> None:
        self.contamination = contamination
        self.epochs = epochs
        self.scaler = scaler
        self.random_state = random_state

    def fit(self, X: object, y: object = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Learn from (rows, columns); `y` is ignored."""
        rows = _to_frame(self._validate_rows(X, reset=True))
        times = pl.int_range(rows.height, dtype=pl.Int64, eager=True).cast(UTC_DATETIME)
        self.fingerprint_: Fingerprint = fit_fingerprint(
            "",
            rows,
            rows.columns,
            times=times,
            epochs=self.epochs,
            scaler=self.scaler,
            seed=self.random_state or 0,
        )
        self.offset_ = float(np.quantile(self._score_rows(rows), self.contamination))
        return self

    def score_samples(self, X: object) -> NDArray[np.float64]:  # noqa: N803 - scikit-learn's name
        """Minus the `ae_anomaly_score` of each row, (rows,): the lower, the stranger."""
        check_is_fitted(self)
        return self._score_rows(_to_frame(self._validate_rows(X, reset=False)))

    def decision_function(self, X: object) -> NDArray[np.float64]:  # noqa: N803 - scikit-learn's name
        """`score_samples` above `offset_`, (rows,): negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: object) -> NDArray[np.int64]:  # noqa: N803 - scikit-learn's name
        """-1 for outliers, 1 for the others, (rows,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - a class and a name of scikit-learn
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def _validate_rows(self, rows: object, *, reset: bool) -> NDArray[Any]:
        kind = np.asarray(rows).dtype.kind if not hasattr(rows, "columns") else "O"
        dtype = None if kind in TEXT_KINDS else "numeric"
        return np.asarray(validate_data(self, rows, reset=reset, dtype=dtype))

    def _score_rows(self, rows: pl.DataFrame) -> NDArray[np.float64]:
        encoded = self.fingerprint_.encoder.encode(rows)
        losses = self.fingerprint_.losses(encoded).astype(np.float64)
        return np.asarray(-losses.mean(axis=1).round(DECIMALS)[encoded.inverse])


def _to_frame(rows: NDArray[Any]) -> pl.DataFrame:
    columns = [pl.Series(str(n), column.tolist(), strict=False) for n, column in enumerate(rows.T)]
    return pl.DataFrame(columns)
