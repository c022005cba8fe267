"""An incident is the same in each output of one run, and after its results are read again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.report_cli import ReportRequest, build_report
from morpheus.serve.live import LiveReport
from services.listener import listening
from services.noida import noida, read_topic
from sinks.test_to_report import read_data

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
USER = "userIdentitysessionContextsessionIssueruserName"
FIELDS = ("id", "user", "severity", "start", "end", "count", "reason")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Run one pipeline with all outputs; return the incidents of each, by name of the output."""
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    folder = tmp_path_factory.mktemp("run")
    results, others = folder / "results", folder / "others"
    with listening() as server, noida("kafka") as port:
        words = [
            *("run", "--num_threads=1", f"--status_file={results / 'status.json'}"),
            *("pipeline-ae", f"--userid_column_name={USER}"),
            *("from-cloudtrail", f"--input_glob={EXAMPLES / 'input-data' / '*.csv'}"),
            *("train-ae", f"--train_data_glob={EXAMPLES / 'training-data' / '*.csv'}"),
            *("--seed=42", "preprocess", "inf-pytorch", "add-scores", "--label=risk", "explain"),
            *("filter", "--alerts_per_day=1", "serialize"),
            *("to-file", f"--filename={results / 'alerts.csv'}"),
            *("to-report", f"--filename={others / 'report.html'}"),
            *("to-ocsf", f"--filename={others / 'findings.jsonl'}"),
            *("to-ecs", f"--filename={others / 'documents.jsonl'}"),
            *("to-http", f"--base_url={server.url}", "--content=cloudevents"),
            *("to-kafka", f"--bootstrap_servers=127.0.0.1:{port}", "--output_topic=alerts"),
            "--content=ocsf",
        ]
        done = CliRunner().invoke(morpheus, words)
        assert done.exit_code == 0, done.output
        messages = read_topic(f"127.0.0.1:{port}", "alerts")
    live = LiveReport(results)
    live.refresh()
    [alerts] = re.findall(r"^Alerts +(\d+),", done.stderr, re.MULTILINE)
    return {
        "terminal": int(alerts),
        "csv": of_rows(pl.read_csv(results / "alerts.csv", infer_schema=False)),
        "report": of_report(read_data(others / "report.html")),
        "live page": of_page(json.loads(live.encode_data())),
        "report of the files": of_report(build_report(ReportRequest(), [results])),
        "ocsf": sorted(map(of_finding, lines(others / "findings.jsonl"))),
        "ecs": sorted(map(of_document, lines(others / "documents.jsonl"))),
        "http": sorted(
            of_finding(event["data"])
            for request in server.requests
            for event in json.loads(request.body)
        ),
        "kafka": sorted(of_finding(json.loads(message)) for message in messages),
    }


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def of_rows(rows):
    """Incidents of a table of alerts."""
    by_risk = pl.col("risk").cast(pl.Float64)
    time = pl.col("event_dt").str.replace(" ", "T").str.replace("+00:00", "Z", literal=True)
    found = rows.group_by("incident_id").agg(
        pl.col(USER).first(),
        pl.col("incident_severity").cast(pl.Int64).max(),
        time.min().alias("start"),
        time.max().alias("end"),
        pl.len(),
        pl.col("reason").sort_by(by_risk, descending=True, maintain_order=True).first(),
    )
    return sorted(found.rows())


def of_page(data):
    return sorted(tuple(view["incident"][name] for name in FIELDS) for view in data["incidents"])


def of_report(data):
    return sorted(tuple(getattr(view.incident, name) for name in FIELDS) for view in data.incidents)


def of_finding(finding):
    """The incident of a Detection Finding."""
    times = (to_text(finding[name]) for name in ("start_time", "end_time"))
    [user] = {evidence["actor"]["user"]["name"] for evidence in finding["evidences"]}
    assert len(finding["evidences"]) == min(finding["count"], 25)
    return (
        finding["finding_info"]["uid"],
        user,
        finding["risk_score"],
        *times,
        finding["count"],
        finding["message"],
    )


def of_document(document):
    event, incident = document["event"], document["morpheus"]["incident"]
    assert len(incident["events"]) == min(incident["count"], 25)
    return (
        event["id"],
        document["user"]["name"],
        event["severity"],
        *(event[name].replace(".000Z", "Z") for name in ("start", "end")),
        incident["count"],
        event["reason"],
    )


def to_text(milliseconds):
    time = pl.Series([milliseconds], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))
    return time.dt.strftime("%Y-%m-%dT%H:%M:%SZ")[0]


OUTPUTS = ("report", "live page", "report of the files", "ocsf", "ecs", "http", "kafka")


@pytest.mark.parametrize("name", OUTPUTS)
def test_incidents_of_every_output_are_those_of_the_csv_file(outputs, name):
    assert outputs[name] == outputs["csv"]


def test_the_terminal_counts_the_same_incidents(outputs):
    assert outputs["terminal"] == len(outputs["csv"]) > 5
