import gzip
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.serve import live
from morpheus.serve.live import FolderTail, AppendedFile, FileReplaced
from morpheus.testing import DAY

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)


def news(folder):
    return [row for frame in folder.poll() for row in frame.rows()]


def test_rows_that_are_added_come_once(tmp_path):
    path, found = tmp_path / "a.csv", FolderTail(tmp_path)
    path.write_text("user,eventName\nann,Get\n")
    assert news(found) == [("ann", "Get")]
    assert news(found) == []
    with path.open("a") as file:
        file.write("bob,Put\neve,Li")
        file.flush()
        assert news(found) == [("bob", "Put")]
        file.write("st\n")
    assert news(found) == [("eve", "List")]


def test_new_files_of_any_form_come_and_others_do_not(tmp_path):
    found = FolderTail(tmp_path)
    pl.DataFrame({"a": ["1"]}).write_csv(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text('{"a": 2, "b": null}\n')
    pl.DataFrame({"a": ["3"], "event_dt": [DAY]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"a,event_dt\n4,2021-10-09T00:00:00Z\n"))
    for name in (".e.csv", "status.json", "notes.txt", "f.csv.part"):
        (tmp_path / name).write_text("a\n9\n")
    assert [frame["a"].to_list() for frame in found.poll()] == [["1"], ["2"], ["3"], ["4"]]
    assert list(found.poll()) == []


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.lists(st.integers(0, 200), max_size=4))
def test_rows_come_whole_wherever_the_writer_pauses(tmp_path_factory, rows, pauses):
    folder = tmp_path_factory.mktemp("out")
    frame = pl.DataFrame(rows, schema={"one": pl.String, "two": pl.String}, orient="row")
    text = frame.write_csv(quote_style="always").encode()
    seen, found = [], FolderTail(folder)
    cuts = sorted(min(pause, len(text)) for pause in pauses)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        with (folder / "a.csv").open("ab") as file:
            file.write(text[start:end])
        seen += news(found)
    assert seen == rows


def test_a_large_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "CHUNK_BYTES", 20)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"a": n}) + "\n" for n in range(9)))
    frames = list(FolderTail(tmp_path).poll())
    assert len(frames) > 1
    assert pl.concat(frames)["a"].to_list() == [str(n) for n in range(9)]


@pytest.mark.parametrize("change", ["replace", "shrink", "remove", "parquet"])
def test_a_file_that_is_another_than_it_was_is_told(tmp_path, change):
    path, whole, found = tmp_path / "a.csv", tmp_path / "b.parquet", FolderTail(tmp_path)
    path.write_text("a\n1\n")
    pl.DataFrame({"a": [1], "event_dt": [DAY]}).write_parquet(whole)
    list(found.poll())
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
        list(found.poll())


def test_what_cannot_be_read_is_counted_and_the_rest_comes(tmp_path):
    found = FolderTail(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"a": "1"}\n{"a": \n[3]\n\n{"a": "4"}\n')
    (tmp_path / "b.parquet").write_text("no parquet")
    (tmp_path / "c.csv").write_text("a\n1,2\n")
    frames = [frame["a"].to_list() for frame in found.poll() if frame.height]
    assert frames == [["1", "4"]]
    assert found.num_unreadable == 4


def test_values_are_text_as_they_are_written(tmp_path):
    line = {"a": "1", "b": 1.5, "c": True, "d": None, "e": "é\n", "f": {"g": [1]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    [frame] = FolderTail(tmp_path).poll()
    assert frame.row(0) == ("1", "1.5", "true", None, "é\n", '{"g": [1]}')


def test_a_head_may_hold_a_line_feed(tmp_path):
    (tmp_path / "a.csv").write_text('"a\nb"\n1\n')
    growing = AppendedFile(tmp_path / "a.csv", "csv", (tmp_path / "a.csv").stat().st_ino)
    assert [frame.to_dict(as_series=False) for frame in growing.poll()] == [{"a\nb": ["1"]}]
