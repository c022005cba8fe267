"""What a user and an event cost, from runs of different sizes; and what many of them would cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import getsizeof

import numpy as np
from figures.table import Table
from speed.logs import USER, Logs
from speed.meter import Run

from morpheus.columns import read_lines
from morpheus.records import Summary
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.spill import pack
from morpheus.stage import Settings
from scale.runs import Size, both, dask

SHAPES = {"few": (10, 11.0), "broad": (160, 11.0), "deep": (20, 220.0)}
"""Users, and events of each a day."""
USERS, EVENTS, DAYS = 1_000_000, 10_000_000_000, 14
"""What is asked for: users, events a day, and days that are learnt from."""
CORES, BUSY, PRICE = 16, 0.7, 0.04
"""Cores of a node, their share that is used, and dollars for one core and hour, a list price."""
DAY = 86_400


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a run, whatever its size, of a user, and of an event."""

    run: float
    user: float
    event: float

    @classmethod
    def of(cls, users: list[int], events: list[int], seconds: list[float]) -> Cost:
        """What runs of as many different sizes as there are costs take.

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
    """Measure, check on other numbers of workers, and reckon."""
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
    counts = [len(list(models[name].rglob("*.safetensors"))) for name in SHAPES]
    scored = Cost.of(counts, [one.scored for one in logs.values()], [r.cpu for r in score.values()])
    learnt = Cost.of(
        counts,
        [one.training for one in logs.values()],
        [learn[name].cpu - score[name].cpu for name in SHAPES],
    )
    yield _costs(logs["deep"], models["broad"], out, {"score": scored, "learn": learnt})
    yield _memory(learn)
    yield _checked(size, logs["broad"], counts[1], scored, learnt)
    yield _far(scored, learnt)


def _costs(logs: Logs, models: Path, out: Path, costs: dict[str, Cost]) -> Table:
    table = Table(
        "What a user and an event cost",
        ["", "a user", "an event"],
        note="Solved from three runs on one worker, of few users, of many, and of many events. To "
        "learn is what a run that learns takes more than one that loads fingerprints.",
    )
    for name, cost in costs.items():
        table.add(f"to {name}, CPU ms", 1000 * cost.user, 1000 * cost.event)
    files = list(models.rglob("*.safetensors"))
    table.add("fingerprint, bytes", sum(path.stat().st_size for path in files) // len(files), None)
    table.add("moved by the shuffle, bytes", None, _moved(logs))
    table.add("CSV written, bytes", None, out.stat().st_size // logs.scored)
    return table


def _moved(logs: Logs) -> float:
    """Bytes of an event on its way from one worker to the other."""
    columns = read_lines("columns_ae_cloudtrail.txt", option="--columns_file")
    settings = Settings(columns=columns, userid_column_name=USER, num_threads=1)
    source = FromCloudtrail(input_glob=str(logs.folder / "json/scored"), settings=settings)
    frames = [batch.frame for batch in source.events(None, Summary())]
    return sum(getsizeof(pack(frame)) for frame in frames) / sum(one.height for one in frames)


def _memory(learn: dict[str, Run]) -> Table:
    table = Table(
        "Most memory of the process at the prompt, the scheduler and one worker",
        ["run", "MB"],
    )
    for name, run in learn.items():
        table.add(name, run.peak)
    return table


def _checked(size: Size, logs: Logs, users: int, scored: Cost, learnt: Cost) -> Table:
    table = Table(
        f"{users:,} users, {logs.training:,} events learnt and {logs.scored:,} scored, by workers",
        ["workers", "wall s", "CPU s", "CPU s by the model", "measured / model"],
        note="All on the 2 cores of one machine, so that more than two workers cannot be faster. "
        "The model has no cost of a worker: what another one takes to start is the difference.",
    )
    for workers in (1, 2, 4):
        run = both(logs, size.scratch / "checked.csv", *dask(workers))
        told = scored.seconds(users, logs.scored) + learnt.seconds(users, logs.training)
        table.add(workers, run.wall, run.cpu, told, run.cpu / told)
    return table


def _far(scored: Cost, learnt: Cost) -> Table:
    table = Table(
        f"{USERS:,} users and {EVENTS:,} events a day",
        ["", "core-hours a day", "nodes", "dollars a day"],
        note=f"Reckoned, not run: nodes of {CORES} cores that are busy for {BUSY:.0%} of the day, "
        f"a core for {PRICE} dollars an hour, without storage and traffic. To learn from {DAYS} "
        f"days once in {DAYS} days is to learn from each event once.",
    )
    daily = scored.seconds(USERS, EVENTS)
    weekly = learnt.seconds(USERS, EVENTS * DAYS) / DAYS
    for name, seconds in (("score", daily), ("learn anew every 14 days", weekly)):
        hours = seconds / 3600
        nodes = int(-(-seconds // (DAY * CORES * BUSY)))
        table.add(name, hours, nodes, hours * PRICE / BUSY)
    return table
