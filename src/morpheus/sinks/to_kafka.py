"""`to-kafka`: events to a Kafka topic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from morpheus.errors import UsageError
from morpheus.records import Batch, OutputRows, Scored, RunMetrics
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.brokers import KafkaTransport, require_client
from morpheus.sinks.contents import FORMATS, ROW_FORMAT, AlertSerializer
from morpheus.sinks.dead_letters import validate_dlq_path, open_dlq
from morpheus.sinks.delivery import Delivery, RetryPolicy, DeliveryStats
from morpheus.stage import Transform, option

_BATCH_EVENTS = 5000  # events whose arrival is waited for together


@dataclass(frozen=True)
class ToKafka(Transform):
    """Send events to a Kafka topic, a JSON object each.

    Takes events with scores, or rows, and hands them on; the message's key is the user. The run
    ends well only if the brokers have confirmed every event. Settings of the client, secrets among
    them, come from the environment: MORPHEUS_KAFKA_SASL_PASSWORD is its `sasl.password`. Needs the
    extra `kafka`.

    Example: `to-kafka --bootstrap_servers=localhost:9092 --output_topic=alerts`
    """

    name = "to-kafka"
    takes = (Scored, OutputRows)
    scope = "global"
    is_sink = True
    needs_model = False

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

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Send each batch, and hand it on."""
        writer = AlertSerializer(self.content.lower(), AlertBuilder(self.name, self.options.source))
        delivery = self._make_delivery()
        yield from delivery.deliver_through(batches, writer.serialize, flush_each=self.options.unbounded)

    def commit(self, metrics: RunMetrics) -> None:  # noqa: ARG002 - as in `Transform`
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
