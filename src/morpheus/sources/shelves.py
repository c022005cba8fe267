"""Tables on disk, sorted by user into a few places, so that nobody's events lie in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import polars as pl

from morpheus.processes import WorkerPool
from morpheus.sources.census import PARTITION, USER
from morpheus.sources.union import concat_frames
from morpheus.spill import SpilledTable, delete_spilled, spill_to_disk


@dataclass(frozen=True)
class BucketedSpill:
    """Tables on disk, sorted by user.

    Attributes:
        user_buckets: The place, `MIN_CONTEXT_SHARE`, of each `USER`.
        tables_by_bucket: What lies in each place.
    """

    user_buckets: pl.DataFrame
    tables_by_bucket: Mapping[int, list[SpilledTable]]

    @classmethod
    def partition_by_bucket(  # noqa: PLR0913 - what is sorted, and with what
        cls,
        spilled_tables: list[SpilledTable],
        user: str,
        user_buckets: pl.DataFrame,
        *,
        max_rows_in_memory: int,
        max_table_rows: int,
        pool: WorkerPool,
        folder: Path,
    ) -> Self:
        """Sort tables, which go.

        Args:
            spilled_tables: The tables.
            user: Column of the user.
            user_buckets: The place, `MIN_CONTEXT_SHARE`, of each `USER`.
            max_rows_in_memory: Rows that are in memory together, at most, or those of one table.
            max_table_rows: Rows of a sorted table, at most.
            pool: Processes that help.
            folder: Where the sorted tables are written.
        """
        tables: dict[int, list[SpilledTable]] = {place: [] for place in user_buckets[PARTITION].unique()}
        jobs = list(_group_tables(spilled_tables, max_rows_in_memory))
        sort = partial(_split_tables, user, user_buckets, folder)
        for job, pieces in zip(jobs, pool.map(sort, jobs), strict=True):
            delete_spilled(job)
            for place, piece in pieces:
                tables[place].append(piece)
        return cls(user_buckets, _merge_buckets(tables, max_table_rows, pool, folder))

    def find_tables(self, users: pl.DataFrame) -> list[SpilledTable]:
        """The tables in which some users' events are, each `USER` of whom is known."""
        mine = self.user_buckets.join(users, on=USER, how="semi", nulls_equal=True)
        return [table for place in mine[PARTITION].unique().sort() for table in self.tables_by_bucket[place]]


def _merge_buckets(
    tables_by_bucket: Mapping[int, list[SpilledTable]], max_rows: int, pool: WorkerPool, folder: Path
) -> dict[int, list[SpilledTable]]:
    """Join small tables of a place: to open one takes longer than to pass over its few rows."""
    jobs = {place: list(_group_tables(blobs, max_rows)) for place, blobs in tables_by_bucket.items()}
    made = pool.map(partial(_merge_tables, folder), [job for some in jobs.values() for job in some])
    return {place: [next(made) for _ in some] for place, some in jobs.items()}


def _merge_tables(folder: Path, tables: Sequence[SpilledTable]) -> SpilledTable:
    if len(tables) == 1:
        return tables[0]
    [blob] = spill_to_disk(folder, [concat_frames([blob.read() for blob in tables])])
    delete_spilled(tables)
    return blob


def _group_tables(tables: list[SpilledTable], max_rows: int) -> Iterator[list[SpilledTable]]:
    """Tables that are taken together, in their order: of so many rows at most, or one alone."""
    job: list[SpilledTable] = []
    for blob in tables:
        if job and sum(one.num_rows for one in job) + blob.num_rows > max_rows:
            yield job
            job = []
        job.append(blob)
    if job:
        yield job


def _split_tables(
    user: str, user_buckets: pl.DataFrame, folder: Path, tables: list[SpilledTable]
) -> list[tuple[int, SpilledTable]]:
    frame = concat_frames([blob.read() for blob in tables])
    parts, pieces = split_by_partition(frame, user, user_buckets)
    return list(zip(parts, spill_to_disk(folder, pieces), strict=True))


def split_by_partition(
    frame: pl.DataFrame, user: str, user_partitions: pl.DataFrame
) -> tuple[list[int], Iterator[pl.DataFrame]]:
    """Divide events by the `MIN_CONTEXT_SHARE` of each `USER`: which parts there are, and what is of each."""
    names = frame.select(pl.col(user).alias(USER))
    parts = names.join(user_partitions, on=USER, how="left", nulls_equal=True, maintain_order="left")[PARTITION]
    order = parts.arg_sort()
    frame, runs = frame[order], parts.gather(order).rle().struct.unnest()
    starts = runs["len"].cum_sum() - runs["len"]
    pieces = (frame.slice(at, length) for at, length in zip(starts, runs["len"], strict=True))
    return runs["value"].to_list(), pieces
