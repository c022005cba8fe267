"""What a watched directory hands out: each byte once, whatever happens to its files."""

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import zstandard

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


def fill(watcher: DirectoryWatcher) -> Iterator[list[FilePart]]:
    """The first micro-batch, and those of the others that have a file."""
    found = watcher.iter_micro_batches()
    yield next(found)
    yield from filter(None, found)


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
    return [json.loads(line)["n"] for text in texts for line in text.splitlines() if line]


def test_first_batch_has_the_existing_files_or_none(tmp_path: Path) -> None:
    assert next(fill(follow(tmp_path, {})[1])) == []
    (tmp_path / "a").write_text("x")
    assert next(fill(follow(tmp_path, {})[1])) == [FilePart(tmp_path / "a")]


def test_new_files_are_read_once_after_the_idle_timeout(tmp_path: Path) -> None:
    plan = {
        3: lambda: (tmp_path / "b").write_text("x"),
        5: lambda: (tmp_path / "a").write_text("x"),
        20: lambda: (tmp_path / "c").write_text("x"),
    }
    night, watcher = follow(tmp_path, plan)
    rounds = fill(watcher)
    assert next(rounds) == []
    assert next(rounds) == [FilePart(tmp_path / "a"), FilePart(tmp_path / "b")]
    assert night.looks == 8  # a is whole at the sixth look; two more without news are 1 s
    assert next(rounds) == [FilePart(tmp_path / "c")]


def test_unfinished_documents_are_not_read(tmp_path: Path) -> None:
    plan = {n: lambda n=n: (tmp_path / "a").write_text("[\n" * n) for n in range(1, 5)}
    plan[5] = lambda: (tmp_path / "a").write_text("[" * 5 + "]" * 5)
    night, watcher = follow(tmp_path, plan, quiet=0.5)
    rounds = fill(watcher)
    assert next(rounds) == []
    assert next(rounds) == [FilePart(tmp_path / "a")]
    assert night.looks >= 6


def test_lines_are_read_while_a_file_never_stops_growing(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    plan = {n: lambda n=n: append(log, lines(n)) for n in range(1, 60)}
    _, watcher = follow(log.parent, plan, quiet=0.5)
    found, rounds = [], fill(watcher)
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
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(3)] == [[1, 2], [3], [4]]


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_line_of_json_waits_for_its_rest(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    start, rest = lines(1, 2)[:-cut], lines(1, 2)[-cut:]
    log.write_text(start)
    _, watcher = follow(log.parent, {8: lambda: append(log, rest + lines(3))}, quiet=0.5)
    found, rounds = [], fill(watcher)
    for number in range(4):
        if 3 in found:
            break
        found += read(next(rounds), tmp_path / str(number))
    assert found == [1, 2, 3]
    assert not caplog.text


def make_old(path: Path) -> None:
    """Let a file not have been written to for two minutes."""
    at = time.time() - 120
    os.utime(path, (at, at))


def test_a_line_of_json_that_never_gets_its_rest_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1) + '{"n": 2')
    make_old(log)
    _, watcher = follow(log.parent, {20: lambda: append(log, "}\n")}, quiet=0.5)
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(2)] == [[1], [2]]
    assert caplog.text.count("the last line is not complete") == 1


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_of_csv_waits_a_minute_for_its_line_feed(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "in" / "a.csv"
    log.parent.mkdir()
    text = "name,n\nx,10\ny,20\n"
    log.write_text(text[:-cut])
    _, watcher = follow(log.parent, {8: lambda: append(log, text[-cut:] + "z,30\n")}, quiet=0.5)
    assert read_csv(watcher, tmp_path) == ["x,10", "y,20", "z,30"]


@pytest.mark.parametrize("follows", ["\nz,30\n", "\r\nz,30\r\n"])
def test_a_line_of_csv_that_was_taken_without_a_line_feed_is_not_taken_again(
    tmp_path: Path, follows: str
) -> None:
    log = tmp_path / "in" / "a.csv"
    log.parent.mkdir()
    log.write_text("name,n\nx,10\ny,20")
    make_old(log)
    _, watcher = follow(log.parent, {8: lambda: append(log, follows)}, quiet=0.5)
    assert read_csv(watcher, tmp_path) == ["x,10", "y,20", "z,30"]


def read_csv(watcher: DirectoryWatcher, folder: Path) -> list[str]:
    """The rows of two columns, until one has `z`."""
    found, rounds = list[str](), fill(watcher)
    for number in range(4):
        if any(row.startswith("z") for row in found):
            break
        for part in next(rounds):
            path = part.path if part.is_whole else part.write(folder / str(number))
            header, *rows = path.read_text().split()
            assert header == "name,n"[: len(header)]
            found += rows
    return found


WHOLE = json.dumps({"Records": [{"n": n} for n in range(300)]}).encode()
WHOLE_FILES = {
    "a.json": WHOLE,
    "a.json.gz": gzip.compress(WHOLE),
    "a.json.zst": zstandard.compress(WHOLE),
    "a.parquet": b"PAR1 columns PAR1",
}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (name, share)
        for name in WHOLE_FILES
        for share in (0.0, 0.5, 0.99)
        if share or name != "a.json"
    ],
)
def test_a_file_that_is_written_with_pauses_is_taken_when_it_is_complete(
    tmp_path: Path, name: str, share: float
) -> None:
    log, content = tmp_path / name, WHOLE_FILES[name]
    log.write_bytes(content[: int(share * len(content))])
    night, watcher = follow(tmp_path, {20: lambda: log.write_bytes(content)}, quiet=0.5)
    rounds = fill(watcher)
    assert next(rounds) == []
    assert next(rounds) == [FilePart(log)]
    assert night.looks >= 20


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_never_complete_is_taken_after_a_minute(tmp_path: Path, name: str) -> None:
    log = tmp_path / name
    log.write_bytes(WHOLE_FILES[name][:-1])
    _, watcher = follow(tmp_path, {20: lambda: make_old(log)}, quiet=0.5)
    rounds = fill(watcher)
    assert [next(rounds), next(rounds)] == [[], [FilePart(log)]]


