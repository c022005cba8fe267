"""Training: cost per user, and detection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
import polars as pl
from figures.ranking import average_precision
from figures.table import Table
from numpy.typing import NDArray
from rivals.environment import answers

from morpheus.columns import TIME
from morpheus.models.fit import UserHistory, fit_fingerprint
from morpheus.models.profile import Fingerprint
from morpheus.models.reference import fit_dfencoder_fingerprints
from morpheus.models.scoring import STD_FLOOR
from speed import chain
from speed.logs import COLUMNS, USER, Logs, fleet
from speed.meter import cpu_seconds
from speed.scale import Scale

Floats = NDArray[np.float64]
Learn = Callable[..., Fingerprint]
RIVAL = "dfencoder 0.0.42"


def learn_reference(
    user: str, history: pl.DataFrame, columns: Sequence[str], *, times: pl.Series, seed: int
) -> Fingerprint:
    """Train one user as `--model reference` does."""
    alone = UserHistory(user, history, times)
    return fit_dfencoder_fingerprints([alone], columns, seed=seed)[0]


OURS: Mapping[str, Learn] = {"morpheus": fit_fingerprint, "reference": learn_reference}


def tables(scale: Scale) -> Iterator[Table]:
    """Measure cost by rows, then detection on labelled incidents, then many users."""
    yield cost(scale)
    yield detection(scale)
    yield many(scale)


def learnt(learn: Learn, history: pl.DataFrame) -> Fingerprint:
    """Train a user's fingerprint."""
    return learn(history[USER][0], history, COLUMNS, times=history[TIME], seed=1)


def cost(scale: Scale) -> Table:
    """Return CPU seconds per user, by number of rows."""
    logs = fleet(scale.scratch, 12, rate=scale.rich, forms=("parquet",))
    table = Table(
        "Training one user, CPU seconds (median of users, one thread)",
        ["rows", "distinct", "users", *OURS, RIVAL, "users with dfencoder", "times faster"],
        note="`reference` is `--model reference`: dfencoder's network and schedule in our "
        "implementation. dfencoder runs with the arguments of `train-ae` of Morpheus 22.09. "
        "Times faster: morpheus compared with dfencoder.",
    )
    sizes = {300: 1, 1000: 1} if scale.quick else {300: 3, 1000: 3, 5000: 1}
    for rows, rivals in sizes.items():
        users = histories(logs, rows)[: 3 if scale.quick else 5]
        for learn in OURS.values():
            learnt(learn, users[0].head(50))
        spent = {
            name: median([cpu_seconds(partial(learnt, learn, user)) for user in users])
            for name, learn in OURS.items()
        }
        distinct = int(median(user.select(features(user)).n_unique() for user in users))
        theirs = their_cost(scale, users[:rivals])
        ratio = theirs / spent["morpheus"]
        table.add(rows, distinct, len(users), *spent.values(), theirs, rivals, ratio)
    return table


def histories(logs: Logs, rows: int) -> list[pl.DataFrame]:
    """Return the last `rows` events of each user with as many."""
    users = logs.history.partition_by(USER, maintain_order=True)
    return [user.tail(rows) for user in users if user.height >= rows]


def features(frame: pl.DataFrame) -> list[str]:
    """Return the feature columns of a frame."""
    return [name for name in COLUMNS if name in frame.columns]


def their_cost(scale: Scale, users: Sequence[pl.DataFrame]) -> float:
    """Return CPU seconds per user of the reference."""
    given = [job(scale, n, user, user) | {"warm": not n} for n, user in enumerate(users)]
    return float(median(answer["training"] for answer in answers("dfencoder", given)))


def job(
    scale: Scale, number: int, history: pl.DataFrame, scored: pl.DataFrame
) -> dict[str, object]:
    """Return a user's events as input of the reference."""
    paths = [scale.scratch / f"{name}-{number}.csv" for name in ("training", "scored")]
    for frame, path in zip((history, scored), paths, strict=True):
        frame.select(features(frame)).write_csv(path)
    return {"training": str(paths[0]), "scored": str(paths[1])}


