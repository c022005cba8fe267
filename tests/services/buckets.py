"""Servers like Google Cloud Storage and Azure Blob Storage, with the few requests that we make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_WRITES = Lock()
TIME = "Fri, 31 May 2024 09:30:00 GMT"


@dataclass
class Buckets:
    """The objects of a server, by bucket and key, and what was asked of it.

    Attributes:
        address: URL of the server.
        objects: Content of each object, by `bucket/key`.
        names: The buckets that exist.
        generations: How often each object was written, by `bucket/key`.
        requests: Method and path of each request.
    """

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    generations: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=lambda: {"lake"})
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_buckets(kind: str) -> Iterator[Buckets]:
    """Run a server.

    Args:
        kind: `gs` or `az`, which have different lists and errors.
    """
    buckets = Buckets()

    class Handler(_Handler):
        store, is_azure = buckets, kind == "az"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    buckets.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield buckets
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Buckets
    is_azure: bool

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._find_bucket():
            return
        with _WRITES:
            if failure := self._find_failed_condition():
                self._fail(*failure)
                return
            self.store.objects[self._path] = body
            self.store.generations[self._path] += 1
        self._answer(201 if self.is_azure else 200, b"")

    def do_GET(self) -> None:
        if not self._find_bucket():
            return
        if "/" not in self._path:
            self._answer(200, self._list())
        elif self._path in self.store.objects:
            self._answer(200, self.store.objects[self._path])
        else:
            self._fail(404, "BlobNotFound" if self.is_azure else "NoSuchKey")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.store.objects.pop(self._path, None)
        self._answer(202 if self.is_azure else 204, b"")

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    @property
    def _path(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _find_bucket(self) -> bool:
        self.store.requests.append(f"{self.command} {self._path}")
        exists = self._path.partition("/")[0] in self.store.names
        if not exists:
            self._fail(404, "ContainerNotFound" if self.is_azure else "NoSuchBucket")
        return exists

    def _find_failed_condition(self) -> tuple[int, str] | None:
        """Return the error of a conditional write whose condition does not hold."""
        content = self.store.objects.get(self._path)
        if not self.is_azure:
            wanted = self.headers.get("x-goog-if-generation-match")
            found = 0 if content is None else self.store.generations[self._path]
            return None if wanted in (None, str(found)) else (412, "PreconditionFailed")
        if self.headers.get("If-None-Match") == "*" and content is not None:
            return 409, "BlobAlreadyExists"
        tag = self.headers.get("If-Match")
        changed = tag is not None and (content is None or tag != _tag(content))
        return (412, "ConditionNotMet") if changed else None

    def _list(self) -> bytes:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        below = [key.partition("/")[2] for key in self.store.objects if key.startswith(self._path)]
        below = sorted(key for key in below if key.startswith(prefix))
        cut = {
            key: prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter
            for key in below
            if delimiter and delimiter in key[len(prefix) :]
        }
        folders = "".join(
            f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
            if self.is_azure
            else f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in sorted(set(cut.values()))
        )
        files = "".join(self._describe(key) for key in below if key not in cut)
        if self.is_azure:
            text = f"<EnumerationResults><Blobs>{folders}{files}</Blobs></EnumerationResults>"
        else:
            text = f"<ListBucketResult>{files}{folders}</ListBucketResult>"
        return f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()

    def _describe(self, key: str) -> str:
        content = self.store.objects[f"{self._path}/{key}"]
        if self.is_azure:
            about = f"<Last-Modified>{TIME}</Last-Modified><Etag>{_tag(content)}</Etag>"
            about += f"<Content-Length>{len(content)}</Content-Length>"
            about += "<Content-Type>text/plain</Content-Type>"
            return f"<Blob><Name>{escape(key)}</Name><Properties>{about}</Properties></Blob>"
        about = f"<LastModified>2024-05-31T09:30:00Z</LastModified><Size>{len(content)}</Size>"
        return f"<Contents><Key>{escape(key)}</Key>{about}<ETag>{_tag(content)}</ETag></Contents>"

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", _tag(body))
        if not self.is_azure and self._path in self.store.generations:
            self.send_header("x-goog-generation", str(self.store.generations[self._path]))
        self.send_header("Last-Modified", TIME)
        self.send_header("Content-Length", str(len(body)))
        if self.is_azure:
            self.send_header("x-ms-error-code", "" if status < 400 else "BlobNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(content: bytes) -> str:
    return f'"{md5(content, usedforsecurity=False).hexdigest()}"'
