"""What is on disk after a power loss, at each moment and for each loss that POSIX allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheus.core.batch import OutputRows, RunMetrics
from morpheus.core.stage import Sink, Transform
from morpheus.models.profile import Fingerprint
from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model
from morpheus.models.versions import VersionedStore
from morpheus.runtime.states import SqliteStateStore
from morpheus.sinks.alert_files import ToEcs, ToOcsf
from morpheus.sinks.delivery import DeadLetterFile, OutboundEvent
from morpheus.sinks.to_file import ToFile
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sinks.to_report import ToReport
from morpheus.stages.serialize import Serialize
from morpheus.status import StatusFile
from morpheus.storage.atomic import AppendedFile, AtomicWriter, atomic_write, start_cleanup
from morpheus.testing import make_events, make_output_rows, run_stage
from people import fingerprint
from power_loss import TEARS, Crash, Recorder, Recording

TEMPORARY = re.compile(r"(^|/)\.[^/]*\.part(\.old)?(/|$)")
"""Names that only the run that made them uses; the next run removes them."""


def rows(run: int) -> OutputRows:
    return make_output_rows(make_events(range(3), name=[f"a{run}", "b", "c"]))


def write(stage: Transform, run: int) -> None:
    run_stage(stage, [rows(run)])
    if isinstance(stage, Sink):
        stage.commit(RunMetrics())


def write_status(folder: Path, run: int) -> None:
    status = StatusFile.from_stages(str(folder / "status.json"), [Serialize()])
    status.write(RunMetrics(), running=bool(run))


OUTPUTS: dict[str, Callable[[Path, int], None]] = {
    "csv": lambda folder, run: write(ToFile(str(folder / "new" / "out.csv")), run),
    "json": lambda folder, run: write(ToFile(str(folder / "out.jsonl.gz")), run),
    "parquet": lambda folder, run: write(ToFile(str(folder / "out.parquet")), run),
    "dataset": lambda folder, run: write(
        ToParquet(folder=str(folder / "out"), partition_by=("date",)), run
    ),
    "ecs": lambda folder, run: write(ToEcs(filename=str(folder / "out.jsonl")), run),
    "ocsf": lambda folder, run: write(ToOcsf(filename=str(folder / "out.parquet")), run),
    "security lake": lambda folder, run: write(
        ToOcsf(lake_folder=str(folder / "lake"), region="eu-west-1"), run
    ),
    "report": lambda folder, run: write(ToReport(filename=str(folder / "out.html")), run),
    "status": write_status,
}


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a reader of a folder sees."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not TEMPORARY.search(str(path.relative_to(folder)))
    }


def record(folder: Path, work: Callable[[Recorder], None]) -> Recording:
    recorder = Recorder(folder)
    with recorder.record() as recording:
        work(recorder)
    return recording


@st.composite
def crashes(draw: st.DrawFn, recording: Recording) -> Crash:
    """Any moment, and any part of what can be lost then."""
    disk = recording.disk(draw(st.sampled_from(recording.points())))
    pending, dirty = disk.pending(), disk.dirty()
    lost = draw(st.frozensets(st.sampled_from(pending))) if pending else frozenset[int]()
    return disk.crash(lost, {file: draw(st.sampled_from(TEARS)) for file in dirty})


def recover(folder: Path) -> None:
    """What the next run does before it writes."""
    start_cleanup()
    with AtomicWriter(folder / "next"):
        pass
    (folder / "next").unlink()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_is_the_old_or_the_new_one_and_the_new_one_once_the_sink_has_committed(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    known = [contents(tmp_path / "work")]

    def work(recorder: Recorder) -> None:
        for run in range(2):
            OUTPUTS[kind](tmp_path / "work", run)
            known.append(contents(tmp_path / "work"))
            recorder.reach(run)

    recording = record(tmp_path / "work", work)
    for crash in recording.crashes():
        folder = crash.write(tmp_path / "after")
        recover(folder)
        possible = known[len(crash.reached) :][:2]
        assert contents(folder) in possible


NAMES = st.sampled_from(["a", "b", "new/c", "new/newer/d"])


@settings(max_examples=40)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=9)), min_size=1, max_size=5), st.data())
def test_a_file_has_the_content_of_the_latest_write_that_returned_or_of_one_after_it(
    writes: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as scratch:
        work = Path(scratch, "work")
        work.mkdir()

        def write_all(recorder: Recorder) -> None:
            for number, (name, content) in enumerate(writes):
                with atomic_write(work / name) as file:
                    file.write(content)
                recorder.reach(number)

        crash = data.draw(crashes(record(work, write_all)))
        found = contents(crash.write(Path(scratch, "after")))
        done = len(crash.reached)
        for name, _ in writes:
            possible: list[bytes | None] = [None]
            for number, (one, content) in enumerate(writes[: done + 1]):
                if one == name:
                    possible = [content] if number < done else [*possible, content]
            assert found.get(name) in possible


def named(user: str) -> Fingerprint:
    some = fingerprint()
    return replace(some, card=msgspec.structs.replace(some.card, user=user))


def test_an_index_of_fingerprints_has_all_its_files_and_is_the_new_one_once_committed(
    tmp_path: Path,
) -> None:
    (tmp_path / "work").mkdir()
    models = tmp_path / "work" / "models"
    published = [["ann"], ["ann", "bob"]]

    def publish(recorder: Recorder) -> None:
        for users in published:
            cards = {user: put_model(models, named(user)) for user in users}
            commit_index(models, ModelIndex.from_cards(cards))
            recorder.reach(users)

    for crash in record(tmp_path / "work", publish).crashes():
        folder = crash.write(tmp_path / "after") / "models"
        done = len(crash.reached)
        store = ModelStore.find(folder)
        assert store is not None or not done
        if store is not None:
            assert sorted(store.cards) in published[max(done - 1, 0) :]
            assert all(store.load(user) is not None for user in store.cards)


def test_a_store_has_the_version_before_or_the_whole_new_one(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    models = tmp_path / "work" / "models"
    published = [["ann"], ["ann", "bob"]]

    def publish(recorder: Recorder) -> None:
        for users in published:
            VersionedStore.open(models).publish(map(named, users), alias="champion")
            recorder.reach(users)

    for crash in record(tmp_path / "work", publish).crashes():
        store = VersionedStore.open(crash.write(tmp_path / "after") / "models")
        done = len(crash.reached)
        assert len(store.versions()) in {done, done + 1}
        for version in store.versions():
            opened = store.open_version(version.number)
            assert sorted(opened.cards) == published[version.number - 1]
            assert all(opened.load(user) is not None for user in opened.cards)
            assert not opened.replaced


def letters(first: int, count: int) -> list[tuple[OutboundEvent, str]]:
    return [
        (OutboundEvent(str(number), "ann", None, b'{"a":1}'), "503")
        for number in range(first, first + count)
    ]


def read_letters(path: Path) -> Iterator[str]:
    for batch in DeadLetterFile(path).replay():
        yield from (kept.event.id for kept in batch)


def test_a_dead_letter_that_was_kept_is_sent_again_even_after_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    dead = DeadLetterFile(tmp_path / "work" / "new" / "dead.jsonl")

    def keep(recorder: Recorder) -> None:
        for first in range(0, 6, 2):
            dead.add(letters(first, 2))
            recorder.reach(first)

    for crash in record(tmp_path / "work", keep).crashes():
        path = crash.write(tmp_path / "after") / "new" / "dead.jsonl"
        DeadLetterFile(path).add(letters(90, 1))
        kept = 2 * len(crash.reached)
        found = list(read_letters(path))
        assert found[:kept] == [str(number) for number in range(kept)]
        assert found[-1] == "90"
        assert set(found) <= {*map(str, range(6)), "90"}


def test_a_dead_letter_stays_on_disk_until_it_was_sent_again(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "dead.jsonl"
    DeadLetterFile(path).add(letters(0, 4))

    def send_again(recorder: Recorder) -> None:
        for letter in read_letters(path):
            recorder.reach(letter)
            DeadLetterFile(path).add(letters(10 + int(letter), 1))  # it fails in another way

    for crash in record(tmp_path / "work", send_again).crashes():
        folder = crash.write(tmp_path / "after")
        found = list(read_letters(folder / path.name))
        sent = {str(letter) for letter in crash.reached}
        assert {*map(str, range(4))} <= {*found, *sent}
        assert {str(10 + int(str(letter))) for letter in crash.reached[:-1]} <= {*found}


def test_a_state_file_syncs_each_commit(tmp_path: Path) -> None:
    store = SqliteStateStore(tmp_path / "state.db", {})
    connection = store._db  # noqa: SLF001 - another connection does not know this setting
    full = (2,)
    assert connection.execute("PRAGMA synchronous").fetchone() == full
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_letter_without_a_line_feed_that_a_person_has_left_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    DeadLetterFile(path).add(letters(0, 2))
    path.write_bytes(path.read_bytes()[:-1])
    DeadLetterFile(path).add(letters(2, 1))
    assert list(read_letters(path)) == ["0", "1", "2"]


@settings(max_examples=40)
@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4), st.data())
def test_a_file_that_grows_has_all_bytes_up_to_the_position_that_a_checkpoint_can_have(
    parts: list[bytes], data: st.DataObject
) -> None:
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "work", "new", "rows.jsonl")
        path.parent.parent.mkdir()

        def grow(recorder: Recorder) -> None:
            file = AppendedFile(path, None)
            for part in parts:
                file.write(part)
                recorder.reach(file.sync().size)
            file.close()

        crash = data.draw(crashes(record(path.parent.parent, grow)))
        folder = crash.write(Path(scratch, "after"))
        size = max(map(int, map(str, crash.reached)), default=0)
        found = (folder / "new" / path.name).read_bytes() if size else b""
        assert found[:size] == b"".join(parts)[:size]
        assert len(found) >= size
