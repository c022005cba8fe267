"""Findings follow OCSF 1.8 in each file format."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import TS_ANOMALY
from morpheus.core.batch import OutputRows, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.models.calibration import name_severity
from morpheus.sinks.alert_files import ToOcsf
from morpheus.testing import run_stage
from schema_check import ocsf_faults
from strange import CLOUDTRAIL, SIGN_IN, TRAIL, explained, plain, sent

AZURE = PipelineOptions(source="from-azure")


def findings(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write(tmp_path, *batches, options=CLOUDTRAIL):
    path = tmp_path / "findings.jsonl"
    sent(ToOcsf(filename=str(path), overwrite=True), list(batches), options)
    return findings(path)


def test_finding_follows_the_schema(tmp_path):
    [finding] = write(tmp_path, explained([TRAIL | {"action": "never"}]))
    assert ocsf_faults(finding) == []
    assert finding["time"] == finding["start_time"] == 1633737600000
    assert finding["finding_info"]["uid"] == finding["metadata"]["uid"]
    [related] = finding["finding_info"]["related_events"]
    assert (related["uid"], related["title"]) == (TRAIL["eventID"], finding["message"])
    assert finding["count"] == 1
    assert finding["severity"] == name_severity(finding["risk_score"]).title() == "Medium"
    assert finding["cloud"] == {
        "provider": "AWS",
        "account": {"uid": "012345678901"},
        "region": "eu-west-1",
    }
    [evidence] = finding["evidences"]
    assert evidence["api"] == {
        "operation": "CreateAccessKey",
        "service": {"name": "iam.amazonaws.com"},
        "response": {"error": "AccessDenied", "error_message": "not authorized"},
    }
    assert evidence["src_endpoint"] == {"ip": "203.0.113.7"}
    assert evidence["http_request"]["user_agent"] == TRAIL["userAgent"]


def test_anomalies_and_baselines_name_the_same_column(tmp_path):
    [finding] = write(tmp_path, explained([TRAIL | {"action": "never"}]))
    [analysis] = finding["anomaly_analyses"]
    assert analysis["analysis_targets"] == [{"name": "ann", "type": "User"}]
    first = analysis["anomalies"][0]
    assert first["observation_parameter"] == "action"
    assert first["observed_pattern"] == "UNSEEN"
    assert first["observations"] == [{"value": "never"}]
    baseline = analysis["baselines"][0]
    assert baseline["observation_parameter"] == "action"
    assert baseline["observed_pattern"] == "FREQUENT"
    assert {"value": "get"} in baseline["observations"]
    assert finding["message"].startswith("`CreateAccessKey` with action `never`, new in 1 day")


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (plain([TRAIL]), CLOUDTRAIL),
        (plain([SIGN_IN]), AZURE),
        (plain([{"message": "hello"}]), PipelineOptions()),
        (
            OutputRows(user=None, table=Table(plain([{"message": "hello"}]).table.to_frame())),
            PipelineOptions(),
        ),
        (plain([TRAIL | {"sourceIPAddress": "cloudformation.amazonaws.com"}]), CLOUDTRAIL),
    ],
    ids=["cloudtrail", "azure", "unknown log", "no user and no score", "a service"],
)
def test_findings_with_few_fields_follow_the_schema(tmp_path, batch, options):
    [finding] = write(tmp_path, batch, options=options)
    assert ocsf_faults(finding) == []


def test_time_series_anomaly_is_an_anomaly(tmp_path):
    batch = plain([TRAIL])
    batch = replace(batch, table=batch.table.with_columns([pl.Series(TS_ANOMALY, [True])]))
    [finding] = write(tmp_path, batch)
    assert ocsf_faults(finding) == []
    [anomaly] = finding["anomaly_analyses"][0]["anomalies"]
    assert anomaly["observed_pattern"] == "SURGE"
    assert finding["finding_info"]["title"] == "ann: break of rhythm"


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(list(TRAIL)), st.text(max_size=50), min_size=1))
def test_finding_of_any_text_follows_the_schema(tmp_path_factory, event):
    folder = tmp_path_factory.mktemp("hostile")
    [finding] = write(folder, plain([event]))
    assert ocsf_faults(finding) == []


def test_parquet_equals_json_lines_sorted_by_time(tmp_path):
    batches = [
        plain([TRAIL] * 2, seconds=[5, 6]),
        explained([{"action": "x"}], seconds=[1], user="bob"),
    ]
    lines = sorted(write(tmp_path, *batches), key=lambda finding: finding["time"])
    path = tmp_path / "findings.parquet"
    sent(ToOcsf(filename=str(path)), batches)
    frame = pl.read_parquet(path)
    assert [without_nulls(row) for row in frame.to_dicts()] == lines


def without_nulls(value):
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {n: without_nulls(v) for n, v in value.items() if v is not None}
    return value


def test_parquet_schema_does_not_depend_on_the_findings(tmp_path):
    for name, batches in {
        "none": [],
        "bare": [plain([SIGN_IN])],
        "full": [explained([TRAIL])],
    }.items():
        sent(ToOcsf(filename=str(tmp_path / f"{name}.parquet")), batches)
    schemas = [pl.read_parquet_schema(tmp_path / f"{n}.parquet") for n in ("none", "bare", "full")]
    assert schemas[0] == schemas[1] == schemas[2]


def test_lake_has_a_folder_per_account_and_day(tmp_path):
    batches = [plain([TRAIL] * 2, seconds=[5, 86_401]), plain([SIGN_IN], user="bob")]
    stage = ToOcsf(lake_folder=str(tmp_path / "lake"), region="eu-west-1", lake_source="dfp")
    sent(stage, batches)
    folder = tmp_path / "lake" / "ext" / "dfp" / "region=eu-west-1"
    files = sorted(folder.rglob("*.parquet"))
    assert [str(path.parent.relative_to(folder)) for path in files] == [
        "accountId=012345678901/eventDay=20211009",
        "accountId=012345678901/eventDay=20211010",
        "accountId=external/eventDay=20211009",
    ]
    assert not list(tmp_path.rglob("*.part"))
    rows = pl.read_parquet(tmp_path / "lake" / "**" / "*.parquet", hive_partitioning=True)
    assert rows.height == 3


def test_same_alerts_give_the_same_files_of_the_lake(tmp_path):
    stage = ToOcsf(lake_folder=str(tmp_path), region="eu-west-1")
    sent(stage, [plain([TRAIL])])
    [before] = tmp_path.rglob("*.parquet")
    content = before.read_bytes()
    sent(stage, [plain([TRAIL])])
    [after] = tmp_path.rglob("*.parquet")
    assert (after, after.read_bytes()) == (before, content)


def test_account_that_is_not_a_number_does_not_become_a_folder(tmp_path):
    stage = ToOcsf(lake_folder=str(tmp_path), region="eu-west-1")
    sent(stage, [plain([TRAIL | {"recipientAccountId": "../../etc"}])])
    [path] = tmp_path.rglob("*.parquet")
    assert path.parent.parent.name == "accountId=external"


def test_failed_run_leaves_no_file(tmp_path):
    path = tmp_path / "findings.jsonl"

    def failing():
        yield plain([TRAIL])
        raise OSError(5, "the input's disk")

    with pytest.raises(OSError, match="the input's disk"):
        run_stage(ToOcsf(filename=str(path), options=CLOUDTRAIL), failing())
    assert list(tmp_path.iterdir()) == []


def test_lines_can_be_compressed(tmp_path):
    path = tmp_path / "findings.jsonl.gz"
    sent(ToOcsf(filename=str(path)), [plain([TRAIL])])
    assert ocsf_faults(json.loads(gzip.decompress(path.read_bytes()))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either"),
        ({"filename": "a.jsonl", "lake_folder": "b"}, "give either"),
        ({"filename": "a.csv"}, r"`a.csv` has an unsupported extension. Use .json"),
        ({"filename": "a.parquet.gz"}, "unsupported extension"),
        ({"filename": "ftp://bucket/a.jsonl"}, "`ftp://` is not supported here"),
        ({"lake_folder": "b"}, "--region is ``.*--region eu-west-1"),
        ({"lake_folder": "b", "region": "../x"}, "not valid in a folder"),
    ],
)
def test_unwritable_output_is_rejected_before_the_run(options, message):
    with pytest.raises(UsageError, match=message):
        ToOcsf(**options).validate()


def test_existing_file_is_not_replaced(tmp_path):
    path = tmp_path / "findings.jsonl"
    path.write_text("mine")
    with pytest.raises(UsageError, match="Give `to-ocsf --overwrite`"):
        ToOcsf(filename=str(path)).validate()


def test_full_disk_is_reported():
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    from morpheus.sinks.alert_files import _ErrorTranslatingWriter  # noqa: PLC0415 - private
    from morpheus.storage.atomic import AtomicWriter  # noqa: PLC0415 - only this test needs it

    draft = AtomicWriter(Path("/nowhere/findings.jsonl"))
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(
            TransientError, match=r"Cannot write `/nowhere/findings.jsonl`: No space left"
        ),
    ):
        _ErrorTranslatingWriter(draft, full).write(b"{}\n")
