"""A folder, on disk or in S3, by the same few verbs.

What is written appears whole or not at all. A folder is told by a text, so that it can be named on
a command line and in a message to another process; each process opens it for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol

from morpheus.errors import UsageError
from morpheus.storage.atomic import atomic_write
from morpheus.storage.object_store import (
    S3Path,
    delete_objects,
    get_with_etag,
    is_s3_url,
    list_dir,
    list_recursive,
    put_if_match,
    read_object,
    write_object,
)

Location = str | PathLike[str]
"""What tells a folder: a path, or `s3://bucket/folder`."""


class Store(Protocol):
    """Files by their names, which are relative and have forward slashes.

    Its text is what tells it.
    """

    def check_access(self) -> None:
        """Find out whether it can be reached at all; on disk it need not be there yet.

        Raises:
            UsageError: There is no such bucket, or it must not be used.
            Unavailable: S3 does not answer.
        """

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            OSError: It is not there, or cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in the place of one of that name.

        Raises:
            Unavailable: The disk is full, or S3 does not answer.
        """

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read a file, and a mark of its present state; nothing and None where there is none."""

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:
        """Write a file unless it has changed since it was marked; say whether it is written.

        On disk, and with servers that cannot tell, it is written.

        Raises:
            Unavailable: The disk is full, or S3 does not answer.
        """

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Names of the files in a folder in it, and when each was written."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, gone ones too."""


@dataclass(frozen=True)
class LocalStore:
    """A folder on disk; see `Store`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def check_access(self) -> None:
        """Refuse what is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"`{self.path}` is a file, not a folder. Give another name.")

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with atomic_write(self.path / name) as file:
            file.write(content)

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read a file; there are no marks on disk."""
        try:
            return self.read(name), None
        except FileNotFoundError:
            return b"", None

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:  # noqa: ARG002 - there are no marks on disk
        """Write a file."""
        self.write(name, content)
        return True

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """List a folder."""
        for path in (self.path / prefix).glob("*"):
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            yield path.relative_to(self.path).as_posix(), written

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """A folder in S3; see `Store`."""

    base: S3Path

    def __str__(self) -> str:
        return str(self.base)

    def check_access(self) -> None:
        """List it."""
        list_dir(self.base)

    def read(self, name: str) -> bytes:
        """Read an object."""
        return read_object(self.base / name)

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        write_object(self.base / name, content)

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read an object, and its mark."""
        try:
            return get_with_etag(self.base / name)
        except FileNotFoundError:
            return b"", None

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:
        """Write an object unless it has changed."""
        return put_if_match(self.base / name, content, etag)

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """List objects."""
        start = len((self.base / "").key)
        for one in list_recursive(self.base / prefix):
            yield one.key[start:], one.modified or datetime.now(UTC)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        delete_objects([self.base / name for name in names])


def open_store(location: Location) -> Store:
    """The folder that a text tells.

    Raises:
        UsageError: It is an address without a bucket.

    >>> str(open_store("s3://soc/models/")), str(open_store("models/"))
    ('s3://soc/models/', 'models')
    """
    text = fspath(location)
    return ObjectStore(S3Path.parse(text)) if is_s3_url(text) else LocalStore(Path(text))
