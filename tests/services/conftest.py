"""An S3 server in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from moto.core.authorization import enable_iam_authentication
from moto.server import ThreadedMotoServer

from lakes import Lake, Requests


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    log = logging.getLogger("werkzeug")
    log.setLevel(logging.INFO)
    log.propagate = False
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def lake(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """The server with one empty bucket, and an environment that points to it."""
    urlopen(Request(f"{server}/moto-api/reset", method="POST")).close()  # noqa: S310 - our own server
    urlopen(Request(f"{server}/lake", method="PUT")).close()  # noqa: S310 - our own server
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    requests, log = Requests(), logging.getLogger("werkzeug")
    log.addHandler(requests)
    yield Lake(server, requests.seen)
    log.removeHandler(requests)


@pytest.fixture
def guarded(lake: Lake) -> Iterator[Lake]:
    """The same server, checking credentials; it rejects all."""
    with enable_iam_authentication():
        yield lake
