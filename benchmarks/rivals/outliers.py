"""Outlier detectors of libraries, on the one-hot codes of a history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import OneHotEncoder

Score = Callable[[pd.DataFrame], np.ndarray]
UNSEEN = "\U0010ffff"
"""Sorts after all values, as the encoder requires."""


def forest(history: pd.DataFrame, seed: int, epochs: int) -> Score:
    """scikit-learn's IsolationForest with its defaults."""
    del epochs
    codes = Codes(history)
    model = IsolationForest(random_state=seed).fit(codes.of(history))
    return lambda events: -model.score_samples(codes.of(events))


def ecod(history: pd.DataFrame, seed: int, epochs: int) -> Score:
    """PyOD's ECOD with its defaults; it has no seed."""
    del seed, epochs
    from pyod.models.ecod import ECOD  # noqa: PLC0415 - numba takes seconds to import

    codes = Codes(history)
    model = ECOD().fit(codes.of(history))
    return lambda events: model.decision_function(codes.of(events))


def pyod_forest(history: pd.DataFrame, seed: int, epochs: int) -> Score:
    """PyOD's isolation forest with its defaults."""
    del epochs
    from pyod.models.iforest import IForest  # noqa: PLC0415 - numba takes seconds to import

    codes = Codes(history)
    model = IForest(random_state=seed).fit(codes.of(history))
    return lambda events: model.decision_function(codes.of(events))


class Codes:
    """One column per value of the history, and one for all other values."""

    def __init__(self, history: pd.DataFrame) -> None:
        values = [np.array([*sorted(set(history[name])), UNSEEN]) for name in history]
        self.encoder = OneHotEncoder(
            categories=values, sparse_output=False, dtype=np.float32, handle_unknown="error"
        )
        self.encoder.fit(history)
        self.known = [set(each) for each in values]

    def of(self, events: pd.DataFrame) -> np.ndarray:
        """Return the codes of events, shape (rows, values)."""
        pairs = zip(events, self.known, strict=True)
        named = {
            name: events[name].where(events[name].isin(known), UNSEEN) for name, known in pairs
        }
        return self.encoder.transform(pd.DataFrame(named))
