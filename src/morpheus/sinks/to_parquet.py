"""A data set: Parquet files in folders that name their partition, which appear all or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import polars as pl
from polars.exceptions import PolarsError

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows
from morpheus.core.stage import Sink, StageContext, option
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.to_file import FixedColumns
from morpheus.storage.object_store import (
    S3Path,
    delete_objects,
    is_s3_url,
    list_dir,
    list_recursive,
    write_object,
)
from morpheus.storage.spill import SpillDir

SUCCESS_MARKER = "_SUCCESS"
"""An empty file, written last: where it is, the data set is whole."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
USER_KEY = "user"
TIME_KEYS = {"date": "%Y-%m-%d", "year": "%Y", "month": "%m", "day": "%d", "hour": "%H"}
"""What partitions of time are called, and how they are written."""

_KEY_COLUMN = "_partition_{}_"
_ROW_GROUP_SIZE = 1 << 16  # fixed, so that the bytes do not depend on threads
_MAX_FOLDER_NAME = 200  # bytes of a folder's name; file systems end at 255
_MAX_UPLOADS = 8


def add_partition_keys(frame: pl.DataFrame, user: str | None, keys: Sequence[str]) -> pl.DataFrame:
    """Add the partition of each row, as text, under names that `split_by_partition` knows.

    A key is a column, or `USER_KEY`, or one of `TIME_KEYS`, which is told by the event's time.

    Raises:
        UsageError: A key is none of these.
    """
    return frame.with_columns(
        _key_expr(frame, user, key).alias(_KEY_COLUMN.format(n)) for n, key in enumerate(keys)
    )


def _key_expr(frame: pl.DataFrame, user: str | None, key: str) -> pl.Expr:
    if key in frame.columns:
        return pl.col(key).cast(pl.String)
    if key == USER_KEY:
        return pl.lit(user, pl.String)
    if key in TIME_KEYS and TIME in frame.columns:
        return pl.col(TIME).dt.strftime(TIME_KEYS[key])
    known = ", ".join(f"`{name}`" for name in [*frame.columns[:10], USER_KEY, *TIME_KEYS] if name)
    wanted = f" for which the rows need `{TIME}`" if key in TIME_KEYS else ""
    raise UsageError(
        f"to-parquet: --partition_by: rows have no column `{key}`{wanted}. Name one of {known}; "
        "`serialize --include` decides which columns there are."
    )


