"""Sorted tables hold what was in those before, in few files, and each user's in one place."""

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
def crew(request):
    with WorkerPool(request.param) as crew:
        yield crew


@pytest.fixture
def shelves(crew, tmp_path):
    """Sixty tables of all users, sorted into four places."""
    blobs = spill_to_disk(tmp_path, map(events, range(60)))
    places = pl.DataFrame({USER: USERS, PARTITION: [n // 10 for n in range(len(USERS))]})
    return BucketedSpill.partition_by_bucket(
        blobs,
        "who",
        places,
        max_rows_in_memory=200,
        max_table_rows=ROWS,
        pool=crew,
        folder=tmp_path,
    )


def test_nothing_is_lost_or_doubled(shelves):
    frames = [blob.read() for blobs in shelves.tables_by_bucket.values() for blob in blobs]
    before, after = (
        pl.concat(some, how="diagonal").sort(INDEX) for some in (map(events, range(60)), frames)
    )
    assert_frame_equal(after, before, check_column_order=False)


def test_the_events_of_a_user_lie_in_one_place(shelves):
    for place, blobs in shelves.tables_by_bucket.items():
        found = {user for blob in blobs for user in blob.read()["who"]}
        assert found == set(USERS[place * 10 : place * 10 + 10])
        assert shelves.find_tables(pl.DataFrame({USER: [USERS[place * 10 + 3]]})) == blobs


def test_many_small_tables_become_few(shelves):
    # Sorting makes 12 of 50 rows in each place.
    assert [len(blobs) for blobs in shelves.tables_by_bucket.values()] == [600 // ROWS] * 4
    assert all(
        blob.num_rows <= ROWS for blobs in shelves.tables_by_bucket.values() for blob in blobs
    )


def test_what_was_sorted_is_removed(shelves, tmp_path):
    there = {blob.data for blobs in shelves.tables_by_bucket.values() for blob in blobs}
    assert set(Path(tmp_path).iterdir()) == there
