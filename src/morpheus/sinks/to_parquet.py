"""`to-parquet`: a dataset of Parquet files in Hive partitions, published as a whole."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from morpheus.columns import TIME
from morpheus.core.batch import OutputRows, Table
from morpheus.core.stage import Outputs, Sink, StageContext, option
from morpheus.errors import TransientError, UsageError
from morpheus.sinks.formats import COMPRESSED_SUFFIXES, FORMAT_BY_EXTENSION
from morpheus.sinks.to_file import FixedColumns
from morpheus.storage.atomic import (
    Store,
    TempFolder,
    create_file,
    hold_folder,
    ignores_case,
    make_folders,
    open_store,
    sync_folder,
)
from morpheus.storage.object_store import (
    ObjectPath,
    delete_objects,
    is_object_url,
    list_dir,
    list_recursive,
    parse_location,
    write_object,
)
from morpheus.storage.spill import SpillDir
from morpheus.text import suggest

SUCCESS_MARKER = "_SUCCESS"
"""Name of an empty file that is written last: with it, the dataset is complete."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
USER_KEY = "user"
TIME_KEYS = {"date": "%Y-%m-%d", "year": "%Y", "month": "%m", "day": "%d", "hour": "%H"}
"""Partition keys derived from the event's time, and their formats."""

_KEY_COLUMN = "_partition_{}_"
_ROW_GROUP_SIZE = 1 << 16  # fixed, so that the bytes do not depend on threads
_PLAIN_CHARACTERS = " @+,"
_CAPITAL = re.compile(r"%..|([A-Z])")
"""A capital letter outside an escaped character."""
_MAX_FOLDER_NAME = 200  # maximum bytes of a folder's name; file systems end at 255
_CUT_FOLDER_NAME = 180  # with its hash, a cut name is longer than any whole name: no two are equal
_HASH_DIGITS = 32
_MAX_KEY_BYTES = 100
_PART_NAME = re.compile(r"part-(\d+)\.parquet")
_PART_SECONDS = 60.0
"""Seconds after which the rows of an endless run become files, although they are few."""
_MAX_UPLOADS = 8  # uploads at the same time


def add_partition_keys(frame: pl.DataFrame, user: str | None, keys: Sequence[str]) -> pl.DataFrame:
    """Add the partition values of each row as text columns, for `split_by_partition`.

    Args:
        frame: The rows.
        user: User of the rows.
        keys: Partition keys: a column, `USER_KEY`, or one of `TIME_KEYS`.

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
    needed = f", which needs the column `{TIME}`" if key in TIME_KEYS else ""
    raise UsageError(
        f"to-parquet: --partition_by: rows have no column `{key}`{needed}."
        f"{suggest(key, [*frame.columns, USER_KEY, *TIME_KEYS])} Choose one of {known}; "
        "`serialize --include` decides the columns."
    )


def split_by_partition(
    frame: pl.DataFrame, keys: Sequence[str], *, escapes_capitals: bool = False
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Split rows by partition. Columns that the folder names contain are dropped.

    A column stays if the name of the folder is not the whole value: see `_FolderName`.

    Args:
        frame: Rows with partition values; see `add_partition_keys`.
        keys: Partition keys.
        escapes_capitals: Whether the names of folders must differ in more than case.

    Yields:
        Relative folder and rows of each partition, in order of the partition values.
    """
    if not keys:
        yield "", frame
        return
    parts: dict[str, list[pl.DataFrame]] = {}
    names = [_KEY_COLUMN.format(n) for n in range(len(keys))]
    for values, rows in sorted(
        frame.partition_by(names, as_dict=True, maintain_order=True).items(),
        key=lambda item: tuple((value is None, str(value)) for value in item[0]),
    ):
        folders = [
            _name_folder(key, value, escapes_capitals=escapes_capitals)
            for key, value in zip(keys, values, strict=True)
        ]
        parts.setdefault("/".join(folder.name for folder in folders), []).append(rows)
    for path, frames in parts.items():
        rows = pl.concat(frames)
        yield path, _drop_partition_columns(rows, keys, escapes_capitals=escapes_capitals)


