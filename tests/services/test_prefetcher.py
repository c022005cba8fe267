"""Objects are prefetched in parallel and read in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from morpheus.sources.compression import MAX_CONCURRENCY, PREFETCH_BYTES, Prefetcher
from morpheus.storage.object_store import ObjectPath


class Slow(BaseHTTPRequestHandler):
    """A server that responds slowly with the path of the request, and counts requests."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    active = peak = answered = 0

    def do_GET(self) -> None:
        kind = type(self)
        with self.lock:
            kind.active += 1
            kind.peak = max(kind.peak, kind.active)
        time.sleep(0.02)
        with self.lock:
            kind.active -= 1
            kind.answered += 1
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Fri, 31 May 2024 09:30:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *about: object) -> None:
        """Say nothing."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Slow]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Slow.active = Slow.peak = Slow.answered = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield Slow
    server.shutdown()
    server.server_close()


def test_objects_are_fetched_in_parallel_and_read_in_order(slow: type[Slow]) -> None:
    objects = [ObjectPath("lake", f"{n:03}.json", size=8) for n in range(64)]
    with Prefetcher(objects) as prefetcher:
        texts = [prefetcher.read(path) for path in objects]
    assert texts == [f"/lake/{n:03}.json".encode() for n in range(64)]
    assert 1 < slow.peak <= MAX_CONCURRENCY


def test_prefetching_is_bounded_by_bytes(slow: type[Slow]) -> None:
    objects = [ObjectPath("lake", f"{n:03}.json", size=PREFETCH_BYTES // 4) for n in range(12)]
    with Prefetcher(objects) as prefetcher:
        prefetcher.read(objects[0])
        time.sleep(0.3)
        assert slow.answered == 4
        prefetcher.read(objects[1])
        time.sleep(0.3)
        assert slow.answered == 5


def test_leaving_early_stops_prefetching(slow: type[Slow]) -> None:
    objects = [ObjectPath("lake", f"{n:03}.json", size=8) for n in range(500)]
    with Prefetcher(objects) as prefetcher:
        prefetcher.read(objects[0])
    time.sleep(0.2)
    assert slow.answered < 40
