"""One user with 30 % of all events: do the other users have to wait?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from figures.table import Table
from speed.logs import USER, fleet
from speed.meter import Run

from scale.runs import Size, chain, dask
from scale.turns import in_turns

SHARE = 0.3
"""The giant's share of all events."""
WORKERS = (4, 8)
"""Numbers of workers: too few to finish all other users during the giant's training, and enough."""
GIANT = "giant"


def tables(size: Size) -> Iterator[Table]:
    """Train and score a giant alone, then with all users."""
    users = size.users(200)
    logs = fleet(size.scratch, users, rate=44.0, forms=("parquet",)).folder / "parquet"
    members = _members(logs)
    all_, alone = size.scratch / "all", size.scratch / "giant"
    rows = {
        "the large user alone": (alone, _written(logs, alone, members, others=False)),
        "all users": (all_, _written(logs, all_, members, others=True)),
    }
    table = Table(
        f"A user with {rows['the large user alone'][1] / rows['all users'][1]:.0%} of all events, "
        f"among {users - len(members)} others: training and scoring",
        ["workers", "users", "events", "wall s", "relative to alone", "CPU s", "peak MB"],
        note="Workers take turns on one core, whether they have work or not. So each has the same "
        "speed alone and together, as on a cluster, but is slower. The large user is several "
        "people of the company under one name. All other users together are about four times the "
        "work of the large user: with four workers the others take the most time, with eight "
        "workers the large user does.",
    )
    for workers in WORKERS:
        walls: list[float] = []
        for name, (folder, events) in rows.items():
            run = _run(folder, size.scratch / "out.csv", workers)
            walls.append(run.wall)
            times = run.wall / walls[0]
            table.add(workers, name, events, run.wall, times, run.cpu, run.peak)
    yield table


def _run(logs: Path, into: Path, workers: int) -> Run:
    with in_turns(workers):
        return chain(logs / "scored", into, *dask(workers), history=logs / "training")


def _members(logs: Path) -> list[str]:
    """Return the first people who together have the giant's share of all events."""
    users = pl.scan_parquet(logs / "*/*.parquet").group_by(USER).len().collect().sort(USER)
    before = pl.col("len").cum_sum() - pl.col("len")
    return users.filter(before < SHARE * pl.col("len").sum())[USER].to_list()


def _written(logs: Path, into: Path, members: list[str], *, others: bool) -> int:
    """Write the logs with these people as one user; return the number of events."""
    events = 0
    for path in logs.rglob("*.parquet"):
        frame = pl.read_parquet(path)
        is_giant = pl.col(USER).is_in(members)
        frame = frame.filter(is_giant | others).with_columns(
            pl.when(is_giant).then(pl.lit(GIANT)).otherwise(USER).alias(USER)
        )
        target = into / path.relative_to(logs)
        target.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(target)
        events += frame.height
    return events
