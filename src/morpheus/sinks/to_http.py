"""`to-http`: alerts to a webhook, Splunk, OpenSearch or Elasticsearch.

`HttpClient` sends one request through urllib3, `HttpEndpoint` knows a kind of server,
`HttpTransport` joins the two for `Delivery`, which retries.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, ClassVar, Protocol
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from morpheus.core.batch import Batch, OutputRows, RunMetrics, Scored
from morpheus.core.stage import Outputs, Requirements, Sink, StageContext, option
from morpheus.errors import UsageError
from morpheus.sinks.alert import make_finding_builder
from morpheus.sinks.alert_formats import CLOUDEVENTS, FORMATS, ROW_FORMAT, AlertSerializer
from morpheus.sinks.delivery import (
    Clock,
    Delivery,
    DeliveryStats,
    OutboundEvent,
    RetryPolicy,
    SendResult,
    list_dlq,
    open_dlq,
    validate_dlq_path,
)
from morpheus.sinks.formats import ISO_TIMES, TIME_FORMATS

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

logger = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 1 << 24  # bytes of a response that are read
SILENCE_SECONDS = 60.0  # until a server that does not answer at all gets no retry
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


class RequestError(Exception):
    """A request got no response.

    Args:
        reason: The reason, for a message.
        fatal: A retry would not help.
        silent: No answer came in time.
    """

    def __init__(self, reason: str, *, fatal: bool = False, silent: bool = False) -> None:
        self.fatal, self.silent = fatal, silent
        super().__init__(reason)


class HttpResponse(msgspec.Struct, frozen=True):
    """A response.

    Attributes:
        status: HTTP status code.
        retry_after: Seconds to wait before a retry, from `Retry-After`; 0 without it.
        body: The body, at most `MAX_RESPONSE_BYTES`.
    """

    status: int
    retry_after: float
    body: bytes

    def __str__(self) -> str:
        """Return the status in standard words.

        The server's own words are left out: they can repeat a secret of the request.
        """
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


@dataclass(frozen=True)
class HttpClient:
    """Posts to one URL.

    Proxies come from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`). Certificates are
    verified against the system's, or `SSL_CERT_FILE`. Redirects are not followed, since they would
    carry the secret elsewhere. Nothing is retried here: that is the task of `Delivery`.

    Attributes:
        url: URL to post to.
        headers: Headers of each request.
        timeout: Seconds of silence after which a request has failed.
        clock: Tells the time.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    clock: Clock = field(default_factory=Clock)

    def __call__(
        self, body: bytes, content_type: str, seconds: float | None = None
    ) -> HttpResponse:
        """Post a body.

        Args:
            body: The body.
            content_type: Its media type, such as `application/json`.
            seconds: Seconds until the whole response must be there, even from a server that sends
                a byte now and then. None for no limit.

        Raises:
            RequestError: There is no connection, or no response in time.
        """
        if seconds is None:
            return self._post(body, content_type)
        answers: Queue[HttpResponse | BaseException] = Queue()

        def post() -> None:
            try:
                answers.put(self._post(body, content_type))
            except BaseException as error:  # noqa: BLE001 - raised below, in the calling thread
                answers.put(error)

        # The libraries limit the time between two bytes only. A thread can be left behind.
        Thread(target=post, daemon=True).start()
        try:
            answer = answers.get(timeout=max(0.0, seconds))
        except Empty as error:
            vars(self).pop("_pool", None)  # its connections are still in use
            raise RequestError(
                f"no whole answer within {seconds:.3g} seconds", silent=True
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _post(self, body: bytes, content_type: str) -> HttpResponse:
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - slow, and only this sink needs it

        headers = {**self.headers, "Content-Type": content_type, "User-Agent": "morpheus"}
        try:
            response = self._pool.request(
                "POST",
                self._url_parts.geturl(),
                body=body,
                headers=headers,
                timeout=self.timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            return self._read(response)
        except (HTTPError, OSError) as error:
            raise _translate_request_error(error, self.timeout) from error

    def close(self) -> None:
        """Close the connections that are kept open between requests."""
        self._pool.clear()

    @property
    def host(self) -> str:
        """Server and port, without the path, which may contain a secret."""
        return self._url_parts.netloc

    @cached_property
    def _url_parts(self) -> SplitResult:
        parts = urlsplit(self.url)
        return parts._replace(path=parts.path or "/")

    @cached_property
    def _pool(self) -> PoolManager:
        from urllib3 import PoolManager, ProxyManager, make_headers  # noqa: PLC0415 - as above

        context = ssl.create_default_context()
        proxy = _find_proxy(self._url_parts)
        if proxy is None:
            return PoolManager(ssl_context=context)
        parts = urlsplit(proxy)
        login = (
            f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        )
        return ProxyManager(
            proxy, proxy_headers=make_headers(proxy_basic_auth=login), ssl_context=context
        )

    def _read(self, response: BaseHTTPResponse) -> HttpResponse:
        """Read a response, but no more of its body than the limit."""
        try:
            body = response.read(MAX_RESPONSE_BYTES)
            wait = self._parse_retry_after(response.headers.get("Retry-After", ""))
            return HttpResponse(response.status, wait, body)
        finally:
            # A connection with an unread rest cannot be used again.
            if response.closed:
                response.release_conn()
            else:
                response.close()

    def _parse_retry_after(self, value: str) -> float:
        """Return the seconds of `Retry-After`, which may be a number or a date."""
        try:
            return max(0.0, float(value))
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - self.clock.now())
        except ValueError:
            return 0.0


def _find_proxy(url: SplitResult) -> str | None:
    """Return the proxy for a URL from the environment; None to connect directly."""
    if proxy_bypass(url.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return None if proxy is None else proxy if "://" in proxy else f"http://{proxy}"


def _translate_request_error(error: Exception, timeout: float) -> RequestError:
    """Explain an error of urllib3, by its cause. The URL, which may hold a secret, is left out."""
    from urllib3 import exceptions  # noqa: PLC0415 - slow, and only this sink needs it

    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RequestError(f"its certificate is not trusted: {cause.verify_message}", fatal=True)
    if isinstance(error, exceptions.ReadTimeoutError):
        reason = f"it accepts connections, but there is no answer within {timeout:g} seconds"
        return RequestError(reason, silent=True)
    if isinstance(cause, TimeoutError):
        return RequestError(f"no answer within {timeout:g} seconds", silent=True)
    reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    through = " from the proxy" if isinstance(error, exceptions.ProxyError) else ""
    return RequestError(f"no answer{through}: {reason}")


def validate_url(option: str, url: str) -> None:
    """Reject a text that is not an HTTP URL, and one with a user or password in it.

    Args:
        option: Option that gives the URL, for the message.
        url: The URL.

    Raises:
        UsageError: The message says what to type.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"{option}: `{url}` is not the address of a server. Give one such as "
            f"`{option} https://siem.example.com:8088`. Write special characters as `%20` and the "
            "like."
        )
    if parts.username or parts.password:
        raise UsageError(
            f"{option}: the address contains a user or a password, which anyone on this machine "
            "can read. Set them in the environment instead: MORPHEUS_HTTP_USER and "
            "MORPHEUS_HTTP_PASSWORD."
        )


