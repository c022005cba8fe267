import gzip
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.serve import live
from morpheus.serve.live import AppendedFile, FileReplaced, FolderTail
from morpheus.testing import DAY

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)


def poll_rows(tail):
    return [row for frame in tail.poll() for row in frame.rows()]


def test_appended_rows_are_read_once(tmp_path):
    path, tail = tmp_path / "a.csv", FolderTail(tmp_path)
    path.write_text("user,eventName\nann,Get\n")
    assert poll_rows(tail) == [("ann", "Get")]
    assert poll_rows(tail) == []
    with path.open("a") as file:
        file.write("bob,Put\neve,Li")
        file.flush()
        assert poll_rows(tail) == [("bob", "Put")]
        file.write("st\n")
    assert poll_rows(tail) == [("eve", "List")]


def test_new_files_of_each_format_are_read_and_other_files_are_not(tmp_path):
    tail = FolderTail(tmp_path)
    pl.DataFrame({"a": ["1"]}).write_csv(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"a": 2, "b": null}\n')
    pl.DataFrame({"a": ["3"], "event_dt": [DAY]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"a,event_dt\n4,2021-10-09T00:00:00Z\n"))
    for name in (".e.csv", "status.json", "notes.txt", "f.csv.part"):
        (tmp_path / name).write_text("a\n9\n")
    assert [frame["a"].to_list() for frame in tail.poll()] == [["1"], ["2"], ["3"], ["4"]]
    assert list(tail.poll()) == []


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.lists(st.integers(0, 200), max_size=4))
def test_only_complete_rows_are_read(tmp_path_factory, rows, pauses):
    folder = tmp_path_factory.mktemp("out")
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    text = frame.write_csv(quote_style="always").encode()
    seen, tail = [], FolderTail(folder)
    cuts = sorted(min(pause, len(text)) for pause in pauses)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        with (folder / "a.csv").open("ab") as file:
            file.write(text[start:end])
        seen += poll_rows(tail)
    assert seen == rows


def test_a_large_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "CHUNK_BYTES", 20)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"a": n}) + "\n" for n in range(9)))
    frames = list(FolderTail(tmp_path).poll())
    assert len(frames) > 1
    assert pl.concat(frames)["a"].to_list() == [str(n) for n in range(9)]


@pytest.mark.parametrize("change", ["replace", "shrink", "remove", "parquet"])
def test_a_replaced_file_is_detected(tmp_path, change):
    path, whole, tail = tmp_path / "a.csv", tmp_path / "b.parquet", FolderTail(tmp_path)
    path.write_text("a\n1\n")
    pl.DataFrame({"a": [1], "event_dt": [DAY]}).write_parquet(whole)
    list(tail.poll())
    if change == "replace":
        (tmp_path / "new").write_text("a\n1\n2\n")
        (tmp_path / "new").replace(path)
    elif change == "shrink":
        path.write_text("a\n")
    elif change == "remove":
        path.unlink()
    else:
        pl.DataFrame({"a": [1, 2], "event_dt": [DAY] * 2}).write_parquet(whole)
    with pytest.raises(FileReplaced):
        list(tail.poll())


def test_unreadable_rows_are_counted_and_the_others_are_read(tmp_path):
    tail = FolderTail(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"a": "1"}\n{"a": \n[3]\n\n{"a": "4"}\n')
    (tmp_path / "b.parquet").write_text("no parquet")
    (tmp_path / "c.csv").write_text("a\n1,2\n")
    frames = [frame["a"].to_list() for frame in tail.poll() if frame.height]
    assert frames == [["1", "4"]]
    assert tail.num_unreadable == 4


def test_values_are_text_as_written(tmp_path):
    line = {"a": "1", "b": 1.5, "c": True, "d": None, "e": "é\n", "f": {"g": [1]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    [frame] = FolderTail(tmp_path).poll()
    assert frame.row(0) == ("1", "1.5", "true", None, "é\n", '{"g": [1]}')


def test_a_header_can_contain_a_line_feed(tmp_path):
    (tmp_path / "a.csv").write_text('"a\nb"\n1\n')
    file = AppendedFile(tmp_path / "a.csv", "csv", (tmp_path / "a.csv").stat().st_ino)
    assert [frame.to_dict(as_series=False) for frame in file.poll()] == [{"a\nb": ["1"]}]
