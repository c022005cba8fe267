import gzip
import json
import re
import tempfile
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from jobs import peak_in_pieces, spill_on_a_full_disk
from morpheus.columns import TIME
from morpheus.core.batch import Events, ReadStats, RunMetrics, Table
from morpheus.core.stage import PipelineOptions, read_lines
from morpheus.errors import RecordError, TransientError
from morpheus.runtime.pool import WorkerPool
from morpheus.sources import compression
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT, FromCloudtrail
from morpheus.sources.compression import DEFAULT_LIMITS, is_large, read_blocks
from morpheus.sources.discovery import FileDiscovery
from morpheus.sources.ingest import FileIngest
from morpheus.sources.spill_sort import MemoryBudget
from morpheus.storage.spill import SpillDir, spill_to_disk

FEATURES = read_lines(FromCloudtrail.default_columns, option="--columns_file")
TINY = MemoryBudget(
    max_cells_in_memory=200,
    partition_cells=300,
    spill_table_cells=400,
    max_scan_passes=2,
    partitions_per_bucket=2,
)
DATA = Path(__file__).parents[2] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real logs are not beside this checkout")


def record(number: int, user: str | None, second: int) -> dict[str, Any]:
    return {
        "eventID": f"00000000-0000-0000-0000-{number:012}",
        "eventTime": f"2024-05-31T09:30:{second:02}Z",
        "userIdentity": {"arn": "arn:1", "accountId": user},
    }


