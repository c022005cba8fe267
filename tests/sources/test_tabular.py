import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from io import BytesIO
from itertools import chain
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheus.errors import RecordError
from morpheus.sources.tabular import (
    Table,
    _catch_panics,
    read_csv,
    read_csv_blocks,
    read_parquet,
    read_parquet_blocks,
)

PATH = Path("x.csv")


def csv(text: str) -> Table:
    return read_csv(text.encode(), PATH)


def parquet(frame: pl.DataFrame) -> Table:
    file = BytesIO()
    frame.write_parquet(file)
    return read_parquet(file.getvalue(), PATH)


def test_csv_values_are_never_numbers() -> None:
    assert csv("a,b\n001,NA\n1e3,true\n").frame.rows() == [("001", "NA"), ("1e3", "true")]


def test_empty_cell_is_null() -> None:
    assert csv('a,b\n,x\n"",y\n').frame["a"].to_list() == [None, None]


def test_quoted_commas_quotes_and_line_breaks_are_kept() -> None:
    assert csv('a,b\n"1,2","say ""x""\nthere"\n').frame.rows() == [("1,2", 'say "x"\nthere')]


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_unnamed_first_column_of_integers_is_the_row_index(name: str) -> None:
    table = csv(f"{name},a\n7,x\n3,y\n")
    assert table.frame.columns == ["a"]
    assert table.row_index is not None
    assert table.row_index.to_list() == [7, 3]


def test_unnamed_first_column_of_text_is_a_column() -> None:
    table = csv(",a\nq,x\n")
    assert table.row_index is None
    assert table.frame.columns == ["Unnamed: 0", "a"]


def test_dots_are_removed_from_names_and_equal_columns_are_combined() -> None:
    table = csv("user.arn,userarn,b\n,x,1\ny,z,2\n")
    assert table.frame["userarn"].to_list() == ["x", "y"]
    assert table.duplicate_columns == {"userarn": ["user.arn", "userarn"]}


@pytest.mark.parametrize(
    ("text", "kept", "broken"),
    [
        ("a,b\n1,2\n3,4,5\n6,7\n", [("1", "2"), ("6", "7")], [(3, "the row has 3 cells")]),
        ("a,b\n1\n2,3\n", [("2", "3")], [(2, "the row has 1 cells")]),
        ('a,b\n1,2\n3,"x\n4,5\n', [("1", "2"), ("4", "5")], [(3, "a quote is not closed")]),
        ('a,b\n"1\n2",x\n3\n4,5\n', [("1\n2", "x"), ("4", "5")], [(4, "the row has 1 cells")]),
        ('a,b\n1,"x"y\n4,5\n', [("4", "5")], [(2, "not CSV")]),
    ],
)
def test_row_with_wrong_width_is_reported_with_its_line(
    text: str, kept: list[tuple[str, ...]], broken: list[tuple[int, str]]
) -> None:
    table = csv(text)
    assert table.frame.rows() == kept
    assert [line for line, _ in table.errors] == [line for line, _ in broken]
    assert all(
        why.startswith(expected)
        for (_, why), (_, expected) in zip(table.errors, broken, strict=True)
    )


@pytest.mark.parametrize("text", ["a,b\r\n1,2\r\n", "a,b\n\n1,2\n\n", "a,b\n1,2", "\na,b\n1,2\n"])
def test_line_ends_and_blank_lines_do_not_matter(text: str) -> None:
    table = csv(text)
    assert (table.frame.rows(), table.errors) == ([("1", "2")], [])


def test_bare_quote_inside_a_cell_is_a_quote() -> None:
    assert csv('a,b\n1,x"y\n').frame.rows() == [("1", 'x"y')]


def test_bytes_that_are_not_utf8_are_read_as_windows_1252() -> None:
    text = "Größe,b\nMüller,1\nMöller,2\n"
    expected = read_csv(text.encode(), PATH).frame
    assert expected["Größe"].to_list() == ["Müller", "Möller"]
    assert read_csv(text.encode("cp1252"), PATH).frame.equals(expected)