@dataclass
class Found:
    """Scores of the events of several users, with labels.

    Attributes:
        scores: Scores of each user; higher is more unusual.
        marked: Whether each event belongs to an incident.
    """

    scores: list[Floats] = field(default_factory=list)
    marked: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, scores: Sequence[float] | Floats, marked: NDArray[np.bool_]) -> None:
        """Add a user."""
        self.scores.append(np.asarray(scores, dtype=np.float64))
        self.marked.append(marked)

    @property
    def by_user(self) -> float:
        """Return the mean over users of the average precision."""
        pairs = zip(self.scores, self.marked, strict=True)
        return float(np.mean([average_precision(*pair) for pair in pairs if pair[1].any()]))

    @property
    def pooled(self) -> float:
        """Return the average precision of one ranking of all users' events."""
        return average_precision(np.concatenate(self.scores), np.concatenate(self.marked))


def detection(scale: Scale) -> Table:
    """Return the average precision on labelled incidents, ours and the reference's."""
    users = 5 if scale.quick else 40
    attacked = 1.0 if scale.quick else 0.5
    logs = fleet(scale.scratch, users, rate=24.0, attacked=attacked, forms=("parquet",))
    most = 300 if scale.quick else 1000
    later = {part[USER][0]: part for part in logs.later.partition_by(USER, maintain_order=True)}
    pairs = [(user, later[user[USER][0]]) for user in histories(logs, 300)]
    pairs = [(user.tail(most), scored) for user, scored in pairs]
    found = judged(pairs, logs.labels, scale)
    table = Table(
        "Detecting labelled incidents",
        ["score", "average precision, mean of users", "pooled"],
        note=f"{len(pairs)} users with at most {most:,} rows of history; "
        f"{sum(marked.any() for marked in found[RIVAL].marked)} of them have incidents. "
        "Sum of z-scores: losses above the baseline, in standard deviations of the validation "
        "losses, summed over columns. dfencoder treats a column of two values as boolean, and an "
        "unseen value as the usual one. Morpheus 22.09, which `reference` follows, no longer does.",
    )
    for name, each in found.items():
        table.add(name, each.by_user, each.pooled)
    return table


def judged(
    pairs: Sequence[tuple[pl.DataFrame, pl.DataFrame]], labels: Mapping[str, str], scale: Scale
) -> dict[str, Found]:
    """Return the scores of all users, by kind of score."""
    names = ["morpheus, mean loss", "morpheus, sum of z-scores", "reference, mean loss", RIVAL]
    found = {name: Found() for name in names}
    given = []
    for number, (history, scored) in enumerate(pairs):
        marked = scored["eventID"].is_in(list(labels)).to_numpy()
        ours, usual = losses(fit_fingerprint, history, scored)
        same, _ = losses(learn_reference, history, scored)
        found[names[0]].add(ours.mean(1), marked)
        found[names[1]].add(usual, marked)
        found[names[2]].add(same.mean(1), marked)
        given.append(job(scale, number, history, scored))
    for answer, (_, scored) in zip(answers("dfencoder", given), pairs, strict=True):
        found[RIVAL].add(answer["scores"], scored["eventID"].is_in(list(labels)).to_numpy())
    return found


def losses(learn: Learn, history: pl.DataFrame, scored: pl.DataFrame) -> tuple[Floats, Floats]:
    """Return the columns' losses, and the sum of z-scores above the baseline."""
    known = learnt(learn, history)
    rows = known.encoder.encode(scored)
    each = known.losses(rows)[rows.inverse]
    above = known.baseline.excess_z(each.astype(np.float64), STD_FLOOR).sum(1)
    return each.astype(np.float64), above


def many(scale: Scale) -> Table:
    """Train all users of a large fleet with the command."""
    logs = fleet(scale.scratch, scale.users, copies=scale.copies)
    models = scale.scratch / f"models-{scale.users}"
    table = Table(
        f"Training {scale.users:,} users with the command, from `.json.gz` "
        f"({logs.training / scale.users:,.0f} events per user)",
        [
            *("threads", "wall s", "CPU s", "CPU s per user", "per 1,000 events"),
            *("10,000 users, min", "peak MB"),
        ],
        note="Includes reading, starting the processes and writing the fingerprints. Per 1,000 "
        "events: CPU seconds of a user with that many events, in proportion. 10,000 users: wall "
        'time for that many such users, in proportion; see "How cost grows".',
    )
    for threads in (2,) if scale.quick else (1, 2):
        run = chain.learn(logs, models, threads=threads)
        each, fleet_of = run.cpu / scale.users, 10_000 / scale.users
        rich = run.cpu / logs.training * 1000
        table.add(threads, run.wall, run.cpu, each, rich, run.wall * fleet_of / 60, run.peak)
    return table
