"""Which files to read: those that a glob, a file or a folder stands for, on disk or in S3."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import polars as pl

from morpheus.errors import UsageError
from morpheus.sources.compression import FILE_TYPES, LogPath, detect_file_type, make_read_error
from morpheus.sources.time_range import TimeRange, parse_interval
from morpheus.storage.object_store import (
    S3Path,
    head_object,
    is_s3_url,
    list_dir,
    list_recursive,
    storage_options,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable

ANY_DEPTH = "**"
_MAX_CONCURRENCY = 16
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class GlobNode:
    """A folder of a bucket, and what is looked for in it: parts of a glob, the last for objects."""

    folder: S3Path
    pattern: tuple[str, ...]


@dataclass
class GlobResult:
    """What a walk has come by: objects, and how many folders it has passed by for their dates."""

    objects: list[S3Path] = field(default_factory=list)
    outside_folders: int = 0


@dataclass(frozen=True)
class S3Glob:
    """Finds the objects that match, folder by folder where something can be passed by.

    A folder's dates may say that it holds nothing of the period; then it is never listed. As soon
    as nothing more can be passed by, all that is below a folder is listed in one go.

    Attributes:
        pattern: A glob that begins with `s3://`, a folder, or an object.
        recursive: Also match, in every subfolder, what the last part of the glob matches.
        skip_dirs: Folders that are passed by.
        time_range: The period whose events are wanted; None for all.
    """

    pattern: str
    recursive: bool = True
    skip_dirs: tuple[str, ...] = ()
    time_range: TimeRange | None = None

    def find_objects(self) -> GlobResult:
        """Find the objects.

        Raises:
            UsageError: There is no such bucket, or it must not be listed.
            Unavailable: S3 does not answer.
        """
        exact = None if self.pattern.endswith("/") else self._find_exact()
        if exact is not None:
            return GlobResult([exact])
        done, start = GlobResult(), self.get_root_node()
        places, ignored = [start], self._base_depth(start.folder)
        with ThreadPoolExecutor(_MAX_CONCURRENCY) as pool:
            while places:
                following: list[GlobNode] = []
                for deeper, objects in pool.map(partial(self._expand_node, ignored), places):
                    done.objects += objects
                    wanted = [place for place in deeper if self._may_overlap(place.folder, ignored)]
                    done.outside_folders += len(deeper) - len(wanted)
                    following += wanted
                places = following
        return done

    def _find_exact(self) -> S3Path | None:
        whole = S3Path.parse(self.pattern)
        return None if has_magic(whole.key) or not whole.key else head_object(whole)

    def get_root_node(self) -> GlobNode:
        """The folder above the first wildcard, and what is looked for in it."""
        whole = S3Path.parse(self.pattern)
        parts = [part for part in whole.key.split("/") if part]
        first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
        rest = parts[first:] or [ANY_DEPTH, "*"]
        if self.recursive and rest[-1] != ANY_DEPTH and rest[-2:-1] != [ANY_DEPTH]:
            rest = [*rest[:-1], ANY_DEPTH, rest[-1]]
        if rest[-1] == ANY_DEPTH:
            rest.append("*")
        return GlobNode(S3Path(whole.bucket, "/".join(parts[:first])), tuple(rest))

    def _base_depth(self, base: S3Path) -> int:
        return 0 if self.time_range is None else self.time_range.base_depth(base.parts)

    def _expand_node(self, base_depth: int, node: GlobNode) -> tuple[list[GlobNode], list[S3Path]]:
        """The places in a place, and the objects in it."""
        head, *rest = node.pattern
        if rest and head != ANY_DEPTH and not has_magic(head):
            return [GlobNode(node.folder / head, tuple(rest))], []
        if head == ANY_DEPTH and not self._can_prune(node.folder, base_depth):
            return [], [
                one for one in list_recursive(node.folder) if self._matches_below(node, one)
            ]
        folders, objects = list_dir(node.folder)
        deeper = [next_ for folder in folders for next_ in self._iter_child_nodes(node, folder)]
        return deeper, [one for one in objects if matches_glob([one.name], node.pattern)]

    def _iter_child_nodes(self, node: GlobNode, folder: S3Path) -> Iterator[GlobNode]:
        head, *rest = node.pattern
        if folder.name in self.skip_dirs:
            return
        if head == ANY_DEPTH and not folder.name.startswith("."):
            yield GlobNode(folder, node.pattern)
        elif rest and head != ANY_DEPTH and fnmatchcase(folder.name, head):
            yield GlobNode(folder, tuple(rest))

    def _can_prune(self, folder: S3Path, base_depth: int) -> bool:
        """Whether folders below one may be passed by for their dates."""
        span = None if self.time_range is None else parse_interval(folder.parts[base_depth:])
        whole_day = span is not None and (span.end - span.start).total_seconds() <= _SECONDS_PER_DAY
        return self.time_range is not None and not whole_day

    def _may_overlap(self, folder: S3Path, base_depth: int) -> bool:
        return self.time_range is None or self.time_range.may_overlap_dir(folder.parts[base_depth:])

    def _matches_below(self, node: GlobNode, path: S3Path) -> bool:
        return matches_glob(path.parts[len(node.folder.parts) :], node.pattern)


def matches_glob(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a glob; `**` is any number of folders, or none.

    >>> matches_glob(["2024", "05", "a.json"], ["**", "*.json"]), matches_glob([".git", "a"], ["**", "*"])
    (True, False)
    """
    if not pattern:
        return not parts
    if pattern[0] == ANY_DEPTH:
        here = matches_glob(parts, pattern[1:])
        return here or (_matches_part(parts[:1]) and matches_glob(parts[1:], pattern))
    return _matches_part(parts[:1], pattern[0]) and matches_glob(parts[1:], pattern[1:])


