"""Objects in S3, Google Cloud Storage and Azure: addresses, credentials, requests and errors.

Requests go through obstore, an extra. It is imported where it is used, so that local runs do not
need it.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import unquote

import msgspec

from morpheus.errors import MorpheusError, RecordError, TransientError, UsageError

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    ObjectClient = AzureStore | GCSStore | S3Store


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Provider(msgspec.Struct, frozen=True):
    """What differs between the object stores.

    Attributes:
        name: Name of the service.
        container: Its word for a bucket.
        prefix: Prefix of the environment variables with its credentials.
        permissions: Its name of each permission.
        access_hint: How to name a bucket.
        credentials_hint: How to give credentials.
        server_hint: What to do when it does not answer.
    """

    name: str
    container: str
    prefix: str
    permissions: Mapping[str, str]
    access_hint: str
    credentials_hint: str
    server_hint: str


LIST, READ, WRITE, DELETE = "list", "read", "write", "delete"
"""Permissions that requests need."""
PROVIDERS = {
    "s3": Provider(
        "S3",
        "bucket",
        "AWS_",
        {
            LIST: "s3:ListBucket",
            READ: "s3:GetObject",
            WRITE: "s3:PutObject",
            DELETE: "s3:DeleteObject",
        },
        "Give `s3://BUCKET/FOLDER/`; `aws s3 ls` lists your buckets. AWS_ENDPOINT_URL selects a "
        "server other than AWS.",
        "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run on a machine with "
        "an IAM role; for a public bucket set AWS_SKIP_SIGNATURE=true.",
        "Try again, or set AWS_ENDPOINT_URL to the server of the bucket.",
    ),
    "gs": Provider(
        "Google Cloud Storage",
        "bucket",
        "GOOGLE_",
        {name: f"storage.objects.{name}" for name in (LIST, DELETE)}
        | {READ: "storage.objects.get", WRITE: "storage.objects.create"},
        "Give `gs://BUCKET/FOLDER/`; `gcloud storage ls` lists your buckets.",
        "Set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or run on a machine with a "
        "service account; for a public bucket set GOOGLE_SKIP_SIGNATURE=true.",
        "Try again, or set GOOGLE_BASE_URL to the server of the bucket.",
    ),
    "az": Provider(
        "Azure Blob Storage",
        "container",
        "AZURE_",
        dict.fromkeys((LIST, READ), "Storage Blob Data Reader")
        | dict.fromkeys((WRITE, DELETE), "Storage Blob Data Contributor"),
        "Give `az://CONTAINER/FOLDER/`, and set AZURE_STORAGE_ACCOUNT_NAME to the storage account.",
        "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, "
        "or run on a machine with a managed identity; for a public container set "
        "AZURE_SKIP_SIGNATURE=true.",
        "Try again, or set AZURE_STORAGE_ENDPOINT to the server of the container.",
    ),
}
"""The object stores, by the scheme of their URLs."""
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az"}
"""Other spellings of the schemes, as Hadoop and other libraries use them."""
_URL_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NOT_IN_BUCKETS = re.compile(r"[\s<>`\x00-\x1f\x7f]")
"""Characters with which a request cannot be written."""
_CUT_URL_PATTERN = re.compile(rf"(file|{'|'.join([*PROVIDERS, *_ALIASES])}):", re.IGNORECASE)
STDOUT = "-"
"""File name that stands for stdout."""


def normalise_location(text: str, option: str = "", *, local_only: bool = False) -> str:
    """Return a path or URL in its usual form: a local path, `s3://`, `gs://` or `az://`.

    `file:` URLs become local paths. Globs stay as they are.

    Args:
        text: A path, a glob or a URL.
        option: The option that gave it, for messages.
        local_only: Reject object stores.

    Raises:
        UsageError: The URL is not of a kind that can be used here.

    >>> normalise_location("file:///var/log/a%20b.json"), normalise_location("S3://logs/may/*.gz")
    ('/var/log/a b.json', 's3://logs/may/*.gz')
    """
    where = f"{option}: " if option else ""
    local = "a path on this machine"
    kinds = local if local_only else f"{local}, or a URL with `s3://`, `gs://` or `az://`"
    url = _URL_PATTERN.fullmatch(text)
    if url is None:
        cut = _CUT_URL_PATTERN.match(text)
        if cut is None:
            return text
        if cut[1].lower() == "file" and text[cut.end() :].startswith("/"):
            return unquote(text[cut.end() :])
        raise UsageError(
            f"{where}`{text}` is not a URL: two slashes are missing after `{cut[0]}`. Give "
            f"`{cut[1].lower()}://...`, or `./{text}` for a local path."
        )
    scheme, rest = url[1].lower(), url[2]
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "file":
        return _file_url_path(text, rest, where)
    if scheme not in PROVIDERS or local_only:
        raise UsageError(f"{where}`{text}`: `{url[1]}://` is not supported here. Give {kinds}.")
    return f"{scheme}://{rest}"


def _file_url_path(text: str, rest: str, where: str) -> str:
    host, slash, path = rest.partition("/")
    if not slash or host.lower() not in {"", "localhost"}:
        raise UsageError(
            f"{where}`{text}` names the machine `{host}`. Give `file:///` and the full path, or a "
            "path without `file:`."
        )
    return unquote(f"/{path}")


def is_in_folder(place: Path | ObjectPath, folder: Path | ObjectPath) -> bool:
    """Return whether a file or a folder is a folder, or in it. Links are followed.

    >>> is_in_folder(ObjectPath("logs", "a/b.json"), ObjectPath("logs", "a/"))
    True
    >>> is_in_folder(ObjectPath("logs", "ab.json"), ObjectPath("logs", "a"))
    False
    """
    if isinstance(place, ObjectPath) and isinstance(folder, ObjectPath):
        if (place.scheme, place.bucket) != (folder.scheme, folder.bucket):
            return False
        start = folder.key.strip("/")
        return not start or f"{place.key.strip('/')}/".startswith(f"{start}/")
    if isinstance(place, ObjectPath) or isinstance(folder, ObjectPath):
        return False
    return place.resolve().is_relative_to(folder.resolve())


def parse_location(text: str, option: str = "") -> Path | ObjectPath:
    """Return a local path, or a path in an object store.

    Args:
        text: A path or a URL.
        option: The option that gave it, for messages.

    Raises:
        UsageError: The URL is of another kind, or names no bucket.

    >>> parse_location("gs://soc/models").bucket
    'soc'
    """
    location = normalise_location(text, option)
    return ObjectPath.parse(location) if is_object_url(location) else Path(location)


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a prefix of objects: `s3://bucket/key`.

    Attributes:
        bucket: Bucket, or container in Azure.
        key: Key in the bucket.
        size: Size in bytes, if it was listed.
        modified: Modification time, if it was listed.
        scheme: The object store; one of `PROVIDERS`.
        etag: Identifies the content, if it was listed; without quotes.
    """

    bucket: str
    key: str
    size: int = field(default=0, compare=False)
    modified: datetime | None = field(default=None, compare=False)
    scheme: str = "s3"
    etag: str = field(default="", compare=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Parse a URL such as `s3://bucket/key`.

        Raises:
            UsageError: It names no bucket, or one that cannot exist.

        >>> ObjectPath.parse("s3://logs/AWSLogs/").key
        'AWSLogs/'
        """
        scheme, _, rest = address.partition("://")
        bucket, _, key = rest.partition("/")
        provider = PROVIDERS[scheme]
        if not bucket:
            word = provider.container
            raise UsageError(
                f"`{address}` names no {word}. Give `{scheme}://{word.upper()}/FOLDER/`."
            )
        if wrong := _NOT_IN_BUCKETS.search(bucket):
            raise UsageError(
                f"`{address}`: no {provider.container} has {wrong[0]!a} in its name. "
                f"{provider.access_hint}"
            )
        return cls(bucket, key, scheme=scheme)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return self.with_key(f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    def with_key(self, key: str, size: int = 0, modified: datetime | None = None) -> ObjectPath:
        """Return another object of the bucket."""
        return ObjectPath(self.bucket, key, size, modified, self.scheme)

    @property
    def provider(self) -> Provider:
        """The object store."""
        return PROVIDERS[self.scheme]

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self._path.name

    @property
    def parent(self) -> ObjectPath:
        """Folder that contains it."""
        above = str(self._path.parent)
        return self.with_key("" if above == "." else above)

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
    """Return whether a text is a URL of an object store.

    >>> is_object_url("s3://logs/may"), is_object_url("az://logs/may"), is_object_url("logs/may")
    (True, True, False)
    """
    return text.partition("://")[0] in PROVIDERS and "://" in text


MLFLOW_PREFIX = "mlflow:"
"""Prefix of the name of a registered model of MLflow, in place of a folder of models."""


def is_remote(text: str) -> bool:
    """Return whether a text names no path of this machine.

    >>> is_remote("s3://logs/models"), is_remote("mlflow:models"), is_remote("models")
    (True, True, False)
    """
    return "://" in text or text.startswith(MLFLOW_PREFIX)


EXTRA_HINT = "`pip install 'morpheus-dfp[s3]'`"
"""The extra has the client of all object stores."""
_DENIED_CODES = {
    "AccessDenied",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NoAuthenticationInformation",
    "PublicAccessNotPermitted",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_DENIED_PATTERN = re.compile(
    r"status code: 40[13]\b|^(?:PermissionDenied|Unauthenticated) ", re.MULTILINE
)
_ARCHIVED_CODES = {"BlobArchived", "InvalidObjectState"}
_REFUSED_PATTERN = re.compile(r"status code: 4(?!01|03|04|08|09|29)\d\d\b")
"""Answers to a request for an object that another attempt does not change."""
_PASSING_CODES = re.compile(r"Throttl|RequestTimeout|SlowDown|LimitExceeded")
"""Answers of this kind that pass."""
_NO_BUCKET_CODES = {"ContainerNotFound", "NoSuchBucket"}
_NO_OBJECT_CODES = {"BlobNotFound", "NoSuchKey"}
_OTHER_REGION_CODES = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
    "PermanentRedirect",
}
_METADATA_PATTERN = re.compile(
    r"/latest/api/token|metadata\.google\.internal|169\.254\.169\.254|computeMetadata"
)
"""Addresses of the clouds' metadata services, which obstore asks for credentials last."""


@contextmanager
def translate_errors(path: ObjectPath, permission: str) -> Iterator[None]:
    """Turn errors of obstore into errors that say what to do.

    Args:
        path: Object or folder of the request.
        permission: Permission that the request needs.

    Raises:
        FileNotFoundError: There is no such object.
        NotSupportedError: The server does not support the request.
        UsageError: The extra is not installed, the bucket does not exist, access is denied, or a
            key is of a kind that cannot be requested.
        RecordError: The key of the object to read is of such a kind, or the server refuses to give
            the object.
        TransientError: The object store does not answer.
    """
    try:
        import obstore.exceptions  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"{path}: {path.provider.name} needs an extra. {EXTRA_HINT}.") from error
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
    except ValueError as error:
        if _INVALID_KEY not in str(error):
            raise
        if permission == READ:
            raise RecordError(_KEY_HINT, file=path, records=None) from error
        raise UsageError(f"{path}: {_KEY_HINT}.") from error


