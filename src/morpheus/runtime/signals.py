"""Graceful shutdown of an unbounded run by Ctrl+C or SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")


class GracefulShutdown(Generic[ItemT]):
    """An iterator that the first Ctrl+C or SIGTERM ends, so that work in progress is finished.

    A second signal raises `KeyboardInterrupt`. Outside the main thread, where Python delivers no
    signals, the iterator is passed through.

    Attributes:
        stream: The items.
        stopped: Whether a signal ended it.
    """

    def __init__(self, stream: Iterator[ItemT]) -> None:
        self.stream = stream
        self.stopped = False
        self._waiting = False

    def __iter__(self) -> Iterator[ItemT]:
        with _install_handler(self._on_signal):
            while not self.stopped:
                self._waiting = True
                try:
                    item = next(self.stream)
                except (StopIteration, KeyboardInterrupt):
                    return
                finally:
                    self._waiting = False
                yield item

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        logger.warning("Stopping pipeline. Please wait... Press Ctrl+C again to kill.")
        if self._waiting:
            raise KeyboardInterrupt


@contextmanager
def _install_handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)
