"""Wall time, CPU time and memory of commands, over all their processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

EVERY = 0.05
"""Seconds between memory samples."""
MEMORY_FIELDS = "RssAnon", "RssFile", "RssShmem"
"""Page counters of a process: anonymous, file-backed and shared memory."""
MORPHEUS = [sys.executable, "-c", "from morpheus.__main__ import main; main()"]
"""The command `morpheus`, as its script starts it."""


@dataclass(frozen=True)
class Run:
    """Cost of a command.

    Attributes:
        wall: Wall seconds.
        cpu: CPU seconds of all its processes.
        peak: Peak memory of all its processes, in MB; pages of files count once.
        shown: Its output.
    """

    wall: float
    cpu: float
    peak: float
    shown: str


def run(command: Sequence[str], *, folder: Path | None = None, cores: int | None = None) -> Run:
    """Run a command on some cores.

    Raises:
        RuntimeError: If it fails.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    # As for users: compiled files are reused by later processes.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - our own commands
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # noqa: PLW1509 - no threads of ours hold locks
        text=True,
    ) as process:
        watch = Watch(process.pid)
        watch.start()
        shown = process.stdout.read() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    watch.stop()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{shown[-2000:]}")
    return Run(wall, used.ru_utime + used.ru_stime, watch.peak, shown)


def morpheus(*words: str, cores: int | None = None) -> Run:
    """Run `morpheus`."""
    return run([*MORPHEUS, *words], cores=cores)


class Watch(threading.Thread):
    """Samples the memory of a process tree until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0.0, threading.Event()

    def run(self) -> None:
        """Take samples until stopped."""
        while not self.over.wait(EVERY):
            self.peak = max(self.peak, memory(self.pid))

    def stop(self) -> None:
        """Stop sampling."""
        self.over.set()
        self.join()


def memory(pid: int) -> float:
    """Return the memory of a process tree in MB; pages of files count once."""
    held = [pages(one) for one in family(pid)]
    return sum(own for own, _ in held) + max(of_files for _, of_files in held)


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(one) for task in tasks for one in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(each for one in below for each in family(one))]


def pages(pid: int) -> tuple[float, float]:
    """Return the anonymous and the file-backed memory of a process, in MB.

    Reads the kernel's counters. Counting shared pages exactly would stop the process and affect the
    measurement.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0, 0.0
    values = dict(line.split(":", 1) for line in lines)
    own, of_files, shared = (int(values.get(name, "0").split()[0]) / 1024 for name in MEMORY_FIELDS)
    return own + shared, of_files


def cpu_seconds(action: Callable[[], object], times: int = 1) -> float:
    """Return the median CPU seconds of a function in this process."""
    spent = []
    for _ in range(times):
        begin = time.process_time()
        action()
        spent.append(time.process_time() - begin)
    return median(spent)


def wall_seconds(action: Callable[[], object], times: int = 1) -> float:
    """Return the median wall seconds of a function in this process."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begin)
    return median(spent)