_INVALID_KEY, _INVALID_LISTED_KEY = "Could not parse path", "object with invalid path: "
_KEY_HINT = (
    "a key with an empty part (`//`), a part `.` or `..`, or a control character cannot be read. "
    "Copy the object to another key"
)


def _to_morpheus_error(text: str, path: ObjectPath, permission: str) -> MorpheusError | None:
    """Translate a message of obstore; None if the object does not exist."""
    code = next(iter(re.findall(r"<Code>([\w.]+)</Code>", text)), "")
    message = next(iter(re.findall(r"<Message>([^<]*)</Message>", text)), "")
    if permission == READ and code in _ARCHIVED_CODES:
        return RecordError(f"it is archived ({code}); restore it", file=path, records=None)
    if reason := _find_user_error(text, code, message, path, permission):
        return UsageError(f"{path}: {reason}")
    if code in _NO_OBJECT_CODES or "status code: 404" in text:
        return None
    provider = path.provider
    is_refused = permission == READ and code and not _PASSING_CODES.search(code)
    if is_refused and _REFUSED_PATTERN.search(text):
        about = f"{code}: {message.rstrip('.')}" if message else code
        reason = f"{provider.name} refuses to give the object ({about})"
        return RecordError(reason, file=path, records=None)
    if "HTTP error" in text:
        server = next(iter(re.findall(r"https?://[^/\s?]+", text)), "the server")
        failed = "does not answer" if "kind: Timeout" in text else "cannot be reached"
        return TransientError(f"{path}: {server} {failed}. {provider.server_hint}")
    first = text.strip().split("\n", 1)[0]
    return TransientError(
        f"{path}: {provider.name} answered with an error ({first}). Try again later."
    )