def test_nothing_waits_for_its_rest_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("name,n\nx,10\ny,20")
    night = Night(tmp_path, {})
    watcher = DirectoryWatcher(night.find, idle_timeout=1.0, max_files=1, sleep=night.sleep)
    parts = [FilePart(log, *place, has_header=True) for place in ((0, 12), (12, 16))]
    assert list(fill(watcher)) == [[part] for part in parts]


def test_a_complete_last_line_without_a_line_feed_is_not_read_again(tmp_path: Path) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(1, 2).removesuffix("\n"))
    _, watcher = follow(log.parent, {4: lambda: append(log, "\n" + lines(3))})
    rounds = fill(watcher)
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
    rounds = fill(watcher)
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
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(2)] == [[1, 2, 3], numbers]


@pytest.mark.parametrize("more", [[], [9]])
def test_a_file_that_is_rewritten_with_the_same_last_bytes_is_read_from_its_start(
    tmp_path: Path, more: list[int]
) -> None:
    log, user = tmp_path / "in" / "a.jsonl", f', "user": "{"ann" * 300}"}}\n'
    log.parent.mkdir()

    def write(*numbers: int) -> None:
        text = "".join(
            line.replace("}\n", user) for line in lines(*numbers).splitlines(keepends=True)
        )
        log.write_text(text)

    write(1, 2)
    _, watcher = follow(log.parent, {4: lambda: write(3, 4, *more)})
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(2)] == [[1, 2], [3, 4, *more]]


def test_a_name_that_is_not_utf8_is_kept_in_the_state(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"in\xff")
    folder.mkdir()
    log = folder / os.fsdecode(b"a\xfe.jsonl")
    log.write_text(lines(1, 2))
    _, watcher = follow(folder, {})
    assert read(next(fill(watcher)), tmp_path / "first") == [1, 2]
    append(log, lines(3))
    _, again = follow(folder, {})
    again.restore(watcher.take_offsets())
    assert [file.path for file in again.taken.values()] == [str(log)]
    assert read(next(fill(again)), tmp_path / "second") == [3]


def test_a_document_that_grows_is_read_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "a.json"
    log.write_text('[\n{"n": 1}\n]\n')
    _, watcher = follow(tmp_path, {4: lambda: log.write_text('[\n{"n": 1},\n{"n": 2}\n]\n')})
    rounds = fill(watcher)
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
    rounds = fill(watcher)
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
    rounds = fill(watcher)
    assert next(rounds) == []
    assert 10 < len(next(rounds)) < 30


def test_watching_ends_after_max_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("x")
    night = Night(tmp_path, {})
    watcher = DirectoryWatcher(night.find, idle_timeout=1.0, max_files=2, sleep=night.sleep)
    assert list(fill(watcher)) == [[FilePart(tmp_path / "a"), FilePart(tmp_path / "b")]]


def test_a_new_file_with_the_inode_of_a_deleted_one_is_no_rewritten_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("x")
    plan: dict[int, Callable[[], object]] = {
        3: (tmp_path / "a").unlink,
        4: lambda: (tmp_path / "b").write_text("y"),
    }
    _, watcher = follow(tmp_path, plan)
    rounds = fill(watcher)
    assert next(rounds) == [FilePart(tmp_path / "a")]
    assert next(rounds) == [FilePart(tmp_path / "b")]
    assert len(watcher.last_stamps) == 1
    assert "rewritten" not in caplog.text


