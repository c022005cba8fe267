"""`from-kafka`: read a log from Kafka topics, as a member of a consumer group.

`MessageDecoder` turns messages into lines of JSON, `KafkaConsumer` reads topics and keeps the
positions, and `FromKafka` passes the lines to the reader of files. A message that cannot be read
goes to a dead-letter topic. The client is an extra (`kafka`), so it is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec
from isal import igzip
from msgspec import structs

from morpheus.columns import LogDescription
from morpheus.core.batch import Events, MicroBatch, Partition, ReadStats, RunMetrics, Table
from morpheus.core.stage import (
    PipelineOptions,
    Values,
    list_values,
    option,
    read_lines,
    to_user_column,
)
from morpheus.core.state import StateKey
from morpheus.errors import MorpheusError, RecordError, TransientError, UsageError
from morpheus.models.profile import InputSpec
from morpheus.runtime.changelog import KafkaChangelog, PlacedPartition
from morpheus.runtime.pool import WorkerPool
from morpheus.sources.base import FileSource, Source
from morpheus.sources.compression import LargeFileError, LogPath, decompress, to_utf8
from morpheus.sources.ingest import FileIngest, IngestRun
from morpheus.sources.json_records import flatten_name
from morpheus.sources.log_format import LogFormat
from morpheus.sources.partitioning import LocalPartitionStore
from morpheus.sources.pseudonyms import Pseudonymizer
from morpheus.sources.schema_file import is_schema_file
from morpheus.sources.time_range import check_time_format, check_timezone
from morpheus.storage.object_store import ObjectPath
from morpheus.storage.spill import SpillDir
from morpheus.text import NOTICE, decode_text, format_count, quote_backtick, suggest

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, TopicPartition

logger = logging.getLogger(__name__)

ENV_PREFIX = "MORPHEUS_KAFKA_"
"""Prefix of environment variables that configure the client."""
_START_TIMEOUT = 30.0  # seconds to wait for a broker when a run that ends starts
_FIRST_WAIT = 5.0  # seconds in which an endless run finds wrong options before it trains
_REQUEST_TIMEOUT = 10.0  # seconds to wait for one answer of a broker
_SLICE = 0.1  # seconds in the client at a time: a signal is handled between two slices
_BATCH_SECONDS = 5.0  # that a batch should take at most
_FIRST_MESSAGES = 2_000  # at most in the first batch, so that rows come soon; later ones grow
_TICK = 1.0  # seconds without messages after which an empty micro-batch is due
_MAX_BATCH_BYTES = 1 << 26
"""Size of a micro-batch, before and after decompression."""
_MAX_MESSAGE_BYTES = 1 << 25
"""Size of a message after decompression. A line of the reader may have twice as much."""
_MAX_EMPTY_BYTES = 1 << 10  # size up to which a message may be an envelope without a record
_EMPTY_LIST = re.compile(rb":\s*\[\s*\]")
_MESSAGE = Path("message")  # names a message where the reader of files wants a path
_OWN_SETTINGS = {
    "bootstrap.servers": "--bootstrap_servers",
    "group.id": "--group_id",
    "group.instance.id": "--instance_id",
    "client.id": "--client_id",
    "auto.offset.reset": "--auto_offset_reset",
    "enable.auto.commit": "",
    "enable.auto.offset.store": "",
    "enable.partition.eof": "",
}
"""Settings of the client that options of the source decide, or the source itself."""
_SECRET = re.compile(
    r"^(?!.*\.(?:location|url|keytab|file)$)"  # where a secret is, is none
    r".*(?:password|secret|\.key|key\.pem|token|oauthbearer\.config|sasl\.jaas)"
)


def settings_from_env(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the client in the environment, by the client's own names.

    >>> settings_from_env({"MORPHEUS_KAFKA_SASL_PASSWORD": "s3cret", "HOME": "/root"})
    {'sasl.password': 's3cret'}
    """
    return {
        name.removeprefix(ENV_PREFIX).lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX)
    }


def read_settings_file(path: str) -> dict[str, str]:
    """Read a file of settings of the client: a line `name=value` each, `#` begins a comment.

    Raises:
        UsageError: The file cannot be read, or a line is no setting. Values are not shown.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"--kafka_config_file: `{path}` cannot be read: {reason}. Give a text file with a line "
            "`name=value` for each setting."
        ) from error
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                f"--kafka_config_file: `{path}`, line {number}: there is no `=`. Write a setting "
                "of the client as `name=value`."
            )
        settings[name.strip()] = value.strip()
    return settings


def open_changelog(
    topic: str, bootstrap_servers: str, config_file: str | None, command: str
) -> KafkaChangelog:
    """Return a changelog topic for a command that is not a run.

    Args:
        topic: Name of the topic.
        bootstrap_servers: Brokers, separated by commas.
        config_file: File of settings of the client, if any.
        command: The command, for messages.

    Raises:
        UsageError: The client is not installed, or the options are wrong.
    """
    require_client(command)
    source = FromKafka(
        bootstrap_servers=bootstrap_servers, kafka_config_file=config_file, changelog_topic=topic
    )
    return source.open_topic()


def require_client(word: str) -> None:
    """Check that the client is installed.

    Args:
        word: The stage that needs it.

    Raises:
        UsageError: It is not; the message says what to install.
    """
    try:
        import confluent_kafka  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            f"{word}: the Kafka client is not installed. Type `pip install 'morpheus-dfp[kafka]'`."
        ) from error


class ClientLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs the client's messages at level DEBUG: it repeats every failed attempt to connect.

    What they mean for a run is in the error or the notice of the run.
    """

    def log(self, level: int, msg: object, *args: object, **_: Any) -> None:  # noqa: ANN401, ARG002 - as logging declares it
        """Log a message. Its own level is not used."""
        self.logger.debug(msg, *args)


def hide_secrets(text: str, settings: Mapping[str, object]) -> str:
    """Replace the secrets among some settings in a text.

    >>> hide_secrets("bad value s3cret", {"sasl.password": "s3cret"})
    'bad value ***'
    """
    for name, value in settings.items():
        if _SECRET.search(name) and isinstance(value, str) and value:
            text = text.replace(value, "***")
    return text


class UnreadableMessageError(Exception):
    """A message that is no record of a log. Its text is the reason."""