def _drop_partition_columns(
    frame: pl.DataFrame, keys: Sequence[str], *, escapes_capitals: bool
) -> pl.DataFrame:
    """Drop the columns whose values the names of the folders contain."""
    for number, key in enumerate(keys):
        values = frame.get_column(_KEY_COLUMN.format(number))
        frame = frame.drop(values.name)
        names = (
            _name_folder(key, value, escapes_capitals=escapes_capitals) for value in values.unique()
        )
        if all(name.is_exact for name in names):
            frame = frame.drop(key, strict=False)
        elif key not in frame.columns:
            frame = frame.with_columns(values.alias(key))
    return frame


class _FolderName(NamedTuple):
    """Name of the folder of a partition.

    Attributes:
        name: Its name.
        is_exact: Whether a reader gets the value from the name. Else the files have it in a column.
    """

    name: str
    is_exact: bool = True


def _name_folder(key: str, value: str | None, *, escapes_capitals: bool = False) -> _FolderName:
    """Return the name of the folder of a value. Values are from logs: no value fails.

    A long name is cut and ends with a hash. An empty text is no value: Hive and Spark cannot read a
    folder with an empty one. On a file system that ignores case, capital letters are escaped:
    `Ann` and `ann` would be one folder. Readers get the same values.
    """
    start = f"{quote(key, safe='')}="
    is_null = value == HIVE_NULL or (escapes_capitals and (value or "").upper() == HIVE_NULL)
    if not value or is_null:
        return _FolderName(start + HIVE_NULL, is_exact=value is None)
    name = start + _quote_value(value, escapes_capitals=escapes_capitals)
    if len(name) <= _MAX_FOLDER_NAME:
        return _FolderName(name)
    digest = sha256(value.encode()).hexdigest()[:_HASH_DIGITS]
    cut = _cut_quoted(start, value, escapes_capitals=escapes_capitals)
    return _FolderName(f"{cut}~{digest}", is_exact=False)


def _quote_value(value: str, *, escapes_capitals: bool) -> str:
    quoted = quote(value, safe=_PLAIN_CHARACTERS)
    if not escapes_capitals:
        return quoted
    return _CAPITAL.sub(lambda found: f"%{ord(found[1]):02X}" if found[1] else found[0], quoted)


def _cut_quoted(start: str, value: str, *, escapes_capitals: bool) -> str:
    """Add as many whole characters of a value as fit, so that readers can decode the name."""
    for character in value:
        quoted = _quote_value(character, escapes_capitals=escapes_capitals)
        if len(start) + len(quoted) > _CUT_FOLDER_NAME:
            break
        start += quoted
    return start


def _part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def _part_number(name: str) -> int:
    """Return the number of a file that `_part_name` has named; -1 for another file."""
    match = _PART_NAME.fullmatch(PurePosixPath(name).name)
    return int(match[1]) if match else -1


def _list_parts(target: str) -> list[str]:
    """List the Parquet files of a data set, relative to its folder."""
    place = parse_location(target)
    if isinstance(place, ObjectPath):
        start = len((place / "").key)
        return [path.key[start:] for path in list_recursive(place)]
    return [path.relative_to(place).as_posix() for path in place.rglob("*.parquet")]


def write_partitions(
    folder: Path,
    frame: pl.DataFrame,
    keys: Sequence[str],
    number: int,
    *,
    escapes_capitals: bool = False,
) -> None:
    """Write one file to each partition.

    Args:
        folder: Folder of the dataset.
        frame: Rows with partition values; see `add_partition_keys`.
        keys: Partition keys.
        number: Number in the file names, unique within the dataset.
        escapes_capitals: Whether the names of folders must differ in more than case.
    """
    for partition, rows in split_by_partition(frame, keys, escapes_capitals=escapes_capitals):
        path = folder / partition / _part_name(number)
        make_folders(path.parent)
        with create_file(path) as file:
            rows.write_parquet(file, row_group_size=_ROW_GROUP_SIZE)


