"""`to-kafka`: events to a Kafka topic, each acknowledged by the brokers before it counts.

The client is an extra (`kafka`), so that it is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from morpheus.core.batch import Batch, OutputRows, RunMetrics, Scored
from morpheus.core.stage import Outputs, Requirements, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import make_finding_builder
from morpheus.sinks.alert_formats import FORMATS, ROW_FORMAT, AlertSerializer
from morpheus.sinks.delivery import (
    Delivery,
    DeliveryStats,
    OutboundEvent,
    RetryPolicy,
    SendResult,
    list_dlq,
    open_dlq,
    validate_dlq_path,
)
from morpheus.sinks.formats import ISO_TIMES, TIME_FORMATS
from morpheus.sources.from_kafka import (
    ENV_PREFIX,
    ClientLogger,
    require_client,
    settings_from_env,
)

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

logger = logging.getLogger(__name__)

ACK_TIMEOUT_REASON = "no broker acknowledged it in time"
COMPRESSION = "gzip"
"""Compression of messages. Every client can read it; lz4, snappy and zstd need libraries."""
_POLL_INTERVAL = 0.005  # seconds between two checks for acknowledgements
_ACK_GRACE = 5.0  # seconds to wait beyond the client's own timeout


class KafkaTransport:
    """Sends events to a topic.

    Args:
        servers: Initial brokers, `host:port`, separated by commas.
        topic: Topic.
        client_id: Client name shown by the brokers.
        timeout: Seconds after which an event without acknowledgement has failed.

    Raises:
        UsageError: The client is not installed, or rejects a setting.
    """

    def __init__(self, servers: str, topic: str, *, client_id: str | None, timeout: float) -> None:
        require_client(ToKafka.name)
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - an extra

        self.destination = f"`{topic}` at `{servers}`"
        self._topic, self._timeout = topic, timeout
        self._last_error = ""
        settings: dict[str, Any] = {
            "bootstrap.servers": servers,
            "client.id": client_id or "morpheus",
            "delivery.timeout.ms": round(timeout * 1000),
            # No loss, duplicates or reordering, as far as the brokers can guarantee it.
            "enable.idempotence": True,
            "compression.type": COMPRESSION,
            **settings_from_env(os.environ),
            "error_cb": self._on_error,
        }
        try:
            self._producer = Producer(settings, logger=ClientLogger(logger))
        except KafkaException as error:
            raise UsageError(
                f"to-kafka: the client rejects its settings: {error.args[0].str()}. Fix the "
                f"environment variables that begin with {ENV_PREFIX}."
            ) from error

    def send(self, events: Sequence[OutboundEvent], seconds: float | None = None) -> SendResult:
        """Send events, and wait until each is acknowledged or rejected."""
        deliveries = _PendingDeliveries(set(range(len(events))))
        for position, event in enumerate(events):
            self._produce(event, partial(deliveries.on_delivery, position))
        longest = self._timeout + _ACK_GRACE
        deadline = time.monotonic() + (longest if seconds is None else min(longest, seconds))
        while deliveries.pending and time.monotonic() < deadline:
            self._poll()
        return deliveries.result(self._last_error)

    def _on_error(self, error: KafkaError) -> None:
        """Keep the reason why a broker cannot be reached. Called by the client."""
        # That all brokers are down follows errors of each broker, which say why.
        if error.code() != error._ALL_BROKERS_DOWN:  # noqa: SLF001 - the client's public name of the error
            self._last_error = error.str()

    def close(self) -> None:
        """Drop events that are still in the client's queue."""
        self._producer.purge()
        self._producer.poll(0)

    def _poll(self) -> None:
        """Process acknowledgements, then sleep.

        The client's own `poll` with a timeout would lose a Ctrl+C while it waits.
        """
        self._producer.poll(0)
        time.sleep(_POLL_INTERVAL)

    def _produce(self, event: OutboundEvent, on_delivery: partial[None]) -> None:
        key = None if event.user is None else event.user.encode()
        headers: dict[str, str | bytes | None] = {"id": event.id}
        while True:
            try:
                self._producer.produce(
                    self._topic, event.body, key=key, headers=headers, on_delivery=on_delivery
                )
            except BufferError:
                self._poll()
            except _kafka_exception() as error:
                on_delivery(error.args[0], None)
                return
            else:
                self._producer.poll(0)
                return


class _PendingDeliveries:
    """Events that were sent together.

    Args:
        pending: Positions of the events without acknowledgement.
    """

    def __init__(self, pending: set[int]) -> None:
        self.pending = pending
        self._rejected: dict[int, str] = {}
        self._retryable: dict[int, str] = {}

    def on_delivery(
        self, position: int, error: KafkaError | None, _message: Message | None
    ) -> None:
        """Record the acknowledgement or error of an event. Called by the client."""
        self.pending.discard(position)
        if error is not None:
            reasons = self._rejected if error.code() in _rejection_codes() else self._retryable
            reasons[position] = _describe_error(error)

    def result(self, last_error: str) -> SendResult:
        """Return the result; events without acknowledgement can be retried.

        Args:
            last_error: The client's latest error, which may be why acknowledgements are missing.
        """
        why = f"{ACK_TIMEOUT_REASON} ({last_error})" if last_error else ACK_TIMEOUT_REASON
        retryable = self._retryable | dict.fromkeys(self.pending, ACK_TIMEOUT_REASON)
        reasons = {
            position: why if reason == ACK_TIMEOUT_REASON else reason
            for position, reason in sorted(retryable.items())
        }
        return SendResult(rejected=self._rejected, retryable=reasons)


