import csv
import gzip
import io
import json
import os
import re
import resource
import sys
import weakref
from contextlib import ExitStack
from datetime import timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morpheus.columns import INDEX, ROW, SCORE, TIME, TS_ANOMALY
from morpheus.core.batch import EqualRows, Table
from morpheus.errors import TransientError, UsageError
from morpheus.runtime.chain import Segment
from morpheus.sinks.formats import (
    CommonCells,
    GzipWriter,
    TextWriter,
    encode_csv_header,
    write_csv,
    write_csv_rows,
)
from morpheus.sinks.to_file import ToFile
from morpheus.storage.atomic import atomic_write
from morpheus.testing import make_events, make_output_rows, run_stage, split_frame
from strange import iterate

TEXTS = ["csv", "json", "jsonl", "jsonlines", "ndjson", "csv.gz", "json.gz", "csv.zst", "JSON"]


def table(count=5):
    """Rows as a sink receives them."""
    return make_events(
        range(count), name=[f"n{i}" if i % 3 else None for i in range(count)]
    ).with_columns(
        pl.Series(SCORE, [float("nan") if i == 1 else i / 3 for i in range(count)], pl.Float64),
        pl.Series(TS_ANOMALY, [i == 2 for i in range(count)], pl.Boolean),
    )


def write(path, *frames, **options):
    stage = ToFile(str(path), **options)
    stage.validate()
    return list(run_stage(stage, (make_output_rows(frame) for frame in frames)))


def decompress(path):
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    return path.read_bytes()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_csv_equals_that_of_pandas(tmp_path):
    write(tmp_path / "out.csv", table(3))
    assert (tmp_path / "out.csv").read_bytes() == (
        b",_index_,name,event_dt,ae_anomaly_score,ts_anomaly\n"
        b"0,0,,2021-10-09 00:00:00+00:00,0.0,False\n"
        b"1,1,n1,2021-10-09 00:00:01+00:00,,False\n"
        b"2,2,n2,2021-10-09 00:00:02+00:00,0.6666666666666666,True\n"
    )


def test_pandas_reads_the_types_back(tmp_path):
    write(tmp_path / "out.csv", table())
    rows = pd.read_csv(tmp_path / "out.csv")
    assert rows.dtypes[["Unnamed: 0", INDEX]].tolist() == [np.int64, np.int64]
    assert rows[TS_ANOMALY].dtype == bool
    assert rows[SCORE].dtype == np.float64
    assert pd.to_datetime(rows[TIME]).dt.tz is not None
    assert rows[SCORE].dropna().tolist() == [0.0, 2 / 3, 1.0, 4 / 3]


def test_microseconds_are_written_only_if_there_are_any(tmp_path):
    write(tmp_path / "out.csv", make_events([0, 1.5]).select(TIME))
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == [
        "2021-10-09 00:00:00+00:00",
        "2021-10-09 00:00:01.500000+00:00",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\tplain", "'\tplain"),
        ("\rplain", "'\rplain"),
        (" =1", "' =1"),
        ("\n=1", "'\n=1"),
        ("\u00a0=1", "'\u00a0=1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("\uff1d1", "'\uff1d1"),
        ("-", "'-"),
        ("-5", "-5"),
        ("+1.5e-3", "+1.5e-3"),
        ("-.5", "-.5"),
        ("a=1", "a=1"),
        ("", ""),
        ("/usr/bin", "/usr/bin"),
        ('"=1"', '"=1"'),
        ("été", "été"),
        ("'=1", "'=1"),
    ],
)
def test_csv_cells_that_a_spreadsheet_would_run_are_escaped(tmp_path, text, escaped):
    frame = make_events([0, 1], name=[text, None])
    write(tmp_path / "out.csv", frame)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [escaped, ""]


def test_hostile_column_names_are_escaped(tmp_path):
    write(tmp_path / "out.csv", make_events([0], **{"=cmd()": ["x"], "^.*$": ["=1"]}))
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == (",_index_,'=cmd(),^.*$,event_dt")


