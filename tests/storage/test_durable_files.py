"""Files that a run creates are private, and survive power loss."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import write_file
from morpheus.core.batch import OutputRows, RunMetrics
from morpheus.core.stage import PipelineOptions, Sink, Transform
from morpheus.models.store import ModelIndex, commit_index, put_model
from morpheus.pipeline import Pipeline
from morpheus.runtime.dask_cluster import TaskContext, TaskOutcome, run_task
from morpheus.runtime.pool import WorkerPool
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.delivery import DeadLetterFile, OutboundEvent
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sinks.to_report import ToReport
from morpheus.sinks.validate import Validate
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.stages.serialize import Serialize
from morpheus.status import StatusFile
from morpheus.storage import atomic
from morpheus.storage.atomic import (
    AtomicWriter,
    TempFolder,
    atomic_write,
    make_folders,
    make_temp_name,
    set_file_policy,
    start_cleanup,
)
from morpheus.storage.spill import SpillDir, open_temp_file
from morpheus.testing import make_events, make_output_rows, run_stage
from people import fingerprint


def rows() -> OutputRows:
    return make_output_rows(make_events(range(3), name=["a", "b", "c"]))


def pass_through(stage: Transform) -> None:
    run_stage(stage, [rows()])
    if isinstance(stage, Sink):
        stage.commit(RunMetrics())


def write_dead_letters(folder: Path) -> None:
    event = OutboundEvent("1", "ann", None, b"{}")
    DeadLetterFile(folder / "dead.jsonl").add([(event, "503")])


def write_models(folder: Path) -> None:
    commit_index(
        folder / "models",
        ModelIndex.from_cards({"ann": put_model(folder / "models", fingerprint())}),
    )


def write_status(folder: Path) -> None:
    StatusFile.from_stages(str(folder / "status.json"), [Serialize()]).write(
        RunMetrics(), running=False
    )


def write_results(folder: Path) -> None:
    expected = folder / "expected.csv"
    pass_through(ToFile(filename=str(expected)))
    results = str(folder / "results.json")
    pass_through(Validate(val_file_name=str(expected), results_file_name=results))


WRITERS: dict[str, Callable[[Path], None]] = {
    "csv": lambda folder: pass_through(ToFile(str(folder / "out.csv"))),
    "flushed csv": lambda folder: pass_through(ToFile(str(folder / "out.csv"), flush_rows=True)),
    "compressed json": lambda folder: pass_through(ToFile(str(folder / "out.jsonl.gz"))),
    "parquet": lambda folder: pass_through(ToFile(str(folder / "out.parquet"))),
    "dataset": lambda folder: pass_through(
        ToParquet(folder=str(folder / "out"), partition_by=("date",))
    ),
    "ecs": lambda folder: pass_through(ToEcs(filename=str(folder / "out.jsonl"))),
    "ocsf": lambda folder: pass_through(ToOcsf(filename=str(folder / "out.jsonl"))),
    "ocsf parquet": lambda folder: pass_through(ToOcsf(filename=str(folder / "out.parquet"))),
    "security lake": lambda folder: pass_through(
        ToOcsf(lake_folder=str(folder / "lake"), region="eu-west-1")
    ),
    "report": lambda folder: pass_through(ToReport(filename=str(folder / "out.html"))),
    "validation results": write_results,
    "dead letters": write_dead_letters,
    "models": write_models,
    "status": write_status,
}


@pytest.fixture(params=[0, 0o022], ids=["umask 0", "umask 022"], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)
    set_file_policy(shared=False)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """The modes of all files and of all folders below a folder."""
    files, folders = set[int](), set[int]()
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        (folders if path.is_dir() else files).add(mode)
    return files, folders


@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_private_by_default(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "new" / "deep")
    assert modes(tmp_path) == ({0o600}, {0o700})


@pytest.mark.parametrize("kind", WRITERS)
def test_shared_files_are_readable_for_the_group(tmp_path: Path, kind: str) -> None:
    set_file_policy(shared=True)
    WRITERS[kind](tmp_path / "new" / "deep")
    assert modes(tmp_path) == ({0o640}, {0o750})


def test_umask_limits_shared_files(tmp_path: Path) -> None:
    set_file_policy(shared=True)
    os.umask(0o077)
    WRITERS["csv"](tmp_path / "new")
    assert modes(tmp_path) == ({0o600}, {0o700})


def test_spilled_data_is_private_even_if_files_are_shared(tmp_path: Path) -> None:
    set_file_policy(shared=True)
    with SpillDir(tmp_path) as spill_dir, open_temp_file(spill_dir.folder) as file:
        file.write(b"x")
        assert modes(tmp_path) == ({0o600}, {0o700})


def test_file_that_is_not_private_follows_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_write(tmp_path / "completion.sh", private=False) as file:
        file.write(b"x")
    assert modes(tmp_path)[0] == {0o666 & ~umask}


def test_existing_folders_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(0o755)
    before = modes(tmp_path)
    make_folders(tmp_path / "old")
    assert modes(tmp_path) == before


@pytest.mark.parametrize("shared", [False, True])
def test_option_of_the_run_sets_the_mode(tmp_path: Path, shared: bool) -> None:  # noqa: FBT001 - a parameter
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.json").write_text(
        '{"Records": [{"eventTime": "2024-05-31T09:30:00Z", "userIdentity": {"accountId": "1"}}]}'
    )
    source = FromCloudtrail(input_glob=str(tmp_path / "logs"))
    out = tmp_path / "out" / "out.csv"
    stages = [source, Serialize(), ToFile(filename=str(out))]
    Pipeline(stages, PipelineOptions(shared_files=shared, num_threads=1)).run()
    assert modes(out.parent) == ({0o640 if shared else 0o600}, set())
    assert stat.S_IMODE(out.parent.stat().st_mode) == (0o750 if shared else 0o700)


@pytest.mark.parametrize("shared", [False, True])
def test_workers_follow_the_policy_of_the_run(tmp_path: Path, shared: bool) -> None:  # noqa: FBT001 - a parameter
    set_file_policy(shared=shared)
    with WorkerPool(2) as pool:
        writers = set(pool.map_shared(write_file, [tmp_path / "a" / "x", tmp_path / "b" / "x"]))
    assert os.getpid() not in writers
    expected = ({0o640}, {0o750}) if shared else ({0o600}, {0o700})
    assert modes(tmp_path) == expected


@pytest.mark.parametrize("shared", [False, True])
def test_tasks_of_a_cluster_follow_the_policy_of_the_run(tmp_path: Path, shared: bool) -> None:  # noqa: FBT001 - a parameter
    outcome = run_task(write_file, TaskContext(30, shared_files=shared), tmp_path / "a" / "x")
    assert outcome == TaskOutcome(os.getpid(), [])
    assert modes(tmp_path) == (({0o640}, {0o750}) if shared else ({0o600}, {0o700}))


class Recorder:
    """Records syncs and renames, in order, by the inode of file or folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def record_fsync(number: int) -> None:
            fsync(number)
            self.events.append(("sync", os.fstat(number).st_ino))

        def record(move: Callable[..., None]) -> Callable[..., None]:
            def recorded(source: Path, target: Path, **options: object) -> None:
                move(source, target, **options)
                self.events.append(("rename", Path(target).stat().st_ino))

            return recorded

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record(replace))
        monkeypatch.setattr(os, "rename", record(rename))

    def check(self, path: Path) -> None:
        """Check that a path was synced, then renamed, and that then its folder was synced."""
        inode, folder = path.stat().st_ino, path.parent.stat().st_ino
        synced = self.events.index(("sync", inode))
        renamed = self.events.index(("rename", inode))
        assert synced < renamed
        assert ("sync", folder) in self.events[renamed:]


