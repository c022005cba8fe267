"""Finds the log files of a glob, a file or a folder, on disk or in S3.

`FileDiscovery` is the entry point. `ObjectGlob` lists buckets without visiting folders outside the
time range. `LakeTable` handles Delta and Iceberg tables, whose files may not be read one by one.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
import polars as pl
from msgspec.structs import replace

from morpheus.core.stage import Values, list_values
from morpheus.errors import UsageError
from morpheus.sources.compression import (
    FILE_TYPES,
    OTHER_PACKED_SUFFIXES,
    LogPath,
    detect_file_type,
    is_rotated,
    make_read_error,
)
from morpheus.sources.time_range import TimeRange, begins_date, parse_interval
from morpheus.storage.object_store import (
    PAGE_SIZE,
    ObjectPath,
    RequestThreads,
    head_object,
    is_object_url,
    list_after,
    list_dir,
    list_recursive,
    storage_options,
)
from morpheus.text import describe_no_folder, suggest_path

if TYPE_CHECKING:
    from deltalake import DeltaTable

ANY_DEPTH = "**"
"""Part of a glob that matches any number of folders."""
_EVERYTHING_BELOW = (ANY_DEPTH, "*")
_MAX_CONCURRENCY = 16
_MAX_LEVELS = 12
"""Levels of folders in which dates are looked for."""
_SECONDS_PER_DAY = 86_400


class GlobNode(msgspec.Struct, frozen=True):
    """A folder of a bucket, and the pattern to match in it.

    Attributes:
        folder: The folder.
        pattern: Parts of a glob; the last one matches objects.
    """

    folder: ObjectPath
    pattern: tuple[str, ...]


class GlobResult(msgspec.Struct):
    """Result of an `ObjectGlob`.

    Attributes:
        objects: The objects found.
        outside_folders: Number of folders that were not visited because of their dates.
        skipped_folders: Folders that were not visited because of their names.
    """

    objects: list[ObjectPath] = msgspec.field(default_factory=list)
    outside_folders: int = 0
    skipped_folders: set[ObjectPath] = msgspec.field(default_factory=set)


class ObjectGlob(msgspec.Struct, frozen=True):
    """Finds the objects of a bucket that match a glob.

    It lists folder by folder as long as folders may be skipped for their names or dates. Below that
    it lists everything in one request sequence, which is faster.

    Attributes:
        pattern: A glob that begins with `s3://`, a folder, or an object.
        recursive: Also match the last part of the glob in every subfolder.
        skip_dirs: Names of folders to skip.
        time_range: Time range of the events; None for all.
    """

    pattern: str
    recursive: bool = True
    skip_dirs: tuple[str, ...] = ()
    time_range: TimeRange | None = None

    def find_objects(self) -> GlobResult:
        """Find the objects.

        Raises:
            UsageError: The bucket does not exist, or listing it is denied.
            TransientError: S3 does not respond.
        """
        exact = None if self.pattern.endswith("/") else self._find_exact()
        if exact is not None:
            return GlobResult([exact])
        result, root = GlobResult(), self.get_root_node()
        level, base_depth = [root], self._base_depth(root.folder)
        with RequestThreads(_MAX_CONCURRENCY) as pool:
            while level:
                next_level: list[GlobNode] = []
                for children, objects in pool.map(partial(self._expand_node, base_depth), level):
                    result.objects += objects
                    others = {n.folder for n in children if n.folder.name in self.skip_dirs}
                    result.skipped_folders |= others
                    logs = [n for n in children if n.folder not in others]
                    wanted = [n for n in logs if self._may_overlap(n.folder, base_depth)]
                    result.outside_folders += len(logs) - len(wanted)
                    next_level += wanted
                level = next_level
        return result

    def _find_exact(self) -> ObjectPath | None:
        path = ObjectPath.parse(self.pattern)
        return None if has_magic(path.key) or not path.key else head_object(path)

    def get_root_node(self) -> GlobNode:
        """Return the folder above the first wildcard, and the pattern below it."""
        path = ObjectPath.parse(self.pattern)
        parts = [part for part in path.key.split("/") if part]
        first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
        rest = parts[first:] or [ANY_DEPTH, "*"]
        if self.recursive and rest[-1] != ANY_DEPTH and rest[-2:-1] != [ANY_DEPTH]:
            rest = [*rest[:-1], ANY_DEPTH, rest[-1]]
        if self.pattern.endswith("/") and len(parts) > first:
            rest = [*parts[first:], ANY_DEPTH, "*"]
        if rest[-1] == ANY_DEPTH:
            rest.append("*")
        return GlobNode(path.with_key("/".join(parts[:first])), tuple(rest))

    def find_branches(self) -> dict[ObjectPath, bool]:
        """Find folders that contain all matching objects, such as one per account and region.

        They are the folders whose subfolders are dates, and those without subfolders. Folders in
        `skip_dirs` are left out.

        Returns:
            For each folder, whether only the objects directly in it are meant.

        Raises:
            UsageError: The bucket does not exist, or listing it is denied.
            TransientError: The object store does not respond.
        """
        branches, level = dict[ObjectPath, bool](), [self.get_root_node()]
        with RequestThreads(_MAX_CONCURRENCY) as pool:
            for _ in range(_MAX_LEVELS):
                next_level: list[GlobNode] = []
                for node, found in zip(level, pool.map(self._find_folders, level), strict=True):
                    children, has_objects = found
                    next_level += children
                    if has_objects or not children:
                        branches[node.folder] = bool(children)
                level = next_level
        return branches | {node.folder: False for node in level}

    def _find_folders(self, node: GlobNode) -> tuple[list[GlobNode], bool]:
        """Return the subfolders in which to look for branches, and whether there are objects."""
        head, *rest = node.pattern
        if rest and head != ANY_DEPTH and not has_magic(head):
            return [GlobNode(node.folder / head, tuple(rest))], False
        first = next(list_after(node.folder), [])
        if len(first) == PAGE_SIZE and all(path.parent == node.folder for path in first):
            return [], True  # its objects may be too many to list at once
        folders, objects = list_dir(node.folder)
        if any(begins_date(folder.name) for folder in folders):
            return [], bool(objects)
        logs = [folder for folder in folders if folder.name not in self.skip_dirs]
        children = [child for folder in logs for child in self._iter_child_nodes(node, folder)]
        return children, bool(objects)

    def matches(self, path: ObjectPath) -> bool:
        """Return whether an object of the bucket matches."""
        pattern, root = ObjectPath.parse(self.pattern), self.get_root_node()
        if (path.scheme, path.bucket) != (pattern.scheme, pattern.bucket):
            return False
        if path.key == pattern.key:
            return True
        depth = len(root.folder.parts)
        return path.parts[:depth] == root.folder.parts and self._matches_below(root, path)

    def _base_depth(self, base: ObjectPath) -> int:
        return 0 if self.time_range is None else self.time_range.base_depth(base.parts)

    def _expand_node(
        self, base_depth: int, node: GlobNode
    ) -> tuple[list[GlobNode], list[ObjectPath]]:
        """Return the child nodes of a node, and the matching objects in it."""
        head, *rest = node.pattern
        if rest and head != ANY_DEPTH and not has_magic(head):
            return [GlobNode(node.folder / head, tuple(rest))], []
        if head == ANY_DEPTH and not self._can_prune(node.folder, base_depth):
            return [], [
                path for path in list_recursive(node.folder) if self._matches_below(node, path)
            ]
        folders, objects = list_dir(node.folder)
        children = [child for folder in folders for child in self._iter_child_nodes(node, folder)]
        return children, [path for path in objects if matches_glob([path.name], node.pattern)]

    def _iter_child_nodes(self, node: GlobNode, folder: ObjectPath) -> Iterator[GlobNode]:
        head, *rest = node.pattern
        if self.recursive and self._names_folder(node.pattern, folder):
            yield GlobNode(folder, _EVERYTHING_BELOW)
        elif head == ANY_DEPTH and not folder.name.startswith("."):
            yield GlobNode(folder, node.pattern)
        elif rest and head != ANY_DEPTH and fnmatchcase(folder.name, head):
            yield GlobNode(folder, tuple(rest))

    def _can_prune(self, folder: ObjectPath, base_depth: int) -> bool:
        """Return whether folders below may be skipped for their dates."""
        if self.time_range is None:
            return False
        interval = parse_interval(folder.parts[base_depth:])
        if interval is None:
            return True
        return (interval.end - interval.start).total_seconds() > _SECONDS_PER_DAY

    def _may_overlap(self, folder: ObjectPath, base_depth: int) -> bool:
        return self.time_range is None or self.time_range.may_overlap_dir(folder.parts[base_depth:])

    def _names_folder(self, pattern: tuple[str, ...], folder: ObjectPath) -> bool:
        """Return whether the last part of a pattern, with a wildcard, names a folder."""
        last = [part for part in pattern if part != ANY_DEPTH]
        return last != ["*"] and len(last) == 1 and _matches_part([folder.name], last[0])

    def _matches_below(self, node: GlobNode, path: ObjectPath) -> bool:
        parts = path.parts[len(node.folder.parts) :]
        patterns = [
            node.pattern,
            *([(*node.pattern, *_EVERYTHING_BELOW)] if self.recursive else []),
        ]
        return any(matches_glob(parts, pattern) for pattern in patterns)


def matches_glob(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a glob; `**` matches zero or more folders.

    >>> matches_glob(["2024", "05", "a.json"], ["**", "*.json"])
    True
    >>> matches_glob([".git", "a"], ["**", "*"])
    False
    """
    if not pattern:
        return not parts
    if pattern[0] == ANY_DEPTH:
        without = matches_glob(parts, pattern[1:])
        return without or (_matches_part(parts[:1]) and matches_glob(parts[1:], pattern))
    return _matches_part(parts[:1], pattern[0]) and matches_glob(parts[1:], pattern[1:])


