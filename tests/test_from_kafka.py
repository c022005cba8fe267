"""`from-kafka` on a real broker: every message becomes events, a dead letter or a count, once."""

import gzip
import json
import logging
import random
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from itertools import count, cycle, islice

import polars as pl
import pytest
import zstandard
from click.testing import CliRunner

from morpheus.cli.main import morpheus
from morpheus.columns import TIME
from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.core.state import StateKey
from morpheus.errors import EXIT_INTERRUPTED, RecordError, TransientError, UsageError
from morpheus.runtime.changelog import KafkaChangelog, StateGroup
from morpheus.runtime.states import SqliteStateStore, StateReader
from morpheus.sources import from_kafka
from morpheus.sources.from_kafka import (
    FromKafka,
    KafkaConsumer,
    MessageDecoder,
    encode_journal,
    read_settings_file,
)
from morpheus.sources.log_format import LogFormat
from morpheus.sources.source_state import PartitionState
from morpheus.sources.spill_sort import LatenessBuffer
from pages import ROOT, copy_examples, run_page
from services.forwarder import forwarding
from services.listener import listening, make_certificate
from services.noida import free_port, noida, read_topic

kafka = pytest.importorskip(
    "confluent_kafka", reason="the extra is not installed: pip install 'morpheus-dfp[kafka]'"
)


@pytest.fixture(scope="module")
def broker():
    with noida("kafka") as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def topic(broker, request):
    name = re.sub(r"\W", "-", request.node.name)
    create(broker, name)
    return name


def create(broker, *names, partitions=2):
    from confluent_kafka.admin import AdminClient, NewTopic  # noqa: PLC0415 - an extra

    admin = AdminClient({"bootstrap.servers": broker})
    for made in admin.create_topics([NewTopic(name, partitions) for name in names]).values():
        made.result(10)


def grow(broker, name, partitions):
    from confluent_kafka.admin import AdminClient, NewPartitions  # noqa: PLC0415 - an extra

    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_partitions([NewPartitions(name, partitions)])[name].result(10)


def delete(broker, name):
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - an extra

    admin = AdminClient({"bootstrap.servers": broker})
    admin.delete_topics([name])[name].result(10)


def send(broker, topic, values, *, partition=0, headers=None):
    producer = kafka.Producer({"bootstrap.servers": broker})
    for value in values:
        producer.produce(topic, value, key=b"ann", partition=partition, headers=headers)
    assert producer.flush(10) == 0


def event(number, user="ann"):
    return {
        "eventVersion": "1.08",
        "eventID": f"{number:08x}-0000-4000-8000-{hash(user) & 0xFFFFFFFF:012x}",
        "eventTime": f"2024-05-01T{number // 60:02}:{number % 60:02}:00Z",
        "eventSource": "s3.amazonaws.com",
        "eventName": f"Get{number}",
        "sourceIPAddress": "198.51.100.7",
        "userIdentity": {"type": "IAMUser", "userName": user, "accountId": "123456789012"},
    }


def line(number, user="ann"):
    return json.dumps(event(number, user)).encode()


GROUPS = count()


def make(broker, topic, **values):
    """A source that ends, with its options filled in."""
    own = {"group_id": f"group-{next(GROUPS)}", "until_end": True, "batch_timeout": 0.0}
    values = {"log_format": "cloudtrail"} | own | values
    stage = FromKafka(bootstrap_servers=broker, input_topic=topic, **values)
    options = PipelineOptions(
        userid_column_name="userIdentityuserName", columns=("eventName",), unbounded=True
    )
    stage = replace(stage, options=stage.with_defaults(options))
    stage.validate()
    return stage


class Collector:
    """What a source gives: its events, offsets and counts. The rows of a user come in order."""

    def __init__(self, stage, offsets=None):
        self.metrics = RunMetrics()
        self.offsets = dict(offsets or {})
        self.frames, self.empty = [], 0
        self.state = PartitionState.restore({})
        self._stream = stage.micro_batches(None, self.metrics, self.offsets)

    def __iter__(self):
        for micro_batch in self._stream:
            found = [b for p in micro_batch.partitions for b in p.events(self.metrics, self.state)]
            self.frames += [each.table.to_frame() for each in found]
            self.offsets |= micro_batch.offsets
            self.empty += not found
            if micro_batch.acknowledge is not None:
                micro_batch.acknowledge()
            yield self

    def finish(self):
        for _ in self:
            pass
        return self

    def close(self):
        self._stream.close()

    @property
    def names(self):
        frames = [frame.select("eventName", TIME) for frame in self.frames]
        return pl.concat(frames)["eventName"].to_list() if frames else []


def names(*numbers):
    return [f"Get{number}" for number in numbers]


def forms(user):
    """The events 1, 2 and 3 of a user as messages, in every form."""
    lines = [line(number, user) for number in (1, 2, 3)]
    records = [event(number, user) for number in (1, 2, 3)]
    envelope = json.dumps({"Records": records})
    return {
        "a record each": lines,
        "a list": [json.dumps(records).encode()],
        "an envelope": [envelope.encode()],
        "an envelope over several lines": [json.dumps({"Records": records}, indent=2).encode()],
        "JSON lines": [b"\n".join(lines) + b"\n"],
        "JSON lines, gzip": [gzip.compress(b"\n".join(lines))],
        "an envelope, zstd": [zstandard.compress(envelope.encode())],
        "with the id of a schema": [b"\0\0\0\0\x07" + each for each in lines],
        "an envelope and records": [json.dumps({"Records": records[:1]}).encode(), *lines[1:]],
        "with a byte order mark": [b"\xef\xbb\xbf" + each for each in lines],
    }


def test_a_message_is_a_record_a_list_an_envelope_or_lines_plain_or_compressed(broker, topic):
    for form in forms(""):
        send(broker, topic, forms(form)[form])
    reading = Collector(make(broker, topic)).finish()
    found = {frame["userIdentityuserName"][0]: frame for frame in reading.frames}
    assert {user: frame["eventName"].to_list() for user, frame in found.items()} == dict.fromkeys(
        forms(""), names(1, 2, 3)
    )
    assert reading.metrics.input.read == reading.metrics.input.accepted == 30


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_a_topic_that_ends_with_the_mark_of_a_transaction_is_read_to_its_end(broker, topic, end):
    send(broker, topic, [line(1)])
    producer = kafka.Producer({"bootstrap.servers": broker, "transactional.id": topic})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(topic, line(2), partition=0)
    producer.flush(10)
    getattr(producer, end)(10)
    reading = Collector(make(broker, topic))
    assert len(list(islice(reading, 20))) < 20, "it has no end"
    assert reading.names == (names(1, 2) if end == "commit_transaction" else names(1))


