"""A stream of Kafka: events per second, latency, memory, time in checkpoints, restart."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from figures.table import Table
from soak.events import USER_COLUMN, parse_id
from soak.feeds import broker, make_topics
from soak.product import Product, fill_command
from speed.meter import memory

from stream.log import STRANGE_EVERY, Log, make_models, user_name, write_columns
from stream.scale import Scale

GROUP = "bench"
COMMAND = (
    "morpheus run --num_threads=2 --status_file={status} "
    f"pipeline-ae --userid_column_name={USER_COLUMN} "
    "{columns} --state={state} --checkpoint_interval=1 "
    "from-kafka --bootstrap_servers={brokers} "
    f"--input_topic=events --group_id={GROUP} --instance_id=bench-1 --log_format=cloudtrail "
    "--kafka_config_file={client} "
    "train-ae --pretrained_filename={models} preprocess inf-pytorch add-scores --label=risk "
    "filter --label=risk --threshold={threshold} serialize "
    "to-kafka --bootstrap_servers={brokers} --output_topic=alerts"
)
CLIENT = "queued.min.messages=4000\nfetch.queue.backoff.ms=100\n"
"""Settings of the product's client: no requests while events wait, for the same reason as
`REST_SECONDS`."""
THRESHOLD = "20"
"""Events with a higher risk are alerts: the strange ones, and few others."""
PARTITIONS = 4
TENTHS = 10
DAYS = 5
"""Days of the log in which the events are."""
SAMPLE_SECONDS = 0.5
PACE_SECONDS = 0.02
"""Seconds between two groups of events at a given rate. Smaller groups cost the broker more."""
REST_SECONDS = 0.5
"""Seconds in which no alerts are asked for. Without them, the broker of this benchmark, which
answers requests for nothing at once, and its client take a processor."""
LINGER_MS = 20
"""Milliseconds for which the client collects events for one request."""
QUIET_SECONDS = 30.0
"""Seconds without any alert after which all have come. Not each strange event is an alert."""
PATIENCE = 120.0
"""Seconds without any alert after which a measurement is given up."""
BACKLOG = 300_000
"""Events that wait in the topic at most: the broker of this benchmark holds a topic in memory."""
BACKLOG_STEP = 50_000
"""Events that are sent together while the product reads."""
RESTART_EVENTS = 0.04
"""Share of the events that are there when the product is killed and started again."""


@dataclass
class Alerts(threading.Thread):
    """Reads the topic of alerts, and notes when each event's alert came.

    Attributes:
        brokers: Address of the broker.
        arrived: Time at which the product sent the alert of each event first, in seconds since
            1970, as the message has it.
        latest: When the latest alert was read.
    """

    brokers: str
    arrived: dict[int, float] = field(default_factory=dict)
    latest: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        """Prepare the thread."""
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Read until stopped."""
        from confluent_kafka import Consumer, TopicPartition  # noqa: PLC0415 - an extra

        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "alerts"})
        consumer.assign([TopicPartition("alerts", number, 0) for number in range(PARTITIONS)])
        partitions = consumer.assignment()
        while not self._over.wait(REST_SECONDS):
            consumer.resume(partitions)
            while messages := consumer.consume(500, REST_SECONDS / 2):
                for message in messages:
                    if message.error() is None:
                        self._note(json.loads(message.value() or b"{}"), message.timestamp()[1])
            consumer.pause(partitions)
        consumer.close()

    def _note(self, row: dict[str, Any], sent_ms: int) -> None:
        number = parse_id(row.get("eventID"))
        if number is not None:
            self.latest = time.time()
            self.arrived.setdefault(number, sent_ms / 1000)

    def wait_for(self, number: int) -> float:
        """Wait for the alert of an event, and return when it came.

        Raises:
            RuntimeError: No alerts come.
        """
        while number not in self.arrived:
            if time.time() > max(self.latest, self._asked) + PATIENCE:
                raise RuntimeError(f"no alert of event {number} came")
            time.sleep(0.01)
        return self.arrived[number]

    def wait_until_complete(self) -> float:
        """Wait until no more alerts come, and return when the latest was sent."""
        while time.time() < max(self.latest, self._asked) + QUIET_SECONDS:
            time.sleep(0.1)
        return max(self.arrived.values(), default=self.latest)

    def wait_for_any(self) -> float:
        """Wait for the first alert, and return when it came."""
        while not self.arrived and time.time() < self._asked + PATIENCE:
            time.sleep(0.01)
        return min([*self.arrived.values()] or [self.wait_for(0)])

    @property
    def _asked(self) -> float:
        return getattr(self, "_since", 0.0)

    def expect(self) -> None:
        """Start to be patient now."""
        self._since = time.time()

    def stop(self) -> None:
        """Stop reading."""
        self._over.set()
        self.join()


