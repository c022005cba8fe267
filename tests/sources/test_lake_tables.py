"""Delta tables are read by their log; Iceberg tables are rejected."""

import base64
import json
import string
import struct
import sys
from dataclasses import replace

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.pipeline import Pipeline
from morpheus.sinks.to_file import ToFile
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.discovery import FileDiscovery
from morpheus.stages.serialize import Serialize

DAYS = ("2024-05-30", "2024-05-31")
NAMES = ("ann", "a/b c", "é=x", "n%41")


def events(names=NAMES):
    """An event of each user on each day."""
    rows = [(day, name) for day in DAYS for name in names]
    return pl.DataFrame(
        {
            "eventTime": [f"{day}T09:30:00Z" for day, _ in rows],
            "userIdentityaccountId": [name for _, name in rows],
            "date": [day for day, _ in rows],
        }
    )


@pytest.fixture
def table(tmp_path):
    """A table in which one user was deleted and a day written anew, with its old files."""
    folder = tmp_path / "lake" / "trail"
    by = ["date", "userIdentityaccountId"]
    write_deltalake(folder, events([*NAMES, "gone"]), partition_by=by)
    written = DeltaTable(folder)
    written.delete("userIdentityaccountId = 'gone'")
    again = events(["late"]).filter(date=DAYS[1])
    write_deltalake(folder, again, mode="overwrite", predicate=f"date = '{DAYS[1]}'")
    return folder


def read(pattern, **options):
    metrics = RunMetrics()
    source = FromCloudtrail(input_glob=str(pattern), **options)
    source = replace(source, options=source.with_defaults(PipelineOptions()))
    found = [
        (time[:10], batch.user)
        for batch in source.events(None, metrics)
        for time in batch.table["eventTime"]
    ]
    return sorted(found), metrics


WHOLE = sorted([*((DAYS[0], name) for name in NAMES), (DAYS[1], "late")])


def test_only_active_files_are_read(table):
    assert len(list(table.rglob("*.parquet"))) == 11
    assert read(table)[0] == WHOLE
    assert read(f"{table}/", file_type="parquet")[0] == WHOLE


def test_days_outside_the_time_range_are_not_opened(table):
    found, metrics = read(table, start_time=DAYS[1])
    assert found == [(DAYS[1], "late")]
    assert (metrics.input.files, metrics.input.outside_files) == (1, 4)


def test_checkpoint_replaces_earlier_commits(table):
    DeltaTable(table).create_checkpoint()
    for commit in table.glob("_delta_log/*.json"):
        commit.unlink()
    assert read(table)[0] == WHOLE


@pytest.mark.parametrize(
    "pattern",
    ["", "**/*.parquet", "trail/*.parquet", "trail/date=2024-05-30", "trail/date=*/**/*.parquet"],
)
def test_files_of_a_table_are_not_read_one_by_one(table, pattern):
    message = rf"`{table}` is a Delta table.*Give the table itself, --input_glob={table},"
    with pytest.raises(UsageError, match=message):
        read(table.parent / pattern)


def test_file_type_parquet_reads_all_files_of_a_table(table):
    found, _ = read(table / "**/*.parquet", file_type="parquet")
    assert (DAYS[0], "gone") in found


def test_missing_extra_is_reported_with_the_install_command(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(
        UsageError, match=r"trail` is a Delta table.*pip install 'morpheus-dfp\[delta\]"
    ):
        read(table)


def changed(folder, change):
    """Change each entry of the first commit."""
    commit = folder / "_delta_log" / f"{0:020}.json"
    lines = [json.loads(line) for line in commit.read_text().splitlines()]
    for line in lines:
        change(line)
    commit.write_text("".join(json.dumps(line) + "\n" for line in lines))


FIRST_TWO = struct.pack("<IQIIIHHIHH", 1_681_511_377, 1, 0, 12_346, 1, 0, 1, 16, 0, 1)
"""The numbers 0 and 1 as a bitmap, as Delta's protocol and that of Roaring bitmaps have it."""
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase + "!#$%&()*+-;<=>?@^_`{|}~"
Z85 = str.maketrans(DIGITS, DIGITS[:62].swapcase() + ".-:+=^!/*?&<>()[]{}@%$#")


def with_deletion_vector(line):
    if "protocol" in line:
        features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
        line["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    if "add" in line:
        line["add"]["deletionVector"] = {
            "storageType": "i",
            "pathOrInlineDv": base64.b85encode(FIRST_TWO).decode().translate(Z85),
            "sizeInBytes": len(FIRST_TWO),
            "cardinality": 2,
        }


def with_column_mapping(line):
    if "protocol" in line:
        line["protocol"] |= {"minReaderVersion": 2, "minWriterVersion": 5}
    if "metaData" in line:
        line["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
        schema = json.loads(line["metaData"]["schemaString"])
        for number, column in enumerate(schema["fields"]):
            name = {"delta.columnMapping.physicalName": column["name"]}
            column["metadata"] = {"delta.columnMapping.id": number + 1, **name}
        line["metaData"]["schemaString"] = json.dumps(schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_deletion_vector, "rows in its files are deleted"),
        (with_column_mapping, "its columns have other names"),
        (
            lambda line: line.get("add", {}).update(path="s3://other/x.parquet"),
            "its files are stored else",
        ),
    ],
)
def test_unsupported_table_features_are_rejected(tmp_path, change, message):
    write_deltalake(tmp_path / "t", events(["ann"] * 20))
    changed(tmp_path / "t", change)
    with pytest.raises(UsageError, match=rf"t` is a Delta table, but {message}.*plain copy"):
        read(tmp_path / "t")


def test_damaged_log_is_reported(tmp_path):
    write_deltalake(tmp_path / "t", events())
    (tmp_path / "t/_delta_log" / f"{0:020}.json").write_text('{"metaData": ')
    with pytest.raises(UsageError, match=r"t` is a Delta table, but its log cannot be read"):
        read(tmp_path / "t")


def test_table_cannot_be_watched(table):
    source = FromCloudtrail(input_glob=str(table), watch_directory=True)
    with pytest.raises(
        UsageError, match=r"--watch_directory: `.*trail` is a Delta table.*--duration"
    ):
        source.validate()


@pytest.mark.parametrize("pattern", ["", "data/*.parquet", "data/date=2024-05-31"])
def test_iceberg_table_is_rejected(tmp_path, pattern):
    data = tmp_path / "trail" / "data" / "date=2024-05-31"
    data.mkdir(parents=True)
    events().write_parquet(data / "0.parquet")
    (tmp_path / "trail" / "metadata").mkdir()
    (tmp_path / "trail" / "metadata" / "v1.metadata.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"trail` is an Iceberg table.*UNLOAD.*data/\*\*/\*.parquet"
    ):
        read(tmp_path / "trail" / pattern)
    assert len(read(data.parent, file_type="parquet")[0]) == 8


@pytest.mark.usefixtures("table")
def test_table_runs_through_the_pipeline_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {path.parts[:2] for path in FileDiscovery("lake/trail").require().paths} == {
        ("lake", "trail")
    }
    sink = ToFile(filename="out.csv")
    metrics = Pipeline([FromCloudtrail(input_glob="lake/trail"), Serialize(), sink]).run()
    assert metrics.input.files == 5
    assert set(pl.read_csv("out.csv")["date"]) == set(DAYS)
