"""Cost per user and per event, from runs of different sizes, and projections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import getsizeof

import numpy as np
from figures.table import Table
from speed.logs import USER, Logs
from speed.meter import Run

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.models.versions import open_models
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.storage.spill import spill_to_memory
from scale.runs import Size, both, dask

SHAPES = {"few": (10, 11.0), "broad": (160, 11.0), "deep": (20, 220.0)}
"""Number of users, and events per user and day."""
USERS, EVENTS, DAYS = 1_000_000, 10_000_000_000, 14
"""Projections: users, events per day, and training days."""
CORES, BUSY, PRICE = 16, 0.7, 0.04
"""Cores of a node, the share in use, and the list price in dollars per core and hour."""
DAY = 86_400


@dataclass(frozen=True)
class Cost:
    """CPU seconds per run, per user and per event."""

    run: float
    user: float
    event: float

    @classmethod
    def of(cls, users: list[int], events: list[int], seconds: list[float]) -> Cost:
        """Solve for the costs, from as many runs of different sizes as there are costs.

        >>> Cost.of([0, 10, 0], [0, 0, 100], [1.0, 2.0, 3.0])
        Cost(run=1.0, user=0.1, event=0.02)
        """
        sizes = np.array([[1, u, e] for u, e in zip(users, events, strict=True)], dtype=float)
        solved = np.linalg.solve(sizes, np.array(seconds))
        return cls(*(round(float(one), 9) for one in solved))

    def seconds(self, users: float, events: float) -> float:
        """CPU seconds of a run."""
        return self.run + self.user * users + self.event * events


def tables(size: Size) -> Iterator[Table]:
    """Measure, check with other numbers of workers, and project."""
    logs = {name: size.fleet(*shape) for name, shape in SHAPES.items()}
    models = {name: size.scratch / f"models-{name}" for name in SHAPES}
    out = size.scratch / "out.csv"
    learn = {
        name: both(one, out, *dask(1), train=(), more=(f"--models_output_filename={models[name]}",))
        for name, one in logs.items()
    }
    score = {
        name: both(one, out, *dask(1), train=(f"--pretrained_filename={models[name]}",))
        for name, one in logs.items()
    }
    counts = [len(open_models(str(models[name])).cards) for name in SHAPES]
    scored = Cost.of(counts, [one.scored for one in logs.values()], [r.cpu for r in score.values()])
    learnt = Cost.of(
        counts,
        [one.training for one in logs.values()],
        [learn[name].cpu - score[name].cpu for name in SHAPES],
    )
    yield _costs(logs["deep"], models["broad"], out, {"scoring": scored, "training": learnt})
    yield _memory(learn)
    yield _checked(size, logs["broad"], counts[1], scored, learnt)
    yield _far(scored, learnt)


def _costs(logs: Logs, models: Path, out: Path, costs: dict[str, Cost]) -> Table:
    table = Table(
        "Cost per user and per event",
        ["", "per user", "per event"],
        note="Solved from three runs on one worker: with few users, with many users, and with many "
        "events. Training is the difference between a run that trains and a run that loads "
        "fingerprints.",
    )
    for name, cost in costs.items():
        table.add(f"{name}, CPU ms", 1000 * cost.user, 1000 * cost.event)
    cards = open_models(str(models)).cards.values()
    table.add("size of a fingerprint, bytes", sum(card.size for card in cards) // len(cards), None)
    table.add("moved by the shuffle, bytes", None, _moved(logs))
    table.add("CSV written, bytes", None, out.stat().st_size // logs.scored)
    return table


def _moved(logs: Logs) -> float:
    """Return the bytes of an event that is sent to another worker."""
    columns = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")
    settings = PipelineOptions(columns=columns, userid_column_name=USER, num_threads=1)
    source = FromCloudtrail(input_glob=str(logs.folder / "json/scored"), options=settings)
    frames = [batch.table.to_frame() for batch in source.events(None, RunMetrics())]
    return sum(getsizeof(spill_to_memory(frame)) for frame in frames) / sum(
        one.height for one in frames
    )


def _memory(learn: dict[str, Run]) -> Table:
    table = Table(
        "Peak memory of the main process, the scheduler and one worker",
        ["run", "MB"],
    )
    for name, run in learn.items():
        table.add(name, run.peak)
    return table


def _checked(size: Size, logs: Logs, users: int, scored: Cost, learnt: Cost) -> Table:
    table = Table(
        f"{users:,} users, {logs.training:,} training events and {logs.scored:,} scored events, "
        "by number of workers",
        ["workers", "wall s", "CPU s", "CPU s, predicted", "measured / predicted"],
        note="All workers run on the 2 cores of one machine, so more than two cannot be faster. "
        "The prediction ignores the cost of starting a worker; this is the difference.",
    )
    for workers in (1, 2, 4):
        run = both(logs, size.scratch / "checked.csv", *dask(workers))
        predicted = scored.seconds(users, logs.scored) + learnt.seconds(users, logs.training)
        table.add(workers, run.wall, run.cpu, predicted, run.cpu / predicted)
    return table


def _far(scored: Cost, learnt: Cost) -> Table:
    table = Table(
        f"{USERS:,} users and {EVENTS:,} events a day",
        ["", "core-hours per day", "nodes", "dollars per day"],
        note=f"Projected, not run: nodes of {CORES} cores, busy for {BUSY:.0%} of the day, at "
        f"{PRICE} dollars per core and hour, without storage and traffic. Training on {DAYS} days "
        f"every {DAYS} days uses each event once.",
    )
    daily = scored.seconds(USERS, EVENTS)
    weekly = learnt.seconds(USERS, EVENTS * DAYS) / DAYS
    for name, seconds in (("scoring", daily), ("training again every 14 days", weekly)):
        hours = seconds / 3600
        nodes = int(-(-seconds // (DAY * CORES * BUSY)))
        table.add(name, hours, nodes, hours * PRICE / BUSY)
    return table