def _matches_part(part: Sequence[str], pattern: str = "*") -> bool:
    """Return whether a part exists and matches. A hidden part needs a pattern with a dot."""
    hidden = bool(part) and part[0].startswith(".") and not pattern.startswith(".")
    return bool(part) and not hidden and fnmatchcase(part[0], pattern)


DELTA, ICEBERG = "Delta", "Iceberg"
_DELTA_LOG, _ICEBERG_LOG, _ICEBERG_STATE = "_delta_log", "metadata", ".metadata.json"


class LakeTable(msgspec.Struct, frozen=True):
    """A Delta or Iceberg table.

    Attributes:
        folder: Folder of the table.
        table_format: `Delta` or `Iceberg`.
    """

    folder: Path | ObjectPath
    table_format: str

    def make_error(self, option: str) -> UsageError:
        """Make the error for reading files of the table one by one.

        Args:
            option: The option that named the files.
        """
        article = "a" if self.table_format == DELTA else "an"
        problem = (
            f"{option}: `{self.folder}` is {article} {self.table_format} table. Only its log shows "
            "which of its files are deleted or rewritten."
        )
        if self.table_format == DELTA:
            return UsageError(
                f"{problem} Give the table itself, {option}={self.folder}, or use "
                "`--file_type=parquet` to read all files."
            )
        return UsageError(
            f"{problem} Iceberg's log is not supported. Export the table to Parquet, for example "
            "with Athena's UNLOAD. If its rows are never deleted or rewritten, read all files: "
            f"{option}='{self.folder}/data/**/*.parquet' --file_type=parquet."
        )


