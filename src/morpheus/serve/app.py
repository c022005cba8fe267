"""Who may read: everything that comes in passes here, and whatever goes out is marked."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

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
"""Of every answer."""
MISDIRECTED = "This server answers to 127.0.0.1 and localhost alone.\n"
METHOD_NOT_ALLOWED = "Nothing can be changed here.\n"
UNAUTHORIZED = (
    "Open the address that `morpheus serve` printed when it started: it ends in the token.\n"  # noqa: S105 - a sentence
)


@dataclass(frozen=True)
class AuthMiddleware:
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
                MutableHeaders(scope=message).update(self._build_headers())
            await send(message)

        answer = self._check_request(Request(scope))
        await (self.app if answer is None else answer)(scope, receive, marked)

    @property
    def cookie_name(self) -> str:
        """Name of the cookie: browsers share those of all ports."""
        return f"morpheus-{self.port}"

    def _build_headers(self) -> Mapping[str, str]:
        return {**SECURITY_HEADERS, "Content-Security-Policy": self.policy}

    def _check_request(self, request: Request) -> Response | None:
        """The answer to a request that is not to be handed on."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in {
            f"127.0.0.1:{self.port}",
            f"localhost:{self.port}",
        }:
            return PlainTextResponse(MISDIRECTED, 421)
        if request.method != ALLOWED_METHOD:
            return PlainTextResponse(METHOD_NOT_ALLOWED, 405, {"Allow": ALLOWED_METHOD})
        if self.token is None:
            return None
        brought = request.query_params.get("token")
        if brought is not None and self._matches_token(brought):
            return self._set_cookie(brought)
        kept = request.cookies.get(self.cookie_name, "")
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        if self._matches_token(kept) or (kind.lower() == "bearer" and self._matches_token(sent)):
            return None
        return PlainTextResponse(UNAUTHORIZED, 401, {"WWW-Authenticate": "Bearer"})

    def _set_cookie(self, token: str) -> Response:
        """Take the token out of the address."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie_name, token, httponly=True, samesite="strict", path="/")
        return answer

    def _matches_token(self, text: str) -> bool:
        wanted = (self.token or "").encode()
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), wanted)


HOST = "127.0.0.1"
REFRESH_SECONDS = 1.0
"""Seconds between two looks at the folder, and between two news."""


@dataclass
class App:
    """What is served.

    Attributes:
        live: The folder that is followed.
        refreshed: Set, and made anew, each time the folder has been looked at.
    """

    live: LiveReport
    refreshed: asyncio.Event = field(default_factory=asyncio.Event)

    def build(self) -> Starlette:
        """The application, without its gate."""
        routes = [
            Route("/", self.page),
            Route("/data", self.data),
            Route("/updates", self.sse_updates),
        ]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Look at the folder while the server runs."""
        looking = asyncio.create_task(self._refresh_forever())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def page(self, _: Request) -> Response:
        """The page, without data."""
        return Response(render_live_page("data"), media_type="text/html")

    async def data(self, _: Request) -> Response:
        """The page's data."""
        return Response(
            await run_in_threadpool(self.live.encode_data), media_type="application/json"
        )

    async def sse_updates(self, _: Request) -> Response:
        """How the run is doing, every second, as server-sent events."""
        return StreamingResponse(self._iter_events(), media_type="text/event-stream")

    async def _iter_events(self) -> AsyncIterator[bytes]:
        while True:
            looked = self.refreshed
            health = msgspec.json.encode(self.live.get_health())
            yield b"event: health\ndata: " + health + b"\n\n"
            await looked.wait()

    async def _refresh_forever(self) -> None:
        while True:
            # A folder that is gone may come back; until then its last rows are shown.
            with suppress(OSError):
                await run_in_threadpool(self.live.refresh)
            self.refreshed.set()
            self.refreshed = asyncio.Event()
            await asyncio.sleep(REFRESH_SECONDS)


def serve(
    live: LiveReport, *, port: int, with_token: bool, on_listening: Callable[[str], None]
) -> None:
    """Serve a folder until somebody stops it.

    Args:
        live: The folder.
        port: Where to listen on this machine; 0 for any that is free.
        with_token: Whether a token is asked for.
        on_listening: Told the address, once it can be opened.

    Raises:
        UsageError: Something else listens there.
    """
    token = secrets.token_urlsafe(32) if with_token else None
    with _open_socket(port) as listener:
        port = listener.getsockname()[1]
        app: ASGIApp = AuthMiddleware(App(live).build(), port, token, build_live_policy())
        on_listening(f"http://{HOST}:{port}/" + (f"?token={token}" if token else ""))
        uvicorn.Server(_uvicorn_config(app)).run(sockets=[listener])


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,  # the first address of a visit has the token in it
        log_level="critical",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # news never end by themselves
        limit_concurrency=64,
    )


def _open_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--port: {HOST}:{port} cannot be listened to: {error.strerror}. Give another, or 0 "
            "for any that is free."
        ) from error
    return listener
