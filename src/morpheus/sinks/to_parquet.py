"""`to-parquet`: rows into a data set of Parquet files, divided by columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from morpheus import bucket
from morpheus.bucket import S3Path, is_s3_url
from morpheus.errors import UsageError
from morpheus.records import OutputRows
from morpheus.sinks.data_set import atomic_dataset, add_partition_keys, write_partitions
from morpheus.sinks.head import FixedColumns
from morpheus.stage import Transform, option

ROWS_PER_FILE = 1 << 17
"""Rows that are in memory at a time, and then in a file of each partition."""


@dataclass(frozen=True)
class ToParquet(Transform):
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
    scope = "global"
    is_sink = True
    needs_model = False

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

    def __call__(self, batches: Iterator[OutputRows]) -> Iterator[OutputRows]:
        """Write each batch, then hand it on."""
        with atomic_dataset(self.folder) as folder:
            files = _PartitionWriter(folder, self.partition_by)
            for batch in batches:
                files.add(batch)
                yield batch
            files.finish()


@dataclass
class _PartitionWriter:
    """Rows held until they are enough for a file in each partition."""

    folder: Path
    keys: tuple[str, ...]
    fixed_columns: FixedColumns = field(default_factory=lambda: FixedColumns(ToParquet.name, include_row_number=False))
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
        return any(bucket.list_dir(S3Path.parse(target)))
    return Path(target).is_dir() and any(Path(target).iterdir())
