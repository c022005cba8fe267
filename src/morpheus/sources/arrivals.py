"""A folder followed: files that come later, in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PATIENCE = 10
"""Quiet times after which a round is released although files keep coming."""


@dataclass
class Arrivals:
    """Follows the files that a search finds, for ever.

    A file is taken once, when its size has not changed from one look to the next: what is still
    being written is left alone. What a file gains after that is not seen.

    Args:
        find: Lists the files there are now.
        quiet: Seconds without news after which the files so far are released.
        limit: Files to take in all; None for no end.
        poll: Seconds between two looks.
        sleep: Waits so many seconds.
    """

    find: Callable[[], list[Path]]
    quiet: float
    limit: int | None = None
    poll: float = 0.5
    sleep: Callable[[float], object] = time.sleep
    sizes: dict[Path, int] = field(default_factory=dict)
    taken: set[Path] = field(default_factory=set)

    def rounds(self) -> Iterator[list[Path]]:
        """The files there at the start, which may be none; then those that came, round by round."""
        self._look()
        self.sleep(self.poll)
        ready, _ = self._look()
        count = len(ready)
        yield ready
        while self.limit is None or count < self.limit:
            released = self._next_round()
            count += len(released)
            yield released

    def _next_round(self) -> list[Path]:
        waiting: list[Path] = []
        still = waited = 0.0
        while not waiting or (still < self.quiet and waited < _PATIENCE * self.quiet):
            self.sleep(self.poll)
            ready, news = self._look()
            waited += self.poll if waiting else 0.0
            waiting += ready
            still = 0.0 if news else still + self.poll
        return sorted(waiting)

    def _look(self) -> tuple[list[Path], bool]:
        """Take the files whose size is still; and whether anything has changed."""
        sizes = {path: _size(path) for path in self.find()}
        free = None if self.limit is None else max(0, self.limit - len(self.taken))
        new = [path for path in sizes if path not in self.taken]
        ready = [path for path in new if self.sizes.get(path) == sizes[path] is not None][:free]
        news = any(self.sizes.get(path) != sizes[path] for path in new) or bool(ready)
        # Forget files that are gone, so that what is remembered stays as large as the folder.
        self.taken = (self.taken & sizes.keys()) | set(ready)
        self.sizes = {path: size for path, size in sizes.items() if size is not None}
        return ready, news


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
