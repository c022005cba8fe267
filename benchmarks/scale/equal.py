"""Equality of the output of one machine and of a cluster, for a company."""

from __future__ import annotations

from collections.abc import Iterator

from figures.table import Table

from scale.runs import Size, both, dask


def tables(size: Size) -> Iterator[Table]:
    """Train and score a company on one machine and on a cluster, with two processes each."""
    logs = size.fleet(2000, 8.0)
    table = Table(
        f"{size.users(2000):,} users, {logs.training:,} training events and {logs.scored:,} "
        "scored events",
        ["engine", "wall s", "CPU s", "peak MB", "output"],
        note="Output: compared with that of the first row, byte for byte.",
    )
    first = size.scratch / "first.csv"
    for name, options in (
        ("local, 2 processes", ("--num_threads=2",)),
        ("dask, 2 workers", dask(2)),
    ):
        into = first if not table.rows else size.scratch / "again.csv"
        run = both(logs, into, *options)
        same = "reference" if into is first else equality(into.read_bytes() == first.read_bytes())
        table.add(name, run.wall, run.cpu, run.peak, same)
    yield table


def equality(same: bool) -> str:  # noqa: FBT001 - the only argument
    """Return whether two outputs are equal."""
    return "identical" if same else "DIFFERENT"
