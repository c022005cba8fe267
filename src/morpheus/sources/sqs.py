"""Notifications of new objects in S3, from a queue of Amazon SQS.

`parse_message` reads the messages of all ways by which S3 and CloudTrail announce objects.
`SqsQueue` talks to the queue. `SqsFeed` makes groups of objects of the messages for
`morpheus.sources.bucket.ObjectStream`. boto3 is an extra; it is imported where it is used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import msgspec
from msgspec.structs import replace

from morpheus.core.batch import MicroBatch, RunMetrics
from morpheus.errors import MorpheusError, TransientError, UsageError
from morpheus.sources.bucket import (
    MAX_BYTES,
    MAX_OBJECTS,
    TICK_SECONDS,
    GroupResult,
    ObjectGroup,
    count_others,
    digest_object,
    leave_out,
)
from morpheus.sources.discovery import FileDiscovery
from morpheus.storage.atomic import create_file
from morpheus.storage.object_store import ObjectPath

logger = logging.getLogger(__name__)

_MAX_WRAPPERS = 4
"""How often a message may be wrapped, such as by EventBridge and then by SNS."""
_EVENT_VERSION = "2."


class Notice(msgspec.Struct):
    """What a message announces.

    Attributes:
        created: The new objects.
        other_keys: Another key to try, by key; see `ObjectGroup`.
        others: Number of other announcements, by what they are.
    """

    created: list[ObjectPath] = msgspec.field(default_factory=list)
    other_keys: dict[str, str] = msgspec.field(default_factory=dict)
    others: Counter[str] = msgspec.field(default_factory=Counter)


class UnknownMessageError(Exception):
    """A message is of no known shape. The text says what was found."""


def parse_message(body: str) -> Notice:
    """Parse a message: of S3, of CloudTrail, or of EventBridge; as it is, or wrapped by SNS.

    Keys in messages of S3 are URL-encoded; those of CloudTrail and EventBridge are not.

    Raises:
        UnknownMessageError: The message is of no known shape.

    >>> parse_message('{"s3Bucket": "logs", "s3ObjectKey": ["a.json.gz"]}').created[0].key
    'a.json.gz'
    """
    for _ in range(_MAX_WRAPPERS):
        try:
            content = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UnknownMessageError(f"it is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise UnknownMessageError("it is no JSON object")
        kind, inner = content.get("Type"), content.get("Message")
        if kind in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
            return Notice(others=Counter({"subscription message": 1}))
        if kind != "Notification" or not isinstance(inner, str):
            return _parse_content(content)
        if inner == "CloudTrail validation message.":
            return Notice(others=Counter({"test notification": 1}))
        body = inner
    raise UnknownMessageError("it is wrapped too often")


def _parse_content(content: Mapping[str, Any]) -> Notice:
    try:
        if content.get("Event") == "s3:TestEvent":
            return Notice(others=Counter({"test notification": 1}))
        if "Records" in content:
            return _parse_s3(content["Records"])
        if "s3ObjectKey" in content:
            keys = content["s3ObjectKey"]
            keys = keys if isinstance(keys, list) else [keys]
            bucket = content["s3Bucket"]
            return _add_objects([(bucket, key, 0, "") for key in keys])
        if content.get("source") == "aws.s3":
            return _parse_event_bridge(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnknownMessageError(f"it lacks a field ({error})") from error
    except (ValueError, OverflowError) as error:
        raise UnknownMessageError(f"a size in it is no number ({error})") from error
    names = ", ".join(sorted(content)[:8])
    raise UnknownMessageError(f"it has the fields {names or 'of an empty object'}")


def _parse_s3(records: Sequence[Mapping[str, Any]]) -> Notice:
    """Parse the records of an S3 event of version 2."""
    notice, created = Notice(), []
    for record in records:
        version, event = str(record.get("eventVersion", "")), str(record.get("eventName", ""))
        if record.get("eventSource") != "aws:s3" and "s3" not in record:
            raise UnknownMessageError(f"its source is {record.get('eventSource')!r}, not S3")
        if not version.startswith(_EVENT_VERSION):
            raise UnknownMessageError(f"it has version {version!r} of S3 events; 2 is supported")
        if not event.removeprefix("s3:").startswith("ObjectCreated:"):
            notice.others["other notification"] += 1
            continue
        about, bucket = record["s3"]["object"], record["s3"]["bucket"]["name"]
        created.append((bucket, about["key"], about.get("size"), about.get("eTag")))
    return replace(_add_objects(created, is_encoded=True), others=notice.others)


def _parse_event_bridge(content: Mapping[str, Any]) -> Notice:
    if content.get("detail-type") != "Object Created":
        return Notice(others=Counter({"other notification": 1}))
    about, bucket = content["detail"]["object"], content["detail"]["bucket"]["name"]
    return _add_objects([(bucket, about["key"], about.get("size"), about.get("etag"))])


def _add_objects(
    objects: Sequence[tuple[str, str, int | None, str | None]], *, is_encoded: bool = False
) -> Notice:
    """Make a notice of new objects.

    Args:
        objects: Bucket, key, size and ETag of each.
        is_encoded: Whether the keys are URL-encoded.
    """
    notice = Notice()
    for bucket, text, size, etag in objects:
        if not isinstance(bucket, str) or not isinstance(text, str):
            raise UnknownMessageError("a bucket or a key in it is no text")
        key, other = text, unquote_plus(text)
        if is_encoded:
            key, other = other, key
        notice.created.append(ObjectPath(bucket, key, int(size or 0), etag=(etag or "").strip('"')))
        if other != key:
            notice.other_keys[key] = other
    return notice


class Message(msgspec.Struct, frozen=True):
    """A message of the queue.

    Attributes:
        id: Its id, which stays the same when it is received again.
        receipt: What deletes it; new each time it is received.
        body: Its text.
        receives: How often it was received.
    """

    id: str
    receipt: str
    body: str
    receives: int


EXTRA_HINT = "`pip install 'morpheus-dfp[sqs]'`"
_URL_PATTERN = re.compile(
    r"(?:sqs(?:-fips)?\.|vpce-[^.]+\.sqs\.)?(?P<region>[a-z]{2}(?:-[a-z]+)+-\d)\.|queue\.amazonaws"
)
_DENIED_CODES = re.compile(
    r"AccessDenied|InvalidClientTokenId|UnrecognizedClient|SignatureDoesNotMatch|ExpiredToken"
    r"|InvalidSecurity|MissingAuthenticationToken|OptInRequired|AuthFailure"
)
_DENIED_STATUS = {401, 403}
_THROTTLED_CODES = re.compile(r"Throttl|OverLimit|TooManyRequests", re.IGNORECASE)
_NO_QUEUE_CODES = re.compile(r"NonExistentQueue|QueueDoesNotExist|InvalidAddress")
_BATCH = 10
"""Number of messages of a request; SQS accepts no more."""
_ATTEMPTS, _CONNECT_SECONDS, _ANSWER_SECONDS = 2, 5, 10
"""How patient a call is. The receiver tries again by itself, and says why, and a run that stops
must not wait long. A request waits 2 seconds for messages."""


class SqsQueue(msgspec.Struct):
    """A queue of Amazon SQS.

    Attributes:
        url: Its URL.
        visibility: Seconds for which a received message is hidden from others.
    """

    url: str
    visibility: int = 300
    _client: Any = None

    def receive(self, wait: int) -> list[Message]:
        """Receive messages; none if there is none.

        Args:
            wait: Seconds to wait for the first.

        Raises:
            UsageError: The queue does not exist, or access is denied.
            TransientError: SQS does not respond, or limits the requests.
        """
        answer = self._call(
            "ReceiveMessage",
            MaxNumberOfMessages=_BATCH,
            WaitTimeSeconds=wait,
            VisibilityTimeout=self.visibility,
            AttributeNames=["ApproximateReceiveCount"],
        )
        return [
            Message(
                each["MessageId"],
                each["ReceiptHandle"],
                each["Body"],
                int(each.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
            )
            for each in answer.get("Messages", ())
        ]

    def delete(self, messages: Sequence[Message]) -> list[Message]:
        """Delete messages, and return those that could not be deleted; raises as `receive`."""
        entries = [{"ReceiptHandle": each.receipt} for each in messages]
        return self._call_batch("DeleteMessageBatch", messages, entries)

    def hide(self, messages: Sequence[Message], seconds: int) -> list[Message]:
        """Hide messages from now on, and return those that could not be; raises as `receive`."""
        entries = [
            {"ReceiptHandle": each.receipt, "VisibilityTimeout": seconds} for each in messages
        ]
        return self._call_batch("ChangeMessageVisibilityBatch", messages, entries)

    def has_dead_letter_queue(self) -> bool:
        """Return whether the queue moves messages to another queue itself; raises as `receive`."""
        answer = self._call("GetQueueAttributes", AttributeNames=["RedrivePolicy"])
        return "RedrivePolicy" in answer.get("Attributes", {})

    def _call_batch(
        self, action: str, messages: Sequence[Message], entries: Sequence[Mapping[str, Any]]
    ) -> list[Message]:
        failed: list[Message] = []
        for at in range(0, len(messages), _BATCH):
            part = [
                {"Id": str(number), **entry}
                for number, entry in enumerate(entries[at : at + _BATCH], at)
            ]
            answer = self._call(action, Entries=part)
            failed += [messages[int(each["Id"])] for each in answer.get("Failed", ())]
        return failed

    def _call(self, action: str, **arguments: Any) -> Any:  # noqa: ANN401 - what boto3 takes and gives
        with _translate_errors(self.url, action):
            if self._client is None:
                self._client = _make_client(self.url)
            method = re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower()
            return getattr(self._client, method)(QueueUrl=self.url, **arguments)


def check_queue_url(url: str) -> None:
    """Reject what is no URL of a queue.

    Raises:
        UsageError: It is not.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.count("/") < 2:  # noqa: PLR2004 - account and name
        raise UsageError(
            f"--sqs_queue: `{url}` is not the URL of a queue. Give one such as "
            "`https://sqs.eu-west-1.amazonaws.com/123456789012/NAME`; `aws sqs get-queue-url "
            "--queue-name NAME` shows it."
        )


