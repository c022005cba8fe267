"""Objects fetched some ahead of being read, side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from morpheus.bucket import Object
from morpheus.sources.files import Log, is_large, read_bytes

AT_ONCE = 16
"""Objects on their way at a time."""
AHEAD = 1 << 26
"""Bytes, as they lie in the bucket, that are fetched and not yet read, about."""


class Fetching:
    """Reads files one after the other, in the order given; objects of a bucket come ahead of that.

    Large ones do not: they are read block by block, see `read_blocks`.

    Args:
        paths: The files that will be read, in order.
    """

    def __init__(self, paths: Iterable[Log]) -> None:
        self._coming = deque(p for p in paths if isinstance(p, Object) and not is_large(p))
        self._begun: dict[Log, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE) if self._coming else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, path: Log) -> bytes:
        """Read a file whole; see `read_bytes`, which also says what can go wrong."""
        if self._pool is None:
            return read_bytes(path)
        self._begin(self._pool)
        begun = self._begun.pop(path, None)
        return read_bytes(path) if begun is None else begun.result()

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        held = sum(one.size for one in self._begun if isinstance(one, Object))
        while self._coming and len(self._begun) < 2 * AT_ONCE and held < AHEAD:
            one = self._coming.popleft()
            self._begun[one] = pool.submit(read_bytes, one)
            held += one.size
