"""Servers of noida-db, compatible with Kafka and Elasticsearch on the wire.

Tests start the binary directly: the Python wrapper would start a child that outlives it.
"""

import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

TIMEOUT = 30  # seconds until it answers, or ends


@contextmanager
def noida(service):
    """Run one service, and yield its port. Its data is removed with it."""
    pytest.importorskip("noida_db", reason="noida-db is not installed: pip install '.[dev]'")
    binary = Path(str(files("noida_db") / "noida-db"))
    with tempfile.TemporaryDirectory(prefix="noida-") as folder:
        port = free_port()
        server = subprocess.Popen(
            [
                *(str(binary), "start", "--only", service),
                *(f"--{service}-port", str(port), "--data-dir", folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, server)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=TIMEOUT)


def read_topic(address, topic):
    """Return the messages that a topic of a broker holds now."""
    kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    consumer = kafka.Consumer({"bootstrap.servers": address, "group.id": "read"})
    count, places = 0, []
    for number in consumer.list_topics(topic, timeout=TIMEOUT).topics[topic].partitions:
        place = kafka.TopicPartition(topic, number)
        low, high = consumer.get_watermark_offsets(place, TIMEOUT)
        count, place.offset = count + high - low, low
        places.append(place)
    consumer.assign(places)
    found = [consumer.poll(TIMEOUT).value() for _ in range(count)]
    consumer.close()
    return found


def free_port():
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port, server):
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.skip(f"noida-db does not run here: it ended with {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"noida-db did not answer within {TIMEOUT} seconds")
