"""Runs the command `morpheus` many times in one process, which imports it once.

Most of the time of a short command is that of its imports. A command gets the folder, environment,
input and output of its caller, and runs when the commands before it have ended: no two run at once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

LONGEST_REQUEST = 1 << 20


def run_warm(address: str, words: Sequence[str], fds: Sequence[int]) -> int:
    """Run a command in the current folder and environment with this input and output.

    Returns:
        The exit code.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        request = json.dumps([list(words), str(Path.cwd()), dict(os.environ)])
        socket.send_fds(connection, [request.encode()], fds)
        answer = connection.recv(9)
    if not answer:
        raise RuntimeError(f"the process died that ran `morpheus {' '.join(words)}`")
    return int(answer)


@contextmanager
def warm_command(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Start the process. Give a script that runs commands in it, as `morpheus` does."""
    address, script = folder / "socket", folder / "morpheus"
    script.write_text(
        f"#!{sys.executable} -S\n"
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from warm_command import run_warm\n"
        f"sys.exit(run_warm({str(address)!r}, sys.argv[1:], (0, 1, 2)))\n"
    )
    script.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
    try:
        yield script
    finally:
        process.kill()
        process.wait()


def serve(listener: socket.socket) -> None:
    """Run the commands that are asked for, one after the other."""
    while True:
        connection, _ = listener.accept()
        with connection:
            message, fds, *_ = socket.recv_fds(connection, LONGEST_REQUEST, 3)
            if message:
                words, folder, environment = json.loads(message)
                with _caller(folder, environment, fds):
                    code = _run(words)
                connection.send(str(code).encode())


@contextmanager
def _caller(folder: str, environment: Mapping[str, str], fds: Sequence[int]) -> Iterator[None]:
    """Take on the folder, the environment, the input and the output of a caller."""
    own, folder_before = os.environ.copy(), Path.cwd()
    saved = [os.dup(number) for number in range(3)]
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(own)
        os.chdir(folder_before)
        for number, fd in enumerate(saved):
            os.dup2(fd, number)
            os.close(fd)


def _run(words: Sequence[str]) -> int:
    """Run a command; return the exit code that its process would have."""
    from morpheus.cli.main import main  # noqa: PLC0415 - callers do without

    sys.argv = ["morpheus", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - Python shows it, and ends
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    # A command with several processes would start it, with the output of the caller, who would then
    # wait for its end.
    resource_tracker.ensure_running()
    serve(socket.socket(fileno=int(sys.argv[1])))
