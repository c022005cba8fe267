"""A TCP proxy between the product and a server, that is slow or gone when told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BLOCK = 1 << 16
SLOW_SECONDS = 0.3
"""Delay of each block while the server is slow."""


@dataclass
class Proxy:
    """Passes connections on.

    Attributes:
        target: Host and port of the server.
        port: Port of the proxy on this machine.
        mode: `open`, `slow` or `gone`.
    """

    target: tuple[str, int]
    port: int = 0
    mode: str = "open"
    _connections: set[socket.socket] = field(default_factory=set)

    def set_mode(self, mode: str) -> None:
        """Change the mode. Connections end if the server is gone."""
        self.mode = mode
        if mode == "gone":
            for connection in list(self._connections):
                _shut(connection)

    def accept(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        if self.mode == "gone":
            client.close()
            return
        try:
            server = socket.create_connection(self.target, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        pair = {client, server}
        self._connections |= pair
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        back.start()
        self._copy(client, server)
        back.join()
        self._connections -= pair
        for each in pair:
            each.close()

    def _copy(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(BLOCK):
                if self.mode == "slow":
                    time.sleep(SLOW_SECONDS)
                to.sendall(block)
        _shut(to)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxying(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy on a free port of this machine."""
    proxy = Proxy((host, port))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]
        threading.Thread(target=proxy.accept, args=(listener,), daemon=True).start()
        yield proxy
        proxy.set_mode("gone")
