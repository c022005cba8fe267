"""The command `morpheus`, also as `python -m morpheus`, where scripts are not on the PATH."""

from __future__ import annotations

import atexit
import gc
import sys

from morpheus.errors import EXIT_INTERRUPTED


def main() -> None:
    """Be the command; a Ctrl+C before it has begun ends it as quietly as one later."""
    # What is there at the end goes with the process; to look for garbage in it takes a tenth of a
    # second.
    atexit.register(gc.freeze)
    try:
        from morpheus.cli.main import main as command  # noqa: PLC0415 - what is waited for

        command()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":  # processes that are spawned import this module again
    main()