def test_a_message_without_value_is_counted_and_skipped(broker, topic):
    send(broker, topic, [line(1), None, line(2), None])
    reading = Collector(make(broker, topic)).finish()
    assert reading.names == names(1, 2)
    assert reading.metrics.input.kinds == {"tombstone": 2}
    assert reading.offsets == {f"{topic}/0": b"4"}


def test_an_envelope_without_a_record_is_counted(broker, topic):
    send(broker, topic, [line(1), b'{"Records": []}', b'{"Records": [ ]}\n', line(2)])
    reading = Collector(make(broker, topic)).finish()
    assert reading.names == names(1, 2)
    assert reading.metrics.input.kinds == {"message without a record": 2}
    assert reading.metrics.input.read == 4
    assert reading.offsets == {f"{topic}/0": b"4"}


NO_TIME = json.dumps({k: v for k, v in event(9).items() if k != "eventTime"}).encode()
BAD = {
    b'{"eventName": ': "the message is not JSON",
    b"hello": "the message is not JSON",
    b"17": "the message has no record",
    b"{}": "the message has no record",
    gzip.compress(line(9))[:40]: "truncated or damaged",
    NO_TIME: "the record has no `eventTime`",
    json.dumps({"Records": [event(50), json.loads(NO_TIME)]}).encode(): "the record has no `eventT",
    json.dumps(event(9) | {"eventTime": "soon"}).encode(): "`eventTime` is 'soon'",
}


def test_a_message_that_cannot_be_read_goes_to_the_dead_letter_topic_with_the_reason(broker, topic):
    letters = f"{topic}-letters"
    create(broker, letters, partitions=1)
    for number, bad in enumerate(BAD):
        send(broker, topic, [line(number), bad], headers=[("trace", b"t1")])
    reading = Collector(make(broker, topic, dead_letter_topic=letters)).finish()
    # The good record of a message with a bad one is an event.
    assert reading.names == names(*range(len(BAD)), 50)
    stats = reading.metrics.input
    assert (stats.refused, stats.read) == (len(BAD), 2 * len(BAD) + 1)
    assert stats.dead_letters == len(BAD)
    assert stats.refusals[0].startswith(f"topic `{topic}`, partition 0, offset 1: the message is")
    found = {
        int(dict(each.headers())["morpheus.offset"]): each
        for each in read_messages(broker, letters)
    }
    assert sorted(found) == list(range(1, 2 * len(BAD), 2))
    for number, (bad, reason) in enumerate(BAD.items()):
        letter = found[2 * number + 1]
        headers = dict(letter.headers())
        assert (letter.key(), letter.value(), headers["trace"]) == (b"ann", bad, b"t1")
        assert (headers["morpheus.topic"], headers["morpheus.partition"]) == (topic.encode(), b"0")
        assert reason in headers["morpheus.reason"].decode()


def test_a_message_too_large_for_the_dead_letter_topic_goes_there_without_its_value(broker, topic):
    letters = f"{topic}-letters"
    create(broker, letters, partitions=1)
    large = b'{"eventName": "' + b"x" * 5000
    send(broker, topic, [line(1), large, b"{", line(2)])
    limit = ("message.max.bytes=4000",)
    stage = make(broker, topic, dead_letter_topic=letters, kafka_option=limit)
    reading = Collector(stage).finish()
    assert reading.names == names(1, 2)
    assert reading.metrics.input.dead_letters == 2
    found = {
        dict(each.headers())["morpheus.offset"]: each for each in read_messages(broker, letters)
    }
    assert found[b"2"].value() == b"{"
    assert (found[b"1"].key(), found[b"1"].value()) == (b"ann", None)
    reason = dict(found[b"1"].headers())["morpheus.reason"].decode()
    assert "the message is not JSON" in reason
    assert "the value has 5,015 bytes, too many" in reason


def test_a_message_that_the_dead_letter_topic_does_not_take_is_not_passed_over(broker, topic):
    letters = f"{topic}-letters"
    create(broker, letters, partitions=1)
    send(broker, topic, [line(1)])
    limit = ("message.max.bytes=1000",)
    reading = Collector(make(broker, topic, dead_letter_topic=letters, kafka_option=limit))
    send(broker, topic, [b"{"], headers=[("trace", b"t" * 2000)])
    with pytest.raises(TransientError, match=f"`{letters}` did not take .*, offset 1: .*too large"):
        reading.finish()
    assert reading.offsets.get(f"{topic}/0", b"0") in {b"0", b"1"}


def test_a_dead_letter_topic_that_is_deleted_ends_the_run_with_its_name(broker, topic):
    letters = f"{topic}-letters"
    create(broker, letters, partitions=1)
    stage = make(broker, topic, dead_letter_topic=letters, until_end=False)
    send(broker, topic, [b"{"])
    steps = iter(Collector(stage))
    while not read_topic(broker, letters):
        next(steps)
    delete(broker, letters)
    send(broker, topic, [b"{"])
    with pytest.raises(TransientError, match=f"--dead_letter_topic: `{letters}` did not take"):
        list(islice(steps, 600))  # a tenth of a second each while it waits


def test_events_that_are_processed_again_send_no_dead_letter_again(broker, topic):
    letters = f"{topic}-letters"
    create(broker, letters, partitions=1)
    send(broker, topic, [line(1), b"hello"])
    stage = make(broker, topic, dead_letter_topic=letters)
    first = KafkaConsumer(replace(stage, group_id=f"{topic}-first"), {})
    first.subscribe()
    journal = [encode_journal(batch) for batch in first.receive() if batch]
    first.close()
    reading = Collector(replace(stage, auto_offset_reset="latest").replay(journal)).finish()
    assert (reading.names, reading.metrics.input.refused) == (names(1), 0)  # it was counted before
    assert read_messages(broker, letters) == []


def read_messages(broker, topic):
    """All messages of a topic with one partition."""
    number = len(read_topic(broker, topic))
    consumer = kafka.Consumer({"bootstrap.servers": broker, "group.id": "letters"})
    consumer.assign([kafka.TopicPartition(topic, 0, 0)])
    found = [consumer.poll(10) for _ in range(number)]
    consumer.close()
    return found


@pytest.mark.parametrize("bad", [b"hello", NO_TIME], ids=["text", "no-time"])
def test_without_a_dead_letter_topic_a_bad_message_fails_the_run_or_is_counted(broker, topic, bad):
    send(broker, topic, [line(1), bad, line(2)])
    place = f"topic `{topic}`, partition 0, offset 1: "
    with pytest.raises(RecordError, match=re.escape(place) + ".*--dead_letter_topic"):
        Collector(make(broker, topic, group_id=f"{topic}-1")).finish()
    reading = Collector(make(broker, topic, bad_record="skip")).finish()
    assert reading.names == names(1, 2)
    assert reading.metrics.input.refused == 1


