"""Files that grow: what is new in a folder since one has last looked."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from morpheus.errors import RecordError, UsageError
from morpheus.sinks.formats import FORMAT_BY_EXTENSION, COMPRESSED_SUFFIXES
from morpheus.sources import finished

AT_ONCE = 1 << 25
"""Bytes of a file that are read at a time."""


class Replaced(Exception):
    """A file is another than it was: everything has to be read again."""


@dataclass
class Growing:
    """A text file to whose end rows are added.

    Attributes:
        path: Where it is.
        kind: `csv` or `json`.
        mark: What tells it from another file of that name.
        at: Bytes read so far; only whole rows are.
        head: First line of a CSV file.
        unread: Rows that could not be read.
    """

    path: Path
    kind: str
    mark: int
    at: int = 0
    head: bytes = b""
    unread: int = 0

    def news(self) -> Iterator[pl.DataFrame]:
        """Read the rows that have been added, as text."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_ino != self.mark or about.st_size < self.at:
                raise Replaced
            file.seek(self.at)
            while rows := self._whole(file.read(AT_ONCE)):
                self.at += len(rows)
                file.seek(self.at)
                yield self._csv(rows) if self.kind == "csv" else self._json(rows)

    def _whole(self, text: bytes) -> bytes:
        """As many whole rows as there are; one that is wider than `AT_ONCE` is never whole."""
        end = text.rfind(b"\n") + 1
        # A line feed between quotes ends no row.
        while self.kind == "csv" and text.count(b'"', 0, end) % 2:
            end = text.rfind(b"\n", 0, end - 1) + 1
        return text[:end]

    def _csv(self, rows: bytes) -> pl.DataFrame:
        if not self.head:
            end = rows.index(b"\n") + 1
            while rows.count(b'"', 0, end) % 2:
                end = rows.index(b"\n", end) + 1
            self.head, rows = rows[:end], rows[end:]
        try:
            return pl.read_csv(io.BytesIO(self.head + rows), infer_schema=False)
        except PolarsError:
            self.unread += rows.count(b"\n")
            return pl.DataFrame()

    def _json(self, rows: bytes) -> pl.DataFrame:
        found = []
        for line in rows.splitlines():
            try:
                found.append(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
            except msgspec.DecodeError:
                self.unread += bool(line.strip())
        names = dict.fromkeys(name for one in found for name in one)
        return pl.DataFrame(
            {name: [_text(one.get(name)) for one in found] for name in names},
            schema_overrides=dict.fromkeys(names, pl.String),
        )


@dataclass
class Whole:
    """A file that is read once it is there, and read again if it is another.

    Attributes:
        path: Where it is.
        mark: What tells it from another file of that name; None before it has been read.
        unread: 1 if it could not be read.
    """

    path: Path
    mark: tuple[int, int, int] | None = None
    unread: int = 0

    def news(self) -> Iterator[pl.DataFrame]:
        """Read it, the first time; of one that is broken, what comes before the break."""
        about = self.path.stat()
        mark = about.st_ino, about.st_size, about.st_mtime_ns
        if self.mark is not None and self.mark != mark:
            raise Replaced
        if self.mark is None:
            self.mark = mark
            try:
                yield from finished.read_results(self.path)
            except (RecordError, UsageError):
                self.unread = 1


@dataclass
class Following:
    """A folder into which a run writes.

    Attributes:
        folder: The folder; those in it are not looked into.
        files: The files known so far.
    """

    folder: Path
    files: dict[Path, Growing | Whole] = field(default_factory=dict)

    def news(self) -> Iterator[pl.DataFrame]:
        """Read what is new, as it is written: as text, but for Parquet and packed files.

        Raises:
            Replaced: A file is gone or another than it was; begin anew with another `Following`.
        """
        there = sorted(path for path in self.folder.iterdir() if _kind(path) and path.is_file())
        if set(self.files) - set(there):
            raise Replaced
        for path in there:
            if path not in self.files:
                self.files[path] = _followed(path)
            try:
                yield from self.files[path].news()
            except FileNotFoundError:
                raise Replaced from None

    @property
    def unread(self) -> int:
        """Rows and files that could not be read."""
        return sum(file.unread for file in self.files.values())


def _followed(path: Path) -> Growing | Whole:
    kind = _kind(path)
    if kind == "parquet" or path.suffix in COMPRESSED_SUFFIXES:
        return Whole(path)
    return Growing(path, kind, path.stat().st_ino)


def _kind(path: Path) -> str:
    """Format of a file of rows; nothing for any other, hidden ones among them."""
    if path.name.startswith(".") or path.name == "status.json":
        return ""
    suffixes = [one for one in path.suffixes[-2:] if one not in COMPRESSED_SUFFIXES]
    return FORMAT_BY_EXTENSION.get(suffixes[-1].lower(), "") if suffixes else ""


def _text(raw: msgspec.Raw | None) -> str | None:
    """A JSON value as text: texts as they are, others as they are written."""
    if raw is None:
        return None
    value = bytes(raw)
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str)
    return None if value == b"null" else value.decode()
