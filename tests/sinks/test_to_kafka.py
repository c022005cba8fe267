"""Events to a real broker: all are acknowledged, or the run fails with counts."""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from morpheus.columns import ROW
from morpheus.core.batch import OutputRows, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.to_kafka import KafkaTransport, ToKafka
from morpheus.testing import run_stage
from schema_check import ocsf_faults
from services.noida import free_port, noida
from strange import TRAIL, explained, iterate, many, plain, sent

kafka = pytest.importorskip(
    "confluent_kafka", reason="the extra is not installed: pip install 'morpheus-dfp[kafka]'"
)


@pytest.fixture(scope="module")
def broker():
    with noida("kafka") as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def topic(broker, request):
    from confluent_kafka.admin import AdminClient, NewTopic  # noqa: PLC0415 - an extra

    name = re.sub(r"\W", "-", request.node.name)
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(name, 4)])[name].result(10)
    return name


def received(broker, topic, number):
    """`number` messages of a topic, or fewer after a timeout."""
    consumer = kafka.Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": f"test-{topic}-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    messages, deadline = [], time.monotonic() + 20
    try:
        while len(messages) < number and time.monotonic() < deadline:
            received_now = consumer.consume(number, 0.5)
            messages += [message for message in received_now if not message.error()]
    finally:
        consumer.close()
    return messages


def test_every_event_arrives_with_its_user_as_key(broker, topic):
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, client_id="dfp")
    sent(
        stage,
        [
            many(300),
            many(200, user="bob"),
            OutputRows(user=None, table=Table(many(1).table.to_frame())),
        ],
    )
    messages = received(broker, topic, 501)
    assert len(messages) == 501
    by_key = {}
    for message in messages:
        by_key.setdefault(message.key(), []).append(json.loads(message.value()))
    assert {key: len(rows) for key, rows in by_key.items()} == {b"ann": 300, b"bob": 200, None: 1}
    # Events of one user keep their order, because they are in one partition.
    assert [row["eventID"] for row in by_key[b"bob"]] == [f"bob-{n}" for n in range(200)]


def test_message_is_a_row_as_to_file_writes_it(broker, topic):
    sent(ToKafka(bootstrap_servers=broker, output_topic=topic), [plain([TRAIL])])
    [message] = received(broker, topic, 1)
    row = json.loads(message.value())
    assert ROW not in row
    assert row["eventName"] == "CreateAccessKey"
    assert row["event_dt"] == "2021-10-09T00:00:00Z"


def test_findings_can_be_sent(broker, topic):
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, content="ocsf")
    sent(stage, [explained([TRAIL])])
    [message] = received(broker, topic, 1)
    finding = json.loads(message.value())
    assert ocsf_faults(finding) == []
    assert dict(message.headers())["id"].decode() == finding["finding_info"]["uid"]


def test_unbounded_input_is_acknowledged_before_it_is_passed_on(broker, topic):
    stage = ToKafka(
        bootstrap_servers=broker, output_topic=topic, options=PipelineOptions(unbounded=True)
    )
    for n, _ in enumerate(iterate(stage, [many(3), many(2)], unbounded=True)):
        assert stage.stats.accepted == [3, 5][n]


def test_too_large_event_is_an_error_and_the_others_arrive(broker, topic, tmp_path):
    dead = tmp_path / "dead.jsonl"
    rows = plain([{"eventID": "small"}, {"eventID": "x" * 2_000_000}, {"eventID": "too"}])
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, dead_letters=str(dead))
    with pytest.raises(
        TransientError,
        match=rf"to-kafka: `{topic}` at `{broker}` accepted 2 of 3 events; 1 rejected. The first "
        r"reason: .*Message size too large.* kept in `.*dead.jsonl`",
    ):
        sent(stage, [rows])
    assert len(received(broker, topic, 2)) == 2
    [kept] = dead.read_text().splitlines()
    assert json.loads(kept)["body"]["eventID"] == "x" * 2_000_000