def test_a_header_becomes_a_column_of_every_record_of_its_message(broker, topic):
    send(broker, topic, forms("ann")["an envelope"], headers=[("tenant-id", b'a"b')])
    send(broker, topic, [line(4)], headers=[("other", b"x")])
    source = make(broker, topic, header_column=("tenant-id=tenant", "region"))
    frame = pl.concat(Collector(source).finish().frames)
    assert frame["tenant"].to_list() == ['a"b', 'a"b', 'a"b', None]
    assert "tenant" in source.describe_log().paths or frame["region"].null_count() == 4
    with pytest.raises(UsageError, match="--header_column: `eventName` is a column of CloudTrail"):
        make(broker, topic, header_column=("eventName",))
    with pytest.raises(UsageError, match="--header_column: `=tenant` names no header"):
        make(broker, topic, header_column=("=tenant",))


def test_a_field_of_a_record_does_not_replace_the_header_of_its_name(broker, topic):
    records = [json.dumps(event(number) | {"tenant": "of the record"}) for number in (1, 2, 3)]
    send(broker, topic, [records[0].encode()], headers=[("tenant", b"of the header")])
    send(broker, topic, [records[1].encode()], headers=[("other", b"x")])
    send(broker, topic, [f"[{records[2]} , {{}}]".encode()])
    source = make(broker, topic, header_column=("tenant",), bad_record="skip")
    frame = pl.concat(Collector(source).finish().frames)
    assert frame["tenant"].to_list() == ["of the header", None, None]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (("Content-Type", b"application/avro"), "the content type is 'application/avro'"),
        (("content-encoding", b"br"), "the content encoding is 'br'"),
    ],
)
def test_a_message_whose_headers_name_another_encoding_is_not_read(header, reason):
    decoder = MessageDecoder(make_log_format())
    with pytest.raises(from_kafka.UnreadableMessageError, match=reason):
        decoder.decode(line(1), [header])
    fine = [("content-type", b"application/json; charset=utf-8"), ("content-encoding", b"gzip")]
    assert decoder.decode(line(1), fine) == [line(1)]


def make_log_format() -> LogFormat:
    from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT  # noqa: PLC0415 - used once

    return CLOUDTRAIL_FORMAT


def test_a_message_that_unpacks_to_too_much_is_refused_and_takes_no_memory():
    bomb = gzip.compress(b" " * (1 << 26))
    with pytest.raises(from_kafka.UnreadableMessageError, match="more than 32 MiB after"):
        MessageDecoder(make_log_format()).decode(bomb, [])


def test_a_warning_about_events_names_the_topic_and_no_user_is_missed_in_one_batch(
    broker, topic, caplog
):
    send(broker, topic, [line(1, ""), NO_TIME])
    stage = make(broker, topic, bad_record="skip", batch_messages=1)
    Collector(replace(stage, options=replace(stage.options, userid_filter=("zoe",)))).finish()
    assert f"topic `{topic}`: no event has a `userIdentityuserName`" in caplog.text
    assert f"topic `{topic}`: the only record was rejected" in caplog.text
    assert "zoe" not in caplog.text, "she may come later"


def test_the_offsets_of_the_checkpoint_count_more_than_those_of_the_group(broker, topic):
    send(broker, topic, [line(n) for n in range(6)])
    first = Collector(make(broker, topic, group_id=topic)).finish()
    assert (first.names, first.offsets) == (names(*range(6)), {f"{topic}/0": b"6"})
    again = Collector(make(broker, topic, group_id=topic), {f"{topic}/0": b"4"}).finish()
    assert again.names == names(4, 5)
    assert committed(broker, topic) == 6


def test_without_a_checkpoint_a_run_continues_where_the_group_has_committed(broker, topic):
    send(broker, topic, [line(n) for n in range(6)])
    first = Collector(make(broker, topic, group_id=topic, until_end=False, stop_after=4)).finish()
    assert first.names == names(0, 1, 2, 3)
    assert committed(broker, topic) == 4
    assert Collector(make(broker, topic, group_id=topic)).finish().names == names(4, 5)


def test_offsets_are_committed_only_when_a_micro_batch_is_acknowledged(broker, topic):
    send(broker, topic, [line(1)])
    stream = make(broker, topic, group_id=topic).micro_batches(None, RunMetrics(), {})
    acknowledge = [each.acknowledge for each in stream if each.acknowledge]
    assert committed(broker, topic) < 0
    for each in acknowledge:  # the source has ended, and is still part of the group
        each()
    assert committed(broker, topic) == 1


def committed(broker, group, topic=None):
    consumer = kafka.Consumer({"bootstrap.servers": broker, "group.id": group})
    [place] = consumer.committed([kafka.TopicPartition(topic or group, 0)], timeout=10)
    consumer.close()
    return place.offset


def test_a_source_without_messages_gives_empty_micro_batches_and_a_few_messages_do_not_wait(
    broker, topic
):
    reading = Collector(make(broker, topic, until_end=False, batch_messages=1000))
    steps = iter(reading)
    for _ in range(3):
        next(steps)
    assert (reading.names, reading.empty, reading.offsets) == ([], 3, {})
    send(broker, topic, [line(1)])
    while not reading.names:
        next(steps)
    assert reading.names == names(1)
    reading.close()


def test_messages_that_came_while_a_batch_was_processed_do_not_wait_for_more(
    broker, topic, monkeypatch
):
    send(broker, topic, [line(1), line(2)])
    monkeypatch.setattr(from_kafka, "_FIRST_MESSAGES", 1)
    reading = Collector(make(broker, topic, until_end=False, batch_timeout=3600.0))
    steps, clock = iter(reading), time.monotonic
    while not reading.names:
        next(steps)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3601)  # it was processed for an hour
    while len(reading.names) < 2:
        next(steps)
    assert reading.names == names(1, 2)
    reading.close()


def test_a_batch_is_cut_by_its_size_after_decompression(broker, topic, monkeypatch):
    monkeypatch.setattr(from_kafka, "_MAX_BATCH_BYTES", 100_000)
    blank = b" " * 60_000
    send(broker, topic, [gzip.compress(line(n)[:-1] + blank + b"}") for n in range(10)])
    reading = Collector(make(broker, topic))
    sizes = [int(each.offsets.get(f"{topic}/0", b"0")) for each in reading]
    assert reading.names == names(*range(10))
    assert sizes[-5:] == [2, 4, 6, 8, 10]


