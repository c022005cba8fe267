"""The commands of how-to guides for other systems, with local servers in place of the named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from lakes import Lake
from pages import DOCS, ROOT, Program, copy_examples, find_blocks, run_page, run_programs
from services.listener import listening
from services.noida import noida, read_topic
from services.queues import REGION, LogQueue

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


@pytest.mark.parametrize("way", ["--sqs_queue", "--watch_directory"])
def test_the_page_of_a_bucket_follows_it(
    lake: Lake, tmp_path: Path, warm_morpheus: Path, way: str
) -> None:
    script = str(ROOT / "examples" / "make_fleet.py")
    size = ["--users=8", "--days=15", "--training=14", "--form=json"]
    command = [sys.executable, script, "--into", str(tmp_path / "fleet"), *size]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    blocks = find_blocks((HOW_TO / "bucket-stream.md").read_text(encoding="utf-8"))
    documents = [json.loads(body) for kind, body, _ in blocks if kind == "json"]
    queue = set_up_queue(*documents)
    logs = list((tmp_path / "fleet" / "json" / "scored").rglob("*.gz"))
    for path in logs:
        lake.put(f"AWSLogs/{path.as_posix().partition('/AWSLogs/')[2]}", path.read_bytes())
    train = (
        "morpheus run pipeline-ae --userid_column_name=@actor "
        "from-cloudtrail --input_glob=fleet/json/training train-ae --models_output_filename=models"
    )
    programs = [body for kind, body, _ in blocks if kind == "sh" and "morpheus run" in body]
    [follow] = [body for body in programs if way in body]
    for old, new in {
        "s3://my-logs/AWSLogs/": f"s3://lake/AWSLogs/ --max_files={len(logs)}",
        "https://sqs.us-east-1.amazonaws.com/123456789012/morpheus-logs": queue.url,
    }.items():
        follow = follow.replace(old, new)
    bash = ("bash", "-euo", "pipefail")
    shell = [Program(bash, train), Program(bash, follow)]
    list(run_programs(shell, tmp_path, warm_morpheus, os.environ))
    alerts = (tmp_path / "alerts.jsonl").read_text().splitlines()
    assert alerts
    assert all(json.loads(line)["eventTime"].startswith("2025-03-17") for line in alerts)
    left = queue.client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10)
    assert len(left.get("Messages", ())) == (0 if way == "--sqs_queue" else len(logs))


def set_up_queue(
    attributes: dict[str, str],
    notification: dict[str, list[dict[str, str]]],
    policy: dict[str, object],
) -> LogQueue:
    """Make the queue of the page, let the bucket tell it of new objects, and check the policies."""
    sqs = boto3.client("sqs", region_name=REGION)
    url = sqs.create_queue(QueueName="morpheus-logs", Attributes=attributes)["QueueUrl"]
    boto3.client("iam", region_name=REGION).create_policy(
        PolicyName="logs", PolicyDocument=json.dumps(policy)
    )
    assert json.loads(attributes["Policy"])["Statement"][0]["Action"] == "sqs:SendMessage"
    boto3.client("s3", region_name=REGION).put_bucket_notification_configuration(
        Bucket="lake", NotificationConfiguration=notification
    )
    queue = LogQueue(sqs, url, notification["QueueConfigurations"][0]["QueueArn"])
    for message in sqs.receive_message(QueueUrl=url).get("Messages", ()):
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return queue