def _find_user_error(text: str, code: str, message: str, path: ObjectPath, permission: str) -> str:
    """Return what the user must change; empty if it is nothing.

    The text contains the key, so that no word of it is looked for alone.
    """
    provider = path.provider
    show_region = f"`aws s3api get-bucket-location --bucket {path.bucket}` shows it."
    denied = code in _DENIED_CODES or _DENIED_PATTERN.search(text)
    invalid = text.partition(_INVALID_LISTED_KEY)[2].partition("\n")[0]
    reasons: list[tuple[object, str]] = [
        (
            invalid,
            f"the key of an object cannot be read ({invalid}). Copy it, or give another folder.",
        ),
        (
            code in _NO_BUCKET_CODES,
            f"there is no {provider.container} `{path.bucket}`. {provider.access_hint}",
        ),
        (_METADATA_PATTERN.search(text), f"found no credentials. {provider.credentials_hint}"),
        (
            "Account must be specified" in text,
            f"the storage account is not known. {provider.access_hint}",
        ),
        (
            denied or (code.startswith("KMS.") and not _PASSING_CODES.search(code)),
            _describe_denial(code, message, provider, provider.permissions[permission]),
        ),
        (
            path.scheme == "s3" and (code in _OTHER_REGION_CODES or "Received redirect" in text),
            f"the bucket is in another region. Set AWS_REGION to that region; {show_region}",
        ),
    ]
    return next((reason for applies, reason in reasons if applies), "")


