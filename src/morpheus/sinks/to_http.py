"""A request to an HTTP server, and what its answer says."""

from __future__ import annotations

import base64
import http.client
import logging
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import ClassVar, Protocol
from urllib.parse import SplitResult, urlsplit

import msgspec

from morpheus.core.batch import Batch, OutputRows, RunMetrics, Scored
from morpheus.core.stage import Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.alert_formats import CLOUDEVENTS, FORMATS, ROW_FORMAT, AlertSerializer
from morpheus.sinks.delivery import (
    Clock,
    Delivery,
    DeliveryStats,
    OutboundEvent,
    RetryPolicy,
    SendResult,
    open_dlq,
    validate_dlq_path,
)

MAX_RESPONSE_BYTES = 1 << 24  # bytes of an answer that are read
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


class RequestError(Exception):
    """No answer came.

    Args:
        reason: Why.
        fatal: Trying again would not help.
    """

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        self.fatal = fatal
        super().__init__(reason)


@dataclass(frozen=True)
class HttpResponse:
    """An answer.

    Attributes:
        status: HTTP status.
        reason: Its name.
        retry_after: Seconds after which to come again; 0 where it says nothing of that.
        body: What else was said.
    """

    status: int
    reason: str
    retry_after: float
    body: bytes

    def __str__(self) -> str:
        said = self.body.decode(errors="replace").strip()
        return f"{self.status} {self.reason}" + (f": {said}" if said else "")


@dataclass(frozen=True)
class HttpClient:
    """Posts to one address.

    Attributes:
        url: Where to.
        headers: Sent with each request.
        timeout: Seconds without a word from the server after which there is no answer.
        clock: Tells the time.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    clock: Clock = field(default_factory=Clock)

    def __call__(self, body: bytes, content_type: str) -> HttpResponse:
        """Post a body of a kind, such as `application/json`.

        Raises:
            Unanswered: There is no connection, or no answer within the time.
        """
        connection = self._connect()
        try:
            headers = {**self.headers, "Content-Type": content_type, "User-Agent": "morpheus"}
            connection.request("POST", self._request_target, body=body, headers=headers)
            answer = connection.getresponse()
            wait = self._parse_retry_after(answer.getheader("Retry-After", ""))
            return HttpResponse(answer.status, answer.reason, wait, answer.read(MAX_RESPONSE_BYTES))
        except ssl.SSLCertVerificationError as error:
            said = f"its certificate is not trusted: {error.verify_message}"
            raise RequestError(said, fatal=True) from error
        except TimeoutError:
            raise RequestError(f"no answer within {self.timeout:g} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RequestError(f"no answer: {said}") from error
        finally:
            connection.close()

    @property
    def host(self) -> str:
        """Server and port, without what may be a secret in the path."""
        return self._url_parts.netloc

    @cached_property
    def _url_parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def _request_target(self) -> str:
        query = f"?{self._url_parts.query}" if self._url_parts.query else ""
        return (self._url_parts.path or "/") + query

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url_parts.hostname or "", self._url_parts.port
        if self._url_parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=self.timeout)

    def _parse_retry_after(self, value: str) -> float:
        """Seconds of `Retry-After`, which may be a number or a date."""
        try:
            return max(0.0, float(value))
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - self.clock.now())
        except ValueError:
            return 0.0


def validate_url(option: str, url: str) -> None:
    """Refuse what is no address of a server, and one with a secret in it.

    Raises:
        UsageError: Says what to type.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"{option}: `{url}` is no address of a server. Give one such as "
            f"`{option} https://siem.example.com:8088`, with `%20` and the like for odd signs."
        )
    if parts.username or parts.password:
        raise UsageError(
            f"{option}: there is a user or a password in the address, where everybody on this "
            "machine can read it. Leave it out, and put it into the environment: "
            "MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD."
        )


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
            reply = self.client(
                self.endpoint.encode_body(events), self.endpoint.content_type(self.format)
            )
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


logger = logging.getLogger(__name__)

TOKEN_VAR, USER_VAR, PASSWORD_VAR, AUTHORIZATION_VAR = (
    f"MORPHEUS_HTTP_{name}" for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION")
)
AUTO = "auto"