def test_a_batch_has_at_most_the_given_number_of_messages(broker, topic):
    send(broker, topic, [line(n) for n in range(10)])
    reading = Collector(make(broker, topic, batch_messages=4)).finish()
    assert all(frame.height <= 4 for frame in reading.frames)
    assert reading.names == names(*range(10))


def test_a_batch_waits_for_more_messages_until_it_is_full(broker, topic):
    send(broker, topic, [line(n) for n in range(10)])
    stage = make(broker, topic, batch_messages=4, batch_timeout=60.0, stop_after=8, until_end=False)
    assert [frame.height for frame in Collector(stage).finish().frames] == [4, 4]


def test_auto_offset_reset_decides_where_a_new_group_begins(broker, topic):
    send(broker, topic, [line(1)])
    assert (
        Collector(make(broker, topic, group_id="new", auto_offset_reset="latest")).finish().names
        == []
    )
    with pytest.raises(
        UsageError, match="--auto_offset_reset=none: neither the state nor the group"
    ):
        Collector(make(broker, topic, group_id="newer", auto_offset_reset="none")).finish()


def test_no_message_that_comes_after_the_start_is_passed_over_with_latest(broker, topic):
    latest = {"auto_offset_reset": "latest", "group_id": topic}
    send(broker, topic, [line(1)])
    first = Collector(make(broker, topic, **latest)).finish()
    send(broker, topic, [line(2)])  # while no process runs
    refresh = ("topic.metadata.refresh.interval.ms=500",)
    stage = make(broker, topic, **latest, until_end=False, kafka_option=refresh)
    for offsets in (first.offsets, {}):  # those of a state file, or only those of the group
        reading = Collector(replace(stage, disable_commit=True), offsets)
        assert any(each.names == names(2) for each in islice(reading, 5))
        reading.close()
    steps = iter(reading := Collector(stage, first.offsets))
    list(islice(steps, 3))
    grow(broker, topic, partitions=3)
    send(broker, topic, [line(3)], partition=2)  # before the process knows the partition
    assert any(each.names == names(2, 3) for each in islice(steps, 20))
    reading.close()


def test_a_topic_that_was_made_anew_is_read_from_its_start(broker, topic, caplog):
    send(broker, topic, [line(n) for n in range(3)])
    with caplog.at_level(logging.WARNING):
        reading = Collector(make(broker, topic), {f"{topic}/0": b"17"}).finish()
    assert reading.names == names(0, 1, 2)
    assert f"{topic}/0 ends at offset 3, and was read up to 17" in caplog.text


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_topic_that_is_made_anew_while_it_is_read_is_read_from_its_start(
    broker, topic, caplog, strategy
):
    send(broker, topic, [line(n) for n in range(5)])
    send(broker, topic, [line(9)], partition=1)
    strategy = f"partition.assignment.strategy={strategy}"
    reading = Collector(make(broker, topic, until_end=False, kafka_option=(strategy,)))
    steps = iter(reading)
    assert any(len(each.names) == 6 for each in islice(steps, 10))
    delete(broker, topic)
    create(broker, topic)
    send(broker, topic, [line(10), line(11)])
    assert any(each.names[6:] == names(10, 11) for each in islice(steps, 20))
    assert f"{topic}/0 ends at offset 2, and was read up to 5" in caplog.text
    assert reading.offsets[f"{topic}/0"] == b"2"
    reading.close()


def test_several_topics_of_a_log_are_read_together(broker, topic):
    other = f"{topic}-2"
    create(broker, other)
    send(broker, topic, [line(1)])
    send(broker, other, [line(2)], partition=1)
    reading = Collector(make(broker, (topic, other))).finish()
    assert sorted(reading.names) == names(1, 2)
    assert reading.offsets == {f"{topic}/0": b"1", f"{other}/1": b"1"}


def test_a_second_process_of_the_group_takes_partitions_and_no_message_is_left_out(
    broker, topic, caplog, monkeypatch
):
    monkeypatch.setattr(from_kafka, "_TICK", 0.1)
    # The test broker does not always finish a cooperative rebalance.
    strategy = "partition.assignment.strategy=range"
    values = {"group_id": topic, "until_end": False, "kafka_option": (strategy,)}
    one = Collector(make(broker, topic, **values))
    first = iter(one)
    send(broker, topic, [line(1)], partition=0)
    send(broker, topic, [line(2)], partition=1)
    while len(one.names) < 2:
        next(first)
    two = Collector(make(broker, topic, **values))
    second = iter(two)
    next(second)
    with caplog.at_level(logging.WARNING):
        share(first, second, one, two)
    for partition in (0, 1):
        send(broker, topic, [line(3 + partition)], partition=partition)
    deadline = time.monotonic() + 20
    while len(one.names + two.names) < 4 and time.monotonic() < deadline:
        next(first)
        next(second)
    one.close()
    two.close()
    assert sorted(one.names + two.names) == names(1, 2, 3, 4)
    assert len(two.names) == 1
    assert "this process gave back" in caplog.text
    assert sorted(one.offsets.values()) == [b"", b"2"]  # what another process has is forgotten


def test_two_processes_with_the_same_instance_id_are_an_error_of_the_first(broker, topic):
    values = {"group_id": topic, "until_end": False, "instance_id": "same"}
    first = iter(Collector(make(broker, topic, **values)))
    list(islice(first, 3))
    two = Collector(make(broker, topic, **values))
    list(islice(two, 3))
    with pytest.raises(UsageError, match=r"another process of the group .* has the id `same`"):
        list(islice(first, 20))
    two.close()


def share(first, second, one, two):
    """Let two processes go on until each has a partition."""
    deadline = time.monotonic() + 30
    while b"" not in one.offsets.values():
        assert time.monotonic() < deadline, "no rebalance"
        next(first)
        next(second)
    assert two.names == []


def test_an_unknown_topic_is_an_error_with_similar_names(broker, topic):
    with pytest.raises(
        UsageError, match=rf"--input_topic: there is no topic `{topic}x`.*`{topic}`"
    ):
        Collector(make(broker, f"{topic}x")).finish()
    with pytest.raises(UsageError, match="--dead_letter_topic: there is no topic `nowhere-at-all`"):
        Collector(make(broker, topic, dead_letter_topic="nowhere-at-all")).finish()


