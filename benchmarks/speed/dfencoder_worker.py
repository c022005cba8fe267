"""Run by the rival's own Python: trains dfencoder on each user as `train-ae` of 22.09 does.

    python dfencoder_worker.py JOB.json

The job names CSV files of users; the answer, beside it as `.answer.json`, has CPU seconds of
training and of scoring, and the scores. Nothing here knows morpheus.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

NULL = "nan"
"""Nulls are this word in training and in scoring: as released they differ, and scores are noise."""
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


def mend() -> None:
    """Give back what pandas and numpy have dropped since 2022."""
    for name in ("iteritems", "append"):
        if not hasattr(pd.Series, name):
            setattr(pd.Series, name, _series(name))
    if not hasattr(np, "product"):
        np.prod = np.prod  # type: ignore[attr-defined]  # the old name


def _series(name: str):  # type: ignore[no-untyped-def]  # pandas' own types are not at hand  # noqa: ANN202 - the same
    if name == "iteritems":
        return pd.Series.items
    return lambda self, other: pd.concat([self, other])


def read(path: str, rows: int | None = None) -> pd.DataFrame:
    """Read a user's events as text; the last so many rows."""
    frame = pd.read_csv(path, dtype=object, keep_default_na=False).replace("", NULL)
    return frame if rows is None else frame.tail(rows).reset_index(drop=True)


def train(frame: pd.DataFrame, epochs: int) -> tuple[object, float]:
    """Train; CPU seconds."""
    from dfencoder import AutoEncoder  # noqa: PLC0415 - after it has been mended

    begin = time.process_time()
    model = AutoEncoder(**ARGUMENTS)
    model.fit(frame.copy(), epochs=epochs)
    return model, time.process_time() - begin


def main() -> None:
    """Do the job."""
    warnings.filterwarnings("ignore")
    mend()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    answer = []
    for user in job["users"]:
        torch.manual_seed(job["seed"])
        np.random.seed(job["seed"])  # noqa: NPY002 - what dfencoder draws from
        history = read(user["training"], user.get("rows"))
        history = history.loc[:, [(history[name] != NULL).any() for name in history]]
        if user.get("warm"):
            train(history.head(64), 1)
        model, spent = train(history, job["epochs"])
        scored = read(user["scored"])[list(history.columns)]
        begin = time.process_time()
        scores = np.asarray(model.get_anomaly_score(scored), dtype=float).ravel()  # type: ignore[attr-defined]  # untyped
        scoring = time.process_time() - begin
        answer.append({"training": spent, "scoring": scoring, "scores": scores.tolist()})
    Path(sys.argv[1]).with_suffix(".answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
