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

MOST = 1 << 24  # bytes of an answer that are read
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Unanswered(Exception):
    """No answer came.

    Args:
        reason: Why.
        hopeless: Trying again would not help.
    """

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        self.hopeless = hopeless
        super().__init__(reason)


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        reason: Its name.
        wait: Seconds after which to come again; 0 where it says nothing of that.
        text: What else was said.
    """

    status: int
    reason: str
    wait: float
    text: bytes

    def __str__(self) -> str:
        said = self.text.decode(errors="replace").strip()
        return f"{self.status} {self.reason}" + (f": {said}" if said else "")


@dataclass(frozen=True)
class Post:
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

    def __call__(self, body: bytes, kind: str) -> Reply:
        """Post a body of a kind, such as `application/json`.

        Raises:
            Unanswered: There is no connection, or no answer within the time.
        """
        connection = self._connection()
        try:
            headers = {**self.headers, "Content-Type": kind, "User-Agent": "morpheus"}
            connection.request("POST", self._target, body=body, headers=headers)
            answer = connection.getresponse()
            wait = self._wait(answer.getheader("Retry-After", ""))
            return Reply(answer.status, answer.reason, wait, answer.read(MOST))
        except ssl.SSLCertVerificationError as error:
            said = f"its certificate is not trusted: {error.verify_message}"
            raise Unanswered(said, hopeless=True) from error
        except TimeoutError:
            raise Unanswered(f"no answer within {self.timeout:g} seconds") from None
        except (OSError, http.client.HTTPException) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unanswered(f"no answer: {said}") from error
        finally:
            connection.close()

    @property
    def host(self) -> str:
        """Server and port, without what may be a secret in the path."""
        return self._parts.netloc

    @cached_property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def _target(self) -> str:
        query = f"?{self._parts.query}" if self._parts.query else ""
        return (self._parts.path or "/") + query

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=self.timeout)

    def _wait(self, asked: str) -> float:
        """Seconds of `Retry-After`, which may be a number or a date."""
        try:
            return max(0.0, float(asked))
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - self.clock.now())
        except ValueError:
            return 0.0


def check_url(option: str, url: str) -> None:
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
