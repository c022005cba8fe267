"""The commands of how-to guides for other systems, with local servers in place of the named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lakes import Lake
from pages import DOCS, ROOT, copy_examples, run_page
from services.listener import listening
from services.noida import noida, read_topic

HOW_TO = DOCS / "how-to"


def alerts_in(output: str) -> int:
    """The number of alerts in the summary."""
    found = re.search(r"^Alerts +(\d+), ", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1])


def test_the_page_of_splunk_sends_findings(tmp_path: Path, warm_morpheus: Path) -> None:
    with listening() as server:
        addresses = {"https://splunk.example.com:8088": server.url}
        output = run_page(HOW_TO / "splunk.md", copy_examples(tmp_path), warm_morpheus, addresses)
    lines = [line for request in server.requests for line in request.lines]
    assert len(lines) == alerts_in(output) > 0
    assert {line["sourcetype"] for line in lines} == {"morpheus:alert"}
    assert {line["index"] for line in lines} == {"alerts"}
    # The search of the page has these names.
    names = {"risk_score", "finding_info", "count", "message"}
    assert all(names <= line["event"].keys() for line in lines)
    assert len({line["fields"]["alert_id"] for line in lines}) == len(lines)


def test_the_page_of_opensearch_sends_alerts(tmp_path: Path, warm_morpheus: Path) -> None:
    with noida("elasticsearch") as port:
        addresses = {"https://search.example.com:9200": f"http://127.0.0.1:{port}"}
        output = run_page(
            HOW_TO / "opensearch.md", copy_examples(tmp_path), warm_morpheus, addresses
        )
    found = re.findall(r"^\{.*$", output, re.MULTILINE)
    assert found, output
    hits = json.loads(found[-1])["hits"]
    assert hits["total"]["value"] == alerts_in(output) > 0
    [document] = [hit["_source"] for hit in hits["hits"]]
    assert document["event"]["kind"] == "alert"
    assert 0 <= document["event"]["severity"] <= 100
    assert document["related"]["user"]
    assert document["message"]


def test_the_page_of_kafka_sends_messages(tmp_path: Path, warm_morpheus: Path) -> None:
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    with noida("kafka") as port:
        address = f"127.0.0.1:{port}"
        output = run_page(
            HOW_TO / "kafka.md",
            copy_examples(tmp_path),
            warm_morpheus,
            {"kafka.example.com:9092": address},
        )
        assert len(read_topic(address, "alerts")) == alerts_in(output) > 0


def test_the_page_of_s3_reads_a_bucket(lake: Lake, tmp_path: Path, warm_morpheus: Path) -> None:
    script = str(ROOT / "examples" / "make_fleet.py")
    size = ["--users=8", "--days=20", "--training=14", "--form=json"]
    command = [sys.executable, script, "--into", str(tmp_path / "fleet"), *size]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    logs = [path for path in (tmp_path / "fleet" / "json").rglob("*") if path.is_file()]
    keys = {path: path.as_posix().partition("/AWSLogs/")[2] for path in logs}
    lake.put_all({f"AWSLogs/{key}": path.read_bytes() for path, key in keys.items()})
    output = run_page(
        HOW_TO / "s3.md", copy_examples(tmp_path), warm_morpheus, {"s3://my-logs/": "s3://lake/"}
    )
    assert "Scored      2025-03-17 to 2025-03-17: 1 day" in output
    assert lake.names("alerts") == ["alerts/2025-03-17.jsonl"]
    assert any(name.startswith("models/") for name in lake.names("models"))
