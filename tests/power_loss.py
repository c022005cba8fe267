"""A file layer that drops unsynced writes and names, to test what survives power loss.

`Recorder` notes what real code does to a folder: it replaces functions of `os` by ones that call
the original and compare the folder before and after. `Recording.crashes` returns what a disk may
hold if the power fails: names that were not synced with their folder may be lost, each alone, and
of the content of a file that was not synced, a part or all of it.

A rename is atomic, and a folder that is synced keeps its names. POSIX promises no more, in
particular no order among the rest.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = 0
"""Number of the recorded folder. Files and folders in it have numbers from 1."""
FUNCTIONS = ("fsync", "fdatasync", "link", "mkdir", "remove", "rename", "replace", "rmdir")
TEARS = ("lost", "whole", "half", "zeros")
"""What may remain of content that was not synced. Zeros are blocks that a file system has reserved,
but not written yet."""


class Entry(NamedTuple):
    """A name in a folder."""

    folder: int
    name: str


@dataclass(frozen=True)
class Wrote:
    """A file has new content."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Named:
    """Names were added, removed or replaced, in one step. A name without a file was removed."""

    changes: tuple[tuple[Entry, int | None], ...]


@dataclass(frozen=True)
class Synced:
    """A file or a folder was synced."""

    node: int


@dataclass(frozen=True)
class Reached:
    """The recorded code has returned, or has said that something is durable."""

    what: object


Event = Wrote | Named | Synced | Reached


