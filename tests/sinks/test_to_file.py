import csv
import gzip
import io
import json
import os
import resource
import sys
from datetime import timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morpheus.columns import INDEX, ROW, SCORE, TIME, TS_ANOMALY
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.formats import TextWriter, encode_csv_header, write_csv_rows
from morpheus.sinks.to_file import ToFile
from morpheus.testing import make_events, make_output_rows, split_frame

TEXTS = ["csv", "json", "jsonl", "jsonlines", "ndjson", "csv.gz", "json.gz", "csv.zst", "JSON"]


def table(count=5):
    """What a chain hands to its sink."""
    return make_events(
        range(count), name=[f"n{i}" if i % 3 else None for i in range(count)]
    ).with_columns(
        pl.Series(SCORE, [float("nan") if i == 1 else i / 3 for i in range(count)], pl.Float64),
        pl.Series(TS_ANOMALY, [i == 2 for i in range(count)], pl.Boolean),
    )


def write(path, *frames, **options):
    stage = ToFile(str(path), **options)
    stage.validate()
    return list(stage(make_output_rows(frame) for frame in frames))


def unpacked(path):
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    return path.read_bytes()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_csv_is_what_pandas_would_write(tmp_path):
    write(tmp_path / "out.csv", table(3))
    assert (tmp_path / "out.csv").read_bytes() == (
        b",_index_,name,event_dt,ae_anomaly_score,ts_anomaly\n"
        b"0,0,,2021-10-09 00:00:00+00:00,0.0,False\n"
        b"1,1,n1,2021-10-09 00:00:01+00:00,,False\n"
        b"2,2,n2,2021-10-09 00:00:02+00:00,0.6666666666666666,True\n"
    )


def test_pandas_reads_the_types_back(tmp_path):
    write(tmp_path / "out.csv", table())
    read = pd.read_csv(tmp_path / "out.csv")
    assert read.dtypes[["Unnamed: 0", INDEX]].tolist() == [np.int64, np.int64]
    assert read[TS_ANOMALY].dtype == bool
    assert read[SCORE].dtype == np.float64
    assert pd.to_datetime(read[TIME]).dt.tz is not None
    assert read[SCORE].dropna().tolist() == [0.0, 2 / 3, 1.0, 4 / 3]


