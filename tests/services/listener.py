"""A real HTTP server that gives prepared responses and records requests."""

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Request:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self):
        """The JSON lines of its body."""
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Listener:
    """Responds with the next of `responses`, or with `default` when none is left.

    A response is a status, a status and a body, or a function from a request to these; `hang` says
    nothing until the server ends.
    """

    default: object = 200
    responses: deque = field(default_factory=deque)
    requests: list = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    port: int = 0

    @property
    def url(self):
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def hang(self, _request):
        self.ended.wait(30)
        return 200

    def respond(self, request):
        self.requests.append(request)
        response = self.responses.popleft() if self.responses else self.default
        response = response(request) if callable(response) else response
        parts = response if isinstance(response, tuple) else (response,)
        status, body, headers = (*parts, b"", {})[:3]
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return status, text, headers or {}


@contextmanager
def listening(*responses, default=200, tls=None, protocol="HTTP/1.0"):
    """Run a listener on a free port, with a TLS context or without.

    HTTP/1.0 closes each connection; HTTP/1.1 keeps them open.
    """
    listener = Listener(default=default, responses=deque(responses))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol

        def setup(self):
            super().setup()
            listener.connections += 1

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text, headers = listener.respond(Request(self.path, dict(self.headers), body))
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # the client has given up

        def do_GET(self):
            self.do_POST()

        def log_message(self, *_about):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    listener.port = server.server_address[1]
    try:
        yield listener
    finally:
        listener.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def make_certificate(folder):
    """Return a TLS context for `localhost`, and the file of its certificate, which is self-signed.

    The test is skipped where openssl is not installed.
    """
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@dataclass
class FakeClock:
    """A clock that records sleeps instead of waiting."""

    slept: list = field(default_factory=list)

    def now(self):
        return time.time()

    def sleep(self, seconds):
        self.slept.append(seconds)
