"""Prototype: the stages in Quix Streams, fed with whole batches, for a decision.

A message is a batch of records of one partition. The function loads the states of its users from
Quix's store, passes the batch through the stages, and stores the changed states. Quix keeps the
store in RocksDB and in a changelog topic. Run it in an environment of its own, because Quix needs
an older Kafka client:

    python benchmarks/stream/quix.py --bootstrap_servers=127.0.0.1:9092 --models=models LOGS
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from isal import igzip
from quixstreams import Application

from morpheus.core.batch import RunMetrics
from morpheus.core.stage import PipelineOptions
from morpheus.core.state import StateKey
from morpheus.pipeline import Pipeline, Plan
from morpheus.runtime.local import encode_source, restore_source
from morpheus.runtime.pool import WorkerPool
from morpheus.runtime.stream import Stream
from morpheus.sources.from_kafka import FromKafka
from morpheus.sources.ingest import IngestRun
from morpheus.sources.partitioning import LocalPartitionStore
from morpheus.stages.add_scores import AddScores
from morpheus.stages.infer import InfPytorch, Preprocess
from morpheus.stages.serialize import Serialize
from morpheus.stages.train_ae import TrainAe
from morpheus.storage.spill import SpillDir


class Engine:
    """The stages, with states that come from Quix.

    Args:
        models: Folder of fingerprints.
        spill_dir: Folder for temporary files.
    """

    def __init__(self, models: str, spill_dir: SpillDir) -> None:
        source = FromKafka(bootstrap_servers="-", input_topic="-", log_format="cloudtrail")
        stages = (
            *(source, TrainAe(pretrained_filename=models), Preprocess(), InfPytorch()),
            *(AddScores(label=("risk",)), Serialize()),
        )
        pipeline = Pipeline(stages, PipelineOptions(userid_column_name="@actor", num_threads=1))
        pipeline.validate()
        plan = Plan.from_stages(pipeline._resolve_options())  # noqa: SLF001 - a prototype
        metrics = RunMetrics()
        ingest = plan.source._ingest  # type: ignore[attr-defined]  # noqa: SLF001 - a prototype
        store = LocalPartitionStore(
            ingest.make_partition_spec(),
            *(ingest.memory_budget, ingest.sample_spec, spill_dir, WorkerPool(1)),
        )
        self.run: IngestRun[Any, Any] = IngestRun(ingest, metrics, store)
        self.chains = (
            plan.make_segment(metrics, saves=False).open(),
            plan.make_tail(saves=False).open(),
        )
        self.stream = Stream(self.chains, metrics)
        self.loaded: set[str | None] = set()
        self.events = 0
        self.lines = spill_dir.folder / "batch.jsonl"

    def process(self, batch: bytes, state: Any) -> bytes:  # noqa: ANN401 - Quix's state
        """Score a batch, and return its rows."""
        self.lines.write_bytes(batch)
        rows = []
        for partition in self.run.partitions([self.lines], None):
            users = partition.user_names()
            self._load([user for user in users if user not in self.loaded], state)
            rows += list(self.stream._process_partition(partition))  # noqa: SLF001 - a prototype
            changed = encode_source(self.stream.source_state, users)
            for chain in self.chains:
                changed |= chain.take_changes()
            for key, data in changed.items():
                state.set_bytes(f"{key.stage} {key.user}", data)
        self.events += sum(each.table.height for each in rows)
        text = b"".join(each.table.to_frame().write_ndjson().encode() for each in rows)
        return igzip.compress(text)

    def _load(self, users: Sequence[str | None], state: Any) -> None:  # noqa: ANN401 - Quix's state
        names = ["source", *(name for chain in self.chains for name in chain.segment.names)]
        saved = {
            StateKey(name, user): data
            for user in users
            for name in names
            if (data := state.get_bytes(f"{name} {user}")) is not None
        }
        self.stream.source_state.merge(restore_source(saved))
        for chain in self.chains:
            chain.restore(saved)
        self.loaded.update(users)


def send(servers: str, topic: str, logs: str, size: int) -> int:
    """Send the records of CloudTrail's files in batches; return how many batches."""
    records = [
        record
        for file in sorted(Path(logs).rglob("*.json.gz"))
        for record in json.loads(gzip.decompress(file.read_bytes()))["Records"]
    ]
    records.sort(key=lambda record: str(record["eventTime"]))
    producer = Producer({"bootstrap.servers": servers, "message.max.bytes": 50_000_000})
    parts = [records[at : at + size] for at in range(0, len(records), size)]
    for part in parts:
        value = igzip.compress("\n".join(map(json.dumps, part)).encode())
        producer.produce(topic, value, key=b"0", on_delivery=check)
        producer.flush(30)
    return len(parts)


def check(error: object, _message: object) -> None:
    """End the program if a message was not taken."""
    if error is not None:
        sys.exit(str(error))


def measure(arguments: argparse.Namespace) -> None:
    """Run Quix over all batches, and print events per second and core."""
    name = f"quix-{arguments.batch}-{time.time():.0f}"
    with SpillDir() as spill_dir, tempfile.TemporaryDirectory() as state_dir:
        app = Application(
            broker_address=arguments.bootstrap_servers,
            consumer_group=name,
            auto_offset_reset="earliest",
            processing_guarantee=arguments.guarantee,
            state_dir=state_dir,
            producer_extra_config={"message.max.bytes": 50_000_000},
            consumer_extra_config={"receive.message.max.bytes": 2_000_000_000},
        )
        topic = app.topic(name, value_deserializer="bytes", key_deserializer="bytes")
        output = app.topic(f"{name}-rows", value_serializer="bytes", key_serializer="bytes")
        frame = app.dataframe(topic)
        engine = Engine(arguments.models, spill_dir)
        frame = frame.apply(engine.process, stateful=True)
        frame.to_topic(output)
        batches = send(arguments.bootstrap_servers, name, arguments.logs, arguments.batch)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        app.run(count=batches, timeout=150)
        after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{engine.events:,} events in batches of {arguments.batch:,}, {arguments.guarantee}: "
        f"{cpu:.1f} CPU-seconds, {engine.events / cpu:,.0f} events/s per core, {seconds:.1f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("logs", help="folder with CloudTrail's files")
    parser.add_argument("--bootstrap_servers", default="127.0.0.1:9092")
    parser.add_argument("--models", required=True, help="fingerprints of the users")
    parser.add_argument("--batch", type=int, default=5000, help="records of a message")
    parser.add_argument("--guarantee", default="exactly-once")
    measure(parser.parse_args())
