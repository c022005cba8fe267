"""A copy of a file is recognised by its contents, is not read, and is named in the summary."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from morpheus.cli.output import format_metrics
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.compression import find_copies

USER = "userIdentityarn"


def make_lines(events: int = 20, first: int = 0, user: str = "ann") -> bytes:
    records = [
        {"eventTime": f"2024-05-31T09:30:{n:02}Z", "eventName": "Ls", "userIdentity": {"arn": user}}
        for n in range(first, first + events)
    ]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def read(pattern: Path, history: Path | None = None, **options: Any) -> RunMetrics:
    metrics = RunMetrics()
    settings = PipelineOptions(columns=("eventName",), userid_column_name=USER)
    source = FromCloudtrail(input_glob=str(pattern), options=settings, **options)
    batches = list(source.events(None if history is None else str(history), metrics))
    assert sum(batch.table.height for batch in batches) == metrics.input.accepted
    return metrics


def compress_slowly(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=1)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("b.jsonl", bytes),
        ("a.jsonl.1", bytes),
        ("a.jsonl-20240531", bytes),
        ("a.jsonl.2.gz", gzip.compress),
        ("a-copy.json.gz", compress_slowly),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("below/a.jsonl", bytes),
    ],
)
def test_copy_of_a_file_without_ids_counts_once(tmp_path: Path, name: str, compress: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(make_lines())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(compress(make_lines()))
    metrics = read(tmp_path / "*.json*")
    assert (metrics.input.accepted, metrics.input.files, metrics.input.copied_files) == (20, 1, 1)
    [line] = [line for line in format_metrics(metrics) if line.startswith("  copy")]
    assert str(tmp_path / name) in line
    assert str(tmp_path / "a.jsonl") in line
    assert "1 file with the contents of another" in "\n".join(format_metrics(metrics))


def test_copies_that_are_compressed_differently_count_once(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(make_lines()))
    (tmp_path / "b.json.gz").write_bytes(compress_slowly(make_lines()))
    (tmp_path / "c.json.gz").write_bytes(compress_slowly(make_lines(first=1)))
    metrics = read(tmp_path)
    assert (metrics.input.accepted, metrics.input.copied_files) == (40, 1)


def test_different_files_with_equal_events_are_both_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(make_lines())
    (tmp_path / "b.jsonl").write_bytes(make_lines() + make_lines(1, 30))
    (tmp_path / "c.jsonl").write_bytes(make_lines(19) + make_lines(1, 30))
    metrics = read(tmp_path)
    assert (metrics.input.accepted, metrics.input.copied_files) == (61, 0)


def test_files_that_begin_and_end_alike_are_both_read(tmp_path: Path) -> None:
    middle = make_lines(1, user="bob")
    (tmp_path / "a.jsonl").write_bytes(make_lines(50) + middle + make_lines(50))
    (tmp_path / "b.jsonl").write_bytes(
        make_lines(50) + middle.replace(b"bob", b"eve") + make_lines(50)
    )
    assert read(tmp_path).input.copied_files == 0


def test_equal_files_of_two_partitions_are_both_read(tmp_path: Path) -> None:
    for account in ("1", "2"):
        (tmp_path / f"account={account}").mkdir()
        (tmp_path / f"account={account}" / "a.jsonl").write_bytes(make_lines())
    assert read(tmp_path).input.copied_files == 0


def test_small_files_are_not_compared(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(make_lines(1))
    assert read(tmp_path).input.accepted == 2


def test_a_file_can_be_both_input_and_training(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(make_lines())
    metrics = read(tmp_path / "a.jsonl", tmp_path / "a.jsonl")
    assert (metrics.input.accepted, metrics.training.accepted) == (20, 20)


def test_a_copied_training_file_counts_once(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(make_lines(3))
    (tmp_path / "old").mkdir()
    for name in ("a.jsonl", "a.jsonl.1"):
        (tmp_path / "old" / name).write_bytes(make_lines())
    metrics = read(tmp_path / "in.jsonl", tmp_path / "old" / "a*")
    assert (metrics.training.accepted, metrics.training.copied_files) == (20, 1)


def test_damaged_and_missing_files_are_no_copies(tmp_path: Path) -> None:
    whole = gzip.compress(make_lines(40))
    contents = {
        "a.json.gz": whole[:-20],
        "b.json.gz": whole[:-20],
        "c.gz": b"\x1f\x8b",
        "d.json": b"",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "e.jsonl").write_bytes(bz2.compress(make_lines()))
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "gone.jsonl"]
    assert find_copies(paths) == {}
