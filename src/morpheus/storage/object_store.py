"""What an object is called: `s3://bucket/key`."""

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
class S3Path:
    """An object, or what names of objects begin with.

    Attributes:
        bucket: Where it lies.
        key: Its name there.
        size: Bytes, where it was listed.
        modified: When it was written, where it was listed.
    """

    bucket: str
    key: str
    size: int = field(default=0, compare=False)
    modified: datetime | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Take an address apart.

        Raises:
            UsageError: It names no bucket.

        >>> S3Path.named("s3://logs/AWSLogs/").key
        'AWSLogs/'
        """
        bucket, _, key = address.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"`{address}` names no bucket. Give `s3://BUCKET/FOLDER/`.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self._path.name

    @property
    def parent(self) -> S3Path:
        """The folder that it lies in."""
        above = str(self._path.parent)
        return S3Path(self.bucket, "" if above == "." else above)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its key."""
        return self._path.parts

    @property
    def suffix(self) -> str:
        """The last suffix of its name, with the dot."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of its name."""
        return self._path.suffixes

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.key)


def is_s3_url(text: str) -> bool:
    """Whether a text names something in S3.

    >>> is_s3_url("s3://logs/may"), is_s3_url("logs/may")
    (True, False)
    """
    return text.startswith(S3_SCHEME)


S3_INSTALL_HINT = "`pip install 'morpheus[s3]'`"
_DENIED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_OTHER_REGION_CODES = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
}
_METADATA_PATH = "/latest/api/token"
"""Where a machine of AWS asks for its role: the last that is tried."""

_BUCKET_HINT = (
    "Give `s3://BUCKET/FOLDER/`; `aws s3 ls` lists yours, and AWS_ENDPOINT_URL names a server that "
    "is not AWS's."
)
_CREDENTIALS_HINT = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a "
    "role; for a public bucket set AWS_SKIP_SIGNATURE=true."
)
_SERVER_HINT = "Try again, or set AWS_ENDPOINT_URL to the server that has the bucket."


@contextmanager
def translate_s3_errors(path: S3Path, permission: str) -> Iterator[None]:
    """Turn what S3 refuses into an error that says what to do.

    Args:
        path: What is asked for.
        permission: What one must be allowed to do there, as AWS calls it.

    Raises:
        FileNotFoundError: There is no such object.
        NotSupportedError: The server cannot do that.
        UsageError: The extra is not installed, the bucket is not there, or not for us.
        Unavailable: S3 does not answer.
    """
    try:
        import obstore.exceptions  # noqa: PLC0415 - only who has an address needs the extra
    except ImportError as error:
        raise UsageError(
            f"{path}: S3 is read and written by an extra. {S3_INSTALL_HINT}."
        ) from error
    excused = (
        obstore.exceptions.AlreadyExistsError,
        obstore.exceptions.PreconditionError,
        obstore.exceptions.NotSupportedError,
    )
    try:
        yield
    except excused:
        raise
    except (obstore.exceptions.BaseError, OSError) as error:
        if "status code: 501" in str(error):
            raise obstore.exceptions.NotSupportedError(str(path)) from error
        told = _to_morpheus_error(str(error), path, permission)
        if told is None:
            raise FileNotFoundError(2, "no such object", str(path)) from error
        raise told from error


def _to_morpheus_error(text: str, path: S3Path, permission: str) -> MorpheusError | None:
    """What to say of obstore's message; None where only the object is not there."""
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
            UsageError(f"{path}: no credentials were found. {_CREDENTIALS_HINT}"),
        ),
        (
            denied,
            UsageError(
                f"{path}: access denied ({code or 'status 403'}): the credentials need `{permission}` "
                f"there. {_CREDENTIALS_HINT}"
            ),
        ),
        (
            code in _OTHER_REGION_CODES or "redirect" in text,
            UsageError(
                f"{path}: the bucket lies in another region. Set AWS_REGION to it; "
                f"`aws s3api get-bucket-location --bucket {path.bucket}` tells."
            ),
        ),
        (code == "NoSuchKey" or "status code: 404" in text, None),
        (
            "HTTP error" in text,
            TransientError(f"{path}: {server} cannot be reached. {_SERVER_HINT}"),
        ),
        (True, TransientError(f"{path}: S3 answered with an error ({first}). Try again later.")),
    ]
    return next(told for fits, told in reasons if fits)


_RETRY_CONFIG = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Where one of these is set, obstore finds the credentials by itself."""


def get_s3_store(path: S3Path) -> S3Store:
    """The connection to an object's bucket."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _cached_s3_store(path.bucket, tuple(sorted(settings.items())))


def storage_options() -> dict[str, str]:
    """What readers other than obstore, which find the credentials themselves, have to be told."""
    return {"AWS_ALLOW_HTTP": "true"} if _is_plain_http(os.environ) else {}