def _make_client(url: str) -> Any:  # noqa: ANN401 - boto3 has no types
    """Connect to the server of a queue, in the region that its URL names."""
    import boto3  # noqa: PLC0415 - half a second, and only queues need it
    from botocore.config import Config  # noqa: PLC0415 - the same

    parts = urlsplit(url)
    found = _URL_PATTERN.match(parts.netloc)
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = (found and found["region"]) or ("us-east-1" if found else named)
    is_old = "queue.amazonaws" in parts.netloc
    return boto3.Session().client(
        "sqs",
        region_name=region,
        endpoint_url=None if is_old else f"{parts.scheme}://{parts.netloc}",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_ANSWER_SECONDS,
        ),
    )


@contextmanager
def _translate_errors(url: str, action: str) -> Iterator[None]:
    """Turn errors of boto3 into errors that say what to do.

    Raises:
        UsageError: The user must change something.
        TransientError: The queue does not respond, or limits the requests.
    """
    try:
        from botocore import exceptions  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"--sqs_queue: reading a queue needs an extra. {EXTRA_HINT}.") from error
    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.ProfileNotFound) as error:
        raise UsageError(
            f"--sqs_queue: found no credentials for {url} ({error}). Set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run on a machine with an IAM role."
        ) from error
    except exceptions.NoRegionError as error:
        raise UsageError(
            f"--sqs_queue: `{url}` names no region. Set AWS_REGION to the region of the queue."
        ) from error
    except exceptions.ClientError as error:
        raise _to_morpheus_error(error.response, url, action) from error
    except exceptions.BotoCoreError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TransientError(f"--sqs_queue: {url} cannot be reached ({reason}).") from error


