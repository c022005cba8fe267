"""Delta and Iceberg tables in a bucket."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from lakes import Lake
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError, UsageError
from morpheus.sources.cloudtrail import FromCloudtrail

DAYS = ("2024-05-30", "2024-05-31")


@pytest.fixture
def table(lake: Lake, tmp_path: Path) -> Lake:
    """A Delta table with the old files of a deleted user."""
    rows = [(day, user) for day in DAYS for user in ("ann", "a/b c", "gone")]
    columns = {"date": [d for d, _ in rows], "userIdentityuserName": [user for _, user in rows]}
    times = [f"{day}T09:30:00Z" for day, _ in rows]
    folder = tmp_path / "t"
    write_deltalake(folder, pl.DataFrame({"eventTime": times, **columns}), partition_by=[*columns])
    DeltaTable(folder).delete("userIdentityuserName = 'gone'")
    files = [path for path in folder.rglob("*") if path.is_file()]
    lake.put_all({f"x/{path.relative_to(tmp_path)}": path.read_bytes() for path in files})
    lake.forget()
    return lake


def read(pattern: str, **options: str) -> list[tuple[str, str | None]]:
    pipeline_options = PipelineOptions(userid_column_name="userIdentityuserName", num_threads=1)
    source = FromCloudtrail(input_glob=pattern, options=pipeline_options, **options)
    return sorted(
        (batch.table["date"][0], batch.user) for batch in source.events(None, RunMetrics())
    )


@pytest.mark.parametrize("pattern", ["s3://lake/x/t", "s3://lake/x/t/"])
def test_only_active_objects_are_fetched(table: Lake, pattern: str) -> None:
    assert read(pattern, start_time=DAYS[1]) == [(DAYS[1], "a/b c"), (DAYS[1], "ann")]
    fetched = [key for key in table.fetched if key.endswith(".parquet")]
    assert len(fetched) == 2
    assert not any("gone" in key or DAYS[0] in key for key in fetched)


@pytest.mark.parametrize("pattern", ["x/t/date=*/*.parquet", "x/t/date=2024-05-30/", "", "x/*"])
def test_objects_of_a_table_are_not_read_alone(table: Lake, pattern: str) -> None:
    message = (
        r"`s3://lake/x/t` is a Delta table.*Give the table itself, --input_glob=s3://lake/x/t,"
    )
    with pytest.raises(UsageError, match=message):
        read(f"s3://lake/{pattern}")
    assert not [key for key in table.fetched if key.endswith(".parquet")]


def test_iceberg_table_is_rejected(lake: Lake) -> None:
    lake.put("x/metadata/00000-a.metadata.json", b"{}")
    lake.put("x/data/eventDay=20240531/0.parquet", b"")
    for pattern in ("x/", "x/data/", "x/data/*/*.parquet"):
        with pytest.raises(UsageError, match=r"`s3://lake/x` is an Iceberg table"):
            read(f"s3://lake/{pattern}")


def test_dataset_is_checked_for_a_table_log_once(table: Lake) -> None:
    for day in DAYS:
        table.put(f"plain/date={day}/0.parquet", b"")
    table.forget()
    with pytest.raises(RecordError, match="not a complete Parquet file"):
        read("s3://lake/plain/")
    assert len(table.listings) == 2
