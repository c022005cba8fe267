"""Files that appear complete or not at all, survive power loss, and are private.

A file is written under a hidden name beside its destination, synced, renamed, and its folder is
synced. Without the last step, a rename can be undone by power loss. By default files are created
with mode 0600 and folders with mode 0700, whatever the umask: results and models name users.
`set_file_policy` makes them readable for the group.

A process that is killed leaves its temporary files and folders behind. They are locked while their
process lives, and the system releases the lock when it dies. So the next run that writes into the
folder removes exactly those of dead runs.

`open_output` writes a file, an object of an object store, or stdout in the same way. `Store` is a
folder on disk or in an object store, with one interface.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType, TracebackType
from typing import BinaryIO, Protocol, Self

import msgspec

from morpheus.errors import TransientError, UsageError
from morpheus.storage.object_store import (
    STDOUT,
    ObjectPath,
    delete_objects,
    get_with_etag,
    list_dir,
    list_recursive,
    parse_location,
    put_if_match,
    read_object,
    read_object_range,
    write_object,
)

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing of dead runs is removed
    fcntl = None

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""Errors of file systems that cannot sync a folder; some network file systems are of this kind."""

_MAX_NAME_BYTES = 200
"""Bytes of a file's name kept in its hidden name. File systems end at 255."""


class _FilePolicy(msgspec.Struct):
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


def ignores_case(folder: Path) -> bool:
    """Return whether names in a folder that differ in case alone are of one file.

    Raises:
        OSError: The folder cannot be written.
    """
    with TempFolder(folder, "Case") as made:
        return made.with_name(made.name.swapcase()).exists()


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


HOST_TAG = blake2b(platform.node().encode(), digest_size=2).hexdigest()
"""This machine, in temporary names."""
_TEMP_NAME = re.compile(r"\.?(?P<target>.+)\.(?P<host>[0-9a-f]{4})[0-9a-f]{8}\.part(?P<old>\.old)?")
_FOREIGN_SECONDS = 24 * 3600
"""Age of another machine's leftovers. Some network file systems do not share locks."""
_LOCK_ATTEMPTS = 100
"""How often a lock is taken again because its file was removed by another process."""
_CLEANED: set[Path] = set()
"""Folders whose leftovers this run has removed."""


def make_temp_name(name: str, *, hidden: bool = True) -> str:
    """Return a new temporary name for a file or folder, by which a later run recognises it.

    >>> make_temp_name("out.csv").startswith(".out.csv.")
    True
    """
    name = os.fsdecode(os.fsencode(name)[:_MAX_NAME_BYTES])
    return f"{'.' if hidden else ''}{name}.{HOST_TAG}{secrets.token_hex(4)}.part"


def start_cleanup() -> None:
    """Begin a run: remove what dead runs left in TMPDIR now, and later in the folders it writes."""
    _CLEANED.clear()
    _remove_leftovers(Path(tempfile.gettempdir()))


class TempFolder:
    """A temporary folder, removed with its content by `close`, or by a later run.

    Args:
        parent: Folder to create it in, as a hidden folder; it must exist. By default TMPDIR.
        name: Name of what is written in it.
        published: The folder will be renamed to its destination, so the file policy applies. Else
            only the owner may read it.

    Attributes:
        path: Path of the folder.

    Raises:
        OSError: The folder cannot be created.
    """

    def __init__(
        self, parent: Path | None = None, name: str = "morpheus", *, published: bool = False
    ) -> None:
        if parent is not None:
            _remove_leftovers(parent)
        mode = _POLICY.folder_mode if published else 0o700
        folder = Path(tempfile.gettempdir()) if parent is None else parent
        number: int | None = None
        while number is None:
            self.path = folder / make_temp_name(name, hidden=parent is not None)
            self.path.mkdir(mode)
            number = _hold_folder(self.path)
        self._number = number

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder, if it is still there."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Keep a folder with a temporary name from being removed by another run."""
    number = _hold_folder(path)
    try:
        yield
    finally:
        if number is not None and number >= 0:
            os.close(number)