def _to_morpheus_error(answer: Mapping[str, Any], url: str, action: str) -> MorpheusError:
    about = answer.get("Error", {})
    code, text = str(about.get("Code", "")), str(about.get("Message", "")).partition("\n")[0]
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if _THROTTLED_CODES.search(code):
        return TransientError(f"--sqs_queue: {url} limits the requests ({code}).")
    if _NO_QUEUE_CODES.search(code):
        return UsageError(
            f"--sqs_queue: there is no queue {url}. `aws sqs list-queues` lists the queues of your "
            "account and region."
        )
    if code.lower().startswith("kms"):
        return UsageError(
            f"--sqs_queue: {url} is encrypted, and its key cannot be used ({code}). The "
            "credentials need `kms:Decrypt` for the key of the queue."
        )
    if _DENIED_CODES.search(code) or status in _DENIED_STATUS:
        needed = action.removesuffix("Batch")
        return UsageError(
            f"--sqs_queue: access to {url} is denied ({code}). The credentials need "
            f"`sqs:{needed}` for this queue."
        )
    return TransientError(f"--sqs_queue: {url} answered with an error ({code}: {text}).")


_WAIT_SECONDS = 2
"""Seconds that a request waits for a message. Stopping can take that long."""
_START_SECONDS = 5.0
"""Seconds to wait for the first answer, so that a run with a wrong queue ends before it begins."""
_STOP_SECONDS = 5.0
"""Seconds to wait for a request when the run ends."""
_PAUSE_SECONDS = 0.05
"""Pause after an answer without messages, also of a server that does not wait."""
_MAX_WAITING = 100
"""Number of answers of the queue that wait to be read."""
_MAX_BACKOFF = 60.0


