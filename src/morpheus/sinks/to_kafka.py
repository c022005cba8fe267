"""`to-kafka`: events to a Kafka topic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from morpheus.errors import UsageError
from morpheus.records import Batch, Rows, Scored, Summary
from morpheus.sinks.alert import Alerts
from morpheus.sinks.brokers import Brokers, require_client
from morpheus.sinks.contents import CONTENTS, ROW_CONTENT, Writer
from morpheus.sinks.dead_letters import check_place, refuge_at
from morpheus.sinks.delivery import Delivery, Patience, Tally
from morpheus.stage import Stage, option

_TOGETHER = 5000  # events whose arrival is waited for together


@dataclass(frozen=True)
class ToKafka(Stage):
    """Send events to a Kafka topic, a JSON object each.

    Takes events with scores, or rows, and hands them on; the message's key is the user. The run
    ends well only if the brokers have confirmed every event. Settings of the client, secrets among
    them, come from the environment: MORPHEUS_KAFKA_SASL_PASSWORD is its `sasl.password`. Needs the
    extra `kafka`.

    Example: `to-kafka --bootstrap_servers=localhost:9092 --output_topic=alerts`
    """

    name = "to-kafka"
    takes = (Scored, Rows)
    scope = "run"
    sink = True
    needs_fingerprint = False

    output_topic: str = option("", "Topic to send to.", required=True)
    bootstrap_servers: str = option(
        "", "Brokers to begin with, `host:port`, separated by commas.", required=True
    )
    client_id: str | None = option(None, "Name by which brokers know this client.")
    content: str = option(
        ROW_CONTENT,
        "What is sent of an event: its row; a Detection Finding (ocsf); an Elastic Common Schema "
        "document (ecs); a CloudEvent with a Detection Finding in it.",
        choices=CONTENTS,
    )
    delivery_timeout: float = option(
        30.0, "Seconds after which an event that no broker has confirmed is given up.", low=1
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that are not taken. The next run sends them first. Without it, "
        "brokers that take nothing end the run.",
    )

    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    def check(self) -> None:
        """Refuse to begin without the client, and without brokers.

        Raises:
            UsageError: Says what to install or to type.
        """
        require_client()
        check_place(self.dead_letters)
        if self.bootstrap_servers.lower() == "auto":
            raise UsageError(
                "--bootstrap_servers: `auto` looked for brokers in Docker, which is not done here. "
                "Give `--bootstrap_servers=localhost:9092`."
            )

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Send each batch, and hand it on."""
        writer = Writer(self.content.lower(), Alerts(self.name, self.settings.source))
        delivery = self._delivery()
        yield from delivery.along(batches, writer.letters, at_once=self.settings.endless)

    def finish(self, summary: Summary) -> None:  # noqa: ARG002 - as in `Stage`
        """Fail if anything was not taken, now that every sink has its rows."""
        self.tally.settle()

    def _delivery(self) -> Delivery:
        return Delivery(
            self.name,
            Brokers(
                self.bootstrap_servers,
                self.output_topic,
                client_id=self.client_id,
                timeout=self.delivery_timeout,
            ),
            self.tally,
            size=_TOGETHER,
            # The client has tried again all the time that it had.
            patience=Patience(retries=0),
            refuge=refuge_at(self.dead_letters),
        )
