"""`morpheus detect` on logs in a bucket."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from lakes import Lake
from morpheus.sources import compression
from morpheus.sources.compression import keep_objects, read_blocks, read_bytes
from morpheus.storage.object_store import ObjectPath, head_object

ROOT = Path(__file__).parents[2]


def test_a_bucket_gives_the_incidents_of_the_same_files_on_disk_and_is_read_once(
    lake: Lake, tmp_path: Path
) -> None:
    script = str(ROOT / "examples" / "make_fleet.py")
    size = ["--users=8", "--days=20", "--training=14", "--form=json"]
    command = [sys.executable, script, "--into", str(tmp_path / "fleet"), *size]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    logs = tmp_path / "fleet" / "json"
    files = [path for path in logs.rglob("*") if path.is_file()]
    lake.put_all({f"logs/{path.relative_to(logs)}": path.read_bytes() for path in files})
    for place, out in ((str(logs), "disk"), ("s3://lake/logs/", "bucket")):
        words = [sys.executable, "-m", "morpheus", "detect", place, f"--out={tmp_path / out}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
    disk, bucket = (
        pl.read_ndjson(tmp_path / out / "alerts.jsonl", infer_schema_length=None)
        for out in ("disk", "bucket")
    )
    assert disk.height > 0
    assert bucket.equals(disk)
    read = Counter(where for method, where in lake.asked if method == "GET" and ".json" in where)
    assert len(read) == len(files)
    assert set(read.values()) == {1}


def count_reads(lake: Lake, key: str) -> int:
    return sum(method == "GET" and key in where for method, where in lake.asked)


def test_an_object_is_read_once_until_it_changes(lake: Lake, tmp_path: Path) -> None:
    lake.put_all({"small.json": b"[1]", "large.json": b"x" * 3_000_000})

    def read() -> list[bytes]:
        small, large = (
            head_object(ObjectPath("lake", f"{name}.json")) for name in ("small", "large")
        )
        assert small is not None
        assert large is not None
        return [read_bytes(small), b"".join(read_blocks(large))]

    with keep_objects(tmp_path):
        first = read()
        assert read() == first
        assert [count_reads(lake, f"{name}.json") for name in ("small", "large")] == [1, 1]
        lake.put("small.json", b"[1, 2]")
        assert read()[0] == b"[1, 2]"
        assert [count_reads(lake, f"{name}.json") for name in ("small", "large")] == [2, 1]
    read()
    assert [count_reads(lake, f"{name}.json") for name in ("small", "large")] == [3, 2]


def test_objects_are_read_again_rather_than_filling_the_disk(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_MIN_FREE", 1 << 62)
    lake.put_all({"small.json": b"[1]", "large.json": b"x" * 3_000_000})
    with keep_objects(tmp_path):
        for _ in range(2):
            assert read_bytes(ObjectPath("lake", "small.json")) == b"[1]"
            assert b"".join(read_blocks(ObjectPath("lake", "large.json"))) == b"x" * 3_000_000
    assert [count_reads(lake, f"{name}.json") for name in ("small", "large")] == [2, 2]
    assert list(tmp_path.iterdir()) == []