class Receiver(msgspec.Struct):
    """Receives, hides and deletes messages in a thread, so that messages stay hidden while in work.

    Attributes:
        queue: The queue.
        clock: Returns the time, in seconds.
        in_work: The messages in work by id, each with the time until which it is hidden.
        redrives: Whether the queue has a dead-letter queue; None until it has answered.
    """

    queue: SqsQueue
    clock: Callable[[], float] = time.monotonic
    in_work: dict[str, tuple[Message, float]] = msgspec.field(default_factory=dict)
    redrives: bool | None = None
    _asked: Event = msgspec.field(default_factory=Event)
    _failure: Exception | None = None
    _received: Queue[Message | Exception] = msgspec.field(
        default_factory=lambda: Queue(_MAX_WAITING * _BATCH)
    )
    _done: deque[Message] = msgspec.field(default_factory=deque)
    _lock: Lock = msgspec.field(default_factory=Lock)
    _stopped: Event = msgspec.field(default_factory=Event)
    _thread: Thread | None = None

    def start(self) -> None:
        """Begin to receive. A queue that does not respond is waited for.

        Raises:
            UsageError: The queue does not exist, or access is denied.
        """
        self._thread = Thread(target=self._run, name="sqs", daemon=True)
        self._thread.start()
        self._asked.wait(_START_SECONDS)
        if self._failure is not None:
            raise self._failure

    def get(self, timeout: float) -> Message | None:
        """Return the next message; None if none comes in time.

        Raises:
            UsageError: The queue does not exist, or access is denied.
        """
        try:
            found = self._received.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def delete(self, messages: Iterable[Message]) -> None:
        """Delete messages that are done, soon."""
        self._done.extend(messages)
        if self._stopped.is_set():
            self._leave(())
        elif self._thread is None:
            self._delete_done()

    def forget(self, message: Message) -> None:
        """Let a message be received again, once it is no longer hidden."""
        with self._lock:
            self.in_work.pop(message.id, None)

    def stop(self, unread: Sequence[Message]) -> None:
        """Stop to receive, delete what is done, and show others the messages that were not read.

        Args:
            unread: Messages that were received and not read.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        waiting = list(unread)
        while not self._received.empty():
            found = self._received.get_nowait()
            waiting += [] if isinstance(found, Exception) else [found]
        self._leave(waiting)

    def _leave(self, unread: Sequence[Message]) -> None:
        """Delete what is done, and show others the rest. A queue that is gone does not fail a run.

        What was read is known to the state, and is recognised when it is received again.
        """
        try:
            self._delete_done()
            self.queue.hide(unread, 0)
        except MorpheusError as error:
            logger.warning("%s The messages in work are received again later.", error)

    def extend(self) -> None:
        """Hide the messages in work again once half of their time is over.

        Raises:
            UsageError: Access is denied.
            TransientError: SQS does not respond, or limits the requests.
        """
        now, span = self.clock(), self.queue.visibility
        with self._lock:
            due = [each for each, until in self.in_work.values() if until - now <= span / 2]
        if not due:
            return
        failed = {message.id for message in self.queue.hide(due, span)}
        with self._lock:
            for message in due:
                if message.id in failed:
                    self.in_work.pop(message.id, None)  # others have it now
                elif message.id in self.in_work:
                    self.in_work[message.id] = (self.in_work[message.id][0], now + span)

    def _run(self) -> None:
        backoff = 1.0
        while not self._stopped.is_set():
            try:
                if self.redrives is None:
                    self.redrives = self.queue.has_dead_letter_queue()
                    self._asked.set()
                self._delete_done()
                self.extend()
                self._receive()
                backoff = 1.0
            except TransientError as error:
                self._asked.set()
                logger.warning("%s It is tried again until it succeeds.", error)
                self._stopped.wait(backoff)
                backoff = min(2 * backoff, _MAX_BACKOFF)
            except Exception as error:  # noqa: BLE001 - `get` raises it in the thread that reads
                self._failure = error
                self._asked.set()
                self._put(error)
                return

    def _receive(self) -> None:
        if self._received.qsize() > self._received.maxsize - _BATCH:
            self._stopped.wait(TICK_SECONDS)
            return
        now, messages = self.clock(), self.queue.receive(_WAIT_SECONDS)
        if not messages:
            self._stopped.wait(_PAUSE_SECONDS)
        for message in messages:
            with self._lock:
                self.in_work[message.id] = (message, now + self.queue.visibility)
            self._put(message)

    def _put(self, found: Message | Exception) -> None:
        while not self._stopped.is_set():
            try:
                self._received.put(found, timeout=TICK_SECONDS)
            except Full:
                continue
            return

    def _delete_done(self) -> None:
        with self._lock:
            taken = [self._done.popleft() for _ in range(len(self._done))]
            # If a message was received again, only the new receipt deletes it.
            done = [self.in_work.get(each.id, (each, 0.0))[0] for each in taken]
        try:
            failed = self.queue.delete(done)
        except MorpheusError:
            self._done.extend(done)
            raise
        if failed:
            logger.warning("%d messages could not be deleted, and may come again.", len(failed))
        with self._lock:
            for message in done:
                self.in_work.pop(message.id, None)


_QUARANTINE_FACTOR = 3
"""How many times `max_receives` a message is received before its objects are not read any more."""
_SEGMENT = 1024
"""Number of objects that are saved together."""
_MAX_SEGMENTS = 128
_SEEN = "seen:"


class SeenObjects(msgspec.Struct):
    """Remembers the last 130,000 objects that were read, 16 bytes each."""

    segments: dict[int, list[bytes]] = msgspec.field(default_factory=lambda: {0: []})
    _digests: set[bytes] = msgspec.field(default_factory=set)
    _changed: set[int] = msgspec.field(default_factory=set)

    @classmethod
    def restore(cls, offsets: Mapping[str, bytes]) -> SeenObjects:
        """Continue with what `take_offsets` returned."""
        found = cls()
        for name, data in offsets.items():
            if name.startswith(_SEEN):
                digests = [data[at : at + 16] for at in range(0, len(data), 16)]
                found.segments[int(name.removeprefix(_SEEN))] = digests
                found._digests.update(digests)
        return found

    def __contains__(self, path: ObjectPath) -> bool:
        return digest_object(path) in self._digests

    def add(self, path: ObjectPath) -> None:
        """Remember an object."""
        digest = digest_object(path)
        if digest in self._digests:
            return
        last = max(self.segments)
        if len(self.segments[last]) >= _SEGMENT:
            last += 1
            self.segments[last] = []
        self.segments[last].append(digest)
        self._digests.add(digest)
        self._changed.add(last)
        if len(self.segments) > _MAX_SEGMENTS:
            first = min(self.segments)
            self._digests.difference_update(self.segments.pop(first))
            self._changed.add(first)

    def take_offsets(self) -> dict[str, bytes]:
        """Return what has changed since the last call."""
        changed, self._changed = self._changed, set()
        return {f"{_SEEN}{at}": b"".join(self.segments.get(at, ())) for at in sorted(changed)}


class Quarantine(msgspec.Struct):
    """A file with the messages that could not be read, one JSON object a line.

    Attributes:
        path: The file.
    """

    path: Path

    def add(self, message: Message, url: str, reason: str) -> None:
        """Append a message, and sync the file.

        Raises:
            TransientError: The file cannot be written.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "queue": url,
            "message_id": message.id,
            "receives": message.receives,
            "reason": reason,
            "body": message.body,
        }
        try:
            with create_file(self.path, append=True) as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TransientError(
                f"--sqs_quarantine: cannot write `{self.path}` ({error.strerror}). Free disk "
                "space, or give another file."
            ) from error