def test_a_topic_that_is_deleted_ends_the_run_with_its_name(broker, topic):
    reading = Collector(
        make(
            broker,
            topic,
            until_end=False,
            kafka_option=(
                "topic.metadata.refresh.interval.ms=500",
                "topic.metadata.propagation.max.ms=100",
            ),
        )
    )
    steps = iter(reading)
    for _ in range(3):
        next(steps)
    delete(broker, topic)
    with pytest.raises(TransientError, match=f"the topic `{topic}` is gone from"):
        list(islice(steps, 40))


def test_without_a_broker_a_run_that_ends_fails_with_the_address_and_the_reason(monkeypatch):
    monkeypatch.setattr(from_kafka, "_START_TIMEOUT", 0.5)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        TransientError, match=f"no broker at `{address}` answers: .*Connect.*refused"
    ):
        Collector(make(address, "trail")).finish()


@pytest.mark.parametrize("changelog", [None, "states"])
def test_a_stream_that_starts_before_its_broker_waits_for_it_and_reads_all(
    broker, topic, monkeypatch, caplog, changelog
):
    monkeypatch.setattr(from_kafka, "_START_TIMEOUT", 0.5)
    monkeypatch.setattr(from_kafka, "_FIRST_WAIT", 0.5)
    send(broker, topic, [line(1), line(2)])
    port = free_port()
    stage = make(f"127.0.0.1:{port}", topic, until_end=False)
    reading = Collector(replace(stage, changelog_topic=changelog and f"{topic}-{changelog}"))
    steps = iter(reading)
    list(islice(steps, 3))
    expected = f"no broker at `127.0.0.1:{port}` answers: .*refused.*Trying again until one does"
    assert len(re.findall(expected, caplog.text)) == 1
    with forwarding(port, int(broker.partition(":")[2])):
        while sorted(reading.names) != names(1, 2):
            next(steps)
    reading.close()
    assert "the broker answers again" in caplog.text


def test_a_stream_that_waits_for_its_broker_rejects_an_unknown_topic_when_it_answers(
    broker, topic, monkeypatch
):
    monkeypatch.setattr(from_kafka, "_FIRST_WAIT", 0.5)
    port = free_port()
    steps = iter(Collector(make(f"127.0.0.1:{port}", f"{topic}x", until_end=False)))
    next(steps)
    with (
        forwarding(port, int(broker.partition(":")[2])),
        pytest.raises(UsageError, match=f"there is no topic `{topic}x`"),
    ):
        list(islice(steps, 30))


def test_a_stream_waits_for_no_broker_that_has_denied_its_sign_in(tmp_path):
    with listening(tls=make_certificate(tmp_path)[0]) as listener:
        address = f"localhost:{listener.port}"
        stage = make(address, "trail", until_end=False, kafka_option=("security.protocol=ssl",))
        start = time.monotonic()
        with pytest.raises(UsageError, match=r"does not accept the sign-in: .*certificate"):
            Collector(stage).finish()
        assert time.monotonic() - start < 5


def test_a_broker_that_goes_away_and_comes_back_does_not_end_the_run(caplog):
    caplog.set_level(logging.WARNING)
    with noida("kafka") as port:
        address = f"127.0.0.1:{port}"
        create(address, "trail")
        reading = Collector(make(address, "trail", until_end=False))
        steps = iter(reading)
        for _ in range(3):
            next(steps)
    while "Trying again until one does" not in caplog.text:
        next(steps)
    reading.close()


SETTINGS = {
    "security.protocol=SASL_PLAINTEXT": "",
    "sasl.password=s3cret": "other users of the machine can read `sasl.password`.*"
    "MORPHEUS_KAFKA_SASL_PASSWORD",
    "ssl.key.password=s3cret": "MORPHEUS_KAFKA_SSL_KEY_PASSWORD",
    "novalue": "--kafka_option: `novalue` has no value",
    "ssl.key.location=/etc/key.pem": "",
    "sasl.oauthbearer.token.endpoint.url=https://idp": "",
    "no.such=1": 'the client rejects its settings: No such configuration property: "no.such"',
    "group.id=x": "the setting `group.id` is not free. Give --group_id",
    "enable.auto.commit=true": "the setting `enable.auto.commit` is not free. Leave it out",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_of_the_client_is_passed_on_or_rejected_with_what_to_type(broker, topic, text):
    reason = SETTINGS[text]
    if not reason:
        source = make(broker, topic, kafka_option=(text,))
        name, _, value = text.partition("=")
        assert source.make_settings()[name] == value
        return
    with pytest.raises(UsageError, match=reason) as error:
        Collector(make(broker, topic, kafka_option=(text,))).finish()
    assert "s3cret" not in str(error.value)


def test_settings_come_from_a_file_the_environment_and_options_and_no_secret_is_shown(
    broker, topic, tmp_path, monkeypatch
):
    file = tmp_path / "client.properties"
    file.write_text("# ours\nsasl.username = ann\nsasl.password=s3cret\nfetch.min.bytes=1\n")
    monkeypatch.setenv("MORPHEUS_KAFKA_FETCH_MIN_BYTES", "2")
    source = make(broker, topic, kafka_config_file=str(file))
    settings = source.make_settings()
    assert settings["sasl.password"] == "s3cret"
    assert (settings["sasl.username"], settings["fetch.min.bytes"]) == ("ann", "2")
    assert "s3cret" not in repr(source)
    file.write_text("sasl.password s3cret\n")
    with pytest.raises(UsageError, match="line 1: there is no `=`") as error:
        read_settings_file(str(file))
    assert "s3cret" not in str(error.value)
    with pytest.raises(UsageError, match=r"`.*none\.properties` cannot be read: No such file"):
        make(broker, topic, kafka_config_file=str(tmp_path / "none.properties"))


def test_a_sign_in_that_fails_is_an_error_without_the_secret(broker, topic, monkeypatch, caplog):
    monkeypatch.setattr(from_kafka, "_START_TIMEOUT", 1.0)
    monkeypatch.setenv("MORPHEUS_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("MORPHEUS_KAFKA_SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("MORPHEUS_KAFKA_SASL_USERNAME", "ann")
    monkeypatch.setenv("MORPHEUS_KAFKA_SASL_PASSWORD", "s3cret")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TransientError, match=r"SSL (handshake failed|connection closed)") as error:
        Collector(make(broker, topic)).finish()
    assert "s3cret" not in str(error.value) + caplog.text


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"log_format": "cloudtrial"}, "there is no kind of log `cloudtrial`. Did you mean"),
        ({"log_format": ""}, "the kind of log is not known. Give --log_format"),
        ({"dead_letter_topic": "trail"}, "--dead_letter_topic: `trail` is also an --input_topic"),
        ({"stop_after": 3}, "--until_end and --stop_after"),
        ({"changelog_topic": "states"}, "--changelog_topic: needs a state file.*--state="),
    ],
)
def test_options_that_contradict_each_other_are_rejected(values, reason):
    with pytest.raises(UsageError, match=reason):
        make("127.0.0.1:1", "trail", **values)