@contextmanager
def atomic_dataset(target: str) -> Iterator[Path]:
    """Provide a folder for a dataset, and publish it when the block ends.

    An exception removes the folder, and an older dataset stays. On disk, the folder is synced and
    renamed. S3 cannot rename: the objects are written when all are complete, and `SUCCESS_MARKER`
    is removed first and written last.

    Args:
        target: Destination: a path, or `s3://bucket/folder`.

    Raises:
        TransientError: The folder cannot be written, the disk is full, or S3 does not answer.
        UsageError: The bucket does not exist, or access is denied.
    """
    if is_object_url(target):
        with SpillDir() as spill_dir:
            temp_folder = spill_dir.folder / "dataset"
            with _translate_write_errors(target):
                make_folders(temp_folder)
                yield temp_folder
            _upload_dataset(temp_folder, ObjectPath.parse(target))
        return
    path = Path(os.path.realpath(target))
    with _translate_write_errors(target):
        make_folders(path.parent)
        with TempFolder(path.parent, path.name, published=True) as temp_folder:
            yield temp_folder
            create_file(temp_folder / SUCCESS_MARKER).close()
            _replace_folder(temp_folder, path)


@contextmanager
def _translate_write_errors(target: str) -> Iterator[None]:
    try:
        yield
    except (OSError, PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TransientError(
            f"Cannot write `{target}`: {reason}. Nothing is left behind. "
            "Free disk space, fix the folder's permissions, or choose another path."
        ) from error


def _replace_folder(temp_folder: Path, path: Path) -> None:
    """Sync a folder with all that it contains, and rename it to replace another."""
    _sync_tree(temp_folder)
    old = path.with_name(f"{temp_folder.name}.old")
    with hold_folder(path):
        if path.exists():
            path.rename(old)
        try:
            temp_folder.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _upload_dataset(folder: Path, base: ObjectPath) -> None:
    """Write the files of a folder as objects, replacing all objects below `base`."""
    files = sorted(filter(Path.is_file, folder.rglob("*")))
    names = {path: base / path.relative_to(folder).as_posix() for path in files}
    marker, old_objects = base / SUCCESS_MARKER, list(list_recursive(base))
    delete_objects(path for path in old_objects if path == marker)
    with ThreadPoolExecutor(_MAX_UPLOADS) as pool:
        list(pool.map(lambda path: write_object(names[path], path), files))
    kept = {marker, *names.values()}
    delete_objects(path for path in old_objects if path not in kept)
    write_object(marker, b"")


FILE_EXTENSIONS = {*FORMAT_BY_EXTENSION, *COMPRESSED_SUFFIXES, ".html", ".htm"} - {".parquet"}
"""Extensions that a folder of Parquet files cannot have. Spark names such folders `.parquet`."""
ROWS_PER_FILE = 1 << 17
"""Rows in memory at a time. They become one file in each partition."""


@dataclass(frozen=True)
class ToParquet(Sink):
    """Write the rows to a folder of Parquet files, published as a whole.

    Takes rows and passes them on. With --partition_by, each value has its own folder, in the layout
    of Hive, Spark, Athena and Polars: `date=2024-05-31/user=ann/part-00000.parquet`. A partition is
    a column, or `user`, or `date`, `year`, `month`, `day` or `hour` of the event, in UTC. The
    folder is on disk or, as `s3://bucket/folder`, in S3. A file `_SUCCESS` is written last. The
    first rows decide the columns. The running number is not written.

    A value of more than about 200 characters is cut in the name of its folder, which then ends with
    `~` and a hash. The files in that folder keep the column with the whole value. On a file system
    that ignores case, as on macOS, capital letters are escaped, so that no two values share a
    folder: `user=%41nn`. Readers see `Ann`.

    Example: `to-parquet --folder=detections/ --partition_by=date`
    """

    name = "to-parquet"
    takes = (OutputRows,)
    gives = OutputRows

    folder: str = option(
        "",
        "Folder to write, on this machine or in an object store. It must be new or empty, unless "
        "--overwrite is set.",
        required=True,
        location="any",
    )
    partition_by: tuple[str, ...] = option((), "Partition key; repeat for nested folders.")
    overwrite: bool = option(
        False,
        "Replace the data set in the folder. It stays until the new files are complete. A folder "
        "with other files is refused.",
        flag=True,
    )

    def validate(self) -> None:
        """Reject a folder that cannot be written, or that is not empty."""
        if not self.folder:
            raise UsageError("to-parquet: no folder given. Give `--folder detections/`.")
        extension = PurePosixPath(self.folder).suffix.lower()
        if extension in FILE_EXTENSIONS:
            raise UsageError(
                f"--folder: `{self.folder}` is named like a file, but `to-parquet` writes a folder "
                f"of Parquet files. Give a folder, or `to-file --filename={self.folder}`."
            )
        repeated = {name for name in self.partition_by if self.partition_by.count(name) > 1}
        if repeated:
            raise UsageError(f"--partition_by: `{min(repeated)}` is given twice. Give it once.")
        for key in self.partition_by:
            if not 0 < len(quote(key, safe="")) <= _MAX_KEY_BYTES:
                raise UsageError(
                    f"--partition_by: the name of a column cannot have {len(key):,} characters in "
                    f"the name of a folder: `{key[:60]}`. Give a column with a shorter name."
                )
        if _is_file(self.folder):
            raise UsageError(
                f"--folder: `{self.folder}` is a file. Give a folder, or move the file."
            )
        open_store(self.folder).check_access()
        if not self.options.durable:
            self._check_empty()
            self._check_replaceable()

    def outputs(self) -> Outputs:
        """The folder."""
        return Outputs(data_sets=(parse_location(self.folder),))

    def open(self, context: StageContext) -> _PartitionWriter:
        """Open the data set."""
        if context.position is not None:
            return self._open_durable(context, context.position)
        folder = context.resources.enter_context(atomic_dataset(self.folder))
        escapes = self._ignores_case(folder)
        return _PartitionWriter(folder, self.partition_by, escapes_capitals=escapes)

    def _ignores_case(self, *folders: Path) -> bool:
        """Return whether the names of partitions must differ in more than case."""
        if not self.partition_by:
            return False
        with _translate_write_errors(self.folder):
            return any(map(ignores_case, folders))

    def _check_empty(self) -> None:
        if _is_not_empty(self.folder) and not self.overwrite:
            raise UsageError(
                f"--folder: `{self.folder}` is not empty. Give `to-parquet --overwrite` to replace "
                "its content, or another --folder."
            )

    def _check_replaceable(self) -> None:
        """Reject a folder with files that are no data set: logs, fingerprints, a home folder."""
        other = _find_other_file(self.folder)
        if other is not None:
            raise UsageError(
                f"--folder: `{self.folder}` has `{other}`, which is not part of a data set, and "
                "--overwrite would remove it. Give another --folder, or move the file."
            )

    def _open_durable(
        self, context: StageContext, position: Mapping[str, bytes]
    ) -> _PartitionWriter:
        """Go on with a data set that grows by files. Files after the position are replaced."""
        store, first = open_store(self.folder), int(position.get("", b"0"))
        if not position:
            self._check_empty()
        stale = [name for name in _list_parts(self.folder) if _part_number(name) >= first]
        store.remove(stale)
        folder = context.resources.enter_context(SpillDir()).folder
        places = [folder]
        if not is_object_url(self.folder):
            with _translate_write_errors(self.folder):
                make_folders(Path(self.folder))
            places.append(Path(self.folder))
        return _PartitionWriter(
            folder,
            self.partition_by,
            files_written=first,
            store=store,
            escapes_capitals=self._ignores_case(*places),
        )

    def process(self, batch: OutputRows, state: _PartitionWriter) -> Iterator[OutputRows]:
        """Write the rows of a batch."""
        state.add(batch)
        yield batch

    def flush(self, state: _PartitionWriter) -> Iterator[OutputRows]:
        """Write the rows that are left."""
        state.finish()
        state.published = float("-inf")  # the rows that are left need not wait any longer
        return iter(())

    def sync(self, state: _PartitionWriter) -> Mapping[str, bytes] | None:
        """Publish the rows as files, once there are enough or a minute has passed."""
        if state.store is None:
            return None  # the folder appears when the run ends
        waited = time.monotonic() - state.published
        if state.buffered_rows < ROWS_PER_FILE and waited < _PART_SECONDS:
            return None
        state.publish()
        return {"": str(state.files_written).encode()}


class _PartitionWriter(msgspec.Struct):
    """Buffers rows until there are enough for a file in each partition."""

    folder: Path
    keys: tuple[str, ...]
    fixed_columns: FixedColumns = msgspec.field(
        default_factory=lambda: FixedColumns(ToParquet.name, include_row_number=False)
    )
    schema: pl.Schema | None = None
    buffer: list[pl.DataFrame] = msgspec.field(default_factory=list)
    buffered_rows: int = 0
    files_written: int = 0
    store: Store | None = None
    published: float = msgspec.field(default_factory=time.monotonic)
    escapes_capitals: bool = False

    def add(self, batch: OutputRows) -> None:
        """Add rows. The files do not depend on how rows are cut into batches."""
        rows = add_partition_keys(batch.table.to_frame(), batch.user, self.keys)
        self.buffer.append(self._conform(rows))
        self.buffered_rows += rows.height
        if self.store is None and self.buffered_rows >= ROWS_PER_FILE:
            joined = pl.concat(self.buffer)
            whole = joined.height - joined.height % ROWS_PER_FILE
            for part in joined.head(whole).iter_slices(ROWS_PER_FILE):
                self._write_files(part)
            self.buffer, self.buffered_rows = [joined.slice(whole)], joined.height - whole

    def finish(self) -> None:
        """Write the remaining rows; without any row, one file with the columns."""
        if self.buffered_rows:
            if self.store is None:
                self._write_files(pl.concat(self.buffer))
        elif self.buffer and not self.files_written:
            self._write_empty_file(self.buffer[0])
            self._move_files()

    def publish(self) -> None:
        """Write the buffered rows to a file in each of their partitions, complete or not at all."""
        if self.buffered_rows and self.store is not None:
            self._write_files(pl.concat(self.buffer))
            self._move_files()
            self.buffer, self.buffered_rows = [], 0
        self.published = time.monotonic()

    def _move_files(self) -> None:
        """Move the files of an endless run into the data set."""
        if self.store is not None:
            for path in sorted(self.folder.rglob("*.parquet")):
                self.store.write(path.relative_to(self.folder).as_posix(), path.read_bytes())
                path.unlink()

    def _conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        rows = self.fixed_columns.conform(Table(frame)).to_frame()
        if self.schema is None:
            kinds = rows.schema.items()
            self.schema = pl.Schema({n: pl.String() if k == pl.Null else k for n, k in kinds})
        return rows.cast(self.schema)

    def _write_empty_file(self, frame: pl.DataFrame) -> None:
        values = [_KEY_COLUMN.format(n) for n in range(len(self.keys))]
        named = frame.with_columns(
            pl.col(value).alias(key) for key, value in zip(self.keys, values, strict=True)
        )
        make_folders(self.folder)
        with create_file(self.folder / _part_name(0)) as file:
            named.drop(values).write_parquet(file)

    def _write_files(self, frame: pl.DataFrame) -> None:
        write_partitions(
            self.folder,
            frame,
            self.keys,
            self.files_written,
            escapes_capitals=self.escapes_capitals,
        )
        self.files_written += 1


def _is_file(target: str) -> bool:
    return not is_object_url(target) and Path(target).is_file()


def _find_other_file(target: str) -> str | None:
    """Return a file or folder that is no part of a data set, relative to the folder `target`."""
    place = parse_location(target)
    if isinstance(place, ObjectPath):
        start = len((place / "").key)
        keys = (path.key[start:] for path in list_recursive(place))
        # The page of a bucket makes a folder by an object that ends in a slash.
        names = (PurePosixPath(key) for key in keys if key and not key.endswith("/"))
    else:
        names = (PurePosixPath(path.relative_to(place)) for path in place.rglob("*"))
        names = (name for name in names if not (place / name).is_dir() or "=" not in name.name)
    return next((str(name) for name in names if not _is_data_set_file(name)), None)


def _is_data_set_file(name: PurePosixPath) -> bool:
    """Return whether a data set of Parquet files can have a file: of rows, or a marker of Spark."""
    in_partitions = all("=" in part for part in name.parent.parts)
    is_marker = name.name.startswith("_") or name.name.endswith(".crc") or name.name == ".DS_Store"
    return in_partitions and (name.suffix == ".parquet" or is_marker)


def _is_not_empty(target: str) -> bool:
    if is_object_url(target):
        return any(list_dir(ObjectPath.parse(target)))
    return Path(target).is_dir() and any(Path(target).iterdir())
