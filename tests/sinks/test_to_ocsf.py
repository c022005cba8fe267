"""Findings are what OCSF 1.8 says of them, in each form."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.columns import TS_ANOMALY
from morpheus.core.batch import OutputRows
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.to_ocsf import ToOcsf
from schema_check import ocsf_faults
from strange import CLOUDTRAIL, SIGN_IN, TRAIL, explained, plain, sent

AZURE = PipelineOptions(source="from-azure")


def findings(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(tmp_path, *batches, settings=CLOUDTRAIL):
    path = tmp_path / "findings.jsonl"
    sent(ToOcsf(filename=str(path), overwrite=True), list(batches), settings)
    return findings(path)


def test_a_finding_keeps_to_the_schema(tmp_path):
    [made] = written(tmp_path, explained([TRAIL | {"action": "never"}]))
    assert ocsf_faults(made) == []
    assert made["time"] == made["start_time"] == 1633737600000
    assert made["finding_info"]["uid"] == made["metadata"]["uid"]
    assert made["finding_info"]["related_events"] == [{"uid": TRAIL["eventID"]}]
    assert made["cloud"] == {
        "provider": "AWS",
        "account": {"uid": "012345678901"},
        "region": "eu-west-1",
    }
    [evidence] = made["evidences"]
    assert evidence["api"] == {
        "operation": "CreateAccessKey",
        "service": {"name": "iam.amazonaws.com"},
        "response": {"error": "AccessDenied", "error_message": "not authorized"},
    }
    assert evidence["src_endpoint"] == {"ip": "203.0.113.7"}
    assert evidence["http_request"]["user_agent"] == TRAIL["userAgent"]


def test_what_is_unusual_stands_beside_what_would_have_been_usual(tmp_path):
    [made] = written(tmp_path, explained([TRAIL | {"action": "never"}]))
    [analysis] = made["anomaly_analyses"]
    assert analysis["analysis_targets"] == [{"name": "ann", "type": "User"}]
    first = analysis["anomalies"][0]
    assert first["observation_parameter"] == "action"
    assert first["observed_pattern"] == "UNSEEN"
    assert first["observations"] == [{"value": "never"}]
    usual = analysis["baselines"][0]
    assert (usual["observation_parameter"], usual["observed_pattern"]) == ("action", "FREQUENT")
    assert {"value": "get"} in usual["observations"]
    assert made["message"].startswith("action: saw `never`")


@pytest.mark.parametrize(
    ("batch", "settings_"),
    [
        (plain([TRAIL]), CLOUDTRAIL),
        (plain([SIGN_IN]), AZURE),
        (plain([{"message": "hello"}]), PipelineOptions()),
        (OutputRows(user=None, frame=plain([{"message": "hello"}]).frame), PipelineOptions()),
        (plain([TRAIL | {"sourceIPAddress": "cloudformation.amazonaws.com"}]), CLOUDTRAIL),
    ],
    ids=["cloudtrail", "azure", "unknown log", "no user and no score", "a service"],
)
def test_findings_of_little_knowledge_keep_to_the_schema(tmp_path, batch, settings_):
    [made] = written(tmp_path, batch, settings=settings_)
    assert ocsf_faults(made) == []


def test_a_break_of_rhythm_is_an_anomaly_of_its_own(tmp_path):
    batch = plain([TRAIL])
    batch = replace(batch, frame=batch.frame.with_columns(pl.Series(TS_ANOMALY, [True])))
    [made] = written(tmp_path, batch)
    assert ocsf_faults(made) == []
    [anomaly] = made["anomaly_analyses"][0]["anomalies"]
    assert anomaly["observed_pattern"] == "SURGE"
    assert made["finding_info"]["title"] == "ann: break of rhythm"


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(list(TRAIL)), st.text(max_size=50), min_size=1))
def test_whatever_a_log_says_the_finding_keeps_to_the_schema(tmp_path_factory, event):
    folder = tmp_path_factory.mktemp("hostile")
    [made] = written(folder, plain([event]))
    assert ocsf_faults(made) == []


def test_parquet_holds_what_json_lines_hold_in_order_of_time(tmp_path):
    batches = [plain([TRAIL] * 2, seconds=[5, 6]), explained([{"action": "x"}], seconds=[1])]
    lines = sorted(written(tmp_path, *batches), key=lambda made: made["time"])
    path = tmp_path / "findings.parquet"
    sent(ToOcsf(filename=str(path)), batches)
    frame = pl.read_parquet(path)
    assert [without_nulls(row) for row in frame.to_dicts()] == lines


def without_nulls(value):
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if isinstance(value, dict):
        return {n: without_nulls(v) for n, v in value.items() if v is not None}
    return value


def test_parquet_has_the_same_columns_whatever_is_in_it(tmp_path):
    for name, batches in {
        "none": [],
        "bare": [plain([SIGN_IN])],
        "full": [explained([TRAIL])],
    }.items():
        sent(ToOcsf(filename=str(tmp_path / f"{name}.parquet")), batches)
    schemas = [pl.read_parquet_schema(tmp_path / f"{n}.parquet") for n in ("none", "bare", "full")]
    assert schemas[0] == schemas[1] == schemas[2]


def test_the_lake_has_a_folder_for_each_account_and_day(tmp_path):
    batches = [plain([TRAIL] * 2, seconds=[5, 86_401]), plain([SIGN_IN], seconds=[3])]
    stage = ToOcsf(lake_folder=str(tmp_path / "lake"), region="eu-west-1", lake_source="dfp")
    sent(stage, batches)
    below = tmp_path / "lake" / "ext" / "dfp" / "region=eu-west-1"
    found = sorted(path.parent.relative_to(below) for path in below.rglob("*.parquet"))
    assert [str(one) for one in found] == [
        "accountId=012345678901/eventDay=20211009",
        "accountId=012345678901/eventDay=20211010",
        "accountId=external/eventDay=20211009",
    ]
    assert not list(tmp_path.rglob(".morpheus-*"))
    read = pl.read_parquet(tmp_path / "lake" / "**" / "*.parquet", hive_partitioning=True)
    assert read.height == 3


def test_the_same_alerts_are_the_same_files_of_the_lake(tmp_path):
    stage = ToOcsf(lake_folder=str(tmp_path), region="eu-west-1")
    sent(stage, [plain([TRAIL])])
    [before] = tmp_path.rglob("*.parquet")
    content = before.read_bytes()
    sent(stage, [plain([TRAIL])])
    [after] = tmp_path.rglob("*.parquet")
    assert (after, after.read_bytes()) == (before, content)


def test_an_account_that_is_no_number_does_not_become_a_folder(tmp_path):
    stage = ToOcsf(lake_folder=str(tmp_path), region="eu-west-1")
    sent(stage, [plain([TRAIL | {"recipientAccountId": "../../etc"}])])
    [path] = tmp_path.rglob("*.parquet")
    assert path.parent.parent.name == "accountId=external"


def test_a_file_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "findings.jsonl"

    def broken():
        yield plain([TRAIL])
        raise OSError(5, "the input's disk")

    with pytest.raises(OSError, match="the input's disk"):
        list(ToOcsf(filename=str(path), options=CLOUDTRAIL)(broken()))
    assert list(tmp_path.iterdir()) == []


def test_lines_can_be_packed(tmp_path):
    path = tmp_path / "findings.jsonl.gz"
    sent(ToOcsf(filename=str(path)), [plain([TRAIL])])
    assert ocsf_faults(json.loads(gzip.decompress(path.read_bytes()))) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "where to"),
        ({"filename": "a.jsonl", "lake_folder": "b"}, "where to"),
        ({"filename": "a.csv"}, r"`a.csv` is of no format that it writes. Use .json"),
        ({"filename": "a.parquet.gz"}, "of no format that it writes"),
        ({"filename": "s3://bucket/a.jsonl"}, "names no file on disk"),
        ({"lake_folder": "b"}, "--region is ``.*--region eu-west-1"),
        ({"lake_folder": "b", "region": "../x"}, "cannot be part of a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(options, said):
    with pytest.raises(UsageError, match=said):
        ToOcsf(**options).validate()


def test_a_file_that_is_there_stays(tmp_path):
    path = tmp_path / "findings.jsonl"
    path.write_text("mine")
    with pytest.raises(UsageError, match="Give `to-ocsf --overwrite`"):
        ToOcsf(filename=str(path)).validate()


def test_a_full_disk_is_told():
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not here")
    from morpheus.sinks.alert_files import _ErrorTranslatingWriter  # noqa: PLC0415 - the same
    from morpheus.storage.atomic import AtomicWriter  # noqa: PLC0415 - only this test looks below

    draft = AtomicWriter(Path("/nowhere/findings.jsonl"))
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(
            TransientError, match=r"Cannot write `/nowhere/findings.jsonl`: No space left"
        ),
    ):
        _ErrorTranslatingWriter(draft, full).write(b"{}\n")