def test_microseconds_are_written_only_where_there_are_any(tmp_path):
    write(tmp_path / "out.csv", make_events([0, 1.5]).select(TIME))
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == [
        "2021-10-09 00:00:00+00:00",
        "2021-10-09 00:00:01.500000+00:00",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
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
def test_csv_cells_that_a_spreadsheet_would_run_are_guarded(tmp_path, text, shown):
    frame = make_events([0, 1], name=[text, None])
    write(tmp_path / "out.csv", frame)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [shown, ""]


def test_hostile_column_names_are_guarded_too(tmp_path):
    write(tmp_path / "out.csv", make_events([0], **{"=cmd()": ["x"], "^.*$": ["=1"]}))
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == (",_index_,'=cmd(),^.*$,event_dt")


def test_other_formats_hold_the_text_as_it_is(tmp_path):
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
def test_any_text_comes_back_from_csv_but_for_its_guard(tmp_path, texts):
    write(tmp_path / "out.csv", make_events(range(len(texts)), name=texts), overwrite=True)
    text = (tmp_path / "out.csv").read_bytes().decode()
    read = [row[2] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert len(read) == len(texts)
    for was, now in zip(texts, read, strict=True):
        assert now in {was or "", f"'{was}"}
        assert not now.lstrip().startswith(("=", "@"))


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(st.floats(), min_size=1))
def test_numbers_come_back_to_the_last_digit(tmp_path, numbers):
    frame = pl.DataFrame({"x": pl.Series(numbers, dtype=pl.Float64)})
    write(tmp_path / "out.csv", frame, overwrite=True)
    read = (tmp_path / "out.csv").read_text().replace('""', "").splitlines()[1:]
    np.testing.assert_array_equal([float(cell or "nan") for cell in read], numbers)


def test_json_is_one_object_a_row_as_pandas_writes_it(tmp_path):
    write(tmp_path / "out.json", table(2))
    first, second = map(json.loads, (tmp_path / "out.json").read_text().splitlines())
    assert first == {
        INDEX: 0,
        "name": None,
        TIME: 1633737600000,
        SCORE: 0.0,
        TS_ANOMALY: False,
    }
    assert second[SCORE] is None


def test_parquet_holds_the_types_and_pandas_name_for_the_row(tmp_path):
    write(tmp_path / "out.parquet", table(3), table(0), table(4))
    read = pl.read_parquet(tmp_path / "out.parquet")
    assert read.equals(pl.concat([table(3), table(4)]).rename({ROW: "Unnamed: 0"}))


@pytest.mark.parametrize(
    ("extension", "flush"),
    # A flush ends a block of packed text, which can be told from the bytes.
    [(each, False) for each in (*TEXTS, "parquet")] + [("csv", True), ("json", True)],
)
def test_bytes_do_not_depend_on_how_rows_are_cut_into_batches(tmp_path, extension, flush):
    whole, parts = tmp_path / f"whole.{extension}", tmp_path / f"parts.{extension}"
    write(whole, table(1000), flush=flush)
    write(parts, *split_frame(table(1000), [1, 0, 300, 7]), flush=flush)
    assert whole.read_bytes() == parts.read_bytes()
    if extension != "parquet":
        assert len(unpacked(whole).splitlines()) == 1000 + ("csv" in extension)


def test_rows_are_handed_on_unchanged(tmp_path):
    frame = table()
    [out] = write(tmp_path / "out.csv", frame)
    assert out.frame is frame
    assert frame.equals(table())


def test_the_row_number_can_be_left_out(tmp_path):
    write(tmp_path / "out.csv", table(1), include_index_col=False)
    write(tmp_path / "out.parquet", table(1), include_index_col=False)
    assert (tmp_path / "out.csv").read_text().startswith("_index_,name")
    assert pl.read_parquet(tmp_path / "out.parquet").columns[0] == INDEX


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b",_index_,event_dt\n"), ("a.json", b""), ("a.parquet", None)]
)
def test_a_run_without_rows_writes_a_file_without_rows(tmp_path, name, content):
    write(tmp_path / name, make_events([]))
    if content is None:
        assert pl.read_parquet(tmp_path / name).columns == ["Unnamed: 0", INDEX, TIME]
    else:
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.csv.gz"])
def test_a_run_without_batches_writes_a_file(tmp_path, name):
    write(tmp_path / name)
    assert left_in(tmp_path) == [name]


def test_the_first_rows_decide_the_columns(tmp_path, caplog):
    first, later = make_events([0], a=["x"]), make_events([1, 2], b=["y", "z"])
    for name in ("out.csv", "out.parquet"):
        write(tmp_path / name, first, later, later)
    assert (tmp_path / "out.csv").read_text().splitlines()[2:4] == [
        "0,0,,2021-10-09 00:00:01+00:00",
        "1,1,,2021-10-09 00:00:02+00:00",
    ]
    assert pl.read_parquet(tmp_path / "out.parquet")["a"].to_list() == ["x", *[None] * 4]
    assert sum("'b' came after the first rows" in message for message in caplog.messages) == 2


def test_a_folder_is_made_where_there_is_none(tmp_path):
    write(tmp_path / "new" / "deep" / "out.csv", table())
    assert left_in(tmp_path / "new" / "deep") == ["out.csv"]


def test_a_format_can_be_asked_for_whatever_the_extension(tmp_path):
    write(tmp_path / "out.txt", table(1), file_type="CSV")
    assert (tmp_path / "out.txt").read_text().startswith(",_index_")