def test_each_byte_that_is_not_utf8_stays_different_from_the_others() -> None:
    cells = [bytes([byte]) for byte in range(128, 256)]
    frame = read_csv(b"a,b\n" + b"".join(b"x%b,1\n" % cell for cell in cells), PATH).frame
    assert frame["a"].n_unique() == len(cells)


def test_byte_order_mark_is_removed() -> None:
    assert read_csv("a,b\n1,2\n".encode("utf-16"), PATH).frame.columns == ["a", "b"]


def test_header_alone_is_an_empty_table() -> None:
    assert csv("a,b\n").frame.shape == (0, 2)


def test_empty_file_is_reported() -> None:
    with pytest.raises(RecordError, match=r"x\.csv: the file is empty; a CSV file needs a header"):
        csv("")


CELLS = st.text(st.sampled_from('ab ,"\n1'), max_size=4)


HEADER = ("a", "b")


@given(st.lists(st.tuples(CELLS, CELLS).filter(lambda row: row != HEADER), max_size=6))
def test_csv_of_polars_is_read_back(rows: list[tuple[str, str]]) -> None:
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    table = csv(frame.write_csv(quote_style="always"))
    assert table.errors == []
    assert table.frame.rows() == [
        (a if a.strip() else None, b if b.strip() else None) for a, b in rows
    ]


def test_parquet_becomes_text() -> None:
    table = parquet(
        pl.DataFrame(
            {
                "id": [7],
                "ok": [True],
                "at": [datetime(2024, 5, 31, 9, 30, tzinfo=UTC)],
                "user": [{"arn": "a", "issuer": {"name": "i"}}],
                "list": [["x", None]],
                "none": pl.Series([None], dtype=pl.Null),
            }
        )
    )
    assert table.frame.to_dicts() == [
        {
            "id": "7",
            "ok": "True",
            "at": "2024-05-31T09:30:00Z",
            "userarn": "a",
            "userissuername": "i",
            "list": '["x",null]',
            "none": None,
        }
    ]


def test_whole_numbers_with_gaps_in_parquet_have_no_decimals() -> None:
    frame = parquet(pl.DataFrame({"id": [7.0, None, 2.5], "in": [{"n": 1e3}] * 3})).frame
    assert frame["id"].to_list() == ["7", None, "2.5"]
    assert frame["inn"].to_list() == ["1000"] * 3


def test_text_that_parquet_stores_as_bytes_is_read_as_text() -> None:
    cells = ["ann", "Zoë", None, "a\nb"]
    frame = pl.DataFrame({"user": cells, "in": [{"name": cell} for cell in cells]})
    as_bytes = frame.with_columns(
        pl.col("user").cast(pl.Binary),
        pl.struct(pl.col("user").cast(pl.Binary).alias("name")).alias("in"),
    )
    assert parquet(as_bytes).frame.equals(parquet(frame).frame)


def test_bytes_in_parquet_that_are_no_text_become_base64() -> None:
    frame = parquet(pl.DataFrame({"hash": [b"\0\xff", b"\xfc"]})).frame
    assert frame["hash"].to_list() == ['"AP8="', '"/A=="']


def test_damaged_parquet_is_reported() -> None:
    with pytest.raises(RecordError, match=r"not a complete Parquet file .*download it again"):
        read_parquet(b"PAR1 and no more", PATH)


@given(st.binary(max_size=60), st.integers(1, 9))
def test_csv_in_blocks_equals_csv_read_at_once(noise: bytes, size: int) -> None:
    text = csv_text(noise)
    whole = read_csv(text, PATH)
    first = text.find(b"\n") + 1
    tables = list(read_csv_blocks([text[:first], *blocks_of(text[first:], size)], PATH))
    assert pl.concat([one.frame for one in tables]).equals(whole.frame)
    assert [place for one in tables for place in one.line_numbers] == list(whole.line_numbers)
    assert [bad for one in tables for bad in one.errors] == list(whole.errors)


def csv_text(noise: bytes) -> bytes:
    """Rows of two cells, some quoted with line breaks within, some too long."""
    rows = [b'1,"x\ny"', b"2,z", b"", b"3,4,5", b'"6""",7']
    return b"\n".join([b"a,b", *(rows[byte % 5] for byte in noise)]) + b"\n"


