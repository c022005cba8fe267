"""Train and score each user of a job with a detector. Run by the Python of that environment.

    python worker.py JOB.json

The job lists CSV files. Each line of the output is for one user: CPU seconds of training and of
scoring, and the scores. This module does not use morpheus.
"""

from __future__ import annotations

import json
import random
import sys
import time
import warnings
from pathlib import Path

import autoencoder
import numpy as np
import outliers
import pandas as pd
import torch

import stages

NULL = "nan"
"""Replaces null in training and scoring. In Morpheus they differ, which makes scores random."""
RIVALS = {
    "dfencoder": autoencoder.learn,
    "forest": outliers.forest,
    "ecod": outliers.ecod,
    "stages of 22.08, 1024 rows a call": stages.learn(stages.Scores, rows=1024),
    "stages of 22.08, 8 rows a call": stages.learn(stages.Scores, rows=8),
    "stages of 22.11, 1024 rows a call": stages.learn(stages.Losses, rows=1024),
    "stages of 22.11, 8 rows a call": stages.learn(stages.Losses, rows=8),
}
"""Takes a history, a seed and epochs; returns a function from events to scores."""


def read(path: str) -> pd.DataFrame:
    """Read a user's events as text."""
    return pd.read_csv(path, dtype=object, keep_default_na=False).replace("", NULL)


def answer(user: dict, job: dict) -> dict:
    """Train and score one user, without columns that have no value in the history."""
    history = read(user["training"])
    history = history.loc[:, [(history[name] != NULL).any() for name in history]]
    learn = RIVALS[job["rival"]]
    if user.get("warm"):
        learn(history.head(64), job["seed"], 1)
    begin = time.process_time()
    score = learn(history.copy(), job["seed"], job["epochs"])
    learnt = time.process_time()
    scored = read(user["scored"])[list(history.columns)]
    started = time.process_time()
    scores = np.asarray(score(scored), dtype=float).ravel()
    done = time.process_time()
    return {"training": learnt - begin, "scoring": done - started, "scores": scores.tolist()}


def main() -> None:
    """Run the job."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out, sys.stdout = sys.stdout, sys.stderr
    for user in job["users"]:
        random.seed(job["seed"])
        np.random.seed(job["seed"])  # noqa: NPY002 - what dfencoder draws from
        torch.manual_seed(job["seed"])
        print(json.dumps(answer(user, job)), file=out, flush=True)


if __name__ == "__main__":
    main()
