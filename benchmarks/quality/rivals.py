"""Scores of detectors in a separate environment, each computed once.

The scores depend only on the user's rows, the seed and the detector. So they are cached under a
name made of these, outside git, for later runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rivals.environment import HOME, PINS, answers

from quality.trial import Case, Trial

CACHE_DIR = HOME.parent / "scores"
EDITION = 1
"""Increase this when the worker's scores change."""
SEEDED = {"dfencoder": True, "forest": True, "ecod": False}
"""Detectors, and whether their scores depend on a seed."""
Floats = NDArray[np.float64]


def scores(trial: Trial, seed: int, *, rival: str) -> Floats:
    """Return a detector's score of each row of `trial.scored`."""
    seed = seed if SEEDED[rival] else 0
    places = [place(case, trial.columns, rival, seed) for case in trial.taught]
    compute(trial, rival, seed, places)
    return np.concatenate([np.load(path, allow_pickle=False) for path in places])


def place(case: Case, columns: Sequence[str], rival: str, seed: int) -> Path:
    """Return the cache file of a user's scores."""
    name = sha256(repr((EDITION, rival, seed, PINS, columns)).encode())
    for frame in (case.history, case.scored):
        name.update(frame.select(columns).write_csv().encode())
    return CACHE_DIR / rival / f"{name.hexdigest()[:32]}.npy"


def compute(trial: Trial, rival: str, seed: int, places: Sequence[Path]) -> None:
    """Compute the scores that are not in the cache."""
    pairs = zip(trial.taught, places, strict=True)
    missing = [(case, path) for case, path in pairs if not path.exists()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        users = list(jobs([case for case, _ in missing], trial.columns, Path(scratch)))
        for answer, (_, path) in zip(answers(rival, users, seed=seed), missing, strict=True):
            keep(np.array(answer["scores"]), path)


def jobs(cases: Sequence[Case], columns: Sequence[str], folder: Path) -> Iterator[dict[str, str]]:
    """Return users as input for the detectors."""
    for number, case in enumerate(cases):
        frames = {"training": case.history, "scored": case.scored}
        paths = {name: str(folder / f"{name}-{number}.csv") for name in frames}
        for name, frame in frames.items():
            frame.select(columns).write_csv(paths[name])
        yield paths


def keep(found: Floats, path: Path) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        np.save(file, found, allow_pickle=False)
    draft.replace(path)
