"""The reader of our own outputs."""

from __future__ import annotations

import gzip

import polars as pl
import pytest

from morpheus.columns import TIME
from morpheus.errors import UsageError
from morpheus.sinks.to_file import ToFile
from morpheus.sources.results import parse_json_lines, read_as_text, read_frames, read_results
from morpheus.testing import make_events, make_output_rows, run_stage

ROWS = (
    '{"user":"ann","time":"2026-01-01T00:00:00Z","z":1}',
    '{"b":2.5,"user":"ann","time":"2026-01-01T00:00:01Z","n":{"y":1,"x":[{"q":1}]}}',
    '{"time":"2026-01-01T00:00:02Z","user":"ann","a":true,"n":{"x":[{"p":2}],"w":2}}',
)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "out.jsonl"
    # Polars infers the schema of large inputs in parallel.
    path.write_text("\n".join(ROWS * 2000) + "\n")
    return path


def test_columns_of_json_lines_are_in_order_of_first_appearance(lines):
    for frame in read_results(lines):
        assert frame.columns == ["user", "time", "z", "b", "n", "a", TIME]
        assert [frame.schema[name] for name in "zba"] == [pl.Int64, pl.Float64, pl.Boolean]


def test_fields_of_nested_json_are_in_alphabetical_order(lines):
    [frame] = read_frames(lines)
    inner = pl.List(pl.Struct({"p": pl.Int64, "q": pl.Int64}))
    assert list(frame.schema["n"].to_schema().items()) == [
        ("w", pl.Int64),
        ("x", inner),
        ("y", pl.Int64),
    ]
    assert frame["n"].to_list()[1:3] == [
        {"w": None, "x": [{"p": None, "q": 1}], "y": 1},
        {"w": 2, "x": [{"p": 2, "q": None}], "y": None},
    ]


def test_json_lines_whose_types_change_are_text(tmp_path):
    path = tmp_path / "out.json"
    path.write_text('{"x": 1, "y": "a"}\n{"y": null, "x": {"b": 2}}\n')
    [frame] = read_frames(path)
    assert frame.to_dict(as_series=False) == {"x": ["1", '{"b":2}'], "y": ["a", None]}


def test_lines_that_are_no_objects_are_counted_or_fail(tmp_path):
    frame, num_unreadable = parse_json_lines([b'{"x": 4.50}', b"", b"[1]", b'{"x":'])
    assert (frame["x"].to_list(), num_unreadable) == (["4.50"], 2)
    path = tmp_path / "out.jsonl"
    path.write_text('{"time": 1}\n[1]\n')
    with pytest.raises(UsageError, match=r"out.jsonl` cannot be read: .* Give CSV, JSON lines"):
        list(read_results(path))


def test_values_of_json_have_one_spelling_as_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": {"b": [1, 2], "a": 1.50}, "y": "4.50", "z": null}\n')
    (tmp_path / "b.json").write_text('{"z":null,"y":"4.50","x":{"a":1.5,"b":[1,2]}}')
    first, second = (read_as_text(tmp_path / name) for name in ("a.jsonl", "b.json"))
    assert first.rows(named=True) == second.rows(named=True)
    assert first.to_dict(as_series=False) == {
        "x": ['{"a":1.5,"b":[1,2]}'],
        "y": ["4.50"],
        "z": [None],
    }


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.parquet", "a.jsonl"])
def test_a_file_of_any_format_is_read_as_the_same_text(tmp_path, name):
    rows = make_output_rows(make_events([0, 60], eventName=["Get", None]))
    list(run_stage(ToFile(filename=str(tmp_path / name)), [rows]))
    frame = read_as_text(tmp_path / name)
    assert set(frame.schema.values()) == {pl.String}
    assert frame["eventName"].to_list() == ["Get", None]


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".csv.gz"])
def test_columns_of_csv_are_text(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    text = b"time,risk\n2026-01-01T00:00:00Z,4.50\n"
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    [frame] = read_results(path)
    assert frame["risk"].to_list() == ["4.50"]
