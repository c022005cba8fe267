"""A real HTTP server that answers as it is told, request after request, and remembers them."""

import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """What came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self):
        """Its JSON lines."""
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Listener:
    """Answers with the next of `answers`, or with `usual` when there is none left.

    An answer is a status, a status and a body, or a function from a request to these; `hang` says
    nothing at all until the server ends.
    """

    usual: object = 200
    answers: deque = field(default_factory=deque)
    requests: list = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def hang(self, _request):
        self.ended.wait(30)
        return 200

    def answer(self, request):
        self.requests.append(request)
        told = self.answers.popleft() if self.answers else self.usual
        told = told(request) if callable(told) else told
        status, body, headers = (*(told if isinstance(told, tuple) else (told,)), b"", {})[:3]
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return status, text, headers or {}


@contextmanager
def listening(*answers, usual=200, tls=None):
    """Run a listener, on a port of its own, with a context of TLS or without."""
    listener = Listener(usual=usual, answers=deque(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text, headers = listener.answer(Request(self.path, dict(self.headers), body))
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # nobody waits for it any more

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


@dataclass
class Fast:
    """A clock that does not wait, and remembers for how long it should have."""

    slept: list = field(default_factory=list)

    def now(self):
        return time.time()

    def sleep(self, seconds):
        self.slept.append(seconds)