class MessageDecoder(msgspec.Struct, frozen=True):
    """Turns the value of a message into lines of JSON.

    A value is a record, a list of records, or an envelope; JSON or JSON lines; plain, gzip or zstd.

    Attributes:
        log_format: Finds the records in envelopes.
        header_columns: Column of each header that is kept.
    """

    log_format: LogFormat
    header_columns: Mapping[str, str] = msgspec.field(default_factory=dict)

    def decode(self, value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> list[bytes]:
        """Return the lines of a message, each one JSON object or list.

        Raises:
            UnreadableMessageError: It is not JSON, or its headers name another encoding.
        """
        if headers:
            _check_headers({name.lower(): text for name, text in headers})
        elif not self.header_columns and value[:1] in (b"{", b"[") and is_single_line(value):
            return [value]  # what most messages are
        text = _decompress(value)
        if text[:1] == b"\0" and text[5:6] in (b"{", b"["):
            text = text[5:]  # the id of a schema in a registry, in front of JSON
        lines = [text] if b"\n" not in text.rstrip() else _split_lines(text)
        lines = [_check_json(line.strip()) for line in lines]
        if not self.header_columns:
            return lines
        columns, find = self._make_columns(headers), self.log_format.record_finder.find
        return [_add_fields(bytes(record), columns) for line in lines for record in find(line)]

    def is_empty(self, lines: Sequence[bytes]) -> bool:
        """Return whether a message is an envelope without a record, such as an empty delivery."""
        find = self.log_format.record_finder.find
        return all(
            len(line) <= _MAX_EMPTY_BYTES
            and b"[" in line  # which a short record seldom has
            and bool(_EMPTY_LIST.search(line))
            and not find(line)
            for line in lines
        )

    def _make_columns(self, headers: Sequence[tuple[str, bytes | None]]) -> bytes:
        """Return the headers that become columns, as fields of JSON."""
        values = dict.fromkeys(self.header_columns.values(), "") | {
            self.header_columns[name]: decode_text(text or b"")
            for name, text in headers
            if name in self.header_columns
        }
        return msgspec.json.encode(values)[1:-1]


def _add_fields(record: bytes, fields: bytes) -> bytes:
    """Return a JSON object with more fields. They come last, so that they win.

    >>> _add_fields(b'{"tenant": "of the record"}', b'"tenant":"of the header"')
    b'{"tenant": "of the record","tenant":"of the header"}'
    """
    if record[:1] != b"{":
        return record  # it is no record, which the reader says
    start = record.rstrip()[:-1].rstrip()
    return start + (b"," if start != b"{" else b"") + fields + b"}"


def _choose_size(most: int, received: int, seconds: float) -> int:
    """Return the maximum number of messages of the next batch.

    Large batches cost less per message, but a stop waits for the end of a batch.

    Args:
        most: Maximum number of messages of the batch before.
        received: Number of its messages.
        seconds: How long it took to process them.

    >>> _choose_size(2000, 2000, 0.5), _choose_size(80_000, 80_000, 8.0)
    (4000, 50000)
    """
    if not received:
        return most
    in_time = int(received / max(seconds, _SLICE) * _BATCH_SECONDS)
    return max(min(most + received, in_time), _FIRST_MESSAGES)


def is_single_line(value: bytes) -> bool:
    """Return whether a value is one line with a JSON object or list with something in it.

    >>> is_single_line(b'{"a": 1}'), is_single_line(b"[]"), is_single_line(b'{"a": 1}'[:-1])
    (True, False, False)
    """
    if len(value) > _MAX_MESSAGE_BYTES or value in (b"{}", b"[]") or b"\n" in value:
        return False
    try:
        _RAW.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


_RAW = msgspec.json.Decoder(msgspec.Raw)
_TEXT_TYPES = ("json", "text/plain", "octet-stream", "gzip", "zstd")
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "zstd", "utf-8", "utf8")