def split_by_partition(
    frame: pl.DataFrame, keys: Sequence[str]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Divide rows with keys by folder; columns that the folder's name tells are left out.

    Raises:
        UsageError: A value is too long for a folder's name.
    """
    if not keys:
        yield "", frame
        return
    names = [_KEY_COLUMN.format(n) for n in range(len(keys))]
    kept = [name for name in frame.columns if name not in {*keys, *names}]
    for values, some in sorted(
        frame.partition_by(names, as_dict=True, maintain_order=True).items(),
        key=lambda one: tuple((value is None, str(value)) for value in one[0]),
    ):
        folders = (_folder_name(key, value) for key, value in zip(keys, values, strict=True))
        yield "/".join(folders), some.select(kept)


def _folder_name(key: str, value: object) -> str:
    name = f"{quote(key, safe='')}={HIVE_NULL if value is None else quote(str(value), safe=' @+,')}"
    if len(name) > _MAX_FOLDER_NAME:
        raise UsageError(
            f"to-parquet: --partition_by {key}: a value is too long for the name of a folder: "
            f"{str(value)[:60]!r}... Choose a column of shorter values, such as `date`."
        )
    return name


def write_partitions(folder: Path, frame: pl.DataFrame, keys: Sequence[str], number: int) -> None:
    """Write one file into each partition of some rows with keys.

    Args:
        folder: That of the data set.
        frame: The rows.
        keys: What the data set is partitioned by.
        number: Of these files; two with the same number would be one.
    """
    for place, some in split_by_partition(frame, keys):
        path = folder / place / f"part-{number:05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        some.write_parquet(path, row_group_size=_ROW_GROUP_SIZE)


@contextmanager
def atomic_dataset(target: str) -> Iterator[Path]:
    """A folder on disk to write a data set to; leaving the block puts it in its place, whole.

    Any exception removes it, and what stood there before stays. On disk, it is renamed. In a
    bucket, which cannot rename, its objects are written once all are there; `SUCCESS_MARKER` is removed
    first and written last.

    Args:
        target: Where the data set is to appear: a path, or `s3://bucket/folder`.

    Raises:
        Unavailable: The disk is full or does not let it be written, or S3 does not answer.
        UsageError: There is no such bucket, or it must not be written to.
    """
    if is_s3_url(target):
        with SpillDir() as scratch:
            draft = scratch.folder / "draft"
            with _translate_write_errors(target):
                draft.mkdir()
                yield draft
                (draft / SUCCESS_MARKER).touch()
            _upload_dataset(draft, S3Path.parse(target))
        return
    path = Path(os.path.realpath(target))
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with _translate_write_errors(target):
            draft.mkdir(parents=True)
            yield draft
            (draft / SUCCESS_MARKER).touch()
            _replace_folder(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _translate_write_errors(target: str) -> Iterator[None]:
    try:
        yield
    except (OSError, PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TransientError(
            f"Cannot write `{target}`: {reason}. Nothing is left behind. "
            "Make room or mend the folder, or give another place."
        ) from error


def _replace_folder(draft: Path, path: Path) -> None:
    """Put a folder in the place of another, if there is one."""
    for file in filter(Path.is_file, draft.rglob("*")):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    old = path.with_name(f"{draft.name}.old")
    if path.exists():
        path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _upload_dataset(draft: Path, base: S3Path) -> None:
    """Write objects in the place of all that a folder of a bucket has."""
    files = sorted(
        path for path in draft.rglob("*") if path.is_file() and path.name != SUCCESS_MARKER
    )
    names = {path: base / path.relative_to(draft).as_posix() for path in files}
    before = list(list_recursive(base))
    delete_objects(one for one in before if one == base / SUCCESS_MARKER)
    with ThreadPoolExecutor(_MAX_UPLOADS) as pool:
        list(pool.map(lambda path: write_object(names[path], path), files))
    kept = set(names.values())
    delete_objects(one for one in before if one not in kept and one != base / SUCCESS_MARKER)
    write_object(base / SUCCESS_MARKER, b"")


ROWS_PER_FILE = 1 << 17
"""Rows that are in memory at a time, and then in a file of each partition."""


@dataclass(frozen=True)
class ToParquet(Sink):
    """Write the rows to a folder of Parquet files, which appear all or none.

    Takes rows and hands them on. With --partition_by, each value has a folder of its own, named as
    Hive, Spark, Athena and Polars know it: `date=2024-05-31/user=ann/part-00000.parquet`. A
    partition is a column, or `user`, or `date`, `year`, `month`, `day` or `hour` of the event, in
    UTC. The folder is on disk or, as `s3://bucket/folder`, in S3; a file `_SUCCESS` is written
    last. The first rows decide the columns; the running number is left out.

    Example: `to-parquet --folder=detections/ --partition_by=date`
    """

    name = "to-parquet"
    takes = (OutputRows,)
    gives = OutputRows

    folder: str = option("", "Folder to write, which must not be there yet.", required=True)
    partition_by: tuple[str, ...] = option(
        (), "What rows are divided by; repeat for folders in folders."
    )
    overwrite: bool = option(
        False,
        "Replace all that the folder holds, which stays until the new files are whole.",
        flag=True,
    )

    def validate(self) -> None:
        """Refuse a folder that cannot be written to, or holds something."""
        if not self.folder:
            raise UsageError("to-parquet: no folder is named. Give `--folder detections/`.")
        twice = {name for name in self.partition_by if self.partition_by.count(name) > 1}
        if twice:
            raise UsageError(f"--partition_by: `{min(twice)}` is named twice. Name it once.")
        if _is_file(self.folder):
            raise UsageError(f"--folder: `{self.folder}` is a file. Name a folder, or move it.")
        if _is_not_empty(self.folder) and not self.overwrite:
            raise UsageError(
                f"--folder: `{self.folder}` holds something already. Give `to-parquet --overwrite` "
                "to replace all of it, or another --folder."
            )

    def open(self, context: StageContext) -> _PartitionWriter:
        """Open the data set."""
        folder = context.resources.enter_context(atomic_dataset(self.folder))
        return _PartitionWriter(folder, self.partition_by)

    def process(self, batch: OutputRows, state: _PartitionWriter) -> Iterator[OutputRows]:
        """Write the rows of a batch."""
        state.add(batch)
        yield batch

    def flush(self, state: _PartitionWriter) -> Iterator[OutputRows]:
        """Write the rows that are left."""
        state.finish()
        return iter(())


@dataclass
class _PartitionWriter:
    """Rows held until they are enough for a file in each partition."""

    folder: Path
    keys: tuple[str, ...]
    fixed_columns: FixedColumns = field(
        default_factory=lambda: FixedColumns(ToParquet.name, include_row_number=False)
    )
    schema: pl.Schema | None = None
    buffer: list[pl.DataFrame] = field(default_factory=list)
    buffered_rows: int = 0
    files_written: int = 0

    def add(self, batch: OutputRows) -> None:
        """Hold rows; what is written does not depend on how they are cut into batches."""
        self.buffer.append(self._conform(add_partition_keys(batch.frame, batch.user, self.keys)))
        self.buffered_rows += batch.frame.height
        if self.buffered_rows >= ROWS_PER_FILE:
            joined = pl.concat(self.buffer)
            whole = joined.height - joined.height % ROWS_PER_FILE
            for part in joined.head(whole).iter_slices(ROWS_PER_FILE):
                self._write_files(part)
            self.buffer, self.buffered_rows = [joined.slice(whole)], joined.height - whole

    def finish(self) -> None:
        """Write what is left."""
        if self.buffered_rows:
            self._write_files(pl.concat(self.buffer))

    def _conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        rows = self.fixed_columns.conform(frame)
        if self.schema is None:
            kinds = rows.schema.items()
            self.schema = pl.Schema({n: pl.String() if k == pl.Null else k for n, k in kinds})
        return rows.cast(self.schema)

    def _write_files(self, frame: pl.DataFrame) -> None:
        write_partitions(self.folder, frame, self.keys, self.files_written)
        self.files_written += 1


def _is_file(target: str) -> bool:
    return not is_s3_url(target) and Path(target).is_file()


def _is_not_empty(target: str) -> bool:
    if is_s3_url(target):
        return any(list_dir(S3Path.parse(target)))
    return Path(target).is_dir() and any(Path(target).iterdir())