_ERROR_TYPE = re.compile(r"[a-z]+(?:_[a-z]+){0,8}_exception")
"""Type of an error of Elasticsearch. Its reason is not shown: it can repeat parts of a request."""
HTTP_OK, HTTP_OK_END, HTTP_CONFLICT = 200, 300, 409
_RETRYABLE_STATUSES = {408, 425, 429}
_SPLIT_STATUSES = {400, 413, 422}
_SERVER_ERRORS = {*range(500, 600)} - {501, 505}  # these two would fail again
_SPLUNK_ERRORS = {
    1: "the token is disabled",
    2: "a token is missing",
    3: "the authorization is not valid",
    4: "the token is not valid",
    5: "no data",
    6: "the format of the data is not valid",
    7: "the index is not correct",
    8: "an error in the server",
    9: "the server is busy",
    10: "the data channel is missing",
    11: "the data channel is not valid",
    12: "the field `event` is missing",
    13: "the field `event` is blank",
}
"""Error codes of Splunk's HTTP Event Collector."""
_SPLUNK_CONFIG_ERRORS = {7, 10, 11}  # wrong index, no data channel, wrong data channel


class HttpEndpoint(Protocol):
    """A kind of server.

    Attributes:
        default_path: Path that receives alerts by default.
        default_format: Format of alerts by default.
        auth_scheme: Scheme before a token in the header `Authorization`.
    """

    default_path: ClassVar[str]
    default_format: ClassVar[str]
    auth_scheme: ClassVar[str]

    def content_type(self, content_format: str) -> str:
        """Return the media type of a body of alerts in a format."""

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Return the body of a request with some events."""

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:
        """Return what happened to each event, from a response with a status of 2xx."""

    def is_fatal(self, response: HttpResponse) -> bool:
        """Return whether the configuration, not the events, caused a response of 400."""

    def explain(self, response: HttpResponse) -> str:
        """Return what an error means, in words of our own: the server's can repeat a secret."""


