"""Datasets in S3: written by `to-parquet`, read by sources."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import polars as pl
import pytest

from lakes import Lake
from morpheus.columns import ROW, TIME
from morpheus.core.batch import OutputRows, RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.testing import run_stage

OUT = "s3://lake/out"


def rows(user: str, days: int) -> OutputRows:
    times = [datetime(2024, 5, day, tzinfo=UTC) for day in range(1, days + 1)]
    frame = pl.DataFrame({ROW: range(days), "eventTime": [str(t) for t in times], TIME: times})
    return OutputRows(user=user, table=Table(frame))


def write(*batches: OutputRows, **options: object) -> None:
    sink = ToParquet(folder=OUT, partition_by=("date", "user"), **options)  # type: ignore[arg-type] # options of several types
    sink.validate()
    list(run_stage(sink, batches))


def test_success_marker_is_written_last(lake: Lake) -> None:
    lake.forget()
    write(rows("ann", 3), rows("b/c", 1))
    puts = [path for method, path in lake.asked if method == "PUT"]
    assert puts[-1] == "lake/out/_SUCCESS"
    assert len(puts) == 5
    options = PipelineOptions(userid_column_name="user", num_threads=1)
    source = FromCloudtrail(input_glob=OUT, start_time="2024-05-01", duration="1d", options=options)
    lake.forget()
    users = [batch.user for batch in source.events(None, RunMetrics())]
    assert sorted(map(str, users)) == ["ann", "b/c"]
    assert all("date=2024-05-01" in key for key in lake.fetched)
    assert len(lake.fetched) == 2


def test_failed_run_keeps_the_old_dataset(lake: Lake) -> None:
    write(rows("ann", 2))
    before = {key: lake.read(key) for key in lake.names()}

    def failing() -> Iterator[OutputRows]:
        yield rows("bob", 3)
        raise TransientError("gone")

    lake.forget()
    with pytest.raises(TransientError, match="gone"):
        list(run_stage(ToParquet(folder=OUT, overwrite=True), failing()))
    assert not [path for method, path in lake.asked if method != "GET"]
    assert {key: lake.read(key) for key in lake.names()} == before


def test_overwrite_replaces_the_whole_dataset(lake: Lake) -> None:
    write(rows("ann", 3))
    with pytest.raises(UsageError, match=r"`s3://lake/out` is not empty"):
        write(rows("bob", 1))
    lake.forget()
    write(rows("bob", 1), overwrite=True)
    assert lake.names("out") == [
        "out/_SUCCESS",
        "out/date=2024-05-01/user=bob/part-00000.parquet",
    ]
    changes = [method for method, _ in lake.asked if method in {"PUT", "POST", "DELETE"}]
    assert changes[0] != "PUT", "the marker of the old dataset is removed first"


def test_a_folder_with_other_objects_is_not_replaced(lake: Lake) -> None:
    write(rows("ann", 1))
    lake.put("out/AWSLogs/a.json.gz", b"log")
    before = lake.names()
    with pytest.raises(UsageError, match=r"has `AWSLogs/a.json.gz`, which is not part of a data"):
        write(rows("bob", 1), overwrite=True)
    assert lake.names() == before


def test_missing_bucket_is_reported_before_the_run(lake: Lake) -> None:
    assert lake.address
    with pytest.raises(UsageError, match="there is no bucket `nowhere`"):
        ToParquet(folder="s3://nowhere/out").validate()