def write_files(folder: Path, records: list[dict[str, Any]], size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, start in enumerate(range(0, len(records), size)):
        text = json.dumps({"Records": records[start : start + size]})
        (folder / f"{n:03}.json").write_text(text)
    return folder


def read(
    pattern: Path | str,
    budget: MemoryBudget,
    history: Path | None = None,
    threads: int = 1,
    **options: Any,
) -> tuple[list[Events], RunMetrics]:
    chosen = {"columns": FEATURES, "num_threads": threads, **options.pop("settings", {})}
    file_ingest = FileIngest(
        CLOUDTRAIL_FORMAT,
        FileDiscovery(str(pattern)),
        PipelineOptions(**chosen),
        memory_budget=budget,
        **options,
    )
    metrics = RunMetrics()
    return list(file_ingest.events(None if history is None else str(history), metrics)), metrics


def whole(batches: list[Events]) -> list[Events]:
    """One batch a user, however many their events came in."""
    users = [list(group) for _, group in groupby(batches, key=attrgetter("user"))]
    return [
        replace(user[0], table=Table(pl.concat(one.table.to_frame() for one in user)))
        for user in users
    ]


def assert_same(
    one: tuple[list[Events], RunMetrics], other: tuple[list[Events], RunMetrics]
) -> None:
    assert [batch.user for batch in whole(one[0])] == [batch.user for batch in whole(other[0])]
    for a, b in zip(whole(one[0]), whole(other[0]), strict=True):
        assert a.table.to_frame().equals(b.table.to_frame())
        assert (a.history is None) == (b.history is None)
        assert a.history is None or b.history is None or a.history.equals(b.history)
    assert one[1] == other[1]


RECORDS = st.lists(
    st.builds(
        record,
        st.integers(0, 40),
        st.sampled_from(["1", "2", "3", "4", "5", None]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(RECORDS, RECORDS, st.integers(1, 20))
def test_spilled_events_equal_events_in_memory(
    records: list[dict[str, Any]], before: list[dict[str, Any]], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        new = write_files(Path(folder, "new"), records, size)
        old = write_files(Path(folder, "old"), before, size)
        assert_same(read(new, MemoryBudget(), old), read(new, TINY, old))


def test_history_can_be_a_table_with_fewer_columns(tmp_path: Path) -> None:
    new = write_files(tmp_path / "new", [record(1, "ann", 9)], 9)
    old = tmp_path / "old.csv"
    old.write_text("eventTime,userIdentityaccountId,eventName\n2024-05-30T09:30:00Z,ann,Ls\n")
    [batch], _ = read(new, MemoryBudget(), old)
    assert batch.history is not None
    assert batch.history.names == batch.table.names
    assert batch.history["userIdentityarn"].to_list() == [None]


def test_order_of_files_does_not_matter_with_many_users(tmp_path: Path) -> None:
    records = [record(n, f"{n * 7 % 23}", n * 11 % 60) for n in range(600)]
    new = write_files(tmp_path / "new", records, 50)
    parts = [records[i : i + 50] for i in range(0, 600, 50)]
    shuffled = [*parts[7:], *parts[6::-1]]
    other = write_files(tmp_path / "other", [one for part in shuffled for one in part], 50)
    batches = read(new, TINY)
    assert_same(batches, read(other, MemoryBudget()))
    firsts = [batch.table[TIME].min() for batch in whole(batches[0])]
    assert len(firsts) == 23
    assert firsts == sorted(firsts, key=str)


DERIVED = (*FEATURES, "logcount", "locincrement", "new:agentfamily")


@pytest.mark.parametrize("derived", [False, True])
def test_user_larger_than_memory_is_read_in_chunks(tmp_path: Path, *, derived: bool) -> None:
    records = [record(n % 530, "giant" if n % 9 else "small", n * 7 % 60) for n in range(600)]
    for n, one in enumerate(records):
        day = f"2024-05-{1 + n * 13 % 30:02}"
        one["eventTime"] = one["eventTime"].replace("2024-05-31", day)
        one["sourceIPAddress"], one["userAgent"] = f"10.0.0.{n * n % 7}", f"aws-cli/{n % 3}"
    new = write_files(tmp_path / "new", records, 50)
    old = write_files(tmp_path / "old", records[:90], 50)
    chosen = {"columns": DERIVED} if derived else {}
    batches, metrics = read(new, TINY, old, settings=dict(chosen))
    assert_same(read(new, MemoryBudget(), old, settings=dict(chosen)), (batches, metrics))
    assert max(batch.table.height for batch in batches) < 50
    assert metrics.input.duplicates == 54


def test_memory_of_a_chunked_user_does_not_grow_with_events() -> None:
    found = []
    for rows in (200_000, 400_000):
        with WorkerPool(2) as pool:
            found += pool.map_shared(peak_in_pieces, [rows])
    assert found[1] < 1.3 * found[0]


@real
@pytest.mark.parametrize("threads", [1, 2])
def test_real_logs_do_not_depend_on_threads_or_memory(threads: int) -> None:
    new, old = DATA / "cloudtrail-attack", DATA / "cloudtrail-console"
    chosen = {"userid_column_name": "userIdentityarn"}
    budget = structs.replace(
        TINY, spill_table_cells=20_000, min_task_bytes=2_000_000, serial_threshold_bytes=0
    )
    held = read(new, MemoryBudget(), old, settings=chosen)
    assert_same(held, read(new, budget, old, threads=threads, settings=chosen))


@real
def test_columns_and_counts_do_not_depend_on_threads(tmp_path: Path) -> None:
    new, old = DATA / "cloudtrail-attack", DATA / "golden/training"
    (tmp_path / "x.jsonl").write_text('{"eventName": "no time"}\n')
    options = {
        "all_columns": True,
        "skip_bad_records": True,
        "settings": {"userid_filter": "123837551234"},
    }
    budget = structs.replace(
        TINY, spill_table_cells=20_000, min_task_bytes=1_000_000, serial_threshold_bytes=0
    )
    assert_same(
        read(new, MemoryBudget(), old, **{**options, "settings": dict(options["settings"])}),  # type: ignore[call-overload] # options of several types
        read(new, budget, old, threads=2, **options),
    )


def test_first_bad_record_is_reported_with_any_number_of_workers(tmp_path: Path) -> None:
    folder = write_files(tmp_path, [record(n, "1", 1) for n in range(40)], 10)
    for name in ("001.json", "003.json"):
        (folder / name).write_text('{"Records": [{"eventName": "Ls"}]}')
    budget = MemoryBudget(min_task_bytes=1, serial_threshold_bytes=0)
    with pytest.raises(RecordError, match=r"001\.json:1: the record has no `eventTime`"):
        read(folder, budget, threads=2)


def test_counts_and_warnings_do_not_depend_on_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(6):
        (tmp_path / f"{n}.csv").write_text(
            "eventTime,userIdentityaccountId,a.b,ab\n2024-05-31T09:30:01Z,x,1,2\nx,x,1,2\n"
        )
    one = read(tmp_path, MemoryBudget(), skip_bad_records=True)
    alone, caplog.records[:] = len(caplog.records), []
    other = read(
        tmp_path,
        MemoryBudget(min_task_bytes=1, serial_threshold_bytes=0),
        threads=2,
        skip_bad_records=True,
    )
    assert_same(one, other)
    assert other[1].input.refused == 6
    assert len(other[1].input.refusals) == 5
    assert len(caplog.records) == alone == 6


def test_interrupted_read_leaves_nothing_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill_dir = tmp_path / "spill_dir"
    spill_dir.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill_dir))
    folder = write_files(tmp_path / "new", [record(n, f"{n % 9}", n % 60) for n in range(99)], 9)
    logs, chosen = FileDiscovery(str(folder)), PipelineOptions(columns=FEATURES, num_threads=1)
    events = FileIngest(CLOUDTRAIL_FORMAT, logs, chosen, memory_budget=TINY).events(
        None, RunMetrics()
    )
    next(events)
    [made] = spill_dir.iterdir()
    assert made.stat().st_mode & 0o077 == 0
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)  # type: ignore[attr-defined] # a generator in truth
    assert list(spill_dir.iterdir()) == []


def test_few_events_are_never_spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "new", [record(1, "1", 1)], 9)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert len(read(folder, MemoryBudget())[0]) == 1


def test_full_disk_is_reported_with_the_fix(tmp_path: Path) -> None:
    with WorkerPool(2) as pool:
        [message] = pool.map_shared(spill_on_a_full_disk, [tmp_path])
    expected = r"events cannot be spilled there \(File too large\)\. Free disk space, .*TMPDIR"
    assert re.search(expected, message), message


def test_deleted_spill_folder_is_reported_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"gone: events cannot be spilled .*TMPDIR"):
        spill_to_disk(tmp_path / "gone", [pl.DataFrame({"text": ["a"]})])