def test_other_formats_keep_the_text(tmp_path):
    frame = make_events([0], name=["=1+1"])
    write(tmp_path / "out.json", frame)
    write(tmp_path / "out.parquet", frame)
    assert json.loads((tmp_path / "out.json").read_text())["name"] == "=1+1"
    assert pl.read_parquet(tmp_path / "out.parquet")["name"].to_list() == ["=1+1"]


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.lists(
        st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))),
        min_size=1,
    )
)
def test_any_text_survives_csv_except_for_its_escape(tmp_path, texts):
    write(tmp_path / "out.csv", make_events(range(len(texts)), name=texts), overwrite=True)
    text = (tmp_path / "out.csv").read_bytes().decode()
    cells = [row[2] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert len(cells) == len(texts)
    for before, after in zip(texts, cells, strict=True):
        assert after in {before or "", f"'{before}"}
        assert not after.lstrip().startswith(("=", "@"))


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(st.floats(), min_size=1))
def test_numbers_survive_to_the_last_digit(tmp_path, numbers):
    frame = pl.DataFrame({"x": pl.Series(numbers, dtype=pl.Float64)})
    write(tmp_path / "out.csv", frame, overwrite=True)
    cells = (tmp_path / "out.csv").read_text().replace('""', "").splitlines()[1:]
    np.testing.assert_array_equal([float(cell or "nan") for cell in cells], numbers)


def test_json_has_one_object_per_row_as_in_pandas(tmp_path):
    write(tmp_path / "out.json", table(2))
    first, second = map(json.loads, (tmp_path / "out.json").read_text().splitlines())
    assert first == {
        INDEX: 0,
        "name": None,
        TIME: "2021-10-09T00:00:00Z",
        SCORE: 0.0,
        TS_ANOMALY: False,
    }
    assert second[SCORE] is None


def test_json_can_have_times_in_milliseconds_as_in_pandas(tmp_path):
    write(tmp_path / "out.jsonl", table(1), json_times="epoch_ms")
    assert json.loads((tmp_path / "out.jsonl").read_text())[TIME] == 1633737600000


def test_parquet_keeps_types_and_the_row_name_of_pandas(tmp_path):
    write(tmp_path / "out.parquet", table(3), table(0), table(4))
    rows = pl.read_parquet(tmp_path / "out.parquet")
    assert rows.equals(pl.concat([table(3), table(4)]).rename({ROW: "Unnamed: 0"}))


@pytest.mark.parametrize(
    ("extension", "flush"),
    # A flush ends a block of compressed text, which changes the bytes.
    [(extension, False) for extension in (*TEXTS, "parquet")] + [("csv", True), ("json", True)],
)
def test_bytes_do_not_depend_on_batches(tmp_path, extension, flush):
    whole, parts = tmp_path / f"whole.{extension}", tmp_path / f"parts.{extension}"
    write(whole, table(1000), flush_rows=flush)
    write(parts, *split_frame(table(1000), [1, 0, 300, 7]), flush_rows=flush)
    assert whole.read_bytes() == parts.read_bytes()
    if extension != "parquet":
        assert len(decompress(whole).splitlines()) == 1000 + ("csv" in extension)


def test_rows_are_passed_on_unchanged(tmp_path):
    frame = table()
    [out] = write(tmp_path / "out.csv", frame)
    assert out.table.to_frame() is frame
    assert frame.equals(table())


def test_row_number_can_be_excluded(tmp_path):
    write(tmp_path / "out.csv", table(1), include_index_col=False)
    write(tmp_path / "out.parquet", table(1), include_index_col=False)
    assert (tmp_path / "out.csv").read_text().startswith("_index_,name")
    assert pl.read_parquet(tmp_path / "out.parquet").columns[0] == INDEX


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b",_index_,event_dt\n"),
        ("a.json", b"[]\n"),
        ("a.jsonl", b"\n"),
        ("a.ndjson", b"\n"),
        ("a.parquet", None),
    ],
)
def test_run_without_rows_writes_a_valid_empty_table(tmp_path, name, content):
    write(tmp_path / name, make_events([]))
    if content is None:
        assert pl.read_parquet(tmp_path / name).columns == ["Unnamed: 0", INDEX, TIME]
    else:
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.csv.gz"])
def test_run_without_batches_writes_a_file(tmp_path, name):
    write(tmp_path / name)
    assert names_in(tmp_path) == [name]
    assert (tmp_path / name).stat().st_size