def blocks_of(text: bytes, size: int) -> list[bytes]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize("group", [32, 64, 300, 1000])
def test_parquet_in_blocks_equals_parquet_read_at_once(group: int, tmp_path: Path) -> None:
    rows = {"a": [f"{n}" for n in range(1000)], "b": [{"c": n} for n in range(1000)]}
    frame = pl.DataFrame({**rows, "d": [[n] * (n % 4) for n in range(1000)]})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=group)
    tables = list(read_parquet_blocks(tmp_path / "a.parquet", 64))
    assert len(tables) > 3
    assert pl.concat([one.frame for one in tables]).equals(parquet(frame).frame)
    numbers = pl.concat([one.row_index for one in tables if one.row_index is not None])
    assert numbers.to_list() == list(range(1000))
    assert [place for one in tables for place in one.line_numbers] == list(range(1, 1001))


def test_damaged_parquet_in_blocks_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        RecordError, match=r"a\.parquet: not a complete Parquet file .*download it again"
    ):
        list(read_parquet_blocks(tmp_path / "a.parquet", 64))


ROWS = [f"2026-10-01T{n // 60:02}:{n % 60:02}:00Z,ann,list,{n}" for n in range(600)]


@pytest.mark.parametrize("closing", ["", '"', 'x"', '"ann",list,7'], ids=range(4))
@pytest.mark.parametrize("quoted", [False, True])
def test_open_quote_costs_only_the_line_that_opens_it(closing: str, quoted: bool) -> None:  # noqa: FBT001 - a parameter
    rows = ['"' + row.replace(",", '","') + '"' if quoted else row for row in ROWS]
    rows[100] = '2026-10-01T01:40:00Z,ann,"list,100'
    rows[400] = rows[400] if not closing else f"2026-10-01T06:40:00Z,{closing}"
    table = csv("\n".join(["time,user,action,number", *rows]))
    assert table.frame.height >= len(ROWS) - 2
    assert table.frame.height + len(table.errors) == len(ROWS)
    assert table.errors[0][0] == 102
    assert "quote is not closed" in table.errors[0][1]


def test_cells_with_many_lines_are_kept() -> None:
    text = '{\n  ""a"": 1,\n  ""b"": 2,\n  ""c"": 3\n}'
    table = csv(f'time,text\n2026,"{text}"\n2027,"x, 1\ny, 2\nz, 3\nx, 4"\n')
    assert (table.frame.height, table.errors) == (2, [])


def test_open_quote_in_a_large_table_does_not_collect_the_rest_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("morpheus.sources.tabular._MAX_ROW_BYTES", 1 << 16)
    rows = "\n".join(ROWS).encode() + b"\n"
    blocks = [b"time,user,action,number\n" + rows, b'2026,ann,"list,100\n', *[rows] * 50]
    tables = list(read_csv_blocks(blocks, PATH))
    assert sum(table.frame.height for table in tables) == len(ROWS) * 51
    assert [line for table in tables for line, _ in table.errors] == [602]


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize(
    "first", ["", "{}sep={}\n", '{}"sep={}"\r\n', "#TYPE Selected.Object\n", "\n"]
)
def test_separator_and_first_lines_of_exports_are_recognised(separator: str, first: str) -> None:
    lines = first.format("", separator) + 'a,b;c\n1,2\n3,"x,y"\n'.replace(",", separator)
    expected = csv('a,b\n1,2\n3,"x,y"\n'.replace("x,y", f"x{separator}y"))
    table = csv(lines.replace("b;c", "b"))
    assert table.frame.equals(expected.frame)
    assert list(table.line_numbers) == [
        lines.count("\n"[:1], 0, lines.find("1")) + 1 + n for n in (0, 1)
    ]
    [block, *_] = read_csv_blocks([lines.replace("b;c", "b").encode()], PATH)
    assert block.frame.equals(table.frame)
    assert list(block.line_numbers) == list(table.line_numbers)