def test_missing_temporary_folder_is_reported_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(TransientError, match="choose another folder"), SpillDir() as spill_dir:
        assert spill_dir.folder


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_large_files_in_blocks_equal_files_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    records = [record(n, f"{n % 5}", n % 60) for n in range(1000)]
    flat = [
        {
            "eventTime": r["eventTime"],
            "userIdentityaccountId": r["userIdentity"]["accountId"],
            "text": 'a,"b\nc',
        }
        for r in records
    ]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(flat).write_parquet(path)
    else:
        lines = "\n".join(map(json.dumps, records)) if "json" in suffix else ""
        text = lines.encode() or pl.DataFrame(flat).write_csv().encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    held = read(path, MemoryBudget())
    monkeypatch.setattr(compression, "STREAMING_THRESHOLD", 800)
    monkeypatch.setattr(read_blocks, "__defaults__", (1000, DEFAULT_LIMITS))
    assert is_large(path)
    assert_same(held, read(path, MemoryBudget()))


def test_read_stats_add_up() -> None:
    one, other = ReadStats(files=1, read=9, duplicates=2), ReadStats(files=2, read=5, no_user=1)
    for n in range(4):
        one.refuse(f"{n}")
        other.refuse(f"more {n}")
    one.add(other)
    assert (one.files, one.read, one.refused, one.accepted) == (3, 14, 8, 3)
    assert one.refusals == ["0", "1", "2", "3", "more 0"]
