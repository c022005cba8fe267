"""The product: a command that is started, disturbed and killed."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from soak.events import USER_COLUMN

SOURCES = {
    "folder": "from-cloudtrail --input_glob={input}/**/*.jsonl* --watch_directory=true "
    "--batch_timeout=0.2",
    "sqs": "from-cloudtrail --input_glob={input} --sqs_queue={queue} --sqs_visibility_timeout=10 "
    "--sqs_quarantine={folder}/quarantine.jsonl --batch_timeout=0.2",
    "kafka": "from-kafka --bootstrap_servers={brokers} --input_topic={topic} --group_id=soak "
    "--instance_id=soak-1 --log_format=cloudtrail --batch_timeout=0.2",
}
"""Words that read each source."""
SCORING = (
    "preprocess inf-pytorch add-scores --label=ae_anomaly_score --label=risk timeseries --causal "
    "--resolution=10m --zscore_threshold=5 serialize"
)
HEAD = f"pipeline-ae --userid_column_name={USER_COLUMN}"
STREAM = (
    f"morpheus run --num_threads=1 {HEAD} --state={{state}} {{source}} "
    f"train-ae --pretrained_filename={{models}} {SCORING} "
    "to-file --filename={output} --overwrite to-http --base_url={receiver}"
)
"""The default command. What is in braces is replaced."""
TRAIN = (
    f"morpheus run --num_threads=1 {HEAD} from-cloudtrail --input_glob={{history}} "
    "train-ae --train_data_glob={history} --train_min_history=50 "
    f"--models_output_filename={{models}} {SCORING} to-file --filename={{output}} --overwrite"
)
OWN = [sys.executable, "-m", "morpheus"]
STOPPED = {0, 130, 143, -signal.SIGTERM}
"""Exit codes after SIGTERM. A process that has only begun to start has no handler for it yet."""
FIU = "fiu_run_preload.so", "fiu_posix_preload.so"
PRELOAD = "LD_PRELOAD"
CLOCK_JUMPS = (-7200, -30, 0, 30, 7200, 40 * 86_400)
"""Differences to the right time, in seconds."""
LIBRARY_FOLDERS = ("/usr/lib", "/usr/local/lib", "/lib", "/usr/lib64")
DISK_ERRORS = {"ENOSPC": 28, "EIO": 5}
DISK_POINTS = (
    *("posix/io/sync/fsync", "posix/io/sync/fdatasync", "posix/io/dir/rename"),
    *("posix/io/rw/write", "posix/io/rw/pwrite"),
)
STOP_SECONDS = 40
"""A product that is told to stop must have ended after this time: it delivers for 10 seconds."""


def find_libraries(names: Sequence[str]) -> list[str]:
    """Return the paths of libraries to preload; none if one is missing."""
    found = []
    for name in names:
        paths = [path for folder in LIBRARY_FOLDERS for path in Path(folder).glob(f"**/{name}")]
        found += [str(path) for path in paths[:1]]
    return found if len(found) == len(names) else []


@dataclass(frozen=True)
class Surroundings:
    """Faults that a process has from its start.

    Attributes:
        name: Name of the fault; empty for none.
        environment: Variables.
    """

    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def disk_errors(rng: random.Random) -> Surroundings:
    """Make some syncs, renames and writes fail: the disk is full or broken."""
    error = rng.choice(sorted(DISK_ERRORS))
    points = rng.sample(DISK_POINTS, rng.randint(1, 2))
    enable = "\n".join(
        f"enable_random name={point},probability={rng.choice((0.02, 0.1))},"
        f"failinfo={DISK_ERRORS[error]}"
        for point in points
    )
    libraries = ":".join(find_libraries(FIU))
    return Surroundings(f"disk {error}", {PRELOAD: libraries, "FIU_ENABLE": enable})


@dataclass(frozen=True)
class Clock:
    """The time of day that the product sees.

    Attributes:
        library: Library to preload; see clock.c.
        offset_file: File with the difference to the time of this machine, in seconds.
    """

    library: Path
    offset_file: Path

    @classmethod
    def build(cls, folder: Path) -> Clock | None:
        """Compile the library; None without a C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        clock = cls(folder / "clock.so", folder / "clock.offset")
        source = Path(__file__).with_name("clock.c")
        subprocess.run(  # noqa: S603 - the system's compiler
            [compiler, "-shared", "-fPIC", "-O2", "-o", clock.library, source, "-ldl"], check=True
        )
        clock.set(0)
        return clock

    def set(self, seconds: int) -> None:
        """Let the clock jump."""
        with self.offset_file.open("r+b" if self.offset_file.exists() else "w+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the product."""
        return {PRELOAD: str(self.library), "SOAK_CLOCK": str(self.offset_file)}


def join_environments(*environments: Mapping[str, str]) -> dict[str, str]:
    """Return all variables. Libraries to preload are those of all."""
    joined = dict(ChainMap(*map(dict, reversed(environments))))
    libraries = [each[PRELOAD] for each in environments if each.get(PRELOAD)]
    return joined | ({PRELOAD: ":".join(libraries)} if libraries else {})


@dataclass
class Product:
    """The command under test.

    Attributes:
        words: The command.
        folder: Its working folder.
        environment: Variables to add to the environment.
        logs: Folder for what it writes to stderr, one file for each life.
        lives: Number of starts.
    """

    words: Sequence[str]
    folder: Path
    environment: dict[str, str]
    logs: Path
    lives: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self, surroundings: Surroundings | None = None) -> None:
        """Start it."""
        self.lives += 1
        added = {} if surroundings is None else surroundings.environment
        self.logs.mkdir(exist_ok=True)
        with (self.logs / f"{self.lives:04}.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command that the user gives
                self.words,
                cwd=self.folder,
                env=join_environments(os.environ, self.environment, added),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Number of the process."""
        if self._process is None:
            raise RuntimeError("the product was not started")
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> int:
        """Kill it with all its processes, at once, and return the exit code."""
        if self._process is None:
            return 0
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def stop(self) -> int | None:
        """Ask it to end, and return the exit code; None if it does not end in time."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def log(self, life: int | None = None) -> str:
        """Return what a life has written; by default the latest."""
        path = self.logs / f"{life or self.lives:04}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_for(self, seconds: float) -> bool:
        """Wait, and return whether it still runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.exit_code() is not None:
                return False
            time.sleep(min(0.05, max(0.0, end - time.monotonic())))
        return self.exit_code() is None


def fill_command(template: str, values: Mapping[str, str]) -> list[str]:
    """Return the words of a command.

    Args:
        template: The command, as typed in a shell. `morpheus` is the one of this Python.
        values: Values of the names in braces.

    >>> fill_command("serve --url={queue} {other}", {"queue": "http://q x"})
    ['serve', '--url=http://q x', '{other}']
    """
    words = shlex.split(template)
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return [*OWN, *words[1:]] if words[:1] == ["morpheus"] else words