class Webhook(msgspec.Struct, frozen=True):
    """A server that takes a JSON array of alerts and answers with a status alone."""

    default_path: ClassVar[str] = ""
    default_format: ClassVar[str] = ROW_FORMAT
    auth_scheme: ClassVar[str] = "Bearer"

    def content_type(self, content_format: str) -> str:
        """Return the type of JSON, or that of an array of CloudEvents."""
        batch = "application/cloudevents-batch+json"
        return batch if content_format == CLOUDEVENTS else "application/json"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Return a JSON array."""
        return b"[" + b",".join(event.body for event in events) + b"]"

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:  # noqa: ARG002 - the status is enough
        """All events were accepted."""
        return SendResult()

    def is_fatal(self, response: HttpResponse) -> bool:  # noqa: ARG002 - the status does not tell
        """Blame the events: the server does not say more."""
        return False

    def explain(self, response: HttpResponse) -> str:  # noqa: ARG002 - the status is all
        """Say no more than the status."""
        return ""


class Splunk(msgspec.Struct, frozen=True):
    """Splunk's HTTP Event Collector.

    Attributes:
        index: Index of the events. By default the token decides.
    """

    index: str | None = None
    default_path: ClassVar[str] = "/services/collector/event"
    default_format: ClassVar[str] = "ocsf"
    auth_scheme: ClassVar[str] = "Splunk"

    def content_type(self, content_format: str) -> str:  # noqa: ARG002 - the same for all formats
        """Return the type of JSON."""
        return "application/json"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Return JSON objects, one per event."""
        return b"\n".join(self._wrap_event(event) for event in events)

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:  # noqa: ARG002 - the status is enough
        """All events were accepted."""
        return SendResult()

    def is_fatal(self, response: HttpResponse) -> bool:
        """Some error codes are about the token or the index."""
        return decode_response(response).get("code") in _SPLUNK_CONFIG_ERRORS

    def explain(self, response: HttpResponse) -> str:
        """Explain Splunk's error code."""
        code = decode_response(response).get("code")
        meaning = _SPLUNK_ERRORS.get(code) if isinstance(code, int) else None
        return f" (code {code}, {meaning})" if meaning else ""

    def _wrap_event(self, event: OutboundEvent) -> bytes:
        envelope = {
            "time": None if event.time is None else round(event.time, 3),
            "source": "morpheus",
            "sourcetype": "morpheus:alert",
            "index": self.index,
            "event": msgspec.Raw(event.body),
            "fields": {"alert_id": event.id},
        }
        return msgspec.json.encode({n: value for n, value in envelope.items() if value is not None})


