"""Documents are what the Elastic Common Schema says of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.batch import OutputRows
from morpheus.core.stage import PipelineOptions
from morpheus.errors import UsageError
from morpheus.sinks.to_ecs import ToEcs
from schema_check import ecs_faults
from strange import CLOUDTRAIL, SIGN_IN, TRAIL, explained, plain, sent


def written(folder, *batches, settings=CLOUDTRAIL):
    path = folder / "alerts.jsonl"
    sent(ToEcs(filename=str(path), overwrite=True), list(batches), settings)
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_document_keeps_to_the_schema(tmp_path):
    [made] = written(tmp_path, explained([TRAIL | {"action": "never"}]))
    assert ecs_faults(made) == []
    assert made["@timestamp"] == "2021-10-09T00:00:00.000Z"
    assert made["event"]["action"] == "CreateAccessKey"
    assert made["event"]["outcome"] == "failure"
    assert made["event"]["reason"] == made["message"]
    assert made["error"] == {"code": "AccessDenied", "message": "not authorized"}
    assert made["related"] == {"user": ["ann"], "ip": ["203.0.113.7"]}
    assert made["tags"][0] == "action"
    assert json.loads(made["event"]["original"])["eventID"] == TRAIL["eventID"]


def test_a_sign_in_is_one_of_authentication(tmp_path):
    [made] = written(tmp_path, plain([SIGN_IN]), settings=PipelineOptions(source="from-azure"))
    assert ecs_faults(made) == []
    assert made["event"]["category"] == ["intrusion_detection", "authentication"]
    assert made["event"]["outcome"] == "success"
    assert made["source"]["geo"] == {"country_iso_code": "RO", "city_name": "Iasi"}


def test_what_is_not_known_is_left_out(tmp_path):
    rows = OutputRows(user=None, frame=plain([{"message": "hello"}]).frame)
    [made] = written(tmp_path, rows, settings=PipelineOptions())
    assert ecs_faults(made) == []
    assert {"user", "source", "cloud", "error", "related"}.isdisjoint(made)


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(list(TRAIL)), st.text(max_size=50), min_size=1))
def test_whatever_a_log_says_the_document_keeps_to_the_schema(tmp_path_factory, event):
    [made] = written(tmp_path_factory.mktemp("hostile"), plain([event]))
    assert ecs_faults(made) == []


@pytest.mark.parametrize(
    ("filename", "said"), [("", "to-ecs: `` names no file on disk"), ("a.parquet", "of no format")]
)
def test_what_cannot_be_written_is_refused(filename, said):
    with pytest.raises(UsageError, match=said):
        ToEcs(filename=filename).validate()
