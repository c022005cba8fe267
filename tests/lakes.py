"""A bucket on an S3 server in the test, and the requests that the server got."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import obstore
from obstore.store import S3Store

# The log colours rejected requests.
_ASKED = re.compile(r'"(?:\x1b\[\d+m)*(\w+) /(\S*) HTTP')


class Requests(logging.Handler):
    """Records method and path, with its query, of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = _ASKED.search(record.getMessage())
        if found:
            self.seen.append((found[1], unquote(found[2])))


@dataclass(frozen=True)
class Lake:
    """A bucket called `lake`."""

    address: str
    asked: list[tuple[str, str]]

    def put(self, key: str, content: bytes) -> None:
        obstore.put(self.store, key, content)

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        store = self.store
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: obstore.put(store, key, objects[key]), objects))

    def names(self, prefix: str = "") -> list[str]:
        pages = obstore.list(self.store, prefix or None)
        return sorted(entry["path"] for page in pages for entry in page)

    def read(self, key: str) -> bytes:
        return bytes(obstore.get(self.store, key).bytes())

    def forget(self) -> None:
        self.asked.clear()

    @property
    def fetched(self) -> list[str]:
        """Keys of the objects that were read since `forget`, sorted."""
        paths = (path for method, path in self.asked if method == "GET")
        return sorted(path.removeprefix("lake/") for path in paths if "list-type" not in path)

    @property
    def listings(self) -> list[str]:
        """Listings requested since `forget`."""
        return [path for method, path in self.asked if method == "GET" and "list-type" in path]

    @property
    def store(self) -> S3Store:
        return S3Store(
            "lake",
            endpoint=self.address,
            access_key_id="key",
            secret_access_key="secret",  # noqa: S106 - the server accepts any
            region="us-east-1",
            client_options={"allow_http": True},
        )