class ElasticsearchBulk(msgspec.Struct, frozen=True):
    """The bulk API of OpenSearch and Elasticsearch.

    Each alert is created under its own id, so that an alert sent twice is stored once.

    Attributes:
        index: Index, alias or data stream of the documents.
    """

    index: str = "morpheus-alerts"
    default_path: ClassVar[str] = "/_bulk"
    default_format: ClassVar[str] = "ecs"
    auth_scheme: ClassVar[str] = "ApiKey"

    def content_type(self, content_format: str) -> str:  # noqa: ARG002 - the same for all formats
        """Return the type of JSON lines."""
        return "application/x-ndjson"

    def encode_body(self, events: Sequence[OutboundEvent]) -> bytes:
        """Return two lines per event: the action and the document."""
        return b"".join(
            msgspec.json.encode({"create": {"_index": self.index, "_id": event.id}})
            + b"\n"
            + event.body
            + b"\n"
            for event in events
        )

    def parse_response(self, events: Sequence[OutboundEvent], response: HttpResponse) -> SendResult:
        """Read the status of each document."""
        items = decode_response(response).get("items")
        if not isinstance(items, list) or len(items) != len(events):
            return SendResult.from_failure(events, f"an invalid response: {response}")
        rejected, retryable = {}, {}
        for position, item in enumerate(items):
            status, reason = _parse_bulk_item(item)
            if status in _RETRYABLE_STATUSES or status in _SERVER_ERRORS:
                retryable[position] = reason
            elif not HTTP_OK <= status < HTTP_OK_END and status != HTTP_CONFLICT:
                rejected[position] = reason
        return SendResult(rejected=rejected, retryable=retryable)

    def is_fatal(self, response: HttpResponse) -> bool:  # noqa: ARG002 - the status does not tell
        """Blame the events: rejected documents have a status of their own."""
        return False

    def explain(self, response: HttpResponse) -> str:
        """Name the type of the error."""
        kind = _error_type(decode_response(response).get("error"))
        return f" ({kind})" if kind else ""


RECEIVERS = ("webhook", "splunk", "elasticsearch", "opensearch")
"""Values of `--receiver`."""


def make_endpoint(name: str, index: str | None) -> HttpEndpoint:
    """Return the endpoint for a value of `--receiver`.

    >>> make_endpoint("opensearch", None).default_path
    '/_bulk'
    """
    if name == "splunk":
        return Splunk(index=index)
    if name == "webhook":
        return Webhook()
    return ElasticsearchBulk() if index is None else ElasticsearchBulk(index=index)


class HttpTransport(msgspec.Struct, frozen=True):
    """Sends events to a server by HTTP.

    Attributes:
        endpoint: Encodes requests and reads responses.
        client: Sends requests.
        format: Format of the events; one of `FORMATS`.
    """

    endpoint: HttpEndpoint
    client: HttpClient
    format: str

    @property
    def destination(self) -> str:
        """Name of the server."""
        return f"`{self.client.host}`"

    def send(self, events: Sequence[OutboundEvent], seconds: float | None = None) -> SendResult:
        """Send one request with some events."""
        body = self.endpoint.encode_body(events)
        try:
            response = self.client(body, self.endpoint.content_type(self.format), seconds)
        except RequestError as error:
            return SendResult.from_failure(
                events, str(error), fatal=error.fatal, silent=error.silent
            )
        status = response.status
        reason = f"{response}{self.endpoint.explain(response)}"
        if HTTP_OK <= status < HTTP_OK_END:
            return self.endpoint.parse_response(events, response)
        if status in _RETRYABLE_STATUSES or status in _SERVER_ERRORS:
            return SendResult.from_failure(events, reason, retry_after=response.retry_after)
        if status in _SPLIT_STATUSES and not self.endpoint.is_fatal(response):
            return SendResult(split_reason=reason)
        return SendResult.from_failure(events, reason, fatal=True)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def decode_response(response: HttpResponse) -> Mapping[str, object]:
    """Return the JSON object in a response; empty if there is none."""
    try:
        return msgspec.json.decode(response.body, type=dict[str, object])
    except msgspec.MsgspecError:
        return {}


