"""Detectors that you might use instead, on the same rows: time and average precision.

Each learns the history of a user and scores the user's later events. All start from frames in
memory and use one thread. A detector whose library is not installed is named and skipped.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from figures.table import Table
from numpy.typing import NDArray

from morpheus import Fingerprints
from speed.logs import USER, Logs, fleet
from speed.scale import Scale
from speed.training import Floats, Found, features

EVENT = "eventID"
SEED = 1
LEAST = 300
"""Minimum number of training events of a user."""


@dataclass(frozen=True)
class Case:
    """One user's events.

    Attributes:
        history: Training events, by time.
        scored: Events to score, by time.
        marked: Whether each scored event belongs to an incident.
    """

    history: pl.DataFrame
    scored: pl.DataFrame
    marked: NDArray[np.bool_]


@dataclass(frozen=True)
class DetectorResult:
    """What a detector gives, and its cost.

    Attributes:
        scores: Scores of each user's events, by the name of the score.
        learning: CPU seconds of learning all users.
        scoring: CPU seconds of scoring all users.
    """

    scores: Mapping[str, Sequence[Floats]]
    learning: float
    scoring: float


Detector = Callable[[Sequence[Case]], DetectorResult]
Score = Callable[[Any], Any]
Learn = Callable[[Any], Score]
"""Takes a user's history as a frame of pandas; returns a function from such a frame to scores."""


def tables(scale: Scale) -> Iterator[Table]:
    """Compare on labelled incidents."""
    users = 5 if scale.quick else 40
    attacked = 1.0 if scale.quick else 0.5
    logs = fleet(scale.scratch, users, rate=24.0, attacked=attacked, forms=("parquet",))
    cases = list_cases(logs)
    learnt = sum(case.history.height for case in cases)
    scored = sum(case.scored.height for case in cases)
    found, skipped = ask(cases, DETECTORS)
    table = Table(
        "Detectors that you might use instead, on labelled incidents",
        [
            *("detector", "learning, CPU µs per event", "scoring, CPU µs per event"),
            *("average precision, mean of users", "pooled"),
        ],
        note=f"{len(cases)} users with {learnt:,} events of history and {scored:,} scored events, "
        f"{sum(int(case.marked.sum()) for case in cases):,} of them of incidents. One thread, from "
        "frames in memory, one model per user, default settings. morpheus: its Python API. "
        "IsolationForest and ECOD: on one-hot codes. Half-space trees: on the share of each value "
        "in the user's history. DuckDB: one query for all users, the mean over columns of the "
        f"logarithm of how rare the value is for the user.{skipped}",
    )
    for name, answer in found.items():
        cost = (answer.learning / learnt * 1e6, answer.scoring / scored * 1e6)
        for label, scores in answer.scores.items():
            judged = Found(list(scores), [case.marked for case in cases])
            table.add(f"{name}{label}", *cost, judged.by_user, judged.pooled)
    yield table


def list_cases(logs: Logs) -> list[Case]:
    """Return the users with enough history."""
    later = {part[USER][0]: part for part in logs.later.partition_by(USER, maintain_order=True)}
    return [
        Case(user, scored, scored[EVENT].is_in(list(logs.labels)).to_numpy())
        for user in logs.history.partition_by(USER, maintain_order=True)
        if user.height >= LEAST and (scored := later.get(user[USER][0])) is not None
    ]


def ask(
    cases: Sequence[Case], detectors: Mapping[str, tuple[str, Detector]]
) -> tuple[dict[str, DetectorResult], str]:
    """Return the answers of detectors, and a sentence about those that were skipped."""
    found, missing = {}, []
    for name, (library, detector) in detectors.items():
        try:
            title = f"{name}{version(library)}" if library != "morpheus-dfp" else name
            found[title] = detector(cases)
        except ImportError as error:  # also of packages without metadata
            missing.append(f"{name.rstrip()} ({error.name or library} is not installed)")
    return found, f" Skipped: {', '.join(missing)}." if missing else ""