def failing(error, *frames):
    yield from map(make_output_rows, frames)
    raise error


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.json.zst", "out.parquet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_run_leaves_nothing_and_what_was_there_stays(tmp_path, name, error):
    (tmp_path / name).write_bytes(b"old")
    stage = ToFile(str(tmp_path / name), overwrite=True)
    with pytest.raises(error):
        list(stage(failing(error(), table())))
    assert left_in(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_run_that_is_given_up_leaves_nothing(tmp_path):
    chain = ToFile(str(tmp_path / "out.csv"))(make_output_rows(table()) for _ in range(3))
    next(chain)
    assert [name.endswith(".part") for name in left_in(tmp_path)] == [True]
    chain.close()
    assert left_in(tmp_path) == []


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    for _ in ToFile(str(path), overwrite=True)(make_output_rows(table()) for _ in range(2)):
        assert path.read_text() == "old"
    assert path.read_text().startswith(",_index_")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    write(tmp_path / "link.csv", table(), overwrite=True)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith(",_index_")


@pytest.mark.parametrize("name", ["out.csv", "out.json.gz", "out.csv.zst"])
def test_flushed_rows_are_seen_at_once_and_stay_when_the_run_fails(tmp_path, name):
    path = tmp_path / name
    chain = ToFile(str(path), flush=True)(failing(RuntimeError(), table(3)))
    next(chain)
    assert path.stat().st_size > 20
    with pytest.raises(RuntimeError):
        next(chain)
    assert left_in(tmp_path) == [name]
    assert unpacked(path).count(b"n1") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.csv.gz", "out.parquet"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, name):
    noise = np.random.default_rng(0).random(200_000)
    frame = pl.DataFrame({ROW: range(200_000), "x": noise})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            TransientError, match=r"Cannot write .*Nothing is left behind.*another place"
        ):
            write(tmp_path / name, frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(tmp_path) == []


def test_an_existing_file_is_refused_without_overwrite(tmp_path):
    path = tmp_path / "out.csv"
    path.touch()
    with pytest.raises(
        UsageError,
        match=r"Cannot output classifications to '.*out.csv'. "
        r"File exists and overwrite = False.*--overwrite",
    ):
        ToFile(str(path)).validate()
    ToFile(str(path), overwrite=True).validate()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "--filename detections.csv"),
        ("out.xlsx", {}, r"Unsupported extension '\.xlsx' with 'auto' type.*--file_type csv"),
        ("out", {}, "Unsupported extension ''"),
        ("out.parquet.gz", {}, "packed already"),
        ("out.parquet", {"flush": True}, "--flush.*Parquet"),
        ("folder.csv", {}, "is a folder"),
        ("file.csv/out.csv", {}, "is a file, not a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_run(
    tmp_path, monkeypatch, name, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").touch()
    with pytest.raises(UsageError, match=message):
        ToFile(name, **options).validate()


def test_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match="no regular file"):
        ToFile(str(tmp_path / "pipe.csv"), overwrite=True).validate()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_an_unwritable_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written to"):
        ToFile(str(tmp_path / "out.csv")).validate()
    tmp_path.chmod(0o700)


def test_times_with_other_units_and_no_zone_are_written(tmp_path):
    start = pl.datetime(2021, 1, 1)
    frame = pl.select(
        pl.datetime_range(start, start + timedelta(seconds=1), "1s", time_unit="ns").alias("at")
    )
    write(tmp_path / "out.csv", frame)
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "2021-01-01 00:00:00"


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_text_taken_over_stands_between_the_rows_before_it_and_behind(tmp_path, packing):
    spelt, whole = tmp_path / "spelt", tmp_path / f"out.csv{packing}"
    spelt.write_bytes(b"2\n" * 100_000)
    with (
        whole.open("wb") as file,
        TextWriter(
            file, packing, write_rows=write_csv_rows, encode_header=encode_csv_header
        ) as text,
    ):
        text.write(pl.DataFrame({"n": [1]}))
        text.append(spelt)
        text.write(pl.DataFrame({"n": [3]}))
        text.finish()
    content = gzip.decompress(whole.read_bytes()) if packing else whole.read_bytes()
    assert content == b"n\n1\n" + b"2\n" * 100_000 + b"3\n"
    assert not spelt.exists()
