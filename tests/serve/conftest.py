"""A folder of outputs, and the real command that serves it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest

COMMAND = [sys.executable, "-c", "from morpheus.cli.main import main; main()", "serve"]


@dataclass
class Server:
    """A server, in a process of its own."""

    process: subprocess.Popen
    address: str
    said: list[str]

    @property
    def port(self):
        return int(self.address.split(":")[2].partition("/")[0])

    @property
    def token(self):
        return self.address.partition("token=")[2]

    def ask(self, path, method="GET", *, bearer=True, **headers):
        """Ask for something, by default with the token in a header."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"Host": f"127.0.0.1:{self.port}"}
        if bearer:
            given["Authorization"] = f"Bearer {self.token}"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read() if path != "/updates" or answer.status != 200 else b""
        connection.close()
        return answer, body


@pytest.fixture(scope="session")
def served():
    """Serve a folder; all are stopped at the end."""
    processes = []

    def served(folder, *options):
        command = [*COMMAND, str(folder), "--port=0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        said = [process.stderr.readline()]
        found = re.search(r"Serving at (\S+)", said[0])
        assert found, said[0] + process.communicate(timeout=20)[1]
        threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
        return Server(process, found[1], said)

    yield served
    for process in processes:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
