"""`to-parquet`: rows into a data set of Parquet files, divided by columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from morpheus import bucket
from morpheus.bucket import Object, is_address
from morpheus.errors import UsageError
from morpheus.records import Rows
from morpheus.sinks.data_set import drafted, keyed, write
from morpheus.sinks.head import Head
from morpheus.stage import Stage, option

PART_ROWS = 1 << 17
"""Rows that are in memory at a time, and then in a file of each partition."""


@dataclass(frozen=True)
class ToParquet(Stage):
    """Write the rows to a folder of Parquet files, which appear all or none.

    Takes rows and hands them on. With --partition_by, each value has a folder of its own, named as
    Hive, Spark, Athena and Polars know it: `date=2024-05-31/user=ann/part-00000.parquet`. A
    partition is a column, or `user`, or `date`, `year`, `month`, `day` or `hour` of the event, in
    UTC. The folder is on disk or, as `s3://bucket/folder`, in S3; a file `_SUCCESS` is written
    last. The first rows decide the columns; the running number is left out.

    Example: `to-parquet --folder=detections/ --partition_by=date`
    """

    name = "to-parquet"
    takes = (Rows,)
    gives = Rows
    scope = "run"
    sink = True
    needs_fingerprint = False

    folder: str = option("", "Folder to write, which must not be there yet.", required=True)
    partition_by: tuple[str, ...] = option(
        (), "What rows are divided by; repeat for folders in folders."
    )
    overwrite: bool = option(
        False,
        "Replace all that the folder holds, which stays until the new files are whole.",
        flag=True,
    )

    def check(self) -> None:
        """Refuse a folder that cannot be written to, or holds something."""
        if not self.folder:
            raise UsageError("to-parquet: no folder is named. Give `--folder detections/`.")
        twice = {name for name in self.partition_by if self.partition_by.count(name) > 1}
        if twice:
            raise UsageError(f"--partition_by: `{min(twice)}` is named twice. Name it once.")
        if _is_file(self.folder):
            raise UsageError(f"--folder: `{self.folder}` is a file. Name a folder, or move it.")
        if _holds_something(self.folder) and not self.overwrite:
            raise UsageError(
                f"--folder: `{self.folder}` holds something already. Give `to-parquet --overwrite` "
                "to replace all of it, or another --folder."
            )

    def __call__(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Write each batch, then hand it on."""
        with drafted(self.folder) as folder:
            files = _Files(folder, self.partition_by)
            for batch in batches:
                files.add(batch)
                yield batch
            files.finish()


@dataclass
class _Files:
    """Rows held until they are enough for a file in each partition."""

    folder: Path
    keys: tuple[str, ...]
    head: Head = field(default_factory=lambda: Head(ToParquet.name, row=False))
    kinds: pl.Schema | None = None
    held: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    written: int = 0

    def add(self, batch: Rows) -> None:
        """Hold rows; what is written does not depend on how they are cut into batches."""
        self.held.append(self._fit(keyed(batch.frame, batch.user, self.keys)))
        self.rows += batch.frame.height
        if self.rows >= PART_ROWS:
            joined = pl.concat(self.held)
            whole = joined.height - joined.height % PART_ROWS
            for part in joined.head(whole).iter_slices(PART_ROWS):
                self._write(part)
            self.held, self.rows = [joined.slice(whole)], joined.height - whole

    def finish(self) -> None:
        """Write what is left."""
        if self.rows:
            self._write(pl.concat(self.held))

    def _fit(self, frame: pl.DataFrame) -> pl.DataFrame:
        rows = self.head.fit(frame)
        if self.kinds is None:
            kinds = rows.schema.items()
            self.kinds = pl.Schema({n: pl.String() if k == pl.Null else k for n, k in kinds})
        return rows.cast(self.kinds)

    def _write(self, frame: pl.DataFrame) -> None:
        write(self.folder, frame, self.keys, self.written)
        self.written += 1


def _is_file(where: str) -> bool:
    return not is_address(where) and Path(where).is_file()


def _holds_something(where: str) -> bool:
    if is_address(where):
        return any(bucket.level(Object.named(where)))
    return Path(where).is_dir() and any(Path(where).iterdir())