def _check_headers(headers: Mapping[str, bytes | None]) -> None:
    """Reject a message whose headers say that it is not JSON, or is compressed in another way."""
    kind = (headers.get("content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind and not any(each in kind for each in _TEXT_TYPES):
        raise UnreadableMessageError(f"the content type is {kind!r}, and only JSON is read")
    encoding = (headers.get("content-encoding") or b"").decode("latin-1").strip().lower()
    if encoding not in _ENCODINGS:
        raise UnreadableMessageError(
            f"the content encoding is {encoding!r}, and only gzip and zstd are read"
        )


def _decompress(value: bytes) -> bytes:
    try:
        text = to_utf8(decompress(value, _MESSAGE, _MAX_MESSAGE_BYTES))
    except LargeFileError as error:
        raise UnreadableMessageError(
            f"the message has more than {_MAX_MESSAGE_BYTES >> 20} MiB after decompression"
        ) from error
    except RecordError as error:
        raise UnreadableMessageError(error.reason.partition("; download")[0]) from error
    if len(text) > _MAX_MESSAGE_BYTES:
        raise UnreadableMessageError(f"the message has more than {_MAX_MESSAGE_BYTES >> 20} MiB")
    return text


def _split_lines(text: bytes) -> list[bytes]:
    """Return JSON over several lines as one line, and JSON lines as they are."""
    try:
        return [msgspec.json.format(text, indent=-1)]
    except (msgspec.MsgspecError, RecursionError):
        return [line for line in text.split(b"\n") if line and not line.isspace()]


def _check_json(line: bytes) -> bytes:
    """Return a line that is a JSON object or list with something in it."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UnreadableMessageError(f"the message is not JSON: {error}") from error
    if line[:1] not in (b"{", b"[") or line in (b"{}", b"[]"):
        raise UnreadableMessageError("the message has no record: it is not a JSON object or list")
    return line


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int

    @property
    def key(self) -> str:
        """Name of the partition among the offsets of a checkpoint."""
        return f"{self.topic}/{self.partition}"


class SavedMessage(NamedTuple):
    """What the journal of a stream keeps of a message."""

    saved_value: bytes | None
    saved_key: bytes | None
    saved_headers: list[tuple[str, bytes | None]] | None

    def value(self) -> bytes | None:
        """Return the value, as a message of the client."""
        return self.saved_value

    def key(self) -> bytes | None:
        """Return the key."""
        return self.saved_key

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """Return the headers."""
        return self.saved_headers


class Received(NamedTuple):
    """A message with its place.

    Attributes:
        place: Where it comes from.
        offset: Its offset there.
        message: The message.
    """

    place: Place
    offset: int
    message: Message | SavedMessage

    def __str__(self) -> str:
        return f"topic `{self.place.topic}`, partition {self.place.partition}, offset {self.offset}"


_JOURNAL = msgspec.msgpack.Decoder(list[tuple[Place, int, SavedMessage]])


def encode_journal(batch: Sequence[Received]) -> bytes:
    """Encode messages, so that `decode_journal` returns them after a crash."""
    rows = [
        (place, offset, (message.value(), message.key(), message.headers()))
        for place, offset, message in batch
    ]
    return igzip.compress(msgspec.msgpack.encode(rows), 0)


def decode_journal(data: bytes) -> list[Received]:
    """Return the messages of a journal."""
    messages: bytes = igzip.decompress(data)  # type: ignore[no-untyped-call]
    return [Received(*row) for row in _JOURNAL.decode(messages)]


class KafkaConsumer:
    """Reads the topics of a source, and keeps the position in each partition.

    A partition is read from the offset of the checkpoint; without one, from the offset that its
    group has committed; without that, as --auto_offset_reset says. A partition that comes back to
    this process after a rebalance continues at the later of its own and the committed offset.

    Args:
        source: Has the options.
        offsets: Offsets of the last checkpoint; see `Source.micro_batches`.
        on_wait: Called from time to time while it waits for a broker in the middle of a step.
    """

    def __init__(
        self,
        source: FromKafka,
        offsets: Mapping[str, bytes],
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        from confluent_kafka import Consumer, KafkaException  # noqa: PLC0415 - an extra

        self.source = source
        self.topics = list_values(source.input_topic)
        self.positions = _parse_offsets(offsets, self.topics)
        self.assigned: set[Place] = set()
        self.revoked: set[Place] = set()
        self.changelog = source.get_changelog()
        self._restored: dict[StateKey, bytes] = {}
        self.ends: dict[Place, int] = {}
        self._unread: set[Place] = set()
        self._was_revoked: set[Place] = set()
        self._batch: list[Received] = []
        self._ended: dict[Place, int] = {}
        self._deleted: set[Place] = set()
        self._partitions: dict[str, int] = {}
        self._begun: dict[Place, int] = {}
        self._was_assigned = self._is_checked = self._is_down = self._is_closing = False
        self._on_wait = on_wait
        self._last_error: KafkaError | None = None
        self._unsafe = 0  # micro-batches that are not acknowledged yet
        self._given = time.monotonic()  # when the latest batch was complete
        self._committed: dict[Place, int] = {}
        settings = {**source.make_settings(), "error_cb": self._on_error}
        self._is_cooperative = "cooperative" in settings["partition.assignment.strategy"]
        try:
            self._client = Consumer(settings, logger=ClientLogger(logger))
        except KafkaException as error:
            raise _settings_error(error, settings) from error
        # Also at the end of a process that a failure ends: others take over at once.
        self._close_client = weakref.finalize(self, self._client.close)

    def check_topics(self, seconds: float) -> bool:
        """Ask the brokers whether the topics exist.

        Args:
            seconds: How long to wait for an answer.

        Returns:
            Whether a broker has answered. An endless run waits for one; see `wait_for_broker`.

        Raises:
            UsageError: A topic does not exist or may not be read, or the sign-in fails.
            TransientError: No broker answers in time, and the run is one that ends.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self._find_topics()
                self._partitions = {each: len(found[each].partitions) for each in self.topics}
                if self.changelog is not None:
                    self.changelog.create(len(found[self.topics[0]].partitions))
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                self._client.poll(0)  # calls `_on_error` with the reason
                self._raise_if_rejected(reason)
                is_late = time.monotonic() >= deadline
                if is_late and self.source.until_end:
                    raise self._unavailable(reason) from error
                self._note_outage(reason)
                if is_late:
                    return False
            else:
                self._is_checked, self._is_down = True, self._note_recovery()
                return True

    def wait_for_broker(self) -> Iterator[None]:
        """Wait until a broker has answered, however long it takes; yield about once a second.

        Raises:
            UsageError: A topic does not exist or may not be read, or the sign-in fails.
        """
        while not self._is_checked and not self.check_topics(0.0):
            yield

    def _note_outage(self, error: KafkaError) -> None:
        """Say once that no broker answers, and why."""
        if self._is_down:
            return
        self._is_down = True
        until = f"for {_START_TIMEOUT:.0f} seconds" if self.source.until_end else "until one does"
        logger.warning(
            "from-kafka: no broker at `%s` answers: %s. Trying again %s.",
            *(self.source.bootstrap_servers, self._describe_failure(error), until),
            extra=NOTICE,
        )

    def _find_topics(self) -> dict[str, Any]:
        """Return what the brokers know of the topics; reject those that cannot be read.

        Each is asked for by name: a list of all has none to which access is denied.
        """
        names = [*self.topics, *list_values(self.source.dead_letter_topic)]
        found = {each: self._client.list_topics(each, timeout=_TICK).topics[each] for each in names}
        for topic, about in found.items():
            if about.error is not None and about.error.code() in _gone_codes():
                option = "--input_topic" if topic in self.topics else "--dead_letter_topic"
                known = self._client.list_topics(timeout=_REQUEST_TIMEOUT).topics
                hint = suggest(topic, known) or " Create it, or correct the name."
                where = self.source.bootstrap_servers
                raise UsageError(f"{option}: there is no topic `{topic}` at `{where}`.{hint}")
            if about.error is not None:
                raise _topic_error(about.error, topic)
        return found

    def subscribe(self) -> None:
        """Join the group."""
        self._client.subscribe(
            list(self.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def receive(self) -> Iterator[list[Received]]:
        """Yield messages, in batches of limited size and age; an empty list while none come."""
        taken, limit, most = 0, self.source.stop_after, _FIRST_MESSAGES
        while True:
            most = min(most, self.source.batch_messages)
            batch = self._collect(min(most, limit - taken) if limit else most)
            taken, start = taken + len(batch), time.monotonic()
            yield batch
            most = _choose_size(most, len(batch), time.monotonic() - start)
            if (limit and taken >= limit) or (self.source.until_end and self._is_at_end()):
                return

    def _collect(self, most: int) -> list[Received]:
        self._batch, size, start, first = [], 0, time.monotonic(), 0.0
        # Messages that are there at once may have come while the batch before was processed.
        since = self._given
        while len(self._batch) < most and size < _MAX_BATCH_BYTES:
            for message in self._client.consume(most - len(self._batch), _SLICE):
                error = message.error()
                place = Place(message.topic() or "", message.partition() or 0)
                if error is not None:
                    self._handle_error(error, place, message.offset())
                    continue
                self._batch.append(Received(place, message.offset() or 0, message))
                size += len(message)
            now = time.monotonic()
            if self._batch and not first:
                first, self._is_down = since, self._note_recovery()
            since = now
            if now - (first or now) >= self.source.batch_timeout and first:
                break
            if not first and (
                now - start >= _TICK or (self.source.until_end and self._is_at_end())
            ):
                break
        batch, self._batch = self._batch, []
        for received in batch:
            self.positions[received.place] = received.offset + 1
        for place, offset in self._ended.items():
            self._move_to_end(place, offset)
        deleted, self._ended, self._deleted = self._deleted & self.assigned, {}, set()
        for place in sorted(deleted):
            self._skip_deleted(place)
        self._given = time.monotonic()
        return batch

    def _move_to_end(self, place: Place, offset: int) -> None:
        """Go on after the marks of transactions behind the last message: they are not passed on."""
        if place in self.assigned:
            self.positions[place] = max(self.positions.get(place, 0), offset)

    def take_positions(self, batch: Iterable[Received]) -> dict[Place, int]:
        """Return the position after some messages in each of their partitions.

        That of a partition whose messages were passed over is among them: a message that comes
        while no process runs must not be passed over, too.
        """
        begun, self._begun = self._begun, {}
        begun = {place: offset for place, offset in begun.items() if place in self.assigned}
        return begun | {received.place: received.offset + 1 for received in batch}

    def make_acknowledge(self, after: Mapping[Place, int]) -> Callable[[], None] | None:
        """Return what commits positions to the group; None for no position."""
        if not after:
            return None
        self._unsafe += 1

        def acknowledge() -> None:
            self._unsafe -= 1
            self._commit(after)

        return acknowledge

    def _commit(self, after: Mapping[Place, int]) -> None:
        """Commit offsets of partitions that this process still has."""
        from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415 - an extra

        self._committed |= {p: offset for p, offset in after.items() if p in self.assigned}
        if not self.source.disable_commit and self._committed:
            places = [TopicPartition(*p, offset) for p, offset in self._committed.items()]
            try:
                if self._is_closing:
                    self._client.commit(offsets=places, asynchronous=False)
                else:
                    self._client.commit(offsets=places)
            except (KafkaException, RuntimeError) as error:
                # The offsets in the checkpoint count; those of the group are for other tools.
                logger.debug("from-kafka: offsets were not committed: %s", error)
        if not self._is_closing:
            self._committed = {}
        elif not self._unsafe:
            self._close_client()

    def close(self) -> None:
        """Leave the group, once all micro-batches are acknowledged."""
        self._is_closing = True
        if not self._unsafe:
            self._close_client()

    def _is_at_end(self) -> bool:
        return self._was_assigned and all(
            self.positions.get(place, 0) >= end for place, end in self.ends.items()
        )

    def _on_assign(self, client: Any, partitions: list[TopicPartition]) -> None:  # noqa: ANN401 - the client has few types
        """Continue each partition where it was left. Called by the client."""
        places = [Place(each.topic, each.partition) for each in partitions]
        self._was_assigned = True
        if self._is_closing or not places:
            return  # a rebalance has ended while this process leaves, or its share comes later
        if self.changelog is not None:
            for place in places:
                self._take_over(place, self.changelog)
        committed = self._request(lambda: client.committed(partitions, timeout=_REQUEST_TIMEOUT))
        for place, partition, known in zip(places, partitions, committed, strict=True):
            low, high = self._find_ends(partition)
            partition.offset = self._find_start(place, known.offset, low, high)
            self.positions[place] = partition.offset
            if partition.offset < high:
                self._unread.add(place)
            if self.source.until_end:
                self.ends.setdefault(place, high)
        if self._is_cooperative:
            client.incremental_assign(partitions)
        else:
            client.assign(partitions)
        self.assigned.update(places)
        if self.changelog is None:
            self.revoked.difference_update(places)
        names = ", ".join(place.key for place in places)
        logger.info("from-kafka: this process reads %s.", names)

    def _take_over(self, place: Place, changelog: KafkaChangelog) -> None:
        """Read the states of a partition's users, and go on where these were saved."""
        states, offset = changelog.open(place.key, place.partition, self._wait_for_states)
        self._is_down = self._note_recovery()
        self._restored |= states
        self.positions.pop(place, None)
        if offset is not None:
            self.positions[place] = offset
            self._was_revoked.discard(place)
        number = len({key.user for key in states})
        logger.info("from-kafka: took over %s of %s.", format_count(number, "user"), place.key)

    def _wait_for_states(self, seconds: float) -> None:
        """Go on waiting for brokers that have given no states for some seconds.

        Raises:
            TransientError: They have not answered for too long, and the run is one that ends.
        """
        from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

        if seconds > _START_TIMEOUT:
            reason = KafkaError(KafkaError._TIMED_OUT)  # noqa: SLF001 - the client's public name of the error
            if self.source.until_end:
                raise self._unavailable(reason)
            self._note_outage(reason)
        self._on_wait()

    def take_unread(self) -> list[str]:
        """Return the partitions with messages that this process got since the last call."""
        unread, self._unread = self._unread, set()
        return [place.key for place in sorted(unread)]

    def take_restored(self) -> dict[StateKey, bytes]:
        """Return the states of the partitions that were taken over since the last call."""
        restored, self._restored = self._restored, {}
        return restored

    def take_revoked(self) -> dict[str, bytes]:
        """Return what a checkpoint drops: the offsets of partitions that others have now."""
        revoked, self.revoked = self.revoked, set()
        return {place.key: b"" for place in revoked}

    def _find_ends(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that the broker has, and that of the next message."""
        ask = self._client.get_watermark_offsets
        low, high = self._request(lambda: ask(partition, timeout=_REQUEST_TIMEOUT))
        return low, high

    def _find_start(self, place: Place, committed: int, low: int, high: int) -> int:
        """Return the offset from which to read a partition.

        Args:
            place: The partition.
            committed: Offset that the group has committed; negative for none.
            low: First offset that the broker has.
            high: Offset of the next message.
        """
        start = self.positions.get(place)
        if start is None or (place in self._was_revoked and committed > start):
            start = committed if committed >= 0 else None
        if start is None:
            return self._begin(place, low, high)
        if start < low:
            logger.warning(
                "from-kafka: %s of %s were deleted before they were read. Keep messages longer.",
                *(format_count(low - start, "message"), place.key),
            )
            return low
        if start > high:
            logger.warning(
                "from-kafka: %s ends at offset %d, and was read up to %d: the topic was made "
                "again. It is read from its start.",
                *(place.key, high, start),
            )
            return low
        return start

    def _begin(self, place: Place, low: int, high: int) -> int:
        """Return the offset from which to read a partition that was not read before.

        One that was added while the process runs has no message that came before its start.
        """
        policy = self.source.auto_offset_reset.lower()
        if policy == "none":
            raise UsageError(
                f"--auto_offset_reset=none: neither the state nor the group "
                f"`{self.source.group_id}` has an offset of {place.key}. Give "
                "`--auto_offset_reset=earliest` or `latest`."
            )
        is_added = place.partition >= self._partitions.get(place.topic, place.partition + 1)
        if policy == "earliest" or is_added:
            return low
        self._begun[place] = high
        return high

    def _on_revoke(self, _client: object, partitions: list[TopicPartition]) -> None:
        """Drop what was not passed on of partitions that others get. Called by the client."""
        places = {Place(each.topic, each.partition) for each in partitions}
        self._batch = [each for each in self._batch if each.place not in places]
        self.assigned -= places
        self.revoked |= places
        self._was_revoked |= places
        for place in places:
            self.ends.pop(place, None)
            if self.changelog is not None:
                self.changelog.close(place.key)
        if places and not self._is_closing:
            names = ", ".join(sorted(place.key for place in places))
            logger.warning("from-kafka: this process gave back %s.", names, extra=NOTICE)

    def _on_lost(self, client: object, partitions: list[TopicPartition]) -> None:
        """Do the same without a rebalance: the group has done without this process."""
        self._on_revoke(client, partitions)

    def _request(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - the client has few types
        """Return the answer of a broker, after some attempts. An endless run waits for it.

        Raises:
            TransientError: There is none, or the topic is gone.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                answer = call()
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                is_late, code = time.monotonic() > deadline, reason.code()
                is_final = self.source.until_end or reason.fatal() or code in _gone_codes()
                if code in _access_codes() or (is_late and is_final):
                    raise self._explain(reason, ", ".join(self.topics)) from error
                if is_late:
                    self._note_outage(reason)
                self._on_wait()
                time.sleep(_SLICE)
            else:
                self._is_down = self._note_recovery()
                return answer

    def _on_error(self, error: KafkaError) -> None:
        """Keep the reason why no broker can be reached. Called by the client."""
        if error.code() != error._ALL_BROKERS_DOWN:  # noqa: SLF001 - the client's public name of the error
            self._last_error = error
        elif self._is_checked:
            self._note_outage(error)

    def _note_recovery(self) -> bool:
        """Say that a broker answers, if none did; return that none is missing."""
        if self._is_down:
            logger.warning("from-kafka: the broker answers again.", extra=NOTICE)
        return False

    def _raise_if_rejected(self, error: KafkaError) -> None:
        """Raise an error that does not pass: the broker has denied something."""
        for each in (self._last_error, error):
            if each is not None and each.code() in {each._SSL, *_access_codes()}:  # noqa: SLF001 - the client's public name of the error
                raise self._explain(each)

    def _unavailable(self, error: KafkaError) -> TransientError:
        return TransientError(
            f"from-kafka: no broker at `{self.source.bootstrap_servers}` answers: "
            f"{self._describe_failure(error)}. Check the address and that the broker runs."
        )

    def _describe_failure(self, error: KafkaError) -> str:
        """Return why no broker answers: what the client said last, or else an error."""
        reason = (self._last_error or error).str().rstrip(".")
        return hide_secrets(reason, self.source.make_settings())

    def _handle_error(self, error: KafkaError, place: Place, offset: int | None) -> None:
        """Act on an error that comes in place of a message.

        Raises:
            MorpheusError: It does not go away by itself.
        """
        code = error.code()
        if code == error._PARTITION_EOF:  # noqa: SLF001 - the client's public name of the error
            if any(received.place == place for received in self._batch):
                self._ended[place] = offset or 0
            else:
                self._move_to_end(place, offset or 0)
        elif code == error._AUTO_OFFSET_RESET:  # noqa: SLF001 - the client's public name of the error
            self._deleted.add(place)
        elif error.fatal() or code in {error._FATAL, *_access_codes(), *_gone_codes()}:  # noqa: SLF001 - the client's public name of the error
            raise self._explain(error, place.topic)
        else:
            text = hide_secrets(error.str(), self.source.make_settings())
            logger.warning("from-kafka: %s. Trying again.", text.rstrip("."), extra=NOTICE)

    def _skip_deleted(self, place: Place) -> None:
        """Go on with the first message that the broker has: older ones are deleted."""
        from confluent_kafka import TopicPartition  # noqa: PLC0415 - an extra

        low, high = self._find_ends(TopicPartition(*place))
        self._was_revoked.discard(place)
        self.positions[place] = self._find_start(place, -1, low, high)
        # The client has stopped to read the partition, and can only begin again.
        begin = [TopicPartition(*each, self.positions[each]) for each in sorted(self.assigned)]
        if self._is_cooperative:
            begin = [each for each in begin if Place(each.topic, each.partition) == place]
            self._client.incremental_unassign(begin)
            self._client.incremental_assign(begin)
        else:
            self._client.assign(begin)

    def _explain(self, error: KafkaError, topic: str = "") -> MorpheusError:
        """Return the error of the run for an error of the client."""
        code, text = error.code(), hide_secrets(error.str(), self.source.make_settings())
        where = self.source.bootstrap_servers
        if code in _gone_codes():
            return TransientError(
                f"from-kafka: the topic `{topic}` is gone from `{where}` ({text}). Create it "
                "again, or leave it out."
            )
        if code in {error._FENCED, error.FENCED_INSTANCE_ID} or "fenced" in text:  # noqa: SLF001 - the client's public name of the error
            return UsageError(
                f"--instance_id: another process of the group `{self.source.group_id}` has the id "
                f"`{self.source.instance_id}`. Give each process an id of its own."
            )
        if code in {error._AUTHENTICATION, error._SSL}:  # noqa: SLF001 - the client's public names of errors
            return UsageError(
                f"from-kafka: the broker at `{where}` does not accept the sign-in: {text}. Check "
                f"the environment variables that begin with {ENV_PREFIX}, --kafka_config_file and "
                "--kafka_option."
            )
        if code in _access_codes():
            return UsageError(
                f"from-kafka: the brokers at `{where}` deny access: {text}. Allow `Read` on "
                f"{', '.join(map(quote_backtick, self.topics))} and on the group "
                f"`{self.source.group_id}`."
            )
        return TransientError(f"from-kafka: {text.rstrip('.')}. Start the run again.")


def _access_codes() -> set[int]:
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,  # noqa: SLF001 - the client's public name of the error
    }


def _gone_codes() -> set[int]:
    from confluent_kafka import KafkaError  # noqa: PLC0415 - an extra

    return {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - the client's public name of the error
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - the client's public name of the error
    }


def _topic_error(error: KafkaError, topic: str) -> MorpheusError:
    if error.code() in _access_codes():
        return UsageError(f"from-kafka: access to the topic `{topic}` is denied: {error.str()}.")
    return TransientError(f"from-kafka: the topic `{topic}` cannot be read: {error.str()}.")


def _settings_error(error: Exception, settings: Mapping[str, object]) -> UsageError:
    text = hide_secrets(error.args[0].str(), settings).rstrip(".")
    return UsageError(
        f"from-kafka: the client rejects its settings: {text}. Correct --kafka_option, "
        f"--kafka_config_file or the environment variables that begin with {ENV_PREFIX}."
    )


def _parse_offsets(offsets: Mapping[str, bytes], topics: Sequence[str]) -> dict[Place, int]:
    """Return the offsets of a checkpoint, by partition.

    Raises:
        UsageError: They are of another source.
    """
    positions = {}
    for key, text in offsets.items():
        topic, _, partition = key.rpartition("/")
        if not (partition.isdigit() and text.isdigit()):
            raise UsageError(
                f"--state: it has a position of `{key}`, which is no partition of a topic. Give "
                "each pipeline a state file of its own."
            )
        if topic in topics:
            positions[Place(topic, int(partition))] = int(text)
    return positions


class DeadLetters:
    """Sends messages that cannot be read to a topic.

    Args:
        source: Has the options.
        topic: The topic.
    """

    def __init__(self, source: FromKafka, topic: str) -> None:
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - an extra

        self._topic = topic
        self._too_large: list[tuple[Received, str]] = []
        self._failure: tuple[Received, KafkaError] | None = None
        settings = {
            # The brokers decide which size is too large, and for each message by itself.
            "message.max.bytes": 1_000_000_000,
            "batch.num.messages": 1,
            **source.make_client_settings(),
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # it is tried until a broker takes it
        }
        try:
            self._producer = Producer(settings, logger=ClientLogger(logger))
        except KafkaException as error:
            raise _settings_error(error, settings) from error

    def send(self, received: Received, reason: str) -> None:
        """Send a message, with its key and headers, and why it cannot be read."""
        self._produce(received, reason, received.message.value())

    def _produce(self, received: Received, reason: str, value: bytes | None) -> None:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        message = received.message
        headers = [
            *(message.headers() or ()),
            ("morpheus.reason", reason.encode()),
            ("morpheus.topic", received.place.topic.encode()),
            ("morpheus.partition", str(received.place.partition).encode()),
            ("morpheus.offset", str(received.offset).encode()),
        ]

        def on_delivery(error: KafkaError | None, _message: object) -> None:
            if error is None:
                return
            if error.code() == error.MSG_SIZE_TOO_LARGE and value:
                self._too_large.append((received, reason))
            else:
                self._failure = received, error

        while True:
            try:
                self._producer.produce(
                    self._topic, value, key=message.key(), headers=headers, on_delivery=on_delivery
                )
            except BufferError:
                self._producer.poll(_SLICE)
            except KafkaException as error:
                on_delivery(error.args[0], None)
                return
            else:
                return

    def is_done(self) -> bool:
        """Wait a moment; return whether the brokers have all messages.

        Raises:
            UsageError: The brokers deny access to the topic.
            TransientError: They do not take a message for another reason.
        """
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        try:
            left = self._producer.flush(_SLICE)
        except KafkaException as error:  # such as that the topic was deleted and made again
            raise self._explain("a message", error.args[0]) from error
        too_large, self._too_large = self._too_large, []
        for received, reason in too_large:
            size = format_count(len(received.message.value() or b""), "byte")
            self._produce(
                received, f"{reason}; the value has {size}, too many for `{self._topic}`", None
            )
        if self._failure is not None:
            received, failure = self._failure
            raise self._explain(f"the message of {received}", failure)
        return not left and not too_large

    def _explain(self, what: str, error: KafkaError) -> MorpheusError:
        denied = error.code() in _access_codes()
        fix = "Allow `Write` on it" if denied else "Check the topic"
        return (UsageError if denied else TransientError)(
            f"--dead_letter_topic: `{self._topic}` did not take {what}: "
            f"{error.str().rstrip('.')}. {fix}, and start the run again. It reads the message "
            "again."
        )


_PLACE = re.compile(r"(.*\.jsonl):(\d+)(: )?", re.DOTALL)


@dataclass
class _BatchStats(ReadStats):
    """Counts of one micro-batch, with the reason of every refused record.

    Attributes:
        owners: The message of each line, by path of the lines.
        reasons: Reason by message.
        unplaced: Reasons without a line.
    """

    owners: dict[str, list[Received]] = field(default_factory=dict)
    reasons: list[tuple[Received, str]] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)

    @property
    def needs_reasons(self) -> bool:
        """Every reason is kept: each goes with a message to the dead-letter topic."""
        return True

    def refuse(self, reason: str, number: int = 1) -> None:
        """Count records that cannot be read, and keep the reason."""
        self.refused += number
        found = _PLACE.match(reason)
        received = None if found is None else self.find_message(found[1], int(found[2]))
        if found is None or received is None:
            self.unplaced.append(reason)
        elif all(known is not received for known, _ in self.reasons):
            self.reasons.append((received, reason[found.end() :].rstrip(".")))

    def find_message(self, file: str, line: int) -> Received | None:
        """Return the message of a line. A file of one line has records without lines."""
        owners = self.owners.get(file, [])
        if len(owners) == 1:
            return owners[0]
        return owners[line - 1] if line <= len(owners) else None

    def name_messages(self, text: str) -> str:
        """Return a message of the reader with the message in place of the line."""
        found = _PLACE.match(text)
        received = None if found is None else self.find_message(found[1], int(found[2]))
        return text if found is None or received is None else f"{received}: {text[found.end() :]}"


_Decoded = list[bytes] | UnreadableMessageError | None
"""The lines of a message, why there are none, or None for a tombstone."""


class _MessageReader(msgspec.Struct):
    """Reads messages with the reader of files.

    Attributes:
        metrics: Counts what happens to the messages and records.
        run: Reads the lines of each micro-batch.
        decoder: Turns messages into lines.
        dead_letters: Takes the messages that cannot be read; None to count or fail.
        keeps_places: Whether the events of each partition in Kafka stay apart.
    """

    metrics: RunMetrics
    run: IngestRun[Any, Any]
    decoder: MessageDecoder
    dead_letters: DeadLetters | None
    keeps_places: bool

    def read(
        self, batch: Sequence[Received], *, whole: bool = False
    ) -> Iterator[tuple[Sequence[Received], Sequence[Partition]]]:
        """Yield the messages in parts, each with its events.

        Args:
            batch: The messages.
            whole: Whether all messages are one part, however large they are after decompression.

        Raises:
            RecordError: A message cannot be read, and such messages are not skipped.
        """
        part, size = list[tuple[Received, _Decoded]](), 0
        for received in batch:
            decoded = self._decode(received)
            part.append((received, decoded))
            size += sum(map(len, decoded)) if isinstance(decoded, list) else 0
            if size > _MAX_BATCH_BYTES and not whole:
                yield [each for each, _ in part], self._read_part(part)
                part, size = [], 0
        if part or not batch:
            yield [each for each, _ in part], self._read_part(part)

    def _decode(self, received: Received) -> _Decoded:
        value = received.message.value()
        if value is None:
            return None
        try:
            return self.decoder.decode(value, received.message.headers() or ())  # type: ignore[arg-type]  # the client's type allows names of bytes
        except UnreadableMessageError as error:
            return error

    def _read_part(self, part: Iterable[tuple[Received, _Decoded]]) -> Sequence[Partition]:
        """Return the events of some messages."""
        lines: dict[Place, list[bytes]] = {}
        owners: dict[Place, list[Received]] = {}
        stats, tombstones, empty = _BatchStats(), 0, 0
        for received, texts in part:
            if texts is None:
                tombstones += 1
            elif isinstance(texts, UnreadableMessageError):
                self._refuse(stats, received, str(texts))
            elif self.decoder.is_empty(texts):
                empty += 1
            else:
                lines.setdefault(received.place, []).extend(texts)
                owners.setdefault(received.place, []).extend([received] * len(texts))
        if tombstones:
            stats.leave_out("tombstone", tombstones)
        if empty:
            stats.leave_out("message without a record", empty)
        partitions = self._read_lines(lines, owners, stats)
        for received, reason in stats.reasons:
            stats.refusals = [*stats.refusals, f"{received}: {reason}."][:MAX_SHOWN]
            self._report(received, reason)
        stats.files = stats.empty_files = 0
        stats.implausible_times = list(map(stats.name_messages, stats.implausible_times))
        self.metrics.input.add(stats)
        return partitions

    def read_again(self, batch: Sequence[Received]) -> Iterator[MicroBatch]:
        """Yield messages of the journal. They were counted, and their dead letters sent, before."""
        total, self.metrics.input = self.metrics.input, ReadStats()
        try:
            reader = structs.replace(self, dead_letters=None)
            for _, partitions in reader.read(batch, whole=True):
                yield MicroBatch(partitions, is_replay=True)
        finally:
            self.metrics.input = total

    def _refuse(self, stats: ReadStats, received: Received, reason: str) -> None:
        """Count a message that is not JSON, or fail."""
        if not self.run.ingest.skip_bad_records:
            raise RecordError(f"{reason}; {_SKIP_HINT}", file=received)
        stats.read += 1
        ReadStats.refuse(stats, f"{received}: {reason}.")
        self._report(received, reason)

    def _report(self, received: Received, reason: str) -> None:
        """Send a message that cannot be read to the dead-letter topic, if there is one."""
        if self.dead_letters is not None:
            self.dead_letters.send(received, reason)
            self.metrics.input.dead_letters += 1

    def _read_lines(
        self,
        lines: Mapping[Place, Sequence[bytes]],
        owners: Mapping[Place, list[Received]],
        stats: _BatchStats,
    ) -> Sequence[Partition]:
        """Read the lines of each partition as a file, so that each has a watermark of its own."""
        if not lines:
            return ()
        total, origins = self.metrics.input, dict[LogPath, LogPath]()
        self.metrics.input = stats
        with SpillDir() as spill_dir:
            for number, place in enumerate(lines):
                path = spill_dir.folder / f"{number}.jsonl"
                # Of files with the same bytes, only one would be read.
                _write_lines(path, [*lines[place], *[b""] * number])
                origins[path] = Path(place.key, "messages")
                stats.owners[str(path)] = owners[place]
            self.run.origins = origins
            try:
                partitions = self._read_files(origins)
            except RecordError as error:
                raise _relocate(error, stats) from error
            finally:
                self.metrics.input = total
        if stats.unplaced:
            raise RecordError("; ".join(stats.unplaced).rstrip("."), file="from-kafka")
        return partitions

    def _read_files(self, origins: Mapping[LogPath, LogPath]) -> Sequence[Partition]:
        """Read the lines; each partition by itself if it can go to another process with its users.

        Args:
            origins: Name of the partition in Kafka, by path of the lines.
        """
        if not self.keeps_places:
            partitions: Sequence[Partition] = self.run.partitions(list(origins), None)
            return partitions
        return [
            PlacedPartition(each, str(origin.parent))
            for path, origin in origins.items()
            if isinstance(origin, Path)
            for each in self.run.partitions([path], None)
        ]


MAX_SHOWN = 5
"""Number of messages that cannot be read which the summary names."""
_SKIP_HINT = (
    "use `--dead_letter_topic` to send such messages to a topic, or `--bad_record skip` to skip "
    "and count them"
)


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    try:
        path.write_bytes(b"\n".join(lines))
    except OSError as error:
        raise TransientError(
            f"Cannot write to the folder for temporary files: {error.strerror}. Make space there, "
            "or choose another one with TMPDIR."
        ) from error


def _relocate(error: RecordError, stats: _BatchStats) -> RecordError:
    """Return an error with the message in place of the line."""
    received = stats.find_message(error.file, error.line or 1)
    if received is None:
        return error
    reason = error.reason.partition("; use `--bad_record skip`")[0]
    return RecordError(f"{reason}; {_SKIP_HINT}", file=received)


@dataclass(frozen=True)
class FromKafka(Source):
    """Read a log from Kafka topics.

    A message is a record, a list of records, or an envelope with records, such as CloudTrail's:
    JSON or JSON lines, plain, gzip or zstd. The process joins a consumer group and reads its share
    of the partitions. Use the user as key of the messages, so that a user's events are in one
    partition. With --state, the offsets are part of the checkpoint, and a restart continues there.
    Messages without a value are counted and skipped. Settings of the client, secrets
    included, come from the environment: MORPHEUS_KAFKA_SASL_PASSWORD is its `sasl.password`. Needs
    the extra `kafka`.

    Example: `from-kafka --bootstrap_servers=localhost:9092 --input_topic=trail --log_format=okta`
    """

    name = "from-kafka"
    default_user: ClassVar[str] = ""

    bootstrap_servers: str = option(
        "", "Initial brokers, `host:port`, separated by commas.", required=True
    )
    input_topic: str | tuple[str, ...] = option(
        (), "Topic to read. Repeat for more topics of the same log.", required=True
    )
    log_format: str = option(
        "",
        "Kind of log in the messages: `cloudtrail`, `azure`, `duo`, `ocsf`, a built-in schema such "
        "as `okta`, or a schema file (`.toml`). Default: the schema given as --columns_file.",
    )
    group_id: str = option("morpheus", "Consumer group. Processes of one group share the topics.")
    client_id: str | None = option(None, "Client name shown by the brokers. Default: morpheus.")
    instance_id: str | None = option(
        None,
        "Name of this process in the group, another for each process. A process that restarts "
        "with the same name keeps its partitions.",
    )
    auto_offset_reset: str = option(
        "earliest",
        "Where to begin in a partition for which neither the state nor the group has an offset.",
        choices=("earliest", "latest", "none"),
    )
    stop_after: int = option(0, "End the run after this number of messages; 0 for no end.", min=0)
    until_end: bool = option(
        False,
        "Read what is in the topics when the run starts, and end the run.",
        flag=True,
    )
    batch_messages: int = option(
        100_000, "Maximum number of messages that are processed together.", min=1
    )
    batch_timeout: float = option(
        0.5, "Maximum number of seconds to wait for more messages before processing.", min=0.0
    )
    header_column: tuple[str, ...] = option(
        (),
        "Header of the messages to keep as a column: its name, or `header=column`. Repeat for "
        "more.",
    )
    dead_letter_topic: str | None = option(
        None,
        "Topic for messages that cannot be read. Headers say why, and the topic, partition and "
        "offset.",
    )
    changelog_topic: str | None = option(
        None,
        "Compacted topic for the states of users, so that a process that takes over a partition "
        "goes on with them. It is created if it does not exist. Needs --state.",
    )
    bad_record: str = option(
        "fail",
        "What to do with a message that cannot be read, without --dead_letter_topic: fail the run, "
        "or skip the message and count it in the summary.",
        choices=("fail", "skip"),
    )
    kafka_option: tuple[str, ...] = option(
        (),
        "Setting of the client, `name=value`, by the client's own name. Repeat for more. Not for "
        "secrets: other users of the machine can read command lines.",
    )
    kafka_config_file: str | None = option(
        None,
        "File of settings of the client, a line `name=value` each. Its secrets are not shown.",
        location="local",
    )
    time_format: str = option(
        "", "Format of the times, as for `strftime`. ISO 8601 and numbers are recognised."
    )
    implausible_time: str = option(
        "skip",
        "What to do with events before 2000 or more than a day after the clock of this machine: "
        "fail the run, skip and count them, or keep them.",
        choices=("fail", "skip", "keep"),
    )
    all_columns: bool = option(
        False, "Keep all columns of records, not only features and context columns.", flag=True
    )
    disable_commit: bool = option(
        False,
        "Do not commit offsets to the group. Without --state, each run then begins as "
        "--auto_offset_reset says.",
        flag=True,
    )
    poll_interval: str = option(
        "10millis", "Accepted for old command lines. The client waits for messages by itself."
    )
    disable_pre_filtering: bool = option(
        False,
        "Accepted for old command lines. There is no filter in front of the reader.",
        flag=True,
    )
    async_commits: bool = option(
        True, "Accepted for old command lines. Offsets are committed when the rows are safe."
    )
    journal: tuple[bytes, ...] = field(default=(), repr=False, compare=False)

    def with_defaults(self, options: PipelineOptions) -> PipelineOptions:
        """Fill options that are not given with the defaults of the log; see `Source`.

        Raises:
            UsageError: The kind of log is not known.
        """
        columns_file = options.columns_file
        if self._schema_file:
            columns = options.columns
            if columns_file and not is_schema_file(columns_file):
                columns = columns or read_lines(columns_file, option="--columns_file")
            options = replace(options, columns_file=self._schema_file, columns=columns)
        return self._make_file_source(options).with_defaults(options)

    def validate(self) -> None:
        """Reject a missing client, and options that contradict each other.

        Raises:
            UsageError: The message says what to install or to type.
        """
        require_client(self.name)
        self.make_settings()
        topics = list_values(self.input_topic)
        if self.dead_letter_topic in topics:
            raise UsageError(
                f"--dead_letter_topic: `{self.dead_letter_topic}` is also an --input_topic, so bad "
                "messages would be read again. Give another topic."
            )
        if self.stop_after and self.until_end:
            raise UsageError(
                "--until_end and --stop_after both say where the run ends. Give one of them."
            )
        self._check_changelog(topics)
        form, user = self._files.get_log_format(), self.options.userid_column_name
        form.check_actor_column(self.options.columns, to_user_column(user or form.user_column))
        self._list_header_columns(form)
        check_time_format(self.time_format, "--time_format")
        check_timezone(self.options.timezone, "--timezone")

    def _check_changelog(self, topics: Sequence[str]) -> None:
        name, options = self.changelog_topic, self.options
        if name is None:
            return
        if options.state is None:
            raise UsageError(
                "--changelog_topic: needs a state file, which keeps rows until the sinks have "
                "them. Add `--state=state.db` after `pipeline-ae`."
            )
        if options.state_max_age is not None:
            raise UsageError(
                "--changelog_topic: keeps the states that --state_max_age removes. Leave that out, "
                "and give the topic `cleanup.policy=compact,delete` and the age as `retention.ms`."
            )
        if len(topics) > 1 or name in topics:
            raise UsageError(
                "--changelog_topic: needs one --input_topic, and another topic than that."
            )
        if options.allowed_lateness not in {"", "0", "0s"}:
            raise UsageError(
                "--changelog_topic: events that wait for earlier ones would stay with this "
                "process. Leave out --allowed_lateness."
            )

    def get_changelog(self) -> KafkaChangelog | None:
        """Return the changelog topic; see `Source.get_changelog`."""
        return self._changelog

    @cached_property
    def _changelog(self) -> KafkaChangelog | None:
        if self.changelog_topic is None:
            return None
        inputs = self.describe_input()
        features = blake2b(repr(inputs.features).encode(), digest_size=4).hexdigest()
        config = f"{inputs.log_format}, users by {inputs.user_column}, features {features}"
        return self.open_topic(config)

    def open_topic(self, config: str = "") -> KafkaChangelog:
        """Return the topic that --changelog_topic names.

        Args:
            config: What its states depend on.
        """
        return KafkaChangelog(
            self.changelog_topic or "",
            self.make_client_settings(),
            self.group_id,
            config,
            ClientLogger(logger),
        )

    def is_unbounded(self) -> bool:
        """Topics have no end; with --until_end and --stop_after, the run reads a part of them."""
        return True

    def overlaps_input(self, path: Path | ObjectPath, training_input: Values | None) -> bool:
        """Return whether a file is one of the training files."""
        training = list_values(training_input)
        return bool(training) and replace(self._files, input_glob=training).overlaps_input(
            path, None
        )

    def would_read(self, path: Path | ObjectPath, training_input: Values | None) -> bool:
        """Return whether a new file of this name would be one of the training files."""
        training = list_values(training_input)
        return bool(training) and replace(self._files, input_glob=training).would_read(path, None)

    def describe_log(self) -> LogDescription:
        """Return what outputs need to know about the log."""
        return self._ingest.log_format.describe()

    def get_pseudonymizer(self) -> Pseudonymizer | None:
        """Return what replaces values by pseudonyms; see `Source.get_pseudonymizer`."""
        return self._ingest.pseudonymizer

    def describe_input(self) -> InputSpec:
        """Describe what fingerprints depend on: they are those of the same log in files."""
        return self._ingest.describe_input()

    def make_empty_batch(self, columns: Sequence[str]) -> Events | None:
        """Return a batch without events; see `Source.make_empty_batch`."""
        return Events(user=None, table=Table(self._ingest.make_empty_frame(columns)))

    def micro_batches(
        self, training_input: Values | None, metrics: RunMetrics, offsets: Mapping[str, bytes]
    ) -> Iterator[MicroBatch]:
        """Read the topics; see `Source.micro_batches`.

        Raises:
            UsageError: A topic does not exist, or access is denied.
            TransientError: No broker answers.
            RecordError: A message cannot be read, and such messages are not skipped.
        """
        consumer = KafkaConsumer(self, offsets, metrics.tick)
        topic = self.dead_letter_topic
        dead_letters = None if topic is None else DeadLetters(self, topic)
        try:
            consumer.check_topics(_START_TIMEOUT if self.until_end else _FIRST_WAIT)
            with SpillDir() as spill_dir:
                run, partitions = self._start_run(training_input, metrics, spill_dir)
                yield MicroBatch(partitions)
                reader = _MessageReader(
                    metrics,
                    run,
                    self._make_decoder(),
                    dead_letters,
                    self.changelog_topic is not None,
                )
                for data in self.journal:
                    yield from reader.read_again(decode_journal(data))
                for _ in consumer.wait_for_broker():
                    yield MicroBatch()
                consumer.subscribe()
                for batch in consumer.receive():
                    if consumer.revoked:
                        yield MicroBatch(offsets=consumer.take_revoked())
                    if metrics.lateness is not None:
                        metrics.lateness.expect(consumer.take_unread())
                    for part, partitions in reader.read(batch):
                        while dead_letters is not None and not dead_letters.is_done():
                            yield MicroBatch()
                        after = consumer.take_positions(part)
                        yield MicroBatch(
                            partitions,
                            {place.key: str(offset).encode() for place, offset in after.items()},
                            consumer.make_acknowledge(after),
                            consumer.take_restored(),
                            encode_journal(part) if part and self._has_journal else None,
                        )
        finally:
            consumer.close()

    @property
    def _has_journal(self) -> bool:
        """Whether rows need not wait for the states: these are made of the messages again.

        With pseudonyms they wait, because the messages have the names, and the state file must not.
        """
        options = self.options
        waits = options.allowed_lateness not in {"", "0", "0s"}
        moves = self.changelog_topic is not None
        return options.durable and not (waits or moves or self.get_pseudonymizer())

    def replay(self, journal: Sequence[bytes]) -> FromKafka:
        """Return a source that begins with the messages of a journal; see `Source`."""
        return replace(self, journal=tuple(journal)) if journal else self

    def _start_run(
        self, training_input: Values | None, metrics: RunMetrics, spill_dir: SpillDir
    ) -> tuple[IngestRun[Any, Any], Sequence[Partition]]:
        """Read the history."""
        ingest = self._ingest
        spec = ingest.make_partition_spec()
        with WorkerPool(self.options.num_threads) as pool:
            store = LocalPartitionStore(
                spec, ingest.memory_budget, ingest.sample_spec, spill_dir, pool
            )
            run = IngestRun(ingest, metrics, store)
            partitions = run.partitions((), training_input)
        # Micro-batches are too small to divide among processes.
        store.pool = WorkerPool(1)
        return run, partitions

    def make_settings(self) -> dict[str, Any]:
        """Return the settings of the consumer.

        Raises:
            UsageError: A setting is wrong.
        """
        return {
            "session.timeout.ms": 45_000,
            # While sinks do not take rows, nothing is read for a while.
            "max.poll.interval.ms": 600_000,
            "partition.assignment.strategy": "cooperative-sticky",
            # Brokers may send more than was asked for, such as a message of any size.
            "receive.message.max.bytes": 2_000_000_000,
            **self.make_client_settings(),
            "group.id": self.group_id,
            **({"group.instance.id": self.instance_id} if self.instance_id else {}),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            # Each partition is given its offset. What else happens is an error to handle.
            "auto.offset.reset": "error",
        }

    def make_client_settings(self) -> dict[str, Any]:
        """Return the settings of all connections: those of options, a file and the environment.

        Raises:
            UsageError: A setting is wrong.
        """
        given: dict[str, str] = {}
        if self.kafka_config_file is not None:
            given |= read_settings_file(self.kafka_config_file)
        given |= settings_from_env(os.environ)
        for text in self.kafka_option:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise UsageError(
                    f"--kafka_option: `{name}` has no value. Write `name=value`, such as "
                    "`security.protocol=ssl`."
                )
            if _SECRET.search(name):
                variable = ENV_PREFIX + name.upper().replace(".", "_")
                raise UsageError(
                    f"--kafka_option: other users of the machine can read `{name}` on a command "
                    f"line. Set {variable}, or write it to a file for --kafka_config_file."
                )
            given[name] = value
        for name in sorted(given.keys() & _OWN_SETTINGS.keys()):
            use = _OWN_SETTINGS[name]
            fix = f"Give {use}" if use else "Leave it out"
            raise UsageError(f"from-kafka: the setting `{name}` is not free. {fix}.")
        return {
            **given,
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": self.client_id or "morpheus",
        }

    @cached_property
    def _schema_file(self) -> str:
        """The schema that --log_format names; empty if it names none."""
        if is_schema_file(self.log_format):
            return self.log_format
        kind = self._find_kind()
        return "" if kind is None else kind.columns_file

    def _find_kind(self) -> Any:  # noqa: ANN401 - a `LogKind`, which is imported where it is needed
        from morpheus.sources.results import list_kinds  # noqa: PLC0415 - it loads all sources

        if not self.log_format:
            return None
        kinds = {kind.name: kind for kind in list_kinds()}
        name = self.log_format.lower().removeprefix("from-")
        if name not in kinds:
            raise UsageError(
                f"--log_format: there is no kind of log `{self.log_format}`."
                f"{suggest(name, kinds)} Give one of {', '.join(kinds)}, or a schema file "
                "(`.toml`)."
            )
        return kinds[name]

    def _make_file_source(self, options: PipelineOptions) -> FileSource:
        """Return the source that reads the same log from files."""
        from morpheus.sources.from_file import FromFile  # noqa: PLC0415 - schemas load late

        values: dict[str, Any] = {
            "time_format": self.time_format,
            "implausible_time": self.implausible_time,
            "bad_record": "skip" if self.dead_letter_topic else self.bad_record,
            "all_columns": self.all_columns,
            "options": options,
        }
        if self._schema_file or is_schema_file(options.columns_file):
            return FromFile(**values)
        kind = self._find_kind()
        if kind is None:
            raise UsageError(
                "from-kafka: the kind of log is not known. Give --log_format, such as "
                "`--log_format=cloudtrail`, or a schema as --columns_file."
            )
        source: FileSource = kind.make_source((), **values)
        return source

    @cached_property
    def _files(self) -> FileSource:
        return self._make_file_source(self.options)

    @cached_property
    def _ingest(self) -> FileIngest:
        ingest = self._files.make_ingest()
        log = ingest.log_format
        columns = tuple(self._list_header_columns(log).values())
        log = structs.replace(
            log, paths=(*log.paths, *columns), context_columns=(*log.context_columns, *columns)
        )
        # Micro-batches are read from files without a name that a message could use.
        names = tuple(f"topic `{topic}`" for topic in list_values(self.input_topic))
        files = structs.replace(ingest.files, pattern=names, option="--input_topic")
        return replace(ingest, log_format=log, files=files)

    def _make_decoder(self) -> MessageDecoder:
        log = self._files.get_log_format()
        return MessageDecoder(self._ingest.log_format, self._list_header_columns(log))

    def _list_header_columns(self, log: LogFormat) -> dict[str, str]:
        """Return the column of each header that is kept.

        Raises:
            UsageError: A column is one of the log.
        """
        columns = {}
        for text in self.header_column:
            header, _, column = text.partition("=")
            if not header:
                raise UsageError(
                    f"--header_column: `{text}` names no header. Write a name, or `header=column`."
                )
            column = flatten_name(column or header, log.drop_characters + ".")
            if column in log.columns or column in log.derived_columns or not column:
                raise UsageError(
                    f"--header_column: `{column}` is a column of {log.name} events. Give another "
                    f"name: `--header_column={header}=kafka_{column}`."
                )
            columns[header] = column
        return columns