def restart(watcher: DirectoryWatcher, saved: dict[str, bytes]) -> dict[str, bytes]:
    """The offsets of all micro-batches so far."""
    return {name: data for name, data in (saved | watcher.take_offsets()).items() if data}


BIG = list(range(100))  # more than the bytes by which a file is recognised


def test_a_run_that_is_started_again_reads_only_what_is_new(tmp_path: Path) -> None:
    log, other = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*BIG))
    other.write_text(lines(1, 2))
    _, watcher = follow(log.parent, {})
    next(watcher.iter_micro_batches())
    saved = restart(watcher, {})
    append(log, lines(1000))
    other.rename(other.with_name("b.jsonl.1"))
    other.write_text(lines(3))
    _, again = follow(log.parent, {})
    again.restore(saved)
    assert read(next(again.iter_micro_batches()), tmp_path) == [1000, 3]


def test_offsets_of_files_that_were_taken_but_not_handed_out_are_not_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(1))
    plan = {3: lambda: (tmp_path / "b.jsonl").write_text(lines(2))}
    _, watcher = follow(tmp_path, plan, quiet=10.0)
    rounds = watcher.iter_micro_batches()
    next(rounds)
    assert len(watcher.take_offsets()) == 1
    while not watcher.copies and len(watcher.taken) < 2:
        assert next(rounds) == []
    next(rounds)
    assert watcher.take_offsets() == {}, "the part is not in a micro-batch yet"
    while not next(rounds):
        pass
    assert len(watcher.take_offsets()) == 1


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_copy_is_read_from_where_the_original_was_read_to(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    log = tmp_path / "in" / f"a.{kind}"
    log.parent.mkdir()
    header = "" if kind == "jsonl" else "name,n\n"
    row = lines if kind == "jsonl" else lambda *ns: "".join(f"x,{n}\n" for n in ns)
    log.write_text(header + row(*BIG, *BIG))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]

    def rotate() -> None:
        log.with_name(f"a.{kind}.1{suffix}").write_bytes(
            pack((header + row(*BIG, *BIG, 1000)).encode())
        )
        log.write_text(header + row(7))

    _, watcher = follow(log.parent, {4: rotate})
    rounds = fill(watcher)
    next(rounds)
    parts = next(rounds)
    texts = [
        (p.path if p.is_whole else p.write(tmp_path / str(n))).read_text()
        for n, p in enumerate(parts)
    ]
    assert sorted(texts) == sorted([header + row(7), header + row(1000)])
    assert watcher.take_copies() == [(str(log.with_name(f"a.{kind}.1{suffix}")), str(log))]


def test_the_last_line_of_a_copy_waits_for_its_rest_too(tmp_path: Path) -> None:
    log, copy = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*BIG))
    plan = {
        4: lambda: copy.write_text(lines(*BIG) + '{"n": 20'),
        20: lambda: append(copy, "0}\n"),
    }
    _, watcher = follow(log.parent, plan, quiet=0.5)
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(2)] == [BIG, [200]]
    assert watcher.take_copies() == [(str(copy), str(log))]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_copy_with_the_inode_of_another_file_is_known(
    tmp_path: Path, pack: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    log, other = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*BIG))
    other.write_text(lines(500, 501))
    plan = {
        8: lambda: other.write_bytes(pack(lines(*BIG, 200).encode())),
        20: lambda: append(log, lines(300)),
    }
    _, watcher = follow(log.parent, plan, quiet=0.5)
    rounds = fill(watcher)
    found = [read(next(rounds), tmp_path / str(n)) for n in range(3)]
    assert found == [[*BIG, 500, 501], [200], [300]]
    assert watcher.take_copies() == [(str(other), str(log))]
    assert not caplog.text


LARGE = list(range(1000))


def test_a_copy_that_is_written_slowly_is_known(tmp_path: Path) -> None:
    log, copy = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*LARGE))
    copied = lines(*LARGE, 2000)
    size = len(copied) // 10 + 1
    plan: dict[int, Callable[[], object]] = {
        n + 4: lambda n=n: append(copy, copied[n * size : (n + 1) * size])  # type: ignore[misc]
        for n in range(10)
    }
    plan[30] = lambda: append(log, lines(300))
    _, watcher = follow(log.parent, plan, quiet=0.5)
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(3)] == [LARGE, [2000], [300]]


