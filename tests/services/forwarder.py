"""An address that reaches another one, or that accepts connections and never answers."""

import select
import socket
import threading
import time
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer


@contextmanager
def forwarding(port, target, pause=0.0):
    """Connect what comes to `port` with the port `target`, both on this machine.

    Pause after each 16 KiB, as a slow line does.
    """
    ended = threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self):
            with socket.create_connection(("127.0.0.1", target)) as other:
                to = {self.request: other, other: self.request}
                while not ended.is_set():
                    for each in select.select(list(to), [], [], 0.05)[0]:
                        if not (data := each.recv(1 << 14)):
                            return
                        to[each].sendall(data)
                        time.sleep(pause)

    class Server(ThreadingTCPServer):
        allow_reuse_address = True

        def handle_error(self, *_about):
            pass  # a connection has ended

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@contextmanager
def silent():
    """Yield a port at which connections are accepted and nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]