def is_delta_table(folder: Path | ObjectPath) -> bool:
    """Return whether a folder has a Delta log."""
    return any(_iter_dir(folder / _DELTA_LOG))


def detect_tables(paths: Iterable[Path | ObjectPath]) -> set[LakeTable]:
    """Find the tables that some files belong to.

    A table is found by its log, among the files or next to folders of Parquet files. In a bucket
    this takes one or two requests per such folder, not counting partitions.
    """
    found, roots = set[LakeTable](), set[Path | ObjectPath]()
    for relative in paths:
        path = relative.absolute() if isinstance(relative, Path) else relative
        if _DELTA_LOG in path.parts:
            found.add(LakeTable(_find_parent_of(path, _DELTA_LOG), DELTA))
        elif path.parts[-2:-1] == (_ICEBERG_LOG,) and path.name.endswith(_ICEBERG_STATE):
            found.add(LakeTable(path.parent.parent, ICEBERG))
        elif path.suffix.lower() == ".parquet":
            roots.add(_find_partition_root(path.parent))
    known = {table.folder for table in found}
    for root in roots - known:
        found |= {table for table in _find_adjacent_table(root) if table.folder not in known}
    return found


def _find_parent_of(path: Path | ObjectPath, name: str) -> Path | ObjectPath:
    while path.name != name:
        path = path.parent
    return path.parent


def _find_partition_root(folder: Path | ObjectPath) -> Path | ObjectPath:
    """Return the folder that contains the partition folders."""
    while "=" in folder.name:
        folder = folder.parent
    return folder


def _find_adjacent_table(folder: Path | ObjectPath) -> Iterator[LakeTable]:
    """Find the table whose log is next to some Parquet files."""
    if is_delta_table(folder):
        yield LakeTable(folder, DELTA)
    parent = folder.parent
    if folder.name == "data" and any(
        path.name.endswith(_ICEBERG_STATE) for path in _iter_dir(parent / _ICEBERG_LOG)
    ):
        yield LakeTable(parent, ICEBERG)


