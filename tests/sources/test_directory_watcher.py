from collections.abc import Callable, Mapping
from pathlib import Path

from morpheus.sources.ingest import DirectoryWatcher


class Night:
    """A clock that does, at each look, what the test has planned for it."""

    def __init__(self, folder: Path, plan: Mapping[int, Callable[[], object]]) -> None:
        self.folder, self.plan, self.looks = folder, plan, 0

    def find(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def sleep(self, _: float) -> None:
        self.looks += 1
        self.plan.get(self.looks, lambda: None)()


def follow(
    folder: Path, plan: Mapping[int, Callable[[], object]], quiet: float = 1.0
) -> tuple[Night, DirectoryWatcher]:
    night = Night(folder, plan)
    return night, DirectoryWatcher(night.find, idle_timeout=quiet, sleep=night.sleep)


def test_first_batch_has_the_existing_files_or_none(tmp_path: Path) -> None:
    assert next(follow(tmp_path, {})[1].iter_micro_batches()) == []
    (tmp_path / "a").write_text("x")
    assert next(follow(tmp_path, {})[1].iter_micro_batches()) == [tmp_path / "a"]


def test_new_files_are_read_once_after_the_idle_timeout(tmp_path: Path) -> None:
    plan = {
        3: lambda: (tmp_path / "b").write_text("x"),
        5: lambda: (tmp_path / "a").write_text("x"),
        20: lambda: (tmp_path / "c").write_text("x"),
    }
    night, watcher = follow(tmp_path, plan)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == []
    assert next(rounds) == [tmp_path / "a", tmp_path / "b"]
    assert night.looks == 8  # a is whole at the sixth look; two more without news are 1 s
    assert next(rounds) == [tmp_path / "c"]


def test_unfinished_files_are_not_read(tmp_path: Path) -> None:
    plan = {n: lambda n=n: (tmp_path / "a").write_text("x" * n) for n in range(1, 6)}
    night, watcher = follow(tmp_path, plan, quiet=0.5)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == []
    assert next(rounds) == [tmp_path / "a"]
    assert night.looks >= 6
    assert (tmp_path / "a").read_text() == "xxxxx"


def test_batch_is_released_while_files_keep_coming(tmp_path: Path) -> None:
    plan = {n: lambda n=n: (tmp_path / f"{n:03}").write_text("x") for n in range(3, 200)}
    _, watcher = follow(tmp_path, plan)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == []
    assert 10 < len(next(rounds)) < 30


def test_watching_ends_after_max_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("x")
    night = Night(tmp_path, {})
    watcher = DirectoryWatcher(night.find, idle_timeout=1.0, max_files=2, sleep=night.sleep)
    assert list(watcher.iter_micro_batches()) == [[tmp_path / "a", tmp_path / "b"]]


def test_watcher_forgets_deleted_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    plan: dict[int, Callable[[], object]] = {
        3: (tmp_path / "a").unlink,
        4: lambda: (tmp_path / "b").write_text("x"),
    }
    _, watcher = follow(tmp_path, plan)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == [tmp_path / "a"]
    assert next(rounds) == [tmp_path / "b"]
    assert watcher.taken_files == {tmp_path / "b"}
