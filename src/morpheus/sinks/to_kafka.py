"""Letters to the brokers of a Kafka topic, each confirmed before it counts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from morpheus.core.batch import Batch, OutputRows, RunMetrics, Scored
from morpheus.core.stage import Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.alert_formats import FORMATS, ROW_FORMAT, AlertSerializer
from morpheus.sinks.delivery import (
    Delivery,
    DeliveryStats,
    OutboundEvent,
    RetryPolicy,
    SendResult,
    open_dlq,
    validate_dlq_path,
)

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

logger = logging.getLogger(__name__)

ACK_TIMEOUT_REASON = "no broker has confirmed it in time"
ENV_PREFIX = "MORPHEUS_KAFKA_"
"""Begins the environment variables that are settings of the client."""

_POLL_INTERVAL = 0.005  # seconds between two looks at what brokers have confirmed
_ACK_GRACE = 5.0  # seconds beyond the client's own limit before it is given up


class KafkaTransport:
    """Carries letters to a topic.

    Args:
        servers: Brokers to begin with.
        topic: Topic to send to.
        client_id: Name by which they know this client.
        timeout: Seconds after which an unconfirmed letter is given up.

    Raises:
        UsageError: The client is not installed, or refuses a setting.
    """

    def __init__(self, servers: str, topic: str, *, client_id: str | None, timeout: float) -> None:
        require_client()
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - an extra

        self.destination = f"`{topic}` at `{servers}`"
        self._topic, self._timeout = topic, timeout
        settings = {
            "bootstrap.servers": servers,
            "client.id": client_id or "morpheus",
            "delivery.timeout.ms": round(timeout * 1000),
            # Neither lost nor doubled nor out of order, as far as the brokers can see to it.
            "enable.idempotence": True,
            "compression.type": "zstd",
            **settings_from_env(os.environ),
        }
        try:
            self._producer = Producer(settings, logger=logger)
        except KafkaException as error:
            raise UsageError(
                f"to-kafka: the client refuses its settings: {error.args[0].str()}. Mend the "
                f"environment variables that begin with {ENV_PREFIX}."
            ) from error

    def send(self, events: Sequence[OutboundEvent]) -> SendResult:
        """Send letters, and wait until brokers have confirmed or refused each of them."""
        sent = _PendingDeliveries(set(range(len(events))))
        for place, letter in enumerate(events):
            self._produce(letter, partial(sent.on_delivery, place))
        deadline = time.monotonic() + self._timeout + _ACK_GRACE
        while sent.pending and time.monotonic() < deadline:
            self._poll()
        return sent.result()

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        self._producer.purge()
        self._producer.poll(0)

    def _poll(self) -> None:
        """Hear what was confirmed.

        Not within the client's own `poll`, which loses a Ctrl+C that comes while it waits.
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
    """Letters on their way.

    Args:
        pending: Places of those that nothing is known of yet.
    """

    def __init__(self, pending: set[int]) -> None:
        self.pending = pending
        self._rejected: dict[int, str] = {}
        self._retryable: dict[int, str] = {}

    def on_delivery(self, place: int, error: KafkaError | None, _message: Message | None) -> None:
        """Take note of what became of a letter."""
        self.pending.discard(place)
        if error is not None:
            reasons = self._rejected if error.code() in _rejection_codes() else self._retryable
            reasons[place] = _describe_error(error)

    def result(self) -> SendResult:
        """What became of all of them."""
        silent = dict.fromkeys(self.pending, ACK_TIMEOUT_REASON)
        later = dict(sorted((self._retryable | silent).items()))
        return SendResult(rejected=self._rejected, retryable=later)


def settings_from_env(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings of the client, by its own names, that the environment holds.

    >>> settings_from_env({"MORPHEUS_KAFKA_SASL_PASSWORD": "s3cret", "HOME": "/root"})
    {'sasl.password': 's3cret'}
    """
    return {
        name.removeprefix(ENV_PREFIX).lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX)
    }


def require_client() -> None:
    """Refuse to go on without the client.

    Raises:
        UsageError: Says what to install.
    """
    try:
        import confluent_kafka  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "to-kafka: the Kafka client is not installed. Type `pip install 'morpheus[kafka]'`."
        ) from error


def _rejection_codes() -> set[int]:
    """Codes of errors that are the letter's own fault."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


def _describe_error(error: KafkaError) -> str:
    """The client's own words, but for its time limit."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return ACK_TIMEOUT_REASON if error.code() == KafkaError._MSG_TIMED_OUT else error.str()  # noqa: SLF001 - the client names its own errors so


def _kafka_exception() -> type[Exception]:
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

    return KafkaException


_BATCH_EVENTS = 5000  # events whose arrival is waited for together


@dataclass(frozen=True)
class ToKafka(Sink):
    """Send events to a Kafka topic, a JSON object each.

    Takes events with scores, or rows, and hands them on; the message's key is the user. The run
    ends well only if the brokers have confirmed every event. Settings of the client, secrets among
    them, come from the environment: MORPHEUS_KAFKA_SASL_PASSWORD is its `sasl.password`. Needs the
    extra `kafka`.

    Example: `to-kafka --bootstrap_servers=localhost:9092 --output_topic=alerts`
    """

    name = "to-kafka"
    takes = (Scored, OutputRows)

    output_topic: str = option("", "Topic to send to.", required=True)
    bootstrap_servers: str = option(
        "", "Brokers to begin with, `host:port`, separated by commas.", required=True
    )
    client_id: str | None = option(None, "Name by which brokers know this client.")
    content: str = option(
        ROW_FORMAT,
        "What is sent of an event: its row; a Detection Finding (ocsf); an Elastic Common Schema "
        "document (ecs); a CloudEvent with a Detection Finding in it.",
        choices=FORMATS,
    )
    delivery_timeout: float = option(
        30.0, "Seconds after which an event that no broker has confirmed is given up.", min=1
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that are not taken. The next run sends them first. Without it, "
        "brokers that take nothing end the run.",
    )

    stats: DeliveryStats = field(default_factory=DeliveryStats, repr=False, compare=False)

    def validate(self) -> None:
        """Refuse to begin without the client, and without brokers.

        Raises:
            UsageError: Says what to install or to type.
        """
        require_client()
        validate_dlq_path(self.dead_letters)
        if self.bootstrap_servers.lower() == "auto":
            raise UsageError(
                "--bootstrap_servers: `auto` looked for brokers in Docker, which is not done here. "
                "Give `--bootstrap_servers=localhost:9092`."
            )

    def open(self, context: StageContext) -> tuple[AlertSerializer, Delivery]:
        """Connect, and send the events that an earlier run has kept."""
        alerts = AlertBuilder(self.name, self.options.source)
        delivery = context.resources.enter_context(self._make_delivery().open())
        return AlertSerializer(self.content.lower(), alerts), delivery

    def process(self, batch: Batch, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events of a batch; on an unbounded input at once, otherwise some together."""
        serializer, delivery = state
        delivery.send(serializer.serialize(batch), at_once=self.options.unbounded)
        yield batch

    def flush(self, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events that are left."""
        state[1].finish()
        return iter(())

    def commit(self, metrics: RunMetrics) -> None:  # noqa: ARG002 - as in `Sink`
        """Fail if anything was not taken, now that every sink has its rows."""
        self.stats.raise_if_undelivered()

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
            # The client has tried again all the time that it had.
            retry_policy=RetryPolicy(max_retries=0),
            dead_letters=open_dlq(self.dead_letters),
        )
