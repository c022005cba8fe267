"""Records come out of every envelope, and what is no record is counted by what it is."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from morpheus.columns import INDEX
from morpheus.core.batch import ReadStats, RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.errors import MorpheusError
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.from_file import FromDuo, FromFile
from morpheus.sources.log_format import LogFormat
from morpheus.sources.ocsf import FromOcsf
from morpheus.sources.schema_file import list_builtin_schemas, load_builtin_schema

Record = dict[str, Any]
COUNT = 12
TEXT = json.dumps
MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


def event(number: int = 0, **more: Any) -> Record:
    """A CloudTrail record."""
    return {
        "eventVersion": "1.08",
        "userIdentity": {"type": "IAMUser", "arn": "arn:aws:iam::1:user/ann", "accountId": "1"},
        "eventTime": f"2026-10-01T08:{number:02}:00Z",
        "eventSource": "iam.amazonaws.com",
        "eventName": "ListRoles",
        "awsRegion": "eu-west-1",
        "requestParameters": {"message": "{}", "detail": {"data": [1]}},
        "eventID": f"00000000-0000-0000-0000-{number:012}",
        "eventType": "AwsApiCall",
        "eventCategory": "Management",
        **more,
    }


EVENTS = [event(number) for number in range(COUNT)]
NAMES = [each["eventID"] for each in EVENTS]


def read(
    source: type[FileSource], path: Path, *, columns: tuple[str, ...], **options: Any
) -> tuple[list[dict[str, Any]], ReadStats]:
    metrics = RunMetrics()
    user = options.pop("user", "userIdentityarn")
    settings = PipelineOptions(columns=columns, userid_column_name=user, num_threads=1)
    reader = source(input_glob=str(path), options=settings, **options)
    batches = reader.events(None, metrics)
    rows = [row for each in batches for row in each.table.to_frame().iter_rows(named=True)]
    assert len(rows) == metrics.input.accepted
    return rows, metrics.input


def read_trail(path: Path, **options: Any) -> tuple[list[dict[str, Any]], ReadStats]:
    return read(FromCloudtrail, path, columns=("eventName",), **options)


def lines(*texts: str) -> str:
    return "\n".join(texts)


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bridge(record: Record) -> Record:
    return {
        "version": "0",
        "id": "x",
        "detail-type": "AWS API Call via CloudTrail",
        "source": "aws.iam",
        "time": "2026-10-01T08:00:00Z",
        "resources": [],
        "detail": record,
    }


def subscription(*records: Record) -> Record:
    messages = [{"id": "1", "timestamp": 1, "message": TEXT(each)} for each in records]
    return {"messageType": "DATA_MESSAGE", "logGroup": "g", "logEvents": messages}


def notification(message: object) -> Record:
    return {"Type": "Notification", "TopicArn": "t", "Message": TEXT(message), "Timestamp": "t"}


def beat(record: Record) -> Record:
    return {"@timestamp": "2026", "message": TEXT(record), "agent": {"type": "filebeat"}}


def cut(record: Record) -> str:
    """A record that a container runtime has cut in two."""
    text, start = TEXT(record), "2026-01-01T00:00:00.1Z stdout"
    return f"{start} P {text[:90]}\n{start} F {text[90:]}"


def each(wrap: Callable[[Record], object]) -> str:
    return lines(*(TEXT(wrap(record)) for record in EVENTS))


CONTROL = {"messageType": "CONTROL_MESSAGE", "logEvents": [{"message": "CWL CONTROL MESSAGE"}]}
PLAIN = [TEXT(record) for record in EVENTS]

WRAPPED: dict[str, str | bytes] = {
    "EventBridge": each(bridge),
    "EventBridge, indented": "\n".join(json.dumps(bridge(r), indent=2) for r in EVENTS),
    "CloudWatch subscription": TEXT(subscription(*EVENTS)),
    "CloudWatch through Firehose": TEXT(subscription(*EVENTS[:5]))
    + TEXT(subscription(*EVENTS[5:])),
    "filter-log-events": TEXT({"events": subscription(*EVENTS)["logEvents"], "nextToken": "x"}),
    "Logs Insights": TEXT(
        {"results": [[{"field": "@message", "value": text}] for text in PLAIN], "status": "x"}
    ),
    "Lambda's CloudWatch event": each(
        lambda r: {"awslogs": {"data": packed(gzip.compress(TEXT(subscription(r)).encode()))}}
    ),
    "Kinesis": TEXT(
        {
            "Records": [
                {"kinesis": {"data": packed(text.encode())}, "eventID": "s", "eventName": "record"}
                for text in PLAIN
            ]
        }
    ),
    "SNS of EventBridge": each(lambda r: notification(bridge(r))),
    "SQS of SNS": TEXT({"Messages": [{"Body": TEXT(notification(bridge(r)))} for r in EVENTS]}),
    "SQS in Lambda": TEXT({"Records": [{"body": TEXT({"Records": [r]})} for r in EVENTS]}),
    "Firehose's records": TEXT({"records": [{"data": packed(text.encode())} for text in PLAIN]}),
    "LookupEvents": TEXT(
        {
            "Events": [
                {
                    "EventId": "1",
                    "EventTime": "2026-10-01",
                    "EventName": "x",
                    "CloudTrailEvent": text,
                }
                for text in PLAIN
            ]
        }
    ),
    "list of texts": TEXT(PLAIN),
    "lines of texts": lines(*map(TEXT, PLAIN)),
    "text of text": lines(*(TEXT(TEXT(text)) for text in PLAIN)),
    "Filebeat": each(beat),
    "Filebeat, decoded": each(lambda r: {"@timestamp": "2026", "json": r}),
    "Elastic, original": each(lambda r: {"event": {"original": TEXT(r)}, "message": "text"}),
    "Elastic, dotted": each(lambda r: {"event.original": TEXT(r), "message": "text"}),
    "Elasticsearch's answer": TEXT({"hits": {"hits": [{"_source": beat(r)} for r in EVENTS]}}),
    "Fluent Bit": each(lambda r: {"date": 1.5, "log": TEXT(r)}),
    "Docker": each(lambda r: {"log": TEXT(r) + "\n", "stream": "stdout", "time": "2026"}),
    "container runtime": lines(*(f"2026-01-01T00:00:00Z stdout F {text}" for text in PLAIN)),
    "container runtime, cut": lines(*map(cut, EVENTS)),
    "syslog": lines(*(f"<134>1 2026-01-01T00:00:00Z host app 1 - - {text}" for text in PLAIN)),
    "kubectl logs": lines(*(f"[pod/a/b] {text}" for text in PLAIN)),
    "Splunk": each(lambda r: {"preview": False, "result": {"_raw": TEXT(r), "_time": "2026"}}),
    "Splunk, with fields": each(lambda r: {"result": {**r, "_raw": TEXT(r)}}),
    "Splunk collector": each(lambda r: {"time": 1, "event": r}),
    "Pub/Sub push": each(lambda r: {"message": {"data": packed(TEXT(r).encode())}}),
    "Pub/Sub pull": TEXT([{"message": {"data": packed(text.encode())}} for text in PLAIN]),
    "CloudEvents": each(lambda r: {"specversion": "1.0", "id": "1", "data": r}),
    "Loki": TEXT({"data": {"result": [{"values": [["1790841600000000000", t] for t in PLAIN]}]}}),
    "unknown names": each(lambda r: {"a": {"b": r}, "c": 1}),
    "one list a region": TEXT({"eu-west-1": EVENTS[:4], "us-east-1": EVENTS[4:]}),
    "five envelopes": TEXT(
        {"Records": [{"body": TEXT(notification({"records": [subscription(*EVENTS)]}))}]}
    ),
    "several lines in a message": TEXT({"message": lines(*PLAIN)}),
    "mark before each line": lines(*(MARK + text for text in PLAIN)),
    "mark before each document": "".join(MARK + TEXT({"Records": [r]}) for r in EVENTS),
    "two marks": MARK + MARK + TEXT({"Records": EVENTS}),
    "JSON sequence": "".join(f"\x1e{text}\n" for text in PLAIN),
    "comma after each line": ",\n".join(PLAIN) + ",",
    "comma after each document": ",\n".join(json.dumps(r, indent=2) for r in EVENTS),
    "list without an end": "[\n" + ",\n".join(PLAIN) + ",\n",
    "comma at the end of the list": '{"Records": [' + ",\n".join(PLAIN) + ",\n]}",
    "empty object first": lines("{}", *PLAIN),
    "empty values in a list": TEXT([{}, None, [], *EVENTS]),
    "bytes of zero at the end": lines(*PLAIN, "\0" * 99),
    "UTF-16 without a mark": lines(*PLAIN).encode("utf-16-le"),
    "two files in UTF-16": (lines(*PLAIN[:4]) + "\n").encode("utf-16")
    + lines(*PLAIN[4:]).encode("utf-16"),
    "all kinds in one file": lines(
        PLAIN[0],
        TEXT(bridge(EVENTS[1])),
        TEXT(notification(bridge(EVENTS[2]))),
        TEXT({"Records": EVENTS[3:6]}),
        "{}",
        TEXT(subscription(*EVENTS[6:9])),
        TEXT(PLAIN[9]),
        MARK + TEXT(beat(EVENTS[10])),
        PLAIN[11],
    ),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_every_envelope_gives_the_same_events(tmp_path: Path, form: str) -> None:
    content = WRAPPED[form]
    path = tmp_path / "a.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows, stats = read_trail(path)
    assert [row["eventID"] for row in rows] == NAMES
    assert (stats.read, stats.other_records, stats.refused) == (COUNT, 0, 0)
    assert [row[INDEX] for row in rows] == list(range(COUNT)), "the numbers of the records"


def make_record(log: LogFormat) -> Record:
    """A record with a value in each field that the format of a log knows."""
    record: Record = {}
    for path in log.paths:
        *above, name = path.split(".")
        inner: Any = record
        for part in above:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.setdefault(name, "2026-10-01T08:00:00Z" if "time" in name.lower() else "x")
    return record


WRAPPERS: dict[str, Callable[[Record], object]] = {
    "EventBridge": bridge,
    "subscription": subscription,
    "SNS": notification,
    "Filebeat": beat,
    "Event Hubs": lambda r: {"Offset": "1", "Body": packed(TEXT({"records": [r]}).encode())},
    "Pub/Sub": lambda r: {"message": {"data": packed(TEXT(r).encode())}, "subscription": "s"},
    "CloudEvents": lambda r: {"specversion": "1.0", "time": "2026-10-01T08:00:00Z", "data": r},
    "Docker": lambda r: {"log": TEXT(r), "stream": "stdout", "time": "2026-10-01T08:00:00Z"},
    "Splunk": lambda r: {"result": {"_raw": TEXT(r), "_time": "2026-10-01T08:00:00Z"}},
}
LOGS = {name: load_builtin_schema(name).log_format for name in list_builtin_schemas()}
LOGS |= {"CloudTrail": FromCloudtrail.log_format, "OCSF": FromOcsf.log_format}


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_records_of_every_log_come_out_of_every_envelope(log: str, wrapper: str) -> None:
    finder, record = LOGS[log].record_finder, make_record(LOGS[log])
    plain = [json.loads(bytes(text)) for text in finder.find(TEXT(record).encode())]
    wrapped = finder.find(TEXT(WRAPPERS[wrapper](record)).encode())
    assert [json.loads(bytes(text)) for text in wrapped] == plain


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data)


def zipped(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("layers", [[gzipped, gzipped], [zipped, gzipped], [gzipped, zipped]])
@pytest.mark.parametrize("way", ["whole", "in blocks"])
def test_files_that_are_compressed_several_times_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: list[Callable[[bytes], bytes]],
    way: str,
) -> None:
    data = "\n".join(PLAIN).encode()
    for pack in layers:
        data = pack(data)
    (tmp_path / "a.json.gz").write_bytes(data)
    if way == "in blocks":
        monkeypatch.setattr("morpheus.sources.reader.is_large", lambda _: True)
    assert len(read_trail(tmp_path / "a.json.gz")[0]) == COUNT


def test_a_bomb_inside_an_envelope_is_not_unpacked(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(65)) + packer.flush()
    path = tmp_path / "a.json"
    path.write_text(lines(TEXT({"message": {"data": packed(bomb)}}), *PLAIN))
    rows, stats = read_trail(path, bad_record="skip")
    assert (len(rows), stats.refused) == (COUNT, 1)


def test_a_field_of_a_record_is_not_opened(tmp_path: Path) -> None:
    inner = TEXT(event(30))
    outer = event(1, message=inner, detail=event(31), data=[event(32)], Records=[event(33)])
    path = tmp_path / "a.json"
    path.write_text(lines(TEXT(outer), TEXT({"Records": [outer | {"eventID": NAMES[2]}]})))
    rows, _ = read_trail(path)
    assert [row["eventID"] for row in rows] == NAMES[1:3]


OTHERS: dict[str, Record] = {
    "CloudTrail digest": {"digestStartTime": "a", "digestEndTime": "b", "logFiles": [{}]},
    "CloudTrail Insights event": event(40, eventCategory="Insight", eventType="x"),
    "CloudTrail delivery notice": notification({"s3Bucket": "b", "s3ObjectKey": ["k"]}),
    "CloudWatch control message": CONTROL,
    "AWS Config file": {"fileVersion": "1.0", "configurationItems": [event(41)]},
    "GuardDuty finding": bridge(
        {"schemaVersion": "2.0", "type": "x", "service": {"count": 1}, "severity": 5}
    ),
    "event of another type": bridge({"instance-id": "i-1", "state": "running"}),
    "S3 test event": {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "x"},
    "S3 notification": event(42, eventSource="aws:s3", s3={"bucket": {}}, eventID=None),
    "SNS subscription message": {"TopicArn": "t", "SubscribeURL": "u", "Message": "m"},
    "bulk action line": {"index": {"_index": "i"}},
    "Splunk status line": {"preview": False, "lastrow": True},
    "text line": {"log": "Starting up\n", "stream": "stdout", "time": "2026-10-01T08:00:00Z"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_event_is_left_out_and_counted_by_what_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(lines(PLAIN[0], TEXT(OTHERS[kind]), *PLAIN[1:]))
    rows, stats = read_trail(path)
    assert [row["eventID"] for row in rows] == NAMES
    assert dict(stats.kinds) == {kind: 1}
    assert stats.read == COUNT + stats.other_records == COUNT + 1


@pytest.mark.parametrize("kind", OTHERS)
def test_a_run_that_finds_nothing_of_the_right_kind_fails(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(lines(TEXT(OTHERS[kind]), TEXT(OTHERS[kind])))
    if kind == "CloudTrail Insights event":
        path.write_text(TEXT(OTHERS[kind]))
    with pytest.raises(MorpheusError, match=f"no CloudTrail event; found only . {kind}"):
        read_trail(path)


def test_a_bad_record_is_not_taken_for_something_else(tmp_path: Path) -> None:
    bad = event(1, eventTime=None, requestParameters={"index": {"a": 1}, "message": "text"})
    path = tmp_path / "a.json"
    path.write_text(lines(PLAIN[0], TEXT(bad), TEXT(bridge(bad))))
    _, stats = read_trail(path, bad_record="skip")
    assert (stats.refused, stats.other_records) == (2, 0)


EMPTY = ["", "\n", "{}", "[]", "null", '{"Records": []}', '{"Records": null}', '{"events":[]}']


@pytest.mark.parametrize("content", EMPTY)
def test_a_delivery_without_events_is_no_error_and_counted(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(TEXT({"Records": EVENTS}))
    (tmp_path / "b.json").write_text(content)
    rows, stats = read_trail(tmp_path)
    assert (len(rows), stats.files, stats.empty_files, stats.read) == (COUNT, 2, 1, COUNT)


def test_deliveries_without_events_alone_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Records": []}')
    (tmp_path / "b.json").write_text(TEXT(OTHERS["CloudTrail digest"]))
    assert read_trail(tmp_path)[0] == []


@pytest.mark.parametrize("action", ["fail", "skip"])
def test_a_run_in_which_everything_is_rejected_fails(tmp_path: Path, action: str) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}\n{"b": 2}')
    with pytest.raises(MorpheusError, match="the record has no `eventTime`"):
        read_trail(tmp_path / "a.json", bad_record=action)
    if action == "skip":
        with pytest.raises(MorpheusError, match=r"all 2 records were rejected, and nothing was"):
            read_trail(tmp_path / "a.json", bad_record=action)


def test_a_run_in_which_most_is_rejected_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.json").write_text(lines(PLAIN[0], '{"a": 1}', '{"b": 1}'))
    read_trail(tmp_path / "a.json", bad_record="skip")
    assert "most records were rejected: 2 of 3" in caplog.text


def test_a_file_with_very_many_damaged_parts_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"eventTime": 1\n' * 1000)
    (tmp_path / "b.json").write_text(PLAIN[0])
    _, stats = read_trail(tmp_path, bad_record="skip")
    assert (stats.read, stats.refused) == (1001, 1000)


CUT = TEXT({"Records": EVENTS[:5]}).replace(TEXT(NAMES[2]), TEXT(NAMES[2]) + '"')
"""Five events, the third of which is damaged."""
DAMAGED = {"line": CUT, "message": TEXT({"message": CUT})}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_envelope_keeps_its_complete_events_and_counts_the_others(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(lines(PLAIN[5], DAMAGED[kind], *PLAIN[6:]))
    rows, stats = read_trail(path, bad_record="skip")
    assert sorted(row["eventID"] for row in rows) == sorted([*NAMES[:2], *NAMES[5:]])
    assert (stats.read, stats.refused) == (COUNT, 3)
    assert "it holds 3 events" in stats.refusals[0]


def test_a_damaged_document_keeps_its_complete_events_and_counts_the_others(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.json").write_text(TEXT({"Records": EVENTS})[:-9])
    (tmp_path / "b.json").write_text(TEXT({"Records": [event(50)]}))
    rows, stats = read_trail(tmp_path, bad_record="skip")
    assert (len(rows), stats.read, stats.refused) == (COUNT, COUNT + 1, 1)
    assert "the rest of the file" in stats.refusals[0]


@pytest.mark.parametrize("piece", ["x", r"\n"])
def test_a_damaged_record_with_a_name_that_has_no_end_takes_little_memory(
    tmp_path: Path, piece: str
) -> None:
    size = 2_000_000
    text = f'{{"a": "x", "detail": {{"b": "x", "{piece * (size // len(piece))}'
    (tmp_path / "a.json").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(MorpheusError, match="not complete JSON"):
            read(FromDuo, tmp_path / "a.json", columns=("result",), bad_record="skip")
        assert tracemalloc.get_traced_memory()[1] < 30 * size
    finally:
        tracemalloc.stop()


def test_bytes_that_are_not_utf8_do_not_cost_the_other_events_of_an_envelope(
    tmp_path: Path,
) -> None:
    text = TEXT({"Records": [*EVENTS[:3], event(3, eventName="Li?t")]}).encode()
    (tmp_path / "a.json").write_bytes(text.replace(b"?", b"\xff") + b"\n" + PLAIN[4].encode())
    assert len(read_trail(tmp_path / "a.json")[0]) == 5


def github(number: int, **more: Any) -> Record:
    return {"_document_id": str(number), "action": "git.clone", "actor": "ann", "org": "a", **more}


def test_the_first_time_column_with_a_value_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    times = {"@timestamp": 1790841600000, "created_at": 1790841900000}
    path.write_text(lines(TEXT(github(1, **times)), TEXT(github(2, created_at=1790841900000))))
    settings = PipelineOptions(columns_file="github.toml", num_threads=1)
    settings = FromFile(input_glob=str(path)).with_defaults(settings)
    source = FromFile(input_glob=str(path), options=settings)
    rows = [
        row
        for batch in source.events(None, RunMetrics())
        for row in batch.table.to_frame().iter_rows(named=True)
    ]
    assert [row["event_dt"].minute for row in rows] == [0, 5]


def test_whole_numbers_with_a_point_are_what_they_seem(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = {"metadata": {"uid": "1"}, "actor": {"user": {"uid": "ann"}}, "class_uid": 6003.0}
    path.write_text(TEXT({**record, "time": 1790841600000.0}))
    rows, stats = read(FromOcsf, path, columns=("class_uid",), user="actoruseruid")
    assert (len(rows), stats.other_classes) == (1, 0)
    assert str(rows[0]["event_dt"]) == "2026-10-01 08:00:00+00:00"


@pytest.mark.parametrize("wrapper", ["log", "message", "foo"])
def test_a_record_with_a_time_and_no_field_of_the_log_is_rejected(
    tmp_path: Path, wrapper: str
) -> None:
    path = tmp_path / "a.json"
    cut = {"time": "2026-10-01T08:00:00Z", wrapper: PLAIN[1][:90]}
    path.write_text(lines(PLAIN[0], TEXT(cut), PLAIN[2]))
    rows, stats = read_trail(path, bad_record="skip")
    assert [row["eventID"] for row in rows] == [NAMES[0], NAMES[2]]
    assert (stats.read, stats.refused) == (3, 1)
    [reason] = stats.refusals
    assert f"no field of a CloudTrail event but a time; it has time, {wrapper}" in reason