def _iter_dir(folder: Path | ObjectPath) -> Iterator[Path | ObjectPath]:
    if isinstance(folder, ObjectPath):
        yield from list_recursive(folder)
    elif folder.is_dir():
        yield from folder.iterdir()


def list_active_files(folder: Path | ObjectPath, option: str) -> list[Path | ObjectPath]:
    """List the current files of a Delta table, by its log.

    Args:
        folder: Folder of the table.
        option: The option that named it, for messages.

    Raises:
        UsageError: The extra is not installed, or the table uses a feature that is not supported.
    """
    try:
        from deltalake import DeltaTable  # noqa: PLC0415 - an extra
        from deltalake.exceptions import DeltaError  # noqa: PLC0415 - the same
    except ImportError as error:
        raise UsageError(
            f"{option}: `{folder}` is a Delta table, which needs an extra: "
            "`pip install 'morpheus-dfp[delta]'`."
        ) from error
    try:
        # deltalake finds the credentials for a bucket itself.
        options = storage_options() if isinstance(folder, ObjectPath) else None
        table = DeltaTable(str(folder), storage_options=options)
        files = pl.DataFrame(table.get_add_actions(flatten=True)).select("path", "size_bytes")
        reason = _find_unreadable_reason(table, files["path"].to_list())
    except (DeltaError, OSError) as error:
        reason = f"its log cannot be read ({str(error).strip().splitlines()[0]})"
    if reason:
        raise UsageError(
            f"{option}: `{folder}` is a Delta table, but {reason}. Write a plain copy, for example "
            "with Spark's INSERT OVERWRITE DIRECTORY ... USING parquet, and read the copy."
        )
    return [_join_path(folder, unquote(path), size) for path, size in files.iter_rows()]


def _find_unreadable_reason(table: DeltaTable, paths: list[str]) -> str | None:
    """Return why the active files do not represent the table; None if they do."""
    metadata = table.metadata()
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        return "its columns have other names in its files (column mapping)"
    if any(batch.num_rows for batch in table.deletion_vectors()):
        return "rows in its files are deleted (deletion vectors; use REORG TABLE ... APPLY (PURGE))"
    if any("://" in path for path in paths):
        return "its files are stored elsewhere (a shallow clone)"
    if any(f"{name}=" not in path for name in metadata.partition_columns for path in paths):
        return "its folders are not named after its partitions"
    return None


def _join_path(folder: Path | ObjectPath, name: str, size: int) -> Path | ObjectPath:
    if isinstance(folder, Path):
        return folder / name
    return folder.with_key((folder / name).key, size)


UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Suffixes of files that are still being written or downloaded."""


MARKERS = (
    ("marker file", r"/(?:_SUCCESS|_started_\w+|_committed_\w+|_common_metadata|[^/]+\.crc)$"),
    ("unfinished file", r"\.(?:part|partial|tmp|crdownload)$"),
)
"""Files that tools write beside logs: what they are, and a pattern of their path."""
_MAX_EXAMPLES = 4


class NotRead(msgspec.Struct, frozen=True):
    """Files or folders that match and were not read.

    Attributes:
        what: What they are, in the singular.
        count: How many.
        examples: Names of the first few.
    """

    what: str
    count: int
    examples: tuple[str, ...]

    @classmethod
    def describe(cls, what: str, paths: Iterable[LogPath]) -> tuple[NotRead, ...]:
        """Describe some files or folders; nothing if there are none."""
        names = sorted(map(str, paths))
        return (cls(what, len(names), tuple(names[:_MAX_EXAMPLES])),) if names else ()

    def __str__(self) -> str:
        more = self.count - len(self.examples)
        shown = ", ".join([*self.examples, *([f"{more:,} more"] if more else [])])
        noun, _, rest = self.what.partition(" ")
        return f"{self.count:,} {noun}{'s' if self.count > 1 else ''} {rest}: {shown}"


@dataclass(frozen=True)
class DiscoveredFiles:
    """The matching files, and counts of what was skipped.

    Attributes:
        paths: The files, in sorted order.
        skipped_files: Number of files skipped for the name of their folder.
        outside_files: Number of files outside the time range, by the dates in their path.
        outside_folders: Number of folders outside the time range. Their files are not counted.
        kinds: Number of files of other kinds, by kind. They are in `skipped_files`.
        not_read: Files and folders that were not read for another reason.
    """

    paths: list[LogPath]
    skipped_files: int
    outside_files: int = 0
    outside_folders: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    not_read: tuple[NotRead, ...] = ()

    @property
    def all_outside(self) -> bool:
        """Whether there are files or folders, but only outside the time range."""
        return not self.paths and bool(self.outside_files or self.outside_folders)

    @classmethod
    def merge(cls, parts: Sequence[DiscoveredFiles], limit: int | None) -> DiscoveredFiles:
        """Join the files of several patterns. A file that several patterns match counts once.

        Args:
            parts: The files of each pattern.
            limit: Maximum number of files, in sorted order.
        """
        found = {_absolute(path): path for part in reversed(parts) for path in part.paths}
        totals = {
            each.name: sum((getattr(part, each.name) for part in parts[1:]), start)
            for each in fields(cls)
            for start in [getattr(parts[0], each.name)]
            if each.name != "paths"
        }
        return cls(paths=sorted(found.values(), key=_sort_key)[:limit], **totals)


def _absolute(path: LogPath) -> LogPath:
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path  # noqa: PTH100 - links stay


def _sort_key(path: LogPath) -> tuple[bool, LogPath]:
    """Return the key of a path in an order of local files and objects."""
    return isinstance(path, ObjectPath), path


class FileDiscovery(msgspec.Struct, frozen=True):
    """Finds the files of one or more patterns.

    Attributes:
        pattern: A glob, a file or a folder, on disk or in a bucket (`s3://bucket/...`); or several.
        option: The option that gave the pattern, for messages.
        recursive: Also match the part of the glob from its first wildcard in every subfolder.
        max_files: Maximum number of files, in sorted order; None or -1 for all.
        file_type: `csv`, `json`, `parquet`, or `auto` to go by suffix and skip other files.
        skip_dirs: Names of folders whose files are skipped and counted.
        other_files: Files that are skipped and counted: what they are, and a pattern of their path.
        time_range: Time range of the events; None for all.
    """

    pattern: Values
    option: str = "--input_glob"
    recursive: bool = True
    max_files: int | None = None
    file_type: str = "auto"
    skip_dirs: tuple[str, ...] = ()
    time_range: TimeRange | None = None
    other_files: tuple[tuple[str, str], ...] = ()

    def find(self) -> DiscoveredFiles:
        """List the current files, without hidden and unfinished ones.

        Raises:
            UsageError: The bucket does not exist, or listing it is denied.
            TransientError: S3 does not respond.
        """
        if isinstance(self.pattern, str):
            return self._find_one()
        unlimited = [replace(part, max_files=None).find() for part in self.split()]
        return DiscoveredFiles.merge(unlimited, self._limit)

    def split(self) -> list[FileDiscovery]:
        """Return what finds the files of each pattern."""
        return [replace(self, pattern=each) for each in list_values(self.pattern)]

    def describe(self) -> str:
        """Return the patterns, for a message."""
        return ", ".join(list_values(self.pattern))

    @property
    def _glob(self) -> str:
        """The only pattern."""
        [pattern] = list_values(self.pattern)
        return pattern

    @property
    def _limit(self) -> int | None:
        return None if self.max_files in {None, -1} else self.max_files

    def _find_one(self) -> DiscoveredFiles:
        problems = _WalkProblems()
        matching, outside_folders = self._find_matching(problems)
        if self._is_lake_table(matching):
            logs = sorted(list_active_files(self._pattern_path(), self.option))
            return self._select(logs, 0, Counter(), problems.describe())
        return self._sort_out(matching, outside_folders, problems.describe())

    def find_branches(self) -> dict[ObjectPath, bool]:
        """Find the folders of a bucket to list one by one; see `ObjectGlob.find_branches`."""
        if not isinstance(self.pattern, str):
            branches = dict[ObjectPath, bool]()
            for each in self.split():
                for folder, is_shallow in each.find_branches().items():
                    branches[folder] = is_shallow and branches.get(folder, True)
            return branches
        found = self._make_object_glob().find_branches()
        kinds = [re.compile(pattern) for _, pattern in self.other_files]
        return {
            folder: is_shallow
            for folder, is_shallow in found.items()
            if not any(kind.search(f"/{folder}/") for kind in kinds)
        }

    def choose(self, objects: Sequence[ObjectPath]) -> DiscoveredFiles:
        """Choose among objects of the bucket as `find` does; those that do not match are left out.

        Args:
            objects: Objects that were listed or announced.
        """
        if not isinstance(self.pattern, str):
            return DiscoveredFiles.merge([each.choose(objects) for each in self.split()], None)
        glob = self._make_object_glob()
        return self._sort_out({path for path in objects if glob.matches(path)}, 0, ())

    def _sort_out(
        self, matching: set[LogPath], outside_folders: int, not_read: tuple[NotRead, ...]
    ) -> DiscoveredFiles:
        """Select the logs among the matching files, and count the others."""
        matching, kinds = self._split_kinds(matching)
        logs = sorted(path for path in matching if self._is_log(path))
        others = [path for path in matching.difference(logs) if _is_file(path)]
        broken = [path for path in others if isinstance(path, Path) and not path.is_file()]
        not_read += NotRead.describe("link to nothing", broken)
        not_read += NotRead.describe("file with another suffix", set(others).difference(broken))
        return self._select(logs, outside_folders, kinds, not_read)

    def _select(
        self,
        logs: Sequence[LogPath],
        outside_folders: int,
        kinds: Counter[str],
        not_read: tuple[NotRead, ...],
    ) -> DiscoveredFiles:
        kept = [path for path in logs if not set(self.skip_dirs) & set(path.parts)]
        paths = kept if self.time_range is None else self._filter_time_range(kept, self.time_range)
        outside_files = len(kept) - len(paths)
        skipped = len(logs) - len(kept) + kinds.total()
        return DiscoveredFiles(
            paths[: self._limit], skipped, outside_files, outside_folders, kinds, not_read
        )

    def _split_kinds(self, paths: Iterable[LogPath]) -> tuple[set[LogPath], Counter[str]]:
        """Return the files that may be logs, and count the others by kind."""
        patterns = [(kind, re.compile(text)) for kind, text in (*self.other_files, *MARKERS)]
        kept, kinds = set[LogPath](), Counter[str]()
        for path in paths:
            name = f"/{path}"
            kind = next((kind for kind, pattern in patterns if pattern.search(name)), None)
            if kind is None:
                kept.add(path)
            elif _is_file(path):
                kinds[kind] += 1
        return kept, kinds

    def _is_lake_table(self, matching: set[LogPath]) -> bool:
        """Return whether the pattern names a Delta table.

        Raises:
            UsageError: The pattern matches files of other tables.
        """
        found, path = detect_tables(matching), self._pattern_path()
        mine = LakeTable(path.absolute() if isinstance(path, Path) else path, DELTA)
        others = sorted(found - {mine}, key=lambda table: str(table.folder))
        if others and self.file_type == "auto":
            raise others[0].make_error(self.option)
        return mine in found

    def _pattern_path(self) -> LogPath:
        """Return the pattern as a path, which does not exist if it is a glob."""
        if is_object_url(self._glob):
            return ObjectPath.parse(self._glob.rstrip("/"))
        return Path(self._glob).expanduser()

    def _filter_time_range(self, paths: list[LogPath], time_range: TimeRange) -> list[LogPath]:
        depth = time_range.base_depth(self._base_parts())
        return [
            path for path in paths if time_range.may_contain_file(path.parts[depth:-1], path.name)
        ]

    def _base_parts(self) -> tuple[str, ...]:
        """Return the folders of the glob before its first wildcard."""
        if is_object_url(self._glob):
            return self._make_object_glob().get_root_node().folder.parts
        return self._base_dir().parts

    def _base_dir(self) -> Path:
        path = Path(self._glob).expanduser()
        return path if path.is_dir() else _split_glob(path)[0]

    def require(self, *, may_be_outside: bool = False) -> DiscoveredFiles:
        """List the current files, at least one of each pattern.

        Args:
            may_be_outside: Accept that all files are outside the time range.

        Raises:
            UsageError: No file matches a pattern.
        """
        if not isinstance(self.pattern, str):
            parts = [
                replace(part, max_files=None).require(may_be_outside=True) for part in self.split()
            ]
            found = DiscoveredFiles.merge(parts, self._limit)
            if found.paths or may_be_outside:
                return found
            return self.split()[0].require()
        found = self._find_one()
        if not found.paths and not (may_be_outside and found.all_outside):
            hint = self._make_hint(found)
            raise UsageError(f"{self.option}: no log file matches `{self._glob}`. {hint}")
        return found

    def detect_type(self, path: LogPath) -> str:
        """Return how to read a file: `csv`, `json` or `parquet`."""
        return detect_file_type(path) or "json" if self.file_type == "auto" else self.file_type

    def would_find(self, path: LogPath) -> bool:
        """Return whether a file of this name would be read as a log, if there were one."""
        return any(each._would_find_one(path) for each in self.split())  # noqa: SLF001 - the same

    def _would_find_one(self, path: LogPath) -> bool:
        if isinstance(path, ObjectPath):
            return is_object_url(self._glob) and bool(self.choose([path]).paths)
        if is_object_url(self._glob):
            return False
        if set(self.skip_dirs) & set(path.parts) or not self._split_kinds({path})[0]:
            return False
        return self._has_log_name(path) and self._matches_local(path)

    def _matches_local(self, path: Path) -> bool:
        """Return whether a path on disk, of a file or of nothing, matches the pattern."""
        pattern = Path(self._glob).expanduser()
        if not pattern.is_dir() and not glob.has_magic(self._glob):
            return path.absolute() == pattern.absolute()
        base, rest = (pattern, "*") if pattern.is_dir() else _split_glob(pattern)
        place, root = path.absolute().parent.resolve() / path.name, base.resolve()
        if not place.is_relative_to(root):
            return False
        parts, wanted = place.relative_to(root).parts, Path(rest).parts
        return matches_glob(parts, (ANY_DEPTH, *wanted) if self.recursive else wanted)

    def _is_log(self, path: LogPath) -> bool:
        is_there = not isinstance(path, Path) or path.is_file()
        return is_there and self._has_log_name(path)

    def _has_log_name(self, path: LogPath) -> bool:
        if path.suffix.lower() in UNFINISHED_SUFFIXES:
            return False
        if self.file_type != "auto":
            return True
        # A rotated file is read only if the pattern names it: it may be a copy.
        named = Path(self._glob).name not in {"*", ANY_DEPTH} and not self._pattern_is_folder()
        return detect_file_type(path) is not None and (named or not is_rotated(path))

    def _pattern_is_folder(self) -> bool:
        is_object = is_object_url(self._glob)
        return self._glob.endswith("/") if is_object else Path(self._glob).expanduser().is_dir()

    def _find_matching(self, problems: _WalkProblems | None = None) -> tuple[set[LogPath], int]:
        """Return the matching files, and the number of folders outside the time range."""
        if is_object_url(self._glob):
            result = self._make_object_glob().find_objects()
            if problems is not None:
                problems.skipped |= result.skipped_folders
            return set(result.objects), result.outside_folders
        return set(self._glob_local(problems)), 0

    def _make_object_glob(self) -> ObjectGlob:
        return ObjectGlob(self._glob, self.recursive, self.skip_dirs, self.time_range)

    def _glob_local(self, problems: _WalkProblems | None = None) -> set[Path]:
        problems = problems or _WalkProblems()
        path = Path(self._glob).expanduser()
        if path.is_dir():
            return _expand_glob(path, "*", problems, recursive=self.recursive)
        if path.exists() or not glob.has_magic(self._glob):
            return {path}
        base, rest = _split_glob(path)
        matching = _expand_glob(base, rest, problems, recursive=self.recursive)
        if not self.recursive and not self._glob.endswith(("/", os.sep)):
            return matching
        if self.recursive and Path(rest).name in {"*", ANY_DEPTH}:
            return matching  # these match what is below, too
        folders = [p for p in matching if detect_file_type(p) is None and p.is_dir()]
        below = (
            _expand_glob(folder, "*", problems, recursive=self.recursive) for folder in folders
        )
        return matching.union(*below)

    def _make_hint(self, found: DiscoveredFiles) -> str:
        if found.outside_files or found.outside_folders:
            return (
                f"The time range is {self.time_range}; by their dates, {found.outside_files:,} "
                f"files and {found.outside_folders:,} folders are outside it. Change --start_time, "
                "--end_time or --duration."
            )
        if found.kinds:
            kinds = ", ".join(f"{kind} ({n:,})" for kind, n in sorted(found.kinds.items()))
            return f"What matches is no log of this kind: {kinds}. Give the folder of the logs."
        if is_object_url(self._glob):
            return self._make_bucket_hint()
        base = self._base_dir()
        if not base.is_dir():
            missing = describe_no_folder(base)
            return f"{missing[0].upper()}{missing[1:]} Give a glob in quotes, a file or a folder."
        matching = Counter(
            "".join(path.suffixes[-2:]) for path in self._glob_local() if path.is_file()
        )
        if matching:
            return _suggest_suffixes(matching)
        try:
            suffixes = sorted({p.suffix for p in base.iterdir() if p.is_file() and p.suffix})
        except PermissionError as error:
            raise make_read_error(error, base) from error
        content = f"files ending in {', '.join(suffixes[:8])}" if suffixes else "no files"
        meant = "" if glob.has_magic(self._glob) else suggest_path(self._glob)
        return (
            f"The folder `{base}` has {content}.{meant} Give a glob in quotes, a file or a folder."
        )

    def _make_bucket_hint(self) -> str:
        base = self._make_object_glob().get_root_node().folder
        folders, objects = list_dir(base)
        names = [*(f"{folder.name}/" for folder in folders), *(path.name for path in objects)]
        if not names:
            return f"`{base}` is empty. `aws s3 ls` lists the contents of a bucket."
        shown = ", ".join(f"`{name}`" for name in names[:8])
        return f"`{base}` contains {shown}. Give a glob in quotes, a folder or an object."


def _suggest_suffixes(matching: Counter[str]) -> str:
    """Say which suffixes are read, and what to do with files that have others."""
    found = f"Matching files have the suffixes {_format_suffixes(matching)}"
    if all(suffix.endswith(OTHER_PACKED_SUFFIXES) for suffix in matching):
        return f"{found}, which are not read. Unpack them, or pack them with gzip or zstd."
    return (
        f"{found}; log files have {', '.join(FILE_TYPES)}, also with .gz or .zst. Give "
        "`--file_type json`, csv or parquet."
    )


def _format_suffixes(counts: Counter[str]) -> str:
    """List the most frequent suffixes, by name where equally frequent."""
    ordered = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    shown = [suffix or "no suffix" for suffix in ordered[:8]]
    return ", ".join([*shown, *(["others"] if len(ordered) > len(shown) else [])])


def _split_glob(pattern: Path) -> tuple[Path, str]:
    """Split a glob before its first part with a wildcard."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first]), os.path.join(*parts[first:])  # noqa: PTH118 - a glob is no path


