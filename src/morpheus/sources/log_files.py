"""Which files to read: those that a glob, a file or a folder stands for, on disk or in S3."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from morpheus import bucket
from morpheus.bucket import Object, is_address
from morpheus.errors import UsageError
from morpheus.sources.files import KINDS, Log, kind, unreadable
from morpheus.sources.lake_tables import DELTA, LakeTable, live_files, tables_of
from morpheus.sources.period import Period
from morpheus.sources.walk import Walk

UNFINISHED = (".part", ".partial", ".tmp", ".crdownload")


@dataclass(frozen=True)
class Found:
    """The files that match, in sorted order, and what was left out.

    Attributes:
        paths: The files.
        skipped: Files left out by their folder.
        outside: Files left out by the dates of their folder, or by their own.
        outside_folders: Folders left out so, of which nobody has looked how many files they hold.
    """

    paths: list[Log]
    skipped: int
    outside: int = 0
    outside_folders: int = 0


@dataclass(frozen=True)
class LogFiles:
    """The files that a pattern stands for.

    Attributes:
        pattern: A glob, a file or a folder, on disk or, as `s3://bucket/...`, in a bucket.
        option: The option that gave it, named in messages.
        recursive: Also match, in every subfolder, what follows the first wildcard's folder.
        max_files: Take the first so many in sorted order; None or -1 for all.
        file_type: `csv`, `json`, `parquet`, or `auto` to go by suffix, leaving out other files.
        without: Folders whose files are left out, and counted.
        period: The period whose events are wanted; None for all.
    """

    pattern: str
    option: str = "--input_glob"
    recursive: bool = True
    max_files: int | None = None
    file_type: str = "auto"
    without: tuple[str, ...] = ()
    period: Period | None = None

    def find(self) -> Found:
        """List the files there are now; hidden and unfinished ones are none.

        Raises:
            UsageError: There is no such bucket, or it must not be listed.
            Unavailable: S3 does not answer.
        """
        matching, passed_by = self._matching()
        if self._is_table(matching):
            logs, passed_by = sorted(live_files(self._named(), self.option)), 0
        else:
            logs = sorted(path for path in matching if self._is_log(path))
        others = [path for path in logs if not set(self.without) & set(path.parts)]
        limit = None if self.max_files in {None, -1} else self.max_files
        paths = others if self.period is None else self._timely(others, self.period)
        outside = len(others) - len(paths)
        return Found(paths[:limit], len(logs) - len(others), outside, passed_by)

    def _is_table(self, matching: set[Log]) -> bool:
        """Whether the pattern names a table that is read by its log; refuses what else is one."""
        found, named = tables_of(matching), self._named()
        mine = LakeTable(named.absolute() if isinstance(named, Path) else named, DELTA)
        others = sorted(found - {mine}, key=lambda one: str(one.folder))
        if others and self.file_type == "auto":
            raise others[0].refused(self.option)
        return mine in found

    def _named(self) -> Log:
        """What the pattern names, which may be a folder; or a glob, which is none."""
        if is_address(self.pattern):
            return Object.named(self.pattern.rstrip("/"))
        return Path(self.pattern).expanduser()

    def _timely(self, paths: list[Log], period: Period) -> list[Log]:
        ignored = period.ignored(self._base())
        return [path for path in paths if period.holds(path.parts[ignored:-1], path.name)]

    def _base(self) -> tuple[str, ...]:
        """The folders that the glob names before its first wildcard."""
        if is_address(self.pattern):
            return self._walk().start().folder.parts
        return self._folder().parts

    def _folder(self) -> Path:
        whole = Path(self.pattern).expanduser()
        return whole if whole.is_dir() else _cut(whole)[0]

    def need(self) -> Found:
        """List the files there are now, at least one.

        Raises:
            UsageError: No file matches.
        """
        found = self.find()
        if not found.paths:
            hint = self._hint(found)
            raise UsageError(f"{self.option}: no log file matches `{self.pattern}`. {hint}")
        return found

    def kind(self, path: Log) -> str:
        """Say how to read a file: `csv`, `json` or `parquet`."""
        return kind(path) or "json" if self.file_type == "auto" else self.file_type

    def _is_log(self, path: Log) -> bool:
        if path.suffix.lower() in UNFINISHED or (isinstance(path, Path) and not path.is_file()):
            return False
        return self.file_type != "auto" or kind(path) is not None

    def _matching(self) -> tuple[set[Log], int]:
        """What matches, and how many folders were passed by."""
        if is_address(self.pattern):
            walked = self._walk().walked()
            return set(walked.objects), walked.outside
        return set(self._matches()), 0

    def _walk(self) -> Walk:
        return Walk(self.pattern, self.recursive, self.without, self.period)

    def _matches(self) -> set[Path]:
        whole = Path(self.pattern).expanduser()
        if whole.is_dir():
            return _globbed(whole, "*", recursive=self.recursive)
        if whole.exists() or not glob.has_magic(self.pattern):
            return {whole}
        base, rest = _cut(whole)
        return _globbed(base, rest, recursive=self.recursive)

    def _hint(self, found: Found) -> str:
        if found.outside or found.outside_folders:
            return (
                f"The period is {self.period}; by their dates {found.outside:,} files and "
                f"{found.outside_folders:,} folders lie outside. Give another --start_time, "
                "--end_time or --duration."
            )
        if is_address(self.pattern):
            return self._hint_of_bucket()
        base = self._folder()
        if not base.is_dir():
            return f"There is no folder `{base}`. Give a glob in quotes, a file or a folder."
        others = Counter("".join(path.suffixes[-2:]) for path in self._matches() if path.is_file())
        if others:
            return (
                f"What matches ends in {_endings(others)}; what is read by its suffix ends in "
                f"{', '.join(KINDS)}, also .gz and .zst. Give `--file_type json`, csv or parquet."
            )
        try:
            held = sorted({one.suffix for one in base.iterdir() if one.is_file() and one.suffix})
        except PermissionError as error:
            raise unreadable(error, base) from error
        holds = f"files ending in {', '.join(held[:8])}" if held else "no files of its own"
        return f"The folder `{base}` holds {holds}. Give a glob in quotes, a file or a folder."

    def _hint_of_bucket(self) -> str:
        base = self._walk().start().folder
        folders, objects = bucket.level(base)
        names = [*(f"{one.name}/" for one in folders), *(one.name for one in objects)]
        if not names:
            return f"There is nothing below `{base}`. `aws s3 ls` shows what a bucket holds."
        shown = ", ".join(f"`{name}`" for name in names[:8])
        return f"`{base}` holds {shown}. Give a glob in quotes, a folder or an object."


def _endings(numbers: Counter[str]) -> str:
    """The most frequent endings; of equals, by name."""
    most = sorted(numbers, key=lambda end: (-numbers[end], end))
    shown = [end or "no suffix" for end in most[:8]]
    return ", ".join([*shown, *(["others"] if len(most) > len(shown) else [])])


def _cut(pattern: Path) -> tuple[Path, str]:
    """Cut a glob before its first component with a wildcard."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:first]), os.path.join(*parts[first:])  # noqa: PTH118 - a glob is no path


def _globbed(base: Path, rest: str, *, recursive: bool) -> set[Path]:
    deep = recursive and not rest.startswith("**")
    pattern = f"**{os.sep}{rest}" if deep else rest
    return {base / name for name in glob.glob(pattern, root_dir=base, recursive=True)}  # noqa: PTH207 - Path.glob would find hidden files
