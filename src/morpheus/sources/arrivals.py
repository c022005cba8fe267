"""A folder followed: files that come later, in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAX_WAIT_FACTOR = 10
"""Quiet times after which a round is released although files keep coming."""


@dataclass
class DirectoryWatcher:
    """Follows the files that a search finds, for ever.

    A file is taken once, when its size has not changed from one look to the next: what is still
    being written is left alone. What a file gains after that is not seen.

    Args:
        list_files: Lists the files there are now.
        idle_timeout: Seconds without news after which the files so far are released.
        max_files: Files to take in all; None for no end.
        poll_interval: Seconds between two looks.
        sleep: Waits so many seconds.
    """

    list_files: Callable[[], list[Path]]
    idle_timeout: float
    max_files: int | None = None
    poll_interval: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    last_sizes: dict[Path, int] = field(default_factory=dict)
    taken_files: set[Path] = field(default_factory=set)

    def iter_micro_batches(self) -> Iterator[list[Path]]:
        """The files there at the start, which may be none; then those that came, round by round."""
        self._scan()
        self.sleep(self.poll_interval)
        ready, _ = self._scan()
        count = len(ready)
        yield ready
        while self.max_files is None or count < self.max_files:
            released = self._wait_for_micro_batch()
            count += len(released)
            yield released

    def _wait_for_micro_batch(self) -> list[Path]:
        waiting: list[Path] = []
        still = waited = 0.0
        while not waiting or (still < self.idle_timeout and waited < _MAX_WAIT_FACTOR * self.idle_timeout):
            self.sleep(self.poll_interval)
            ready, news = self._scan()
            waited += self.poll_interval if waiting else 0.0
            waiting += ready
            still = 0.0 if news else still + self.poll_interval
        return sorted(waiting)

    def _scan(self) -> tuple[list[Path], bool]:
        """Take the files whose size is still; and whether anything has changed."""
        sizes = {path: _get_size(path) for path in self.list_files()}
        free = None if self.max_files is None else max(0, self.max_files - len(self.taken_files))
        new = [path for path in sizes if path not in self.taken_files]
        ready = [path for path in new if self.last_sizes.get(path) == sizes[path] is not None][:free]
        news = any(self.last_sizes.get(path) != sizes[path] for path in new) or bool(ready)
        # Forget files that are gone, so that what is remembered stays as large as the folder.
        self.taken_files = (self.taken_files & sizes.keys()) | set(ready)
        self.last_sizes = {path: size for path, size in sizes.items() if size is not None}
        return ready, news


def _get_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