class _WalkProblems(msgspec.Struct):
    """Folders that could not be searched.

    Attributes:
        unreadable: Folders without read access.
        loops: Links to a folder above them.
        skipped: Folders of another format, by their names.
    """

    unreadable: set[Path] = msgspec.field(default_factory=set)
    loops: set[Path] = msgspec.field(default_factory=set)
    skipped: set[ObjectPath] = msgspec.field(default_factory=set)

    def describe(self) -> tuple[NotRead, ...]:
        return (
            *NotRead.describe("folder without read access", self.unreadable),
            *NotRead.describe("link to a folder above it", self.loops),
            *NotRead.describe("folder of another format", self.skipped),
        )


def _is_file(path: LogPath) -> bool:
    if isinstance(path, ObjectPath):
        return not path.key.endswith("/")
    return path.is_file() or (path.is_symlink() and not path.exists())


def _expand_glob(base: Path, rest: str, problems: _WalkProblems, *, recursive: bool) -> set[Path]:
    """Find the files and folders below a folder that match a glob, as `glob.glob` does.

    Links are followed, except to a folder above them, which would have no end.
    """
    parts = Path(rest).parts
    if ".." in parts:
        names = glob.glob(rest, root_dir=base, recursive=True)  # noqa: PTH207 - Path.glob would find hidden files
        return {base / name for name in names}
    pattern = (ANY_DEPTH, *parts) if recursive and parts[0] != ANY_DEPTH else parts
    found = set[Path]()
    try:
        above = frozenset(_identify(folder) for folder in (base, *base.resolve().parents))
    except OSError:
        above = frozenset()
    _walk(base, frozenset([pattern]), above, found, problems)
    return found


