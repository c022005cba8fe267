"""Which files to read: those that a glob, a file or a folder stands for, on disk or in S3."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from morpheus import bucket
from morpheus.bucket import S3Path, is_s3_url
from morpheus.errors import UsageError
from morpheus.sources.files import FILE_TYPES, LogPath, detect_file_type, make_read_error
from morpheus.sources.lake_tables import DELTA, LakeTable, list_active_files, detect_tables
from morpheus.sources.period import TimeRange
from morpheus.sources.walk import S3Glob

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
        paths = others if self.time_range is None else self._filter_time_range(others, self.time_range)
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
        return [path for path in paths if time_range.may_contain_file(path.parts[ignored:-1], path.name)]

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
        if path.suffix.lower() in UNFINISHED_SUFFIXES or (isinstance(path, Path) and not path.is_file()):
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
        others = Counter("".join(path.suffixes[-2:]) for path in self._glob_local() if path.is_file())
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
        folders, objects = bucket.list_dir(base)
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