def _describe_denial(code: str, message: str, provider: Provider, needed: str) -> str:
    """Return what to do about a request that was denied.

    Args:
        code: Code of the answer; empty for none.
        message: Message of the answer.
        provider: The object store.
        needed: Permission that the request needs.
    """
    key_use = re.search(r"kms:\w+", message)
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine differs too much from that of the server. Set the clock."
    if code.startswith("KMS."):
        return f"the key that encrypts it cannot be used ({code}: {message.rstrip('.')})."
    if key_use is not None:
        return f"access denied ({code}): the credentials need `{key_use[0]}` for its key."
    return (
        f"access denied ({code or 'status 403'}): the credentials need `{needed}`. "
        + provider.credentials_hint
    )


RETRY_CONFIG = {"max_retries": 3, "retry_timeout": timedelta(seconds=45)}
READ_SECONDS, WRITE_SECONDS = 30, 60
"""How long a server may be silent. With the retries, a request fails after about a minute. The
server is also silent while it gets the content of a request that writes."""
_PARTS_AT_ONCE = 2
"""Parts of 5 MiB that are on the way at once: on a slow line, more of them would take too long."""
_CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""If one of these is set, obstore finds the credentials by itself."""


def get_object_store(path: ObjectPath, permission: str = READ) -> ObjectClient:
    """Return the connection to an object's bucket; connections are reused.

    Args:
        path: The object.
        permission: Permission that the requests need. Those that write have more time.
    """
    silence = WRITE_SECONDS if permission == WRITE else READ_SECONDS
    prefix = path.provider.prefix
    environment = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    variables = tuple(sorted(environment.items()))
    return _cached_client(path.scheme, path.bucket, variables, silence)


def storage_options() -> dict[str, str]:
    """Return the options for readers other than obstore, which find credentials themselves."""
    return {"AWS_ALLOW_HTTP": "true"} if _is_plain_http(os.environ) else {}


def _is_plain_http(env: Mapping[str, str]) -> bool:
    """Return whether the server is reached without encryption, such as one on this machine."""
    if env.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in {"1", "true"}:
        return True
    if re.search(r'"gcs_base_url":\s*"http://', env.get("GOOGLE_SERVICE_ACCOUNT_KEY", "")):
        return True
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")
    address = next((env[name] for name in names if env.get(name)), "")
    return address.startswith("http://")


@lru_cache(maxsize=16)
def _cached_client(
    scheme: str, bucket: str, variables: tuple[tuple[str, str], ...], silence: int
) -> ObjectClient:
    from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415 - an extra

    environment = dict(variables)
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": _is_plain_http(environment),
            # With the retries, a dead address is an error after about 20 seconds.
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=silence),
            "timeout": timedelta(minutes=10),
        },
        "retry_config": RETRY_CONFIG,
    }
    if scheme == "gs":
        return GCSStore(bucket, **common)
    if scheme == "az":
        return AzureStore(bucket, **common)
    return S3Store(bucket, **common, **_load_profile(environment))


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


_RunningRequest = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]
_RUNNING: set[Future[Any]] = set()
_LEAVE_SECONDS = 1.0
"""Seconds that requests in threads have at the end of the process."""


class RequestThreads:
    """Runs requests at the same time, in threads that do not hold up the end of the process.

    A request to a server that says nothing takes up to a minute, and cannot be interrupted.

    Args:
        number: Maximum number of requests at the same time.
    """

    def __init__(self, number: int) -> None:
        self._jobs = SimpleQueue[_RunningRequest | None]()
        self._number, self._started = number, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def submit(self, call: Callable[..., ResultT], *arguments: Any) -> Future[ResultT]:  # noqa: ANN401 - those of any call
        """Run a call in a thread, as soon as one is free."""
        future = Future[ResultT]()
        self._jobs.put((future, call, arguments))
        if self._started < self._number:
            self._started += 1
            Thread(target=_run_requests, args=(self._jobs,), daemon=True).start()
        return future

    def map(self, call: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
        """Run a call for each item, and return the results in order."""
        return [future.result() for future in [self.submit(call, item) for item in items]]

    def close(self) -> None:
        """Forget the calls that have not begun. The others are not waited for."""
        with suppress(Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job[0].cancel()
        for _ in range(self._started):
            self._jobs.put(None)


def _run_requests(jobs: SimpleQueue[_RunningRequest | None]) -> None:
    while (job := jobs.get()) is not None:
        future, call, arguments = job
        if not future.set_running_or_notify_cancel():
            continue
        _RUNNING.add(future)
        try:
            future.set_result(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - who waits for the result gets it
            future.set_exception(error)
        _RUNNING.discard(future)
        del job, future, call, arguments  # what they hold is needed no more


@atexit.register
def _wait_for_requests() -> None:
    """Let requests end that are about to: a thread that is stopped in one may crash."""
    wait(list(_RUNNING), _LEAVE_SECONDS)


def _request(call: Callable[..., ResultT], *arguments: Any) -> ResultT:  # noqa: ANN401 - those of any call
    """Run a request that reads. The main thread waits for it so that a signal is handled."""
    if current_thread() is not main_thread():
        return call(*arguments)
    with RequestThreads(1) as threads:
        return threads.submit(call, *arguments).result()


def _iterate(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Iterate over what comes in several requests."""
    iterator = iter(items)
    while (item := _request(next, iterator, None)) is not None:
        yield item