class _Work(msgspec.Struct):
    """A message in the group, and its objects.

    Attributes:
        message: The message.
        notice: What it announces.
        paths: The objects to read.
    """

    message: Message
    notice: Notice
    paths: list[ObjectPath]

    def find_reason(self, result: GroupResult) -> str:
        """Return why an object of it cannot be read; empty if all could."""
        with_other = [
            path.with_key(self.notice.other_keys.get(path.key, path.key)) for path in self.paths
        ]
        both = (*self.paths, *with_other)
        return next((result.unreadable[path] for path in both if path in result.unreadable), "")


@dataclass
class SqsFeed:
    """Makes groups of the objects that messages announce.

    A message is deleted when the rows of its objects are safe. A message whose object cannot be
    read is left in the queue, until it was received `max_receives` times. Then it is written to
    the quarantine; a queue with a dead-letter queue of its own moves it there itself.

    A message that was received more often is no reason to skip an object: each run that is killed
    counts, too. But it may be what kills the run. So its objects are read by themselves.

    Attributes:
        files: Chooses the objects.
        queue: The queue.
        quarantine: Gets the messages that could not be read.
        max_receives: Number of receives after which a message is not tried again.
        timeout: Seconds to wait for more objects.
        receiver: Receives the messages.
        seen: The objects that were read.
    """

    files: FileDiscovery
    queue: SqsQueue
    quarantine: Quarantine
    max_receives: int = 5
    timeout: float = 5.0
    keeps_unreadable: bool = True
    max_objects: int = MAX_OBJECTS
    clock: Callable[[], float] = time.monotonic
    receiver: Receiver = field(init=False)
    seen: SeenObjects = field(default_factory=SeenObjects)
    _metrics: RunMetrics = field(default_factory=RunMetrics)
    _work: list[_Work] = field(default_factory=list)
    _finished: list[Message] = field(default_factory=list)
    _isolated: deque[Message] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.queue, self.clock)

    def open(self, offsets: Mapping[str, bytes], metrics: RunMetrics) -> None:
        """Continue after a checkpoint.

        Raises:
            UsageError: The queue does not exist, or access is denied.
        """
        self._metrics, self.seen = metrics, SeenObjects.restore(offsets)
        self.receiver.start()

    def groups(self) -> Iterator[ObjectGroup | None]:
        """Yield what arrives in `timeout` seconds, or earlier if it is much; None meanwhile."""
        while True:
            if self._isolated:
                self._take(self._isolated.popleft())
            else:
                yield from self._gather()
            announced = [path for work in self._work for path in work.paths]
            paths = {path: path for path in announced}
            other_keys = [work.notice.other_keys for work in self._work]
            every = {key: other for each in other_keys for key, other in each.items()}
            replaced = sum(path.etag not in {"", paths[path].etag} for path in announced)
            leave_out(self._metrics.input, "replaced object", replaced)
            repeated = len(announced) - len(paths) - replaced
            leave_out(self._metrics.input, "repeated object", repeated)
            yield ObjectGroup(list(paths.values()), every)

    def _gather(self) -> Iterator[None]:
        """Take messages until the group is complete; yield about once a second."""
        first: float | None = None
        while not self._is_complete(first):
            message = self.receiver.get(TICK_SECONDS)
            if message is None:
                yield
                continue
            first = self.clock() if first is None else first
            if message.receives > self.max_receives and not self.receiver.redrives:
                self._isolated.append(message)
            else:
                self._take(message)

    def is_known(self, path: ObjectPath) -> bool:
        """Return whether an object was read before, whatever announced it."""
        return path in self.seen

    def finish(self, result: GroupResult) -> MicroBatch:
        """Account for a group: the messages of objects that were read can be deleted."""
        work, self._work = self._work, []
        done, self._finished = self._finished, []
        for found in result.read.values():
            self.seen.add(found)
        for each in work:
            reason = each.find_reason(result)
            if not reason or self._return_or_quarantine(each.message, reason):
                done.append(each.message)
        return MicroBatch(
            offsets=self.seen.take_offsets(), acknowledge=lambda: self.receiver.delete(done)
        )

    def close(self) -> None:
        """Stop to receive. Messages that were not read are shown to others at once."""
        self.receiver.stop([*(work.message for work in self._work), *self._isolated])

    def _is_complete(self, first: float | None) -> bool:
        if first is None:
            return False
        paths = [path for work in self._work for path in work.paths]
        if len(paths) >= self.max_objects or sum(path.size for path in paths) >= MAX_BYTES:
            return True
        messages = len(self._work) + len(self._finished) + len(self._isolated)
        return messages >= MAX_OBJECTS or self.clock() - first >= self.timeout

    def _take(self, message: Message) -> None:
        """Add a message to the group."""
        stats = self._metrics.input
        try:
            notice = parse_message(message.body)
        except UnknownMessageError as error:
            if self._return_or_quarantine(
                message, f"the message is of no known kind: {error}", at_once=True
            ):
                self._finished.append(message)
            return
        for kind, number in notice.others.items():
            leave_out(stats, kind, number)
        if message.receives > _QUARANTINE_FACTOR * self.max_receives and not self.receiver.redrives:
            self._return_or_quarantine(
                message, f"it was received {message.receives} times, and each run was killed"
            )
            self._finished.append(message)
            return
        found = self.files.choose(notice.created)
        count_others(stats, found, len(notice.created))
        chosen = set(found.paths)
        paths = [path for path in notice.created if path in chosen]
        new = [path for path in paths if not (path.etag and path in self.seen)]
        leave_out(stats, "repeated object", len(paths) - len(new))
        self._work.append(_Work(message, notice, new))

    def _return_or_quarantine(
        self, message: Message, reason: str, *, at_once: bool = False
    ) -> bool:
        """Put a message into quarantine if it was received often enough.

        Returns:
            Whether the message can be deleted.
        """
        stats = self._metrics.input
        if self.receiver.redrives or (message.receives < self.max_receives and not at_once):
            logger.warning(
                "%s: message %s, receive %d, is left in the queue: %s",
                *(self.queue.url, message.id, message.receives, reason),
            )
            leave_out(stats, "returned message")
            self.receiver.forget(message)
            return False
        self.quarantine.add(message, self.queue.url, reason)
        leave_out(stats, "quarantined message")
        stats.dead_letters += 1
        logger.warning(
            "%s: message %s is moved to %s: %s",
            *(self.queue.url, message.id, self.quarantine.path, reason),
        )
        return True
