"""`morpheus serve`, run as a process."""

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
    """A running server."""

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
        """Send a request, by default with the token in a header."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent_headers = {"Host": f"127.0.0.1:{self.port}"}
        if bearer:
            sent_headers["Authorization"] = f"Bearer {self.token}"
        sent_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in sent_headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read() if path != "/updates" or response.status != 200 else b""
        connection.close()
        return response, body


@pytest.fixture(scope="session")
def served():
    """Serve a folder. The servers stop at the end."""
    processes = []

    def serve_folder(folder, *options):
        command = [*COMMAND, str(folder), "--port=0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        said = [process.stderr.readline()]
        match = re.search(r"Serving at (\S+)", said[0])
        assert match, said[0] + process.communicate(timeout=20)[1]
        threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
        return Server(process, match[1], said)

    yield serve_folder
    for process in processes:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
