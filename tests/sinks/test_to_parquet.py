import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from morpheus.columns import ROW, TIME
from morpheus.core.batch import OutputRows, RunMetrics, Table
from morpheus.core.stage import PipelineOptions
from morpheus.errors import TransientError, UsageError
from morpheus.sinks import to_parquet
from morpheus.sinks.to_parquet import ToParquet
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.testing import run_stage
from strange import iterate

START = datetime(2024, 5, 30, 12, tzinfo=UTC)


def rows(user: str | None, count: int, first: int = 0) -> OutputRows:
    """Hourly events of one user."""
    numbers = range(first, first + count)
    frame = pl.DataFrame(
        {
            ROW: list(numbers),
            "eventTime": [f"{START + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ}" for n in numbers],
            "service": ["s3" if n % 2 else "ec2" for n in numbers],
            TIME: [START + timedelta(hours=n) for n in numbers],
            "ae_anomaly_score": [n / 3 for n in numbers],
        }
    )
    return OutputRows(user=user, table=Table(frame))


def write(folder: Path, *batches: OutputRows, **options: object) -> list[str]:
    """Write, and list all files."""
    sink = ToParquet(folder=str(folder), **options)  # type: ignore[arg-type] # options of several types
    sink.validate()
    assert list(run_stage(sink, batches)) == list(batches)
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_without_partitions_all_rows_are_in_one_file(tmp_path: Path) -> None:
    batch = rows("ann", 5)
    assert write(tmp_path / "out", batch) == ["_SUCCESS", "part-00000.parquet"]
    back = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert back.equals(batch.table.to_frame().drop(ROW))


def test_each_value_has_a_folder_in_hive_layout(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files = write(folder, rows("ann", 24), rows("bob", 2), partition_by=("date", "user"))
    assert files == [
        "_SUCCESS",
        "date=2024-05-30/user=ann/part-00000.parquet",
        "date=2024-05-30/user=bob/part-00000.parquet",
        "date=2024-05-31/user=ann/part-00000.parquet",
    ]
    back = pl.read_parquet(folder, hive_partitioning=True)
    assert back.height == 26
    counts = back.group_by("user").len().sort("user").rows()
    assert counts == [("ann", 24), ("bob", 2)]


def test_partition_column_is_in_the_folder_name_only(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files = write(folder, rows("ann", 4), partition_by=("service", "year", "hour"))
    assert files[1] == "service=ec2/year=2024/hour=12/part-00000.parquet"
    assert "service" not in pl.read_parquet(folder / files[1], hive_partitioning=False).columns


@pytest.mark.parametrize("user", ["../../etc/x", "a=b/c", "/", "..", "ä %2F", "x@y.org", None, ""])
def test_any_user_name_is_one_folder_and_survives(tmp_path: Path, user: str | None) -> None:
    folder = tmp_path / "out"
    [_, file] = write(folder, rows(user, 2), partition_by=("user",))
    assert file.count("/") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    if user != "":
        back = pl.read_parquet(folder, hive_partitioning=True)
        assert back["user"].to_list() == [user, user]


LONG = "n" * 10_000
STRANGE_USERS = (
    *(LONG, LONG + "1", "\N{DELETE}" * 200, "\N{CJK UNIFIED IDEOGRAPH-5B57}" * 100, "y" * 194),
    *("z" * 195, "a/b=c%2F\n", "..", "Ann", "ann", "__HIVE_DEFAULT_PARTITION__", None),
)


@pytest.mark.parametrize("ignores_case", [False, True])
def test_any_users_are_apart_and_each_name_is_in_the_data_set_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ignores_case: bool
) -> None:
    folder, users = tmp_path / "out", [*STRANGE_USERS]
    if ignores_case:  # no file system in the tests does
        monkeypatch.setattr(to_parquet, "ignores_case", lambda _: True)
        users[:0] = ["ANN", "aNN", "N" * 64 + "n" * 64, "n" * 64 + "N" * 64, LONG.upper()]
        users[-1:-1] = ["__hive_default_partition__"]
    batches = [rows(user, 1 + n) for n, user in enumerate(users)]
    files = write(folder, *batches, partition_by=("user", "date"))
    names = {Path(file).parts[0] for file in files} - {"_SUCCESS"}
    # Those like the name of no value have one folder, as in Hive.
    without_value = sum(user is None or "hive" in user.lower() for user in users)
    assert len(names) == len(users) - without_value + 1
    assert max(len(name) for name in names) < 255
    if ignores_case:
        assert len({name.lower() for name in names}) == len(names)

    back = pl.read_parquet(folder, hive_partitioning=True)
    assert back.height == sum(batch.table.height for batch in batches)
    options = PipelineOptions(userid_column_name="user", num_threads=1)
    source = FromCloudtrail(input_glob=str(folder), options=options)
    assert {batch.user: batch.table.height for batch in source.events(None, RunMetrics())} == {
        batch.user: batch.table.height for batch in batches
    }


@pytest.mark.parametrize("ignores_case", [False, True])
def test_capital_letters_are_escaped_only_where_case_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ignores_case: bool
) -> None:
    if ignores_case:
        monkeypatch.setattr(to_parquet, "ignores_case", lambda _: True)
    [_, file] = write(tmp_path / "out", rows("Ann", 2), partition_by=("user",))
    assert file == f"user={'%41nn' if ignores_case else 'Ann'}/part-00000.parquet"
    back = pl.read_parquet(tmp_path / "out", hive_partitioning=True)
    assert back["user"].to_list() == ["Ann", "Ann"]