def test_an_age_of_states_is_rejected_with_a_changelog_that_would_keep_them():
    stage = make("127.0.0.1:1", "trail")
    options = replace(stage.options, state="state.db", state_max_age="90d")
    with pytest.raises(UsageError, match="keeps the states that --state_max_age removes"):
        replace(stage, options=options, changelog_topic="states").validate()


@pytest.mark.parametrize("columns", [(), ("@identity",)])
def test_the_state_file_has_messages_only_if_there_are_no_pseudonyms(
    broker, topic, tmp_path, columns
):
    send(broker, topic, [line(1)])
    key = tmp_path / "morpheus.key"
    morpheus.main(["tools", "pseudonym-key", str(key)], standalone_mode=False)
    stage = make(broker, topic)
    options = replace(stage.options, state=str(tmp_path / "state.db"), pseudonymize=columns)
    options = replace(options, pseudonym_key_file=str(key) if columns else None)
    stream = replace(stage, options=options).micro_batches(None, RunMetrics(), {})
    kept = [each.journal for each in stream if each.journal is not None]
    assert bool(kept) == (not columns)


def test_events_of_a_partition_wait_for_those_of_another_one_that_has_messages(broker, topic):
    create(broker, f"{topic}-2", partitions=3)
    send(broker, f"{topic}-2", [line(1)], partition=0)
    send(broker, f"{topic}-2", [line(2)], partition=2)
    stage, metrics = make(broker, f"{topic}-2", batch_messages=1), RunMetrics()
    metrics.lateness = LatenessBuffer(timedelta(minutes=10))
    stream = stage.micro_batches(None, metrics, {})
    while not metrics.lateness.state.latest:
        next(stream)
    stream.close()
    assert sorted(metrics.lateness.state.latest) == [f"{topic}-2/0", f"{topic}-2/2"]


def test_a_schema_reads_any_log(broker, topic):
    sign_in = {
        "published": "2024-05-01T10:00:00.000Z",
        "uuid": "1",
        "eventType": "user.session.start",
        "actor": {"alternateId": "ann@example.com", "type": "User"},
    }
    send(broker, topic, [json.dumps(sign_in).encode()])
    values = {"bootstrap_servers": broker, "input_topic": topic, "until_end": True}
    stage = FromKafka(log_format="okta", group_id="a-schema", **values)
    stage = replace(stage, options=stage.with_defaults(PipelineOptions(unbounded=True)))
    [frame] = Collector(stage).finish().frames
    assert frame["eventType"].to_list() == ["user.session.start"]
    by_file = FromKafka(group_id="another-schema", **values)
    by_file = replace(
        by_file,
        options=by_file.with_defaults(PipelineOptions(columns_file="okta.toml", unbounded=True)),
    )
    assert Collector(by_file).finish().frames[0].equals(frame)


