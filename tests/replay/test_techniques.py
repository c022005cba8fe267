import json
import re
from pathlib import Path

import pytest

from morpheus.errors import RecordError, UsageError
from morpheus.replay.injection import (
    has_artefacts,
    is_public_ip,
    load_techniques,
    read_technique,
    to_public_ip,
)

SHIPPED = load_techniques()
RECORDED = Path(__file__).parents[2] / "../shared/data/cloudtrail-techniques"
RECORD = {
    "eventTime": "2024-05-31T09:30:00Z",
    "eventSource": "iam.amazonaws.com",
    "eventName": "ListUsers",
    "userIdentity": {"type": "IAMUser", "userName": "eve"},
}


@pytest.mark.parametrize("technique", SHIPPED, ids=lambda technique: technique.name)
def test_a_shipped_technique_has_a_title_and_ids_of_mitre_attack(technique):
    assert technique.title
    assert technique.mitre
    assert all(re.fullmatch(r"T\d{4}(\.\d{3})?", mitre_id) for mitre_id in technique.mitre)


@pytest.mark.parametrize("technique", SHIPPED, ids=lambda technique: technique.name)
def test_a_shipped_technique_is_native_cloudtrail_with_ids_of_its_own(technique):
    ids = [record["eventID"] for record in technique.records]
    assert len(set(ids)) == len(ids)
    for record in technique.records:
        assert record["eventSource"].endswith(".amazonaws.com")
        assert {"type", "arn", "accountId"} <= record["userIdentity"].keys()
        assert not has_artefacts(json.dumps(record))
        assert not is_public_ip(record["sourceIPAddress"]), (
            "addresses of real hosts are not shipped"
        )


def test_at_least_twenty_techniques_are_shipped_with_different_names():
    names = [technique.name for technique in SHIPPED]
    assert names == sorted(set(names))
    assert len(names) >= 20


def test_the_page_lists_every_technique_shipped():
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
    rows = [f"| `{t.name}` | {t.title} | {', '.join(t.mitre)} |" for t in SHIPPED]
    assert page.splitlines()[-len(rows) :] == rows


@pytest.mark.skipif(not RECORDED.is_dir(), reason="shared/data/cloudtrail-techniques is not here")
def test_records_are_in_time_order():
    techniques = load_techniques(str(RECORDED))
    assert len(techniques) == 35
    assert sum(len(technique.records) for technique in techniques) == 310
    for technique in techniques:
        assert sorted(technique.offsets) == list(technique.offsets)


def test_the_latest_record_may_come_first(tmp_path):
    times = ["2024-05-31T09:30:05Z", "2024-05-31T09:30:00Z", "2024-05-31T09:30:00Z"]
    records = [RECORD | {"eventTime": time, "eventName": str(n)} for n, time in enumerate(times)]
    path = tmp_path / "look.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    technique = read_technique(path)
    assert technique.name == "look"
    assert [record["eventName"] for record in technique.records] == ["2", "1", "0"]
    assert technique.duration.total_seconds() == 5


def test_calls_of_services_are_left_out(tmp_path):
    path = tmp_path / "a.json"
    service = RECORD | {"userIdentity": {"type": "AWSService", "invokedBy": "ec2.amazonaws.com"}}
    path.write_text(json.dumps({"Records": [service, RECORD]}))
    assert read_technique(path).records == (RECORD,)
    path.write_text(json.dumps([service]))
    with pytest.raises(RecordError, match=r"a\.json: the file has no record of an intruder"):
        read_technique(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"eventTime": "2024-05-31T09:30:00Z"}]', "a CloudTrail record is an object with"),
        ("[3]", "a record is an object with `eventTime`"),
        (json.dumps([RECORD | {"eventTime": "noon"}]), "`eventTime` is 'noon', which is not a"),
        ('[{"eventTime": ', "not complete JSON"),
    ],
)
def test_a_file_that_is_not_cloudtrail_is_rejected_by_name(tmp_path, text, message):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(RecordError) as raised:
        load_techniques(str(tmp_path))
    assert "odd.json" in str(raised.value)
    assert message in str(raised.value)


def test_a_missing_or_empty_folder_is_rejected(tmp_path):
    with pytest.raises(UsageError, match=r"--techniques: there is no folder `.*nowhere`. Give a"):
        load_techniques(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"has no `\.json` or `\.jsonl` file. Put the"):
        load_techniques(str(tmp_path))


def test_reserved_and_malformed_addresses_become_public_ones():
    odd = ["198.51.100.23", "253.252.51.7", "035.249.253.232", "10.0.0.1", "2001:db8::1"]
    drawn = [to_public_ip(address, 7) for address in odd]
    assert all(map(is_public_ip, drawn))
    assert len(set(drawn)) == len(odd)
    assert drawn == [to_public_ip(address, 7) for address in odd]
