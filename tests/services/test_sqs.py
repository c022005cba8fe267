"""New objects that are announced on a queue of Amazon SQS, on a server in this process."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.core.authorization import enable_iam_authentication
from moto.server import ThreadedMotoServer

from lakes import Lake
from morpheus.errors import TransientError, UsageError
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.sqs import (
    Message,
    Notice,
    Receiver,
    SeenObjects,
    SqsQueue,
    UnknownMessageError,
    check_queue_url,
    parse_message,
)
from morpheus.storage.object_store import ObjectPath
from services.queues import ACCOUNT, DAY, REGION, LogQueue, Run, close, events, make_queue, notify

S3_EVENT = {
    "Records": [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {
                "bucket": {"name": "lake"},
                "object": {"key": "a/b+c%3D%C3%A9.json.gz", "size": 7, "eTag": "e1"},
            },
        }
    ]
}
CLOUDTRAIL = {"s3Bucket": "lake", "s3ObjectKey": ["a/b c=é.json.gz", "a/d.json.gz"]}
EVENT_BRIDGE = {
    "version": "0",
    "source": "aws.s3",
    "detail-type": "Object Created",
    "detail": {
        "bucket": {"name": "lake"},
        "object": {"key": "a/b c=é.json.gz", "size": 7, "etag": "e1", "sequencer": "00"},
    },
}


def by_sns(body: object) -> dict[str, str]:
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:x", "Message": json.dumps(body)}


@pytest.fixture
def queue(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> LogQueue:
    """A queue that the bucket tells of its objects. The test message is deleted."""
    monkeypatch.setattr("morpheus.sources.sqs._WAIT_SECONDS", 0)
    for module in ("bucket", "sqs"):
        monkeypatch.setattr(f"morpheus.sources.{module}.TICK_SECONDS", 0.05)
    made = make_queue()
    notify(lake, made)
    made.client.purge_queue(QueueUrl=made.url)
    return made


@pytest.fixture
def run(queue: LogQueue, tmp_path: Path) -> Run:
    quarantine = str(tmp_path / "quarantine.jsonl")
    return Run(options={"sqs_queue": queue.url, "batch_timeout": 0.0, "sqs_quarantine": quarantine})


@pytest.mark.parametrize(
    "body", [S3_EVENT, by_sns(S3_EVENT), CLOUDTRAIL, by_sns(CLOUDTRAIL), EVENT_BRIDGE]
)
def test_every_shape_of_a_message_names_the_same_object(body: object) -> None:
    created = parse_message(json.dumps(body)).created
    assert created[0] == ObjectPath("lake", "a/b c=é.json.gz")
    assert len(created) == (2 if "CloudTrail" in str(body) or "s3ObjectKey" in str(body) else 1)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "lake"}, "test notification"),
        (by_sns({"Event": "s3:TestEvent"}), "test notification"),
        (
            {"Type": "Notification", "Message": "CloudTrail validation message."},
            "test notification",
        ),
        ({"Type": "SubscriptionConfirmation", "Message": "x"}, "subscription message"),
        (EVENT_BRIDGE | {"detail-type": "Object Deleted"}, "other notification"),
        (
            {"Records": [S3_EVENT["Records"][0] | {"eventName": "ObjectRemoved:Delete"}]},
            "other notification",
        ),
    ],
)
def test_a_message_that_announces_no_new_object_is_counted(body: object, kind: str) -> None:
    notice = parse_message(json.dumps(body))
    assert notice.created == []
    assert notice.others == {kind: 1}


def with_size(size: object) -> str:
    """A message of S3 with a size of another kind."""
    [record] = S3_EVENT["Records"]
    about = record["s3"] | {"object": {"key": "a/b.json.gz", "size": size}}
    return json.dumps({"Records": [record | {"s3": about}]})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("hello", "it is not JSON"),
        ("[]", "it is no JSON object"),
        ('{"a": 1}', "it has the fields a"),
        ('{"Records": [{"eventSource": "aws:ses"}]}', "its source is 'aws:ses', not S3"),
        (
            json.dumps({"Records": [S3_EVENT["Records"][0] | {"eventVersion": "3.0"}]}),
            "it has version '3.0' of S3 events; 2 is supported",
        ),
        ('{"s3ObjectKey": ["a"]}', "it lacks a field"),
        ('{"s3Bucket": 1, "s3ObjectKey": [2]}', "a bucket or a key in it is no text"),
        ('{"Records": 1}', "it lacks a field"),
        (with_size("seven"), "a size in it is no number"),
        (with_size(float("inf")).replace("Infinity", "1e999"), "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"source": "aws.s3", "detail-type": "Object Created", "detail": []}', "it lacks a field"),
    ],
)
def test_a_message_of_no_known_shape_is_described(body: str, reason: str) -> None:
    with pytest.raises(UnknownMessageError, match=reason.replace("(", r"\(")):
        parse_message(body)


@pytest.mark.parametrize("name", ["a.json.gz", "b c=é+&.json.gz", "100%.json.gz", "%41.json.gz"])
def test_an_announced_object_is_read_whatever_its_key(
    lake: Lake, queue: LogQueue, run: Run, name: str
) -> None:
    lake.put(f"{DAY}/{name}", events(1, 2))
    assert run.read(1) == [1, 2]
    assert queue.messages == [], "the message is deleted after it was acknowledged"


def test_a_key_is_found_also_if_a_server_encodes_it_in_another_way(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    queue.send({"s3Bucket": "lake", "s3ObjectKey": [f"{DAY}/b%3Dc.json.gz"]})
    lake.store  # noqa: B018 - the bucket exists
    make_silently(lake, f"{DAY}/b=c.json.gz", events(1))
    assert run.read(1) == [1]


def make_silently(lake: Lake, key: str, content: bytes) -> None:
    """Put an object that is not announced."""
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=lake.address)
    empty: dict[str, Any] = {}
    s3.put_bucket_notification_configuration(Bucket="lake", NotificationConfiguration=empty)
    lake.put(key, content)


def test_objects_announced_by_event_bridge_are_read(lake: Lake, queue: LogQueue, run: Run) -> None:
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=lake.address)
    bridge = boto3.client("events", region_name=REGION, endpoint_url=lake.address)
    s3.put_bucket_notification_configuration(
        Bucket="lake", NotificationConfiguration={"EventBridgeConfiguration": {}}
    )
    pattern = json.dumps({"source": ["aws.s3"], "detail-type": ["Object Created"]})
    bridge.put_rule(Name="logs", EventPattern=pattern)
    bridge.put_targets(Rule="logs", Targets=[{"Id": "1", "Arn": queue.arn}])
    lake.put(f"{DAY}/b c=1+2.json.gz", events(3))
    assert run.read(1) == [3]


def test_all_objects_of_a_message_are_read_together(lake: Lake, queue: LogQueue, run: Run) -> None:
    keys = [f"{DAY}/{number}.json.gz" for number in range(3)]
    for number, key in enumerate(keys):
        make_silently(lake, key, events(number))
    queue.send(by_sns({"s3Bucket": "lake", "s3ObjectKey": keys}))
    assert run.read(3) == [0, 1, 2]
    assert len(run.rows) == 1, "one micro-batch"
    assert queue.messages == []


def test_what_is_no_log_is_left_out_counted_and_deleted(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put("AWSLogs/000000000001/CloudTrail-Digest/eu-west-1/2024/05/07/d.json.gz", b"{}")
    lake.put("AWSLogs/000000000001/Config/x.json.gz", b"{}")
    lake.put(f"{DAY}/notes.txt", b"")
    lake.put("other/a.json.gz", events(9))
    lake.put(f"{DAY}/a.json.gz", events(1))
    queue.send({"s3Bucket": "another", "s3ObjectKey": [f"{DAY}/a.json.gz"]})
    queue.send({"Event": "s3:TestEvent"})
    assert run.read_until(lambda: sum(run.kinds.values()) == 6 and run.numbers == [1]) == [1]
    assert run.kinds == {
        "CloudTrail digest file": 1,
        "AWS Config file": 1,
        "unsupported file": 1,
        "unmatched object": 2,
        "test notification": 1,
    }
    assert queue.messages == []


def test_an_object_that_is_announced_twice_is_read_once(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    copy = queue.messages[0].body
    assert run.read(1) == [1]
    queue.send(copy)
    queue.send({"s3Bucket": "lake", "s3ObjectKey": [f"{DAY}/a.json.gz"]})
    again = Run(run.offsets, run.options)
    assert again.read_until(lambda: again.kinds == {"repeated object": 2}) == []
    assert queue.messages == []


def test_an_object_that_is_announced_twice_at_once_is_read_once(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    queue.send(queue.messages[0].body)
    assert run.read_until(lambda: run.kinds == {"repeated object": 1}) == [1]
    assert queue.messages == []


def test_an_object_with_a_new_content_is_read_again(lake: Lake, run: Run) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    assert run.read(1) == [1]
    lake.put(f"{DAY}/a.json.gz", events(2))
    assert run.read(1) == [2]


def test_an_object_that_is_replaced_before_it_is_read_is_counted(lake: Lake, run: Run) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    lake.put(f"{DAY}/a.json.gz", events(2))
    lake.put(f"{DAY}/b.json.gz", events(3))
    assert run.read(2, batch_timeout=60.0) == [2, 3]
    assert run.kinds == {"replaced object": 1}


def test_an_archived_object_is_put_into_quarantine_and_others_are_read(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=lake.address)
    name = f"{DAY}/a.json.gz"
    s3.put_object(Bucket="lake", Key=name, Body=events(1), StorageClass="GLACIER")
    lake.put(f"{DAY}/b.json.gz", events(2))
    done = lambda: run.kinds == {"quarantined message": 1} and run.numbers == [2]  # noqa: E731 - the condition
    run.read_until(done, sqs_max_receives=1, batch_timeout=0.5)
    assert "it is archived" in Path(run.options["sqs_quarantine"]).read_text()
    assert queue.messages == []


def test_a_message_stays_until_it_is_acknowledged(lake: Lake, queue: LogQueue, run: Run) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    for micro_batch in run.start(max_files=1):
        run.take(micro_batch, acknowledge=False)
    assert run.numbers == [1]
    assert len(queue.messages) == 1
    queue.show_all()
    after_crash = Run({}, run.options)
    assert after_crash.read(1) == [1], "the offsets were lost with the crash"
    assert queue.messages == []


def test_a_message_that_comes_back_after_its_checkpoint_is_not_read_again(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    for micro_batch in run.start(max_files=1):
        run.take(micro_batch, acknowledge=False)
    queue.show_all()
    again = Run(run.offsets, run.options)
    assert again.read_until(lambda: again.kinds == {"repeated object": 1}) == []
    assert queue.messages == []


def test_messages_that_were_not_read_are_shown_to_others_at_the_end(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    batches = run.start(batch_timeout=60.0)
    next(batches)
    lake.put(f"{DAY}/a.json.gz", events(1))
    for _ in range(2):
        next(batches)
    close(batches)
    [message] = queue.messages
    assert message.visible
    assert message.approximate_receive_count == 1


def test_a_deleted_object_is_counted_and_its_message_deleted(
    lake: Lake, queue: LogQueue, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send({"s3Bucket": "lake", "s3ObjectKey": [f"{DAY}/gone.json.gz"]})
    lake.put(f"{DAY}/a.json.gz", events(1))
    assert run.read_until(lambda: run.kinds == {"deleted object": 1} and bool(run.rows)) == [1]
    assert "gone.json.gz: it was deleted before it was read." in caplog.text
    assert queue.messages == []


def test_an_object_that_cannot_be_read_is_tried_again_and_then_put_into_quarantine(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/bad.json.gz", events(1)[:40])
    body = queue.messages[0].body
    lake.put(f"{DAY}/a.json.gz", events(2))
    lake.put(f"{DAY}/good.json.gz", events(3))
    for receive in (1, 2):
        good = [2, 3] if receive == 1 else []
        done = lambda n=receive, good=good: (  # noqa: E731 - the condition of this round
            run.kinds == {"returned message": n} and run.numbers == good
        )
        run.read_until(done, sqs_max_receives=3, batch_timeout=0.5)
        assert [message.body for message in queue.messages] == [body]
        queue.show_all()
    run.read_until(lambda: "quarantined message" in run.kinds, sqs_max_receives=3)
    assert queue.messages == []
    assert run.kinds == {"returned message": 2, "quarantined message": 1}
    assert run.metrics.input.read == run.metrics.input.accepted == run.metrics.input.files == 2
    assert run.metrics.input.dead_letters == 1
    [line] = Path(run.options["sqs_quarantine"]).read_text().splitlines()
    kept = json.loads(line)
    assert (kept["body"], kept["receives"], kept["queue"]) == (body, 3, queue.url)
    assert "bad.json.gz" in kept["reason"]
    assert "truncated or damaged" in kept["reason"]


def receive(queue: LogQueue, times: int) -> None:
    """Receive all messages, as runs do that are killed."""
    for _ in range(times):
        queue.client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10)
        queue.show_all()


def test_a_message_of_runs_that_were_killed_is_read_by_itself(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/old.json.gz", events(1))
    receive(queue, 7)
    lake.put_all({f"{DAY}/{n}.json.gz": events(n) for n in (2, 3)})
    assert run.read(3, batch_timeout=2.0) == [1, 2, 3]
    assert sorted(frame.height for frame in run.rows) == [1, 2]
    assert run.kinds == {}
    assert queue.messages == []


def test_a_message_of_very_many_runs_that_were_killed_is_put_into_quarantine(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    receive(queue, 6)
    done = lambda: run.kinds == {"quarantined message": 1}  # noqa: E731 - the condition
    assert run.read_until(done, sqs_max_receives=2) == []
    kept = json.loads(Path(run.options["sqs_quarantine"]).read_text())
    assert kept["reason"] == "it was received 7 times, and each run was killed"
    assert queue.messages == []


def test_a_message_of_an_unknown_kind_is_put_into_quarantine_at_once(
    queue: LogQueue, run: Run
) -> None:
    queue.send("hello")
    assert run.read_until(lambda: run.kinds == {"quarantined message": 1}) == []
    assert "not JSON" in Path(run.options["sqs_quarantine"]).read_text()
    assert queue.messages == []


@pytest.mark.parametrize("key", [f"{DAY}//a.json.gz", f"{DAY}/\n.json.gz"])
def test_a_key_that_cannot_be_requested_ends_no_run(
    lake: Lake, queue: LogQueue, run: Run, key: str
) -> None:
    queue.send({"s3Bucket": "lake", "s3ObjectKey": [key]})
    lake.put(f"{DAY}/good.json.gz", events(1))
    by_bucket = queue.messages[-1].body
    assert "good" in by_bucket
    queue.send(by_bucket.replace("good", quote(f"{key}.")))  # also tried without decoding it
    done = lambda: run.kinds == {"quarantined message": 2} and run.numbers == [1]  # noqa: E731 - the condition
    run.read_until(done, sqs_max_receives=1, batch_timeout=0.5)
    assert "Copy the object to another key" in Path(run.options["sqs_quarantine"]).read_text()
    assert queue.messages == []


_NAMES = ["Records", "s3", "object", "bucket", "key", "size", "eTag", "name", "s3Bucket", "Type"]
_NAMES += ["s3ObjectKey", "source", "detail", "detail-type", "Message", "eventName", "etag"]
_TEXTS = ["aws.s3", "Object Created", "ObjectCreated:Put", "2.1", "Notification", "aws:s3", "a%"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(_TEXTS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner),
)


@given(JSON, st.sampled_from(["size", "key", "eTag"]))
@settings(max_examples=200, deadline=None)
def test_any_other_message_is_of_no_known_shape(content: Any, name: str) -> None:
    [record] = S3_EVENT["Records"]
    about = record["s3"] | {"object": {"key": "a/b.json.gz", name: content}}
    for body in (content, {"Records": [record | {"s3": about}]}, {"Records": content}):
        with suppress(UnknownMessageError):  # any other error would end the run
            assert isinstance(parse_message(json.dumps(body)), Notice)


def test_the_dead_letter_queue_of_the_queue_is_used_if_there_is_one(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    queue.client.create_queue(QueueName="dead")
    policy = {"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:dead", "maxReceiveCount": 2}
    queue.client.set_queue_attributes(
        QueueUrl=queue.url, Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    lake.put(f"{DAY}/bad.json.gz", events(1)[:40])
    queue.send("hello")
    for receive in (2, 4):
        run.read_until(lambda n=receive: run.kinds == {"returned message": n}, sqs_max_receives=1)
        queue.show_all()
    assert queue.client.receive_message(QueueUrl=queue.url).get("Messages", []) == []
    dead = queue.client.get_queue_url(QueueName="dead")["QueueUrl"]
    assert len(queue.client.receive_message(QueueUrl=dead, MaxNumberOfMessages=10)["Messages"]) == 2
    assert not Path(run.options["sqs_quarantine"]).exists()


def test_a_damaged_record_is_skipped_and_counted_with_bad_record(
    lake: Lake, queue: LogQueue, run: Run
) -> None:
    lake.put(f"{DAY}/bad.json.gz", events(1)[:40])
    lake.put(f"{DAY}/good.json.gz", events(2))
    assert run.read(2, bad_record="skip", batch_timeout=60.0) == [2]
    assert run.metrics.input.refused == 1
    assert queue.messages == []


def test_many_small_objects_are_one_micro_batch(lake: Lake, queue: LogQueue, run: Run) -> None:
    lake.put_all({f"{DAY}/{number}.json.gz": events(number) for number in range(30)})
    assert run.read(30, batch_timeout=60.0) == list(range(30))
    assert len(run.rows) == 1
    assert queue.messages == []


def test_a_micro_batch_is_limited_by_its_number_of_objects(
    lake: Lake, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.bucket.MAX_OBJECTS", 4)
    lake.put_all({f"{DAY}/{number}.json.gz": events(number) for number in range(10)})
    assert run.read(10, batch_timeout=60.0) == list(range(10))
    assert [frame.height for frame in run.rows] == [4, 4, 2]


def test_an_error_of_the_thread_that_receives_ends_the_run(queue: LogQueue) -> None:
    receiver = Receiver(SqsQueue(queue.url, 300))
    assert receiver.queue.receive(0) == []  # so that there is a client
    receiver.start()
    receiver.queue._client = object()  # noqa: SLF001 - no client any more
    with pytest.raises(AttributeError):
        receiver.get(5.0)


def test_an_idle_queue_gives_empty_micro_batches(queue: LogQueue, run: Run) -> None:
    batches = run.start()
    found = [next(batches) for _ in range(3)]
    assert all(not batch.partitions and batch.acknowledge is None for batch in found)
    close(batches)
    assert queue.messages == []


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_message_in_work_is_hidden_again_at_half_time(queue: LogQueue) -> None:
    queue.send("x")
    clock = Clock()
    receiver = Receiver(SqsQueue(queue.url, 300), clock)
    receiver._receive()  # noqa: SLF001 - as its thread does
    [message] = queue.messages
    hidden = message.visible_at
    clock.now = 149.0
    receiver.extend()
    assert message.visible_at == hidden
    message.visible_at = hidden - 150_000  # so much later is it now
    clock.now = 150.0
    receiver.extend()
    assert message.visible_at >= hidden
    clock.now = 299.0
    receiver.extend()
    assert receiver.in_work[message.id][1] == 450.0
    receiver.forget(receiver.in_work[message.id][0])
    clock.now = 1000.0
    receiver.extend()
    assert receiver.in_work == {}


def test_a_message_that_was_received_again_is_deleted_by_its_new_receipt(queue: LogQueue) -> None:
    queue.send("x")
    deleted: list[Message] = []

    class Recorder(SqsQueue):
        def delete(self, messages: Sequence[Message]) -> list[Message]:
            deleted.extend(messages)
            return super().delete(messages)

    receiver = Receiver(Recorder(queue.url, 300))
    receiver._receive()  # noqa: SLF001 - as its thread does
    first = receiver.get(0.1)
    queue.show_all()
    receiver._receive()  # noqa: SLF001 - the same
    again = receiver.get(0.1)
    assert first is not None
    receiver.delete([first])
    assert deleted == [again]
    assert again != first
    assert queue.messages == []
    assert receiver.in_work == {}


def test_the_memory_of_objects_is_bounded_and_only_changes_are_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("morpheus.sources.sqs._SEGMENT", 10)
    monkeypatch.setattr("morpheus.sources.sqs._MAX_SEGMENTS", 3)
    seen, saved = SeenObjects(), {}
    for number in range(100):
        seen.add(ObjectPath("lake", str(number), etag="e"))
        changed = seen.take_offsets()
        assert len(changed) <= 2
        assert all(len(data) <= 160 for data in changed.values())
        saved.update(changed)
    saved = {name: data for name, data in saved.items() if data}
    assert len(saved) == 3
    again = SeenObjects.restore(saved)
    known = [n for n in range(100) if ObjectPath("lake", str(n), etag="e") in again]
    assert known == list(range(70, 100))
    assert ObjectPath("lake", "99", etag="f") not in again


def test_a_state_of_another_bucket_is_rejected_with_what_to_do(lake: Lake, run: Run) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    run.read(1)
    with pytest.raises(
        UsageError,
        match=r"--state: the state was saved while reading s3://lake, and --input_glob is in "
        r"s3://other. Give another file as --state",
    ):
        next(run.start(input_glob="s3://other/AWSLogs/"))
    run.offsets = {"file:1": b"x"}
    with pytest.raises(UsageError, match="was saved while reading another kind of input"):
        next(run.start())


def test_a_queue_that_does_not_exist_is_reported(queue: LogQueue, run: Run) -> None:
    with pytest.raises(UsageError, match=r"there is no queue .*/absent. `aws sqs list-queues`"):
        next(run.start(sqs_queue=queue.url.replace("logs", "absent")))


def test_a_queue_that_cannot_be_reached_at_the_start_is_waited_for(
    lake: Lake, queue: LogQueue, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1, 2))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    batches = run.start(sqs_queue=f"http://127.0.0.1:{port}/{ACCOUNT}/logs", max_files=1)
    for _ in range(3):
        assert run.take(next(batches)).height == 0
    assert "cannot be reached" in caplog.text
    assert "It is tried again until it succeeds" in caplog.text
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)  # with the same queues
    server.start()
    for batch in batches:
        run.take(batch)
    server.stop()
    assert run.numbers == [1, 2]
    assert queue.messages == []


@pytest.mark.usefixtures("lake")
def test_a_server_that_never_answers_is_named_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{ACCOUNT}/logs"
        begin = time.monotonic()
        with pytest.raises(TransientError, match=f"{url} cannot be reached .Read timeout"):
            SqsQueue(url).receive(0)
        assert time.monotonic() - begin < 30


def test_denied_access_to_the_queue_names_the_permission(run: Run) -> None:
    with (
        enable_iam_authentication(),
        pytest.raises(UsageError, match=r"access to .*/logs is denied.*`sqs:GetQueueAttributes`"),
    ):
        next(run.start())


def test_denied_access_to_an_object_names_it_and_the_permission(
    lake: Lake, queue: LogQueue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    iam = boto3.client("iam", region_name=REGION)
    iam.create_user(UserName="soc")
    statement = {"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="soc", PolicyName="queue", PolicyDocument=policy)
    key = iam.create_access_key(UserName="soc")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    with (
        enable_iam_authentication(),
        pytest.raises(
            UsageError, match=r"s3://lake/AWSLogs/.*/a.json.gz: access denied .*`s3:GetObject`"
        ),
    ):
        run.read_until(lambda: False)
    assert len(queue.messages) == 1, "nothing is lost"


def test_objects_wait_while_their_server_is_down(
    lake: Lake,
    queue: LogQueue,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lake.put(f"{DAY}/a.json.gz", events(1))
    monkeypatch.setattr("morpheus.sources.bucket._FIRST_BACKOFF", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    batches = run.start()
    for _ in range(200):
        run.take(next(batches))
        if "http://127.0.0.1:9 cannot be reached" in caplog.text:
            break
    assert run.numbers == []
    assert len(queue.messages) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", lake.address)
    for _ in range(200):
        run.take(next(batches))
        if run.numbers:
            break
    close(batches)
    assert run.numbers == [1]
    assert queue.messages == []
    assert queue.url not in caplog.text, "the message is received once"


def answer_with(code: str, text: str = "") -> Iterator[None]:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - the code under test imports it too

    class Client:
        def receive_message(self, **_: object) -> None:
            raise ClientError({"Error": {"Code": code, "Message": text}}, "ReceiveMessage")

    queue = SqsQueue("https://sqs.eu-west-1.amazonaws.com/1/logs", 300, Client())
    return queue.receive(0)  # type: ignore[return-value] # it raises


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("AccessDenied", UsageError, r"denied \(AccessDenied\).*`sqs:ReceiveMessage`"),
        ("ExpiredToken", UsageError, r"denied \(ExpiredToken\)"),
        ("KMS.AccessDeniedException", UsageError, "`kms:Decrypt` for the key of the queue"),
        ("KMS.ThrottlingException", TransientError, "limits the requests"),
        ("RequestThrottled", TransientError, r"limits the requests \(RequestThrottled\)"),
        ("ServiceUnavailable", TransientError, "answered with an error"),
    ],
)
def test_an_error_of_the_queue_says_what_to_do(
    code: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        answer_with(code)


def test_a_server_that_cannot_be_reached_is_tried_again(lake: Lake) -> None:
    assert lake.address
    queue = SqsQueue("http://127.0.0.1:9/1/logs")
    with pytest.raises(TransientError, match=r"http://127.0.0.1:9/1/logs cannot be reached"):
        queue.receive(0)


def test_a_queue_that_is_gone_when_a_run_ends_does_not_fail_it(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    assert lake.address
    receiver = Receiver(SqsQueue("http://127.0.0.1:9/1/logs"))
    receiver.stop([])
    receiver.delete([Message("id", "receipt", "{}", 1)])  # the last checkpoint acknowledges it
    assert "cannot be reached" in caplog.text
    assert "The messages in work are received again later." in caplog.text


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/logs", "eu-west-1"),
        ("https://sqs.us-gov-west-1.amazonaws.com/1/logs", "us-gov-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/logs", "cn-north-1"),
        ("https://vpce-0a1.sqs.eu-central-1.vpce.amazonaws.com/1/logs", "eu-central-1"),
        ("https://eu-west-2.queue.amazonaws.com/1/logs", "eu-west-2"),
        ("https://queue.amazonaws.com/1/logs", "us-east-1"),
        ("http://localhost:4566/1/logs", "ap-south-1"),
    ],
)
def test_the_region_is_that_of_the_url(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, url: str, region: str
) -> None:
    from morpheus.sources.sqs import _make_client  # noqa: PLC0415 - tested alone

    assert lake.address
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert _make_client(url).meta.region_name == region


@pytest.mark.parametrize("url", ["logs", "arn:aws:sqs:eu-west-1:1:logs", "https://host/logs"])
def test_what_is_no_url_of_a_queue_is_rejected(url: str) -> None:
    with pytest.raises(UsageError, match=r"is not the URL of a queue.*`aws sqs get-queue-url"):
        check_queue_url(url)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"input_glob": "gs://lake/x/"}, r"`gs://lake/x/` is not in S3"),
        ({"input_glob": "logs/"}, r"`logs/` is not in S3"),
        ({"watch_directory": True}, "Use only one of them"),
        ({"repeat": 2}, "has no end"),
        ({"lag": "20m"}, r"--lag: a queue has no end. Leave out --lag or --sqs_queue"),
        ({"sqs_quarantine": "absent/x.jsonl"}, r"--sqs_quarantine: there is no folder `.*/absent`"),
    ],
)
def test_options_that_contradict_a_queue_are_rejected(options: dict[str, Any], text: str) -> None:
    given = {"input_glob": "s3://lake/x/", "sqs_queue": "https://sqs.eu-west-1.amazonaws.com/1/q"}
    with pytest.raises(UsageError, match=text):
        FromCloudtrail(**(given | options)).validate()


def test_missing_extra_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(UsageError, match=r"needs an extra. `pip install 'morpheus-dfp\[sqs\]'`"):
        SqsQueue("https://sqs.eu-west-1.amazonaws.com/1/logs").delete([Message("1", "r", "", 1)])