def _hold_folder(path: Path) -> int | None:
    """Open and lock a folder. Returns -1 if that is not possible, None if it was removed."""
    if fcntl is None:
        return -1
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if _lock(path, number):
        return number
    os.close(number)
    return None


def _lock(path: Path, number: int) -> bool:
    """Lock an open file or folder, and return whether it still has its name.

    Another run may have removed it, because it was not locked yet.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks, where nothing is removed
    try:
        return path.stat().st_ino == os.fstat(number).st_ino
    except FileNotFoundError:
        return False


def _wait_for_lock(number: int, path: Path) -> None:
    """Lock an open file, and wait as long as another process holds it.

    Raises:
        TransientError: It is still locked after `_LOCK_SECONDS`.
    """
    if fcntl is None:
        return
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise TransientError(
                    f"`{path}`: another run has been changing it for {_LOCK_SECONDS:.0f} seconds. "
                    "Wait until it has ended, and run again."
                ) from error
            time.sleep(0.05)
        except OSError:
            return  # a file system without locks
        else:
            return


def _remove_leftovers(folder: Path) -> None:
    """Remove what dead runs left in a folder. Once in each run, because folders may be large."""
    if fcntl is None or folder in _CLEANED:
        return
    _CLEANED.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMP_NAME.fullmatch(entry.name)
            if match:
                with suppress(OSError):  # a live run holds it, or another user owns it
                    _remove_if_dead(Path(entry.path), match)


def _remove_if_dead(path: Path, match: re.Match[str]) -> None:
    assert fcntl is not None  # noqa: S101 - the caller has seen to it
    about = path.lstat()
    is_folder = stat.S_ISDIR(about.st_mode)
    is_foreign = match["host"] != HOST_TAG and time.time() - about.st_mtime < _FOREIGN_SECONDS
    if about.st_uid != os.geteuid() or is_foreign or not (is_folder or stat.S_ISREG(about.st_mode)):
        return
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR
    number = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        target = path.with_name(match["target"])
        if match["old"] and not target.exists():
            path.rename(target)  # the run died between two renames, see `replace_folder`
        elif is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
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
        durable: Sync the file and its folder, so that the file survives power loss.

    Attributes:
        path: Destination, with symbolic links resolved.
        temp_path: Path until the file is published.
        file: File to write to.

    Raises:
        TransientError: The folder or the file cannot be created, or the disk is full.
    """

    file: BinaryIO

    def __init__(
        self,
        path: Path,
        *extra_errors: type[Exception],
        private: bool = True,
        durable: bool = True,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.temp_path = self.path.with_name(make_temp_name(self.path.name))
        self._private = private
        self._durable = durable
        self._committed = False
        self._shown = str(self.path)
        self._io_errors: tuple[type[Exception], ...] = (OSError, *extra_errors)

    def __enter__(self) -> Self:
        with self.guard_io():
            make_folders(self.path.parent)
            _remove_leftovers(self.path.parent)
            self.file = create_file(self.temp_path, private=self._private)
            while not _lock(self.temp_path, self.file.fileno()):
                self.file.close()
                self.temp_path = self.path.with_name(make_temp_name(self.path.name))
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
            # On a full disk, it tries once more to write what is left. The error is known.
            with suppress(OSError):
                self.file.close()
            if not self._committed:
                self.temp_path.unlink(missing_ok=True)

    def commit(self) -> None:
        """Publish the file; what is written from now on appears in it at once."""
        self._sync()
        self.temp_path.replace(self.path)
        self._committed = True
        if self._durable:
            sync_folder(self.path.parent)

    def rename(self, name: str) -> None:
        """Set another name in the same folder, before the file is published."""
        self.path = self.path.with_name(name)
        self._shown = str(self.path)

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
                f"Cannot write `{self._shown}`: {reason}. {left}. "
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
        if self._durable:
            os.fsync(self.file.fileno())


class FilePosition(msgspec.Struct, frozen=True, array_like=True):
    """Up to where a file that grows is complete.

    Attributes:
        inode: The file.
        size: Its size in bytes.
    """

    inode: int
    size: int


_NO_FILE = FilePosition(0, 0)
"""Position in a file that there is not: no file has this inode."""


class AppendedFile:
    """A file that grows for as long as a run goes on, and the next run continues.

    A program that rotates logs may rename or truncate it at any time.

    Args:
        path: The file. A symbolic link is followed.
        position: Up to where an earlier run has written the file. What follows is removed: the end
            of a run that was killed. None to replace an existing file.

    Raises:
        TransientError: The file cannot be created or written.
    """

    def __init__(self, path: Path, position: FilePosition | None) -> None:
        self.path = Path(os.path.realpath(path))
        with self.guard_io():
            make_folders(self.path.parent)
            if position is None:
                self.path.unlink(missing_ok=True)
            self._open(position)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written to it.

        Raises:
            TransientError: The file was renamed or removed, and there can be no new one.
        """
        self._replace_closed()
        return not self._size

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._replace_closed()
        with self.guard_io():
            self._file.write(data)
            self._size += len(data)

    def sync(self) -> FilePosition:
        """Write everything to disk, and return up to where the file is complete.

        If the file was renamed or removed, the next bytes go to a new file of its name. What was
        written so far is complete even if that cannot be made yet.
        """
        if self._file.closed:
            return _NO_FILE
        with self.guard_io():
            self._file.flush()
            os.fsync(self._file.fileno())
            found = os.fstat(self._file.fileno())
        self._size = found.st_size  # it may have been truncated
        if self._is_in_place(found.st_ino):
            return FilePosition(found.st_ino, found.st_size)
        self._file.close()
        with suppress(TransientError):  # `write` tries again
            self._replace_closed()
        return _NO_FILE if self._file.closed else self.sync()

    def close(self) -> None:
        """Close the file. Bytes after the last `sync` may be incomplete."""
        self._file.close()

    @contextmanager
    def guard_io(self) -> Iterator[None]:
        """Turn errors of the disk into an error that says what to do."""
        try:
            yield
        except OSError as error:
            raise TransientError(
                f"Cannot write `{self.path}`: {error.strerror or error}. Free disk space, fix the "
                "folder's permissions, or choose another path."
            ) from error

    def _replace_closed(self) -> None:
        """Open a new file if the one before was renamed or removed."""
        if self._file.closed:
            with self.guard_io():
                make_folders(self.path.parent)
                self._open(None)

    def _open(self, position: FilePosition | None) -> None:
        existed = self.path.exists()
        self._file = create_file(self.path, append=True)
        found = os.fstat(self._file.fileno())
        if position is not None and found.st_ino == position.inode:
            # A shorter file was truncated by a program that rotates logs.
            os.ftruncate(self._file.fileno(), min(position.size, found.st_size))
        if not existed:
            sync_folder(self.path.parent)
        self._size = os.fstat(self._file.fileno()).st_size

    def _is_in_place(self, inode: int) -> bool:
        try:
            return self.path.stat().st_ino == inode
        except OSError:
            return False


@contextmanager
def atomic_write(path: Path, *, private: bool = True, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file at once; see `AtomicWriter`.

    Raises:
        TransientError: The folder or the file cannot be created, or the disk is full.
    """
    with AtomicWriter(path, private=private, durable=durable) as writer, writer.guard_io():
        yield writer.file


class _StagedWriter(AtomicWriter):
    """Writes a temporary file on disk, and hands it over when it is complete; see `AtomicWriter`.

    Args:
        target: Destination, for messages.
        extra_errors: As in `AtomicWriter`.
    """

    def __init__(self, target: str, *extra_errors: type[Exception]) -> None:
        super().__init__(Path(tempfile.gettempdir(), "morpheus-output"), *extra_errors)
        self._shown = target

    def commit(self) -> None:
        """Hand the file over."""
        self._sync()
        self._hand_over()
        self._committed = True
        self.temp_path.unlink()

    def _hand_over(self) -> None:
        raise NotImplementedError


class _UploadWriter(_StagedWriter):
    """Writes an object at once."""

    def __init__(self, target: ObjectPath, *extra_errors: type[Exception]) -> None:
        super().__init__(str(target), *extra_errors)
        self._target = target

    def rename(self, name: str) -> None:
        """Set another name in the same folder, before the object is written."""
        self._target = self._target.parent / name
        self._shown = str(self._target)

    def _hand_over(self) -> None:
        write_object(self._target, self.temp_path)


class _StdoutWriter(_StagedWriter):
    """Writes to stdout: everything at the end, or as it comes.

    Args:
        streams: Write as it comes.
        extra_errors: As in `AtomicWriter`.
    """

    def __init__(self, *extra_errors: type[Exception], streams: bool) -> None:
        super().__init__(STDOUT, *extra_errors)
        self._streams = streams

    def __enter__(self) -> Self:
        if not self._streams:
            return super().__enter__()
        self.file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        self._committed = True
        return self

    @contextmanager
    def guard_io(self) -> Iterator[None]:
        """Turn errors of the disk into an error. That stdout is closed is no such error."""
        try:
            with super().guard_io():
                yield
        except TransientError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
                raise cause from None
            raise

    def _hand_over(self) -> None:
        sys.stdout.flush()
        with self.temp_path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()

    def _sync(self) -> None:
        self.file.flush()


def open_output(
    location: Path | ObjectPath | None, *extra_errors: type[Exception], streams: bool = False
) -> AtomicWriter:
    """Return a writer of a file on disk, of an object, or of stdout.

    Files and objects appear when they are complete. Stdout gets its content then, too, unless it
    streams.

    Args:
        location: Destination; None for stdout.
        extra_errors: Exceptions besides `OSError` that mean that the disk failed.
        streams: Write to stdout as rows come.
    """
    if location is None:
        return _StdoutWriter(*extra_errors, streams=streams)
    if isinstance(location, ObjectPath):
        return _UploadWriter(location, *extra_errors)
    return AtomicWriter(location, *extra_errors)


def parse_output(filename: str, option: str = "--filename") -> Path | ObjectPath | None:
    """Return the destination of a file name; None for stdout.

    >>> parse_output("-"), str(parse_output("gs://soc/alerts.csv"))
    (None, 'gs://soc/alerts.csv')
    """
    return None if filename == STDOUT else parse_location(filename, option)


# Folders on disk and in object stores, with one interface.

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

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read a part of a file; shorter if the file ends before.

        Raises:
            OSError: It does not exist, or cannot be read.
        """

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file, replacing one of that name.

        Args:
            name: Name of the file.
            content: Its content.
            durable: The file must survive power loss. An object always does.

        Raises:
            TransientError: The disk is full, or the object store does not answer.
        """

    def new_file(self, folder: str) -> AbstractContextManager[NewFile]:
        """Return a new file in a folder of the store. It is named when it is complete.

        Raises:
            TransientError: The disk is full, or the object store does not answer.
        """

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Let one process at a time change a file on disk; others wait.

        Object stores have conditional writes instead; see `put_if_match`.

        Raises:
            TransientError: Another process still changes it after `_LOCK_SECONDS`.
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


class NewFile:
    """A file that is written in a store; see `Store.new_file`.

    Args:
        writer: Writes the file.

    Attributes:
        file: File to write to.
    """

    def __init__(self, writer: AtomicWriter) -> None:
        self._writer = writer
        self.file: BinaryIO = writer.file

    def name_as(self, name: str) -> None:
        """Set the name that the file gets when the `with` block ends."""
        self._writer.rename(name)


_LOCK_SECONDS = 60.0
"""How long a process waits for another one that changes the same file."""


class LocalStore(msgspec.Struct, frozen=True):
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
        with os.fdopen(self._open(name)[0], "rb") as file:
            return file.read()

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read a part of a file; links are refused as in `read`."""
        # Without the objects of `open`, which take most of the time of a short read.
        descriptor, end = self._open(name)
        try:
            os.lseek(descriptor, min(start, end), os.SEEK_SET)
            return os.read(descriptor, max(0, min(size, end - start)))
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> tuple[int, int]:
        """Open a file; return its descriptor and its size."""
        path = os.path.join(self.path, name)  # noqa: PTH118 - see `_find_link`
        if (link := self._find_link(name)) is not None:
            raise OSError(errno.ELOOP, "it is a link, and links are not followed", str(link))
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", path)
        return descriptor, about.st_size

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file. Links in the folder are refused, because they could lead out of it."""
        self._refuse_link(name)
        with atomic_write(self.path / name, durable=durable) as file:
            file.write(content)

    @contextmanager
    def new_file(self, folder: str) -> Iterator[NewFile]:
        """Return a new file in a folder."""
        self._refuse_link(f"{folder}/new")
        with AtomicWriter(self.path / folder / "new") as writer, writer.guard_io():
            yield NewFile(writer)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Let one process at a time change a file: it holds a lock on a hidden file beside it."""
        lock = self.name_lock(name)
        self._refuse_link(lock)
        try:
            with self._open_locked(self.path / lock, self.path / name):
                yield
        except PermissionError as error:
            raise TransientError(
                f"Cannot write `{self.path / lock}`: {error.strerror}. Fix the folder's "
                "permissions, or choose another path."
            ) from error

    def _open_locked(self, lock: Path, target: Path) -> BinaryIO:
        """Open and lock a file, also if another process removes it with its folder meanwhile."""
        for _ in range(_LOCK_ATTEMPTS):
            make_folders(self.path)
            with suppress(FileNotFoundError):
                file = create_file(lock, append=True)
                try:
                    _wait_for_lock(file.fileno(), target)
                    if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                        return file
                except BaseException:
                    file.close()
                    raise
                file.close()
        raise TransientError(f"`{target}`: other runs keep removing it. Run again.")

    def name_lock(self, name: str) -> str:
        """Return the name of the hidden file that `exclusive` locks."""
        return f".{name}.lock"

    def _refuse_link(self, name: str) -> None:
        if (link := self._find_link(name)) is not None:
            raise UsageError(f"`{link}` is a link, and links are not followed. Remove it.")

    def _find_link(self, name: str) -> Path | None:
        """Return the file, or a subfolder that leads to it, if that is a link."""
        path = str(self.path)  # without the objects of `pathlib`: each read of a fingerprint asks
        for part in name.split("/"):
            path = os.path.join(path, part)  # noqa: PTH118 - as above
            if os.path.islink(path):  # noqa: PTH114 - as above
                return Path(path)
        return None

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


class ObjectStore(msgspec.Struct, frozen=True):
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

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read a part of an object."""
        return read_object_range(self.base / name, start, size)

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - objects are durable
        """Write an object."""
        write_object(self.base / name, content)

    @contextmanager
    def new_file(self, folder: str) -> Iterator[NewFile]:
        """Return a new object, which is written on disk first."""
        with _UploadWriter(self.base / folder / "new") as writer, writer.guard_io():
            yield NewFile(writer)

    def exclusive(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002 - conditional writes instead
        """Lock nothing."""
        return nullcontext()

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
    """Return the folder at a location, on disk or in an object store.

    Raises:
        UsageError: The location is a URL of another kind, or one without a bucket.

    >>> str(open_store("s3://soc/models/")), str(open_store("models/"))
    ('s3://soc/models/', 'models')
    """
    place = parse_location(fspath(location))
    return LocalStore(place) if isinstance(place, Path) else ObjectStore(place)