def test_utf16_tables_of_powershell_are_read() -> None:
    table = read_csv("#TYPE X\r\na\tb\r\n1\t2\r\n".encode("utf-16"), PATH)
    assert table.frame.rows() == [("1", "2")]


def test_spaces_after_separators_are_no_part_of_cells() -> None:
    table = csv('a, b, c\n1, "x, y", 2 3\n')
    assert (table.frame.columns, table.frame.rows()) == (["a", "b", "c"], [("1", "x, y", "2 3")])
    assert csv("a,b b, c\n1, 2,3\n").frame.rows() == [("1", " 2", "3")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_byte_order_mark_is_read(encoding: str) -> None:
    assert read_csv("ab,cd\n1,é\n".encode(encoding), PATH).frame.rows() == [("1", "é")]


def test_repeated_headers_of_joined_files_are_no_rows() -> None:
    table = csv("a,b\n1,2\na,b\n3,4\na,x\n")
    assert table.frame.rows() == [("1", "2"), ("3", "4"), ("a", "x")]
    assert list(table.line_numbers) == [2, 4, 5]


@pytest.fixture(scope="module")
def parquet_bytes() -> bytes:
    rows = {"t": ROWS, "u": ["ann", "bob"] * 300, "x": [{"a": n % 7} for n in range(600)]}
    file = BytesIO()
    pl.DataFrame(rows).write_parquet(file, row_group_size=200)
    return file.getvalue()


def test_flipped_bits_in_parquet_are_refused_or_lose_no_row(
    parquet_bytes: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, refused = tmp_path / "a.parquet", 0
    for at in range(0, len(parquet_bytes), 23):
        damaged = bytearray(parquet_bytes)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        rows = [count_rows_or_lost([read_parquet(bytes(damaged), PATH)] for _ in "1")]
        rows += [
            count_rows_or_lost(read_parquet_blocks(path, size) for _ in "1") for size in (64, 1000)
        ]
        assert all(number in {len(ROWS), None} for number in rows)
        refused += None in rows
    assert refused > 20
    assert "panicked" not in capfd.readouterr().err


REPORT = """
thread 'async-executor-0' (12263) panicked at crates/polars-arrow/src/bitmap/immutable.rs:329:9:
assertion `left == right` failed
  left: 3
 right: 4
"""
BACKTRACE = """stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/library/std/src/panicking.rs:5
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
"""


@pytest.mark.parametrize("report", [REPORT, REPORT + BACKTRACE])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, nullcontext()),
        (pl.exceptions.PanicException("x"), pytest.raises(pl.exceptions.ComputeError, match="x")),
        (KeyboardInterrupt(), pytest.raises(KeyboardInterrupt)),
    ],
)
def test_other_text_between_reports_of_panics_is_shown_in_order(
    error: BaseException | None,
    expected: AbstractContextManager[object],
    report: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with expected, _catch_panics():
        for text in ("first\n", report, "  second\n", report, report, "third\n"):
            os.write(2, text.encode())
        if error:
            raise error
    os.write(2, b"fourth\n")
    assert capfd.readouterr().err == "first\n  second\nthird\nfourth\n"


def test_reports_of_panics_in_several_threads_are_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    def report(_: int) -> None:
        with _catch_panics(), _catch_panics():
            time.sleep(0.002)
            os.write(2, REPORT.encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(report, range(8)))
    assert capfd.readouterr().err == ""


def test_a_parquet_file_without_rows_has_its_columns_in_blocks(tmp_path: Path) -> None:
    pl.DataFrame({"a": []}, schema={"a": pl.String}).write_parquet(tmp_path / "a.parquet")
    [table] = read_parquet_blocks(tmp_path / "a.parquet", 64)
    assert (table.frame.columns, table.frame.height) == (["a"], 0)


def count_rows_or_lost(reads: Iterable[Iterable[Table]]) -> int | None:
    """The number of rows that are read or named as lost; None if the file states no number."""
    rows = 0
    try:
        for table in chain.from_iterable(reads):
            rows += table.frame.height
    except RecordError as error:
        return None if error.records is None else rows + error.records
    return rows
