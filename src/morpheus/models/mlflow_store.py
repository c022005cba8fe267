"""Model stores in MLflow: a registered model with its versions, aliases and artifacts.

`mlflow:NAME` is the registered model NAME of the server that MLFLOW_TRACKING_URI names. Each
version of the store is a version of the registered model, with the same number; aliases are those
of MLflow. Packs and indexes are artifacts of one run. MLflow has no conditional writes, but it
gives each number once: a run takes a number when it starts, so that its rows can have it. Before it
publishes, it says so in a tag of its version, and waits while others say the same.

mlflow is an extra. It is imported where it is used.
"""

from __future__ import annotations

import atexit
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from random import random
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from morpheus.errors import ModelCorruptedError, MorpheusError, TransientError, UsageError
from morpheus.models.store import RETRAIN_HINT
from morpheus.models.versions import Manifest, NewVersion, StoredVersion, VersionedStore
from morpheus.storage.atomic import AtomicWriter, NewFile, TempFolder
from morpheus.storage.object_store import MLFLOW_PREFIX

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VERSION_TAG, FORMER_TAG, RUN_TAG = "morpheus.version", "morpheus.former", "morpheus.run"
"""Tags of a version of the model, and of the registered model."""
RESERVED_TAG = "morpheus.reserved"
"""Tag of a version whose number a run has taken, and which has no content yet."""
PENDING_TAG = "morpheus.pending"
"""Tag of a version that a run publishes: since when, in seconds; or `_WAITING` for another run."""
_WAITING, _FORMER = "waiting", "1"
"""Other values of it. `_FORMER` is that of earlier versions of morpheus."""
WAIT_SECONDS = 60.0
"""How long a run waits for another one that has said that it publishes, and that may have died."""
_MAX_WAITS = 10
"""Runs that publish for WAIT_SECONDS each, after which a run gives up."""
_LOOK_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 10.0
"""Longest pause of a run that has met another one."""
_READ_ATTEMPTS, _READ_PAUSE_SECONDS = 20, 0.1
_INCOMPLETE = "meta.yaml' does not exist"
"""In MLflow's error if another run is writing the files of a version."""
_EXISTS_CODES = {"RESOURCE_ALREADY_EXISTS"}
_MISSING_CODES = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_REACH_SECONDS = (4.0, 6.0)
"""Time to connect to a server, and time until it answers, when it is first asked. mlflow itself
tries seven times with growing pauses, 120 seconds each: it says after minutes that an address is
wrong."""
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    TIMEOUT: "20",
}
"""Limits of later requests, unless the environment sets them: a server that is gone is known after
seconds, and one that accepts a request and does not answer after about a minute. mlflow reads them
from the environment alone."""
_CONTENT_SECONDS = "120"
"""Time until the server answers a request with content: it may pass the content on to a bucket.
That is mlflow's own."""
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")


@contextmanager
def _wait_for_content() -> Iterator[None]:
    """Give the server more time in the block, unless the environment says how much it has."""
    is_own = os.environ.get(TIMEOUT) == PATIENCE[TIMEOUT]
    if is_own:
        os.environ[TIMEOUT] = _CONTENT_SECONDS
    try:
        yield
    finally:
        if is_own:
            os.environ[TIMEOUT] = PATIENCE[TIMEOUT]


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Turn errors of MLflow into errors that say what to do.

    Raises:
        FileNotFoundError: There is no such model or file.
        FileExistsError: There is one already.
        TransientError: The server does not answer, or answers with an error.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra

    try:
        yield
    except MlflowException as error:
        if getattr(error, "error_code", "") in _MISSING_CODES:
            raise FileNotFoundError(2, "no such model or file", name) from error
        if getattr(error, "error_code", "") in _EXISTS_CODES:
            raise FileExistsError(17, "another run has made it", name) from error
        raise TransientError(
            f"{name}: MLflow answered with an error ({_first_line(error)}). Check "
            "MLFLOW_TRACKING_URI, and try again."
        ) from error