def _parse_bulk_item(item: object) -> tuple[int, str]:
    """Return status and reason of one document; 500 if it has no status."""
    result = next(iter(item.values()), None) if isinstance(item, dict) else None
    if not isinstance(result, dict) or not isinstance(result.get("status"), int):
        return 500, "an item without a status"
    kind = _error_type(result.get("error"))
    return result["status"], f"{result['status']}: {kind or 'no reason given'}"


def _error_type(error: object) -> str:
    """Return the type of an error of Elasticsearch; empty if it is not one."""
    kind = error.get("type") if isinstance(error, dict) else None
    return kind if isinstance(kind, str) and _ERROR_TYPE.fullmatch(kind) else ""


TOKEN_VAR, USER_VAR, PASSWORD_VAR, AUTHORIZATION_VAR = (
    f"MORPHEUS_HTTP_{name}" for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION")
)
FILE_SUFFIX = "_FILE"
"""A variable with this suffix names a file that has the secret, as service managers give it."""
AUTO = "auto"


def _read_secret(name: str) -> str:
    """Return a secret from the environment, or from the file that it names; empty without one."""
    path = os.environ.get(name + FILE_SUFFIX, "")
    if not path:
        return os.environ.get(name, "")
    if os.environ.get(name):
        raise UsageError(f"{name} and {name}{FILE_SUFFIX} are both set. Leave out one of the two.")
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"{name}{FILE_SUFFIX}: `{path}` cannot be read: {reason}. Give a file that has the "
            "secret alone."
        ) from error


