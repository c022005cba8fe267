"""Who may read: everything that comes in passes here, and whatever goes out is marked."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHOD = "GET"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""
NO_HOST = "This server answers to 127.0.0.1 and localhost alone.\n"
NO_METHOD = "Nothing can be changed here.\n"
NO_TOKEN = "Open the address that `morpheus serve` printed when it started: it ends in the token.\n"  # noqa: S105 - a sentence


@dataclass(frozen=True)
class Gate:
    """Lets requests through to an application, if they come from who they should.

    A web page elsewhere can point a name of its own at this machine; such a request carries that
    name, and is refused. What carries no token is refused, too. The token comes once in the
    address, and is put into a cookie that scripts cannot read and other sites do not send.

    Attributes:
        app: What is behind.
        port: Where it listens.
        token: What lets in; None for everybody on this machine.
        policy: What pages may do, as Content-Security-Policy.
    """

    app: ASGIApp
    port: int
    token: str | None
    policy: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers())
            await send(message)

        answer = self._refusal(Request(scope))
        await (self.app if answer is None else answer)(scope, receive, marked)

    @property
    def cookie(self) -> str:
        """Name of the cookie: browsers share those of all ports."""
        return f"morpheus-{self.port}"

    def _headers(self) -> Mapping[str, str]:
        return {**HEADERS, "Content-Security-Policy": self.policy}

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not to be handed on."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in {
            f"127.0.0.1:{self.port}",
            f"localhost:{self.port}",
        }:
            return PlainTextResponse(NO_HOST, 421)
        if request.method != METHOD:
            return PlainTextResponse(NO_METHOD, 405, {"Allow": METHOD})
        if self.token is None:
            return None
        brought = request.query_params.get("token")
        if brought is not None and self._is_token(brought):
            return self._welcome(brought)
        kept = request.cookies.get(self.cookie, "")
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        if self._is_token(kept) or (kind.lower() == "bearer" and self._is_token(sent)):
            return None
        return PlainTextResponse(NO_TOKEN, 401, {"WWW-Authenticate": "Bearer"})

    def _welcome(self, token: str) -> Response:
        """Take the token out of the address."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_token(self, text: str) -> bool:
        wanted = (self.token or "").encode()
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), wanted)
