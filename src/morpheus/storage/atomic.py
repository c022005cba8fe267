"""Files that appear complete or not at all, survive power loss, and are private.

A file is written under a hidden name beside its destination, synced, renamed, and its folder is
synced. Without the last step, a rename can be undone by power loss. By default files are created
with mode 0600 and folders with mode 0700, whatever the umask: results and models name users.
`set_file_policy` makes them readable for the group.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from morpheus.errors import TransientError

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""Errors of file systems that cannot sync a folder; some network file systems are of this kind."""

_MAX_NAME_BYTES = 200
"""Bytes of a file's name kept in its hidden name. File systems end at 255."""


@dataclass
class _FilePolicy:
    """Modes of new files and folders, before the umask is applied."""

    shared: bool = False

    @property
    def file_mode(self) -> int:
        return 0o640 if self.shared else 0o600

    @property
    def folder_mode(self) -> int:
        return 0o750 if self.shared else 0o700


_POLICY = _FilePolicy()


def set_file_policy(*, shared: bool) -> None:
    """Set who may read the files and folders that this process creates from now on.

    A run sets it from `PipelineOptions.shared_files`, and again in each worker.

    Args:
        shared: The group may read them too, as far as the umask allows. Else only the owner may.
    """
    _POLICY.shared = shared


def files_are_shared() -> bool:
    """Return whether new files are readable for the group; see `set_file_policy`."""
    return _POLICY.shared


def create_file(path: Path, *, append: bool = False, private: bool = True) -> BinaryIO:
    """Create a file for writing.

    Args:
        path: Its path. Unless `append` is set, there must be no such file yet.
        append: Append to the file if there is one.
        private: Apply the file policy. Else the umask alone decides the mode.

    Raises:
        OSError: The file exists, or the folder does not let it be created.
    """
    mode = _POLICY.file_mode if private else 0o666
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= os.O_APPEND if append else os.O_EXCL
    return os.fdopen(os.open(path, flags, mode), "ab" if append else "wb")


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents, and sync what contains them.

    Raises:
        OSError: There is a file of that name, or a folder cannot be created.
    """
    missing = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        missing.append(place)
    if not missing:
        folder.mkdir(exist_ok=True)  # raises if it is a file
    for place in reversed(missing):
        place.mkdir(_POLICY.folder_mode, exist_ok=True)
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to disk, so that a rename in it survives power loss.

    Raises:
        OSError: The disk fails.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)


class AtomicWriter:
    """Writes a file under a hidden name, and renames it once it is complete.

    Leaving the `with` block without an exception publishes the file. Any exception, `GeneratorExit`
    and `KeyboardInterrupt` included, removes it. An older file of that name stays until then.

    Args:
        path: Destination. Missing folders are created. A symbolic link stays, and its target is
            replaced.
        extra_errors: Exceptions besides `OSError` that mean that the disk failed.
        private: Apply the file policy; see `create_file`.

    Attributes:
        path: Destination, with symbolic links resolved.
        temp_path: Path until the file is published.
        file: File to write to.

    Raises:
        TransientError: The folder or the file cannot be created, or the disk is full.
    """

    file: BinaryIO

    def __init__(self, path: Path, *extra_errors: type[Exception], private: bool = True) -> None:
        self.path = Path(os.path.realpath(path))
        name = os.fsdecode(os.fsencode(self.path.name)[:_MAX_NAME_BYTES])
        self.temp_path = self.path.with_name(f".{name}.{secrets.token_hex(4)}.part")
        self._private = private
        self._committed = False
        self._io_errors: tuple[type[Exception], ...] = (OSError, *extra_errors)

    def __enter__(self) -> Self:
        with self.guard_io():
            make_folders(self.path.parent)
            self.file = create_file(self.temp_path, private=self._private)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self.file.close()
            if not self._committed:
                self.temp_path.unlink(missing_ok=True)

    def commit(self) -> None:
        """Publish the file; what is written from now on appears in it at once."""
        self._sync()
        self.temp_path.replace(self.path)
        self._committed = True
        sync_folder(self.path.parent)

    @property
    def committed(self) -> bool:
        """Whether the file has been published."""
        return self._committed

    @contextmanager
    def guard_io(self) -> Iterator[None]:
        """Turn errors of the disk into an error that says what to do."""
        try:
            yield
        except self._io_errors as error:
            reason = getattr(error, "strerror", None) or str(error)
            left = "What was written stays" if self._committed else "Nothing is left behind"
            raise TransientError(
                f"Cannot write `{self.path}`: {reason}. {left}. "
                f"Free disk space, fix the folder's permissions, or choose another path."
            ) from error

    def _finish(self) -> None:
        with self.guard_io():
            if self._committed:
                self._sync()
            else:
                self.commit()

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def atomic_write(path: Path, *, private: bool = True) -> Iterator[BinaryIO]:
    """Write a file at once; see `AtomicWriter`.

    Raises:
        TransientError: The folder or the file cannot be created, or the disk is full.
    """
    with AtomicWriter(path, private=private) as writer, writer.guard_io():
        yield writer.file
