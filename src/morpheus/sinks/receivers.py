"""How each kind of server wants alerts over HTTP, and how it says what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import msgspec

from morpheus.sinks.contents import CLOUDEVENTS, ROW_FORMAT
from morpheus.sinks.letters import SendResult, OutboundEvent
from morpheus.sinks.post import HttpClient, HttpResponse, RequestError

HTTP_OK, HTTP_OK_END, HTTP_CONFLICT = 200, 300, 409
_RETRYABLE_STATUSES = {408, 425, 429}
_SPLIT_STATUSES = {400, 413, 422}
_SERVER_ERRORS = {*range(500, 600)} - {501, 505}  # these two fail each time
_SPLUNK_CONFIG_ERRORS = {7, 10, 11}  # Splunk: wrong index, no data channel, wrong data channel


class HttpEndpoint(Protocol):
    """A kind of server.

    Attributes:
        default_path: Where it takes alerts, unless told otherwise.
        default_format: What it is sent, unless told otherwise.
        auth_scheme: Word before a token in the header `Authorization`.
    """

    default_path: ClassVar[str]
    default_format: ClassVar[str]
    auth_scheme: ClassVar[str]

    def content_type(self, content_format: str) -> str:
        """Type of the body."""

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """One request for some letters."""

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:
        """What became of the letters, by an answer that is neither an error nor a delay."""

    def is_fatal(self, response: HttpResponse) -> bool:
        """Whether an answer of 400 is due to something else than the letters."""


@dataclass(frozen=True)
class Webhook:
    """A server that takes a JSON array of alerts, and says no more than a status."""

    default_path: ClassVar[str] = ""
    default_format: ClassVar[str] = ROW_FORMAT
    auth_scheme: ClassVar[str] = "Bearer"

    def content_type(self, content_format: str) -> str:
        """CloudEvents in an array have a type of their own."""
        batch = "application/cloudevents-batch+json"
        return batch if content_format == CLOUDEVENTS else "application/json"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """An array."""
        return b"[" + b",".join(letter.body for letter in events) + b"]"

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:  # noqa: ARG002 - the status says all
        """All were taken."""
        return SendResult()

    def is_fatal(self, response: HttpResponse) -> bool:  # noqa: ARG002 - the status does not say
        """Nobody knows."""
        return False


@dataclass(frozen=True)
class Splunk:
    """Splunk's HTTP Event Collector.

    Attributes:
        index: Where events go; by default where the token says.
    """

    index: str | None = None
    default_path: ClassVar[str] = "/services/collector/event"
    default_format: ClassVar[str] = "ocsf"
    auth_scheme: ClassVar[str] = "Splunk"

    def content_type(self, content_format: str) -> str:  # noqa: ARG002 - whatever is in it
        """JSON."""
        return "application/json"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Objects, one behind the other."""
        return b"\n".join(self._wrap_event(letter) for letter in events)

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:  # noqa: ARG002 - the status says all
        """All were taken."""
        return SendResult()

    def is_fatal(self, response: HttpResponse) -> bool:
        """Some codes are about the token or the index."""
        return decode_response(response).get("code") in _SPLUNK_CONFIG_ERRORS

    def _wrap_event(self, event: OutboundEvent) -> bytes:
        made = {
            "time": None if event.time is None else round(event.time, 3),
            "source": "morpheus",
            "sourcetype": "morpheus:alert",
            "index": self.index,
            "event": msgspec.Raw(event.body),
            "fields": {"alert_id": event.id},
        }
        return msgspec.json.encode({n: value for n, value in made.items() if value is not None})