def _walk(
    folder: Path,
    patterns: frozenset[tuple[str, ...]],
    above: frozenset[tuple[int, int]],
    found: set[Path],
    problems: _WalkProblems,
) -> None:
    """Collect what matches one of several patterns in a folder.

    Args:
        folder: The folder.
        patterns: Parts of globs.
        above: Identities of the folder and of those above it.
        found: Gets the files and folders.
        problems: Gets the folders that cannot be searched.
    """
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except NotADirectoryError:
        return
    except OSError:
        problems.unreadable.add(folder)
        return
    # `**` matches no folder, too; at the end it matches everything.
    active = {part for each in patterns for part in _skip_any_depth(each)}
    for entry in entries:
        deeper = {each for each in active if each[0] == ANY_DEPTH and _matches_part([entry.name])}
        matching = {each for each in active - deeper if _matches_part([entry.name], each[0])}
        path = folder / entry.name
        if any(len(each) == 1 for each in matching):
            found.add(path)
        inner = frozenset(deeper | {each[1:] for each in matching if len(each) > 1})
        if inner and _is_folder(entry):
            identity = _identify(path)
            if identity in above:
                problems.loops.add(path)
            else:
                _walk(path, inner, above | {identity}, found, problems)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether something in a folder is a folder. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _skip_any_depth(pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield pattern
    if pattern[0] == ANY_DEPTH:
        yield from _skip_any_depth(pattern[1:] or ("*",))


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