@dataclass(frozen=True)
class ToHttp(Sink):
    """Send alerts to a server: a webhook, Splunk, OpenSearch or Elasticsearch.

    Takes events with scores, or rows, and hands them on; all that reach it are sent, so put
    `filter` in front of it. What the server does not take is tried again, and is an error in the
    end; an event has the same id each time it is sent. Secrets come from the environment:
    MORPHEUS_HTTP_TOKEN, or MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD, or the whole header in
    MORPHEUS_HTTP_AUTHORIZATION.

    Example: `to-http --receiver=splunk --base_url=https://siem.example.com:8088`
    """

    name = "to-http"
    takes = (Scored, OutputRows)

    base_url: str = option("", "Address of the server.", required=True)
    receiver: str = option(
        "webhook",
        "What it is: any server that takes a JSON array; Splunk's HTTP Event Collector; the bulk "
        "interface of Elasticsearch or OpenSearch.",
        choices=RECEIVERS,
    )
    endpoint: str | None = option(
        None, "Path on the server. By default that of --base_url, or else the usual one."
    )
    content: str = option(
        AUTO,
        "What is sent of an event: its row; a Detection Finding (ocsf); an Elastic Common Schema "
        "document (ecs); a CloudEvent with a Detection Finding in it. By default the row to a "
        "webhook, ocsf to Splunk, ecs to the others.",
        choices=(AUTO, *FORMATS),
    )
    index: str | None = option(
        None,
        "Index that alerts go to. By default `morpheus-alerts`; Splunk: the token's own.",
    )
    max_rows_per_payload: int = option(500, "Events sent together, at most.", min=1)
    max_retries: int = option(5, "Tries after the first, before giving up.", min=0)
    error_sleep_time: float = option(
        0.5,
        "Seconds before the second try; they double with each, up to a minute. The server's "
        "`Retry-After` is heeded.",
        min=0,
    )
    request_timeout_secs: float = option(
        30.0, "Seconds without a word from the server after which a try has failed.", min=0.001
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that are not taken. The next run sends them first. Without it, "
        "a server that takes nothing ends the run.",
    )

    stats: DeliveryStats = field(default_factory=DeliveryStats, repr=False, compare=False)
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def validate(self) -> None:
        """Refuse what is no address, and secrets where they can be read."""
        validate_url("--base_url", self.base_url)
        validate_dlq_path(self.dead_letters)
        validate_url("--endpoint", self._make_client().url)
        server = urlsplit(self.base_url)
        if (
            self._authorization_header()
            and server.scheme == "http"
            and server.hostname not in LOCAL_HOSTS
        ):
            logger.warning(
                "to-http: the secret travels to `%s` in the clear. Use https.", server.netloc
            )
        if server.query:
            raise UsageError(
                f"--base_url: `{self.base_url}` has a `?` in it. Put what comes behind the server "
                "into `--endpoint`."
            )

    def open(self, context: StageContext) -> tuple[AlertSerializer, Delivery]:
        """Connect, and send the events that an earlier run has kept."""
        alerts = AlertBuilder(self.name, self.options.source)
        delivery = context.resources.enter_context(self._make_delivery().open())
        return AlertSerializer(self._format, alerts), delivery

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

    @property
    def _http_endpoint(self) -> HttpEndpoint:
        return make_endpoint(self.receiver.lower(), self.index)

    @property
    def _format(self) -> str:
        content = self.content.lower()
        return self._http_endpoint.default_format if content == AUTO else content

    def _make_delivery(self) -> Delivery:
        return Delivery(
            self.name,
            HttpTransport(self._http_endpoint, self._make_client(), self._format),
            self.stats,
            batch_size=self.max_rows_per_payload,
            retry_policy=RetryPolicy(self.max_retries, self.error_sleep_time),
            dead_letters=open_dlq(self.dead_letters),
            clock=self.clock,
        )

    def _make_client(self) -> HttpClient:
        base = self.base_url.rstrip("/")
        own_path = urlsplit(base).path not in {"", "/"}
        path = self.endpoint or ("" if own_path else self._http_endpoint.default_path)
        url = f"{base}/{path.lstrip('/')}" if path else base
        secret = self._authorization_header()
        headers = {} if secret is None else {"Authorization": secret}
        return HttpClient(url, headers, self.request_timeout_secs, self.clock)

    def _authorization_header(self) -> str | None:
        """The header that says who we are, out of the environment."""
        given = {
            name: os.environ.get(name, "")
            for name in (AUTHORIZATION_VAR, TOKEN_VAR, USER_VAR, PASSWORD_VAR)
        }
        if bad := [name for name, value in given.items() if not _is_valid_header(value)]:
            raise UsageError(f"{bad[0]}: there is a line break or an odd sign in it. Set it anew.")
        if given[AUTHORIZATION_VAR]:
            return given[AUTHORIZATION_VAR]
        if given[TOKEN_VAR]:
            return f"{self._http_endpoint.auth_scheme} {given[TOKEN_VAR]}"
        if given[USER_VAR]:
            pair = f"{given[USER_VAR]}:{given[PASSWORD_VAR]}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None


def _is_valid_header(value: str) -> bool:
    """Whether a header can hold a text."""
    return value.isascii() and value.isprintable()
