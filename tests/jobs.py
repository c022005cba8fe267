"""Work for worker processes, in a module that they can import."""

import logging
import os
import resource
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from morpheus.columns import RHYTHM
from morpheus.errors import BadRecord, Unavailable
from morpheus.records import Batch, Events
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.gathering import Room
from morpheus.sources.spill import write
from morpheus.stage import Stage


def late(number: int) -> tuple[int, int]:
    """The earlier the job, the longer it takes."""
    time.sleep((3 - number) * 0.1)
    logging.getLogger("morpheus.test").warning("the same for all")
    return number, os.getpid()


LOADED: list[int] = []
"""One entry each time that this process was given `Large`."""


class Large:
    """Work that is large, and needs polars to be read."""

    def __init__(self) -> None:
        self.frame = pl.DataFrame({"number": range(10)})

    def __setstate__(self, state: dict[str, pl.DataFrame]) -> None:
        LOADED.append(len(LOADED))
        self.__dict__.update(state)

    def __call__(self, number: int) -> tuple[int, int, int]:
        """The row of a number, how often this process was given the work, and polars' threads."""
        return self.frame["number"][number], len(LOADED), pl.thread_pool_size()


def bad(number: int) -> int:
    if number % 2:
        time.sleep((5 - number) * 0.1)
        raise BadRecord("no time", file="a.json", line=number)
    return number


def fatal(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lay_aside_on_a_full_disk(folder: Path) -> str:
    """What is said where no file of this process may have more than 4,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    frame = pl.DataFrame({"text": [f"{n:064}" for n in range(1000)]})
    try:
        write(folder, [frame.head(9), frame])
    except Unavailable as error:
        return str(error)
    return "all was written"


@dataclass(frozen=True)
class Dying(Stage):
    """A stage whose process is killed."""

    name = "dying"

    def costly(self):
        return True

    def __call__(self, batches):
        os.kill(os.getpid(), signal.SIGKILL)
        yield from batches


class SmallRooms(FromCloudtrail):
    """Reads logs in portions of a few events, all laid aside."""

    def _intake(self):
        room = Room(held=200, part=300, table=400, passes=2, job=1, alone=0)
        return replace(super()._intake(), room=room)


@dataclass(frozen=True)
class Moody(Stage):
    """Gives some users a column more, and every other user another type of it."""

    name = "moody"
    takes = (Events,)

    def __call__(self, batches):
        for batch in batches:
            number = int(batch.user)
            columns = [pl.lit(number % 5 == 0).alias(RHYTHM)]
            if number % 3:
                kind = pl.Float64 if number % 2 else pl.Int64
                columns.append(pl.lit(number, kind).alias("mood"))
            yield replace(batch, frame=batch.frame.with_columns(columns))


@dataclass(frozen=True)
class Falling(Stage):
    """A stage that kills its node, with all its processes, when it first meets a user."""

    name = "falling"
    takes = (Batch,)

    user: str = ""
    mark: str = ""

    def __call__(self, batches):
        for batch in batches:
            if batch.user == self.user and not Path(self.mark).exists():
                Path(self.mark).touch()
                os.killpg(0, signal.SIGKILL)
            yield batch


@dataclass(frozen=True)
class Slow(Stage):
    """A stage that takes a time for each event, and no processor."""

    name = "slow"
    takes = (Batch,)

    seconds: float = 0.001

    def costly(self):
        return True

    def __call__(self, batches):
        for batch in batches:
            time.sleep(self.seconds * batch.frame.height)
            yield batch