ATOMIC = sorted(WRITERS.keys() - {"dead letters"})


@pytest.mark.parametrize("kind", ATOMIC)
def test_published_file_is_synced_before_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recorder = Recorder(monkeypatch)
    WRITERS[kind](tmp_path / "new" / "deep")
    if kind == "dataset":
        recorder.check(tmp_path / "new" / "deep" / "out")
        synced = {inode for event, inode in recorder.events if event == "sync"}
        assert all(path.stat().st_ino in synced for path in (tmp_path / "new").rglob("*"))
        return
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for file in files:
        recorder.check(file)


def test_dead_letters_and_their_folder_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    write_dead_letters(tmp_path)
    file = tmp_path / "dead.jsonl"
    assert recorder.events == [
        ("sync", file.stat().st_ino),
        ("sync", tmp_path.stat().st_ino),
    ]
    replay = DeadLetterFile(file).replay()
    next(replay)
    renamed = tmp_path / "dead.jsonl.again"
    assert recorder.events[-2:] == [
        ("rename", renamed.stat().st_ino),
        ("sync", tmp_path.stat().st_ino),
    ]


def test_parent_of_each_new_folder_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    make_folders(tmp_path / "a" / "b")
    parents = [tmp_path, tmp_path / "a"]
    assert recorder.events == [("sync", folder.stat().st_ino) for folder in parents]