def _is_plain_http(env: Mapping[str, str]) -> bool:
    """Whether the server is reached without encryption, such as one on this machine."""
    return env.get("AWS_ENDPOINT_URL", env.get("AWS_ENDPOINT", "")).startswith("http://")


@lru_cache(maxsize=16)
def _cached_s3_store(bucket: str, settings: tuple[tuple[str, str], ...]) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415 - only who has an address needs the extra

    given = dict(settings)
    more: dict[str, Any] = _load_profile(given)
    return S3Store(
        bucket,
        client_options={
            "allow_http": _is_plain_http(given),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),
        },
        retry_config=_RETRY_CONFIG,  # type: ignore[arg-type] # a dict of the type that obstore has when types are checked
        **more,
    )


def _load_profile(env: Mapping[str, str]) -> dict[str, Any]:
    """The credentials and the region of a profile, where obstore finds none by itself."""
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
            f"The credentials of profile `{name or 'default'}` are read by boto3, which is not "
            "installed. `pip install boto3`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    try:
        session = boto3.Session(profile_name=name)
        found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            f"AWS_PROFILE: profile `{name or 'default'}` has no credentials ({error}). "
            "`aws configure list-profiles` lists those that there are."
        ) from error
    if session.region_name and "AWS_REGION" not in env:
        found["region"] = session.region_name
    return found


def list_recursive(folder: S3Path) -> Iterator[S3Path]:
    """List all objects whose keys begin with a folder's, however deep.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with translate_s3_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for page in obstore.list(get_s3_store(folder), folder.key.rstrip("/") or None):
            yield from (_from_listing(folder, one) for one in page)


def list_dir(folder: S3Path) -> tuple[list[S3Path], list[S3Path]]:
    """List a folder: the folders in it, and the objects in it itself.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with translate_s3_errors(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        page = obstore.list_with_delimiter(get_s3_store(folder), folder.key.rstrip("/") or None)
    folders = [S3Path(folder.bucket, prefix) for prefix in page["common_prefixes"]]
    return folders, [_from_listing(folder, one) for one in page["objects"]]


def head_object(path: S3Path) -> S3Path | None:
    """Look for an object of exactly this name.

    Raises:
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    try:
        with translate_s3_errors(path, "s3:GetObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            return _from_listing(path, obstore.head(get_s3_store(path), path.key))
    except FileNotFoundError:
        return None


def read_object(path: S3Path) -> bytes:
    """Read an object whole.

    Raises:
        FileNotFoundError: There is none of that name.
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    return get_with_etag(path)[0]


def get_with_etag(path: S3Path) -> tuple[bytes, str | None]:
    """Read an object whole, and the mark of this state of it; raises as `read_object` does."""
    with translate_s3_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        got = obstore.get(get_s3_store(path), path.key)
        return bytes(got.bytes()), got.meta["e_tag"]


def stream_object(path: S3Path, size: int) -> Iterator[bytes]:
    """Read an object in blocks of some `size` bytes; raises as `read_object` does."""
    with translate_s3_errors(path, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for block in obstore.get(get_s3_store(path), path.key).stream(min_chunk_size=size):
            yield bytes(block)


def write_object(path: S3Path, content: bytes | Path) -> None:
    """Write an object, which appears whole or not at all, in the place of one of that name.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    _put(path, content, "overwrite")


def put_if_match(path: S3Path, content: bytes, etag: str | None) -> bool:
    """Write an object unless another has done so since it was read, and say whether it is written.

    Where the server knows no such condition, it is written.

    Args:
        path: Which.
        content: What it is to hold.
        etag: That of the state which was read; None where there was none.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - only who has an address needs the extra

    try:
        _put(path, content, "create" if etag is None else {"e_tag": etag})
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write_object(path, content)
    return True


def delete_objects(paths: Iterable[S3Path]) -> None:
    """Remove objects; those that are gone already are no error.

    Raises:
        UsageError: They must not be removed.
        Unavailable: S3 does not answer.
    """
    by_bucket: dict[str, list[S3Path]] = {}
    for one in paths:
        by_bucket.setdefault(one.bucket, []).append(one)
    for some in by_bucket.values():
        with translate_s3_errors(some[0], "s3:DeleteObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            obstore.delete(get_s3_store(some[0]), [one.key for one in some])


def _put(path: S3Path, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with translate_s3_errors(path, "s3:PutObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        obstore.put(get_s3_store(path), path.key, content, mode=mode)


def _from_listing(folder: S3Path, entry: Mapping[str, Any]) -> S3Path:
    return S3Path(folder.bucket, entry["path"], entry["size"], entry["last_modified"])


__all__ = [
    "S3_SCHEME",
    "S3Path",
    "delete_objects",
    "get_with_etag",
    "head_object",
    "is_s3_url",
    "list_dir",
    "list_recursive",
    "put_if_match",
    "read_object",
    "storage_options",
    "stream_object",
    "write_object",
]
