"""An HTTP receiver that is never killed, and that refuses or delays requests when told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec


@dataclass(frozen=True)
class Receipt:
    """One event in one request.

    Attributes:
        life: The life of the product in which it came; see `Receiver.life`.
        row: The event.
        accepted: Whether the request was answered with 200.
        when: Seconds of the monotonic clock.
    """

    life: int
    row: dict[str, object]
    accepted: bool
    when: float


@dataclass
class Receiver:
    """What has come.

    Attributes:
        port: Port of the server.
        life: Number of times that the product was started.
        refuses: Answer with 503.
        delay: Seconds before an answer.
        receipts: The events of all requests.
    """

    port: int = 0
    life: int = 0
    refuses: bool = False
    delay: float = 0.0
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}/events"

    def receive(self, body: bytes) -> int:
        """Keep the events of a request, and return the status."""
        # The product may be killed and started again during the delay.
        life, now, accepted = self.life, time.monotonic(), not self.refuses
        time.sleep(self.delay)
        rows = [msgspec.json.decode(line) for line in body.splitlines() if line.strip()]
        self.receipts += [
            Receipt(life, row, accepted, now)
            for each in rows
            for row in (each if isinstance(each, list) else [each])
        ]
        return 200 if accepted else 503


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status = receiver.receive(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:
                self.close_connection = True  # the product was killed

        def log_message(self, *_about: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a killed client is expected
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    receiver.port = server.server_address[1]
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