@dataclass
class Memory(threading.Thread):
    """Samples the memory of a process tree.

    Attributes:
        pid: The process.
        samples: Seconds since 1970, and MB.
    """

    pid: int
    samples: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare the thread."""
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Take samples until stopped."""
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append((time.time(), memory(self.pid)))

    def stop(self) -> None:
        """Stop sampling."""
        self._over.set()
        self.join()

    def tenth(self, number: int, begin: float, end: float) -> float:
        """Return the median memory in one tenth of a time, counted from 1."""
        width = (end - begin) / TENTHS
        low = begin + (number - 1) * width
        held = [held for when, held in self.samples if low <= when <= low + width]
        nearest = min(self.samples, key=lambda each: abs(each[0] - low), default=(0.0, 0.0))
        return median(held or [nearest[1]])


@dataclass
class Stand:
    """A broker, a product and its alerts.

    Attributes:
        brokers: Address of the broker.
        log: The events.
        product: The product.
        state: Its state file.
        alerts: Its alerts.
    """

    brokers: str
    log: Log
    product: Product
    state: Path
    alerts: Alerts

    def produce(self, first: int, end: int, rate: float | None = None) -> dict[int, float]:
        """Send events; return when each strange one was sent.

        Args:
            first: Number of the first event.
            end: Number after the last one.
            rate: Events per second; None for as many as possible.
        """
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        settings = {"bootstrap.servers": self.brokers, "linger.ms": LINGER_MS}
        producer = Producer(settings | {"queue.buffering.max.messages": 200_000})
        sent: dict[int, float] = {}
        begin = time.time()
        for number in range(first, end):
            due = 0.0 if rate is None else begin + (number - first) / rate
            while due > time.time():
                producer.poll(0)
                time.sleep(PACE_SECONDS)
            if number % STRANGE_EVERY == 0:
                sent[number] = time.time()
            self._send(producer, number)
        producer.flush()
        return sent

    def keep_backlog(self, first: int, end: int) -> None:
        """Send events while the product reads, so that `BACKLOG` events wait at most.

        Events that the product has committed are deleted from the topic.

        Args:
            first: Number of the first event. Those before it have been sent.
            end: Number after the last one.

        Raises:
            RuntimeError: The product commits nothing.
        """
        from confluent_kafka import Consumer, TopicPartition  # noqa: PLC0415 - an extra
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - the same

        settings: dict[str, Any] = {"bootstrap.servers": self.brokers}
        group = Consumer(settings | {"group.id": GROUP})
        admin = AdminClient(settings)
        places = [TopicPartition("events", number) for number in range(PARTITIONS)]
        deadline = time.time() + PATIENCE
        while first < end:
            read = [place for place in group.committed(places) if place.offset > 0]
            if first - sum(place.offset for place in read) > BACKLOG - BACKLOG_STEP:
                if time.time() > deadline:
                    raise RuntimeError(f"the product commits nothing: {self.product.log()[-2000:]}")
                time.sleep(SAMPLE_SECONDS)
                continue
            deadline = time.time() + PATIENCE
            for future in admin.delete_records(read).values() if read else ():
                future.result(PATIENCE)
            step = min(BACKLOG_STEP, end - first)
            self.produce(first, first + step)
            first += step
        group.close()

    def checkpoint_seconds(self) -> float:
        """Return the seconds that checkpoints have taken in this life of the product."""
        status = json.loads((self.product.folder / "status.json").read_bytes())
        return float(status["stream"]["checkpoint_seconds"])

    def _send(self, producer: Any, number: int) -> None:  # noqa: ANN401 - the client has no types
        line, key = self.log.line(number), user_name(number % self.log.users)
        while True:
            try:
                producer.produce("events", line, key)
            except BufferError:
                producer.poll(0.1)
            else:
                return


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU seconds of a process so far, with those of its children that have ended."""
    numbers = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def stand(scale: Scale) -> Iterator[Stand]:
    """Train, and start a broker."""
    folder = scale.scratch / "rate"
    folder.mkdir(parents=True, exist_ok=True)
    models = make_models(folder, scale.users)
    with broker(folder / "broker") as (address, _):
        make_topics(address, ["events", "alerts"], PARTITIONS)
        state = folder / "state.db"
        client = folder / "client.properties"
        client.write_text(CLIENT)
        values = {
            "client": str(client),
            "columns": write_columns(folder),
            "brokers": address,
            "models": str(models),
            "state": str(state),
            "status": str(folder / "status.json"),
        }
        words = fill_command(COMMAND, values | {"threshold": THRESHOLD})
        product = Product(words, folder, {}, folder / "logs")
        alerts = Alerts(address)
        alerts.start()
        log = Log(scale.users, DAYS * 86_400 / scale.events)
        try:
            yield Stand(address, log, product, state, alerts)
        finally:
            product.kill()
            alerts.stop()


def tables(scale: Scale) -> Iterator[Table]:
    """Measure throughput, then latency at half of it, then a restart."""
    with stand(scale) as one:
        table, rate = measure_rate(one, scale)
        yield table
        yield measure_latency(one, scale, rate / 2)
        yield measure_restart(one, scale)


def measure_rate(one: Stand, scale: Scale) -> tuple[Table, float]:
    """Process events of which enough wait at any time."""
    waiting = min(scale.events, BACKLOG)
    one.produce(0, waiting)
    started = time.time()
    one.alerts.expect()
    one.product.start()
    watch = Memory(one.product.pid)
    watch.start()
    begin = one.alerts.wait_for_any()
    one.keep_backlog(waiting, scale.events)
    strange = range(0, scale.events, STRANGE_EVERY)
    end = one.alerts.wait_until_complete()
    cpu = cpu_seconds_of(one.product.pid)
    watch.stop()
    # The first checkpoint brings the alerts of all events that were read before it.
    later = sum(one.alerts.arrived.get(number, 0.0) > begin + 1 for number in strange)
    rate = later * STRANGE_EVERY / (end - begin)
    second, tenth = (watch.tenth(number, begin, end) for number in (2, TENTHS))
    share = one.checkpoint_seconds() / (end - started)
    table = Table(
        f"{scale.events:,} events of {scale.users:,} users, from a topic with {PARTITIONS} "
        "partitions; broker and product on the same cores",
        ["figure", "value", "wanted", "value / wanted"],
        note=f"Up to {BACKLOG:,} events wait in the topic. Each event of {STRANGE_EVERY:,} is "
        "strange, and an alert.",
    )
    table.add("start to first alert, s", begin - started, None, None)
    table.add("events/s, after the first checkpoint", rate, 25_000, rate / 25_000)
    table.add("events per CPU second of the product", scale.events / cpu, None, None)
    table.add("memory in the second tenth, MB", second, None, None)
    table.add("memory in the last tenth, MB", tenth, second * 1.05, tenth / (second * 1.05))
    table.add("share of the time in checkpoints", share, 0.1, share / 0.1)
    table.add("alerts", len(one.alerts.arrived), None, None)
    return table, rate


def measure_latency(one: Stand, scale: Scale, rate: float) -> Table:
    """Send events at a rate, and measure from a strange event to its alert."""
    first = -(-scale.events // STRANGE_EVERY) * STRANGE_EVERY
    end = first + int(rate * scale.latency_seconds)
    one.alerts.expect()
    sent = one.produce(first, end, rate)
    one.alerts.wait_until_complete()
    arrived = one.alerts.arrived
    took = [arrived[number] - when for number, when in sent.items() if number in arrived]
    hundredths = quantiles(took, n=100)
    table = Table(
        f"From produce to alert, at {rate:,.0f} events/s for {scale.latency_seconds:.0f} s",
        ["alerts", "p50, s", "p99, s", "largest, s", "p99 wanted, s", "p99 / wanted"],
    )
    table.add(len(took), median(took), hundredths[98], max(took), 3, hundredths[98] / 3)
    return table


def measure_restart(one: Stand, scale: Scale) -> Table:
    """Kill the product while events wait, and start it again."""
    first = max(one.alerts.arrived) // STRANGE_EVERY * STRANGE_EVERY + STRANGE_EVERY
    one.product.kill()
    first += 10 * STRANGE_EVERY
    one.produce(first, first + max(5000, int(scale.events * RESTART_EVENTS)))
    one.alerts.expect()
    began = time.time()
    one.product.start()
    while not (new := [number for number in one.alerts.arrived if number >= first]):
        if time.time() > began + PATIENCE:
            raise RuntimeError("no new alert after a restart")
        time.sleep(0.01)
    took = min(one.alerts.arrived[number] for number in new) - began
    table = Table(
        f"Restart with a state of {scale.users:,} users",
        ["start to first new alert, s", "wanted, s", "value / wanted"],
    )
    table.add(took, 5, took / 5)
    return table
