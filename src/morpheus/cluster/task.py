"""What happens on a worker: a task is done, what it logs is kept, and its errors are sorted."""

from __future__ import annotations

import ctypes
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

from morpheus.errors import MorpheusError, TransientError
from morpheus.kept_log import BufferedLogHandler

ResultT = TypeVar("ResultT")

TOPIC = "morpheus"
_TRIM_BYTES, _MMAP_BYTES = 512 << 20, 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class TaskOutcome(Generic[ResultT]):
    """What a task gave, or why it could not; and what was logged meanwhile."""

    result: ResultT | None = None
    records: Sequence[logging.LogRecord] = field(default=(), repr=False)
    error: MorpheusError | None = None

    def __sizeof__(self) -> int:
        """Bytes, for the worker that holds it."""
        return object.__sizeof__(self) + _dask_sizeof(self.result)


def run_task(work: Callable[..., ResultT], level: int, *needs: object) -> TaskOutcome[ResultT]:
    """Do a task.

    What can only be mended by a person comes back as a value: to try it again would not help.

    Args:
        work: What is done.
        level: Least level of what is logged.
        needs: To what; what other tasks told is taken out.

    Raises:
        Unavailable: It may succeed when it is tried again.
    """
    keep_freed_memory()
    failed = next((one.error for one in needs if isinstance(one, TaskOutcome) and one.error), None)
    if failed is not None:
        return TaskOutcome(error=failed)
    with _capture_log(level) as records:
        try:
            result = work(*map(unwrap, needs))
        except TransientError:
            raise
        except MorpheusError as error:
            return TaskOutcome(None, records, error)
    return TaskOutcome(result, records)


def unwrap(value: Any) -> Any:  # noqa: ANN401 - whatever tasks need
    """What a task told, without the rest."""
    return value.result if isinstance(value, TaskOutcome) else value


def to_cell_row(cells: TaskOutcome[Sequence[Any]]) -> Any:  # noqa: ANN401 - numpy, imported where it is used
    """Cells as an array of shape (1, cells)."""
    import numpy as np  # noqa: PLC0415 - this module is read before numpy has its threads

    made = np.empty((1, len(cells.result or ())), dtype=object)
    made[0, :] = cells.result
    return made


def log_task_started(number: int) -> None:
    """Tell whoever listens that a task begins."""
    from distributed import get_worker  # noqa: PLC0415 - slow, and an extra

    get_worker().log_event(TOPIC, {"begun": number})


def dask_setup(worker: object) -> None:  # noqa: ARG001 - Dask calls it so, where this is a preload
    """Leave Ctrl+C to the process at the prompt, which decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep memory that will be needed again.

    Dask's nannies set MALLOC_TRIM_THRESHOLD_ to 64 kB, so that each array's memory goes back to the
    system and has to be fetched again: training takes up to three times as long. Where there is no
    such library there is no such trouble.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


@contextmanager
def _capture_log(level: int) -> Iterator[list[logging.LogRecord]]:
    logger, kept = logging.getLogger("morpheus"), BufferedLogHandler()
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(kept)
    try:
        yield kept.records
    finally:
        logger.removeHandler(kept)


def _dask_sizeof(value: object) -> int:
    from dask.sizeof import sizeof  # noqa: PLC0415 - an extra

    return int(sizeof(value))