def test_first_rows_decide_the_columns(tmp_path, caplog):
    first, later = make_events([0], a=["x"]), make_events([1, 2], b=["y", "z"])
    for name in ("out.csv", "out.parquet"):
        write(tmp_path / name, first, later, later)
    assert (tmp_path / "out.csv").read_text().splitlines()[2:4] == [
        "0,0,,2021-10-09 00:00:01+00:00",
        "1,1,,2021-10-09 00:00:02+00:00",
    ]
    assert pl.read_parquet(tmp_path / "out.parquet")["a"].to_list() == ["x", *[None] * 4]
    assert sum("values of `b` are not written: the" in each for each in caplog.messages) == 2


def test_each_column_whose_values_are_not_written_is_named_once(tmp_path, caplog):
    later = [make_events([1], b=[None]), make_events([2], b=["y"]), make_events([3], c=["z"])]
    write(tmp_path / "out.csv", make_events([0], a=["x"]), *later, *later)
    named = [re.findall("`([a-z])`", each) for each in caplog.messages]
    assert named == [["b"], ["c"]]


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "out.parquet"])
def test_the_tables_of_many_small_users_do_not_wait_for_the_end(tmp_path, name):
    tables, alive = [], []

    def make_batches():
        for number in range(2500):
            batch = make_output_rows(table(1), user=f"user{number}")
            tables.append(weakref.ref(batch.table))
            yield batch

    with ExitStack() as resources:
        chain = Segment.from_stages([ToFile(str(tmp_path / name))]).open(resources=resources)
        for number, _ in enumerate(chain.run(make_batches())):
            if number % 500 == 0:
                alive.append(sum(each() is not None for each in tables))
    assert max(alive) < 1500


def test_missing_folders_are_created(tmp_path):
    write(tmp_path / "new" / "deep" / "out.csv", table())
    assert names_in(tmp_path / "new" / "deep") == ["out.csv"]


def test_format_can_be_set_for_any_extension(tmp_path):
    write(tmp_path / "out.txt", table(1), file_type="CSV")
    assert (tmp_path / "out.txt").read_text().startswith(",_index_")


def failing(error, *frames):
    yield from map(make_output_rows, frames)
    raise error


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.json.zst", "out.parquet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_run_leaves_nothing_and_keeps_the_old_file(tmp_path, name, error):
    (tmp_path / name).write_bytes(b"old")
    stage = ToFile(str(tmp_path / name), overwrite=True)
    with pytest.raises(error):
        list(run_stage(stage, failing(error(), table())))
    assert names_in(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_abandoned_run_leaves_nothing(tmp_path):
    stream = iterate(
        ToFile(str(tmp_path / "out.csv")), (make_output_rows(table()) for _ in range(3))
    )
    next(stream)
    assert [name.endswith(".part") for name in names_in(tmp_path)] == [True]
    stream.close()
    assert names_in(tmp_path) == []


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    for _ in iterate(
        ToFile(str(path), overwrite=True), (make_output_rows(table()) for _ in range(2))
    ):
        assert path.read_text() == "old"
    assert path.read_text().startswith(",_index_")


def test_symbolic_link_is_kept(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    write(tmp_path / "link.csv", table(), overwrite=True)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith(",_index_")


@pytest.mark.parametrize("name", ["out.csv", "out.json.gz", "out.csv.zst"])
def test_flushed_rows_are_visible_at_once_and_stay_when_the_run_fails(tmp_path, name):
    path = tmp_path / name
    stream = iterate(ToFile(str(path), flush_rows=True), failing(RuntimeError(), table(3)))
    next(stream)
    assert path.stat().st_size > 20
    with pytest.raises(RuntimeError):
        next(stream)
    assert names_in(tmp_path) == [name]
    assert decompress(path).count(b"n1") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.csv.gz", "out.parquet"])
def test_full_disk_is_reported_and_leaves_nothing(tmp_path, name):
    noise = np.random.default_rng(0).random(200_000)
    frame = pl.DataFrame({ROW: range(200_000), "x": noise})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            TransientError, match=r"Cannot write .*Nothing is left behind.*another path"
        ):
            write(tmp_path / name, frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_small_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    error = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with atomic_write(tmp_path / "status.json") as file:
            file.write(b"more than ten bytes, in a buffer until the end")
    except (TransientError, OSError) as caught:
        error = caught
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(error, TransientError)
    assert f"Cannot write `{tmp_path}/status.json`: File too large" in str(error)
    assert names_in(tmp_path) == []


def test_existing_file_is_rejected_without_overwrite(tmp_path):
    path = tmp_path / "out.csv"
    path.touch()
    with pytest.raises(
        UsageError,
        match=r"^--filename: there is a file `.*out\.csv` already\. Give `to-file --overwrite`",
    ):
        ToFile(str(path)).validate()
    ToFile(str(path), overwrite=True).validate()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "--filename detections.csv"),
        ("out.xlsx", {}, r"extension `\.xlsx` of `.*` is not known.*--file_type csv"),
        ("out", {}, "the extension `` of"),
        ("out.parquet.gz", {}, "already compressed"),
        ("out.parquet", {"flush_rows": True}, "--flush.*Parquet"),
        ("folder.csv", {}, "is a folder"),
        ("file.csv/out.csv", {}, "is a file, not a folder"),
    ],
)
def test_unwritable_output_is_rejected_before_the_run(
    tmp_path, monkeypatch, name, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").touch()
    with pytest.raises(UsageError, match=message):
        ToFile(name, **options).validate()


def test_device_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="not a regular file"):
        ToFile(str(tmp_path / "pipe.csv"), overwrite=True).validate()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere"
)
def test_unwritable_folder_is_rejected(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="is not writable"):
        ToFile(str(tmp_path / "out.csv")).validate()
    tmp_path.chmod(0o700)


