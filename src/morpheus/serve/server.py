"""The server: a page, its data, and news of both, to this machine alone."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from morpheus.errors import UsageError
from morpheus.report.page import served, served_policy
from morpheus.serve.gate import Gate
from morpheus.serve.live import Live

HOST = "127.0.0.1"
EVERY = 1.0
"""Seconds between two looks at the folder, and between two news."""


@dataclass
class Site:
    """What is served.

    Attributes:
        live: The folder that is followed.
        looked: Set, and made anew, each time the folder has been looked at.
    """

    live: Live
    looked: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> Starlette:
        """The application, without its gate."""
        routes = [
            Route("/", self.page),
            Route("/data", self.data),
            Route("/updates", self.updates),
        ]
        return Starlette(routes=routes, lifespan=self.following)

    @asynccontextmanager
    async def following(self, _: Starlette) -> AsyncIterator[None]:
        """Look at the folder while the server runs."""
        looking = asyncio.create_task(self._look())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def page(self, _: Request) -> Response:
        """The page, without data."""
        return Response(served("data"), media_type="text/html")

    async def data(self, _: Request) -> Response:
        """The page's data."""
        return Response(await run_in_threadpool(self.live.data), media_type="application/json")

    async def updates(self, _: Request) -> Response:
        """How the run is doing, every second, as server-sent events."""
        return StreamingResponse(self._news(), media_type="text/event-stream")

    async def _news(self) -> AsyncIterator[bytes]:
        while True:
            looked = self.looked
            health = msgspec.json.encode(self.live.health())
            yield b"event: health\ndata: " + health + b"\n\n"
            await looked.wait()

    async def _look(self) -> None:
        while True:
            # A folder that is gone may come back; until then its last rows are shown.
            with suppress(OSError):
                await run_in_threadpool(self.live.look)
            self.looked.set()
            self.looked = asyncio.Event()
            await asyncio.sleep(EVERY)


def serve(live: Live, *, port: int, with_token: bool, tell: Callable[[str], None]) -> None:
    """Serve a folder until somebody stops it.

    Args:
        live: The folder.
        port: Where to listen on this machine; 0 for any that is free.
        with_token: Whether a token is asked for.
        tell: Told the address, once it can be opened.

    Raises:
        UsageError: Something else listens there.
    """
    token = secrets.token_urlsafe(32) if with_token else None
    with _listening(port) as listener:
        port = listener.getsockname()[1]
        app: ASGIApp = Gate(Site(live).app(), port, token, served_policy())
        tell(f"http://{HOST}:{port}/" + (f"?token={token}" if token else ""))
        uvicorn.Server(_config(app)).run(sockets=[listener])


def _config(app: ASGIApp) -> uvicorn.Config:
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


def _listening(port: int) -> socket.socket:
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