def test_the_longest_original_of_a_copy_counts(tmp_path: Path) -> None:
    log, copy, last = (tmp_path / "in" / f"{name}.jsonl" for name in "bac")
    log.parent.mkdir()
    log.write_text(lines(*BIG))
    plan = {
        4: lambda: copy.write_text(lines(*BIG)),
        8: lambda: append(log, lines(200)),
        20: lambda: last.write_text(lines(*BIG, 200, 300)),
    }
    _, watcher = follow(log.parent, plan, quiet=0.5)
    rounds = fill(watcher)
    assert [read(next(rounds), tmp_path / str(n)) for n in range(3)] == [BIG, [200], [300]]


def test_a_file_that_only_begins_like_another_is_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text(lines(*BIG, 1))
    plan = {4: lambda: log.with_name("b.jsonl").write_text(lines(*BIG, 2))}
    _, watcher = follow(tmp_path, plan)
    rounds = fill(watcher)
    next(rounds)
    assert next(rounds) == [FilePart(log.with_name("b.jsonl"))]


def test_deleted_files_are_remembered_in_a_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheus.sources.watcher._MAX_DELETED", 3)
    for n in range(10):
        (tmp_path / f"{n}.jsonl").write_text(lines(n))
    delete = lambda: [path.unlink() for path in tmp_path.iterdir()]  # noqa: E731 - a step of the plan
    _, watcher = follow(
        tmp_path, {4: delete, 9: lambda: (tmp_path / "new.jsonl").write_text("{}\n")}
    )
    rounds = watcher.iter_micro_batches()
    next(rounds)
    saved = restart(watcher, {})
    assert len(saved) == 10
    while len(watcher.taken) > 4:
        next(rounds)
    assert len(restart(watcher, saved)) <= 4


def move_on(log: Path, way: str, text: str) -> None:
    """Log rotation, and a new line in the file of the old name."""
    number = len(list(log.parent.iterdir()))
    old = log.with_name(f"{log.name}.{number}")
    if way == "rename":
        log.rename(old)
    else:
        old.write_bytes(log.read_bytes())
        log.write_bytes(b"")
    append(log, text)


@pytest.mark.parametrize("way", ["rename", "copy and cut"])
@pytest.mark.parametrize("look", range(5, 10))
def test_what_was_found_is_read_in_order_if_log_rotation_comes_before_it_is_read(
    tmp_path: Path, way: str, look: int
) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*range(100)))
    _, watcher = follow(
        log.parent,
        {
            3: lambda: append(log, lines(*range(100, 200))),
            4: lambda: append(log, lines(*range(200, 300))),
            look: lambda: move_on(log, way, lines(300)),
            look + 1: lambda: append(log, lines(301)),
        },
        quiet=2.0,
    )
    watcher.copy_folder = tmp_path / "copies"
    found = set[int]()
    for parts in watcher.iter_micro_batches():
        texts = [(part.copy or part.path).read_text() for part in parts]
        new = {json.loads(line)["n"] for text in texts for line in text.splitlines()} - found
        assert not new or not found or min(new) > max(found), "an earlier event comes later"
        found |= new
        if 301 in found:
            break
    assert found == set(range(302))


def test_a_whole_file_that_was_moved_before_it_was_read_is_found_under_its_new_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines(1).encode()))
    _, watcher = follow(tmp_path, {})
    watcher.copy_folder = tmp_path.parent / "copies"
    rounds = fill(watcher)
    [part] = next(rounds)
    assert not part.has_moved()
    (tmp_path / "a.gz").rename(tmp_path / "b.gz")
    (tmp_path / "a.gz").write_bytes(gzip.compress(lines(2).encode()))
    assert part.has_moved()
    watcher.take_again(part)
    assert [part.path.name for part in next(rounds)] == ["a.gz", "b.gz"]
    watcher.take_offsets()
    assert list(filter(None, watcher.take_offsets().values())) == []


@pytest.mark.parametrize("way", ["rename", "copy and cut"])
def test_a_run_that_goes_on_reads_all_that_log_rotation_has_left_in_one_micro_batch(
    tmp_path: Path, way: str
) -> None:
    log = tmp_path / "in" / "a.jsonl"
    log.parent.mkdir()
    log.write_text(lines(*range(100)))
    watcher = follow(log.parent, {})[1]
    next(watcher.iter_micro_batches())
    append(log, lines(*range(100, 200)))
    move_on(log, way, lines(*range(200, 300)))
    move_on(log, "rename", lines(300))
    second = follow(log.parent, {})[1]
    second.restore(watcher.take_offsets())
    second.copy_folder = tmp_path / "copies"
    parts = next(second.iter_micro_batches())
    texts = [(part.copy or part.path).read_text() for part in parts]
    found = {json.loads(line)["n"] for text in texts for line in text.splitlines()}
    assert found == set(range(100, 301))
