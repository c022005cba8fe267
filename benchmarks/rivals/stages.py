"""`preprocess` and `inf-pytorch` of Morpheus, re-implemented with dfencoder's network.

Written from the behaviour of Morpheus. Only the functions of the network are reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import autoencoder
import numpy as np
import pandas as pd
import torch

MESSAGE = 1024
"""Rows of a message; the default of Morpheus is 256."""


class Inference(Protocol):
    """The output of a release for rows of a message."""

    def __init__(self, model: Any, history: pd.DataFrame) -> None: ...  # noqa: ANN401 - dfencoder's

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Added columns; the first is the score."""


def learn(
    inference: type[Inference], rows: int
) -> Callable[[pd.DataFrame, int, int], Callable[[pd.DataFrame], np.ndarray]]:
    """A detector with the output of a release's stages, for some rows per call."""

    def learnt(
        history: pd.DataFrame, seed: int, epochs: int
    ) -> Callable[[pd.DataFrame], np.ndarray]:
        del seed
        model = autoencoder.fitted(history, epochs)
        infer = inference(model, history)
        return lambda events: np.concatenate(
            [passed(model, infer, message, rows) for message in slices(events, MESSAGE)]
        )

    return learnt


def passed(model: Any, infer: Inference, message: pd.DataFrame, rows: int) -> np.ndarray:  # noqa: ANN401 - dfencoder's
    """Process a message by both stages, and return its scores."""
    preprocess(model, message)
    added = pd.concat([infer.of(some) for some in slices(message, rows)])
    for name in added:
        message[name] = added[name]
    return added.iloc[:, 0].to_numpy()


def slices(frame: pd.DataFrame, rows: int) -> Iterator[pd.DataFrame]:
    """Split rows into frames of `count` rows."""
    for begin in range(0, len(frame), rows):
        yield frame.iloc[begin : begin + rows].copy()


def preprocess(model: Any, message: pd.DataFrame) -> torch.Tensor:  # noqa: ANN401 - dfencoder's
    """Build the network's input. Nothing reads it, because inference builds it again."""
    with torch.no_grad():
        parts = model.encode_input(model.prepare_df(message))
        return torch.cat([tensor for part in parts for tensor in part], dim=1)


class Scores:
    """22.04 to 22.08: one score per row."""

    def __init__(self, model: Any, history: pd.DataFrame) -> None:  # noqa: ANN401 - dfencoder's
        del history
        self.model = model

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`ae_anomaly_score`."""
        scores = self.model.get_anomaly_score(rows)
        return pd.DataFrame({"ae_anomaly_score": scores}, index=rows.index)


class Losses:
    """From 22.09: score, z-score, and the z-score of each column's loss."""

    def __init__(self, model: Any, history: pd.DataFrame) -> None:  # noqa: ANN401 - dfencoder's
        self.model = model
        for feature in model.binary_fts.values():
            # 0.0.42 treats a column with one value as binary, then lacks the second value.
            feature["cats"] = [*feature["cats"], *feature["cats"]][:2]
        scores, losses = model.get_anomaly_score(history), self.losses(history)
        self.mean, self.spread = scores.mean(), scores.std()
        self.means, self.spreads = losses.mean(), losses.std(ddof=0)

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`reconstruct_loss`, `zscore`, `<column>_z_loss`, `max_abs_z` and `mean_abs_z`."""
        scores = self.model.get_anomaly_score(rows)
        results = self.results(rows)
        added = results[[name for name in results if name.endswith("_z_loss")]].copy()
        added.insert(0, "reconstruct_loss", scores)
        added.insert(1, "zscore", np.abs(scores - self.mean) / self.spread)
        return added.join(results[["max_abs_z", "mean_abs_z"]])

    def results(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Value, expected value, loss and its z-score, for each column."""
        expected, losses = self.model.df_predict(rows), self.losses(rows)
        strange = ((losses - self.means) / self.spreads).abs()
        parts = {}
        for name in losses:
            parts[name], parts[f"{name}_pred"] = rows[name], expected[name]
            parts[f"{name}_loss"], parts[f"{name}_z_loss"] = losses[name], strange[name]
        highest, mean = strange.max(axis=1), strange.mean(axis=1)
        return pd.DataFrame(parts | {"max_abs_z": highest, "mean_abs_z": mean})

    def losses(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the loss of each column."""
        model = self.model
        model.eval()
        data = model.prepare_df(rows)
        numbers, yes, codes = model.compute_targets(data)
        with torch.no_grad():
            numbers_out, yes_out, logits = model.forward(data)
        named = dict(zip(model.num_names, model.mse(numbers_out, numbers).T, strict=True))
        named |= dict(zip(model.bin_names, model.bce(yes_out, yes).T, strict=True))
        pairs = zip(model.categorical_fts, logits, codes, strict=True)
        named |= {name: model.cce(logit, code.long()) for name, logit, code in pairs}
        return pd.DataFrame({k: v.numpy() for k, v in named.items()}, index=rows.index)
