"""A queue on the server in the test that gets notifications, and what a source reads from it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import boto3
import polars as pl
from moto.backends import get_backend

from lakes import Lake
from morpheus.columns import TIME
from morpheus.core.batch import MicroBatch, RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.source_state import PartitionState

ACCOUNT, REGION = "123456789012", "us-east-1"
MAX_TICKS = 300
"""Number of micro-batches after which an object is missing."""
DAY = "AWSLogs/000000000001/CloudTrail/eu-west-1/2024/05/07"


def events(*numbers: int, user: str = "ann") -> bytes:
    """A CloudTrail file with an event for each number, which is its id."""
    records = [
        {
            "eventTime": f"2024-05-07T{number // 60 % 24:02}:{number % 60:02}:00Z",
            "eventName": "GetObject",
            "eventID": f"{number:08}-0000-0000-0000-000000000000",
            "userIdentity": {"type": "IAMUser", "userName": user, "accountId": "000000000001"},
        }
        for number in numbers
    ]
    return gzip.compress(json.dumps({"Records": records}).encode(), 1)


@dataclass
class LogQueue:
    """A queue called `logs`."""

    client: Any
    url: str
    arn: str

    @property
    def messages(self) -> list[Any]:
        """All messages that are not deleted, hidden ones too."""
        queue = get_backend("sqs")[ACCOUNT][REGION].queues["logs"]
        return [each for each in queue._messages if each not in queue.deleted_messages]  # noqa: SLF001 - of moto

    def show_all(self) -> None:
        """Let the time pass until no message is hidden any more."""
        for message in self.messages:
            message.visible_at = 0

    def send(self, body: object) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.client.send_message(QueueUrl=self.url, MessageBody=text)


def make_queue(**attributes: str) -> LogQueue:
    client = boto3.client("sqs", region_name=REGION)
    url = client.create_queue(QueueName="logs", Attributes=attributes)["QueueUrl"]
    return LogQueue(client, url, f"arn:aws:sqs:{REGION}:{ACCOUNT}:logs")


def notify(lake: Lake, queue: LogQueue) -> None:
    """Let the bucket announce new and removed objects to the queue."""
    events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    configuration = {"QueueConfigurations": [{"QueueArn": queue.arn, "Events": events}]}
    s3 = boto3.client("s3", region_name=REGION, endpoint_url=lake.address)
    s3.put_bucket_notification_configuration(Bucket="lake", NotificationConfiguration=configuration)


def close(batches: Iterator[MicroBatch]) -> None:
    """End a run as the runtime does."""
    batches.close()  # type: ignore[attr-defined] # it is a generator


@dataclass
class Run:
    """One run of a source without end, with the state that a runtime would keep.

    Attributes:
        offsets: The offsets of all micro-batches so far.
        rows: The events of each micro-batch with events.
    """

    offsets: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    metrics: RunMetrics = field(default_factory=RunMetrics)
    rows: list[pl.DataFrame] = field(default_factory=list)

    def start(self, **options: Any) -> Iterator[MicroBatch]:
        source = FromCloudtrail(
            **({"input_glob": "s3://lake/AWSLogs/"} | self.options | options),
            options=PipelineOptions(userid_column_name="userIdentityuserName", num_threads=1),
        )
        source.validate()
        return source.micro_batches(None, self.metrics, dict(self.offsets))

    def take(self, micro_batch: MicroBatch, *, acknowledge: bool = True) -> pl.DataFrame:
        """Read a micro-batch, save its offsets, and acknowledge it."""
        state = PartitionState.restore({})
        tables = [
            batch.table
            for part in micro_batch.partitions
            for batch in part.events(self.metrics, state)
        ]
        frame = Table.concat(tables).to_frame() if tables else pl.DataFrame()
        if frame.height:
            self.rows.append(frame)
        self.save(micro_batch.offsets)
        if acknowledge and micro_batch.acknowledge is not None:
            micro_batch.acknowledge()
        return frame

    def save(self, changed: Mapping[str, bytes]) -> None:
        self.offsets.update(changed)
        for name in [name for name, data in self.offsets.items() if not data]:
            del self.offsets[name]

    def read(self, files: int, **options: Any) -> list[int]:
        """Run until so many files are read; return the numbers of the events, sorted."""
        self.rows.clear()
        for number, micro_batch in enumerate(self.start(max_files=files, **options)):
            assert number < MAX_TICKS
            self.take(micro_batch)
        return self.numbers

    def read_until(self, done: Callable[[], bool], **options: Any) -> list[int]:
        """Run until something is so; return the numbers of the events, sorted."""
        self.rows.clear()
        batches = self.start(**options)
        for _ in range(MAX_TICKS):
            self.take(next(batches))
            if done():
                break
        close(batches)
        assert done(), self.kinds
        return self.numbers

    @property
    def numbers(self) -> list[int]:
        frames = [frame for frame in self.rows if "eventID" in frame.columns]
        return sorted(int(each[:8]) for frame in frames for each in frame.sort(TIME)["eventID"])

    @property
    def kinds(self) -> dict[str, int]:
        return dict(self.metrics.input.file_kinds)
