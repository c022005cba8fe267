"""How each kind of server wants alerts over HTTP, and how it says what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import msgspec

from morpheus.sinks.contents import CLOUDEVENTS, ROW_CONTENT
from morpheus.sinks.letters import Answer, Letter
from morpheus.sinks.post import Post, Reply, Unanswered

CREATED, OK_END, CONFLICT = 200, 300, 409
_LATER = {408, 425, 429}
_TOO_MUCH = {400, 413, 422}
_SERVER_FAILED = {*range(500, 600)} - {501, 505}  # these two fail each time
_NOT_INDEXED_HERE = {7, 10, 11}  # Splunk: wrong index, no data channel, wrong data channel


class Receiver(Protocol):
    """A kind of server.

    Attributes:
        endpoint: Where it takes alerts, unless told otherwise.
        content: What it is sent, unless told otherwise.
        scheme: Word before a token in the header `Authorization`.
    """

    endpoint: ClassVar[str]
    content: ClassVar[str]
    scheme: ClassVar[str]

    def kind(self, content: str) -> str:
        """Type of the body."""

    def body(self, letters: Sequence[Letter]) -> bytes:
        """One request for some letters."""

    def read(self, letters: Sequence[Letter], reply: Reply) -> Answer:
        """What became of the letters, by an answer that is neither an error nor a delay."""

    def hopeless(self, reply: Reply) -> bool:
        """Whether an answer of 400 is due to something else than the letters."""


@dataclass(frozen=True)
class Webhook:
    """A server that takes a JSON array of alerts, and says no more than a status."""

    endpoint: ClassVar[str] = ""
    content: ClassVar[str] = ROW_CONTENT
    scheme: ClassVar[str] = "Bearer"

    def kind(self, content: str) -> str:
        """CloudEvents in an array have a type of their own."""
        batch = "application/cloudevents-batch+json"
        return batch if content == CLOUDEVENTS else "application/json"

    def body(self, letters: Sequence[Letter]) -> bytes:
        """An array."""
        return b"[" + b",".join(letter.body for letter in letters) + b"]"

    def read(self, letters: Sequence[Letter], reply: Reply) -> Answer:  # noqa: ARG002 - the status says all
        """All were taken."""
        return Answer()

    def hopeless(self, reply: Reply) -> bool:  # noqa: ARG002 - the status does not say
        """Nobody knows."""
        return False


@dataclass(frozen=True)
class Splunk:
    """Splunk's HTTP Event Collector.

    Attributes:
        index: Where events go; by default where the token says.
    """

    index: str | None = None
    endpoint: ClassVar[str] = "/services/collector/event"
    content: ClassVar[str] = "ocsf"
    scheme: ClassVar[str] = "Splunk"

    def kind(self, content: str) -> str:  # noqa: ARG002 - whatever is in it
        """JSON."""
        return "application/json"

    def body(self, letters: Sequence[Letter]) -> bytes:
        """Objects, one behind the other."""
        return b"\n".join(self._envelope(letter) for letter in letters)

    def read(self, letters: Sequence[Letter], reply: Reply) -> Answer:  # noqa: ARG002 - the status says all
        """All were taken."""
        return Answer()

    def hopeless(self, reply: Reply) -> bool:
        """Some codes are about the token or the index."""
        return decoded(reply).get("code") in _NOT_INDEXED_HERE

    def _envelope(self, letter: Letter) -> bytes:
        made = {
            "time": None if letter.time is None else round(letter.time, 3),
            "source": "morpheus",
            "sourcetype": "morpheus:alert",
            "index": self.index,
            "event": msgspec.Raw(letter.body),
            "fields": {"alert_id": letter.id},
        }
        return msgspec.json.encode({n: value for n, value in made.items() if value is not None})


@dataclass(frozen=True)
class Bulk:
    """The bulk interface of OpenSearch and Elasticsearch.

    An alert is created under its own id: one that is there already is left as it is.

    Attributes:
        index: Where documents go: an index, an alias or a data stream.
    """

    index: str = "morpheus-alerts"
    endpoint: ClassVar[str] = "/_bulk"
    content: ClassVar[str] = "ecs"
    scheme: ClassVar[str] = "ApiKey"

    def kind(self, content: str) -> str:  # noqa: ARG002 - whatever is in it
        """JSON lines."""
        return "application/x-ndjson"

    def body(self, letters: Sequence[Letter]) -> bytes:
        """Two lines each: what to do, and with what."""
        return b"".join(
            msgspec.json.encode({"create": {"_index": self.index, "_id": letter.id}})
            + b"\n"
            + letter.body
            + b"\n"
            for letter in letters
        )

    def read(self, letters: Sequence[Letter], reply: Reply) -> Answer:
        """Each letter has a status of its own."""
        said = decoded(reply)
        items = said.get("items")
        if not isinstance(items, list) or len(items) != len(letters):
            return Answer.none_taken(letters, f"an answer that is none: {reply}")
        refused, later = {}, {}
        for place, item in enumerate(items):
            status, reason = _item(item)
            if status in _LATER or status in _SERVER_FAILED:
                later[place] = reason
            elif not CREATED <= status < OK_END and status != CONFLICT:
                refused[place] = reason
        return Answer(refused=refused, later=later)

    def hopeless(self, reply: Reply) -> bool:  # noqa: ARG002 - nothing else is answered so
        """A document that is refused is not answered with 400."""
        return False


RECEIVERS = ("webhook", "splunk", "elasticsearch", "opensearch")
"""What `--receiver` can be."""


def receiver_of(name: str, index: str | None) -> Receiver:
    """Make the receiver of a name.

    >>> receiver_of("opensearch", None).endpoint
    '/_bulk'
    """
    if name == "splunk":
        return Splunk(index=index)
    if name == "webhook":
        return Webhook()
    return Bulk() if index is None else Bulk(index=index)


@dataclass(frozen=True)
class Courier:
    """Carries letters to a receiver by HTTP.

    Attributes:
        receiver: How they are wrapped, and how answers are read.
        post: Sends a request.
        content: What the letters hold.
    """

    receiver: Receiver
    post: Post
    content: str

    @property
    def to(self) -> str:
        """The server."""
        return f"`{self.post.host}`"

    def carry(self, letters: Sequence[Letter]) -> Answer:
        """Send one request."""
        try:
            reply = self.post(self.receiver.body(letters), self.receiver.kind(self.content))
        except Unanswered as error:
            return Answer.none_taken(letters, str(error), hopeless=error.hopeless)
        if CREATED <= reply.status < OK_END:
            return self.receiver.read(letters, reply)
        if reply.status in _LATER or reply.status in _SERVER_FAILED:
            return Answer.none_taken(letters, str(reply), wait=reply.wait)
        if reply.status in _TOO_MUCH and not self.receiver.hopeless(reply):
            return Answer(divide=str(reply))
        return Answer.none_taken(letters, str(reply), hopeless=True)

    def close(self) -> None:
        """Nothing is held open: each request has a connection of its own."""


def decoded(reply: Reply) -> Mapping[str, object]:
    """The JSON object that a server said; empty where it said none."""
    try:
        return msgspec.json.decode(reply.text, type=dict[str, object])
    except msgspec.MsgspecError:
        return {}


def _item(item: object) -> tuple[int, str]:
    """Status and reason of one document; 500 where none can be found."""
    done = next(iter(item.values()), None) if isinstance(item, dict) else None
    if not isinstance(done, dict) or not isinstance(done.get("status"), int):
        return 500, "an item without a status"
    error = done.get("error")
    reason = error.get("reason") if isinstance(error, dict) else error
    return done["status"], f"{done['status']}: {reason or 'no reason given'}"
