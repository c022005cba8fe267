"""Empty text is no value, whatever the format of the file."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import RecordError
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.dataframe import FromFrame
from morpheus.sources.from_file import FromFile
from morpheus.sources.json_records import Flattener, clear_missing_texts

USER = "userIdentityarn"
ABSENT = [None, "", " ", "\t\n"]
"""Four ways to write that an event has no value."""


def record(second: int, **fields: Any) -> dict[str, Any]:
    return {"eventTime": f"2024-05-31T09:30:{second:02}Z", "eventSource": "s3", **fields}


def write(path: Path, cells: list[dict[str, Any]]) -> Path:
    """Write flat records in the format of the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, cells)))
    elif path.suffix == ".parquet":
        pl.DataFrame(cells, infer_schema_length=None).write_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(cells[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(cells)
    return path


def read(path: Path, user: str = USER, features: tuple[str, ...] = ()) -> pl.DataFrame:
    columns = ("eventSource", "eventName", *features)
    options = PipelineOptions(columns=columns, userid_column_name=user)
    source = FromCloudtrail(input_glob=str(path), options=options)
    batches = source.events(None, RunMetrics())
    return pl.concat(batch.table.to_frame() for batch in batches).sort("eventTime")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_empty_text_is_no_value_in_every_file_format(tmp_path: Path, suffix: str) -> None:
    cells = [record(n, eventName=text, userIdentityarn=text) for n, text in enumerate(ABSENT)]
    cells.append(record(9, eventName=" Ls", userIdentityarn="arn:1"))
    found = read(write(tmp_path / f"x.{suffix}", cells))
    assert found[USER].to_list() == [None] * 4 + ["arn:1"]
    assert found["eventName"].to_list() == [None] * 4 + [" Ls"]


def test_nested_empty_text_is_no_value(tmp_path: Path) -> None:
    cells = [record(0, userIdentity={"arn": "", "type": "Unknown"}), record(1, userIdentity={})]
    assert read(write(tmp_path / "x.jsonl", cells))[USER].to_list() == [None, None]


def test_null_is_a_text_in_json_and_no_value_in_csv(tmp_path: Path) -> None:
    cells = [
        record(n, eventName=text, userIdentityarn="arn:1")
        for n, text in enumerate(["null", "NULL", r"\N", "Null", "None", "-", "N/A"])
    ]
    assert read(write(tmp_path / "x.csv", cells))["eventName"].to_list() == [
        *[None] * 3,
        "Null",
        "None",
        "-",
        "N/A",
    ]
    for suffix in ("jsonl", "parquet"):
        found = read(write(tmp_path / f"x.{suffix}", cells))["eventName"]
        assert found.to_list() == [cell["eventName"] for cell in cells]


def test_a_schema_can_name_more_texts_for_no_value(tmp_path: Path) -> None:
    (tmp_path / "log.toml").write_text(
        'time = "at"\nuser = "who"\nfeatures = ["action"]\nmissing = ["-", "N/A"]\n'
    )
    for suffix in ("jsonl", "csv"):
        cells = [
            {"at": f"2024-05-31T09:30:{n:02}Z", "who": who, "action": action}
            for n, (who, action) in enumerate([("-", "get"), ("ann", "N/A"), ("ann", "--")])
        ]
        options = PipelineOptions(columns_file=str(tmp_path / "log.toml"))
        source = FromFile(input_glob=str(write(tmp_path / f"x.{suffix}", cells)), options=options)
        source = FromFile(input_glob=source.input_glob, options=source.with_defaults(options))
        batches = list(source.events(None, RunMetrics()))
        assert [batch.user for batch in batches] == [None, "ann"]
        assert batches[1].table["action"].to_list() == [None, "--"]


def test_empty_text_gives_way_to_another_place_of_the_same_column() -> None:
    texts = [b'{"bc": " ", "b": {"c": "x"}}', b'{"b.c": "", "bc": "x"}']
    for text in texts:
        frame, _ = Flattener(("bc",), ("b.c", "bc")).flatten([text])
        assert frame.rows() == [("x",)]


def test_empty_text_gives_no_derived_value_and_no_actor(tmp_path: Path) -> None:
    cells = [
        record(0, sourceIPAddress="", userIdentity={"type": "IAMUser", "userName": "", "arn": ""}),
        record(1, sourceIPAddress=None, userIdentity={"type": "IAMUser"}),
    ]
    found = read(write(tmp_path / "x.jsonl", cells), "@actor", ("addressnetwork", "addresskind"))
    assert found["actor"].to_list() == ["unknown", "unknown"]
    assert found.select("addressnetwork", "addresskind").unique().height == 1


def test_empty_id_is_no_id_and_empty_time_is_no_time(tmp_path: Path) -> None:
    cells = [record(n, eventID="", userIdentityarn="arn:1") for n in range(2)]
    assert read(write(tmp_path / "x.jsonl", cells)).height == 2
    cells[1]["eventTime"] = " "
    message = r"x.jsonl:2: the record has no `eventTime`: the field is there, but has no value"
    with pytest.raises(RecordError, match=message):
        read(write(tmp_path / "x.jsonl", cells))


def test_a_number_that_is_not_a_number_is_no_value(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"eventTime": "2024-05-31T09:30:00Z", "eventSource": "s", "eventName": NaN}')
    assert read(path)["eventName"].to_list() == [None]
    frame = pl.DataFrame([record(0, eventName=float("nan"))])
    frame.write_parquet(tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet", "eventTime")["eventName"].to_list() == [None]


def test_empty_text_in_a_frame_is_no_value() -> None:
    moments = [datetime(2024, 5, 31, 9, n, tzinfo=UTC) for n in range(5)]
    frame = pl.DataFrame(
        {"at": moments, "who": [*ABSENT, "ann"], "size": [float("nan"), 1.0, 2.0, None, 3.0]}
    )
    options = PipelineOptions(userid_column_name="who", columns=("who", "size"))
    batches = list(FromFrame(frame=frame, time="at", options=options).events(None, RunMetrics()))
    assert {batch.user: batch.table.height for batch in batches} == {None: 4, "ann": 1}
    sizes = pl.concat([batch.table.to_frame() for batch in batches]).sort("at")["size"]
    assert sizes.to_list() == [None, "1", "2", None, "3"]


def test_other_columns_and_values_are_not_changed() -> None:
    frame = pl.DataFrame(
        {"n": [1, 2], "t": [" a", "\x00"], "none": pl.Series([None, None], dtype=pl.String)}
    )
    assert clear_missing_texts(frame, ["-"]).equals(frame)


def test_null_in_a_query_result_of_cloudtrail_lake_is_no_value(tmp_path: Path) -> None:
    cells = record(0, eventName="null", userIdentityarn="arn:1")
    rows = [[{name: cell} for name, cell in cells.items()]]
    (tmp_path / "x.json").write_text(json.dumps({"QueryResultRows": rows}))
    assert read(tmp_path / "x.json").select("eventName", USER).rows() == [(None, "arn:1")]