def test_duckdb_reads_a_folder_with_a_cut_name(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    write(tmp_path / "out", rows(LONG, 2), rows("bob", 3), partition_by=("user",))
    files = f"{tmp_path}/out/**/*.parquet"
    found = duckdb.read_parquet(files, hive_partitioning=True).order("user").fetchall()
    assert {row[-1][:175] for row in found} == {"bob", "n" * 175}
    whole = duckdb.read_parquet(files, hive_partitioning=False, union_by_name=True).fetchall()
    assert [row[-1] for row in sorted(whole, key=str)].count(LONG) == 2


def test_an_empty_text_is_no_value_in_the_name_of_a_folder(tmp_path: Path) -> None:
    [_, file] = write(tmp_path / "out", rows("", 2), partition_by=("user",))
    assert file == "user=__HIVE_DEFAULT_PARTITION__/part-00000.parquet"


def test_source_reads_the_dataset_back(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, rows("ann", 30), rows("b/b", 3), partition_by=("user", "date"))
    options = PipelineOptions(userid_column_name="user", num_threads=1)
    source = FromCloudtrail(
        input_glob=str(folder), start_time="2024-05-31", duration="1d", options=options
    )
    metrics = RunMetrics()
    batches = list(source.events(None, metrics))
    assert [(batch.user, batch.table.height) for batch in batches] == [("ann", 18)]
    assert (metrics.input.outside_files, metrics.input.outside_range) == (2, 0)
    assert batches[0].table["date"].unique().to_list() == ["2024-05-31"]


def test_bytes_do_not_depend_on_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_parquet, "ROWS_PER_FILE", 10)
    whole = write(tmp_path / "a", rows("ann", 35), partition_by=("date",))
    pieces = [rows("ann", 5, first) for first in range(0, 35, 5)]
    assert write(tmp_path / "b", *pieces, partition_by=("date",)) == whole
    assert len([name for name in whole if "part-00003" in name]) == 1
    for name in whole:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_failed_run_keeps_the_old_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before = write(folder, rows("ann", 3))

    def failing() -> Iterator[OutputRows]:
        yield rows("bob", 3)
        raise TransientError("gone")

    sink = ToParquet(folder=str(folder), overwrite=True)
    with pytest.raises(TransientError, match="gone"):
        list(run_stage(sink, failing()))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert write(folder, rows("bob", 4), overwrite=True) == before
    assert pl.read_parquet(folder / before[1]).height == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_abandoned_run_leaves_nothing(tmp_path: Path) -> None:
    stream = iterate(ToParquet(folder=str(tmp_path / "out")), [rows("ann", 3), rows("bob", 3)])
    next(stream)
    stream.close()
    assert list(tmp_path.iterdir()) == []


def test_run_without_rows_writes_an_empty_dataset(tmp_path: Path) -> None:
    assert write(tmp_path / "out") == ["_SUCCESS"]


def test_invalid_options_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"is not empty. Give `to-parquet --overwrite`"):
        ToParquet(folder=str(tmp_path)).validate()
    with pytest.raises(UsageError, match=r"is a file\. Give a folder"):
        ToParquet(folder=str(tmp_path / "a.txt"), overwrite=True).validate()
    with pytest.raises(UsageError, match="no folder given"):
        ToParquet().validate()
    with pytest.raises(UsageError, match="`date` is given twice"):
        ToParquet(folder=str(tmp_path / "b"), partition_by=("date", "date")).validate()
    with pytest.raises(UsageError, match=r"cannot have 300 characters .* shorter name"):
        ToParquet(folder=str(tmp_path / "b"), partition_by=("k" * 300,)).validate()


def test_missing_partition_column_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rows have no column `team`. Choose one of `eventTime`"):
        write(tmp_path / "out", rows("ann", 1), partition_by=("team",))
    untimed = OutputRows(user="ann", table=Table(rows("ann", 1).table.to_frame().drop(TIME)))
    with pytest.raises(UsageError, match=r"no column `date`, which needs the column `event_dt`"):
        write(tmp_path / "out", untimed, partition_by=("date",))
    assert list(tmp_path.iterdir()) == []


def test_partition_folders_apply_to_json_files(tmp_path: Path) -> None:
    for team in ("red", "blue", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / f"team={team}"
        folder.mkdir()
        (folder / "a.json").write_text(
            json.dumps({"Records": [{"eventTime": "2024-05-31T00:00Z", "eventName": "Ls"}]})
        )
    options = PipelineOptions(userid_column_name="team", num_threads=1)
    source = FromCloudtrail(input_glob=str(tmp_path), options=options)
    users = {batch.user for batch in source.events(None, RunMetrics())}
    assert users == {"red", "blue", None}
