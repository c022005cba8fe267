"""`python -m morpheus`: the command `morpheus`, also where scripts are not on the PATH."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress

from morpheus.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run the command. Ctrl+C and SIGTERM during its imports end it without a traceback, too."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    atexit.register(_finish)
    # Imports make no garbage. `cli.main.resume_gc` turns collection on before a command runs.
    gc.disable()
    try:
        from morpheus.cli.main import main as command  # noqa: PLC0415 - what is waited for

        command()
    except KeyboardInterrupt:
        _exit(EXIT_INTERRUPTED)
    except SystemExit as error:
        _exit(error.code)


def _exit(code: str | int | None) -> None:
    """End the process. From now on, a signal ends it at once, with this exit code."""

    def leave(*_: object) -> None:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

    for number in _SIGNALS:
        signal.signal(number, leave)
    sys.exit(code)


def _finish() -> None:
    """Prepare the end of the interpreter, which is registered first and so is called last."""
    # The exit of the process frees everything. A garbage collection before takes 0.1 s.
    gc.freeze()
    # Nothing is left that could take long, and Python would return to the default actions.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":  # spawned processes import this module again
    main()
