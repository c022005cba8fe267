"""Ctrl+C on a stream that has no end of its own."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

LOG = logging.getLogger(__name__)

Item = TypeVar("Item")


class UntilStopped(Generic[Item]):
    """A stream that the first Ctrl+C (or SIGTERM) ends, so that what was read is finished.

    What is in work behind the stream goes on to its end; a second Ctrl+C stops that too. Outside
    the main thread, where Python delivers no signals, the stream is left as it is.

    Attributes:
        stopped: Whether it was ended so.
    """

    def __init__(self, stream: Iterator[Item]) -> None:
        self.stream = stream
        self.stopped = False
        self._waiting = False

    def __iter__(self) -> Iterator[Item]:
        with _handled(self._stop):
            while not self.stopped:
                self._waiting = True
                try:
                    item = next(self.stream)
                except (StopIteration, KeyboardInterrupt):
                    return
                finally:
                    self._waiting = False
                yield item

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        LOG.warning("Stopping pipeline. Please wait... Press Ctrl+C again to kill.")
        if self._waiting:
            raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