def _first_line(error: Exception) -> str:
    """Return what an error says, without a password in an address."""
    line = next(iter(str(error).splitlines()), "").strip(" .")
    return re.sub(r"//[^/@\s]+@", "//", line)


def _check_server(name: str, address: str) -> None:
    """Ask a server once, without retries, so that a wrong address is an error at once.

    Any answer will do. Proxies and certificates are those of all requests of mlflow.

    Raises:
        TransientError: It does not answer.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra
    from mlflow.utils import credentials, rest_utils  # noqa: PLC0415 - the same

    if urlsplit(address).scheme not in {"http", "https"}:
        return
    try:
        # mlflow's own types leave these functions out.
        find: Any = credentials.get_default_host_creds
        ask: Any = rest_utils.http_request
        options = {"max_retries": 0, "retry_codes": (), "raise_on_status": False}
        ask(find(address), "/version", "GET", timeout=_REACH_SECONDS, **options)
    except MlflowException as error:
        found = _ERRNO.search(str(error))
        reason = found[1].strip() if found else _first_line(error)
        reason = "no answer in time" if "timed out" in reason else reason
        shown = re.sub(r"//[^/@]+@", "//", address)
        raise TransientError(
            f"{name}: the MLflow server {shown} cannot be reached ({reason}). Start it, "
            "or set MLFLOW_TRACKING_URI to the address of a server that runs."
        ) from error


class _PatientClient(msgspec.Struct, frozen=True):
    """Asks again if MLflow's own files are not complete yet, because another run is writing them.

    Also a new version begins with reading the others.

    Attributes:
        client: The client of MLflow.
    """

    client: MlflowClient

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a method of the client
        method = getattr(self.client, name)
        reads = name.startswith(("get_", "search_", "create_model_version"))
        return partial(_ask_again, method) if reads else method


def _ask_again(method: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - a method of the client
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra

    for _ in range(_READ_ATTEMPTS):
        try:
            return method(*args, **options)
        except MlflowException as error:
            if _INCOMPLETE not in str(error):
                raise
        time.sleep(_READ_PAUSE_SECONDS)
    return method(*args, **options)


class MlflowFiles(msgspec.Struct, frozen=True, dict=True):
    """The artifacts of a registered model; see `morpheus.storage.atomic.Store`.

    Attributes:
        name: Name of the registered model.
    """

    name: str

    def __str__(self) -> str:
        return f"{MLFLOW_PREFIX}{self.name}"

    @cached_property
    def client(self) -> MlflowClient:
        """The client of the server.

        Raises:
            UsageError: The extra is not installed.
            TransientError: The server does not answer.
        """
        try:
            from mlflow import get_registry_uri, get_tracking_uri  # noqa: PLC0415 - an extra
            from mlflow.tracking import MlflowClient  # noqa: PLC0415 - it takes two seconds
        except ImportError as error:
            raise UsageError(
                f"{self}: MLflow needs an extra. `pip install 'morpheus-dfp[mlflow]'`."
            ) from error
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        with _translate_errors(str(self)):
            for address in dict.fromkeys([get_tracking_uri(), get_registry_uri()]):
                _check_server(str(self), address)
            return cast("MlflowClient", _PatientClient(MlflowClient()))

    def find_model(self) -> Any:  # noqa: ANN401 - a class of an extra
        """Return the registered model; None if there is none."""
        client = self.client
        with suppress(FileNotFoundError), _translate_errors(str(self)):
            return client.get_registered_model(self.name)
        return None

    def find_run(self, *, create: bool = False) -> str:
        """Return the id of the run that has the artifacts.

        Raises:
            FileNotFoundError: There is no such run.
        """
        model = self.find_model()
        run: str | None = None if model is None else model.tags.get(RUN_TAG)
        if run is not None:
            return run
        if not create:
            raise FileNotFoundError(2, "no such registered model", str(self))
        run = self._create_run()
        client = self.client
        with suppress(FileExistsError), _translate_errors(str(self)):
            if model is None:
                client.create_registered_model(self.name, {RUN_TAG: run})
            else:
                client.set_registered_model_tag(self.name, RUN_TAG, run)
            return run
        # Another run has made the model meanwhile: its artifacts are those of that run.
        with _translate_errors(str(self)):
            client.delete_run(run)
        return self.find_run()

    def _create_run(self) -> str:
        """Make a run for artifacts, in the experiment with the name of the model."""
        client = self.client
        with suppress(FileExistsError), _translate_errors(str(self)):
            if client.get_experiment_by_name(self.name) is None:
                client.create_experiment(self.name)
        with _translate_errors(str(self)):
            experiment: Any = client.get_experiment_by_name(self.name)
            new = client.create_run(experiment.experiment_id, run_name="morpheus models")
            return str(new.info.run_id)

    def check_access(self) -> None:
        """Make the run now, so that parallel workers do not make one each."""
        self.find_run(create=True)

    def read(self, name: str) -> bytes:
        """Read an artifact."""
        run = self.find_run()
        with TempFolder() as folder, _translate_errors(f"{self}/{name}"), _wait_for_content():
            path = self.client.download_artifacts(run, name, str(folder))
            return Path(path).read_bytes()

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """Read a part of an artifact, which is downloaded once."""
        path = self._cache / PurePosixPath(name).name
        if not path.exists():
            path.write_bytes(self.read(name))
        with path.open("rb") as pack:
            pack.seek(start)
            return pack.read(size)

    @cached_property
    def _cache(self) -> Path:
        """Folder of the packs that this process has downloaded."""
        folder = TempFolder()
        atexit.register(folder.close)
        return folder.path

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - artifacts are durable
        """Write an artifact."""
        with self.new_file(str(PurePosixPath(name).parent)) as new:
            new.file.write(content)
            new.name_as(PurePosixPath(name).name)

    @contextmanager
    def new_file(self, folder: str) -> Iterator[NewFile]:
        """Return a new artifact, which is written on disk first."""
        run = self.find_run(create=True)
        with TempFolder() as place:
            with AtomicWriter(place / "new", durable=False) as writer, writer.guard_io():
                yield NewFile(writer)
            with _translate_errors(f"{self}/{folder}"), _wait_for_content():
                self.client.log_artifact(run, str(writer.path), folder)

    def exclusive(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002 - there are no locks
        """Lock nothing."""
        return nullcontext()

    def get_with_etag(self, name: str) -> tuple[bytes, str | None]:
        """Read an artifact; artifacts have no ETags."""
        try:
            return self.read(name), None
        except FileNotFoundError:
            return b"", None

    def put_if_match(self, name: str, content: bytes, etag: str | None) -> bool:  # noqa: ARG002 - there are no ETags
        """Write an artifact."""
        self.write(name, content)
        return True

    def list_files(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """List artifacts. Their times are not known, so they count as new."""
        with suppress(FileNotFoundError):
            run = self.find_run()
            with _translate_errors(str(self)):
                found = self.client.list_artifacts(run, prefix)
            yield from ((each.path, datetime.now(UTC)) for each in found)

    def remove(self, names: Iterable[str]) -> None:
        """Remove artifacts, if the server can."""
        from mlflow.store.artifact.artifact_repository_registry import (  # noqa: PLC0415 - an extra
            get_artifact_repository,
        )

        names = list(names)
        if not names:
            return
        with suppress(FileNotFoundError), _translate_errors(str(self)):
            run = self.client.get_run(self.find_run())
            # mlflow's own types leave out those of this method.
            repository: Any = get_artifact_repository(run.info.artifact_uri)
            for name in names:
                with suppress(NotImplementedError):
                    repository.delete_artifacts(name)


class _VersionTag(msgspec.Struct, frozen=True):
    """What the tag of a version has."""

    sha256: str
    version: msgspec.Raw


@dataclass(frozen=True)
class MlflowVersions(VersionedStore):
    """A registered model of MLflow as a store with versions."""

    @property
    def _files(self) -> MlflowFiles:
        assert isinstance(self.folder, MlflowFiles)  # noqa: S101 - `VersionedStore.open` makes it
        return self.folder

    def read_manifest(self) -> Manifest:
        """Return what the registry has.

        Raises:
            ModelCorruptedError: A tag is not one that morpheus wrote.
            TransientError: The server does not answer.
        """
        files = self._files
        model = files.find_model()
        if model is None:
            return Manifest()
        with _translate_errors(str(files)):
            found = files.client.search_model_versions(f"name = '{files.name}'")
        numbers = [int(each.version) for each in found]
        versions = sorted(
            (self._read_tag(each.tags[VERSION_TAG]) for each in found if VERSION_TAG in each.tags),
            key=lambda each: each.number,
        )
        former = msgspec.json.decode(
            model.tags.get(FORMER_TAG, "{}"), type=dict[str, tuple[int, ...]]
        )
        aliases = {name: int(number) for name, number in model.aliases.items()}
        return Manifest(max(numbers, default=0) + 1, tuple(versions), aliases, former)

    def read_etag(self) -> object:
        """Return a value that changes when a version or an alias does."""
        return sha256(msgspec.json.encode(self.read_manifest())).digest()

    def check_alias(self, name: str) -> None:
        """Reject a name that is no alias, or that MLflow has reserved."""
        super().check_alias(name)
        if re.fullmatch(r"latest|v[0-9]+", name):
            raise UsageError(
                f"{self.folder}: MLflow reserves the alias `{name}`. Give another one."
            )

    def reserve(self, is_alone: Callable[[], bool] = lambda: False) -> int | None:  # noqa: ARG002 - as below
        """Take the number of a version that will be published later, by making it on the server."""
        return self._make_version(RESERVED_TAG)

    def release(self, number: int) -> None:
        """Remove a version that `reserve` made, if it was not published."""
        files = self._files
        with suppress(FileNotFoundError), _translate_errors(str(files)):
            tags = files.client.get_model_version(files.name, str(number)).tags
            if RESERVED_TAG in tags and VERSION_TAG not in tags:
                files.client.delete_model_version(files.name, str(number))

    def publish_placed(self, draft: NewVersion, alias: str | None) -> int:
        """Publish a version; its number is reserved, or the server gives one."""
        number = draft.number or self._make_version(RESERVED_TAG)
        try:
            self._wait_for_others(number)
            published = super().publish_placed(replace(draft, number=number), alias)
        except BaseException:  # an interrupt, too
            with suppress(MorpheusError, OSError):
                self.release(number)
            raise
        files = self._files
        for tag in (RESERVED_TAG, PENDING_TAG):
            # The version is published, with these tags as without them.
            with suppress(MorpheusError, OSError), _translate_errors(str(files)):
                files.client.delete_model_version_tag(files.name, str(number), tag)
        return published

    def _change(
        self,
        change: Callable[[Manifest], Manifest],
        finish: Callable[[Manifest], None] | None = None,
    ) -> Manifest:
        """Bring the registry into the state that follows from the present one."""
        before = self.read_manifest()
        after = change(before)
        self._update(before, after)
        if finish is not None:
            finish(after)
        return after

    def _make_version(self, tag: str) -> int:
        """Make a version without content, and return its number."""
        files = self._files
        run = files.find_run(create=True)
        with _translate_errors(str(files)):
            source = files.client.get_run(run).info.artifact_uri
            made = files.client.create_model_version(files.name, source, run, tags={tag: "1"})
        return int(made.version)

    def _wait_for_others(self, number: int) -> None:
        """Wait until no other run publishes, and let others wait for this one.

        Each run first says that it publishes, then looks for others that do. If two see each other,
        both wait, each for a random time. The times double, so that on a slow server, too, one is
        soon early enough.

        Args:
            number: Number of the version, which is on the server.
        """
        end, pause = time.monotonic() + _MAX_WAITS * WAIT_SECONDS, _LOOK_SECONDS
        while True:
            self._set_pending(number, f"{time.time():.3f}")
            if not self._is_other_publishing(number):
                return
            self._set_pending(number, _WAITING)
            while self._is_other_publishing(number):
                if time.monotonic() > end:
                    raise TransientError(
                        f"{self.folder}: other runs keep publishing. Run again, or use another "
                        "model."
                    )
                time.sleep(_LOOK_SECONDS)
            time.sleep(pause * random())  # noqa: S311 - no secret
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _set_pending(self, number: int, value: str) -> None:
        files = self._files
        with _translate_errors(str(files)):
            files.client.set_model_version_tag(files.name, str(number), PENDING_TAG, value)

    def _is_other_publishing(self, number: int) -> bool:
        """Return whether another run publishes a version.

        One that died is ignored `WAIT_SECONDS` after it began.
        """
        files = self._files
        with _translate_errors(str(files)):
            found = files.client.search_model_versions(f"name = '{files.name}'")
        oldest = time.time() - WAIT_SECONDS
        return any(
            _read_pending(each) > oldest
            for each in found
            if PENDING_TAG in each.tags and int(each.version) != number
        )

    def _update(self, before: Manifest, after: Manifest) -> None:
        """Write changed versions and aliases, and remove versions."""
        files, client = self._files, self._files.client
        with _translate_errors(str(files)):
            for version in after.versions:
                if before.find(version.number) != version:
                    if version.note:
                        client.update_model_version(files.name, str(version.number), version.note)
                    client.set_model_version_tag(
                        files.name, str(version.number), VERSION_TAG, _write_tag(version)
                    )
            for name, number in after.aliases.items():
                if before.aliases.get(name) != number:
                    client.set_registered_model_alias(files.name, name, str(number))
            if after.former != before.former:
                text = msgspec.json.encode(after.former).decode()
                client.set_registered_model_tag(files.name, FORMER_TAG, text)
            for version in before.versions:
                if after.find(version.number) is None:
                    client.delete_model_version(files.name, str(version.number))

    def _read_tag(self, text: str) -> StoredVersion:
        try:
            tag = msgspec.json.decode(text, type=_VersionTag)
            if sha256(tag.version).hexdigest() == tag.sha256:
                return msgspec.json.decode(tag.version, type=StoredVersion)
        except msgspec.DecodeError:
            pass
        raise ModelCorruptedError(
            f"{self.folder}: the tag `{VERSION_TAG}` of a version is damaged. {RETRAIN_HINT}."
        )


def _read_pending(version: Any) -> float:  # noqa: ANN401 - a class of an extra
    """Return since when a version is being published, in seconds since 1970; 0 if it is not."""
    value = version.tags[PENDING_TAG]
    if value == _WAITING:
        return 0.0
    try:
        since = float(value)
    except ValueError:
        return time.time()  # another run is writing it
    return since if value != _FORMER else version.creation_timestamp / 1000


def _write_tag(version: StoredVersion) -> str:
    text = msgspec.json.encode(version)
    tag = _VersionTag(sha256(text).hexdigest(), msgspec.Raw(text))
    return msgspec.json.encode(tag).decode()


def open_mlflow(location: str, key: bytes | None) -> MlflowVersions:
    """Open `mlflow:NAME`.

    Raises:
        UsageError: It names no model, or there is a key.
    """
    name = location.removeprefix(MLFLOW_PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UsageError(
            f"`{location}` names no registered model. Give `mlflow:NAME`, with letters, digits, "
            "`_`, `-` and `.`; MLFLOW_TRACKING_URI selects the server."
        )
    if key is not None:
        raise UsageError(
            f"{location}: stores in MLflow are not signed. Leave the key out, or use a folder or a "
            "bucket."
        )
    return MlflowVersions(MlflowFiles(name))