def test_times_in_other_units_and_without_zone_are_written(tmp_path):
    start = pl.datetime(2021, 1, 1)
    frame = pl.select(
        pl.datetime_range(start, start + timedelta(seconds=1), "1s", time_unit="ns").alias("at")
    )
    write(tmp_path / "out.csv", frame)
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "2021-01-01 00:00:00"


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_appended_text_stays_between_the_rows_around_it(tmp_path, compression):
    encoded, whole = tmp_path / "encoded", tmp_path / f"out.csv{compression}"
    encoded.write_bytes(b"2\n" * 100_000)
    with (
        whole.open("wb") as file,
        TextWriter(
            file, compression, write_rows=write_csv, encode_header=encode_csv_header
        ) as text,
    ):
        text.write(Table(pl.DataFrame({"n": [1]})))
        text.append(encoded)
        text.write(Table(pl.DataFrame({"n": [3]})))
        text.finish()
    content = gzip.decompress(whole.read_bytes()) if compression else whole.read_bytes()
    assert content == b"n\n1\n" + b"2\n" * 100_000 + b"3\n"
    assert not encoded.exists()


hostile_text = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "",
            '"',
            ",",
            "\n",
            "\r",
            "=1+1",
            "-5",
            " @sum",
            "'",
            "a,b",
            'say "a"',
            "\x1e",
            "\x1e\n",
            "0,",
            "\x1e\n0,",
            "x\x1e\n0,y",
            "\ufeff=1",
            "\u2028",
            "é",
            "😀,",
            "\x00",
            "\t-",
        ]
    ),
    st.text(max_size=4),
)
common_rows = st.lists(st.tuples(hostile_text, hostile_text, hostile_text), min_size=1, max_size=3)


