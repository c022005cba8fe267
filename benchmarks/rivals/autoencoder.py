"""dfencoder 0.0.42, trained as by `train-ae` of Morpheus 22.09."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

ARGUMENTS = {
    "encoder_layers": [512, 500],
    "decoder_layers": [512],
    "activation": "relu",
    "swap_p": 0.2,
    "lr": 0.01,
    "lr_decay": 0.99,
    "batch_size": 512,
    "verbose": False,
    "optimizer": "sgd",
    "scaler": "gauss_rank",
    "min_cats": 1,
    "progress_bar": False,
    "device": torch.device("cpu"),
}


def learn(history: pd.DataFrame, seed: int, epochs: int) -> Callable[[pd.DataFrame], np.ndarray]:
    """Train a network; return its scoring function. Uses global random generators."""
    del seed
    return fitted(history, epochs).get_anomaly_score


def fitted(history: pd.DataFrame, epochs: int) -> Any:  # noqa: ANN401 - dfencoder's, which has no types
    """A trained network."""
    mend()
    from dfencoder import AutoEncoder  # noqa: PLC0415 - after it has been mended

    model = AutoEncoder(**ARGUMENTS)
    model.fit(history, epochs=epochs)
    return model


def mend() -> None:
    """Restore functions that pandas and numpy have removed since 2022."""
    for name in ("iteritems", "append"):
        if not hasattr(pd.Series, name):
            setattr(pd.Series, name, _series(name))


def _series(name: str):  # type: ignore[no-untyped-def]  # no types of pandas here  # noqa: ANN202 - the same
    if name == "iteritems":
        return pd.Series.items
    return lambda self, other: pd.concat([self, other])
