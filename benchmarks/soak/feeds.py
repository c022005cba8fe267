"""Where events are sent: a folder, a bucket with a queue, a topic. Each can be disturbed."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from soak.events import Events

ANSWER_SECONDS = 30.0
LONGEST_OUTAGE = 3.0
"""Seconds for which a server is gone or slow."""
KEPT_FILES = 40
"""Number of rotated files that stay in a folder, as log rotation keeps some."""


class Feed(Protocol):
    """A source of the product."""

    @property
    def values(self) -> dict[str, str]:
        """Values for the names in braces of the command."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the product."""

    def send(self, numbers: Sequence[int]) -> None:
        """Send events, and return once the source has them for good."""

    def disturb(self, rng: random.Random) -> str:
        """Disturb the source for a while, and return how."""


@dataclass
class FolderFeed:
    """A folder of logs that grow, are rotated, truncated and compressed.

    Attributes:
        events: The events.
        folder: The folder.
        rotated: Number of files that were rotated.
    """

    events: Events
    folder: Path
    rotated: int = 0
    _torn: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def values(self) -> dict[str, str]:
        """Return the folder."""
        return {"input": str(self.folder)}

    @property
    def environment(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    @property
    def current(self) -> Path:
        """The file that grows."""
        return self.folder / "audit.jsonl"

    def send(self, numbers: Sequence[int]) -> None:
        """Append lines, at times with a break inside a line."""
        text = b"".join(map(self.events.line, numbers))
        cut = len(text) - 20 if self._torn else 0
        self._torn = False
        # Who copies a file in the middle of a line and then cuts it loses the line.
        with self._lock, self.current.open("ab") as file:
            for part in (text[:cut], text[cut:]) if cut else (text,):
                file.write(part)
                file.flush()
                os.fsync(file.fileno())
                time.sleep(0.7 if cut and part == text[:cut] else 0)

    def disturb(self, rng: random.Random) -> str:
        """Do what log rotation and its accidents do to files."""
        ways: dict[str, Callable[[], object]] = {
            "rotated": self._rotate,
            "copied and truncated": self._copy_and_truncate,
            "compressed": self._compress,
            "renamed": self._rename,
            "line cut": self._cut_line,
        }
        name = rng.choice(sorted(ways))
        if name in {"copied and truncated", "compressed"}:
            with self._lock:
                ways[name]()
        else:
            ways[name]()
        for path in self._old()[:-KEPT_FILES]:
            path.unlink()
        return f"file {name}"

    def _old(self) -> list[Path]:
        """Return the files that no longer grow, the oldest first."""
        old = [path for path in self.folder.iterdir() if path != self.current]
        return sorted(old, key=lambda path: (path.stat().st_mtime, path.name))

    def _next_name(self) -> Path:
        self.rotated += 1
        return self.folder / f"audit.jsonl.{self.rotated}"

    def _rotate(self) -> None:
        if self.current.exists():
            self.current.rename(self._next_name())

    def _copy_and_truncate(self) -> None:
        if self.current.exists():
            shutil.copyfile(self.current, self._next_name())
            os.truncate(self.current, 0)

    def _compress(self) -> None:
        self._rotate()
        plain = [path for path in self._old() if path.suffix != ".gz"]
        for path in plain[-1:]:
            packed = path.with_name(f"{path.name}.gz")
            hidden = packed.with_name("packing")
            hidden.write_bytes(gzip.compress(path.read_bytes()))
            hidden.rename(packed)
            path.unlink()

    def _rename(self) -> None:
        for path in self._old()[-1:]:
            if path.suffix != ".gz":
                path.rename(self._next_name())

    def _cut_line(self) -> None:
        self._torn = True


@contextmanager
def broker(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a broker, and yield its address and the number of its process."""
    binary = Path(str(files("noida_db") / "noida-db"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(binary), "start", "--only", "kafka", "--kafka-port", str(port)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - our own broker
            [*command, "--data-dir", str(folder / "data")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(port)
        yield f"127.0.0.1:{port}", server.pid
    finally:
        server.kill()
        server.wait()


def wait_for_port(port: int) -> None:
    """Wait until a server of this machine answers.

    Raises:
        RuntimeError: It does not.
    """
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no server answers on port {port}")


def make_topics(brokers: str, names: Sequence[str], partitions: int) -> None:
    """Create topics, each with some partitions."""
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - an extra
    from confluent_kafka.cimpl import NewTopic  # noqa: PLC0415 - the same

    admin = AdminClient({"bootstrap.servers": brokers})
    for future in admin.create_topics([NewTopic(name, partitions, 1) for name in names]).values():
        future.result(ANSWER_SECONDS)


@dataclass
class KafkaFeed:
    """A topic, with users as keys.

    Attributes:
        events: The events.
        brokers: Addresses of the brokers.
        topic: The topic.
        pid: Process of the broker, which is stopped for a while; 0 if it is not ours.
    """

    events: Events
    brokers: str
    topic: str
    pid: int = 0
    partitions: int = 4
    _producer: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Connect, and create the topic."""
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        make_topics(self.brokers, [self.topic], self.partitions)
        settings: dict[str, str | int | float | bool] = {"bootstrap.servers": self.brokers}
        # One request at a time keeps the order when a request is sent again.
        settings |= {"acks": "all", "max.in.flight.requests.per.connection": 1}
        self._producer = Producer(settings)

    @property
    def values(self) -> dict[str, str]:
        """Return the brokers and the topic."""
        return {"brokers": self.brokers, "topic": self.topic}

    @property
    def environment(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def send(self, numbers: Sequence[int]) -> None:
        """Produce messages, one event each, and wait until the broker has them.

        Raises:
            RuntimeError: The broker does not take them.
        """
        for number in numbers:
            self._producer.produce(self.topic, self.events.line(number), self.events.user(number))
        if self._producer.flush(ANSWER_SECONDS):
            raise RuntimeError("the broker does not take messages")

    def disturb(self, rng: random.Random) -> str:
        """Stop the broker for a while: it is there, and does not answer."""
        if not self.pid:
            return ""
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.2, LONGEST_OUTAGE))
        os.kill(self.pid, signal.SIGCONT)
        return "broker stopped"


ACCOUNT, REGION = "123456789012", "us-east-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}
MOTO = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@contextmanager
def object_store(folder: Path) -> Iterator[int]:
    """Run moto, a server like S3 and SQS, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "moto.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - our own server
            [sys.executable, "-c", MOTO, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_port(port)
        yield port
    finally:
        server.kill()
        server.wait()


@dataclass
class SqsFeed:
    """A bucket that announces each new object to a queue.

    Attributes:
        events: The events.
        port: Port of the server.
        name: Name of the bucket and of the queue.
        visible_port: Port by which the product reaches the server.
    """

    events: Events
    port: int
    name: str
    visible_port: int
    _s3: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Create the bucket and the queue."""
        import boto3  # noqa: PLC0415 - an extra

        about = {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "region_name": REGION,
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
        }
        self._s3, queues = boto3.client("s3", **about), boto3.client("sqs", **about)
        self._s3.create_bucket(Bucket=self.name)
        queues.create_queue(QueueName=self.name)
        queue = {
            "QueueArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self.name}",
            "Events": ["s3:ObjectCreated:*"],
        }
        self._s3.put_bucket_notification_configuration(
            Bucket=self.name, NotificationConfiguration={"QueueConfigurations": [queue]}
        )

    @property
    def values(self) -> dict[str, str]:
        """Return the bucket and the queue, as the product reaches them."""
        address = f"http://127.0.0.1:{self.visible_port}"
        return {"input": f"s3://{self.name}/AWSLogs/", "queue": f"{address}/{ACCOUNT}/{self.name}"}

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which the product finds the server."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.visible_port}"}

    def send(self, numbers: Sequence[int]) -> None:
        """Put objects, with the events of one turn each."""
        for start in range(0, len(numbers), self.events.turn):
            part = numbers[start : start + self.events.turn]
            name = f"111122223333_CloudTrail_eu-west-1_{part[0]:014}.json.gz"
            key = f"AWSLogs/111122223333/CloudTrail/eu-west-1/2026/03/02/{name}"
            body = gzip.compress(self.events.document(part), 1)
            self._s3.put_object(Bucket=self.name, Key=key, Body=body)

    def disturb(self, rng: random.Random) -> str:
        """Announce an object again, as S3 may do."""
        listed = self._s3.list_objects_v2(Bucket=self.name).get("Contents", [])
        if not listed:
            return ""
        key = rng.choice(listed)["Key"]
        source = {"Bucket": self.name, "Key": key}
        self._s3.copy_object(
            Bucket=self.name, Key=key, CopySource=source, MetadataDirective="REPLACE"
        )
        return "object announced again"
