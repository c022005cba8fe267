"""Events to a real, wire-compatible broker: all of them, confirmed, or an error with counts."""

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
from morpheus.core.batch import OutputRows
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.to_kafka import ToKafka
from schema_check import ocsf_faults
from services.noida import free_port, noida
from strange import TRAIL, explained, many, plain, sent

kafka = pytest.importorskip(
    "confluent_kafka", reason="the extra is not installed: pip install 'morpheus[kafka]'"
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
    """So many messages of a topic, or those that come within some seconds."""
    consumer = kafka.Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": f"test-{topic}-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found, deadline = [], time.monotonic() + 20
    try:
        while len(found) < number and time.monotonic() < deadline:
            found += [one for one in consumer.consume(number, 0.5) if not one.error()]
    finally:
        consumer.close()
    return found


def test_every_event_arrives_with_its_user_as_key(broker, topic):
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, client_id="dfp")
    sent(stage, [many(300), many(200, user="bob"), OutputRows(user=None, frame=many(1).frame)])
    messages = received(broker, topic, 501)
    assert len(messages) == 501
    by_key = {}
    for message in messages:
        by_key.setdefault(message.key(), []).append(json.loads(message.value()))
    assert {key: len(rows) for key, rows in by_key.items()} == {b"ann": 300, b"bob": 200, None: 1}
    # One user's events keep their order: they lie in one partition.
    assert [row["eventID"] for row in by_key[b"bob"]] == [f"bob-{n}" for n in range(200)]


def test_a_message_is_a_row_as_to_file_writes_it(broker, topic):
    sent(ToKafka(bootstrap_servers=broker, output_topic=topic), [plain([TRAIL])])
    [message] = received(broker, topic, 1)
    row = json.loads(message.value())
    assert ROW not in row
    assert row["eventName"] == "CreateAccessKey"
    assert row["event_dt"] == 1633737600000


def test_findings_can_be_sent(broker, topic):
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, content="ocsf")
    sent(stage, [explained([TRAIL])])
    [message] = received(broker, topic, 1)
    made = json.loads(message.value())
    assert ocsf_faults(made) == []
    assert dict(message.headers())["id"].decode() == made["finding_info"]["uid"]


def test_a_stream_without_end_is_confirmed_before_it_is_handed_on(broker, topic):
    stage = ToKafka(
        bootstrap_servers=broker, output_topic=topic, options=PipelineOptions(unbounded=True)
    )
    for n, _ in enumerate(stage(iter([many(3), many(2)]))):
        assert stage.stats.accepted == [3, 5][n]


def test_an_event_too_large_is_an_error_and_the_others_arrive(broker, topic, tmp_path):
    dead = tmp_path / "dead.jsonl"
    rows = plain([{"eventID": "small"}, {"eventID": "x" * 2_000_000}, {"eventID": "too"}])
    stage = ToKafka(bootstrap_servers=broker, output_topic=topic, dead_letters=str(dead))
    with pytest.raises(
        TransientError,
        match=rf"to-kafka: `{topic}` at `{broker}` took 2 of 3 events; 1 refused. The first "
        r"reason: .*Message size too large.* kept in `.*dead.jsonl`",
    ):
        sent(stage, [rows])
    assert len(received(broker, topic, 2)) == 2
    [kept] = dead.read_text().splitlines()
    assert json.loads(kept)["body"]["eventID"] == "x" * 2_000_000


def test_brokers_that_are_not_there_are_an_error_with_counts():
    stage = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}", output_topic="alerts", delivery_timeout=1
    )
    with pytest.raises(
        TransientError, match=r"3 not handed.*has confirmed it in time.*--dead_letters"
    ):
        sent(stage, [many(3)])


def test_a_broker_that_comes_back_gets_what_was_kept(broker, topic, tmp_path):
    dead = str(tmp_path / "dead.jsonl")
    gone = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}",
        output_topic=topic,
        delivery_timeout=1,
        dead_letters=dead,
    )
    with pytest.raises(TransientError, match="3 not handed over"):
        sent(gone, [many(3)])
    sent(ToKafka(bootstrap_servers=broker, output_topic=topic, dead_letters=dead), [many(2)])
    assert len(received(broker, topic, 5)) == 5


def test_a_broker_that_dies_in_between_is_an_error_with_counts():
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
            TransientError, match="took 5,000 of 6,010 events; 1,010 not handed over"
        ):
            list(stage(stream()))


def test_ctrl_c_while_brokers_are_silent_ends_at_once(caplog):
    stage = ToKafka(
        bootstrap_servers=f"127.0.0.1:{free_port()}", output_topic="alerts", delivery_timeout=60
    )
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sent(stage, [many(3)])
    assert time.monotonic() - begin < 5
    assert "took 0 events; 3 more had come, and are not known to have arrived" in caplog.text


def test_settings_of_the_client_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MORPHEUS_KAFKA_SECURITY_PROTOCOL", "CARRIER_PIGEON")
    stage = ToKafka(bootstrap_servers="127.0.0.1:1", output_topic="alerts")
    with pytest.raises(UsageError, match=r"refuses its settings: .*security.protocol"):
        sent(stage, [many(1)])


def test_without_the_client_it_is_said_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    stage = ToKafka(bootstrap_servers="127.0.0.1:1", output_topic="alerts")
    with pytest.raises(UsageError, match=r"not installed. Type `pip install 'morpheus\[kafka\]'`"):
        stage.validate()


def test_brokers_are_not_looked_for_in_docker():
    stage = ToKafka(bootstrap_servers="auto", output_topic="alerts")
    with pytest.raises(UsageError, match="`auto` looked for brokers in Docker"):
        stage.validate()