def _matches_part(part: Sequence[str], pattern: str = "*") -> bool:
    """Whether a part is there and matches; hidden ones match only what begins with a dot."""
    hidden = bool(part) and part[0].startswith(".") and not pattern.startswith(".")
    return bool(part) and not hidden and fnmatchcase(part[0], pattern)


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
        yield from list_recursive(folder)
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
        more = storage_options() if isinstance(folder, S3Path) else None
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


UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")


@dataclass(frozen=True)
class DiscoveredFiles:
    """The files that match, in sorted order, and what was left out.

    Attributes:
        paths: The files.
        skipped_files: Files left out by their folder.
        outside_files: Files left out by the dates of their folder, or by their own.
        outside_folders: Folders left out so, of which nobody has looked how many files they hold.
    """

    paths: list[LogPath]
    skipped_files: int
    outside_files: int = 0
    outside_folders: int = 0


@dataclass(frozen=True)
class FileDiscovery:
    """The files that a pattern stands for.

    Attributes:
        pattern: A glob, a file or a folder, on disk or, as `s3://bucket/...`, in a bucket.
        option: The option that gave it, named in messages.
        recursive: Also match, in every subfolder, what follows the first wildcard's folder.
        max_files: Take the first so many in sorted order; None or -1 for all.
        file_type: `csv`, `json`, `parquet`, or `auto` to go by suffix, leaving out other files.
        skip_dirs: Folders whose files are left out, and counted.
        time_range: The period whose events are wanted; None for all.
    """

    pattern: str
    option: str = "--input_glob"
    recursive: bool = True
    max_files: int | None = None
    file_type: str = "auto"
    skip_dirs: tuple[str, ...] = ()
    time_range: TimeRange | None = None

    def find(self) -> DiscoveredFiles:
        """List the files there are now; hidden and unfinished ones are none.

        Raises:
            UsageError: There is no such bucket, or it must not be listed.
            Unavailable: S3 does not answer.
        """
        matching, passed_by = self._find_matching()
        if self._is_lake_table(matching):
            logs, passed_by = sorted(list_active_files(self._pattern_path(), self.option)), 0
        else:
            logs = sorted(path for path in matching if self._is_log(path))
        others = [path for path in logs if not set(self.skip_dirs) & set(path.parts)]
        limit = None if self.max_files in {None, -1} else self.max_files
        paths = (
            others if self.time_range is None else self._filter_time_range(others, self.time_range)
        )
        outside = len(others) - len(paths)
        return DiscoveredFiles(paths[:limit], len(logs) - len(others), outside, passed_by)

    def _is_lake_table(self, matching: set[LogPath]) -> bool:
        """Whether the pattern names a table that is read by its log; refuses what else is one."""
        found, named = detect_tables(matching), self._pattern_path()
        mine = LakeTable(named.absolute() if isinstance(named, Path) else named, DELTA)
        others = sorted(found - {mine}, key=lambda one: str(one.folder))
        if others and self.file_type == "auto":
            raise others[0].make_error(self.option)
        return mine in found

    def _pattern_path(self) -> LogPath:
        """What the pattern names, which may be a folder; or a glob, which is none."""
        if is_s3_url(self.pattern):
            return S3Path.parse(self.pattern.rstrip("/"))
        return Path(self.pattern).expanduser()

    def _filter_time_range(self, paths: list[LogPath], time_range: TimeRange) -> list[LogPath]:
        ignored = time_range.base_depth(self._base_parts())
        return [
            path for path in paths if time_range.may_contain_file(path.parts[ignored:-1], path.name)
        ]

    def _base_parts(self) -> tuple[str, ...]:
        """The folders that the glob names before its first wildcard."""
        if is_s3_url(self.pattern):
            return self._make_s3_glob().get_root_node().folder.parts
        return self._base_dir().parts

    def _base_dir(self) -> Path:
        whole = Path(self.pattern).expanduser()
        return whole if whole.is_dir() else _split_glob(whole)[0]

    def require(self) -> DiscoveredFiles:
        """List the files there are now, at least one.

        Raises:
            UsageError: No file matches.
        """
        found = self.find()
        if not found.paths:
            hint = self._make_hint(found)
            raise UsageError(f"{self.option}: no log file matches `{self.pattern}`. {hint}")
        return found

    def detect_type(self, path: LogPath) -> str:
        """Say how to read a file: `csv`, `json` or `parquet`."""
        return detect_file_type(path) or "json" if self.file_type == "auto" else self.file_type

    def _is_log(self, path: LogPath) -> bool:
        if path.suffix.lower() in UNFINISHED_SUFFIXES or (
            isinstance(path, Path) and not path.is_file()
        ):
            return False
        return self.file_type != "auto" or detect_file_type(path) is not None

    def _find_matching(self) -> tuple[set[LogPath], int]:
        """What matches, and how many folders were passed by."""
        if is_s3_url(self.pattern):
            walked = self._make_s3_glob().find_objects()
            return set(walked.objects), walked.outside_folders
        return set(self._glob_local()), 0

    def _make_s3_glob(self) -> S3Glob:
        return S3Glob(self.pattern, self.recursive, self.skip_dirs, self.time_range)

    def _glob_local(self) -> set[Path]:
        whole = Path(self.pattern).expanduser()
        if whole.is_dir():
            return _expand_glob(whole, "*", recursive=self.recursive)
        if whole.exists() or not glob.has_magic(self.pattern):
            return {whole}
        base, rest = _split_glob(whole)
        return _expand_glob(base, rest, recursive=self.recursive)

    def _make_hint(self, found: DiscoveredFiles) -> str:
        if found.outside_files or found.outside_folders:
            return (
                f"The period is {self.time_range}; by their dates {found.outside_files:,} files and "
                f"{found.outside_folders:,} folders lie outside. Give another --start_time, "
                "--end_time or --duration."
            )
        if is_s3_url(self.pattern):
            return self._make_bucket_hint()
        base = self._base_dir()
        if not base.is_dir():
            return f"There is no folder `{base}`. Give a glob in quotes, a file or a folder."
        others = Counter(
            "".join(path.suffixes[-2:]) for path in self._glob_local() if path.is_file()
        )
        if others:
            return (
                f"What matches ends in {_format_suffixes(others)}; what is read by its suffix ends in "
                f"{', '.join(FILE_TYPES)}, also .gz and .zst. Give `--file_type json`, csv or parquet."
            )
        try:
            held = sorted({one.suffix for one in base.iterdir() if one.is_file() and one.suffix})
        except PermissionError as error:
            raise make_read_error(error, base) from error
        holds = f"files ending in {', '.join(held[:8])}" if held else "no files of its own"
        return f"The folder `{base}` holds {holds}. Give a glob in quotes, a file or a folder."

    def _make_bucket_hint(self) -> str:
        base = self._make_s3_glob().get_root_node().folder
        folders, objects = list_dir(base)
        names = [*(f"{one.name}/" for one in folders), *(one.name for one in objects)]
        if not names:
            return f"There is nothing below `{base}`. `aws s3 ls` shows what a bucket holds."
        shown = ", ".join(f"`{name}`" for name in names[:8])
        return f"`{base}` holds {shown}. Give a glob in quotes, a folder or an object."


def _format_suffixes(counts: Counter[str]) -> str:
    """The most frequent endings; of equals, by name."""
    most = sorted(counts, key=lambda end: (-counts[end], end))
    shown = [end or "no suffix" for end in most[:8]]
    return ", ".join([*shown, *(["others"] if len(most) > len(shown) else [])])


def _split_glob(pattern: Path) -> tuple[Path, str]:
    """Cut a glob before its first component with a wildcard."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first]), os.path.join(*parts[first:])  # noqa: PTH118 - a glob is no path


def _expand_glob(base: Path, rest: str, *, recursive: bool) -> set[Path]:
    deep = recursive and not rest.startswith("**")
    pattern = f"**{os.sep}{rest}" if deep else rest
    return {base / name for name in glob.glob(pattern, root_dir=base, recursive=True)}  # noqa: PTH207 - Path.glob would find hidden files
