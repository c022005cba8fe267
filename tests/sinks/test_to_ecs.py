"""Documents follow the Elastic Common Schema."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.batch import OutputRows, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.sinks.alert_files import ToEcs
from schema_check import ecs_faults
from strange import CLOUDTRAIL, SIGN_IN, TRAIL, explained, plain, sent


def write(folder, *batches, options=CLOUDTRAIL):
    path = folder / "alerts.jsonl"
    sent(ToEcs(filename=str(path), overwrite=True), list(batches), options)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_document_follows_the_schema(tmp_path):
    [document] = write(tmp_path, explained([TRAIL | {"action": "never"}]))
    assert ecs_faults(document) == []
    assert document["@timestamp"] == "2021-10-09T00:00:00.000Z"
    assert document["event"]["action"] == "CreateAccessKey"
    assert document["event"]["outcome"] == "failure"
    assert document["event"]["reason"] == document["message"]
    assert document["error"] == {"code": "AccessDenied", "message": "not authorized"}
    assert document["related"] == {"user": ["ann"], "ip": ["203.0.113.7"]}
    assert document["tags"][0] == "action"
    assert json.loads(document["event"]["original"])["eventID"] == TRAIL["eventID"]


def test_sign_in_is_an_authentication_event(tmp_path):
    [document] = write(tmp_path, plain([SIGN_IN]), options=PipelineOptions(source="from-azure"))
    assert ecs_faults(document) == []
    assert document["event"]["category"] == ["intrusion_detection", "authentication"]
    assert document["event"]["outcome"] == "success"
    assert document["source"]["geo"] == {"country_iso_code": "RO", "city_name": "Iasi"}


def test_missing_fields_are_dropped(tmp_path):
    rows = OutputRows(user=None, table=Table(plain([{"message": "hello"}]).table.to_frame()))
    [document] = write(tmp_path, rows, options=PipelineOptions())
    assert ecs_faults(document) == []
    assert {"user", "source", "cloud", "error", "related"}.isdisjoint(document)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(list(TRAIL)), st.text(max_size=50), min_size=1))
def test_document_of_any_text_follows_the_schema(tmp_path_factory, event):
    [document] = write(tmp_path_factory.mktemp("hostile"), plain([event]))
    assert ecs_faults(document) == []


@pytest.mark.parametrize(
    ("filename", "message"),
    [("", "to-ecs: no file given"), ("a.parquet", "unsupported extension")],
)
def test_unwritable_file_is_rejected(filename, message):
    with pytest.raises(UsageError, match=message):
        ToEcs(filename=filename).validate()
