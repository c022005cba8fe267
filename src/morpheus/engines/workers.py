"""Worker processes: the same segment of a chain, for several users side by side."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context

from morpheus.engines.fold import folded
from morpheus.errors import Unavailable
from morpheus.records import Batch
from morpheus.stage import Stage

Group = list[Batch]
"""All batches of one user."""
Done = tuple[list[Batch], list[logging.LogRecord]]

EVENTS = 4000
"""Events of a task, about: small users travel together."""
AHEAD = 3
"""Tasks that wait for each worker; more would only fill memory."""


def run_in_workers(
    workers: int, segment: Sequence[Stage], groups: Iterable[Group]
) -> Iterator[Batch]:
    """Pass each user's batches through the segment, on so many processes, in the users' order.

    Raises:
        Unavailable: A worker was killed from outside, most often for want of memory.
    """
    with _pool(workers) as pool:
        waiting: deque[Future[Done]] = deque()
        for task in tasks(groups):
            waiting.append(pool.submit(_work, segment, task, logging.getLogger("morpheus").level))
            if len(waiting) > workers * AHEAD:
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())


def tasks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Put users together until they have EVENTS events."""
    task: list[Group] = []
    events = 0
    for group in groups:
        task.append(group)
        events += sum(weight(batch) for batch in group)
        if events >= EVENTS:
            yield task
            task, events = [], 0
    if task:
        yield task


def weight(batch: Batch) -> int:
    """Events that a batch brings, its history included."""
    history = getattr(batch, "history", None)
    return batch.frame.height + (0 if history is None else history.height)


def _work(segment: Sequence[Stage], task: list[Group], level: int) -> Done:
    kept = _Kept()
    logger = logging.getLogger("morpheus")
    logger.handlers, logger.propagate = [kept], False
    logger.setLevel(level)
    batches = [batch for group in task for batch in folded(segment, iter(group))]
    return [batch.without_fingerprint() for batch in batches], kept.records


def _result(future: Future[Done]) -> Iterator[Batch]:
    try:
        batches, records = future.result()
    except BrokenProcessPool as error:
        raise Unavailable(
            "A worker process was killed, most often for want of memory. "
            "Use fewer workers: `morpheus run --num_threads=1 ...`."
        ) from error
    for record in records:
        logging.getLogger(record.name).handle(record)
    yield from batches


class _Kept(logging.Handler):
    """Keeps what is logged, for the parent to say in the users' order."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        self.records.append(record)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, never forked: polars and torch run threads that a fork would leave half-alive.
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_ctrl_c)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


def _ignore_ctrl_c() -> None:
    # The terminal sends Ctrl+C to every process of the job; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
