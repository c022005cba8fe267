"""Run by the rivals' own Python: lets one of them learn and score each user of a job.

    python worker.py JOB.json

The job names CSV files; each line of the answer, a user's, has CPU seconds of training and of
scoring, and the scores. Nothing here knows morpheus.
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
"""Nulls are this word in training and in scoring: in Morpheus they differ, and scores are noise."""
RIVALS = {
    "dfencoder": autoencoder.learn,
    "forest": outliers.forest,
    "ecod": outliers.ecod,
    "stages of 22.08, 1024 rows a call": stages.learn(stages.Scores, rows=1024),
    "stages of 22.08, 8 rows a call": stages.learn(stages.Scores, rows=8),
    "stages of 22.11, 1024 rows a call": stages.learn(stages.Losses, rows=1024),
    "stages of 22.11, 8 rows a call": stages.learn(stages.Losses, rows=8),
}
"""From a history, a seed and epochs to a function from events to scores."""


def read(path: str) -> pd.DataFrame:
    """Read a user's events as text."""
    return pd.read_csv(path, dtype=object, keep_default_na=False).replace("", NULL)


def answer(user: dict, job: dict) -> dict:
    """Learn and score one user; columns that the history has no value in are left out."""
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
    """Do the job."""
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
