"""`AutoencoderDetector`: the model of one user as a scikit-learn estimator.

Only this module needs scikit-learn, which is not a dependency of `morpheus`. A pickled estimator
has its model as the bytes of a model file (safetensors and JSON), not as objects of this package.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, Self

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from morpheus.errors import ModelCorruptedError
from morpheus.features.encoder import SCALERS
from morpheus.models.fit import fit_fingerprint
from morpheus.models.input_check import MIN_EVENTS_TO_CHECK
from morpheus.models.profile import Fingerprint, ModelCard
from morpheus.models.store import dump_fingerprint, load_fingerprint
from morpheus.models.training import EPOCHS
from morpheus.sources.time_range import UTC_DATETIME

MAX_CONTAMINATION = 0.5
DECIMALS = 6
"""Decimals of a score, as in the column `ae_anomaly_score`."""
TEXT_KINDS = "OUST"
"""Kinds of NumPy arrays that can hold text."""
_FINGERPRINT, _MODEL_FILE, _CARD = "fingerprint_", "_model_file", "_card"
"""The attribute of the trained model; and the names of its file and its card in a pickle."""


class AutoencoderDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Detects rows that are unlike the training rows, which are taken as events of one user.

    The rows of `fit` must be in time order, because the last quarter validates the training.
    Columns are numeric, or text in an array of objects, where equal values are one category. A
    missing value (NaN, None) is a value of its own: it is unusual where `fit` has seen none.

    Args:
        contamination: Share of the rows of `fit` that are outliers, from 0 to 0.5.
        epochs: Maximum number of passes over the distinct rows.
        scaler: How to scale numeric columns: "none", "standard" or "gauss_rank".
        random_state: Random seed, an integer; or a `numpy.random.RandomState`, which gives the seed
            of each `fit`.

    Attributes:
        fingerprint_: The trained model.
        offset_: Score below which a row is an outlier.
        n_features_in_: Number of columns.
    """

    def __init__(
        self,
        *,
        contamination: float = 0.01,
        epochs: int = EPOCHS,
        scaler: str = "standard",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.contamination = contamination
        self.epochs = epochs
        self.scaler = scaler
        self.random_state = random_state

    def fit(self, X: object, y: object = None) -> Self:  # noqa: ARG002, N803 - scikit-learn's names
        """Train on an array of shape (rows, columns). `y` is ignored.

        Raises:
            ValueError: A parameter has an impossible value, or the array cannot be used.
        """
        self._check_parameters()
        rows = _to_frame(self._validate_rows(X, reset=True))
        if all(column.null_count() == rows.height for column in rows):
            raise ValueError("X: no row has a value. Give at least one column with values.")
        times = pl.int_range(rows.height, dtype=pl.Int64, eager=True).cast(UTC_DATETIME)
        self.fingerprint_: Fingerprint = fit_fingerprint(
            "",
            rows,
            rows.columns,
            times=times,
            epochs=self.epochs,
            scaler=self.scaler,
            seed=_to_seed(self.random_state),
        )
        self.offset_ = float(np.quantile(self._score_rows(rows), self.contamination))
        return self

    def _check_parameters(self) -> None:
        share, epochs, state = self.contamination, self.epochs, self.random_state
        if not (isinstance(share, Real) and 0 <= share <= MAX_CONTAMINATION):
            raise ValueError(
                f"contamination: {share!r} is not a share from 0 to {MAX_CONTAMINATION}."
            )
        if self.scaler not in SCALERS:
            raise ValueError(f"scaler: {self.scaler!r} is none of {', '.join(SCALERS)}.")
        if not (isinstance(epochs, Integral) and epochs >= 1):
            raise ValueError(f"epochs: {epochs!r} is not a whole number of at least 1.")
        if not isinstance(state, Integral | np.random.RandomState | None):
            raise ValueError(  # noqa: TRY004 - as scikit-learn does for any wrong parameter
                f"random_state: {state!r} is neither an integer nor a `numpy.random.RandomState`."
            )

    def score_samples(self, X: object) -> NDArray[np.float64]:  # noqa: N803 - scikit-learn's name
        """Return minus the `ae_anomaly_score` of each row, shape (rows,). Low is unusual."""
        check_is_fitted(self)
        rows = _to_frame(self._validate_rows(X, reset=False))
        self._warn_empty_columns(rows)
        return self._score_rows(rows)

    def decision_function(self, X: object) -> NDArray[np.float64]:  # noqa: N803 - scikit-learn's name
        """Return `score_samples` minus `offset_`, shape (rows,). Outliers are negative."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: object) -> NDArray[np.int64]:  # noqa: N803 - scikit-learn's name
        """Return -1 for outliers and 1 for other rows, shape (rows,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - a class and a name of scikit-learn
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        fingerprint = state.pop(_FINGERPRINT, None)
        if fingerprint is not None:
            state[_MODEL_FILE] = dump_fingerprint(fingerprint)
            state[_CARD] = msgspec.json.encode(fingerprint.card)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        content, card = rest.pop(_MODEL_FILE, None), rest.pop(_CARD, b"")
        if content is not None:
            try:
                decoded = msgspec.json.decode(card, type=ModelCard)
                rest[_FINGERPRINT] = load_fingerprint(content, decoded)[0]
            except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
                raise ModelCorruptedError(
                    f"The model of a pickled AutoencoderDetector is damaged ({error}). Fit again."
                ) from error
        super().__setstate__(rest)

    def _validate_rows(self, rows: object, *, reset: bool) -> NDArray[Any]:
        kind = np.asarray(rows).dtype.kind if not hasattr(rows, "columns") else "O"
        dtype = None if kind in TEXT_KINDS else "numeric"
        checked = validate_data(self, rows, reset=reset, dtype=dtype, ensure_all_finite="allow-nan")
        return np.asarray(checked)

    def _warn_empty_columns(self, rows: pl.DataFrame) -> None:
        """Warn if columns that had values in `fit` have none: every row would look unusual."""
        filled = self.fingerprint_.card.filled_columns
        empty = [name for name in filled if rows[name].null_count() == rows.height]
        if empty and rows.height >= MIN_EVENTS_TO_CHECK:
            warnings.warn(
                f"The columns {', '.join(empty)} have no value, but had values in `fit`. Every row "
                "will look unusual.",
                UserWarning,
                stacklevel=3,
            )

    def _score_rows(self, rows: pl.DataFrame) -> NDArray[np.float64]:
        encoded = self.fingerprint_.encoder.encode(rows)
        losses = self.fingerprint_.losses(encoded).astype(np.float64)
        return np.asarray(-losses.mean(axis=1).round(DECIMALS)[encoded.inverse])


def _to_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed; of a generator, its next number, as in scikit-learn."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(np.iinfo(np.int32).max))
    return int(random_state or 0)


def _to_frame(rows: NDArray[Any]) -> pl.DataFrame:
    return pl.DataFrame([_to_column(str(n), column) for n, column in enumerate(rows.T)])


def _to_column(name: str, values: NDArray[Any]) -> pl.Series:
    """Return a column; NaN, NaT and pandas' NA are null."""
    if values.dtype.kind in "fiub":
        return pl.Series(name, values, nan_to_null=True)
    cells = [None if _is_missing(cell) else cell for cell in values.tolist()]
    return pl.Series(name, cells, strict=False)


def _is_missing(cell: object) -> bool:
    """Return whether a cell is no value: None, or NaN, NaT or NA, which do not equal themselves."""
    try:
        return cell is None or not bool(cell == cell)  # noqa: PLR0124 - see above
    except TypeError:  # whether NA equals NA is NA, which is no boolean
        return True
