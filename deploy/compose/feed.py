"""Send CloudTrail files to a Kafka topic and to a bucket, as an example of a log that arrives.

Each record is a message, with its user as the key. The folder is one that `make_fleet.py` has
written. It needs the packages of the extras `kafka` and `s3`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import obstore
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it has it
from obstore.store import S3Store

PARTITIONS = 4


def create_topics(brokers: str, topics: list[str]) -> None:
    """Create topics that do not exist."""
    admin = AdminClient({"bootstrap.servers": brokers})
    for created in admin.create_topics([NewTopic(each, PARTITIONS) for each in topics]).values():
        try:
            created.result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def send_records(files: list[Path], brokers: str, topic: str) -> int:
    """Send the records of files to a topic, and return their number."""
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    number = 0
    for file in files:
        for record in json.loads(gzip.decompress(file.read_bytes()))["Records"]:
            user = record["userIdentity"].get("arn", "")
            producer.produce(topic, json.dumps(record).encode(), key=user.encode())
            producer.poll(0)
            number += 1
    if producer.flush(60):
        raise SystemExit("The broker has not taken all records.")
    return number


def upload(files: list[Path], folder: Path, bucket: str) -> None:
    """Put files into a bucket, under their paths in a folder. The environment has its address."""
    store = S3Store(bucket, client_options={"allow_http": True}, virtual_hosted_style_request=False)
    for file in files:
        obstore.put(store, file.relative_to(folder).as_posix(), file)


def main() -> None:
    """Send what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with AWSLogs/")
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topics", nargs="+", required=True, help="the first gets the records")
    parser.add_argument("--bucket", required=True)
    options = parser.parse_args()
    files = sorted(options.folder.rglob("*.json.gz"))
    create_topics(options.brokers, options.topics)
    number = send_records(files, options.brokers, options.topics[0])
    upload(files, options.folder, options.bucket)
    print(
        f"Sent {number} records to {options.topics[0]}, and {len(files)} files to {options.bucket}."
    )


if __name__ == "__main__":
    main()
