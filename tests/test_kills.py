"""Runs whose processes are killed at random moments: nothing stays, hangs or is damaged.

`make kills` tries 50 moments; KILLS=200 SEED=7 choose how many, and which.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from morpheus.models.versions import VersionedStore, open_models
from morpheus.runtime.local import MIN_PARALLEL_USERS

KILLS, SEED = int(os.environ.get("KILLS", "3")), int(os.environ.get("SEED", "1"))
USER = "userIdentitysessionContextsessionIssueruserName"
USERS = MIN_PARALLEL_USERS + 1  # fewer users start no worker processes
HANG_SECONDS, ORPHAN_SECONDS = 60, 2
MAX_TRIES = 5
VICTIMS = ("prompt", "worker", "starting worker")

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


def write_logs(folder: Path, day: int, events: int) -> None:
    rng = random.Random(day)  # noqa: S311 - a seed, no secret
    folder.mkdir()
    for part in range(3):
        records = [
            {
                "eventTime": f"2024-05-{day:02}T{n % 24:02}:{(n * 7 + part) % 60:02}:{user:02}Z",
                "eventID": f"{day:02}{part:02}{user:02}{n:02}-0000-4000-8000-000000000000",
                "eventName": rng.choice(("Get", "Put", "List", "Describe")),
                "sourceIPAddress": f"10.0.{user}.{rng.randrange(4)}",
                "userIdentity": {"sessionContext": {"sessionIssuer": {"userName": f"role-{user}"}}},
            }
            for user in range(USERS)
            for n in range(events)
        ]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, records)))


@dataclass
class Prompt:
    """A run of the command line in a folder, and all of its processes."""

    folder: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path, day: str, engine: str = "local") -> Prompt:
        (folder / "temp").mkdir(exist_ok=True)
        words = ["run", "--num_threads=3", f"--engine={engine}", "pipeline-ae"]
        words += [f"--userid_column_name={USER}", "--state=state.db"]
        words += ["from-cloudtrail", f"--input_glob={day}/*.jsonl", "train-ae"]
        words += ["--train_data_glob=history/*.jsonl", "--train_epochs=40"]
        words += ["--train_min_history=50", "--models_output_filename=models", "preprocess"]
        words += ["inf-pytorch", "add-scores", "--label=risk", "serialize", "to-file"]
        words += ["--filename=out.csv", "--overwrite", "to-parquet", "--folder=data"]
        words += ["--overwrite", "--partition_by=user"]
        process = subprocess.Popen(
            [sys.executable, "-m", "morpheus", *words],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder / "temp"), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        return cls(folder, process)

    def children(self) -> list[int]:
        """The processes of this run that are alive, the prompt excluded."""
        mark = f"TMPDIR={self.folder}/temp".encode()
        found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
        return [pid for pid in found if pid != self.process.pid and _has_mark(pid, mark)]

    def workers(self) -> list[int]:
        return [pid for pid in self.children() if b"spawn_main" in _read(pid, "cmdline")]

    def finish(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what was said."""
        try:
            _, said = self.process.communicate(timeout=HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, said = self.process.communicate()
            pytest.fail(f"the run hangs: {said}")
        return self.process.returncode, said


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _has_mark(pid: int, mark: bytes) -> bool:
    return mark in _read(pid, "environ").split(b"\0") and b"\nState:\tZ" not in _read(pid, "status")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Undisturbed:
    """What two runs leave that nobody disturbs: the first run, the second, and its seconds."""

    before: Path
    after: Path
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    before = tmp_path_factory.mktemp("before") / "folder"
    before.mkdir()
    write_logs(before / "history", 1, 60)
    write_logs(before / "day1", 2, 20)
    write_logs(before / "day2", 3, 20)
    assert Prompt.start(before, "day1").finish()[0] == 0
    after = before.with_name("after")
    shutil.copytree(before, after)
    start = time.monotonic()
    code, said = Prompt.start(after, "day2").finish()
    assert code == 0, said
    return Undisturbed(before, after, time.monotonic() - start)


def rows(folder: Path) -> pl.DataFrame:
    """The rows of the output, in both forms, which must agree."""
    frame = pl.read_csv(folder / "out.csv", infer_schema=False)
    data = pl.read_parquet(folder / "data", hive_partitioning=False)
    assert data["eventID"].sort().to_list() == frame["eventID"].sort().to_list()
    return frame


def kill(prompt: Prompt, victim: str, rng: random.Random, seconds: float) -> bool:
    """Kill a process of a run at a random moment, unless the run ends before.

    Returns:
        Whether a process was killed before it ended.
    """
    over = prompt.process.poll
    if victim == "prompt":
        wait_until(lambda: over() is not None, rng.uniform(0, seconds * 1.1))
        prompt.process.kill()
        return prompt.process.wait() == -signal.SIGKILL
    wait_until(lambda: over() is not None or bool(prompt.workers()), HANG_SECONDS)
    longest = 0.3 if victim == "starting worker" else seconds / 2
    wait_until(lambda: over() is not None, rng.uniform(0, longest))
    workers = prompt.workers()
    if not workers:
        return False
    try:
        os.kill(rng.choice(workers), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def check_after_kill(folder: Path, expected: Undisturbed) -> None:
    """Outputs, store and state are those of before or those of after, never damaged."""
    known = [rows(path).write_csv() for path in (expected.before, expected.after)]
    if (folder / "data").exists():
        found = pl.read_csv(folder / "out.csv", infer_schema=False).write_csv()
        assert found in known
    store = open_models(str(folder / "models"))
    assert len(store.cards) == USERS
    for user in store.cards:
        assert store.load(user) is not None


def check_next_run(folder: Path, expected: Undisturbed) -> None:
    """The next run gives the undisturbed results, and leaves nothing of the killed one."""
    killed = pl.read_csv(folder / "out.csv", infer_schema=False)
    code, said = Prompt.start(folder, "day2").finish()
    assert code == 0, said
    found = pl.read_csv(folder / "out.csv", infer_schema=False)
    known = {path.relative_to(expected.after) for path in expected.after.rglob("*")}
    if not found.height:  # it was killed after the last commit, so all events are known
        found = killed
        known.add(Path("data", "part-00000.parquet"))  # a data set without rows
    # The killed run may have taken a number, so that the next one has a higher one.
    numbers = {"model_version"}
    wanted = rows(expected.after)
    assert found.drop(numbers).write_csv() == wanted.drop(numbers).write_csv()
    # The killed run may have published its models.
    versions = VersionedStore.open(folder / "models").versions()
    digests = {digest for each in versions for digest in each.indexes}
    known |= {Path("models", "indexes", f"{digest}.json") for digest in digests}
    names = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    assert {str(path) for path in names - known} == set()
    assert list((folder / "temp").iterdir()) == []


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_leaves_no_process_no_damage_and_nothing_after_the_next_run(
    number: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    rng = random.Random(f"{SEED} {number}")  # noqa: S311 - as above
    victim = VICTIMS[number % len(VICTIMS)]
    engine = "dask" if number % 10 == 9 else "local"
    for seconds in (undisturbed.seconds / 2**tries for tries in range(MAX_TRIES)):
        folder = tmp_path / f"{seconds}"
        shutil.copytree(undisturbed.before, folder)
        prompt = Prompt.start(folder, "day2", engine)
        killed = kill(prompt, victim, rng, seconds)
        code, said = prompt.finish()
        if killed:
            break
    assert killed, f"{MAX_TRIES} runs ended before the {victim} was killed"
    assert wait_until(lambda: not prompt.children(), ORPHAN_SECONDS), "a worker outlives its parent"
    assert "bug in morpheus" not in said, said
    if victim != "prompt" and code != 0:
        assert code == 1
        assert "A worker process" in said or engine == "dask"
        assert "Traceback" not in said
    check_after_kill(folder, undisturbed)
    check_next_run(folder, undisturbed)
