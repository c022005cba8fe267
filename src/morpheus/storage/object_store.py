"""Objects in S3 and servers like it: addresses, credentials, requests and errors.

Requests go through obstore, an extra. It is imported where it is used, so that local runs do not
need it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from morpheus.errors import MorpheusError, TransientError, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

S3_SCHEME = "s3://"


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a prefix of objects: `s3://bucket/key`.

    Attributes:
        bucket: Bucket.
        key: Key in the bucket.
        size: Size in bytes, if it was listed.
        modified: Modification time, if it was listed.
    """

    bucket: str
    key: str
    size: int = field(default=0, compare=False)
    modified: datetime | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Parse an `s3://bucket/key` URL.

        Raises:
            UsageError: It names no bucket.

        >>> ObjectPath.parse("s3://logs/AWSLogs/").key
        'AWSLogs/'
        """
        bucket, _, key = address.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"`{address}` names no bucket. Give `s3://BUCKET/FOLDER/`.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self._path.name

    @property
    def parent(self) -> ObjectPath:
        """Folder that contains it."""
        above = str(self._path.parent)
        return ObjectPath(self.bucket, "" if above == "." else above)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the key."""
        return self._path.parts

    @property
    def suffix(self) -> str:
        """Last suffix of the name, with the dot."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of the name."""
        return self._path.suffixes

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.key)


def is_object_url(text: str) -> bool:
    """Return whether a text is an S3 URL.

    >>> is_object_url("s3://logs/may"), is_object_url("logs/may")
    (True, False)
    """
    return text.startswith(S3_SCHEME)


S3_INSTALL_HINT = "`pip install 'morpheus-dfp[s3]'`"
_DENIED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_OTHER_REGION_CODES = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
}
_METADATA_PATH = "/latest/api/token"
"""Path of the AWS metadata service, which obstore asks for credentials last."""

_BUCKET_HINT = (
    "Give `s3://BUCKET/FOLDER/`; `aws s3 ls` lists your buckets. AWS_ENDPOINT_URL selects a server "
    "other than AWS."
)
_CREDENTIALS_HINT = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run on a machine with an "
    "IAM role; for a public bucket set AWS_SKIP_SIGNATURE=true."
)
_SERVER_HINT = "Try again, or set AWS_ENDPOINT_URL to the server of the bucket."


@contextmanager
def translate_errors(path: ObjectPath, permission: str) -> Iterator[None]:
    """Turn errors of obstore into errors that say what to do.

    Args:
        path: Object or folder of the request.
        permission: Permission that the request needs, by its AWS name.

    Raises:
        FileNotFoundError: There is no such object.
        NotSupportedError: The server does not support the request.
        UsageError: The extra is not installed, the bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    try:
        import obstore.exceptions  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"{path}: S3 needs an extra. {S3_INSTALL_HINT}.") from error
    passed_on = (
        obstore.exceptions.AlreadyExistsError,
        obstore.exceptions.PreconditionError,
        obstore.exceptions.NotSupportedError,
    )
    try:
        yield
    except passed_on:
        raise
    except (obstore.exceptions.BaseError, OSError) as error:
        if "status code: 501" in str(error):
            raise obstore.exceptions.NotSupportedError(str(path)) from error
        translated = _to_morpheus_error(str(error), path, permission)
        if translated is None:
            raise FileNotFoundError(2, "no such object", str(path)) from error
        raise translated from error


def _to_morpheus_error(text: str, path: ObjectPath, permission: str) -> MorpheusError | None:
    """Translate a message of obstore; None if the object does not exist."""
    code = next(iter(re.findall(r"<Code>(\w+)</Code>", text)), "")
    server = next(iter(re.findall(r"https?://[^/\s?]+", text)), "the server")
    first = text.strip().split("\n", 1)[0]
    denied = code in _DENIED_CODES or re.search(
        r"status code: 40[13]|PermissionDenied|Unauth", text
    )
    reasons: list[tuple[object, MorpheusError | None]] = [
        (
            code == "NoSuchBucket",
            UsageError(f"{path}: there is no bucket `{path.bucket}`. {_BUCKET_HINT}"),
        ),
        (
            _METADATA_PATH in text,
            UsageError(f"{path}: found no credentials. {_CREDENTIALS_HINT}"),
        ),
        (
            denied,
            UsageError(
                f"{path}: access denied ({code or 'status 403'}): the credentials need "
                f"`{permission}`. {_CREDENTIALS_HINT}"
            ),
        ),
        (
            code in _OTHER_REGION_CODES or "redirect" in text,
            UsageError(
                f"{path}: the bucket is in another region. Set AWS_REGION to that region; "
                f"`aws s3api get-bucket-location --bucket {path.bucket}` shows it."
            ),
        ),
        (code == "NoSuchKey" or "status code: 404" in text, None),
        (
            "HTTP error" in text,
            TransientError(f"{path}: {server} cannot be reached. {_SERVER_HINT}"),
        ),
        (True, TransientError(f"{path}: S3 answered with an error ({first}). Try again later.")),
    ]
    return next(error for applies, error in reasons if applies)


_RETRY_CONFIG = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""If one of these is set, obstore finds the credentials by itself."""