@st.composite
def tables_with_equal_rows(draw):
    """Rows of which the columns a, b and c are equal to those of a few rows."""
    common = pl.DataFrame(draw(common_rows), schema=dict.fromkeys("abc", pl.String), orient="row")
    rows = draw(st.integers(2 * common.height, 12))
    groups = np.array(
        draw(st.lists(st.integers(0, common.height - 1), min_size=rows, max_size=rows))
    )
    own = pl.DataFrame(
        {
            "text": draw(st.lists(hostile_text, min_size=rows, max_size=rows)),
            "": range(rows),
            "n": draw(st.lists(st.floats() | st.none(), min_size=rows, max_size=rows)),
            "flag": draw(st.lists(st.booleans() | st.none(), min_size=rows, max_size=rows)),
            "none": [None] * rows,
            "id": [f"id-{i}" for i in range(rows)],
        },
        schema_overrides={"text": pl.String, "n": pl.Float64, "flag": pl.Boolean},
    ).with_columns(make_events(range(rows))[TIME])
    names = draw(st.permutations([*"abc", *own.columns]))
    frame = own.hstack(common[groups]).select(names[: draw(st.integers(1, len(names)))])
    equal = EqualRows(frozenset("abc"), ((common, np.arange(common.height)),), groups)
    return Table(frame, equal_rows=equal)


@given(tables_with_equal_rows())
def test_rows_formatted_once_are_those_of_polars(table):
    once, each = io.BytesIO(), io.BytesIO()
    write_csv(table, once)
    write_csv_rows(table.to_frame(), each)
    assert once.getvalue() == each.getvalue()


def test_columns_in_which_rows_are_equal_are_formatted_once():
    frame = pl.DataFrame({"a": ["x"] * 4, "b": ["y", "z", "y", "z"], "n": range(4)})
    equal = EqualRows(frozenset("ab"), ((frame, np.array([0, 1])),), np.array([0, 1, 0, 1]))
    common = CommonCells.find(Table(frame, equal_rows=equal))
    assert common.distinct.rows() == [("x", "y"), ("x", "z")]
    assert common.own.columns == ["n"]
    assert CommonCells.find(Table(frame)) is None


@given(tables_with_equal_rows(), st.data())
def test_rows_known_as_equal_stay_equal_however_a_table_changes(table, data):
    cut = data.draw(st.integers(0, table.height))
    parts = table.split([cut, table.height - cut])
    kept = [data.draw(st.lists(st.booleans(), min_size=p.height, max_size=p.height)) for p in parts]
    parts = [p.filter(np.array(k, dtype=bool)) for p, k in zip(parts, kept, strict=True)]
    changed = Table.concat(parts)
    changed = changed.with_columns([pl.Series("b", range(changed.height))])
    changed = changed.select([name for name in changed.names if name != "c"])
    changed = changed.with_columns([pl.Series("c", range(changed.height))])
    known = changed.equal_rows
    if any(2 * sum(k) < len(k) for k in kept):
        assert known is None  # few rows do not keep the frame of all
        return
    assert known.names.isdisjoint("bc")
    assert sum(len(rows) for _, rows in known.sources) <= 4 * max(changed.height, 1)
    if "a" in known.names and changed.height:
        distinct, groups = known.distinct(["a"])
        assert distinct["a"].gather(groups).equals(changed["a"])
        assert set(groups) == set(range(distinct.height))


def test_parts_of_a_table_know_no_more_distinct_rows_than_they_have():
    frame = pl.DataFrame({"a": [str(n) for n in range(1000)]})
    equal = EqualRows(frozenset("a"), ((frame, np.arange(1000)),), np.arange(1000))
    parts = Table(frame, equal_rows=equal).split([10] * 100)
    assert all(len(rows) == 10 for part in parts for _, rows in part.equal_rows.sources)
    joined = Table.concat(parts[::-1])
    distinct, groups = joined.equal_rows.distinct(["a"])
    assert distinct["a"].gather(groups).equals(joined["a"])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3 << 20), max_size=4), st.integers(1, 3))
def test_compressed_text_does_not_depend_on_writes_and_threads(sizes, threads):
    text = np.random.default_rng(1).integers(97, 100, sum(sizes), dtype=np.uint8).tobytes()
    parts = np.split(np.frombuffer(text, np.uint8), np.cumsum(sizes)[:-1])
    files = io.BytesIO(), io.BytesIO()
    for file, data, number in zip(files, ([text], parts), (1, threads), strict=True):
        writer = GzipWriter(file, number)
        for part in data:
            writer.write(bytes(part))
        writer.close()
    assert gzip.decompress(files[0].getvalue()) == text
    assert files[0].getvalue() == files[1].getvalue()