@dataclass(frozen=True)
class Crash:
    """What a disk may hold after a power loss.

    Attributes:
        files: Content by path; None for a folder.
        reached: What the code had reached before.
    """

    files: dict[str, bytes | None]
    reached: tuple[object, ...]

    def write(self, folder: Path) -> Path:
        """Write the files below a folder, replacing what is there, and return the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in sorted(self.files.items()):
            if content is None:
                (folder / name).mkdir(mode=0o700)
            else:
                (folder / name).write_bytes(content)
        return folder


@dataclass
class Disk:
    """What was written up to some event, and what of it is synced.

    Attributes:
        folders: Numbers of the folders.
        content: Content of each file.
        synced: Content that each file had when it was last synced.
        names: Changes of names, and for each, whether it is synced.
        reached: What the code has reached.
    """

    folders: frozenset[int]
    content: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    names: list[tuple[Named, bool]] = field(default_factory=list)
    reached: tuple[object, ...] = ()

    def apply(self, event: Event) -> None:
        match event:
            case Wrote(file, content):
                self.content[file] = content
            case Named():
                self.names.append((event, False))
            case Synced(node) if node in self.folders:
                self.names = [
                    (named, done or any(entry.folder == node for entry, _ in named.changes))
                    for named, done in self.names
                ]
            case Synced(node):
                self.synced[node] = self.content.get(node, b"")
            case Reached(what):
                self.reached += (what,)

    def pending(self) -> list[int]:
        """Return the positions of the changes of names that can be lost."""
        return [number for number, (_, done) in enumerate(self.names) if not done]

    def dirty(self) -> list[int]:
        """Return the files whose latest content is not synced."""
        return [file for file, now in self.content.items() if now != self.synced.get(file, b"")]

    def crash(self, lost: frozenset[int], tears: dict[int, str]) -> Crash:
        """Return what remains.

        Args:
            lost: Positions of the changes of names that are lost.
            tears: What remains of each file that was not synced; by default all of it.
        """
        entries: dict[Entry, int] = {}
        for number, (named, _) in enumerate(self.names):
            for entry, node in named.changes if number not in lost else ():
                if node is None:
                    entries.pop(entry, None)
                else:
                    entries[entry] = node
        files: dict[str, bytes | None] = {}
        self._collect(ROOT, "", entries, tears, files)
        return Crash(files, self.reached)

    def _collect(
        self,
        folder: int,
        path: str,
        entries: dict[Entry, int],
        tears: dict[int, str],
        files: dict[str, bytes | None],
    ) -> None:
        for entry, node in entries.items():
            if entry.folder != folder:
                continue
            files[f"{path}{entry.name}"] = None if node in self.folders else self._read(node, tears)
            if node in self.folders:
                self._collect(node, f"{path}{entry.name}/", entries, tears, files)

    def _read(self, file: int, tears: dict[int, str]) -> bytes:
        now, before = self.content.get(file, b""), self.synced.get(file, b"")
        same = _common_length(now, before)
        match tears.get(file, "whole"):
            case "lost":
                return before
            case "half":
                return now[: (same + len(now)) // 2]
            case "zeros":
                return now[:same] + bytes(len(now) - same)
        return now


def _common_length(one: bytes, other: bytes) -> int:
    """Return how many bytes are the same at the start of both."""
    pairs = zip(one, other, strict=False)
    differ = (number for number, (left, right) in enumerate(pairs) if left != right)
    return next(differ, min(len(one), len(other)))


@dataclass
class Recording:
    """Events in a folder, in their order.

    Attributes:
        events: The events.
        start: Number of events that made the folder as it was at the start, all of them synced.
        folders: Numbers of the folders.
    """

    events: list[Event] = field(default_factory=list)
    start: int = 0
    folders: set[int] = field(default_factory=lambda: {ROOT})

    def disk(self, end: int) -> Disk:
        """Return the disk after a number of events."""
        disk = Disk(frozenset(self.folders))
        for event in self.events[:end]:
            disk.apply(event)
        return disk

    def points(self) -> range:
        """Return the numbers of events after which the power can fail."""
        return range(self.start, len(self.events) + 1)

    def crashes(self) -> Iterator[Crash]:
        """Yield what remains after each event: nothing lost, all of one kind, and each name alone.

        What remains in the same way is yielded once.
        """
        seen: list[Crash] = []
        for end in self.points():
            disk = self.disk(end)
            pending, dirty = disk.pending(), disk.dirty()
            losses = [frozenset[int](), frozenset(pending), *(frozenset([n]) for n in pending)]
            for lost in dict.fromkeys(losses):
                for tear in TEARS if dirty else ("whole",):
                    crash = disk.crash(lost, dict.fromkeys(dirty, tear))
                    if crash not in seen:
                        seen.append(crash)
                        yield crash


class Recorder:
    """Records what the code of a `with` block does to a folder.

    Content of files is compared, not intercepted, so that it does not matter who writes. What is
    written between two calls of the replaced functions is one event.

    Args:
        folder: The folder. What is there already counts as synced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recording = Recording()
        self._entries: dict[Entry, int] = {}
        self._content: dict[int, bytes] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._open: list[int] = []
        self._lock = threading.RLock()

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """Record in the block."""
        about = self.folder.stat()
        self._numbers[about.st_dev, about.st_ino] = ROOT
        try:
            self._scan(in_one_step=False)
            nodes = [ROOT, *self._entries.values()]
            self.recording.events += [Synced(node) for node in nodes]
            self.recording.start = len(self.recording.events)
            replaced = {name: partial(self._call, getattr(os, name)) for name in FUNCTIONS}
            # `shutil.rmtree` asks whether `os.unlink` is one of those that it knows.
            replaced["unlink"] = partial(self._call, os.unlink)
            with patch.multiple(os, **replaced):
                yield self.recording
            self._scan(in_one_step=False)
        finally:
            for number in self._open:
                os.close(number)

    def reach(self, what: object) -> None:
        """Note that the code has reached something."""
        self._scan(in_one_step=False)
        self.recording.events.append(Reached(what))

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with self._lock:
            self._scan(in_one_step=False)
            result = function(*args, **options)
            self._scan(in_one_step=True)
            if function.__name__ in {"fsync", "fdatasync"}:
                about = os.fstat(args[0])
                node = self._numbers.get((about.st_dev, about.st_ino))
                self.recording.events += [] if node is None else [Synced(node)]
            return result

    def _scan(self, *, in_one_step: bool) -> None:
        """Find what has changed since the last scan."""
        with self._lock:
            found: dict[Entry, int] = {}
            content: dict[int, bytes] = {}
            self._list(self.folder, ROOT, found, content)
            changes: list[tuple[Entry, int | None]] = [
                *((entry, None) for entry in self._entries if entry not in found),
                *((each, node) for each, node in found.items() if self._entries.get(each) != node),
            ]
            steps = [tuple(changes)] if in_one_step and changes else [(each,) for each in changes]
            events = self.recording.events
            events += [Named(step) for step in steps]
            events += [
                Wrote(file, now)
                for file, now in content.items()
                if self._content.get(file, b"") != now
            ]
            self._entries = found
            self._content |= content

    def _list(
        self, path: Path, folder: int, found: dict[Entry, int], content: dict[int, bytes]
    ) -> None:
        for child in sorted(path.iterdir()):
            about = child.lstat()
            if not stat.S_ISDIR(about.st_mode) and not stat.S_ISREG(about.st_mode):
                continue
            node = self._numbers.get((about.st_dev, about.st_ino))
            if node is None:
                node = self._add(child, about)
            found[Entry(folder, child.name)] = node
            if stat.S_ISDIR(about.st_mode):
                self._list(child, node, found, content)
            else:
                content[node] = child.read_bytes()

    def _add(self, path: Path, about: os.stat_result) -> int:
        # While the file is open, no other file gets the number of its inode.
        self._open.append(os.open(path, os.O_RDONLY))
        node = len(self._numbers)
        self._numbers[about.st_dev, about.st_ino] = node
        if stat.S_ISDIR(about.st_mode):
            self.recording.folders.add(node)
        return node