def get_object_store(path: ObjectPath) -> S3Store:
    """Return the connection to an object's bucket; connections are reused."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _cached_s3_store(path.bucket, tuple(sorted(environment.items())))


def storage_options() -> dict[str, str]:
    """Return the options for readers other than obstore, which find credentials themselves."""
    return {"AWS_ALLOW_HTTP": "true"} if _is_plain_http(os.environ) else {}


def _is_plain_http(env: Mapping[str, str]) -> bool:
    """Return whether the server is reached without encryption, such as one on this machine."""
    return env.get("AWS_ENDPOINT_URL", env.get("AWS_ENDPOINT", "")).startswith("http://")


@lru_cache(maxsize=16)
def _cached_s3_store(bucket: str, variables: tuple[tuple[str, str], ...]) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415 - an extra

    environment = dict(variables)
    profile: dict[str, Any] = _load_profile(environment)
    return S3Store(
        bucket,
        client_options={
            "allow_http": _is_plain_http(environment),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),
        },
        retry_config=_RETRY_CONFIG,  # type: ignore[arg-type] # a dict of the type that obstore has when types are checked
        **profile,
    )


def _load_profile(env: Mapping[str, str]) -> dict[str, Any]:
    """Load the credentials and region of a profile, unless obstore finds credentials itself."""
    name = env.get("AWS_PROFILE")
    file = Path(env.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if any(key in env for key in _CREDENTIAL_VARIABLES) or (name is None and not file.exists()):
        return {}
    try:
        import boto3  # noqa: PLC0415 - half a second, and only profiles need it
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - the same
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - the same
    except ImportError as error:
        raise UsageError(
            f"Reading the credentials of profile `{name or 'default'}` needs boto3, which is not "
            "installed. `pip install boto3`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    try:
        session = boto3.Session(profile_name=name)
        options: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"AWS_PROFILE: profile `{name or 'default'}` has no credentials ({error}). "
            "`aws configure list-profiles` lists the profiles."
        ) from error
    if session.region_name and "AWS_REGION" not in env:
        options["region"] = session.region_name
    return options


def list_recursive(folder: ObjectPath) -> Iterator[ObjectPath]:
    """List all objects below a folder, at any depth.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    with translate_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - an extra

        for page in obstore.list(get_object_store(folder), folder.key.rstrip("/") or None):
            yield from (_from_listing(folder, entry) for entry in page)


def list_dir(folder: ObjectPath) -> tuple[list[ObjectPath], list[ObjectPath]]:
    """List a folder, without what is below its subfolders.

    Returns:
        Its subfolders, and its objects.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    with translate_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - an extra

        page = obstore.list_with_delimiter(get_object_store(folder), folder.key.rstrip("/") or None)
    folders = [ObjectPath(folder.bucket, prefix) for prefix in page["common_prefixes"]]
    return folders, [_from_listing(folder, entry) for entry in page["objects"]]


def head_object(path: ObjectPath) -> ObjectPath | None:
    """Return an object with its size and time; None if it does not exist.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    try:
        with translate_errors(path, "s3:GetObject"):
            import obstore  # noqa: PLC0415 - an extra

            return _from_listing(path, obstore.head(get_object_store(path), path.key))
    except FileNotFoundError:
        return None


def read_object(path: ObjectPath) -> bytes:
    """Read an object.

    Raises:
        FileNotFoundError: It does not exist.
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    return get_with_etag(path)[0]


def get_with_etag(path: ObjectPath) -> tuple[bytes, str | None]:
    """Read an object and its ETag; raises as `read_object` does."""
    with translate_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - an extra

        response = obstore.get(get_object_store(path), path.key)
        return bytes(response.bytes()), response.meta["e_tag"]


def stream_object(path: ObjectPath, size: int) -> Iterator[bytes]:
    """Read an object in blocks of about `size` bytes; raises as `read_object` does."""
    with translate_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - an extra

        for block in obstore.get(get_object_store(path), path.key).stream(min_chunk_size=size):
            yield bytes(block)


def write_object(path: ObjectPath, content: bytes | Path) -> None:
    """Write an object atomically, replacing one of that name.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    _put(path, content, "overwrite")


def put_if_match(path: ObjectPath, content: bytes, etag: str | None) -> bool:
    """Write an object unless it has changed since it was read, and return whether it was written.

    Servers without conditional writes always write.

    Args:
        path: Object to write.
        content: New content.
        etag: ETag of the state that was read; None if there was no object.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: S3 does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - an extra

    try:
        _put(path, content, "create" if etag is None else {"e_tag": etag})
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write_object(path, content)
    return True


def delete_objects(paths: Iterable[ObjectPath]) -> None:
    """Remove objects. Missing objects are ignored.

    Raises:
        UsageError: Access is denied.
        TransientError: S3 does not answer.
    """
    by_bucket: dict[str, list[ObjectPath]] = {}
    for path in paths:
        by_bucket.setdefault(path.bucket, []).append(path)
    for objects in by_bucket.values():
        with translate_errors(objects[0], "s3:DeleteObject"):
            import obstore  # noqa: PLC0415 - an extra

            obstore.delete(get_object_store(objects[0]), [path.key for path in objects])


def _put(path: ObjectPath, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with translate_errors(path, "s3:PutObject"):
        import obstore  # noqa: PLC0415 - an extra

        obstore.put(get_object_store(path), path.key, content, mode=mode)


def _from_listing(folder: ObjectPath, entry: Mapping[str, Any]) -> ObjectPath:
    return ObjectPath(folder.bucket, entry["path"], entry["size"], entry["last_modified"])


__all__ = [
    "S3_SCHEME",
    "ObjectPath",
    "delete_objects",
    "get_with_etag",
    "head_object",
    "is_object_url",
    "list_dir",
    "list_recursive",
    "put_if_match",
    "read_object",
    "storage_options",
    "stream_object",
    "write_object",
]
