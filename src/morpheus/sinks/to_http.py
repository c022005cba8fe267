"""`to-http`: alerts to a webhook, to Splunk, to OpenSearch or Elasticsearch."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from morpheus.errors import UsageError
from morpheus.records import Batch, Rows, Scored, Summary
from morpheus.sinks.alert import Alerts
from morpheus.sinks.contents import CONTENTS, Writer
from morpheus.sinks.dead_letters import check_place, refuge_at
from morpheus.sinks.delivery import Clock, Delivery, Patience, Tally
from morpheus.sinks.post import LOCAL, Post, check_url
from morpheus.sinks.receivers import RECEIVERS, Courier, Receiver, receiver_of
from morpheus.stage import Stage, option

logger = logging.getLogger(__name__)

TOKEN, USER, PASSWORD, HEADER = (
    f"MORPHEUS_HTTP_{name}" for name in ("TOKEN", "USER", "PASSWORD", "AUTHORIZATION")
)
AUTO = "auto"


@dataclass(frozen=True)
class ToHttp(Stage):
    """Send alerts to a server: a webhook, Splunk, OpenSearch or Elasticsearch.

    Takes events with scores, or rows, and hands them on; all that reach it are sent, so put
    `filter` in front of it. What the server does not take is tried again, and is an error in the
    end; an event has the same id each time it is sent. Secrets come from the environment:
    MORPHEUS_HTTP_TOKEN, or MORPHEUS_HTTP_USER and MORPHEUS_HTTP_PASSWORD, or the whole header in
    MORPHEUS_HTTP_AUTHORIZATION.

    Example: `to-http --receiver=splunk --base_url=https://siem.example.com:8088`
    """

    name = "to-http"
    takes = (Scored, Rows)
    scope = "run"
    sink = True
    needs_fingerprint = False

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
        choices=(AUTO, *CONTENTS),
    )
    index: str | None = option(
        None,
        "Index that alerts go to. By default `morpheus-alerts`; Splunk: the token's own.",
    )
    max_rows_per_payload: int = option(500, "Events sent together, at most.", low=1)
    max_retries: int = option(5, "Tries after the first, before giving up.", low=0)
    error_sleep_time: float = option(
        0.5,
        "Seconds before the second try; they double with each, up to a minute. The server's "
        "`Retry-After` is heeded.",
        low=0,
    )
    request_timeout_secs: float = option(
        30.0, "Seconds without a word from the server after which a try has failed.", low=0.001
    )
    dead_letters: str | None = option(
        None,
        "JSON lines file for events that are not taken. The next run sends them first. Without it, "
        "a server that takes nothing ends the run.",
    )

    tally: Tally = field(default_factory=Tally, repr=False, compare=False)
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def check(self) -> None:
        """Refuse what is no address, and secrets where they can be read."""
        check_url("--base_url", self.base_url)
        check_place(self.dead_letters)
        check_url("--endpoint", self._post().url)
        server = urlsplit(self.base_url)
        if self._authorization() and server.scheme == "http" and server.hostname not in LOCAL:
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
        writer = Writer(self._content, Alerts(self.name, self.settings.source))
        yield from self._delivery().along(batches, writer.letters, at_once=self.settings.endless)

    def finish(self, summary: Summary) -> None:  # noqa: ARG002 - as in `Stage`
        """Fail if anything was not taken, now that every sink has its rows."""
        self.tally.settle()

    @property
    def _kind(self) -> Receiver:
        return receiver_of(self.receiver.lower(), self.index)

    @property
    def _content(self) -> str:
        content = self.content.lower()
        return self._kind.content if content == AUTO else content

    def _delivery(self) -> Delivery:
        return Delivery(
            self.name,
            Courier(self._kind, self._post(), self._content),
            self.tally,
            size=self.max_rows_per_payload,
            patience=Patience(self.max_retries, self.error_sleep_time),
            refuge=refuge_at(self.dead_letters),
            clock=self.clock,
        )

    def _post(self) -> Post:
        base = self.base_url.rstrip("/")
        own_path = urlsplit(base).path not in {"", "/"}
        path = self.endpoint or ("" if own_path else self._kind.endpoint)
        url = f"{base}/{path.lstrip('/')}" if path else base
        secret = self._authorization()
        headers = {} if secret is None else {"Authorization": secret}
        return Post(url, headers, self.request_timeout_secs, self.clock)

    def _authorization(self) -> str | None:
        """The header that says who we are, out of the environment."""
        given = {name: os.environ.get(name, "") for name in (HEADER, TOKEN, USER, PASSWORD)}
        if bad := [name for name, value in given.items() if not _sendable(value)]:
            raise UsageError(f"{bad[0]}: there is a line break or an odd sign in it. Set it anew.")
        if given[HEADER]:
            return given[HEADER]
        if given[TOKEN]:
            return f"{self._kind.scheme} {given[TOKEN]}"
        if given[USER]:
            pair = f"{given[USER]}:{given[PASSWORD]}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None


def _sendable(value: str) -> bool:
    """Whether a header can hold a text."""
    return value.isascii() and value.isprintable()