def test_unreachable_brokers_are_an_error_with_counts():
    stage = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}", output_topic="alerts", delivery_timeout=1
    )
    with pytest.raises(
        TransientError, match=r"3 not delivered.*no broker acknowledged it in time.*--dead_letters"
    ):
        sent(stage, [many(3)])


def test_recovered_broker_gets_dead_letters(broker, topic, tmp_path):
    dead = str(tmp_path / "dead.jsonl")
    gone = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}",
        output_topic=topic,
        delivery_timeout=1,
        dead_letters=dead,
    )
    with pytest.raises(TransientError, match="3 not delivered"):
        sent(gone, [many(3)])
    sent(ToKafka(bootstrap_servers=broker, output_topic=topic, dead_letters=dead), [many(2)])
    assert len(received(broker, topic, 5)) == 5


def test_broker_that_dies_during_the_run_is_an_error_with_counts():
    with ExitStack() as stack:
        port = stack.enter_context(noida("kafka"))
        stage = ToKafka(
            bootstrap_servers=f"127.0.0.1:{port}", output_topic="alerts", delivery_timeout=2
        )

        def stream():
            yield many(6000)
            stack.close()
            yield many(10, user="bob")

        with pytest.raises(
            TransientError, match="accepted 5,000 of 6,010 events; 1,010 not delivered"
        ):
            list(run_stage(stage, stream()))


def test_ctrl_c_while_brokers_are_silent_ends_at_once(caplog):
    stage = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}", output_topic="alerts", delivery_timeout=60
    )
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sent(stage, [many(3)])
    assert time.monotonic() - begin < 5
    assert "accepted 0 events; 3 more may not have arrived" in caplog.text


def test_the_error_says_why_and_messages_of_the_client_are_for_debugging_only(caplog):
    caplog.set_level("DEBUG")
    address = f"127.0.0.1:{free_port()}"
    stage = ToKafka(bootstrap_servers=address, output_topic="alerts", delivery_timeout=2)
    with pytest.raises(TransientError, match=r"acknowledged it in time \(.*Connection refused"):
        sent(stage, [many(3)])
    messages = [each for each in caplog.records if address in each.getMessage()]
    assert any("Connect to" in each.getMessage() for each in messages)
    assert {each.levelname for each in messages if "Connect to" in each.getMessage()} == {"DEBUG"}


def test_settings_of_the_client_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MORPHEUS_KAFKA_SECURITY_PROTOCOL", "CARRIER_PIGEON")
    stage = ToKafka(bootstrap_servers="127.0.0.1:1", output_topic="alerts")
    with pytest.raises(UsageError, match=r"rejects its settings: .*security.protocol"):
        sent(stage, [many(1)])


def test_missing_client_is_reported_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    stage = ToKafka(bootstrap_servers="127.0.0.1:1", output_topic="alerts")
    with pytest.raises(UsageError, match=r"Type `pip install 'morpheus-dfp\[kafka\]'`"):
        stage.validate()


def test_auto_brokers_are_rejected():
    stage = ToKafka(bootstrap_servers="auto", output_topic="alerts")
    with pytest.raises(UsageError, match="`auto`, which finds brokers in Docker, is not supported"):
        stage.validate()


@pytest.mark.parametrize(("variable", "compression"), [(None, "gzip"), ("zstd", "zstd")])
def test_messages_are_compressed_so_that_every_consumer_can_read_them(
    monkeypatch, variable, compression
):
    confluent_kafka = pytest.importorskip("confluent_kafka")
    given = {}
    monkeypatch.setattr(confluent_kafka, "Producer", lambda settings, **_: given.update(settings))
    if variable is not None:
        monkeypatch.setenv("MORPHEUS_KAFKA_COMPRESSION_TYPE", variable)
    KafkaTransport("localhost:9092", "alerts", client_id=None, timeout=30)
    assert given["compression.type"] == compression
