"""Work for worker processes, in a module that they can import."""

import logging
import os
import signal
import time
from dataclasses import dataclass

from morpheus.errors import BadRecord
from morpheus.stage import Stage


def late(number: int) -> tuple[int, int]:
    """The earlier the job, the longer it takes."""
    time.sleep((3 - number) * 0.1)
    logging.getLogger("morpheus.test").warning("the same for all")
    return number, os.getpid()


def bad(number: int) -> int:
    if number % 2:
        time.sleep((5 - number) * 0.1)
        raise BadRecord("no time", file="a.json", line=number)
    return number


def fatal(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Dying(Stage):
    """A stage whose process is killed."""

    name = "dying"

    def costly(self):
        return True

    def __call__(self, batches):
        os.kill(os.getpid(), signal.SIGKILL)
        yield from batches
