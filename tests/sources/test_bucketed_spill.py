"""Sorting tables into buckets keeps all events, and puts each user into one bucket."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from morpheus.columns import INDEX, TIME
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.group_by_user import PARTITION, USER
from morpheus.sources.spill_sort import BucketedSpill
from morpheus.storage.spill import spill_to_disk
from morpheus.testing import make_events

USERS = [f"user{n}" for n in range(40)]
ROWS = 100


def events(number: int) -> pl.DataFrame:
    """One event of each user, with a column that only some tables have."""
    frame = make_events(range(len(USERS)), who=USERS)
    index = pl.Series(INDEX, range(number * 100, number * 100 + len(USERS)))
    return frame.select(index, "who", pl.lit(str(number)).alias(f"table{number % 3}"), TIME)


@pytest.fixture(params=[1, 2], ids=["one-process", "two-processes"])
def pool(request):
    with WorkerPool(request.param) as pool:
        yield pool


@pytest.fixture
def sorted_spill(pool, tmp_path):
    """Sixty tables of all users, sorted into four user_buckets."""
    tables = spill_to_disk(tmp_path, map(events, range(60)))
    user_buckets = pl.DataFrame({USER: USERS, PARTITION: [n // 10 for n in range(len(USERS))]})
    return BucketedSpill.partition_by_bucket(
        tables,
        "who",
        user_buckets,
        max_rows_in_memory=200,
        max_table_rows=ROWS,
        pool=pool,
        folder=tmp_path,
    )


def test_no_event_is_lost_or_duplicated(sorted_spill):
    frames = [table.read() for tables in sorted_spill.tables_by_bucket.values() for table in tables]
    before, after = (
        pl.concat(some, how="diagonal").sort(INDEX) for some in (map(events, range(60)), frames)
    )
    assert_frame_equal(after, before, check_column_order=False)


def test_events_of_a_user_are_in_one_bucket(sorted_spill):
    for bucket, tables in sorted_spill.tables_by_bucket.items():
        found = {user for table in tables for user in table.read()["who"]}
        assert found == set(USERS[bucket * 10 : bucket * 10 + 10])
        assert sorted_spill.find_tables(pl.DataFrame({USER: [USERS[bucket * 10 + 3]]})) == tables


def test_small_tables_are_merged(sorted_spill):
    # Sorting makes 12 of 50 rows in each bucket.
    assert [len(tables) for tables in sorted_spill.tables_by_bucket.values()] == [600 // ROWS] * 4
    assert all(
        table.num_rows <= ROWS
        for tables in sorted_spill.tables_by_bucket.values()
        for table in tables
    )


def test_sorted_tables_are_deleted(sorted_spill, tmp_path):
    kept = {table.data for tables in sorted_spill.tables_by_bucket.values() for table in tables}
    assert set(Path(tmp_path).iterdir()) == kept
