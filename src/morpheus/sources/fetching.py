"""Objects fetched some ahead of being read, side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from morpheus.bucket import S3Path
from morpheus.sources.files import LogPath, is_large, read_bytes

MAX_CONCURRENCY = 16
"""Objects on their way at a time."""
PREFETCH_BYTES = 1 << 26
"""Bytes, as they lie in the bucket, that are fetched and not yet read, about."""


class Prefetcher:
    """Reads files one after the other, in the order given; objects of a bucket come ahead of that.

    Large ones do not: they are read block by block, see `read_blocks`.

    Args:
        paths: The files that will be read, in order.
    """

    def __init__(self, paths: Iterable[LogPath]) -> None:
        self._pending = deque(p for p in paths if isinstance(p, S3Path) and not is_large(p))
        self._futures: dict[LogPath, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(MAX_CONCURRENCY) if self._pending else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, path: LogPath) -> bytes:
        """Read a file whole; see `read_bytes`, which also says what can go wrong."""
        if self._pool is None:
            return read_bytes(path)
        self._submit_ahead(self._pool)
        begun = self._futures.pop(path, None)
        return read_bytes(path) if begun is None else begun.result()

    def _submit_ahead(self, pool: ThreadPoolExecutor) -> None:
        held = sum(one.size for one in self._futures if isinstance(one, S3Path))
        while self._pending and len(self._futures) < 2 * MAX_CONCURRENCY and held < PREFETCH_BYTES:
            one = self._pending.popleft()
            self._futures[one] = pool.submit(read_bytes, one)
            held += one.size
