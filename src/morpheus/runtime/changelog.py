"""A changelog topic: what moves the states of users to another process, with their partition.

`KafkaChangelog` has one partition for each partition of the input. A transaction writes the states
that have changed, and how far the input was read with them. It follows the rows: they are with the
sinks before. So a process that takes over a partition reads its states, goes on at that offset, and
repeats at most rows that have the same ids. `StateGroup` collects what the next transaction writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from morpheus.core.batch import Batch, Partition, RunMetrics
from morpheus.core.state import StateKey
from morpheus.errors import TransientError, UsageError
from morpheus.text import NOTICE, suggest

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaException, Producer

logger = logging.getLogger(__name__)

_OFFSET_KEY = b'"offset"'
"""Key of the record with the offset. Those of states are lists."""
_MAX_UNSENT = 10_000
"""Maximum number of records that wait for the brokers."""
_SECONDS = 5.0  # for one answer of a broker, so that the run is not held up for longer
_WAIT_SECONDS = 1.0  # in the client at a time: a signal is handled between two calls
_PAUSE_SECONDS = 0.1
_RESTORE_SECONDS = 60.0  # without any record, until a command that is not a run gives up
_MAX_STATE_BYTES = 1 << 26


class PlacedPartition(msgspec.Struct, frozen=True):
    """Events of one partition of the source.

    Attributes:
        partition: The events.
        place: Name of the partition of the source, as in `MicroBatch.offsets`.
    """

    partition: Partition
    place: str

    def user_names(self) -> list[str | None]:
        """Return the users; see `Partition`."""
        return self.partition.user_names()

    def events(self, metrics: RunMetrics, state: Any = None) -> Iterator[Batch]:  # noqa: ANN401 - a `PartitionState`, of a higher layer
        """Read the events; see `Partition`."""
        return self.partition.events(metrics, state)


class StateGroup(msgspec.Struct):
    """What was saved since the last transaction.

    Attributes:
        states: Changed states.
        places: Partition of the source of each user in them.
        offsets: How far each partition was read with these states.
        acknowledge: What to call when they are written.
        newest: Last entry of the outbox that belongs to them, by place of the pipeline.
    """

    states: dict[StateKey, bytes] = msgspec.field(default_factory=dict)
    places: dict[str | None, str] = msgspec.field(default_factory=dict)
    offsets: dict[str, bytes] = msgspec.field(default_factory=dict)
    acknowledge: list[Callable[[], None]] = msgspec.field(default_factory=list)
    newest: dict[str, int] = msgspec.field(default_factory=dict)

    def save(self, states: Mapping[StateKey, bytes]) -> None:
        """Add changed states. Those of all users together stay with the process."""
        self.states.update((key, data) for key, data in states.items() if key.user in self.places)

    def forget(self, place: str) -> list[str | None]:
        """Drop what belongs to a partition of the source; return its users."""
        users = [user for user, known in self.places.items() if known == place]
        gone = set(users)
        self.states = {key: data for key, data in self.states.items() if key.user not in gone}
        self.places = {user: known for user, known in self.places.items() if known != place}
        self.offsets.pop(place, None)
        return users


class StoredState(msgspec.Struct, frozen=True):
    """A state in a changelog topic.

    Attributes:
        partition: Partition of the topic.
        key: Stage and user.
    """

    partition: int
    key: StateKey


class Changelog(Protocol):
    """Where states go so that another process can take them over.

    Attributes:
        topic: Name of the topic.
    """

    topic: str

    def write(self, group: StateGroup) -> bool:
        """Write a group; return whether it is safe. If not, it is passed again."""


class ChangedOwnerError(Exception):
    """Another process has taken over a partition."""


class KafkaChangelog:
    """States in a compacted topic.

    Args:
        topic: The topic.
        settings: Settings of the client.
        owner: Name of the consumer group: the transactions of a partition are of one process of it.
        config: What states depend on. A topic with states of others is rejected.
        log: Gets the messages of the client.
    """

    def __init__(
        self,
        topic: str,
        settings: Mapping[str, Any],
        owner: str,
        config: str,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self.topic, self._settings, self._owner = topic, settings, owner
        self._config, self._log = config, log
        self._producers: dict[str, tuple[Producer, int]] = {}
        self._partitions: int | None = None

    def create(self, partitions: int) -> None:
        """Create the topic, unless it exists.

        Raises:
            UsageError: It has fewer partitions than the input, or cannot be created.
            KafkaException: No broker answers.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra
        from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - an extra

        admin = AdminClient(dict(self._settings), logger=self._log)
        found = admin.list_topics(timeout=_SECONDS).topics.get(self.topic)
        self._partitions = partitions if found is None else len(found.partitions)
        if found is not None:
            self._check_partitions(partitions)
            return
        config = {"cleanup.policy": "compact", "max.message.bytes": str(_MAX_STATE_BYTES)}
        new = NewTopic(self.topic, partitions, config=config)
        try:
            admin.create_topics([new])[self.topic].result(_SECONDS)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() in {reason._TIMED_OUT, reason._TRANSPORT, reason.REQUEST_TIMED_OUT}:  # noqa: SLF001 - the client's public names of errors
                raise
            if reason.code() == reason.TOPIC_ALREADY_EXISTS:
                return  # another process has been faster
            raise UsageError(
                f"--changelog_topic: `{self.topic}` cannot be created: {reason.str()}. "
                f"Create it with {partitions} partitions and `cleanup.policy=compact`."
            ) from error

    def _check_partitions(self, wanted: int) -> None:
        """Reject more partitions of the input than the topic has."""
        if self._partitions is not None and self._partitions < wanted:
            raise UsageError(
                f"--changelog_topic: `{self.topic}` has {self._partitions} partitions, and the "
                f"input has {wanted}. Give a topic with as many, or one that does not exist."
            )

    def open(
        self, place: str, partition: int, on_wait: Callable[[float], None] | None = None
    ) -> tuple[dict[StateKey, bytes], int | None]:
        """Take over a partition: end the transactions of its last owner, and read its states.

        Args:
            place: Name of the partition of the source.
            partition: Its number, which is that of the partition of the topic.
            on_wait: Called about once a second while no broker answers, with the seconds since the
                last answer. As long as it returns, the brokers are waited for. None for a minute.

        Returns:
            The states, and the offset of the input that belongs to them; None for an empty topic.

        Raises:
            UsageError: The states are of another pipeline, or the input has got more partitions.
            TransientError: The brokers deny transactions, or the topic is gone.
        """
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        self._check_partitions(partition + 1)
        settings = {
            **self._settings,
            "transactional.id": f"{self._owner}-{self.topic}-{partition}",
            "message.max.bytes": _MAX_STATE_BYTES,
            "compression.type": "gzip",
            "linger.ms": 50,
        }
        producer = Producer(settings, logger=self._log)
        begun, on_wait = time.monotonic(), on_wait or self._limit_wait
        while not self._begin_transactions(producer):
            on_wait(time.monotonic() - begun)
        self._producers[place] = (producer, partition)
        states, position = self._restore(partition, on_wait)
        if position is None:
            return states, None
        if position.config != self._config:
            raise UsageError(
                f"--changelog_topic: `{self.topic}` has states of another pipeline: "
                f"{position.config}, not {self._config}. Use the same options, or another topic."
            )
        return states, position.offset

    def _begin_transactions(self, producer: Producer) -> bool:
        """End the transactions of the last owner; return whether the brokers have done it."""
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        try:
            producer.init_transactions(_WAIT_SECONDS)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise self._unavailable(error) from error
            time.sleep(_PAUSE_SECONDS)
            return False
        return True

    def find_states(self) -> list[StoredState]:
        """Return the states in the topic, whatever pipeline wrote them.

        Raises:
            UsageError: There is no such topic, or it has other records than states.
            TransientError: No broker answers.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - an extra

        servers = self._settings["bootstrap.servers"]
        try:
            admin = AdminClient(dict(self._settings), logger=self._log)
            topics = admin.list_topics(timeout=_SECONDS).topics
        except KafkaException as error:
            raise TransientError(
                f"--changelog_topic: no broker at `{servers}` answers: "
                f"{error.args[0].str().rstrip('.')}. Check the address and that the broker runs."
            ) from error
        if self.topic not in topics:
            raise UsageError(
                f"--changelog_topic: there is no topic `{self.topic}` at `{servers}`."
                f"{suggest(self.topic, topics)}"
            )
        try:
            return [
                StoredState(partition, key)
                for partition in sorted(topics[self.topic].partitions)
                for key in self._restore(partition, self._limit_wait)[0]
            ]
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise UsageError(
                f"--changelog_topic: `{self.topic}` has other records than states of users. Give "
                "the topic that `from-kafka --changelog_topic` names."
            ) from error

    def _limit_wait(self, seconds: float) -> None:
        """End a command that waits for too long."""
        if seconds > _RESTORE_SECONDS:
            raise TransientError(
                f"--changelog_topic: no broker gives the states of `{self.topic}`. Run the "
                "command again when they answer."
            )

    def erase(self, states: Sequence[StoredState]) -> None:
        """Write that states are gone. No process may use the topic: it would write them again.

        Raises:
            TransientError: The brokers have not taken all of it.
        """
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        failed: list[str] = []

        def note(error: Any, _: object) -> None:  # noqa: ANN401 - an error of an extra
            failed.extend([] if error is None else [error.str()])

        settings = {**self._settings, "enable.idempotence": True}
        producer = Producer({**settings, "delivery.timeout.ms": 30_000}, logger=self._log)
        for state in states:
            key = msgspec.json.encode(state.key)
            if len(producer) >= _MAX_UNSENT:
                producer.flush()  # its queue has a limit
            producer.produce(self.topic, None, key, partition=state.partition, on_delivery=note)
        producer.flush()
        if failed:
            raise TransientError(
                f"--changelog_topic: `{self.topic}` did not take all records: {failed[0]}. Run the "
                "command again."
            )

    def close(self, place: str) -> None:
        """Leave a partition to others."""
        self._producers.pop(place, None)

    def write(self, group: StateGroup) -> bool:
        """Write a group, one transaction for each partition; see `Changelog`."""
        by_place: dict[str, list[StateKey]] = {}
        for key in group.states:
            by_place.setdefault(group.places[key.user], []).append(key)
        for place, data in list(group.offsets.items()):
            if place not in self._producers or not data:
                continue
            try:
                keys = by_place.get(place, [])
                safe = self._write_place(place, int(data), {k: group.states[k] for k in keys})
            except ChangedOwnerError:
                logger.warning(
                    "from-kafka: another process has taken over %s.", place, extra=NOTICE
                )
                self.close(place)
                continue
            if not safe:
                return False
            del group.offsets[place]
        return True

    def _write_place(self, place: str, offset: int, states: Mapping[StateKey, bytes]) -> bool:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        producer, partition = self._producers[place]
        try:
            producer.begin_transaction()
            for key, data in states.items():
                self._produce(producer, partition, msgspec.json.encode(key), data)
            position = msgspec.json.encode(_Position(offset, self._config))
            self._produce(producer, partition, _OFFSET_KEY, position)
            _commit(producer)
        except KafkaException as error:
            return self._recover(producer, error)
        return True

    def _produce(self, producer: Producer, partition: int, key: bytes, data: bytes) -> None:
        while True:
            try:
                producer.produce(self.topic, data, key=key, partition=partition)
            except BufferError:
                producer.poll(0.1)
            else:
                return

    def _recover(self, producer: Producer, error: KafkaException) -> bool:
        """Give up a transaction, so that it can be tried again.

        Raises:
            ChangedOwnerError: It cannot, because another process has taken over.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        reason = error.args[0]
        if reason.code() == reason._FENCED or reason.fatal():  # noqa: SLF001 - the client's public name of the error
            raise ChangedOwnerError from error
        logger.warning(
            "from-kafka: `%s` did not take states: %s. Trying again.",
            *(self.topic, reason.str().rstrip(".")),
            extra=NOTICE,
        )
        try:
            producer.abort_transaction(_SECONDS)
        except KafkaException as other:
            if other.args[0].fatal():
                raise ChangedOwnerError from other
        return False

    def _restore(
        self, partition: int, on_wait: Callable[[float], None]
    ) -> tuple[dict[StateKey, bytes], _Position | None]:
        """Read the latest record of each key; call `on_wait` while no record comes."""
        from confluent_kafka import Consumer, TopicPartition  # noqa: PLC0415 - an extra

        settings = {
            **self._settings,
            "group.id": f"{self._owner}-restore",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        consumer = Consumer(settings, logger=self._log)
        states: dict[StateKey, bytes] = {}
        position, heard = None, time.monotonic()
        try:
            consumer.assign([TopicPartition(self.topic, partition, 0)])
            while True:
                messages = consumer.consume(1000, _WAIT_SECONDS)
                for message in messages:
                    error, data = message.error(), message.value()
                    if error is not None and error.code() == error._PARTITION_EOF:  # noqa: SLF001 - the client's public name of the error
                        return states, position
                    if error is not None:
                        continue
                    heard = time.monotonic()
                    if message.key() == _OFFSET_KEY:
                        position = msgspec.json.decode(data or b"", type=_Position)
                    else:
                        _apply(states, msgspec.json.decode(message.key() or b""), data)
                if time.monotonic() - heard >= _WAIT_SECONDS:
                    self._check_exists(consumer, partition)
                    on_wait(time.monotonic() - heard)
        finally:
            consumer.close()

    def _check_exists(self, consumer: Consumer, partition: int) -> None:
        """Reject a partition that is gone, or to which access is denied."""
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        try:
            found = consumer.list_topics(self.topic, timeout=_WAIT_SECONDS).topics[self.topic]
        except KafkaException:
            return  # no broker answers
        reason = found.error
        if reason is None and partition in found.partitions:
            return
        if reason is not None and reason.code() == reason.LEADER_NOT_AVAILABLE:
            return  # it is being created
        text = f"there is no partition {partition}" if reason is None else reason.str().rstrip(".")
        raise TransientError(
            f"--changelog_topic: `{self.topic}` cannot be read: {text}. Check the topic and that "
            "`Read` on it is allowed, and start the run again."
        )

    def _unavailable(self, error: Exception) -> TransientError:
        return TransientError(
            f"--changelog_topic: the brokers cannot begin a transaction on `{self.topic}`: "
            f"{error.args[0].str().rstrip('.')}. Allow `Write` on the topic and on its "
            "transactional ids, and start the run again."
        )


class _Position(msgspec.Struct):
    """How far the input was read with the states.

    Attributes:
        offset: Offset of the next message of the input.
        config: What the states depend on.
    """

    offset: int
    config: str


def _commit(producer: Producer) -> None:
    """Commit a transaction. An error that passes is tried once more."""
    from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

    try:
        producer.commit_transaction(_SECONDS)
    except KafkaException as error:
        if not error.args[0].retriable():
            raise
        producer.commit_transaction(_SECONDS)


def _apply(states: dict[StateKey, bytes], key: Sequence[Any], data: bytes | None) -> None:
    """Take over a record: a state, or that there is none any more."""
    name = StateKey(*key)
    if data is None:
        states.pop(name, None)
    else:
        states[name] = data
