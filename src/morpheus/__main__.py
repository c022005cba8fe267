"""`python -m morpheus`: the command `morpheus`, also where scripts are not on the PATH."""

from __future__ import annotations

import atexit
import gc
import signal
import sys

from morpheus.errors import EXIT_INTERRUPTED


def main() -> None:
    """Run the command. Ctrl+C and SIGTERM during its imports end it without a traceback, too."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The exit of the process frees everything. A garbage collection before takes 0.1 s.
    atexit.register(gc.freeze)
    # Imports make no garbage. `cli.main.resume_gc` turns collection on before a command runs.
    gc.disable()
    try:
        from morpheus.cli.main import main as command  # noqa: PLC0415 - what is waited for

        command()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":  # spawned processes import this module again
    main()
