"""What a watched directory hands out: each byte once, whatever happens to its files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from morpheus.sources.watcher import DirectoryWatcher, FilePart


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


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"n": n}) + "\n" for n in numbers)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def read(parts: list[FilePart], folder: Path) -> list[int]:
    """The numbers in the lines of some parts, as they are read."""
    texts = [
        (part.path if part.is_whole else part.write(folder / str(n))).read_text()
        for n, part in enumerate(parts)
    ]
    return [json.loads(line)["n"] for text in texts for line in text.splitlines()]


def test_first_batch_has_the_existing_files_or_none(tmp_path: Path) -> None:
    assert next(follow(tmp_path, {})[1].iter_micro_batches()) == []
    (tmp_path / "a").write_text("x")
    assert next(follow(tmp_path, {})[1].iter_micro_batches()) == [FilePart(tmp_path / "a")]


def test_new_files_are_read_once_after_the_idle_timeout(tmp_path: Path) -> None:
    plan = {
        3: lambda: (tmp_path / "b").write_text("x"),
        5: lambda: (tmp_path / "a").write_text("x"),
        20: lambda: (tmp_path / "c").write_text("x"),
    }
    night, watcher = follow(tmp_path, plan)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == []
    assert next(rounds) == [FilePart(tmp_path / "a"), FilePart(tmp_path / "b")]
    assert night.looks == 8  # a is whole at the sixth look; two more without news are 1 s
    assert next(rounds) == [FilePart(tmp_path / "c")]


def test_unfinished_documents_are_not_read(tmp_path: Path) -> None:
    plan = {n: lambda n=n: (tmp_path / "a").write_text("[\n" * n) for n in range(1, 6)}
    night, watcher = follow(tmp_path, plan, quiet=0.5)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == []
    assert next(rounds) == [FilePart(tmp_path / "a")]
    assert night.looks >= 6


def test_lines_are_read_while_a_file_never_stops_growing(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    plan = {n: lambda n=n: append(log, lines(n)) for n in range(1, 60)}
    _, watcher = follow(log.parent, plan, quiet=0.5)
    found, rounds = [], watcher.iter_micro_batches()
    for number in range(6):
        found += read(next(rounds), tmp_path / str(number))
    assert len(found) > 10
    assert found == list(range(1, len(found) + 1))


def test_appended_lines_are_read_once(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1, 2))
    _, watcher = follow(
        log.parent, {4: lambda: append(log, lines(3)), 20: lambda: append(log, lines(4))}
    )
    rounds = watcher.iter_micro_batches()
    assert [read(next(rounds), tmp_path / str(n)) for n in range(3)] == [[1, 2], [3], [4]]


def test_a_line_without_an_end_is_read_again_when_it_has_one(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1) + '{"n": 2')
    _, watcher = follow(log.parent, {4: lambda: append(log, "}\n")})
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == [FilePart(log)]
    assert read(next(rounds), tmp_path) == [2]


def test_a_complete_last_line_without_a_line_feed_is_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1, 2).removesuffix("\n"))
    _, watcher = follow(log.parent, {4: lambda: append(log, "\n" + lines(3))})
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == [FilePart(log)]
    assert next(rounds)[0].write(tmp_path).read_text() == "\n" + lines(3)


def test_a_file_renamed_by_log_rotation_is_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1, 2))

    def rotate() -> None:
        append(log, lines(3))
        log.rename(log.with_name("a-1.jsonl"))
        log.write_text(lines(4))

    _, watcher = follow(log.parent, {4: rotate})
    rounds = watcher.iter_micro_batches()
    assert read(next(rounds), tmp_path) == [1, 2]
    assert sorted(read(next(rounds), tmp_path)) == [3, 4]


@pytest.mark.parametrize("numbers", [[7], [7, 8, 9, 10]])
def test_a_truncated_or_rewritten_file_is_read_from_its_start(
    tmp_path: Path, numbers: list[int]
) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1, 2, 3))
    _, watcher = follow(log.parent, {4: lambda: log.write_text(lines(*numbers))})
    rounds = watcher.iter_micro_batches()
    assert [read(next(rounds), tmp_path / str(n)) for n in range(2)] == [[1, 2, 3], numbers]


def test_a_document_that_grows_is_read_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "a.json"
    log.write_text('[\n{"n": 1}\n]\n')
    _, watcher = follow(tmp_path, {4: lambda: log.write_text('[\n{"n": 1},\n{"n": 2}\n]\n')})
    rounds = watcher.iter_micro_batches()
    assert [next(rounds), next(rounds)] == [[FilePart(log)]] * 2
    assert "a.json: it was rewritten, and is read again from its start" in caplog.text


def test_a_part_of_csv_has_the_header_and_no_torn_quote(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.csv"
    log.parent.mkdir()
    log.write_text('"na\nme",n\nx,1\n')
    plan = {
        4: lambda: append(log, '"a ""quoted""\n'),
        5: lambda: append(log, 'line",2\ny'),
        6: lambda: append(log, ",3\n"),
    }
    _, watcher = follow(log.parent, plan, quiet=0.5)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == [FilePart(log)]
    texts = ""
    for number in range(5):
        if texts.endswith("y,3\n"):
            break
        for part in next(rounds):
            text = part.write(tmp_path / f"{number}-{part.start}").read_text()
            assert text.startswith('"na\nme",n\n')
            texts += text.removeprefix('"na\nme",n\n')
    assert texts == '"a ""quoted""\nline",2\ny,3\n'


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
    assert list(watcher.iter_micro_batches()) == [
        [FilePart(tmp_path / "a"), FilePart(tmp_path / "b")]
    ]


def test_watcher_forgets_deleted_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    plan: dict[int, Callable[[], object]] = {
        3: (tmp_path / "a").unlink,
        4: lambda: (tmp_path / "b").write_text("y"),
    }
    _, watcher = follow(tmp_path, plan)
    rounds = watcher.iter_micro_batches()
    assert next(rounds) == [FilePart(tmp_path / "a")]
    assert next(rounds) == [FilePart(tmp_path / "b")]
    assert len(watcher.taken) == len(watcher.last_stamps) == 1
