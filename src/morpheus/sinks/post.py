"""A request to an HTTP server, and what its answer says."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from urllib.parse import SplitResult, urlsplit

from morpheus.errors import UsageError
from morpheus.sinks.delivery import Clock

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
