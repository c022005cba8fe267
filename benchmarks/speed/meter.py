"""Wall time, CPU time and memory of commands, all their processes together."""

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
"""Seconds from one look at the memory to the next."""
HELD = "RssAnon", "RssFile", "RssShmem"
"""Counters of a process's pages: its own, of files, and shared ones that are of no file."""
MORPHEUS = [sys.executable, "-c", "from morpheus.cli.main import main; main()"]


@dataclass(frozen=True)
class Run:
    """What a command took.

    Attributes:
        wall: Seconds.
        cpu: Seconds of all its processes.
        peak: Most memory of all its processes at one time, in MB; pages of files count once.
        shown: What it printed.
    """

    wall: float
    cpu: float
    peak: float
    shown: str


def run(command: Sequence[str], *, folder: Path | None = None, cores: int | None = None) -> Run:
    """Run a command to its end, on so many cores.

    Raises:
        RuntimeError: It failed.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    # As it is with users: what was compiled once is not compiled again by every process.
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
    """Run our own command."""
    return run([*MORPHEUS, *words], cores=cores)


class Watch(threading.Thread):
    """Looks at the memory of a process and all below it until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0.0, threading.Event()

    def run(self) -> None:
        """Look, and look again."""
        while not self.over.wait(EVERY):
            self.peak = max(self.peak, memory(self.pid))

    def stop(self) -> None:
        """Look no more."""
        self.over.set()
        self.join()


def memory(pid: int) -> float:
    """MB that a process and all below it hold, pages of files once: about those of the largest."""
    held = [pages(one) for one in family(pid)]
    return sum(own for own, _ in held) + max(of_files for _, of_files in held)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(one) for task in tasks for one in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(each for one in below for each in family(one))]


def pages(pid: int) -> tuple[float, float]:
    """MB that a process holds of its own, and of files.

    The kernel keeps count of these. To have it look through the pages, for what is shared with
    whom, stops the process meanwhile, and takes time from what is measured.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0, 0.0
    values = dict(line.split(":", 1) for line in lines)
    own, of_files, shared = (int(values.get(name, "0").split()[0]) / 1024 for name in HELD)
    return own + shared, of_files


def cpu_seconds(action: Callable[[], object], times: int = 1) -> float:
    """Median CPU seconds of something done in this process."""
    spent = []
    for _ in range(times):
        begin = time.process_time()
        action()
        spent.append(time.process_time() - begin)
    return median(spent)


def wall_seconds(action: Callable[[], object], times: int = 1) -> float:
    """Median wall seconds of something done in this process."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begin)
    return median(spent)
