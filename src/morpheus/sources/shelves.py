"""Tables on disk, sorted by user into a few places, so that nobody's events lie in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import polars as pl

from morpheus.processes import Crew
from morpheus.sources.census import PART, USER
from morpheus.sources.union import union
from morpheus.spill import Blob, remove, write


@dataclass(frozen=True)
class Shelves:
    """Tables on disk, sorted by user.

    Attributes:
        places: The place, `PART`, of each `USER`.
        tables: What lies in each place.
    """

    places: pl.DataFrame
    tables: Mapping[int, list[Blob]]

    @classmethod
    def filled(  # noqa: PLR0913 - what is sorted, and with what
        cls,
        blobs: list[Blob],
        user: str,
        places: pl.DataFrame,
        *,
        held: int,
        table: int,
        crew: Crew,
        folder: Path,
    ) -> Self:
        """Sort tables, which go.

        Args:
            blobs: The tables.
            user: Column of the user.
            places: The place, `PART`, of each `USER`.
            held: Rows that are in memory together, at most, or those of one table.
            table: Rows of a sorted table, at most.
            crew: Processes that help.
            folder: Where the sorted tables are written.
        """
        tables: dict[int, list[Blob]] = {place: [] for place in places[PART].unique()}
        jobs = list(_jobs(blobs, held))
        sort = partial(_divide, user, places, folder)
        for job, pieces in zip(jobs, crew.map(sort, jobs), strict=True):
            remove(job)
            for place, piece in pieces:
                tables[place].append(piece)
        return cls(places, _merged(tables, table, crew, folder))

    def of(self, users: pl.DataFrame) -> list[Blob]:
        """The tables in which some users' events are, each `USER` of whom is known."""
        mine = self.places.join(users, on=USER, how="semi", nulls_equal=True)
        return [table for place in mine[PART].unique().sort() for table in self.tables[place]]


def _merged(
    tables: Mapping[int, list[Blob]], rows: int, crew: Crew, folder: Path
) -> dict[int, list[Blob]]:
    """Join small tables of a place: to open one takes longer than to pass over its few rows."""
    jobs = {place: list(_jobs(blobs, rows)) for place, blobs in tables.items()}
    made = crew.map(partial(_merge, folder), [job for some in jobs.values() for job in some])
    return {place: [next(made) for _ in some] for place, some in jobs.items()}


def _merge(folder: Path, blobs: Sequence[Blob]) -> Blob:
    if len(blobs) == 1:
        return blobs[0]
    [blob] = write(folder, [union([blob.read() for blob in blobs])])
    remove(blobs)
    return blob


def _jobs(blobs: list[Blob], rows: int) -> Iterator[list[Blob]]:
    """Tables that are taken together, in their order: of so many rows at most, or one alone."""
    job: list[Blob] = []
    for blob in blobs:
        if job and sum(one.rows for one in job) + blob.rows > rows:
            yield job
            job = []
        job.append(blob)
    if job:
        yield job


def _divide(
    user: str, places: pl.DataFrame, folder: Path, blobs: list[Blob]
) -> list[tuple[int, Blob]]:
    frame = union([blob.read() for blob in blobs])
    parts, pieces = divided(frame, user, places)
    return list(zip(parts, write(folder, pieces), strict=True))


def divided(
    frame: pl.DataFrame, user: str, places: pl.DataFrame
) -> tuple[list[int], Iterator[pl.DataFrame]]:
    """Divide events by the `PART` of each `USER`: which parts there are, and what is of each."""
    names = frame.select(pl.col(user).alias(USER))
    parts = names.join(places, on=USER, how="left", nulls_equal=True, maintain_order="left")[PART]
    order = parts.arg_sort()
    frame, runs = frame[order], parts.gather(order).rle().struct.unnest()
    starts = runs["len"].cum_sum() - runs["len"]
    pieces = (frame.slice(at, length) for at, length in zip(starts, runs["len"], strict=True))
    return runs["value"].to_list(), pieces
