"""Functions and stages for worker processes, which must be importable there."""

import logging
import os
import resource
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from morpheus.columns import INDEX, TIME, TS_ANOMALY
from morpheus.core.batch import Batch, Events, RunMetrics, Table
from morpheus.core.stage import Requirements, Transform
from morpheus.errors import RecordError, TransientError, UsageError
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.group_by_user import USER, USER_RANK, EventKey
from morpheus.sources.log_format import DerivedFeatures
from morpheus.sources.partitioning import UserPartition
from morpheus.sources.spill_sort import MemoryBudget, PartitionSlice
from morpheus.storage.atomic import atomic_write
from morpheus.storage.spill import spill_to_disk, spill_to_memory


def late(number: int) -> tuple[int, int]:
    """The earlier the job, the longer it takes."""
    time.sleep((3 - number) * 0.1)
    logging.getLogger("morpheus.test").warning("the same for all")
    return number, os.getpid()


def noisy(number: int) -> int:
    """A library logs and warns in this process."""
    logging.getLogger("urllib3.pool").warning("try again")
    warnings.warn(f"old in {os.getpid()}", stacklevel=1)
    return number


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
        raise RecordError("no time", file="a.json", line=number)
    return number


def busy(seconds: float) -> float:
    """The share of a time in which this process could work, always wanting to."""
    begin, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        pass
    return (time.process_time() - used) / (time.perf_counter() - begin)


def fatal(parent: int) -> None:
    """Kills every process but one."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesWhenRead:
    """Work that kills the worker that receives it."""

    def __init__(self, ballast: bytes) -> None:
        self.ballast = ballast

    def __setstate__(self, state: dict[str, bytes]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, number: int) -> int:
        return number


class Panic(BaseException):
    """An error like those of polars, which are no `Exception`."""


def panic(parent: int) -> None:
    if os.getpid() != parent:
        raise Panic("at the disco")


def unreadable(parent: int) -> object:
    return None if os.getpid() == parent else (number for number in range(3))


def sleep_and_note(folder: str) -> None:
    """Leave the number of the process in a folder, and wait."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def spin_and_note(folder: str) -> None:
    """Leave the number of the process in a folder, and work."""
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


def first_is_slow(number: int) -> tuple[float, int]:
    """When the job was done, and by whom."""
    time.sleep(0 if number else 1)
    return time.monotonic(), os.getpid()


def stopped(parent: int) -> None:
    """Somebody presses Ctrl+C while the process at the prompt does a job."""
    if os.getpid() == parent:
        raise KeyboardInterrupt
    time.sleep(60)


def write_file(path: Path) -> int:
    """Write a file atomically; return the number of the process."""
    time.sleep(0.2)
    with atomic_write(path) as file:
        file.write(b"x")
    return os.getpid()


def spill_on_a_full_disk(folder: Path) -> str:
    """Spill with a limit of 4,000 bytes per file; return the error message."""
    sys.dont_write_bytecode = True  # Python's cached modules would be cut off, too
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    frame = pl.DataFrame({"text": [f"{n:064}" for n in range(1000)]})
    try:
        spill_to_disk(folder, [frame.head(9), frame])
    except TransientError as error:
        return str(error)
    return "all was written"


@dataclass(frozen=True)
class Dying(Transform):
    """A stage whose process is killed."""

    name = "dying"
    needs = Requirements(cpu_bound=True)

    def process(self, batch, state):
        os.kill(os.getpid(), signal.SIGKILL)
        yield batch


@dataclass(frozen=True)
class Counting(Transform):
    """A stage worth a process, that prepares up to five users at a time, and says how many."""

    name = "counting"
    needs = Requirements(cpu_bound=True, users_per_bundle=5)

    def open(self, context):
        return {"users": 0}

    def prepare(self, users):
        for state, _ in users:
            state["users"] = len(users)

    def process(self, batch, state):
        counted = batch.table.to_frame().with_columns(users=state["users"], process=os.getpid())
        yield replace(batch, table=Table(counted))


@dataclass(frozen=True)
class SmallMemory(FromCloudtrail):
    """Reads logs in partitions of a few events, all spilled to disk."""

    memory_budget: MemoryBudget = field(
        default_factory=lambda: MemoryBudget(
            max_cells_in_memory=200,
            partition_cells=300,
            spill_table_cells=400,
            max_scan_passes=2,
            partitions_per_bucket=2,
            min_task_bytes=1,
            serial_threshold_bytes=0,
        )
    )

    def _make_ingest(self):
        return replace(super()._make_ingest(), memory_budget=self.memory_budget)


@dataclass(frozen=True)
class Narrow(Transform):
    """A stage that no large batch passes."""

    name = "narrow"
    takes = (Batch,)

    most: int = 1

    def process(self, batch, state):
        if batch.table.height > self.most:
            raise UsageError(f"{batch.table.height} events of {batch.user} at once")
        yield batch


def peak_in_pieces(rows: int, piece: int | None = 20_000) -> float:
    """MB that this process comes to need to hand out a user whose events are packed in memory."""
    start = pl.datetime(2024, 5, 31, time_zone="UTC")
    blobs = []
    for at in range(0, rows, 20_000):
        number = pl.int_range(at, at + 20_000, eager=True)
        texts = {
            f"text{c:02}": "a text of some length " + (number % 97).cast(pl.String)
            for c in range(20)
        }
        frame = pl.select(number.alias(INDEX), user=pl.lit("giant"), **texts)
        blobs.append(
            spill_to_memory(frame.with_columns((start + pl.duration(seconds=number)).alias(TIME)))
        )
    users = pl.DataFrame({USER: ["giant"], USER_RANK: [0]}, schema_overrides={USER_RANK: pl.UInt32})
    where = PartitionSlice("user", ["user", *texts], [], blobs)
    partition_value = UserPartition(
        users, where, None, EventKey("user", "id"), DerivedFeatures("user", {}), 20_000, piece
    )
    before = most_memory()
    assert sum(batch.table.height for batch in partition_value.events(RunMetrics())) == rows
    return most_memory() - before


def most_memory() -> float:
    """MB that this process has held at any time."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Moody(Transform):
    """Gives some users a column more, and every other user another type of it."""

    name = "moody"
    takes = (Events,)

    def process(self, batch, state):
        number = int(batch.user)
        columns = [pl.lit(number % 5 == 0).alias(TS_ANOMALY)]
        if number % 3:
            kind = pl.Float64 if number % 2 else pl.Int64
            columns.append(pl.lit(number, kind).alias("mood"))
        yield replace(batch, table=Table(batch.table.to_frame().with_columns(columns)))


@dataclass(frozen=True)
class Falling(Transform):
    """A stage that kills its node, with all its processes, when it first meets a user."""

    name = "falling"
    takes = (Batch,)

    user: str = ""
    mark: str = ""

    def process(self, batch, state):
        if batch.user == self.user and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.killpg(0, signal.SIGKILL)
        yield batch


@dataclass(frozen=True)
class Clocked(Transform):
    """Takes a time for each event, and no processor, and leaves a note of each user.

    The note says which process it was, from when, and until when.
    """

    name = "clocked"
    takes = (Batch,)

    seconds: float = 0.001
    folder: str = ""

    needs = Requirements(cpu_bound=True)

    def open(self, context):
        return context.user, time.monotonic()

    def process(self, batch, state):
        time.sleep(self.seconds * batch.table.height)
        yield batch

    def flush(self, state):
        user, begun = state
        note = f"{os.getpid()} {begun:018.6f} {time.monotonic():018.6f}"
        Path(self.folder, str(user)).write_text(note)
        return ()
