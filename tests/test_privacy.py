"""The statements of docs/privacy.md: what a run writes, who can read it, and what is in it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from morpheus.core.registry import stage_names

ROOT = Path(__file__).parents[1]
START = datetime(2026, 1, 1, tzinfo=UTC)
TRAIN, DAY = 400, 48


def make_record(number: int) -> dict[str, Any]:
    """An event of every half hour. Its address, its id and its time are in no other event."""
    return {
        "eventID": f"{number:08x}-0000-4000-8000-000000000000",
        "eventTime": f"{START + timedelta(minutes=30 * number):%Y-%m-%dT%H:%M:%SZ}",
        "eventName": ("GetObject", "ListUsers", "PutObject")[number % 3],
        "eventSource": "s3.amazonaws.com",
        "requestParameters": {"key": f"path-{number}"},
        "userIdentity": {"type": "IAMUser", "arn": "arn:aws:iam::1:user/ann", "accountId": "1"},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all outputs on disk, with a home and a TMPDIR of its own."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("home", "temporary", "logs"):
        (folder / name).mkdir()
    records = [make_record(n) for n in range(TRAIN + DAY)]
    for name, part in {"train": records[:TRAIN], "input": records[TRAIN:]}.items():
        (folder / "logs" / f"{name}.json").write_text(json.dumps({"Records": part}))
    words = [
        *("run", "--num_threads=2", "--status_file=out/status.json"),
        *("pipeline-ae", "--state=out/state.db", "--userid_column_name=userIdentityarn"),
        *("--viz_file=out/pipeline.svg",),
        *("from-cloudtrail", "--input_glob=logs/input.json"),
        *("train-ae", "--train_data_glob=logs/train.json", "--models_output_filename=out/models"),
        *("preprocess", "inf-pytorch", "add-scores", "--label=risk", "--label=ae_anomaly_score"),
        *(
            "explain",
            "to-ocsf",
            "--filename=out/alerts.jsonl",
            "to-ecs",
            "--filename=out/ecs.jsonl",
        ),
        *("serialize", "to-report", "--filename=out/page.html", "to-parquet", "--folder=out/rows"),
        *("to-file", "--filename=out/rows.csv"),
    ]
    (folder / "out").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", "from morpheus.cli.main import main; main()", *words],
        cwd=folder,
        env={**os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_writes_only_the_files_that_its_options_name(run: Path) -> None:
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    found -= {"logs/input.json", "logs/train.json"}
    kinds = {re.sub(r"[0-9a-f]{64}|\d{5}", "N", name) for name in found}
    assert kinds == {
        "out/alerts.jsonl",
        "out/ecs.jsonl",
        "out/models/.store.json.lock",
        "out/models/indexes/N.json",
        "out/models/packs/N.pack",
        "out/models/store.json",
        "out/page.html",
        "out/pipeline.svg",
        "out/rows.csv",
        "out/rows/_SUCCESS",
        "out/rows/part-N.parquet",
        "out/state.db",
        "out/status.json",
    }


def test_only_the_owner_can_read_what_a_run_writes(run: Path) -> None:
    for path in (run / "out").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_fingerprints_have_values_and_no_events(run: Path) -> None:
    files = [path for path in (run / "out" / "models").rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files).decode(errors="replace")
    assert "GetObject" in content
    assert "arn:aws:iam::1:user/ann" in content
    middle = [make_record(n) for n in range(1, TRAIN - 1)]
    assert [record["eventID"] for record in middle if record["eventID"] in content] == []
    assert [record["eventTime"] for record in middle if record["eventTime"][:19] in content] == []
    assert "path-" not in content


def test_the_status_and_the_diagram_have_no_names(run: Path) -> None:
    for name in ("status.json", "pipeline.svg"):
        assert "user/ann" not in (run / "out" / name).read_text()


def test_every_option_that_writes_a_file_is_on_the_page() -> None:
    page = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sinks = {name for name in stage_names() if name.startswith("to-")} - {"to-console"}
    options = re.findall(r"--(\w*(?:output_filename|dead_letters|status_file|state)\b)", reference)
    assert sinks >= {"to-file", "to-kafka", "to-ocsf"}
    assert [word for word in sorted({*sinks, *options}) if word not in page] == []