@dataclass(frozen=True)
class ElasticsearchBulk:
    """The bulk interface of OpenSearch and Elasticsearch.

    An alert is created under its own id: one that is there already is left as it is.

    Attributes:
        index: Where documents go: an index, an alias or a data stream.
    """

    index: str = "morpheus-alerts"
    default_path: ClassVar[str] = "/_bulk"
    default_format: ClassVar[str] = "ecs"
    auth_scheme: ClassVar[str] = "ApiKey"

    def content_type(self, content_format: str) -> str:  # noqa: ARG002 - whatever is in it
        """JSON lines."""
        return "application/x-ndjson"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Two lines each: what to do, and with what."""
        return b"".join(
            msgspec.json.encode({"create": {"_index": self.index, "_id": letter.id}})
            + b"\n"
            + letter.body
            + b"\n"
            for letter in events
        )

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:
        """Each letter has a status of its own."""
        said = decode_response(response)
        items = said.get("items")
        if not isinstance(items, list) or len(items) != len(events):
            return SendResult.from_failure(events, f"an answer that is none: {response}")
        refused, later = {}, {}
        for place, item in enumerate(items):
            status, reason = _parse_bulk_item(item)
            if status in _RETRYABLE_STATUSES or status in _SERVER_ERRORS:
                later[place] = reason
            elif not HTTP_OK <= status < HTTP_OK_END and status != HTTP_CONFLICT:
                refused[place] = reason
        return SendResult(rejected=refused, retryable=later)

    def is_fatal(self, response: HttpResponse) -> bool:  # noqa: ARG002 - nothing else is answered so
        """A document that is refused is not answered with 400."""
        return False


RECEIVERS = ("webhook", "splunk", "elasticsearch", "opensearch")
"""What `--receiver` can be."""


def make_endpoint(name: str, index: str | None) -> HttpEndpoint:
    """Make the receiver of a name.

    >>> make_endpoint("opensearch", None).endpoint
    '/_bulk'
    """
    if name == "splunk":
        return Splunk(index=index)
    if name == "webhook":
        return Webhook()
    return ElasticsearchBulk() if index is None else ElasticsearchBulk(index=index)


@dataclass(frozen=True)
class HttpTransport:
    """Carries letters to a receiver by HTTP.

    Attributes:
        endpoint: How they are wrapped, and how answers are read.
        client: Sends a request.
        format: What the letters hold.
    """

    endpoint: HttpEndpoint
    client: HttpClient
    format: str

    @property
    def destination(self) -> str:
        """The server."""
        return f"`{self.client.host}`"

    def send(self, events: Sequence[OutboundEvent]) -> SendResult:
        """Send one request."""
        try:
            reply = self.client(self.endpoint.encode_body(events), self.endpoint.content_type(self.format))
        except RequestError as error:
            return SendResult.from_failure(events, str(error), fatal=error.fatal)
        if HTTP_OK <= reply.status < HTTP_OK_END:
            return self.endpoint.parse_response(events, reply)
        if reply.status in _RETRYABLE_STATUSES or reply.status in _SERVER_ERRORS:
            return SendResult.from_failure(events, str(reply), retry_after=reply.retry_after)
        if reply.status in _SPLIT_STATUSES and not self.endpoint.is_fatal(reply):
            return SendResult(split_reason=str(reply))
        return SendResult.from_failure(events, str(reply), fatal=True)

    def close(self) -> None:
        """Nothing is held open: each request has a connection of its own."""


def decode_response(response: HttpResponse) -> Mapping[str, object]:
    """The JSON object that a server said; empty where it said none."""
    try:
        return msgspec.json.decode(response.body, type=dict[str, object])
    except msgspec.MsgspecError:
        return {}


def _parse_bulk_item(item: object) -> tuple[int, str]:
    """Status and reason of one document; 500 where none can be found."""
    done = next(iter(item.values()), None) if isinstance(item, dict) else None
    if not isinstance(done, dict) or not isinstance(done.get("status"), int):
        return 500, "an item without a status"
    error = done.get("error")
    reason = error.get("reason") if isinstance(error, dict) else error
    return done["status"], f"{done['status']}: {reason or 'no reason given'}"
