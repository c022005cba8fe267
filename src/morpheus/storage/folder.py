"""`Store`: a folder on disk or in an object store with one interface.

Files are written atomically. A store is identified by text, so that a command line or a message to
another process can name it; each process opens it for itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol

from morpheus.errors import UsageError
from morpheus.storage.atomic import atomic_write
from morpheus.storage.object_store import (
    ObjectPath,
    delete_objects,
    get_with_etag,
    list_dir,
    list_recursive,
    parse_location,
    put_if_match,
    read_object,
    write_object,
)

Location = str | PathLike[str]
"""A folder: a path, or a URL such as `s3://bucket/folder`."""


class Store(Protocol):
    """Files by name. Names are relative and have forward slashes.

    `str(store)` is its location; see `open_store`.
    """

    def check_access(self) -> None:
        """Check that the store can be reached. A folder on disk need not exist yet.

        Raises:
            UsageError: The bucket does not exist, or access is denied.
            TransientError: The object store does not answer.
        """

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            OSError: It does not exist, or cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a file, replacing one of that name.

        Raises:
            TransientError: The disk is full, or the object store does not answer.
        """

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read a file and its ETag. Returns `(b"", None)` if there is no file."""

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:
        """Write a file unless it has changed since it was read, and return whether it was written.

        Disks, and servers without conditional writes, always write.

        Args:
            name: Name of the file.
            content: New content.
            etag: ETag of the state that was read; None if there was no file.

        Raises:
            TransientError: The disk is full, or the object store does not answer.
        """

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """List the names of the files in a folder of the store, and their modification times."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files. Missing files are ignored."""


@dataclass(frozen=True)
class LocalStore:
    """A folder on disk; see `Store`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def check_access(self) -> None:
        """Reject a path that is a file, and a folder that cannot be written or created."""
        for place in (self.path, *self.path.absolute().parents):
            if not os.path.lexists(place):
                continue
            if not place.is_dir():
                raise UsageError(f"`{place}` is a file, not a folder. Give another name.")
            if not os.access(place, os.W_OK | os.X_OK):
                raise UsageError(
                    f"`{place}`: you may not write into this folder. Change its permissions, or "
                    "give another folder."
                )
            return

    def read(self, name: str) -> bytes:
        """Read a file.

        Links, pipes and devices are refused, in the folder and in its subfolders. They could lead
        out of the folder, or block the reader.
        """
        path = self.path / name
        if (link := self._find_link(name)) is not None:
            raise OSError(errno.ELOOP, "it is a link, and links are not followed", str(link))
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file. Links in the folder are refused, because they could lead out of it."""
        if (link := self._find_link(name)) is not None:
            raise UsageError(f"`{link}` is a link, and links are not followed. Remove it.")
        with atomic_write(self.path / name) as file:
            file.write(content)

    def _find_link(self, name: str) -> Path | None:
        """Return the file, or a subfolder that leads to it, if that is a link."""
        path = self.path / name
        places = [path, *(place for place in path.parents if self.path in place.parents)]
        return next((place for place in places if place.is_symlink()), None)

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read a file; disks have no ETags."""
        try:
            return self.read(name), None
        except FileNotFoundError:
            return b"", None

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:  # noqa: ARG002 - disks have no ETags
        """Write a file."""
        self.write(name, content)
        return True

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """List a folder."""
        for path in (self.path / prefix).glob("*"):
            modified = datetime.fromtimestamp(path.lstat().st_mtime, UTC)
            yield path.relative_to(self.path).as_posix(), modified

    def remove(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """A folder in an object store; see `Store`."""

    base: ObjectPath

    def __str__(self) -> str:
        return str(self.base)

    def check_access(self) -> None:
        """List the folder once."""
        list_dir(self.base)

    def read(self, name: str) -> bytes:
        """Read an object."""
        return read_object(self.base / name)

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        write_object(self.base / name, content)

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read an object and its ETag."""
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
        for path in list_recursive(self.base / prefix):
            yield path.key[start:], path.modified or datetime.now(UTC)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        delete_objects([self.base / name for name in names])


def open_store(location: Location) -> Store:
    """Return the store at a location.

    Raises:
        UsageError: The location is a URL of another kind, or one without a bucket.

    >>> str(open_store("s3://soc/models/")), str(open_store("models/"))
    ('s3://soc/models/', 'models')
    """
    place = parse_location(fspath(location))
    return LocalStore(place) if isinstance(place, Path) else ObjectStore(place)