def test_the_page_reads_a_topic_and_a_second_run_goes_on(broker, tmp_path, warm_morpheus):
    folder = copy_examples(tmp_path)
    address = {"kafka.example.com:9092": broker}
    page = ROOT / "docs" / "kafka.md"
    for command in re.findall(r"^python (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = command.replace(*next(iter(address.items()))).split()
        subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    output = run_page(page, folder, warm_morpheus, address)
    assert "Input     1,104 events\n" in output
    rows = pl.read_csv(folder / "scores.csv", infer_schema=False)
    assert rows.height == 1104
    assert committed_total(broker, "morpheus", "trail") == 1104


def committed_total(broker, group, topic):
    consumer = kafka.Consumer({"bootstrap.servers": broker, "group.id": group})
    places = [kafka.TopicPartition(topic, number) for number in range(4)]
    found = sum(place.offset for place in consumer.committed(places, timeout=10))
    consumer.close()
    return found


def make_changelog(broker, topic, config="ours"):
    log = from_kafka.ClientLogger(logging.getLogger("test"))
    return KafkaChangelog(topic, {"bootstrap.servers": broker}, "group", config, log)


def group_of(*users, offset):
    group = StateGroup(offsets={"trail/0": b"%d" % offset})
    group.places = dict.fromkeys(users, "trail/0")
    group.save({StateKey("add-scores#1", user): f"{user} {offset}".encode() for user in users})
    return group


def test_a_changelog_gives_the_latest_states_and_their_offset_to_the_next_owner(broker, topic):
    states = f"{topic}-states"
    one, two = make_changelog(broker, states), make_changelog(broker, states)
    one.create(2)
    assert one.open("trail/0", 0) == ({}, None)
    assert one.write(group_of("ann", "bob", offset=5))
    assert one.write(group_of("bob", offset=9))
    found, offset = two.open("trail/0", 0)
    assert offset == 9
    assert {key.user: data for key, data in found.items()} == {"ann": b"ann 5", "bob": b"bob 9"}
    assert two.write(group_of("ann", offset=12))


def test_a_takeover_waits_for_brokers_that_do_not_answer(broker, topic):
    states, port = f"{topic}-states", free_port()
    make_changelog(broker, states).create(1)
    one = make_changelog(broker, states)
    one.open("trail/0", 0)
    one.write(group_of("ann", offset=5))
    with ExitStack() as stack:

        def start_broker(seconds):
            assert seconds > 0
            if not waits:
                stack.enter_context(forwarding(port, int(broker.partition(":")[2])))
            waits.append(seconds)

        waits = []
        two = make_changelog(f"127.0.0.1:{port}", states)
        assert two.open("trail/0", 0, start_broker)[1] == 5
        assert waits

    def interrupt(_seconds):
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make_changelog(f"127.0.0.1:{free_port()}", states).open("trail/0", 0, interrupt)
    assert time.monotonic() - begun < 10


def test_a_partition_that_the_changelog_does_not_have_is_an_error(broker, topic):
    make_changelog(broker, f"{topic}-states").create(1)
    with pytest.raises(
        TransientError, match=f"`{topic}-states` cannot be read: there is no partition 1"
    ):
        make_changelog(broker, f"{topic}-states").open("trail/1", 1)
    delete(broker, f"{topic}-states")
    with pytest.raises(TransientError, match="cannot be read: Broker: Unknown topic"):
        make_changelog(broker, f"{topic}-states").open("trail/0", 0)


def erase(broker, topic, *words):
    options = [f"--changelog_topic={topic}", f"--bootstrap_servers={broker}"]
    return CliRunner().invoke(morpheus, ["tools", "erase", *options, *words])


def test_states_of_an_erased_user_are_gone_for_the_next_owner(broker, topic):
    states = f"{topic}-states"
    one = make_changelog(broker, states)
    one.create(2)
    one.open("trail/0", 0)
    assert one.write(group_of("ann", "bob", offset=5))
    one.close("trail/0")
    listed = erase(broker, states, "ann")
    assert (listed.exit_code, "state of ann" in listed.output) == (0, True), listed.output
    assert "Found 1 item. Nothing was removed" in listed.output
    assert len(make_changelog(broker, states).find_states()) == 2
    removed = erase(broker, states, "ann", "--delete")
    assert (removed.exit_code, "Removed 1 item" in removed.output) == (0, True), removed.output
    assert "when it compacts the topic" in removed.output
    again = erase(broker, states, "an", "ann")
    assert "Nothing found." in again.output, again.output
    found, offset = make_changelog(broker, states).open("trail/0", 0)
    assert {key.user for key in found} == {"bob"}
    assert offset == 5, "the input is not read again"


def test_reset_removes_the_states_of_a_stage_or_a_user_from_the_file_and_the_topic(
    broker, topic, tmp_path
):
    states, file = f"{topic}-states", tmp_path / "state.db"
    one = make_changelog(broker, states)
    one.create(2)
    one.open("trail/0", 0)
    group = group_of("ann", "bob", "cid", offset=5)
    group.save({StateKey("explain#1", "ann"): b"why"})
    assert one.write(group)
    one.close("trail/0")
    with closing(SqliteStateStore(file, {})) as store:
        store.save({StateKey("add-scores#1", "ann"): b"old"})
        store.note_changelog(states)
        store.commit()

    def reset(*words):
        options = [f"--changelog_topic={states}", f"--bootstrap_servers={broker}"]
        done = CliRunner().invoke(morpheus, ["state", "reset", str(file), *options, *words])
        assert done.exit_code == 0, done.output
        left = {(each.key.stage, each.key.user) for each in one.find_states()}
        return done.output, left

    assert "Found 3 states. Nothing" in reset("--user=ann")[0]
    output, left = reset("--stage=explain", "--delete")
    assert "Removed 1 state." in output
    assert left == {("add-scores#1", user) for user in ("ann", "bob", "cid")}
    output, left = reset("--user=ann", "--user=bob", "--delete")
    assert "Removed 3 states." in output
    assert left == {("add-scores#1", "cid")}
    with closing(StateReader(file)) as reader:
        assert not reader.read_sizes()


@pytest.mark.parametrize(
    ("named", "servers", "expected"),
    [
        ("other", None, (2, "there is no topic `other` at")),
        ("", None, (2, "has other records than states of users")),
        ("", "127.0.0.1:9", (1, "no broker at `127.0.0.1:9` answers")),
        ("", "", (2, "--changelog_topic and --bootstrap_servers together")),
    ],
    ids=["missing", "log", "dead", "nowhere"],
)
def test_what_is_no_topic_of_states_is_rejected_when_users_are_erased(
    broker, topic, named, servers, expected
):
    send(broker, topic, [line(1)])
    result = erase(broker if servers is None else servers, named or topic, "ann")
    code, text = expected
    assert (result.exit_code, text in result.output) == (code, True), result.output


def test_a_process_that_has_lost_a_partition_writes_no_states(broker, topic, caplog):
    states = f"{topic}-states"
    one, two = make_changelog(broker, states), make_changelog(broker, states)
    one.create(1)
    one.open("trail/0", 0)
    two.open("trail/0", 0)
    assert two.write(group_of("ann", offset=7))
    with caplog.at_level(logging.WARNING):
        assert one.write(group_of("ann", offset=5))  # there is nothing to try again
    assert "another process has taken over trail/0" in caplog.text
    assert make_changelog(broker, states).open("trail/0", 0)[1] == 7


def test_a_changelog_of_another_pipeline_or_with_too_few_partitions_is_rejected(broker, topic):
    one = make_changelog(broker, f"{topic}-states")
    one.create(1)
    one.open("trail/0", 0)
    one.write(group_of("ann", offset=5))
    with pytest.raises(UsageError, match="has states of another pipeline: ours, not others"):
        make_changelog(broker, f"{topic}-states", "others").open("trail/0", 0)
    with pytest.raises(UsageError, match="has 1 partitions, and the input has 4"):
        one.create(4)


def test_processes_that_start_at_once_share_a_new_changelog(broker, topic):
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(make_changelog(broker, f"{topic}-states").create, 2) for _ in range(8)]
    for each in made:
        each.result()


def test_an_input_that_gets_more_partitions_than_the_changelog_ends_the_run(broker, topic):
    send(broker, topic, [line(1)])
    refresh = ("topic.metadata.refresh.interval.ms=500",)
    stage = make(broker, topic, until_end=False, kafka_option=refresh)
    steps = iter(Collector(replace(stage, changelog_topic=f"{topic}-states")))
    next(steps)
    grow(broker, topic, partitions=3)
    with pytest.raises(UsageError, match="-states` has 2 partitions, and the input has 3"):
        list(islice(steps, 60))  # a second each


PIPELINE = shlex.split("""
--log_level=INFO run --num_threads=1 pipeline-ae --state={state} --checkpoint_interval={interval}
--userid_column_name=userIdentityuserName --columns_file={columns}
from-kafka --bootstrap_servers={broker} --input_topic={topic} --group_id={topic}
--log_format=cloudtrail --batch_messages=20 --batch_timeout=0 {more}
train-ae --pretrained_filename={models} preprocess inf-pytorch
add-scores --label=ae_anomaly_score --label=risk serialize
to-kafka --bootstrap_servers={broker} --output_topic={topic}-rows
""")
USERS = ("ann", "bob", "cid", "dot")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Fingerprints of four users, and the folder with the feature list."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "columns.txt").write_text("eventName\nsourceIPAddress\nlogcount\n")
    days = [
        event(number, user)
        | {"eventName": f"Get{number % 40}", "eventTime": f"2024-04-{day:02}T09:00:00Z"}
        for number, day in zip(range(400), cycle(range(1, 31)), strict=False)
        for user in USERS
    ]
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, days)))
    words = shlex.split(f"""
run --num_threads=1 pipeline-ae --userid_column_name=userIdentityuserName
--columns_file={folder}/columns.txt from-cloudtrail --input_glob={folder}/history.jsonl
train-ae --train_data_glob={folder}/history.jsonl --train_epochs=1 --seed=1
--models_output_filename={folder}/models preprocess inf-pytorch add-scores serialize
to-file --filename={folder}/out.csv
""")
    morpheus.main(words, standalone_mode=False)
    return folder


