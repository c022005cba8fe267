"""Send CloudTrail files to a Kafka topic: `python send_to_kafka.py --topic=trail AWSLogs`.

Each record becomes a message. Its key is the user as `--userid_column_name=@actor` names it for
people and roles, so that all events of a user are in one partition. Messages are sent in the order
of their times. The topic is created if it does not exist. Needs the extra `kafka`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it has it

Record = dict[str, Any]


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """Read the records of CloudTrail's files, below folders too."""
    for path in paths:
        for file in sorted(path.rglob("*.json.gz")) if path.is_dir() else [path]:
            yield from json.loads(gzip.decompress(file.read_bytes()))["Records"]


def find_key(record: Record) -> str:
    """Return the user of a record: the role of a session, or the person.

    >>> find_key({"userIdentity": {"userName": "ann"}})
    'ann'
    """
    identity = record.get("userIdentity", {})
    issuer = identity.get("sessionContext", {}).get("sessionIssuer", {})
    name = issuer.get("userName") or identity.get("userName") or identity.get("arn")
    return str(name or record.get("eventSource", ""))


def create_topic(servers: str, topic: str, partitions: int) -> None:
    """Create a topic, unless there is one."""
    admin = AdminClient({"bootstrap.servers": servers})
    if topic in admin.list_topics(timeout=10).topics:
        return
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(10)


def send(servers: str, topic: str, records: Sequence[Record]) -> int:
    """Send records, and return how many the brokers have not acknowledged."""
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    for record in records:
        while True:
            try:
                producer.produce(topic, json.dumps(record).encode(), key=find_key(record).encode())
                break
            except BufferError:  # the queue is full
                producer.poll(0.1)
    left: int = producer.flush(60)
    return left


def main() -> None:
    """Read the arguments, and send the records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--bootstrap_servers", default="127.0.0.1:9092")
    parser.add_argument("--topic", default="trail")
    parser.add_argument("--partitions", type=int, default=4)
    arguments = parser.parse_args()
    records = sorted(read_records(arguments.paths), key=lambda each: str(each["eventTime"]))
    try:
        create_topic(arguments.bootstrap_servers, arguments.topic, arguments.partitions)
    except KafkaException as error:
        sys.exit(f"No broker at {arguments.bootstrap_servers}: {error.args[0].str()}")
    left = send(arguments.bootstrap_servers, arguments.topic, records)
    if left:
        sys.exit(f"{left} records were not acknowledged.")
    print(f"Sent {len(records)} records to {arguments.topic}.")


if __name__ == "__main__":
    main()
