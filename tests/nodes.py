"""A cluster as it is in life: a scheduler and nodes, each with processes of its own."""

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
    """A scheduler and some nodes, in network namespaces of their own where root can make them."""
    with ExitStack() as stack:
        first, *others = stack.enter_context(places(workers + 1))
        said = stack.enter_context(node(folder / "scheduler", first, "scheduler", "--port=0"))
        address = heard(said, r"Scheduler at:\s+(tcp://\S+)")
        for number, place in enumerate(others):
            said = stack.enter_context(
                node(folder / f"{number}", place, "worker", address, "--nthreads=1", *options)
            )
            heard(said, r"(Registered to)")
        yield address


@contextmanager
def node(folder, place, *words):
    """A command of Dask, ended at last with all that it has started; gives the file it logs to."""
    folder.mkdir(parents=True)
    space, ip = place
    inside = ["ip", "netns", "exec", space] if space else []
    command = [*inside, sys.executable, "-m", "dask", *words, "--host", ip, "--no-dashboard"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(
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
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def heard(log, pattern):
    """What a log says, as soon as it does."""
    for _ in range(600):
        found = re.search(pattern, log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"{log} never said {pattern}:\n{log.read_text()}")


@contextmanager
def places(number):
    """A network namespace and its address for each node, all on one bridge; or this machine."""
    network = next(NETWORKS)
    # Another run of the tests may have networks on this machine, too.
    net = f"10.{64 + os.getpid() % 128}.{network}"
    bridge = f"mrph{os.getpid()}-{network}"[-15:]
    if os.geteuid() or IP is None or not ip(f"link add {bridge} type bridge"):
        yield [("", "127.0.0.1")] * number
        return
    spaces = [f"{bridge}-{one}" for one in range(number)]
    try:
        ip(f"addr add {net}.254/24 dev {bridge}")
        ip(f"link set {bridge} up")
        for one, space in enumerate(spaces):
            wire(space, f"{net}.{one + 1}", bridge)
        yield [(space, f"{net}.{one + 1}") for one, space in enumerate(spaces)]
    finally:
        for space in spaces:
            ip(f"netns del {space}")
        ip(f"link del {bridge}")


def wire(space, address, bridge):
    """Make a namespace with a cable to the bridge."""
    cable = f"v{address.replace('.', '')}"
    ip(f"netns add {space}")
    ip(f"link add {cable} type veth peer name eth0 netns {space}")
    ip(f"link set {cable} master {bridge} up")
    ip(f"-n {space} addr add {address}/24 dev eth0")
    ip(f"-n {space} link set eth0 up")
    ip(f"-n {space} link set lo up")


def ip(words):
    return not subprocess.run([IP, *words.split()], capture_output=True, check=False).returncode
