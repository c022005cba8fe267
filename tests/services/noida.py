"""Servers of noida-db, wire-compatible with Kafka and Elasticsearch, for tests.

Its binary is started itself: its Python wrapper would start a child, which stays when the wrapper
is killed.
"""

import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

PATIENCE = 30  # seconds


@contextmanager
def noida(service):
    """Run one service on a free port, which is given; all that it holds goes with it."""
    pytest.importorskip("noida_db", reason="noida-db is not installed: pip install '.[dev]'")
    binary = Path(str(files("noida_db") / "noida-db"))
    with tempfile.TemporaryDirectory(prefix="noida-") as folder:
        port = free_port()
        server = subprocess.Popen(
            [
                *(str(binary), "start", "--only", service),
                *(f"--{service}-port", str(port), "--data-dir", folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, server)
            yield port
        finally:
            server.terminate()
            server.wait(timeout=PATIENCE)


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port, server):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.skip(f"noida-db does not run here: it ended with {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"noida-db did not answer within {PATIENCE} seconds")
