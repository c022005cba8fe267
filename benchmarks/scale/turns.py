"""Workers in turns, each as fast as if it had a slow core of its own, however few cores there are.

On two cores four workers are in each other's way: a task that runs alone is faster than one in
company, which says nothing of a cluster whose workers have a core each. Here one worker runs at a
time, whether the others have work or not.
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
"""Seconds that a worker runs before the next one does."""


@contextmanager
def in_turns(workers: int) -> Iterator[None]:
    """Let the workers that this process starts run in turns, until the block ends.

    Args:
        workers: How many there will be: each runs for so much of the time.
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
            _tell(worker, signal.SIGCONT if place % workers == turn else signal.SIGSTOP)
    for worker in filter(_is_worker, family(os.getpid())):
        _tell(worker, signal.SIGCONT)


def _tell(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _is_worker(process: int) -> bool:
    """Whether Python has spawned it; the scheduler is in the process at the prompt."""
    with suppress(OSError):
        return b"multiprocessing.spawn" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