def list_recursive(folder: ObjectPath) -> Iterator[ObjectPath]:
    """List all objects below a folder, at any depth.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    with translate_errors(folder, LIST):
        import obstore  # noqa: PLC0415 - an extra

        pages = obstore.list(get_object_store(folder), folder.key.rstrip("/") or None)
        for page in _iterate(pages):
            yield from (_from_listing(folder, entry) for entry in page)


def list_dir(folder: ObjectPath) -> tuple[list[ObjectPath], list[ObjectPath]]:
    """List a folder, without what is below its subfolders.

    Returns:
        Its subfolders, and its objects.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    with translate_errors(folder, LIST):
        import obstore  # noqa: PLC0415 - an extra

        prefix = folder.key.rstrip("/") or None
        page: Any = _request(obstore.list_with_delimiter, get_object_store(folder), prefix)
    folders = [folder.with_key(each) for each in page["common_prefixes"]]
    return folders, [_from_listing(folder, entry) for entry in page["objects"]]


PAGE_SIZE = 1000
"""Number of objects of a page of a listing, which is one request."""


def list_after(folder: ObjectPath, start: str = "") -> Iterator[list[ObjectPath]]:
    """List all objects below a folder, at any depth, in the order of their keys.

    Args:
        folder: The folder.
        start: Key after which to begin; empty to begin with the first object.

    Yields:
        Pages of objects.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    with translate_errors(folder, LIST):
        import obstore  # noqa: PLC0415 - an extra

        prefix = folder.key.rstrip("/") or None
        store = get_object_store(folder)
        pages = obstore.list(store, prefix, offset=start or None, chunk_size=PAGE_SIZE)
        for page in _iterate(pages):
            yield [_from_listing(folder, entry) for entry in page]


def head_object(path: ObjectPath) -> ObjectPath | None:
    """Return an object with its size and time; None if it does not exist.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    try:
        with translate_errors(path, READ):
            import obstore  # noqa: PLC0415 - an extra

            return _from_listing(path, _request(obstore.head, get_object_store(path), path.key))
    except FileNotFoundError:
        return None