@dataclass(frozen=True)
class ToHttp(Sink):
    """Send alerts to a server: a webhook, Splunk, OpenSearch or Elasticsearch.

    Takes events with scores, or rows, and passes them on. It sends every event that reaches it, so
    put `filter` before it. Events that the server does not accept are retried; if they fail again,
    the run ends with an error. An event has the same id each time it is sent. Secrets come from the
    environment: MORPHEUS_HTTP_TOKEN, or MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD, or the whole
    header in MORPHEUS_HTTP_AUTHORIZATION. With the suffix _FILE, such as MORPHEUS_HTTP_TOKEN_FILE,
    a variable names the file that has the secret. Proxies come from the environment, too:
    HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

    Example: `to-http --receiver=splunk --base_url=https://siem.example.com:8088`
    """

    name = "to-http"
    takes = (Scored, OutputRows)
    needs = Requirements(card=True)

    base_url: str = option("", "Address of the server.", required=True)
    receiver: str = option(
        "webhook",
        "Kind of server: any server that takes a JSON array (webhook); Splunk's HTTP Event "
        "Collector; the bulk API of Elasticsearch or OpenSearch.",
        choices=RECEIVERS,
    )
    endpoint: str | None = option(
        None, "Path on the server. Default: the path of --base_url, or else the usual path."
    )
    content: str = option(
        AUTO,
        "Format of an event: its row; a Detection Finding (ocsf); an Elastic Common Schema "
        "document (ecs); a CloudEvent with a Detection Finding in it. Default: row for a webhook, "
        "ocsf for Splunk, ecs for the others.",
        choices=(AUTO, *FORMATS),
    )
    index: str | None = option(
        None,
        "Index for alerts. Default: `morpheus-alerts`; for Splunk, the token's own index.",
    )
    max_rows_per_payload: int = option(500, "Maximum number of events in a request.", min=1)
    max_retries: int = option(5, "Maximum number of retries of a request.", min=0)
    error_sleep_time: float = option(
        0.5,
        "Seconds before the first retry. They double with each retry, up to a minute. A "
        "`Retry-After` of the server is respected.",
        min=0,
    )
    request_timeout_secs: float = option(
        30.0, "Seconds without any data from the server after which a request fails.", min=0.001
    )
    json_times: str = option(
        ISO_TIMES,
        "Format of times in rows: ISO 8601, or milliseconds since 1970, as NVIDIA Morpheus sends "
        "them.",
        choices=TIME_FORMATS,
    )
    total_timeout_secs: float = option(
        300.0,
        "Seconds for a request with all its retries and waits. After that its events count as not "
        "accepted. If there is no answer at all and the input has an end, retries end after a "
        "minute.",
        min=0.001,
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that were not accepted. They are sent again when the server "
        "accepts events, at the end of the run, and first in the next run. Without it, a server "
        "that accepts nothing ends the run.",
        location="local",
    )

    stats: DeliveryStats = field(default_factory=DeliveryStats, repr=False, compare=False)
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def validate(self) -> None:
        """Reject an invalid address, and secrets that others can read."""
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
                "to-http: the secret is sent to `%s` unencrypted. Use https.", server.netloc
            )
        if server.query:
            raise UsageError(
                f"--base_url: `{self.base_url}` contains a `?`. Put everything after the server "
                "into `--endpoint`."
            )

    def outputs(self) -> Outputs:
        """The server, and the dead letters."""
        letters = list_dlq(self.dead_letters)
        return Outputs(destinations=(f"`{self.base_url}`",), dead_letters=letters)

    def open(self, context: StageContext) -> tuple[AlertSerializer, Delivery]:
        """Connect, and send the events that an earlier run has kept."""
        delivery = context.resources.enter_context(self._make_delivery().open())
        return AlertSerializer(
            self._format, make_finding_builder(self, context.position), self.json_times.lower()
        ), delivery

    def process(self, batch: Batch, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events of a batch; on an unbounded input at once, otherwise some together."""
        serializer, delivery = state
        at_once = self.options.unbounded and not self.options.durable  # else `sync` sends the rest
        delivery.send(serializer.serialize(batch), at_once=at_once)
        yield batch

    def flush(self, state: tuple[AlertSerializer, Delivery]) -> Iterator[Batch]:
        """Send the events that are left."""
        serializer, delivery = state
        delivery.send(serializer.flush(), at_once=False)
        delivery.finish()
        return iter(())

    def sync(self, state: tuple[AlertSerializer, Delivery]) -> Mapping[str, bytes]:
        """Send the events that wait, so that the receiver or the dead letters have all."""
        serializer, delivery = state
        delivery.send((), at_once=True)
        return serializer.findings.take_changes()

    def commit(self, metrics: RunMetrics) -> None:  # noqa: ARG002 - as in `Sink`
        """Fail if anything was not taken, now that every sink has its rows."""
        self.stats.raise_if_undelivered(waits=self.options.durable)

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
            total_timeout=self.total_timeout_secs,
            silence_limit=None if self.options.unbounded else SILENCE_SECONDS,
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
        """Return the header `Authorization` from the environment; None without a secret."""
        secrets = {
            name: _read_secret(name)
            for name in (AUTHORIZATION_VAR, TOKEN_VAR, USER_VAR, PASSWORD_VAR)
        }
        if invalid := [name for name, value in secrets.items() if not _is_valid_header(value)]:
            raise UsageError(
                f"{invalid[0]}: it contains a line break or another character that a header cannot "
                "have. Set it again."
            )
        if secrets[AUTHORIZATION_VAR]:
            return secrets[AUTHORIZATION_VAR]
        if secrets[TOKEN_VAR]:
            return f"{self._http_endpoint.auth_scheme} {secrets[TOKEN_VAR]}"
        if secrets[USER_VAR]:
            pair = f"{secrets[USER_VAR]}:{secrets[PASSWORD_VAR]}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None


def _is_valid_header(value: str) -> bool:
    """Return whether a header can contain a text."""
    return value.isascii() and value.isprintable()
