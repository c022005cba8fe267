"""Messages to systemd, received by a real datagram socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from morpheus.core.batch import RunMetrics, Step
from morpheus.status import RunWatch, ServiceNotifier
from test_metrics import MAIN, pipeline, until, write_events

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """Listen as systemd does."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(address)
        receiver.settimeout(30)
        yield receiver


def receive_all(receiver: socket.socket) -> list[str]:
    """Return the lines that have arrived."""
    receiver.settimeout(0)
    lines = []
    while True:
        try:
            lines += receiver.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


def test_a_run_tells_systemd_of_its_start_and_its_end(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_events(tmp_path / "in" / "a.jsonl", 1, 60)
    with listening(str(tmp_path / "notify")) as receiver:
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        command = [*MAIN, "run", *pipeline(tmp_path)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        lines = receive_all(receiver)
    assert lines[0] == "READY=1"
    assert lines[-2:] == ["STOPPING=1", "STATUS=Ending"]
    assert "WATCHDOG=1" not in lines, "no watchdog was asked for"


def test_the_socket_can_have_an_abstract_address() -> None:
    name = f"morpheus-test-{os.getpid()}"
    with listening(f"\0{name}") as receiver:
        notifier = ServiceNotifier.from_environment({"NOTIFY_SOCKET": f"@{name}"})
        assert notifier is not None
        notifier.send("READY=1")
        assert receiver.recv(4096) == b"READY=1"


def test_a_wrong_pipeline_is_never_ready(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as receiver:
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        source = ("from-cloudtrail", "--input_glob=in/*.jsonl")
        command = [*MAIN, "run", "pipeline-ae", *source, "preprocess"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True)
        assert done.returncode == 2
        assert receive_all(receiver) == []


def test_the_watchdog_hears_of_progress_and_not_of_time() -> None:
    notifier, watch, metrics = ServiceNotifier("/x", 60.0), RunWatch(), RunMetrics()
    watch.start(metrics)
    assert notifier.list_news(watch) == ["WATCHDOG=1", "STATUS=Starting"]
    for _ in range(3):  # the process is alive, but the run hangs
        assert notifier.list_news(watch) == []
    metrics.input.read += 1
    assert notifier.list_news(watch) == ["WATCHDOG=1"]
    assert notifier.list_news(watch) == []


def test_progress_that_something_else_has_seen_reaches_the_watchdog() -> None:
    notifier, watch, metrics = ServiceNotifier("/x", 60.0), RunWatch(), RunMetrics()
    watch.start(metrics)
    notifier.list_news(watch)
    metrics.input.read += 1
    watch.find_idle_seconds()  # as /readyz does
    assert notifier.list_news(watch) == ["WATCHDOG=1"]


def test_the_status_is_the_step_on_one_line(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as receiver:
        notifier, watch = ServiceNotifier(str(tmp_path / "notify")), RunWatch()
        watch.follow_steps(None)(Step("Read\ning", lambda: (1, 4500)))
        notifier.send(*notifier.list_news(watch))
        assert receiver.recv(4096) == b"STATUS=Read\\ning: 4,500 events"


def test_messages_of_a_run_are_sent_while_it_runs(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as receiver:
        watch = RunWatch()
        with ServiceNotifier(str(tmp_path / "notify"), 0.04).follow(watch):
            assert receiver.recv(4096) == b"READY=1\nSTATUS=Starting"
            watch.metrics.input.read += 1
            until(lambda: b"WATCHDOG=1" in receiver.recv(4096))


def test_a_service_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    ServiceNotifier(str(tmp_path / "gone")).send("READY=1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(
    environment: dict[str, str], seconds: float | None
) -> None:
    notifier = ServiceNotifier.from_environment({"NOTIFY_SOCKET": "/run/x", **environment})
    assert notifier is not None
    assert notifier.watchdog_seconds == seconds


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "tcp:1"}])
def test_without_systemd_nothing_is_sent(environment: dict[str, str]) -> None:
    assert ServiceNotifier.from_environment(environment) is None
