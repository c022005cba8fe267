"""Objects in S3: named as `s3://bucket/key`, listed, read, written and removed.

obstore does the work, and is loaded with the first request. Who may do what is settled by what it
and AWS's own tools take from the environment: keys (`AWS_ACCESS_KEY_ID`), roles (web identity,
container and instance credentials), profiles (`AWS_PROFILE`), or nobody at all
(`AWS_SKIP_SIGNATURE=true`). A name is a plain value: each process opens its own connections, with
its own credentials.
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

from morpheus.errors import MorpheusError, Unavailable, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME = "s3://"
INSTALL = "`pip install 'morpheus[s3]'`"
_PATIENCE = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_OWN_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Where one of these is set, obstore finds the credentials by itself."""
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}
_METADATA = "169.254.169.254"
"""Where a machine of AWS learns its role: the last that is asked."""

_NAMES = (
    "Give `s3://BUCKET/FOLDER/`; `aws s3 ls` lists yours, and AWS_ENDPOINT_URL names a server that "
    "is not AWS's."
)
_CREDENTIALS = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where there is a "
    "role; for a public bucket set AWS_SKIP_SIGNATURE=true."
)
_SERVER = "Try again, or set AWS_ENDPOINT_URL to the server that has the bucket."


@dataclass(frozen=True, order=True)
class Object:
    """An object, or what names of objects begin with.

    Attributes:
        bucket: Where it lies.
        key: Its name there.
        size: Bytes, where it was listed.
        changed: When it was written, where it was listed.
    """

    bucket: str
    key: str
    size: int = field(default=0, compare=False)
    changed: datetime | None = field(default=None, compare=False)

    @classmethod
    def named(cls, address: str) -> Self:
        """Take an address apart.

        Raises:
            UsageError: It names no bucket.

        >>> Object.named("s3://logs/AWSLogs/").key
        'AWSLogs/'
        """
        bucket, _, key = address.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"`{address}` names no bucket. Give `s3://BUCKET/FOLDER/`.")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> Object:
        return Object(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self._path.name

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


def is_address(text: str) -> bool:
    """Whether a text names something in S3.

    >>> is_address("s3://logs/may"), is_address("logs/may")
    (True, False)
    """
    return text.startswith(SCHEME)


def below(folder: Object) -> Iterator[Object]:
    """List all objects whose keys begin with a folder's, however deep.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with _reaching(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for page in obstore.list(_opened(folder), folder.key.rstrip("/") or None):
            yield from (_listed(folder, one) for one in page)


def level(folder: Object) -> tuple[list[Object], list[Object]]:
    """List a folder: the folders in it, and the objects in it itself.

    Raises:
        UsageError: There is no such bucket, or it must not be listed.
        Unavailable: S3 does not answer.
    """
    with _reaching(folder, "s3:ListBucket"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        page = obstore.list_with_delimiter(_opened(folder), folder.key.rstrip("/") or None)
    folders = [Object(folder.bucket, prefix) for prefix in page["common_prefixes"]]
    return folders, [_listed(folder, one) for one in page["objects"]]


def find(one: Object) -> Object | None:
    """Look for an object of exactly this name.

    Raises:
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    try:
        with _reaching(one, "s3:GetObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            return _listed(one, obstore.head(_opened(one), one.key))
    except FileNotFoundError:
        return None


def read(one: Object) -> bytes:
    """Read an object whole.

    Raises:
        FileNotFoundError: There is none of that name.
        UsageError: There is no such bucket, or it must not be read.
        Unavailable: S3 does not answer.
    """
    return read_marked(one)[0]


def read_marked(one: Object) -> tuple[bytes, str | None]:
    """Read an object whole, and the mark of this state of it; raises as `read` does."""
    with _reaching(one, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        got = obstore.get(_opened(one), one.key)
        return bytes(got.bytes()), got.meta["e_tag"]


def blocks(one: Object, size: int) -> Iterator[bytes]:
    """Read an object in blocks of some `size` bytes; raises as `read` does."""
    with _reaching(one, "s3:GetObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        for block in obstore.get(_opened(one), one.key).stream(min_chunk_size=size):
            yield bytes(block)


def write(one: Object, content: bytes | Path) -> None:
    """Write an object, which appears whole or not at all, in the place of one of that name.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    _put(one, content, "overwrite")


def replace_marked(one: Object, content: bytes, mark: str | None) -> bool:
    """Write an object unless another has done so since it was read, and say whether it is written.

    Where the server knows no such condition, it is written.

    Args:
        one: Which.
        content: What it is to hold.
        mark: That of the state which was read; None where there was none.

    Raises:
        UsageError: There is no such bucket, or it must not be written to.
        Unavailable: S3 does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - only who has an address needs the extra

    try:
        _put(one, content, "create" if mark is None else {"e_tag": mark})
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write(one, content)
    return True


def remove(objects: Iterable[Object]) -> None:
    """Remove objects; those that are gone already are no error.

    Raises:
        UsageError: They must not be removed.
        Unavailable: S3 does not answer.
    """
    by_bucket: dict[str, list[Object]] = {}
    for one in objects:
        by_bucket.setdefault(one.bucket, []).append(one)
    for some in by_bucket.values():
        with _reaching(some[0], "s3:DeleteObject"):
            import obstore  # noqa: PLC0415 - only who has an address needs the extra

            obstore.delete(_opened(some[0]), [one.key for one in some])


def _put(one: Object, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with _reaching(one, "s3:PutObject"):
        import obstore  # noqa: PLC0415 - only who has an address needs the extra

        obstore.put(_opened(one), one.key, content, mode=mode)


def _listed(folder: Object, about: Mapping[str, Any]) -> Object:
    return Object(folder.bucket, about["path"], about["size"], about["last_modified"])


def _opened(one: Object) -> S3Store:
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _store(one.bucket, tuple(sorted(settings.items())))


@lru_cache(maxsize=16)
def _store(bucket: str, settings: tuple[tuple[str, str], ...]) -> S3Store:
    from obstore.store import S3Store  # noqa: PLC0415 - only who has an address needs the extra

    given = dict(settings)
    plain = given.get("AWS_ENDPOINT_URL", given.get("AWS_ENDPOINT", "")).startswith("http://")
    more: dict[str, Any] = _profile(given)
    return S3Store(
        bucket,
        client_options={
            "allow_http": plain,
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),
        },
        retry_config=_PATIENCE,  # type: ignore[arg-type] # a dict of the type that obstore has when types are checked
        **more,
    )


def _profile(given: Mapping[str, str]) -> dict[str, Any]:
    """The credentials and the region of a profile, where obstore finds none by itself."""
    name = given.get("AWS_PROFILE")
    file = Path(given.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if any(key in given for key in _OWN_KEYS) or (name is None and not file.exists()):
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
    if session.region_name and "AWS_REGION" not in given:
        found["region"] = session.region_name
    return found


@contextmanager
def _reaching(one: Object, right: str) -> Iterator[None]:
    """Turn what S3 refuses into an error that says what to do."""
    try:
        import obstore.exceptions  # noqa: PLC0415 - only who has an address needs the extra
    except ImportError as error:
        raise UsageError(f"{one}: S3 is read and written by an extra. {INSTALL}.") from error
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
        told = _told(str(error), one, right)
        if told is None:
            raise FileNotFoundError(2, "no such object", str(one)) from error
        raise told from error


def _told(text: str, one: Object, right: str) -> MorpheusError | None:
    """What to say of obstore's message; None where only the object is not there."""
    code = next(iter(re.findall(r"<Code>(\w+)</Code>", text)), "")
    server = next(iter(re.findall(r"https?://[^/\s?]+", text)), "the server")
    first = text.strip().split("\n", 1)[0]
    denied = code in _DENIED or re.search(r"status code: 40[13]|PermissionDenied|Unauth", text)
    reasons: list[tuple[object, MorpheusError | None]] = [
        (code == "NoSuchBucket", UsageError(f"{one}: there is no bucket `{one.bucket}`. {_NAMES}")),
        (_METADATA in text, UsageError(f"{one}: no credentials were found. {_CREDENTIALS}")),
        (
            denied,
            UsageError(
                f"{one}: access denied ({code or 'status 403'}): the credentials need `{right}` "
                f"there. {_CREDENTIALS}"
            ),
        ),
        (
            code in _ELSEWHERE or "redirect" in text,
            UsageError(
                f"{one}: the bucket lies in another region. Set AWS_REGION to it; "
                f"`aws s3api get-bucket-location --bucket {one.bucket}` tells."
            ),
        ),
        (code == "NoSuchKey" or "status code: 404" in text, None),
        ("HTTP error" in text, Unavailable(f"{one}: {server} cannot be reached. {_SERVER}")),
        (True, Unavailable(f"{one}: S3 answered with an error ({first}). Try again later.")),
    ]
    return next(told for fits, told in reasons if fits)
