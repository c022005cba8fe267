"""The recipes of docs/alerts.md, with local servers in place of those they name."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from schema_check import ocsf_faults
from services.listener import listening
from services.noida import noida, read_topic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "alerts.md"
BASH = shutil.which("bash") or "/bin/bash"


def shell_blocks():
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def recipes():
    """Return the `sh` blocks by their sink. The first block is the start of all others."""
    start, *ends = shell_blocks()
    return {re.search(r"\}\" (to-\w+ \S+)", end)[1].rstrip(): start + end for end in ends}


@pytest.fixture
def run_shell(tmp_path, warm_morpheus):
    """Runs shell commands in a copy of the examples."""
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("output"))
    path = os.pathsep.join([str(warm_morpheus.parent), os.environ["PATH"]])

    def run_shell(text):
        done = subprocess.run(
            [BASH, "-euo", "pipefail", "-c", text],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return folder, done

    return run_shell


@pytest.fixture
def run_recipe(run_shell):
    """Runs a recipe."""

    def run_recipe(start, **replacements):
        [recipe] = [text for name, text in recipes().items() if name.startswith(start)]
        for old, new in replacements.items():
            assert old in recipe
            recipe = recipe.replace(old, new)
        folder, done = run_shell(recipe)
        assert done.returncode == 0, done.stderr
        alerts = re.search(r"^Alerts +(\d+),", done.stderr, re.MULTILINE)
        assert alerts is not None
        return folder / "data" / "output", int(alerts[1])

    return run_recipe


def test_files(run_recipe):
    folder, incidents = run_recipe("to-ocsf --filename")
    findings = [json.loads(line) for line in (folder / "findings.jsonl").read_bytes().splitlines()]
    assert len(findings) == incidents > 0
    assert [fault for finding in findings for fault in ocsf_faults(finding)] == []
    assert (folder / "alerts.jsonl.gz").stat().st_size > 0


def test_security_lake(run_recipe):
    folder, _ = run_recipe("to-ocsf --lake")
    folders = {str(path.parent.relative_to(folder / "lake")) for path in folder.rglob("*.parquet")}
    [documented] = re.findall(r"`(ext/morpheus/.*)/`", PAGE.read_text())
    assert documented in folders


def test_splunk(run_recipe):
    with listening() as server:
        _, incidents = run_recipe(
            "to-http --receiver=splunk", **{"https://splunk.example.com:8088": server.url}
        )
    assert sum(len(request.lines) for request in server.requests) == incidents
    [token] = {request.headers["Authorization"] for request in server.requests}
    assert token.startswith("Splunk 00000000-")


def test_opensearch(run_recipe):
    with noida("elasticsearch") as port:
        address = f"http://127.0.0.1:{port}"
        _, incidents = run_recipe(
            "to-http --receiver=opensearch", **{"https://search.example.com:9200": address}
        )
        refresh = Request(f"{address}/morpheus-alerts/_refresh", method="POST")  # noqa: S310 - our own server
        urlopen(refresh).close()  # noqa: S310 - the same
        with urlopen(f"{address}/morpheus-alerts/_search?size=0") as answer:  # noqa: S310 - the same
            found = json.load(answer)["hits"]["total"]
        assert found["value"] == incidents > 0


def test_webhook(run_recipe):
    with listening() as server:
        _, incidents = run_recipe("to-http --base_url", **{"https://hooks.example.com": server.url})
    assert sum(len(json.loads(request.body)) for request in server.requests) == incidents
    assert server.requests[0].path == "/alerts"


def test_kafka(run_recipe):
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    with noida("kafka") as port:
        address = f"127.0.0.1:{port}"
        _, incidents = run_recipe("to-kafka", **{"kafka.example.com:9092": address})
        assert len(read_topic(address, "alerts")) == incidents > 0


def test_findings_and_ids_do_not_depend_on_threads_and_batches(run_shell):
    start = shell_blocks()[0]
    runs = {"a": "--num_threads=1", "b": "--num_threads=2 --pipeline_batch_size=7"}
    text = "".join(
        f'"${{PIPELINE[@]:0:2}}" {options} "${{PIPELINE[@]:2}}" to-ocsf --filename={name}.jsonl\n'
        for name, options in runs.items()
    )
    folder, done = run_shell(start + text)
    assert done.returncode == 0, done.stderr
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes() != b""


def test_other_sinks_get_their_rows_if_a_server_fails(run_shell):
    text = (
        '"${PIPELINE[@]}" to-http --base_url=http://127.0.0.1:9 --max_retries=0 --dead_letters=dead'
    )
    folder, done = run_shell(f"{shell_blocks()[0]}{text} serialize to-file --filename=rows.jsonl\n")
    assert done.returncode == 1
    rows = len((folder / "rows.jsonl").read_bytes().splitlines())
    assert f"accepted 0 of {rows} events; {rows} not delivered" in done.stderr
    assert len((folder / "dead").read_bytes().splitlines()) == rows
    # The summary is printed before the error.
    assert re.search(
        rf"^Written +{rows} events.*^Error: to-http", done.stderr, re.DOTALL | re.MULTILINE
    )