def start(broker, topic, models, state, *more, interval=1):
    """Start a run in a process of its own."""
    places = {
        "broker": broker,
        "topic": topic,
        "state": str(state),
        "models": f"{models}/models",
        "columns": f"{models}/columns.txt",
        "more": " ".join(more),
        "interval": interval,
    }
    words = shlex.split(" ".join(PIPELINE).format(**places))
    with state.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "morpheus", *words], stdout=log, stderr=subprocess.STDOUT
        )


def send_users(broker, topic, numbers):
    for at, user in enumerate(USERS):
        send(broker, topic, [line(number, user) for number in numbers], partition=at % 2)


def rows_by_id(broker, topic):
    """The rows of a topic by id, without the column of the place in the batch; equal repeats."""
    found = {}
    for text in read_topic(broker, f"{topic}-rows"):
        row = json.loads(text)
        row.pop("_index_", None)
        assert found.setdefault(row["row_id"], row) == row, "a repeat differs"
    return found


def finish(process, state, code=0):
    assert process.wait(60) == code, state.with_suffix(".log").read_text()


def wait_for_rows(broker, topic, number, process):
    deadline = time.monotonic() + 60
    while len(read_topic(broker, f"{topic}-rows")) < number:
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "no rows"
        time.sleep(0.5)


def wait_for_log(state, text):
    deadline = time.monotonic() + 60
    while text not in state.with_suffix(".log").read_text():
        assert time.monotonic() < deadline, state.with_suffix(".log").read_text()
        time.sleep(0.1)


def stop(process, state):
    process.send_signal(signal.SIGTERM)
    finish(process, state, EXIT_INTERRUPTED)


def test_partitions_that_move_and_a_killed_process_do_not_change_the_rows(
    broker, topic, models, tmp_path
):
    create(broker, f"{topic}-rows", f"{topic}-2", f"{topic}-2-rows")
    send_users(broker, f"{topic}-2", range(200))
    paths = {name: tmp_path / f"{name}.db" for name in ("alone", "one", "two", "again")}
    alone = start(broker, f"{topic}-2", models, paths["alone"], "--until_end")
    # The test broker does not always finish a cooperative rebalance.
    log = f"--changelog_topic={topic}-states --kafka_option=partition.assignment.strategy=range"
    one = start(broker, topic, models, paths["one"], log, "--instance_id=one")
    send_users(broker, topic, range(60))
    wait_for_rows(broker, topic, 120, one)
    two = start(broker, topic, models, paths["two"], log, "--instance_id=two")
    wait_for_log(paths["two"], f"users of {topic}/")  # it gets one of two partitions
    send_users(broker, topic, range(60, 120))
    wait_for_rows(broker, topic, 360, one)
    one.kill()
    one.wait()
    # Another machine: it has no state file, and takes the place of the killed one in the group.
    again = start(broker, topic, models, paths["again"], log, "--instance_id=one")
    send_users(broker, topic, range(120, 200))
    finish(alone, paths["alone"])
    expected, deadline = rows_by_id(broker, f"{topic}-2"), time.monotonic() + 60
    assert len(expected) == 200 * len(USERS)
    while len(found := rows_by_id(broker, topic)) < len(expected):
        assert time.monotonic() < deadline, paths["again"].with_suffix(".log").read_text()
        time.sleep(0.2)
    stop(again, paths["again"])
    stop(two, paths["two"])
    assert found == expected


def test_a_run_that_was_rejected_leaves_nothing_that_stops_the_corrected_command(
    broker, topic, models, tmp_path
):
    words = """
--log_level=INFO run --num_threads=1 pipeline-ae --state={state} --columns_file={columns}
--userid_column_name=userIdentityuserName from-kafka --bootstrap_servers={broker}
--input_topic={topic} --group_id={topic} --log_format=cloudtrail --until_end
train-ae --pretrained_filename={models} preprocess inf-pytorch add-scores serialize
to-file --filename={output}
"""
    send_users(broker, topic, range(3))
    places = {"state": tmp_path / "state.db", "columns": models / "columns.txt", "broker": broker}
    places |= {"models": models / "models", "output": tmp_path / "out.csv"}
    for name, code in ((f"{topic}-wrong", 2), (topic, 0)):
        command = shlex.split(words.format(topic=name, **places))
        done = subprocess.run([sys.executable, "-m", "morpheus", *command], check=False)
        assert done.returncode == code
    assert pl.read_csv(tmp_path / "out.csv").height == 3 * len(USERS)


def load_states(path):
    with closing(sqlite3.connect(path)) as database:
        query = (
            "SELECT stage, user, data FROM states UNION ALL SELECT stage, user, data FROM parts "
            "ORDER BY 2, 1"
        )
        return database.execute(query).fetchall()


def count_journal(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT COUNT(*) FROM journal").fetchone()[0]


@pytest.mark.parametrize("is_sorted", [True, False])
def test_rows_do_not_wait_for_the_states_and_a_killed_process_repeats_none_in_another_form(
    broker, topic, models, tmp_path, is_sorted
):
    create(broker, f"{topic}-rows", f"{topic}-2", f"{topic}-2-rows")
    numbers = list(range(120))
    if not is_sorted:  # the row number of an event depends on where the input is cut
        random.Random(1).shuffle(numbers)  # noqa: S311 - a seed, no secret
    state = tmp_path / "state.db"
    for at in range(0, 120, 40):
        process = start(broker, topic, models, state, "--instance_id=one", interval=1000)
        send_users(broker, topic, numbers[at : at + 40])
        deadline = time.monotonic() + 60
        while len(found := rows_by_id(broker, topic)) < (at + 40) * len(USERS):
            assert time.monotonic() < deadline, state.with_suffix(".log").read_text()
            time.sleep(0.5)
        if at < 80:
            process.kill()
            process.wait()
            assert count_journal(state)
    stop(process, state)
    assert not count_journal(state)
    summary = state.with_suffix(".log").read_text()  # events of the journal were counted before
    assert re.search(r"Input +160 events\n", summary), summary
    assert re.search(r"Written +160 events", summary), summary
    events = {(row["userIdentityuserName"], row["eventName"]) for row in found.values()}
    assert len(found) == len(events) == 120 * len(USERS)
    if is_sorted:
        send_users(broker, f"{topic}-2", numbers)
        alone = start(broker, f"{topic}-2", models, tmp_path / "alone.db", "--until_end")
        finish(alone, tmp_path / "alone.db")
        assert found == rows_by_id(broker, f"{topic}-2")
        assert load_states(state) == load_states(tmp_path / "alone.db")