def read_object(path: ObjectPath) -> bytes:
    """Read an object.

    Raises:
        FileNotFoundError: It does not exist.
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    return get_with_etag(path)[0]


def read_object_range(path: ObjectPath, start: int, size: int) -> bytes:
    """Read a part of an object, shorter if the object ends before; raises as `read_object` does."""
    with translate_errors(path, READ):
        import obstore  # noqa: PLC0415 - an extra

        get_range = partial(obstore.get_range, start=start, length=size)
        return bytes(_request(get_range, get_object_store(path), path.key))


_VERSION_FIELDS = {"gs": "version"}
"""What identifies the state of an object in a conditional write: the ETag; in Google Cloud Storage,
the generation."""


def get_with_etag(path: ObjectPath) -> tuple[bytes, str | None]:
    """Read an object, and what identifies its state: the ETag, or the generation.

    Raises as `read_object` does.
    """
    with translate_errors(path, READ):
        import obstore  # noqa: PLC0415 - an extra

        response = _request(obstore.get, get_object_store(path), path.key)
        field_name = _VERSION_FIELDS.get(path.scheme, "e_tag")
        return bytes(_request(response.bytes)), cast("str | None", response.meta.get(field_name))


def stream_object(path: ObjectPath, size: int) -> Iterator[bytes]:
    """Read an object in blocks of about `size` bytes; raises as `read_object` does."""
    with translate_errors(path, READ):
        import obstore  # noqa: PLC0415 - an extra

        response = _request(obstore.get, get_object_store(path), path.key)
        for block in _iterate(response.stream(min_chunk_size=size)):
            yield bytes(block)


def download_object(path: ObjectPath, file: IO[bytes], size: int) -> ObjectPath:
    """Copy an object to a file, in blocks of about `size` bytes; raises as `read_object` does.

    Returns:
        The object with the size, the time and the ETag of what was copied.
    """
    with translate_errors(path, READ):
        import obstore  # noqa: PLC0415 - an extra

        response = _request(obstore.get, get_object_store(path), path.key)
        blocks = _iterate(response.stream(min_chunk_size=size))
    while True:
        with translate_errors(path, READ):
            block = next(blocks, None)
        if block is None:
            return _from_listing(path, response.meta)
        file.write(bytes(block))


def write_object(path: ObjectPath, content: bytes | Path) -> None:
    """Write an object atomically, replacing one of that name.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    _put(path, content, "overwrite")


def put_if_match(path: ObjectPath, content: bytes, etag: str | None) -> bool:
    """Write an object unless it has changed since it was read, and return whether it was written.

    Servers without conditional writes always write.

    Args:
        path: Object to write.
        content: New content.
        etag: What `get_with_etag` returned; None if there was no object.

    Raises:
        UsageError: The bucket does not exist, or access is denied.
        TransientError: The object store does not answer.
    """
    from obstore import exceptions  # noqa: PLC0415 - an extra

    try:
        state = {_VERSION_FIELDS.get(path.scheme, "e_tag"): etag}
        _put(path, content, "create" if etag is None else state)
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        return False
    except exceptions.NotSupportedError:
        write_object(path, content)
    return True


def delete_objects(paths: Iterable[ObjectPath]) -> None:
    """Remove objects. Missing objects are ignored.

    Raises:
        UsageError: Access is denied.
        TransientError: The object store does not answer.
    """
    by_bucket: dict[tuple[str, str], list[ObjectPath]] = {}
    for path in paths:
        by_bucket.setdefault((path.scheme, path.bucket), []).append(path)
    for objects in by_bucket.values():
        with translate_errors(objects[0], DELETE):
            import obstore  # noqa: PLC0415 - an extra

            obstore.delete(get_object_store(objects[0]), [path.key for path in objects])


def _put(path: ObjectPath, content: bytes | Path, mode: Any) -> None:  # noqa: ANN401 - obstore has no such type at run time
    with translate_errors(path, WRITE):
        import obstore  # noqa: PLC0415 - an extra

        store = get_object_store(path, WRITE)
        obstore.put(store, path.key, content, mode=mode, max_concurrency=_PARTS_AT_ONCE)


def _from_listing(folder: ObjectPath, entry: Mapping[str, Any]) -> ObjectPath:
    found = folder.with_key(entry["path"], entry["size"], entry["last_modified"])
    return replace(found, etag=(entry.get("e_tag") or "").strip('"'))


__all__ = [
    "MLFLOW_PREFIX",
    "PAGE_SIZE",
    "STDOUT",
    "ObjectPath",
    "RequestThreads",
    "delete_objects",
    "download_object",
    "get_with_etag",
    "head_object",
    "is_object_url",
    "is_remote",
    "list_after",
    "list_dir",
    "list_recursive",
    "normalise_location",
    "parse_location",
    "put_if_match",
    "read_object",
    "read_object_range",
    "storage_options",
    "stream_object",
    "write_object",
]
