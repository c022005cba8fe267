"""A cluster of real processes: a scheduler and nodes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IP = shutil.which("ip")
NETWORKS = count()


@contextmanager
def cluster(folder, workers, *options):
    """A scheduler and nodes, each in its own network namespace if root can create one."""
    with ExitStack() as stack:
        first, *rest = stack.enter_context(network_places(workers + 1))
        log = stack.enter_context(node(folder / "scheduler", first, "scheduler", "--port=0"))
        address = wait_for_log(log, r"Scheduler at:\s+(tcp://\S+)")
        for number, place in enumerate(rest):
            log = stack.enter_context(
                node(folder / f"{number}", place, "worker", address, "--nthreads=1", *options)
            )
            wait_for_log(log, r"(Registered to)")
        yield address


@contextmanager
def node(folder, place, *words):
    """Run a Dask command, yield its log file, and kill it with its child processes."""
    folder.mkdir(parents=True)
    space, ip = place
    prefix = ["ip", "netns", "exec", space] if space else []
    command = [*prefix, sys.executable, "-m", "dask", *words, "--host", ip, "--no-dashboard"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "DASK_TEMPORARY_DIRECTORY": str(folder)},
            stderr=log,
            stdout=log,
            start_new_session=True,
        )
    try:
        yield folder / "log"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_log(log, pattern):
    """Wait until a log matches a pattern, and return the first group."""
    for _ in range(600):
        match = re.search(pattern, log.read_text())
        if match:
            return match[1]
        time.sleep(0.1)
    pytest.fail(f"{log} never said {pattern}:\n{log.read_text()}")


@contextmanager
def network_places(number):
    """A network namespace and address for each node, on one bridge. Otherwise, this machine."""
    network = next(NETWORKS)
    # Another test run can have networks on this machine.
    net = f"10.{64 + os.getpid() % 128}.{network}"
    bridge = f"mrph{os.getpid()}-{network}"[-15:]
    if os.geteuid() or IP is None or not ip(f"link add {bridge} type bridge"):
        yield [("", "127.0.0.1")] * number
        return
    spaces = [f"{bridge}-{n}" for n in range(number)]
    try:
        ip(f"addr add {net}.254/24 dev {bridge}")
        ip(f"link set {bridge} up")
        for n, space in enumerate(spaces, 1):
            connect(space, f"{net}.{n}", bridge)
        yield [(space, f"{net}.{n}") for n, space in enumerate(spaces, 1)]
    finally:
        for space in spaces:
            ip(f"netns del {space}")
        ip(f"link del {bridge}")


def connect(space, address, bridge):
    """Create a namespace and connect it to the bridge."""
    cable = f"v{address.replace('.', '')}"
    ip(f"netns add {space}")
    ip(f"link add {cable} type veth peer name eth0 netns {space}")
    ip(f"link set {cable} master {bridge} up")
    ip(f"-n {space} addr add {address}/24 dev eth0")
    ip(f"-n {space} link set eth0 up")
    ip(f"-n {space} link set lo up")


def ip(words):
    return not subprocess.run([IP, *words.split()], capture_output=True, check=False).returncode
