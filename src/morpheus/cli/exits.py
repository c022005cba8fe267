"""How a command ends: 0 done, 1 failed, 2 a wrong command line, 130 stopped."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click
from click.exceptions import Abort, Exit

from morpheus.cli.screen import say
from morpheus.errors import EXIT_INTERRUPTED, MorpheusError

FAILED = 1
BUG = "This is a bug in morpheus, not in your logs. `morpheus --debug ...` shows the traceback."
CLOSED = "Whatever reads this command's output has closed it."
STOPPING = "Stopping pipeline. Please wait... Press Ctrl+C again to kill."


@contextmanager
def endings() -> Iterator[None]:
    """Turn what goes wrong into a message on stderr and an exit code.

    Click's own errors pass: click shows them. The traceback is logged at DEBUG.
    """
    try:
        yield
    except (click.ClickException, Exit, Abort):
        raise
    except KeyboardInterrupt:
        raise Exit(EXIT_INTERRUPTED) from None
    except MorpheusError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(_disk(error), FAILED)
    except Exception as error:  # noqa: BLE001 - the last place where anything can be caught
        _end(f"{type(error).__name__}: {error}. {BUG}", FAILED)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl+C and SIGTERM stop what runs here; the second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    stop = _Stop()
    before = [signal.signal(one, stop) for one in signals]
    try:
        yield
    except BaseException as error:
        # Where Rust calls Python, polars makes an error of its own of the interrupt.
        if stop.asked and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


class _Stop:
    """Unwinds, which takes away what is half written; the next signal ends the process.

    Attributes:
        asked: Whether a signal has come.
    """

    asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.asked = True
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        say(STOPPING)
        raise KeyboardInterrupt


def _end(message: str, code: int) -> NoReturn:
    """Say why, and end."""
    _log_traceback()
    say(f"Error: {message}")
    raise Exit(code) from None


def _log_traceback() -> None:
    """Log the exception at hand, unless nothing can have asked for it."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("morpheus.cli").debug("Traceback:", exc_info=True)


def _disk(error: OSError) -> str:
    """What the operating system refused, and where."""
    if error.errno == errno.EPIPE:
        return CLOSED
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}."
