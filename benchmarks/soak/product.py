"""The product: a command that is started, disturbed and killed."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from soak.events import USER_COLUMN

SOURCES = {
    "folder": "from-cloudtrail --input_glob={input}/**/*.jsonl* --watch_directory=true "
    "--batch_timeout=0.2",
    "sqs": "from-cloudtrail --sqs_url={queue} --batch_timeout=0.2",
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
STOPPED = {0, 130, 143}
"""Exit codes after SIGTERM."""
FIU, FAKETIME = ("fiu_run_preload.so", "fiu_posix_preload.so"), ("libfaketime.so.1",)
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
    return Surroundings(f"disk {error}", {"LD_PRELOAD": libraries, "FIU_ENABLE": enable})


def wrong_clock(rng: random.Random) -> Surroundings:
    """Start with a wall clock that is wrong, and runs at another speed. Waits stay as they are."""
    offset = rng.choice(("-2h", "-30s", "+30s", "+2h", "+40d"))
    return Surroundings(
        f"clock {offset}",
        {
            "LD_PRELOAD": ":".join(find_libraries(FAKETIME)),
            "FAKETIME": offset,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        },
    )


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
    environment: Mapping[str, str]
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
                env={**os.environ, **self.environment, **added},
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
