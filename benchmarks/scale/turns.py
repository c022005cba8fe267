"""Workers that run in turns, each as fast as on a slow core of its own.

Four workers on two cores slow each other down: a task that runs alone is faster. A cluster with a
core per worker does not behave like this. So only one worker runs at a time, even if the others
have no work.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speed.meter import family

TURN = 0.02
"""Seconds per turn."""


@contextmanager
def in_turns(workers: int) -> Iterator[None]:
    """Run the workers that this process starts in turns, until the block ends.

    Args:
        workers: Number of workers. Each runs for an equal share of the time.
    """
    over = threading.Event()
    thread = threading.Thread(target=_rotate, args=(workers, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _rotate(workers: int, over: threading.Event) -> None:
    turn = 0
    while not over.wait(TURN):
        turn = (turn + 1) % workers
        for place, worker in enumerate(filter(_is_worker, family(os.getpid()))):
            _send_signal(worker, signal.SIGCONT if place % workers == turn else signal.SIGSTOP)
    for worker in filter(_is_worker, family(os.getpid())):
        _send_signal(worker, signal.SIGCONT)


def _send_signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _is_worker(process: int) -> bool:
    """Return whether a process was spawned by Python. The scheduler is in the main process."""
    with suppress(OSError):
        return b"multiprocessing.spawn" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
