"""Small files that unpack to large ones, and files with far too many columns, are refused."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard
from click.testing import CliRunner, Result

from morpheus.cli.main import morpheus
from morpheus.errors import RecordError
from morpheus.sources.compression import LargeFileError, ReadLimits, read_blocks, read_bytes
from morpheus.sources.envelopes import RecordFinder, split_record_blocks
from morpheus.sources.tabular import read_csv_blocks

MB = 1_000_000
RECORD = '{"eventTime": "2024-05-01T00:00:00Z", "userIdentity": {"accountId": "1"}}\n'
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "zst": zstandard.compress,
    "gz.gz": lambda data: gzip.compress(gzip.compress(data, 1), 1),
    "zst.gz": lambda data: gzip.compress(zstandard.compress(data), 1),
}


def run(folder: Path, name: str, *options: str) -> Result:
    words = ["run", "--num_threads=1", "pipeline-ae", "from-cloudtrail"]
    words += [f"--input_glob={folder / name}", *options, "serialize", "to-file"]
    return CliRunner().invoke(morpheus, [*words, f"--filename={folder / 'out.csv'}"])


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("content", ["document", "one line"])
def test_a_small_file_that_unpacks_to_a_large_one_is_refused_by_name(
    tmp_path: Path, packing: str, content: str
) -> None:
    text = b'{"Records": [' + b" " * 70 * MB + b"]}"
    data = text if content == "document" else text.replace(b"  ", b"xx") + b"\n"
    suffix = packing.rpartition(".")[2]
    (tmp_path / f"bomb.json.{suffix}").write_bytes(PACK[packing](data))
    result = run(tmp_path, f"bomb.json.{suffix}")
    assert result.exit_code == 1
    message = f"bomb.json.{suffix}: the file has more than 67 MB after decompression"
    assert message in result.stderr
    assert "`--max_file_size=671` (MB)" in result.stderr


@pytest.mark.parametrize("packing", PACK)
def test_a_small_file_of_many_records_is_read_in_blocks(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl.{packing.rpartition('.')[2]}"
    data = RECORD.encode() * MB
    path.write_bytes(PACK[packing](data))
    with pytest.raises(LargeFileError):
        read_bytes(path, ReadLimits(1000), allow_large=False)
    blocks = list(read_blocks(path, limits=ReadLimits(1000)))
    assert max(map(len, blocks)) < 64 * MB
    assert b"".join(blocks) == data
    with pytest.raises(RecordError, match="more than 70 MB"):
        list(read_blocks(path, limits=ReadLimits(70)))


def test_a_higher_limit_reads_the_file(tmp_path: Path) -> None:
    text = b'{"Records": [' + RECORD.encode() + b" " * 70 * MB + b"]}"
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text, 1))
    assert run(tmp_path, "a.json.gz").exit_code == 1
    result = run(tmp_path, "a.json.gz", "--max_file_size=100")
    assert (result.exit_code, "1 event in 1 file" in result.stderr) == (0, True)


def test_a_document_that_is_too_large_to_be_held_is_refused() -> None:
    blocks = iter([b'{"Records": ['] + [b" " * MB] * 20)
    with pytest.raises(RecordError, match=r"big\.json: the file has more than 10 MB"):
        list(split_record_blocks(blocks, RecordFinder(), Path("big.json"), ReadLimits(10)))


def test_an_endless_line_is_refused_and_the_lines_before_it_are_read() -> None:
    limits = ReadLimits(max_record_bytes=4 * MB)
    blocks = iter([RECORD.encode() * 3] + [b'{"a": "' + b"x" * MB] * 9)
    found = split_record_blocks(blocks, RecordFinder(), Path("a.jsonl"), limits)
    assert len(next(found).raw_records) == 3
    with pytest.raises(RecordError, match=r"a\.jsonl:4: the line has more than 3 MiB"):
        list(found)


def test_an_endless_row_is_refused_and_the_rows_before_it_are_read() -> None:
    limits = ReadLimits(max_record_bytes=4 * MB)
    blocks = iter([b"a,b\n1,2\n3,4\n"] + [b"x" * MB] * 9)
    found = read_csv_blocks(blocks, Path("a.csv"), limits=limits)
    assert next(found).frame.height == 2
    with pytest.raises(RecordError, match=r"a\.csv:4: the line has more than 3 MiB"):
        list(found)


def write_wide(folder: Path, kind: str, columns: int) -> str:
    row = {"eventTime": "2024-05-01T00:00:00Z", "userIdentityaccountId": "1"}
    row |= {f"c{number}": "x" for number in range(columns - 2)}
    path = folder / f"wide.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row))
    elif kind == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        pl.DataFrame({name: [value] for name, value in row.items()}).write_parquet(path)
    return path.name


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_with_too_many_columns_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    name = write_wide(tmp_path, kind, 10_001)
    result = run(tmp_path, name, "--all_columns")
    assert result.exit_code == 1
    assert f"{name}" in result.stderr
    what = "10,001 fields" if kind == "jsonl" else "10,001 columns"
    assert f"has {what}, and at most 10,000 are read" in result.stderr
    assert "`--max_columns=10001`" in result.stderr


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_higher_limit_reads_the_columns(tmp_path: Path, kind: str) -> None:
    name = write_wide(tmp_path, kind, 51)
    assert run(tmp_path, name, "--all_columns", "--max_columns=50").exit_code == 1
    assert run(tmp_path, name, "--all_columns", "--max_columns=60").exit_code == 0


def test_records_with_ever_new_fields_are_refused(tmp_path: Path) -> None:
    records = [json.loads(RECORD) | {f"c{n}": 1} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    result = run(tmp_path, "a.jsonl", "--all_columns", "--max_columns=50")
    assert result.exit_code == 2
    assert "different columns, and at most 50 are read. Leave --all_columns out" in result.stderr
    assert run(tmp_path, "a.jsonl", "--max_columns=50").exit_code == 0


@pytest.mark.parametrize("name", ["a", "a_s"])
def test_deep_objects_cost_no_time(tmp_path: Path, name: str) -> None:
    deep = f'{{"{name}":' * 900 + "1" + "}" * 900
    line = RECORD.strip().removesuffix("}") + f', "extra": {deep}}}\n'
    flat = {"eventTime": "2024-05-01T00:00:00Z", "userIdentityaccountId": "1", "EventName": "Ls"}
    other = json.dumps(flat).removesuffix("}") + f', "extra": {deep}}}\n'
    (tmp_path / "a.jsonl").write_text((line + other) * 50)
    start = time.process_time()
    result = run(tmp_path, "a.jsonl")
    assert (result.exit_code, "100 events in 1 file" in result.stderr) == (0, True)
    (tmp_path / "out.csv").unlink()
    result = run(tmp_path, "a.jsonl", "--all_columns")
    assert "a.jsonl:1: the record is nested deeper than 100 levels" in result.stderr
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind", ["no time", "a cut", "no field of the log"])
def test_very_many_rejected_records_cost_little_more_than_their_text(
    tmp_path: Path, kind: str
) -> None:
    names = {f"eventTmie{number}": 1 for number in range(100)}
    record = json.loads(RECORD)
    lines = {
        "no time": json.dumps({"userIdentity": record["userIdentity"], **names}),
        "a cut": json.dumps({**record, **names})[:-1],
        "no field of the log": json.dumps({"eventTime": record["eventTime"], **names}),
    }
    (tmp_path / "a.jsonl").write_text(RECORD + f"{lines[kind]}\n" * 4000)
    start = time.process_time()
    result = run(tmp_path, "a.jsonl", "--bad_record=skip")
    assert time.process_time() - start < 4
    assert "4,000 rejected" in result.stderr
    assert re.findall(r"rejected +\S+a\.jsonl:(\d+):", result.stderr) == list("23456")


def test_very_many_rejected_rows_of_a_table_are_counted_and_the_first_are_named(
    tmp_path: Path,
) -> None:
    row = '2024-05-01T00:00:00Z,"{""accountId"": ""1"", ""arn"": ""a""%s"\n'
    text = "eventTime,userIdentity\n" + row % "}" + (row % "") * 50
    (tmp_path / "a.csv").write_text(text)
    result = run(tmp_path, "a.csv", "--bad_record=skip")
    assert (result.exit_code, "50 rejected" in result.stderr) == (0, True)
    assert re.findall(r"rejected +\S+a\.csv:(\d+):", result.stderr) == list("34567")
    assert "1 event of 1 user" in result.stderr
    (tmp_path / "out.csv").unlink()
    assert "a.csv:3: `userIdentity` is not a complete object" in run(tmp_path, "a.csv").stderr


def write_equal_rows(path: Path, rows: int, text: str) -> None:
    columns = {"eventTime": "2024-05-01T00:00:00Z", "userIdentityaccountId": "1", "eventName": text}
    equal = (pl.repeat(value, rows).alias(name) for name, value in columns.items())
    pl.select(*equal).write_parquet(path)


@pytest.mark.parametrize("suffix", ["parquet", "parquet.gz"])
def test_a_small_file_of_very_many_equal_rows_is_refused_unread(
    tmp_path: Path, suffix: str
) -> None:
    name = f"equal.{suffix}"
    write_equal_rows(tmp_path / "equal.parquet", 1_000_001, "x")
    data = (tmp_path / "equal.parquet").read_bytes()
    (tmp_path / "equal.parquet").unlink()
    (tmp_path / name).write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    start = time.process_time()
    result = run(tmp_path, name)
    assert (result.exit_code, time.process_time() - start < 2) == (1, True)
    expected = (
        rf"{name}: the file has 1,000,001 rows in {len(data):,} bytes, .*`--max_file_size=17`"
    )
    assert re.search(expected, result.stderr)
    result = run(tmp_path, name, "--bad_record=skip")
    assert "all 1,000,001 records were rejected" in result.stderr


def test_equal_cells_of_a_table_count_each_time(tmp_path: Path) -> None:
    write_equal_rows(tmp_path / "a.parquet", 100_000, "x" * 1_000)
    result = run(tmp_path, "a.parquet", "--max_file_size=50")
    assert (result.exit_code, "more than 50 MB after" in result.stderr) == (1, True)
    result = run(tmp_path, "a.parquet", "--max_file_size=50", "--bad_record=skip")
    assert "Input       100,000 events" in result.stderr
    assert re.search(r"Written     (32,768|\d\d,\d{3}) events", result.stderr)
    (tmp_path / "out.csv").unlink()
    assert "100,000 events of 1 user" in run(tmp_path, "a.parquet").stderr
