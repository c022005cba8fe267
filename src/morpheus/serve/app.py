"""The web server of `morpheus serve`: authentication, the live page, and its updates."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from morpheus.errors import UsageError
from morpheus.report.page import build_live_policy, render_live_page
from morpheus.serve.live import LiveReport

HOST = "127.0.0.1"
REFRESH_SECONDS = 1.0
"""Seconds between two reads of the folder, and between two updates."""
ALLOWED_METHOD = "GET"
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response."""
MISDIRECTED = "This server responds only to 127.0.0.1 and localhost.\n"
METHOD_NOT_ALLOWED = "This server is read-only.\n"
UNAUTHORIZED = "Open the address that `morpheus serve` printed at start. It contains the token.\n"


def serve(
    live: LiveReport, *, port: int, with_token: bool, on_listening: Callable[[str], None]
) -> None:
    """Serve a live report until the process is stopped.

    Args:
        live: The report.
        port: Port on this machine. 0 for any free port.
        with_token: Whether requests need a token.
        on_listening: Called with the address, once it can be opened.

    Raises:
        UsageError: The port is in use.
    """
    token = secrets.token_urlsafe(32) if with_token else None
    with _open_socket(port) as listener:
        port = listener.getsockname()[1]
        app: ASGIApp = AuthMiddleware(App(live).build(), port, token, build_live_policy())
        on_listening(f"http://{HOST}:{port}/" + (f"?token={token}" if token else ""))
        uvicorn.Server(_uvicorn_config(app)).run(sockets=[listener])


def _open_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--port: cannot listen on {HOST}:{port}: {error.strerror}. Give another port, or 0 "
            "for any free port."
        ) from error
    return listener


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,  # the first address of a visit contains the token
        log_level="critical",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # a stream of updates does not end by itself
        limit_concurrency=64,
    )


class AuthMiddleware(msgspec.Struct, frozen=True):
    """Rejects requests without the token or for another host, and sets security headers.

    A website can point its own domain at this machine (DNS rebinding). Such a request names that
    domain as its host, so it is rejected. The token is in the address that `morpheus serve`
    prints. The first request exchanges it for a cookie, which scripts cannot read and other sites
    do not send.

    Attributes:
        app: The application.
        port: Port of the server.
        token: The token. None if requests need none.
        policy: Value of the Content-Security-Policy header.
    """

    app: ASGIApp
    port: int
    token: str | None
    policy: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a rejected request, or call the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._build_headers())
            await send(message)

        response = self._check_request(Request(scope))
        await (response or self.app)(scope, receive, send_with_headers)

    @property
    def cookie_name(self) -> str:
        """Name of the cookie. Cookies ignore ports, so the name contains the port."""
        return f"morpheus-{self.port}"

    def _build_headers(self) -> Mapping[str, str]:
        return {**SECURITY_HEADERS, "Content-Security-Policy": self.policy}

    def _check_request(self, request: Request) -> Response | None:
        """Return the response to a request that does not reach the application."""
        hosts = request.headers.getlist("host")
        own_hosts = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        if len(hosts) != 1 or hosts[0].lower() not in own_hosts:
            return PlainTextResponse(MISDIRECTED, 421)
        if request.method != ALLOWED_METHOD:
            return PlainTextResponse(METHOD_NOT_ALLOWED, 405, {"Allow": ALLOWED_METHOD})
        if self.token is None:
            return None
        address_token = request.query_params.get("token")
        if address_token is not None and self._matches_token(address_token):
            return self._set_cookie(address_token)
        cookie = request.cookies.get(self.cookie_name, "")
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer" and self._matches_token(credentials)
        if self._matches_token(cookie) or is_bearer:
            return None
        return PlainTextResponse(UNAUTHORIZED, 401, {"WWW-Authenticate": "Bearer"})

    def _set_cookie(self, token: str) -> Response:
        """Move the token from the address, which browsers store and show, to a cookie."""
        response = RedirectResponse("/", 303)
        response.set_cookie(self.cookie_name, token, httponly=True, samesite="strict", path="/")
        return response

    def _matches_token(self, text: str) -> bool:
        expected = (self.token or "").encode()
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), expected)


class App(msgspec.Struct):
    """The application behind `AuthMiddleware`.

    Attributes:
        live: The report.
        refreshed: Set and replaced after each read of the folder.
    """

    live: LiveReport
    refreshed: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def build(self) -> Starlette:
        """Build the ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/data", self.data),
            Route("/updates", self.sse_updates),
        ]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Read the folder while the server runs."""
        refreshing = asyncio.create_task(self._refresh_forever())
        yield
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing

    async def page(self, _: Request) -> Response:
        """Return the page, without data."""
        return Response(render_live_page("data"), media_type="text/html")

    async def data(self, _: Request) -> Response:
        """Return the page's data."""
        data = await run_in_threadpool(self.live.encode_data)
        return Response(data, media_type="application/json")

    async def sse_updates(self, _: Request) -> Response:
        """Stream the state of the run, every second, as server-sent events."""
        return StreamingResponse(self._iter_events(), media_type="text/event-stream")

    async def _iter_events(self) -> AsyncIterator[bytes]:
        while True:
            # Taken before the state is read, so that no refresh in between is missed.
            refreshed = self.refreshed
            health = msgspec.json.encode(self.live.get_health())
            yield b"event: health\ndata: " + health + b"\n\n"
            await refreshed.wait()

    async def _refresh_forever(self) -> None:
        while True:
            # A folder that is missing may come back. Until then its last rows are shown.
            with suppress(OSError):
                await run_in_threadpool(self.live.refresh)
            self.refreshed.set()
            self.refreshed = asyncio.Event()
            await asyncio.sleep(REFRESH_SECONDS)
