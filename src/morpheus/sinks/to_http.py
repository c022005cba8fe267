"""`to-http`: alerts to a webhook, to Splunk, to OpenSearch or Elasticsearch."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from morpheus.errors import UsageError
from morpheus.records import Batch, OutputRows, Scored, RunMetrics
from morpheus.sinks.alert import AlertBuilder
from morpheus.sinks.contents import FORMATS, AlertSerializer
from morpheus.sinks.dead_letters import validate_dlq_path, open_dlq
from morpheus.sinks.delivery import Clock, Delivery, RetryPolicy, DeliveryStats
from morpheus.sinks.post import LOCAL_HOSTS, HttpClient, validate_url
from morpheus.sinks.receivers import RECEIVERS, HttpTransport, HttpEndpoint, make_endpoint
from morpheus.stage import Transform, option

logger = logging.getLogger(__name__)

TOKEN_VAR, USER_VAR, PASSWORD_VAR, AUTHORIZATION_VAR = (
    f"MORPHEUS_HTTP_{name}" for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION")
)
AUTO = "auto"


@dataclass(frozen=True)
class ToHttp(Transform):
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
    scope = "global"
    is_sink = True
    needs_model = False

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
        if self._authorization_header() and server.scheme == "http" and server.hostname not in LOCAL_HOSTS:
            logger.warning(
                "to-http: the secret travels to `%s` in the clear. Use https.", server.netloc
            )
        if server.query:
            raise UsageError(
                f"--base_url: `{self.base_url}` has a `?` in it. Put what comes behind the server "
                "into `--endpoint`."
            )

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Send each batch, and hand it on."""
        writer = AlertSerializer(self._format, AlertBuilder(self.name, self.options.source))
        yield from self._make_delivery().deliver_through(batches, writer.serialize, flush_each=self.options.unbounded)

    def commit(self, metrics: RunMetrics) -> None:  # noqa: ARG002 - as in `Transform`
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
        given = {name: os.environ.get(name, "") for name in (AUTHORIZATION_VAR, TOKEN_VAR, USER_VAR, PASSWORD_VAR)}
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
