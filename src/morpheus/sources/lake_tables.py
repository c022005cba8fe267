"""Tables of a lake: folders of Parquet with a log of their own, which says what is part of them.

Files that were deleted or rewritten stay where they are for days. So such a folder is read by its
log, or not at all; never as the files that happen to lie there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import polars as pl

from morpheus import bucket
from morpheus.bucket import S3Path
from morpheus.errors import UsageError

if TYPE_CHECKING:
    from deltalake import DeltaTable

DELTA, ICEBERG = "Delta", "Iceberg"
_DELTA_LOG, _ICEBERG_LOG, _ICEBERG_STATE = "_delta_log", "metadata", ".metadata.json"


@dataclass(frozen=True)
class LakeTable:
    """A table.

    Attributes:
        folder: Where it lies.
        table_format: `Delta` or `Iceberg`.
    """

    folder: Path | S3Path
    table_format: str

    def make_error(self, option: str) -> UsageError:
        """What to say where its files would be read as loose ones."""
        told = f"{option}: `{self.folder}` is a table of {self.table_format}: files that lie there may be "
        told += "deleted or rewritten, which only its log tells."
        loose = "`--file_type=parquet` reads its files as they lie"
        if self.table_format == DELTA:
            return UsageError(f"{told} Give the table itself, {option}={self.folder}; {loose}.")
        return UsageError(
            f"{told} Iceberg's log is not read here. Export the table to Parquet, such as with "
            f"Athena's UNLOAD; or, if nothing in it is ever deleted or rewritten, {loose}: "
            f"{option}='{self.folder}/data/**/*.parquet' --file_type=parquet."
        )


def is_delta_table(folder: Path | S3Path) -> bool:
    """Whether a folder has a log as a table of Delta has."""
    return any(_iter_dir(folder / _DELTA_LOG))


def detect_tables(paths: Iterable[Path | S3Path]) -> set[LakeTable]:
    """The tables that files are of.

    Tables are found by their log, among the files or beside folders of Parquet; in a bucket that
    takes a request or two for each such folder, partitions not counted.
    """
    found, roots = set[LakeTable](), set[Path | S3Path]()
    for path in paths:
        here = path.absolute() if isinstance(path, Path) else path
        if _DELTA_LOG in here.parts:
            found.add(LakeTable(_find_parent_of(here, _DELTA_LOG), DELTA))
        elif here.parts[-2:-1] == (_ICEBERG_LOG,) and here.name.endswith(_ICEBERG_STATE):
            found.add(LakeTable(here.parent.parent, ICEBERG))
        elif here.suffix.lower() == ".parquet":
            roots.add(_find_partition_root(here.parent))
    known = {table.folder for table in found}
    for root in roots - known:
        found |= {table for table in _find_adjacent_table(root) if table.folder not in known}
    return found


def _find_parent_of(path: Path | S3Path, name: str) -> Path | S3Path:
    while path.name != name:
        path = path.parent
    return path.parent


def _find_partition_root(folder: Path | S3Path) -> Path | S3Path:
    """The folder that partitions lie in."""
    while "=" in folder.name:
        folder = folder.parent
    return folder


def _find_adjacent_table(folder: Path | S3Path) -> Iterator[LakeTable]:
    """The table whose log lies beside some Parquet files."""
    if is_delta_table(folder):
        yield LakeTable(folder, DELTA)
    above = folder.parent
    if folder.name == "data" and any(
        one.name.endswith(_ICEBERG_STATE) for one in _iter_dir(above / _ICEBERG_LOG)
    ):
        yield LakeTable(above, ICEBERG)


def _iter_dir(folder: Path | S3Path) -> Iterator[Path | S3Path]:
    if isinstance(folder, S3Path):
        yield from bucket.list_recursive(folder)
    elif folder.is_dir():
        yield from folder.iterdir()


def list_active_files(folder: Path | S3Path, option: str) -> list[Path | S3Path]:
    """The files that a Delta table consists of now, by its log.

    Args:
        folder: The table.
        option: The option that named it, for messages.

    Raises:
        UsageError: The extra is not installed, or files alone do not say what is in the table.
    """
    try:
        from deltalake import DeltaTable  # noqa: PLC0415 - an extra
        from deltalake.exceptions import DeltaError  # noqa: PLC0415 - the same
    except ImportError as error:
        raise UsageError(
            f"{option}: `{folder}` is a table of Delta, which is read by an extra. "
            "`pip install 'morpheus[delta]'`."
        ) from error
    try:
        # In a bucket it finds the credentials by itself.
        more = bucket.storage_options() if isinstance(folder, S3Path) else None
        table = DeltaTable(str(folder), storage_options=more)
        files = pl.DataFrame(table.get_add_actions(flatten=True)).select("path", "size_bytes")
        reason = _find_unreadable_reason(table, files["path"].to_list())
    except (DeltaError, OSError) as error:
        reason = f"its log cannot be read ({str(error).strip().splitlines()[0]})"
    if reason:
        raise UsageError(
            f"{option}: `{folder}` is a table of Delta, but {reason}. Write a plain copy of it, "
            "such as with Spark's INSERT OVERWRITE DIRECTORY ... USING parquet, and read that."
        )
    return [_join_path(folder, unquote(path), size) for path, size in files.iter_rows()]


def _find_unreadable_reason(table: DeltaTable, paths: list[str]) -> str | None:
    """Why the files that are live are not the table; None if they are."""
    about = table.metadata()
    if about.configuration.get("delta.columnMapping.mode", "none") != "none":
        return "its columns are called otherwise in its files (column mapping)"
    if any(batch.num_rows for batch in table.deletion_vectors()):
        return "rows in its files are deleted (deletion vectors; REORG TABLE ... APPLY (PURGE))"
    if any("://" in path for path in paths):
        return "its files lie elsewhere (a shallow clone)"
    if any(f"{name}=" not in path for name in about.partition_columns for path in paths):
        return "its folders are not called after its partitions"
    return None


def _join_path(folder: Path | S3Path, name: str, size: int) -> Path | S3Path:
    if isinstance(folder, Path):
        return folder / name
    return S3Path(folder.bucket, (folder / name).key, size)
