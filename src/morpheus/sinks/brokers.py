"""Letters to the brokers of a Kafka topic, each confirmed before it counts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from morpheus.errors import UsageError
from morpheus.sinks.letters import Answer, Letter

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

logger = logging.getLogger(__name__)

SILENCE = "no broker has confirmed it in time"
PREFIX = "MORPHEUS_KAFKA_"
"""Begins the environment variables that are settings of the client."""

_NAP = 0.005  # seconds between two looks at what brokers have confirmed
_GRACE = 5.0  # seconds beyond the client's own limit before it is given up


class Brokers:
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

        self.to = f"`{topic}` at `{servers}`"
        self._topic, self._timeout = topic, timeout
        settings = {
            "bootstrap.servers": servers,
            "client.id": client_id or "morpheus",
            "delivery.timeout.ms": round(timeout * 1000),
            # Neither lost nor doubled nor out of order, as far as the brokers can see to it.
            "enable.idempotence": True,
            "compression.type": "zstd",
            **settings_in(os.environ),
        }
        try:
            self._producer = Producer(settings, logger=logger)
        except KafkaException as error:
            raise UsageError(
                f"to-kafka: the client refuses its settings: {error.args[0].str()}. Mend the "
                f"environment variables that begin with {PREFIX}."
            ) from error

    def carry(self, letters: Sequence[Letter]) -> Answer:
        """Send letters, and wait until brokers have confirmed or refused each of them."""
        sent = _Sent(set(range(len(letters))))
        for place, letter in enumerate(letters):
            self._produce(letter, partial(sent.told, place))
        deadline = time.monotonic() + self._timeout + _GRACE
        while sent.waiting and time.monotonic() < deadline:
            self._wait()
        return sent.answer()

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        self._producer.purge()
        self._producer.poll(0)

    def _wait(self) -> None:
        """Hear what was confirmed.

        Not within the client's own `poll`, which loses a Ctrl+C that comes while it waits.
        """
        self._producer.poll(0)
        time.sleep(_NAP)

    def _produce(self, letter: Letter, told: partial[None]) -> None:
        key = None if letter.user is None else letter.user.encode()
        headers: dict[str, str | bytes | None] = {"id": letter.id}
        while True:
            try:
                self._producer.produce(
                    self._topic, letter.body, key=key, headers=headers, on_delivery=told
                )
            except BufferError:
                self._wait()
            except _kafka_exception() as error:
                told(error.args[0], None)
                return
            else:
                self._producer.poll(0)
                return


class _Sent:
    """Letters on their way.

    Args:
        waiting: Places of those that nothing is known of yet.
    """

    def __init__(self, waiting: set[int]) -> None:
        self.waiting = waiting
        self._refused: dict[int, str] = {}
        self._later: dict[int, str] = {}

    def told(self, place: int, error: KafkaError | None, _message: Message | None) -> None:
        """Take note of what became of a letter."""
        self.waiting.discard(place)
        if error is not None:
            reasons = self._refused if error.code() in _unfit() else self._later
            reasons[place] = _told(error)

    def answer(self) -> Answer:
        """What became of all of them."""
        silent = dict.fromkeys(self.waiting, SILENCE)
        later = dict(sorted((self._later | silent).items()))
        return Answer(refused=self._refused, later=later)


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings of the client, by its own names, that the environment holds.

    >>> settings_in({"MORPHEUS_KAFKA_SASL_PASSWORD": "s3cret", "HOME": "/root"})
    {'sasl.password': 's3cret'}
    """
    return {
        name.removeprefix(PREFIX).lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith(PREFIX)
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


def _unfit() -> set[int]:
    """Codes of errors that are the letter's own fault."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


def _told(error: KafkaError) -> str:
    """The client's own words, but for its time limit."""
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return SILENCE if error.code() == KafkaError._MSG_TIMED_OUT else error.str()  # noqa: SLF001 - the client names its own errors so


def _kafka_exception() -> type[Exception]:
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

    return KafkaException
