"""Hostile logs through a whole pipeline: each record is scored or rejected, outputs are valid."""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus

DEEP = 10_000
VALUES = {
    "a NUL": r'"a\u0000b"',
    "half a character": r'"\ud800"',
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "infinity": "1e999",
    "a long integer": "9" * 400,
    "a longer integer": "-" + "9" * 5000,
    "2**64": str(2**64),
    "NaN": "NaN",
    "minus infinity": "-Infinity",
    "a list": '["a", 1, null, {"b": 1e400}]',
    "an object": r'{"b": {"": 1, "\udfff": 2, "__proto__": 3}}',
    "5 MB": '"' + "x" * 5_000_000 + '"',
    "breaks": r'"a\nb\r\n,\"c"',
    "a formula": '"=1+1"',
    "markup": r'"</script><script>alert(1)</script>\u202e\u2028"',
    "a bare control sign": '"\x01"',
    "a wrong escape": r'"\x41"',
    "a key twice": '"a", "eventName": "b", "userIdentity": {"arn": "bob"}',
    "no UTF-8": '"\udcff\udcfe\udcc3"',
}
RECORD = (
    '{"eventTime": %s, "userIdentity": {"arn": %s, "accountId": "1"}, "eventName": %s, '
    '"eventID": "%08d-0000-4000-8000-000000000000"}'
)
TIME = '"2026-01-01T00:00:00Z"'
RECORDS = [
    line
    for value in VALUES.values()
    for line in (
        RECORD % (TIME, '"ann"', value, 0),
        RECORD % (TIME, value, '"Get"', 0),
        RECORD % (value, '"ann"', '"Get"', 0),
        value,
    )
]


def with_ids(records):
    """Give each record a different id."""
    return [
        record.replace('"00000000-', f'"{number:08}-')
        for number, record in enumerate(records, start=1)
    ]


def raw(text):
    return text.encode("utf-8", "surrogateescape")


def good(number=20):
    return with_ids([RECORD % (TIME, '"ann"', '"Get"', 0)] * number)


def document(*records):
    return b'{"Records": [' + raw(",".join(records)) + b"]}"


LINES = raw("\n".join(good()) + "\n")
FILES = {
    "lines.jsonl": raw("\n".join(with_ids(RECORDS))),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"),
    "wide.jsonl": raw(json.dumps({"eventTime": "2026", **{f"k{n}": n for n in range(5000)}})),
    "wide16.jsonl": LINES.decode().encode("utf-16"),
    "zeros.jsonl": LINES + b"\0" * 100,
    "document.json": document(*good()),
    "object.json": b'{"Records": {"eventTime": 1}}',
    "text.json": b'{"Records": "text"}',
    "nested.json": b'{"Records": [{"Records": [1, null, "a"]}]}',
    "twice.json": document(*good())[:-1] + b', "Records": []}',
    "behind.json": document(*good()) + b" garbage",
    "packed twice.json.gz": gzip.compress(gzip.compress(LINES)),
    "garbage behind.jsonl.gz": gzip.compress(LINES) + b"garbage",
    "two members.jsonl.gz": gzip.compress(LINES) * 2,
    "bomb.jsonl.gz": gzip.compress(LINES + b" " * 50_000_000),
    "checksum.jsonl.gz": gzip.compress(LINES)[:-8] + b"\0" * 8,
    "no parquet.parquet": b"PAR1 no PAR1",
}


def run(folder, *source):
    sinks = ["to-file", "--filename=o.csv", "to-file", "--filename=o.jsonl"]
    words = ["run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityarn"]
    words += ["from-cloudtrail", *source, "train-ae", f"--train_data_glob={folder}/history.jsonl"]
    words += ["--train_epochs=1", "preprocess", "inf-pytorch", "add-scores", "--label=risk"]
    words += ["explain", "timeseries", "--resolution=10m", "serialize", *sinks]
    words += ["to-report", "--filename=o.html"]
    return CliRunner().invoke(morpheus, words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "history.jsonl").write_text("\n".join(good(300)))
    (tmp_path / "logs").mkdir()
    for name, content in FILES.items():
        (tmp_path / "logs" / name).write_bytes(content)
    return tmp_path


def count(pattern, text):
    match = re.search(pattern, text, re.MULTILINE)
    return int(match[1].replace(",", "")) if match else 0


@pytest.fixture
def large_cells():
    """Let the standard library read large cells; the limit is one for the whole process."""
    before = csv.field_size_limit(10**8)
    yield
    csv.field_size_limit(before)


@pytest.mark.usefixtures("large_cells")
@pytest.mark.parametrize("more", [(), ("--all_columns",)])
def test_every_record_is_written_or_counted_and_outputs_are_valid(folder, more):
    result = run(folder, "--input_glob=logs", "--bad_record=skip", *more)
    assert result.exit_code == 0, result.stderr[-2000:]
    summary = result.stderr[result.stderr.index("\nInput") :]
    read, written = count(r"^Input +([\d,]+)", summary), count(r"^Written +([\d,]+)", summary)
    rejected, duplicates = (
        count(r"([\d,]+) rejected", summary),
        count(r"([\d,]+) duplicate", summary),
    )
    assert read == written + rejected + duplicates
    assert read >= len(RECORDS) + 20 * 5
    with Path("o.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(rows) == 1 + written
    lines = Path("o.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(list(map(json.loads, lines))) == written
    assert Path("o.html").read_text(encoding="utf-8").count("</script>") == len(
        re.findall("<script", Path("o.html").read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_read_or_rejected_by_name(folder, name):
    result = run(folder, f"--input_glob=logs/{name}")
    assert result.exit_code in {0, 1}
    assert "bug" not in result.stderr
    if result.exit_code:
        assert f"Error: logs/{name}" in result.stderr
        assert "--bad_record skip" in result.stderr
        assert not list(Path().glob("o.*"))


def test_a_field_without_a_name_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = {"eventTime": "2026-01-01T00:00:00Z", "": 1, "userIdentity": {"arn": "ann"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    words = ["run", "--num_threads=1", "pipeline-ae", "--userid_column_name=userIdentityarn"]
    words += ["from-cloudtrail", "--input_glob=a.jsonl", "--all_columns", "serialize"]
    assert CliRunner().invoke(morpheus, [*words, "to-file", "--filename=o.csv"]).exit_code == 0
    assert len(Path("o.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'eventTime,"' + b"x" * 200_000 + b'"\n1,2\n', "the header is not CSV"),
        ("a.json.gz", b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "truncated or damaged"),
    ],
)
def test_a_broken_start_of_a_file_is_an_error_with_its_name(
    tmp_path, monkeypatch, name, content, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"b{name}").write_bytes(content)
    words = ["run", "--num_threads=1", "pipeline-ae", "from-cloudtrail", "--input_glob=."]
    result = CliRunner().invoke(morpheus, [*words, "serialize", "to-file", "--filename=o.csv"])
    assert (result.exit_code, "bug" in result.stderr) == (1, False)
    assert message in result.stderr
