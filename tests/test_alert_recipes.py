"""The recipes of docs/alerts.md, with servers of our own in the place of those they name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from schema_check import ocsf_faults
from services.listener import listening
from services.noida import noida

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "alerts.md"
BASH = shutil.which("bash") or "/bin/bash"


def blocks():
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def recipes():
    """The blocks of `sh`, of which the first says how all begin."""
    first, *others = blocks()
    return {re.search(r"\}\" (to-\w+ \S+)", one)[1].rstrip(): first + one for one in others}


@pytest.fixture
def typed(tmp_path):
    """Runs what is typed in a copy of the examples."""
    place = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", place, ignore=shutil.ignore_patterns("output"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def typed(text):
        done = subprocess.run(
            [BASH, "-euo", "pipefail", "-c", text],
            cwd=place,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return place, done

    return typed


@pytest.fixture
def cook(typed):
    """Runs a recipe."""

    def cook(begins, **instead):
        [recipe] = [text for name, text in recipes().items() if name.startswith(begins)]
        for named, ours in instead.items():
            assert named in recipe
            recipe = recipe.replace(named, ours)
        place, done = typed(recipe)
        assert done.returncode == 0, done.stderr
        written = re.search(r"^Written +(\d+) events", done.stderr, re.MULTILINE)
        assert written is not None
        return place / "data" / "output", int(written[1])

    return cook


def test_files(cook):
    folder, events = cook("to-ocsf --filename")
    findings = [json.loads(line) for line in (folder / "findings.jsonl").read_bytes().splitlines()]
    assert len(findings) == events > 0
    assert [fault for one in findings for fault in ocsf_faults(one)] == []
    assert (folder / "alerts.jsonl.gz").stat().st_size > 0


def test_security_lake(cook):
    folder, _ = cook("to-ocsf --lake")
    days = {str(path.parent.relative_to(folder / "lake")) for path in folder.rglob("*.parquet")}
    [shown] = re.findall(r"`(ext/morpheus/.*)/`", PAGE.read_text())
    assert shown in days


def test_splunk(cook):
    with listening() as server:
        _, events = cook(
            "to-http --receiver=splunk", **{"https://splunk.example.com:8088": server.url}
        )
    assert sum(len(request.lines) for request in server.requests) == events
    [token] = {request.headers["Authorization"] for request in server.requests}
    assert token.startswith("Splunk 00000000-")


def test_opensearch(cook):
    with noida("elasticsearch") as port:
        address = f"http://127.0.0.1:{port}"
        _, events = cook(
            "to-http --receiver=opensearch", **{"https://search.example.com:9200": address}
        )
        refresh = Request(f"{address}/morpheus-alerts/_refresh", method="POST")  # noqa: S310 - our own server
        urlopen(refresh).close()  # noqa: S310 - the same
        with urlopen(f"{address}/morpheus-alerts/_search?size=0") as answer:  # noqa: S310 - the same
            found = json.load(answer)["hits"]["total"]
        assert found["value"] == events > 0


def test_webhook(cook):
    with listening() as server:
        _, events = cook("to-http --base_url", **{"https://hooks.example.com": server.url})
    assert sum(len(json.loads(request.body)) for request in server.requests) == events
    assert server.requests[0].path == "/alerts"


def messages(address, topic):
    """How many messages a topic of a broker holds."""
    kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    consumer = kafka.Consumer({"bootstrap.servers": address, "group.id": "count"})
    parts = consumer.list_topics(topic, timeout=20).topics[topic].parse_hive_partitions
    ends = [consumer.get_watermark_offsets(kafka.TopicPartition(topic, n), 20) for n in parts]
    consumer.close()
    return sum(high - low for low, high in ends)


def test_kafka(cook):
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    with noida("kafka") as port:
        address = f"127.0.0.1:{port}"
        _, events = cook("to-kafka", **{"kafka.example.com:9092": address})
        assert messages(address, "alerts") == events > 0


def test_findings_and_ids_do_not_depend_on_threads_and_batches(typed):
    chain = blocks()[0]
    ways = {"a": "--num_threads=1", "b": "--num_threads=2 --pipeline_batch_size=7"}
    text = "".join(
        f'"${{CHAIN[@]:0:2}}" {options} "${{CHAIN[@]:2}}" to-ocsf --filename={name}.jsonl\n'
        for name, options in ways.items()
    )
    place, done = typed(chain + text)
    assert done.returncode == 0, done.stderr
    assert (place / "a.jsonl").read_bytes() == (place / "b.jsonl").read_bytes() != b""


def test_other_sinks_get_their_rows_though_a_server_takes_none(typed):
    text = '"${CHAIN[@]}" to-http --base_url=http://127.0.0.1:9 --max_retries=0 --dead_letters=dead'
    place, done = typed(f"{blocks()[0]}{text} serialize to-file --filename=rows.jsonl\n")
    assert done.returncode == 1
    rows = len((place / "rows.jsonl").read_bytes().splitlines())
    assert f"accepted 0 of {rows} events; {rows} not delivered" in done.stderr
    assert len((place / "dead").read_bytes().splitlines()) == rows
    # What was read and written is said all the same, before the complaint.
    assert re.search(
        rf"^Written +{rows} events.*^Error: to-http", done.stderr, re.DOTALL | re.MULTILINE
    )