def measure(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function and its CPU seconds."""
    begin = time.process_time()
    result = action()
    return result, time.process_time() - begin


def ours(cases: Sequence[Case]) -> DetectorResult:
    """Train and score with the Python API."""
    history = pl.concat([case.history for case in cases])
    scored = pl.concat([case.scored for case in cases])
    Fingerprints.train(cases[0].history, user=USER, seed=SEED)  # loads what it needs
    known, learning = measure(lambda: Fingerprints.train(history, user=USER, seed=SEED))
    output, scoring = measure(lambda: known.score(scored))
    ends = np.cumsum([case.scored.height for case in cases])[:-1]
    labels = ("ae_anomaly_score", "risk")
    scores = {f"`{name}`": np.split(output[name].to_numpy(), ends) for name in labels}
    return DetectorResult(scores, learning, scoring)


def one_by_one(load: Callable[[], Learn], cases: Sequence[Case]) -> DetectorResult:
    """Train and score each user with a detector of a library."""
    learn = load()
    columns = features(cases[0].history)
    frames = [
        [part.select(pl.col(columns).fill_null("")).to_pandas() for part in (c.history, c.scored)]
        for c in cases
    ]
    with warnings.catch_warnings(action="ignore"):  # of ECOD, about columns with one value
        learn(frames[0][0])(frames[0][1])  # loads what it needs
        models, learning = measure(lambda: [learn(history) for history, _ in frames])
        scores, scoring = measure(
            lambda: [model(scored) for model, (_, scored) in zip(models, frames, strict=True)]
        )
    return DetectorResult(
        {"": [np.asarray(each, dtype=np.float64) for each in scores]}, learning, scoring
    )


def load_outliers(name: str) -> Learn:
    """Return a detector of `rivals.outliers`, on one-hot codes."""
    learn = getattr(importlib.import_module("rivals.outliers"), name)
    return partial(learn, seed=SEED, epochs=0)


def load_trees() -> Learn:
    """Return River's half-space trees, on the share of each value in the user's history."""
    anomaly = importlib.import_module("river.anomaly")

    def learn(history: Any) -> Score:  # noqa: ANN401 - a frame of pandas
        model = anomaly.HalfSpaceTrees(seed=SEED)
        counts = {name: Counter(history[name]) for name in history}
        for row in shares(history, counts):
            model.learn_one(row)
        return lambda events: [model.score_one(row) for row in shares(events, counts)]

    return learn


def shares(frame: Any, counts: Mapping[str, Counter[str]]) -> Iterator[dict[str, float]]:  # noqa: ANN401 - of pandas
    """Yield each row, with the share of its values in a history in place of the values."""
    columns = [
        [counts[name][value] / counts[name].total() for value in frame[name]] for name in frame
    ]
    for row in zip(*columns, strict=True):
        yield dict(zip(counts, row, strict=True))


COUNT = """
CREATE TABLE counts AS
SELECT owner, name, value, count(*) AS n
FROM (UNPIVOT history ON COLUMNS(* EXCLUDE (owner)) INTO NAME name VALUE value)
GROUP BY ALL;
CREATE TABLE totals AS SELECT owner, count(*) AS total FROM history GROUP BY owner
"""
RATE = """
SELECT event, avg(ln((total + 1) / (coalesce(n, 0) + 1))) AS score
FROM (UNPIVOT scored ON COLUMNS(* EXCLUDE (owner, event)) INTO NAME name VALUE value)
LEFT JOIN counts USING (owner, name, value)
JOIN totals USING (owner)
GROUP BY event ORDER BY event
"""


def count_in_duckdb(cases: Sequence[Case]) -> DetectorResult:
    """Count values per user and column in SQL, and rate events by how rare their values are."""
    connection = importlib.import_module("duckdb").connect()
    connection.execute("SET threads = 1")
    columns = [name for name in features(cases[0].history) if name != USER]
    texts = [pl.col(USER).alias("owner"), pl.col(columns).fill_null("")]
    history = pl.concat([case.history for case in cases]).select(texts)
    scored = pl.concat([case.scored for case in cases]).select(texts).with_row_index("event")
    connection.register("history", history.to_arrow())
    connection.register("scored", scored.to_arrow())
    _, learning = measure(lambda: connection.execute(COUNT))
    rated, scoring = measure(lambda: connection.execute(RATE).fetchnumpy()["score"])
    ends = np.cumsum([case.scored.height for case in cases])[:-1]
    return DetectorResult(
        {"": np.split(np.asarray(rated, dtype=np.float64), ends)}, learning, scoring
    )


DETECTORS: Mapping[str, tuple[str, Detector]] = {
    "morpheus, ": ("morpheus-dfp", ours),
    "IsolationForest, scikit-learn ": (
        "scikit-learn",
        partial(one_by_one, partial(load_outliers, "forest")),
    ),
    "isolation forest, PyOD ": ("pyod", partial(one_by_one, partial(load_outliers, "pyod_forest"))),
    "ECOD, PyOD ": ("pyod", partial(one_by_one, partial(load_outliers, "ecod"))),
    "half-space trees, River ": ("river", partial(one_by_one, load_trees)),
    "counts, DuckDB ": ("duckdb", count_in_duckdb),
}
"""Name -> distribution and detector."""
