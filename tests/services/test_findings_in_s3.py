"""Findings in the bucket of a security lake."""

import polars as pl
import pytest

from lakes import Lake
from morpheus.errors import MorpheusError
from morpheus.sinks.alert_files import ToOcsf
from morpheus.storage.object_store import ObjectPath, list_recursive, read_object
from strange import TRAIL, plain, sent


def test_findings_are_partitioned_in_the_bucket(lake: Lake) -> None:
    stage = ToOcsf(lake_folder="s3://lake", region="eu-west-1")
    lake.forget()
    for _ in range(2):
        sent(stage, [plain([TRAIL] * 2, seconds=[5, 86_401])])
    assert len([path for method, path in lake.asked if method == "PUT"]) == 4
    keys = [path.key for path in list_recursive(ObjectPath.parse("s3://lake/ext"))]
    assert [key.rpartition("/")[0] for key in sorted(keys)] == [
        "ext/morpheus/region=eu-west-1/accountId=012345678901/eventDay=20211009",
        "ext/morpheus/region=eu-west-1/accountId=012345678901/eventDay=20211010",
    ]
    frame = pl.read_parquet(read_object(ObjectPath.parse(f"s3://lake/{keys[0]}")))
    assert frame["class_uid"].to_list() == [2004]


def test_missing_bucket_is_rejected_before_the_run(lake: Lake) -> None:
    del lake
    with pytest.raises(MorpheusError, match="nowhere"):
        ToOcsf(lake_folder="s3://nowhere", region="eu-west-1").validate()
