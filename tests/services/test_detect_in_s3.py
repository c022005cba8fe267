"""`morpheus detect` on logs in a bucket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl

from lakes import Lake

ROOT = Path(__file__).parents[2]


def test_a_bucket_gives_the_incidents_of_the_same_files_on_disk(lake: Lake, tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "make_fleet.py")
    size = ["--users=8", "--days=20", "--training=14", "--form=json"]
    command = [sys.executable, script, "--into", str(tmp_path / "fleet"), *size]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    logs = tmp_path / "fleet" / "json"
    files = (path for path in logs.rglob("*") if path.is_file())
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
