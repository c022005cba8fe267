"""Many users with few events: the overhead of a cluster with the smallest tasks."""

from __future__ import annotations

from collections.abc import Iterator

from figures.table import Table

from scale.runs import Size, alone, chain, dask, flat

TINY = 30
"""Events of a tiny user."""


def tables(size: Size) -> Iterator[Table]:
    """Train and score tiny users on one machine, and on one worker; then score alone."""
    users = size.users(2000)
    folder = size.scratch / "tiny"
    names = [f"user-{n:05}" for n in range(users)]
    events = flat(names * TINY, folder)
    table = Table(
        f"{users:,} users of {TINY} events each: {events:,} events",
        ["engine", "wall s", "CPU s", "CPU ms per user", "relative to local"],
        note="Relative to local: in CPU seconds, including the start and the end of the cluster.",
    )
    models = size.scratch / "tiny-models"
    saved = (f"--models_output_filename={models}",)
    here = chain(folder, size.scratch / "here.csv", *alone(), train=saved)
    there = chain(folder, size.scratch / "there.csv", *dask(1))
    for name, run in (("local, 1 process", here), ("dask, 1 worker", there)):
        table.add(name, run.wall, run.cpu, 1000 * run.cpu / users, run.cpu / here.cpu)
    loaded = chain(
        folder, size.scratch / "scored.csv", *alone(), train=(f"--pretrained_filename={models}",)
    )
    cost = 1000 * loaded.cpu / users
    table.add("local, 1 process, with models", loaded.wall, loaded.cpu, cost, loaded.cpu / here.cpu)
    yield table