def test_file_that_fails_to_sync_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_number: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "out.csv"
    path.write_text("old")
    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(Exception, match=r"Cannot write .*Input/output error. Nothing is left"):
        WRITERS["csv"](tmp_path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_system_that_cannot_sync_folders_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def reject_folders(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(atomic.os, "fsync", reject_folders)
    with AtomicWriter(tmp_path / "out") as writer:
        writer.file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


KILLED = """
import os, signal, sys
from pathlib import Path
import polars as pl
from morpheus.sinks.formats import ParquetWriter
from morpheus.sinks.to_parquet import atomic_dataset
from morpheus.storage.atomic import AtomicWriter
from morpheus.storage.spill import SpillDir
folder = Path(sys.argv[1])
with AtomicWriter(folder / "out.csv") as writer, atomic_dataset(str(folder / "data")) as data:
    (data / "part-00000.parquet").touch()
    with SpillDir() as one, SpillDir(folder) as two, ParquetWriter(writer.temp_path) as rows:
        (one.folder / "x").touch(), (two.folder / "x").touch()
        print("open", flush=True)
        sys.stdin.read()
"""
"""Has every kind of temporary file and folder until it is killed."""


def list_parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".part"))


def test_a_run_removes_what_dead_runs_left_and_nothing_of_a_live_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp, out = tmp_path / "temp", tmp_path / "out"
    temp.mkdir()
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", KILLED, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as live:
        assert live.stdout is not None
        live.stdout.readline()
        before = list_parts(temp), list_parts(out)
        run_again(out)
        assert (list_parts(temp), list_parts(out)) == before
        live.kill()
    assert (len(before[0]), len(before[1])) == (1, 4)
    run_again(out)
    assert (list_parts(temp), list_parts(out)) == ([], [])
    assert [path.name for path in out.iterdir()] == ["other.csv"]


def run_again(out: Path) -> None:
    start_cleanup()
    with atomic_write(out / "other.csv") as file:
        file.write(b"x")


def test_a_data_set_comes_back_if_its_run_died_between_two_renames(tmp_path: Path) -> None:
    old = tmp_path / f"{make_temp_name('data')}.old"
    old.mkdir()
    (old / "part-00000.parquet").write_bytes(b"old")
    start_cleanup()
    with TempFolder(tmp_path):
        assert (tmp_path / "data" / "part-00000.parquet").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_replaced_data_set_of_a_dead_run_is_removed(tmp_path: Path) -> None:
    old = tmp_path / f"{make_temp_name('data')}.old"
    old.mkdir()
    (tmp_path / "data").mkdir()
    start_cleanup()
    with TempFolder(tmp_path):
        assert not old.exists()


def test_files_of_other_programs_machines_and_links_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "HOST_TAG", "0123")
    foreign = make_temp_name("a")
    monkeypatch.setattr(atomic, "HOST_TAG", "4567")
    names = ["a.part", ".a.12345678.part", ".b.crdownload", foreign]
    for name in names:
        (tmp_path / name).touch()
    link = tmp_path / make_temp_name("link")
    link.symlink_to(tmp_path / "a.part")
    start_cleanup()
    with TempFolder(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} >= {*names, link.name}
    os.utime(tmp_path / foreign, (0, 0))
    start_cleanup()
    with TempFolder(tmp_path):
        assert not (tmp_path / foreign).exists()


def test_whether_case_is_ignored_is_what_files_show_and_nothing_is_left(tmp_path):
    (tmp_path / "a").touch()
    assert atomic.ignores_case(tmp_path) == (tmp_path / "A").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