def _rejection_codes() -> set[int]:
    """Return the codes of errors that an event itself causes."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


def _describe_error(error: KafkaError) -> str:
    """Return the client's description of an error; timeouts have one of our own."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return ACK_TIMEOUT_REASON if error.code() == KafkaError._MSG_TIMED_OUT else error.str()  # noqa: SLF001 - the client's public name of the error


def _kafka_exception() -> type[Exception]:
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

    return KafkaException


_BATCH_EVENTS = 5000  # events sent before waiting for acknowledgements


@dataclass(frozen=True)
class ToKafka(Sink):
    """Send events to a Kafka topic, a JSON object each.

    Takes events with scores, or rows, and passes them on. The key of a message is the user. The run
    succeeds only if the brokers acknowledge every event. Settings of the client, secrets included,
    come from the environment: MORPHEUS_KAFKA_SASL_PASSWORD is its `sasl.password`. Messages are
    compressed with gzip, which every consumer can read; MORPHEUS_KAFKA_COMPRESSION_TYPE selects
    `none`, `lz4`, `snappy` or `zstd`. Needs the extra `kafka`.

    Example: `to-kafka --bootstrap_servers=localhost:9092 --output_topic=alerts`
    """

    name = "to-kafka"
    takes = (Scored, OutputRows)
    needs = Requirements(card=True)

    output_topic: str = option("", "Topic to send to.", required=True)
    bootstrap_servers: str = option(
        "", "Initial brokers, `host:port`, separated by commas.", required=True
    )
    client_id: str | None = option(None, "Client name shown by the brokers. Default: morpheus.")
    content: str = option(
        ROW_FORMAT,
        "Format of an event: its row; a Detection Finding (ocsf); an Elastic Common Schema "
        "document (ecs); a CloudEvent with a Detection Finding in it.",
        choices=FORMATS,
    )
    delivery_timeout: float = option(
        30.0, "Seconds after which an event without acknowledgement has failed.", min=1
    )
    json_times: str = option(
        ISO_TIMES,
        "Format of times in rows: ISO 8601, or milliseconds since 1970, as NVIDIA Morpheus sends "
        "them.",
        choices=TIME_FORMATS,
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that were not accepted. The next run sends them first. Without "
        "it, brokers that accept nothing end the run.",
        location="local",
    )

    stats: DeliveryStats = field(default_factory=DeliveryStats, repr=False, compare=False)

    def validate(self) -> None:
        """Reject a missing client, and `auto` in place of brokers.

        Raises:
            UsageError: The message says what to install or to type.
        """
        require_client(self.name)
        validate_dlq_path(self.dead_letters)
        if self.bootstrap_servers.lower() == "auto":
            raise UsageError(
                "--bootstrap_servers: `auto`, which finds brokers in Docker, is not supported. "
                "Give `--bootstrap_servers=localhost:9092`."
            )

    def outputs(self) -> Outputs:
        """The topic, and the dead letters."""
        topic = f"`{self.output_topic}` at `{self.bootstrap_servers}`"
        return Outputs(destinations=(topic,), dead_letters=list_dlq(self.dead_letters))

    def open(self, context: StageContext) -> tuple[AlertSerializer, Delivery]:
        """Connect, and send the events that an earlier run has kept."""
        delivery = context.resources.enter_context(self._make_delivery().open())
        return AlertSerializer(
            self.content.lower(),
            make_finding_builder(self, context.position),
            self.json_times.lower(),
        ), delivery

    def process(self, batch: Batch, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events of a batch; on an unbounded input at once, otherwise some together."""
        serializer, delivery = state
        at_once = self.options.unbounded and not self.options.durable  # else `sync` sends the rest
        delivery.send(serializer.serialize(batch), at_once=at_once)
        yield batch

    def flush(self, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events that are left."""
        serializer, delivery = state
        delivery.send(serializer.flush(), at_once=False)
        delivery.finish()
        return iter(())

    def sync(self, state: tuple[AlertSerializer, Delivery]) -> Mapping[str, bytes]:
        """Send the events that wait, so that the receiver or the dead letters have all."""
        serializer, delivery = state
        delivery.send((), at_once=True)
        return serializer.findings.take_changes()

    def commit(self, metrics: RunMetrics) -> None:  # noqa: ARG002 - as in `Sink`
        """Fail if anything was not taken, now that every sink has its rows."""
        self.stats.raise_if_undelivered(waits=self.options.durable)

    def _make_delivery(self) -> Delivery:
        return Delivery(
            self.name,
            KafkaTransport(
                self.bootstrap_servers,
                self.output_topic,
                client_id=self.client_id,
                timeout=self.delivery_timeout,
            ),
            self.stats,
            batch_size=_BATCH_EVENTS,
            # The client itself retries until its timeout.
            retry_policy=RetryPolicy(max_retries=0),
            dead_letters=open_dlq(self.dead_letters),
        )
