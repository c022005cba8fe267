"""Versions of a model store: numbered, named by aliases, and published in one piece.

A store with versions is a folder, on disk or in an object store:

    store.json               the manifest: versions and aliases, replaced in one step
    indexes/<sha256>.json    cards of the users that a version changed, and where their files are
    packs/<sha256>.pack      fingerprints, one after the other

A version is a list of indexes; the first one that has a user counts. So a version that changes ten
users of 10,000 writes ten fingerprints and ten cards. Packs and indexes are written first and never
change. A version exists once the manifest has it. With a key, the manifest is signed. It has the
checksum of each index, and an index has that of each fingerprint, so these are signed too.

A folder that `index.json` describes has no versions; it is read as version 1, and the first
publication turns it into a store with versions.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from itertools import islice
from os import fspath
from pathlib import Path
from typing import Annotated, Literal
from weakref import finalize

import msgspec
from msgspec.structs import replace

from morpheus.errors import ModelCorruptedError, MorpheusError, TransientError, UsageError
from morpheus.models.profile import Fingerprint, InputSpec, ModelCard, list_names
from morpheus.models.store import (
    GC_GRACE,
    INDEX_FILE,
    MAX_CAS_RETRIES,
    MODEL_DIR,
    RETRAIN_HINT,
    ModelStore,
    check_signature,
    display_path,
    dump_fingerprint,
    model_path,
    read_key,
    sign_text,
)
from morpheus.storage.atomic import (
    LocalStore,
    Location,
    Store,
    TempFolder,
    make_folders,
    open_store,
)
from morpheus.storage.object_store import MLFLOW_PREFIX
from morpheus.text import format_count, suggest

logger = logging.getLogger(__name__)

MANIFEST_FILE = "store.json"
MANIFEST_VERSION = 1
INDEX_DIR, PACK_DIR = "indexes", "packs"
STORE_NAMES = tuple((name,) for name in (MANIFEST_FILE, INDEX_FILE, INDEX_DIR, PACK_DIR, MODEL_DIR))
"""What a store on disk has in its folder. Other files there are not its own."""
CHAMPION, CANDIDATE = "champion", "candidate"
"""Aliases of the version that runs use, and of the one that may become it."""
_USUAL_ALIASES = (CHAMPION, CANDIDATE)
MAX_INDEXES = 8
"""Number of indexes of a version above which they are joined into one."""
MAX_FORMER = 100
"""Number of versions that an alias has named before, and that are remembered."""
KEPT_VERSIONS = 10
"""Number of latest versions that `prune` keeps by default."""
ANCHOR_AGE = timedelta(days=60)
"""Minimum age of an anchor: a version from before anything that happens now."""
ANCHOR_SPACING = timedelta(days=30)
"""`prune` keeps one version of each period of this length until it can be an anchor."""
_INDEX_NAME = re.compile(rf"{INDEX_DIR}/[0-9a-f]{{64}}\.json")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_SUFFIX = re.compile(r"(?P<location>.+)@(?P<which>[0-9]+|[a-z][a-z0-9_-]{0,63})", re.DOTALL)


_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class StoredVersion(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version, as the manifest describes it.

    Attributes:
        number: Its number, from 1.
        created: When it was published, ISO 8601.
        indexes: Checksums of its indexes; the first one that has a user counts.
        users: Number of users.
        changed: Number of users that it changed.
        parent: Number of the version that it started from; None without one.
        note: Note of the publisher.
        period: First and last time of the training events, ISO 8601; empty if not known.
        is_rollback: Whether it took back the fingerprints of some users.
    """

    number: int
    created: str
    indexes: tuple[Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")], ...]
    users: int
    changed: int
    parent: int | None = None
    note: str = ""
    period: tuple[str, str] = ("", "")
    is_rollback: bool = False

    def __post_init__(self) -> None:
        """Reject text that is not a time: a damaged manifest would fail much later."""
        for text in (self.created, *self.period):
            if text:
                datetime.fromisoformat(text)

    @property
    def created_at(self) -> datetime:
        """When it was published."""
        return datetime.fromisoformat(self.created)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a store has.

    Attributes:
        next_number: Number of the next version.
        versions: The versions, by ascending number.
        aliases: Number of the version that each alias names.
        former: Numbers of the versions that each alias named before, the latest last.
    """

    next_number: int = 1
    versions: tuple[StoredVersion, ...] = ()
    aliases: dict[str, int] = {}
    former: dict[str, tuple[int, ...]] = {}

    def find(self, number: int) -> StoredVersion | None:
        """Return a version; None if there is none of this number."""
        return next((each for each in self.versions if each.number == number), None)

    def with_alias(self, name: str, number: int) -> Manifest:
        """Return a manifest in which an alias names a version."""
        before = self.aliases.get(name)
        if before == number:
            return self
        former = self.former.get(name, ())
        if before is not None:
            former = (*former, before)[-MAX_FORMER:]
        return replace(
            self,
            aliases=self.aliases | {name: number},
            former=self.former | ({name: former} if former else {}),
        )

    def lineage(self, number: int, alias: str | None = None) -> Iterator[StoredVersion]:
        """Return the versions before one, the latest first.

        These are the versions that the alias named before, and then the one that the version
        started from, the one before that, and so on.
        """
        seen = {number}
        numbers = [*reversed(self.former.get(alias or "", ()))]
        start = self.find(number)
        while start is not None and start.parent is not None and start.parent not in numbers:
            numbers.append(start.parent)
            start = self.find(start.parent)
        for each in numbers:
            found = self.find(each)
            if found is not None and each not in seen:
                seen.add(each)
                yield found


class _ManifestFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file: the manifest as JSON text, its SHA-256, and its signature, if any."""

    version: int
    sha256: str
    manifest: msgspec.Raw
    signature: str = ""


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user in an index.

    Attributes:
        version: Number of the version that published the fingerprint.
        card: The card, with the size and the checksum of the fingerprint.
        pack: Position of its pack in the list of the index; -1 for a file of its own.
        start: Position of its first byte in the pack.
    """

    version: Annotated[int, msgspec.Meta(ge=0)]
    card: ModelCard
    pack: int = -1
    start: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0


class _Index(msgspec.Struct, frozen=True, omit_defaults=True):
    """An index.

    Attributes:
        packs: Names of the packs.
        users: JSON text of the `_Entry` of each user.
        shared: JSON text of the `_Entry` of the global model, if there is one.
        inputs: The input that the fingerprints fit; None if it is not known.
        trained_until: Time of the latest training event, ISO 8601; empty if it is not known.
        empty_features: Features without a value in any training event.
    """

    packs: tuple[_Digest, ...]
    users: dict[str, msgspec.Raw]
    shared: tuple[msgspec.Raw, ...] = ()
    inputs: InputSpec | None = None
    trained_until: str = ""
    empty_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject text that is not a time: a damaged index would fail much later."""
        if self.trained_until:
            datetime.fromisoformat(self.trained_until)


class Placed(msgspec.Struct, frozen=True):
    """A fingerprint that a store has.

    Attributes:
        card: Its card, with `version`.
        pack: Name of its pack; empty for a file of its own.
        start: Position of its first byte in the pack.
    """

    card: ModelCard
    pack: str = ""
    start: int = 0


_ENTRY_DECODER = msgspec.json.Decoder(_Entry)
_RawEntry = tuple[tuple[str, ...], msgspec.Raw]
"""Packs of an index, and the JSON text of an `_Entry` in it."""


def _decode_entry(raw: _RawEntry, user: str) -> Placed:
    packs, text = raw
    try:
        entry = _ENTRY_DECODER.decode(text)
        pack = "" if entry.pack < 0 else packs[entry.pack]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise ModelCorruptedError(
            f"The card of {user!r} in a model store is not one that morpheus wrote ({error}). "
            f"{RETRAIN_HINT}."
        ) from error
    names = _share(entry.card.filled_columns)
    card = replace(entry.card, version=entry.version, filled_columns=names)
    return Placed(card, pack, entry.start)


@lru_cache(maxsize=256)
def _share(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return an equal tuple that is in memory: most users have the same columns."""
    return names


class PlacedModels(Mapping[str, Placed]):
    """The fingerprints of a version by user, decoded when used: there can be many.

    Args:
        texts: For each user, the packs of the index, and the JSON text of the entry.
    """

    def __init__(self, texts: dict[str, _RawEntry]) -> None:
        self.texts = texts
        self._latest: tuple[_RawEntry, Placed] | None = None

    def __getitem__(self, user: str) -> Placed:
        raw, latest = self.texts[user], self._latest
        # The load of a fingerprint asks three times.
        if latest is None or latest[0] is not raw:
            latest = self._latest = raw, _decode_entry(raw, user)
        return latest[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, user: object) -> bool:
        return user in self.texts


class _PlacedCards(Mapping[str, ModelCard]):
    """The cards of placed fingerprints."""

    def __init__(self, placed: Mapping[str, Placed]) -> None:
        self._placed = placed

    def __getitem__(self, user: str) -> ModelCard:
        return self._placed[user].card

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __contains__(self, user: object) -> bool:
        return user in self._placed

    def __repr__(self) -> str:
        return f"<cards of {len(self):,} users>"


class Replaced(msgspec.Struct, frozen=True):
    """A damaged fingerprint, or a damaged version, for which an earlier one is used.

    Attributes:
        user: The user; None for a whole version, and empty for the global model.
        damaged: Number of the version that is damaged.
        used: Number of the version that is used.
    """

    user: str | None
    damaged: int
    used: int


@dataclass(frozen=True)
class ModelVersion(ModelStore):
    """A version of a store, read as a store.

    Attributes:
        number: Its number.
        placed: Its fingerprints.
        placed_global: Its global model, if there is one.
        earlier: Returns the versions to use instead of a damaged fingerprint, the latest first.
        replaced: The damaged fingerprints for which an earlier one was loaded.
        indexes: Checksums of its indexes, which say what it has.
    """

    number: int = 1
    placed: Mapping[str, Placed] = field(default_factory=dict)
    placed_global: Placed | None = None
    earlier: Callable[[], Iterable[ModelVersion]] = field(default=tuple, repr=False, compare=False)
    replaced: list[Replaced] = field(default_factory=list, compare=False)
    indexes: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """The store and the number of this version, as `--pretrained_filename` takes them."""
        return f"{self.folder}@{self.number}"

    def read_contents(self, users: Iterable[str]) -> Iterator[tuple[ModelCard, bytes]]:
        """Read the files of users who have a fingerprint; the empty user is the global model.

        Raises:
            ModelCorruptedError: A file is missing or damaged.
        """
        for user in users:
            placed = self.find_placed(user)
            if placed is not None:
                yield placed.card, self._read_content(placed.card, user)

    def find_used(self, user: str) -> Placed | None:
        """Return where the fingerprint is that `load` loads, as a rule; None if there is none."""
        return self.placed.get(user) or self.placed_global

    def find_placed(self, user: str) -> Placed | None:
        """Return where the fingerprint of a user is; empty text stands for the global model."""
        return self.placed.get(user) if user else self.placed_global

    def _read_bytes(self, card: ModelCard, user: str) -> bytes:
        placed = self.find_placed(user)
        if placed is None or not placed.pack:
            return super()._read_bytes(card, user)
        return self.folder.read_range(f"{PACK_DIR}/{placed.pack}.pack", placed.start, card.size)

    def _describe(self, card: ModelCard, user: str) -> str:
        whose = f"fingerprint of {user!r}" if user else "global model"
        if not card.version:
            return super()._describe(card, user)
        return f"{self.folder}: {whose} of version {card.version}"

    def load_own(self, user: str) -> Fingerprint:
        """Load a fingerprint; if it is damaged, the one of an earlier version."""
        try:
            return super().load_own(user)
        except ModelCorruptedError as error:
            placed = self.find_placed(user)
            assert placed is not None  # noqa: S101 - its file was read
            found = self._load_earlier(user, placed.card)
            if found is None:
                raise
            self.replaced.append(Replaced(user, placed.card.version, found.card.version))
            logger.warning("%s Version %d is used instead.", error, found.card.version)
            return found

    def _load_earlier(self, user: str, damaged: ModelCard) -> Fingerprint | None:
        tried = {damaged.sha256}
        for version in self.earlier():
            placed = version.find_placed(user)
            if placed is None or placed.card.sha256 in tried:
                continue
            tried.add(placed.card.sha256)
            try:
                return ModelStore.load_own(version, user)
            except ModelCorruptedError:
                continue
        return None


_ALIAS_FORM = "An alias has lower-case letters, digits, `_` and `-`, and starts with a letter."
_GIVE_VERSION = {
    "version": "neither an alias nor a number.{guess} Give `{store}@candidate` or `{store}@1`. "
    + _ALIAS_FORM,
    "alias": "not an alias.{guess} Give `{store}` or `{store}@candidate`. " + _ALIAS_FORM,
    "store": "neither an alias nor a number. Give `{store}`: all versions of it are meant.",
}
"""What to give in place of a name that no version can have, by what is expected."""


def is_mlflow(location: Location) -> bool:
    """Return whether a location is `mlflow:NAME`, a registered model."""
    return fspath(location).startswith(MLFLOW_PREFIX)


def split_location(
    text: str, option: str = "", takes: Literal["version", "alias", "store"] = "version"
) -> tuple[str, str]:
    """Split `STORE@version` into the location and the alias or number.

    Args:
        text: The location. A folder whose own name has an `@` exists, or ends with a slash.
        option: The option or argument that gave it, for messages.
        takes: What it can name beside the store, for messages: a version, an alias or nothing.

    Raises:
        UsageError: What follows the `@` can be neither an alias nor a number.

    >>> split_location("models@candidate"), split_location("s3://soc/models")
    (('models', 'candidate'), ('s3://soc/models', ''))
    >>> split_location("ann@Example.com/")
    ('ann@Example.com/', '')
    """
    match = _SUFFIX.fullmatch(text)
    store, at, which = text.rpartition("@")
    is_folder = not at or "/" in which or Path(text).is_dir()  # a folder can have such a name
    if match is None and not is_folder:
        where, guess = f"{option}: " if option else "", suggest(which.lower(), _USUAL_ALIASES)
        raise UsageError(
            f"{where}`{text}` names no version of a model store: "
            f"`{which}` is {_GIVE_VERSION[takes].format(guess=guess, store=store or 'STORE')} To "
            f"name a folder with `@`, end it with a slash: `{text}/`."
        )
    if match is None or is_folder:
        return text, ""
    return match["location"], match["which"]


def _is_empty_file(folder: Store, name: str) -> bool:
    """Return whether a folder on disk has a file without content."""
    if not isinstance(folder, LocalStore):
        return False
    with suppress(OSError):
        return (folder.path / name).stat().st_size == 0
    return False


def is_same_folder(one: Store, other: Store) -> bool:
    """Return whether two folders are the same, also if they were given in different ways."""
    if isinstance(one, LocalStore) and isinstance(other, LocalStore):
        return one.path.resolve() == other.path.resolve()
    return str(one).rstrip("/") == str(other).rstrip("/")


@dataclass(frozen=True)
class VersionedStore:
    """A store with versions.

    Attributes:
        folder: The folder.
        key: The key that signs the store; None without one.
    """

    folder: Store
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def open(cls, location: Location, key: bytes | None = None) -> VersionedStore:
        """Open a store, which need not exist yet.

        Args:
            location: The folder: a path, or a URL such as `s3://bucket/folder`.
            key: The key of a signed store; by default that of the environment.

        Raises:
            UsageError: The location names a version, or is no folder.
        """
        folder, which = split_location(fspath(location), takes="store")
        if which:
            raise UsageError(
                f"`{fspath(location)}` names a version, but this takes a whole store. Give "
                f"`{folder}`; or `{fspath(location)}/` for a folder of this name."
            )
        if is_mlflow(location):
            # By name, as stages are: the module extends this one, and few stores need it.
            opener = import_module("morpheus.models.mlflow_store").open_mlflow
            opened: VersionedStore = opener(fspath(location), key or read_key())
            return opened
        return cls(open_store(location), key or read_key())

    # Read.

    def read_manifest(self) -> Manifest:
        """Read the manifest; that of an empty store if there is none.

        Raises:
            ModelCorruptedError: It is damaged, or another version of morpheus wrote it.
            UsageError: The key is missing or wrong.
        """
        return self._parse(self._read_manifest()[0])

    def read_etag(self) -> object:
        """Return a value that changes when the manifest does, to find new versions cheaply."""
        content, etag = self._read_manifest()
        return etag or sha256(content).digest()

    def versions(self) -> tuple[StoredVersion, ...]:
        """Return the versions, by ascending number."""
        return self.read_manifest().versions

    def resolve(self, which: str | int = CHAMPION) -> int:
        """Return the number of a version.

        Args:
            which: An alias or a number.

        Raises:
            UsageError: There is no such version or alias.
        """
        return self.find_stored(which).number

    def find_stored(self, which: str | int = CHAMPION) -> StoredVersion:
        """Return what the manifest says about a version; see `resolve`."""
        return self._resolve(self.read_manifest(), which)

    def find_alias(self, name: str) -> int | None:
        """Return the number of the version that an alias names; None if it names none."""
        return self.read_manifest().aliases.get(name)

    def find_anchor(self, before: datetime) -> ModelVersion:
        """Return the latest version that has learned nothing since a time, for no user.

        Only versions that have been champion count: what nobody has used can have learned anything.
        If all of them have learned since, the first one is returned.

        Raises:
            UsageError: The store has no versions.
            ModelCorruptedError: All of them are damaged.
        """
        manifest = self.read_manifest()
        first = self._resolve(manifest, CHAMPION)
        used = _list_champions(manifest)
        versions = [each for each in manifest.versions if each.number in used]
        opened: ModelVersion | None = None
        for opened in self._open_intact(versions[::-1]):
            if opened.trained_until and parse_time(opened.trained_until) <= before:
                return opened
        return opened or self._open(first)

    def find_accepted(self, cards: Mapping[str, ModelCard], first: int = 0) -> dict[str, int]:
        """Return the number of the version in which a person accepted each user, by user.

        Args:
            cards: Cards of the users.
            first: Number of the earliest version to look at.
        """
        return self._find_accepted(self.read_manifest(), cards, first)

    def open_version(self, which: str | int = CHAMPION) -> ModelVersion:
        """Open a version. If it is damaged, the one before it is opened, with a message.

        Args:
            which: An alias or a number.

        Raises:
            UsageError: There is no such version or alias.
            ModelCorruptedError: It is damaged, and so are those before it.
        """
        manifest = self.read_manifest()
        version = self._resolve(manifest, which)
        alias = which if isinstance(which, str) and which in manifest.aliases else None
        earlier = list(manifest.lineage(version.number, alias))
        try:
            return self._open(version, earlier)
        except ModelCorruptedError as error:
            for position, before in enumerate(earlier):
                try:
                    opened = self._open(before, earlier[position + 1 :])
                except ModelCorruptedError:
                    continue
                logger.warning("%s Version %d is used instead.", error, before.number)
                opened.replaced.append(Replaced(None, version.number, before.number))
                return opened
            raise

    def find_version(self, which: str = "") -> ModelVersion | None:
        """Open a version as `open_version` does; None if none is named, and there is none.

        Args:
            which: An alias or a number; empty for the champion.
        """
        if not which and not self.versions():
            return None
        return self.open_version(which or CHAMPION)

    def open_intact(self, which: str | int = CHAMPION) -> ModelVersion:
        """Open a version itself, never one before it.

        Raises:
            UsageError: There is no such version or alias.
            ModelCorruptedError: It is damaged.
        """
        return self._open(self._resolve(self.read_manifest(), which))

    def load(self, user: str, which: str | int = CHAMPION) -> Fingerprint | None:
        """Load the fingerprint of a user in a version, or its global model; None without either.

        Raises:
            UsageError: There is no such version or alias.
            ModelCorruptedError: The fingerprint is damaged in this version and in those before.
        """
        return self.open_version(which).load(user)

    # Publish.

    def reserve(self, is_alone: Callable[[], bool] = lambda: False) -> int | None:
        """Take the number of a version that will be published later.

        A new store gets a manifest without versions, so that no other run takes the same number.

        Args:
            is_alone: Returns whether no other run has a number. Then a store without versions
                begins with 1, also if a run that was killed had taken that.

        Returns:
            The number; None in a store that gives numbers only when it publishes.

        Raises:
            ModelCorruptedError: The manifest is damaged or missing.
            TransientError: The folder cannot be written.
        """

        def take(manifest: Manifest) -> Manifest:
            number = 1 if not manifest.versions and is_alone() else manifest.next_number
            return replace(manifest, next_number=number + 1)

        return self._change(take).next_number - 1

    def release(self, number: int) -> None:
        """Give back a number that `reserve` took, if the store has no versions yet.

        So a first run that fails leaves nothing behind on disk, and a bucket without versions.

        Args:
            number: The number. It is not given back if another run has taken the next one.
        """
        with self.folder.exclusive(MANIFEST_FILE):
            content, etag = self._read_manifest()
            if not content or self._parse(content) != Manifest(number + 1):
                return
            if number > 1 or not isinstance(self.folder, LocalStore):
                self.folder.put_if_match(MANIFEST_FILE, self._dump(Manifest(number)), etag)
            else:
                self.folder.remove([MANIFEST_FILE, self.folder.name_lock(MANIFEST_FILE)])

    def publish(  # noqa: PLR0913 - what the new version says about itself
        self,
        fingerprints: Iterable[Fingerprint],
        *,
        alias: str | None = CANDIDATE,
        base: str | int | None = CHAMPION,
        note: str = "",
        period: tuple[str, str] = ("", ""),
        number: int | None = None,
        facts: ModelFacts | None = None,
    ) -> int:
        """Publish a version in one piece: the fingerprints, and those of all other users of a base.

        The first version of a store also becomes the champion.

        Args:
            fingerprints: The fingerprints that change. One with the empty user is the global model.
            alias: Alias that names the new version; None for none.
            base: Version whose other users are kept: an alias or a number. None for no other users.
                In a store without versions there is none.
            note: Note for people.
            period: First and last time of the training events, ISO 8601. Default: those of the
                cards.
            number: Number that `reserve` returned; None for the next one.
            facts: What the fingerprints fit. Default: that of the base.

        Returns:
            The number of the version.

        Raises:
            UsageError: There is no such base, or a name is no alias.
            TransientError: The folder cannot be written.
        """
        placed = list(self._write_pack(fingerprints))
        draft = NewVersion(placed, base, note, period, number, facts)
        return self.publish_placed(draft, alias)

    def publish_placed(self, draft: NewVersion, alias: str | None) -> int:
        """Publish a version of fingerprints whose files are written; see `publish`."""
        if alias is not None:
            self.check_alias(alias)
        made: list[int] = []
        self._write_first_manifest()

        def add(manifest: Manifest) -> Manifest:
            version = self._add_version(manifest, draft)
            made[:] = [version.number]
            versions = sorted((*manifest.versions, version), key=lambda each: each.number)
            after = replace(
                manifest,
                versions=tuple(versions),
                next_number=max(manifest.next_number, version.number + 1),
            )
            names = {alias} - {None} | ({CHAMPION} - after.aliases.keys())
            for name in sorted(str(each) for each in names):
                after = after.with_alias(name, version.number)
            return after

        self._change(add)
        return made[0]

    # Aliases.

    def check_alias(self, name: str) -> None:
        """Reject a name that is no alias in this store.

        Raises:
            UsageError: The name has other characters, or the store uses it itself.
        """
        check_alias(name)

    def set_alias(self, name: str, which: str | int) -> int:
        """Let an alias name a version, and return its number.

        Raises:
            UsageError: The name is no alias, or there is no such version.
        """
        self.check_alias(name)
        after = self._change(
            lambda manifest: manifest.with_alias(name, self._resolve(manifest, which).number)
        )
        return after.aliases[name]

    def promote(
        self, users: Collection[str] | None = None, *, source: str | int = CANDIDATE, note: str = ""
    ) -> int:
        """Make a version the champion, for all users or for some.

        For some users, a new version is published: the champion with their fingerprints of the
        source.

        Args:
            users: The users; None for all.
            source: The version: an alias or a number.
            note: Note of the new version.

        Returns:
            The number of the champion.

        Raises:
            UsageError: There is no such version, or a user has no fingerprint in it.
            ModelCorruptedError: The version is damaged, or the fingerprint of one of these users.
        """
        version = self.open_intact(source)
        if users is None:
            return self.set_alias(CHAMPION, version.number)
        placed = [self._find_user(version, user) for user in sorted(users)]
        _check_contents(version, users)
        champion = self.find_version()
        if champion is not None and all(_has(champion, each) for each in placed):
            return champion.number  # another version would be the same
        note = note or f"{format_count(len(users), 'user')} from version {version.number}"
        return self.publish_placed(NewVersion(placed, CHAMPION, note), CHAMPION)

    def replace_champion(self, which: int, expected: int) -> bool:
        """Make a version the champion, unless another one has become it meanwhile.

        Args:
            which: Number of the version.
            expected: Number of the champion that it replaces.

        Returns:
            Whether it is the champion now.
        """

        def move(manifest: Manifest) -> Manifest:
            is_expected = manifest.aliases.get(CHAMPION) == expected
            return manifest.with_alias(CHAMPION, which) if is_expected else manifest

        return self._change(move).aliases.get(CHAMPION) == which

    def find_former(self) -> StoredVersion:
        """Return the version that `rollback` returns to.

        Raises:
            UsageError: There is none.
        """
        manifest = self.read_manifest()
        former = self._former(manifest)
        if not former:
            number = self._resolve(manifest, CHAMPION).number
            raise UsageError(
                f"{self.folder}: the champion is version {number}, and no other version was "
                "champion before. `morpheus models promote` selects a version."
            )
        return former[0]

    def find_former_of(self, users: Iterable[str]) -> dict[str, ModelVersion]:
        """Return for each user the latest version before the champion with another fingerprint.

        What was rolled back does not count: repeated rollbacks return through all fingerprints.

        Raises:
            UsageError: A user has no fingerprint, or no version has another one.
        """
        manifest = self.read_manifest()
        stored = self._resolve(manifest, CHAMPION)
        champion = self._open(stored)
        history = _list_history(manifest, stored)
        is_rollback = history.pop(0)[1]
        searches = {
            user: _RollbackSearch(user, self._find_user(champion, user).card, is_rollback)
            for user in sorted(users)
        }
        for earlier, is_rollback in history:
            pending = [search for search in searches.values() if not search.is_done]
            if not pending:
                break
            for version in self._open_intact([earlier]):
                for search in pending:
                    search.step(version, is_rollback)
        missing = [user for user, search in searches.items() if search.found is None]
        if missing:
            raise UsageError(
                f"{self.folder}: no version before {stored.number} has an earlier fingerprint of "
                f"{missing[0]!r}. `morpheus models promote {self.folder}@VERSION "
                f"--user={missing[0]}` selects one of another version."
            )
        return {user: search.found for user, search in searches.items() if search.found is not None}

    def rollback(self, users: Collection[str] | None = None, *, note: str = "") -> int:
        """Make the champion before this one the champion again, for all users or for some.

        For some users, a new version is published: the champion with their fingerprints of the
        versions before.

        Args:
            users: The users; None for all.
            note: Note of the new version.

        Returns:
            The number of the champion.

        Raises:
            UsageError: There is no version to return to.
            ModelCorruptedError: It is damaged.
        """
        if users is not None:
            former = self.find_former_of(users)
            placed = [self._find_user(version, user) for user, version in former.items()]
            for user, version in former.items():
                _check_contents(version, [user])
            note = note or f"rollback of {format_count(len(users), 'user')}"
            draft = NewVersion(placed, CHAMPION, note, is_rollback=True)
            return self.publish_placed(draft, CHAMPION)
        self.open_intact(self.find_former().number)

        def restore(manifest: Manifest) -> Manifest:
            former = [each.number for each in self._former(manifest)]
            if not former:
                return manifest
            rest = tuple(reversed(former[1:]))
            return replace(
                manifest,
                aliases=manifest.aliases | {CHAMPION: former[0]},
                former=manifest.former | {CHAMPION: rest},
            )

        return self._change(restore).aliases[CHAMPION]

    # Clean up.

    def find_kept(self, keep: int = KEPT_VERSIONS) -> dict[int, str]:
        """Return the versions that `prune` keeps, each with the reason.

        Args:
            keep: Number of latest versions to keep.
        """
        return self._find_kept(self.read_manifest(), keep)

    def prune(self, keep: int = KEPT_VERSIONS) -> list[int]:
        """Remove old versions, and the files that no other version needs.

        What an alias names stays, and so do the champion before it, the anchor (the latest version
        of at least `ANCHOR_AGE`), one version of each `ANCHOR_SPACING` since then, and those since
        then that are the anchor of a user, because a person accepted the behaviour.

        Args:
            keep: Number of latest versions to keep.

        Returns:
            Numbers of the removed versions.

        Raises:
            TransientError: The folder cannot be written.
        """
        removed: list[int] = []

        def drop(manifest: Manifest) -> Manifest:
            kept = self._find_kept(manifest, keep)
            removed[:] = [each.number for each in manifest.versions if each.number not in kept]
            versions = tuple(each for each in manifest.versions if each.number in kept)
            former = {
                name: tuple(each for each in numbers if each in kept)
                for name, numbers in manifest.former.items()
            }
            return replace(manifest, versions=versions, former=former)

        before = self._list_files(self.read_manifest())
        self._change(drop, lambda after: self._remove_files(before, after))
        return removed

    def find_users(self) -> Mapping[str, ModelCard]:
        """Return the users of all versions, each with the card of the latest one.

        Raises:
            ModelCorruptedError: A version is damaged.
        """
        texts: dict[str, _RawEntry] = {}
        for version in self.versions():
            opened = self._open(version).placed
            assert isinstance(opened, PlacedModels)  # noqa: S101 - `_open` makes it
            texts |= opened.texts
        return _PlacedCards(PlacedModels(texts))

    def erase(self, users: Collection[str]) -> None:
        """Remove the fingerprints of some users from all versions, and at once from all files.

        Users without a fingerprint are ignored.

        Raises:
            ModelCorruptedError: A version is damaged.
            TransientError: The folder cannot be written.
        """
        before = self._list_files(self.read_manifest())
        # Packs hold many users, so what is left of each pack is written again.
        moved: dict[str, Placed] = {}

        def rewrite(manifest: Manifest) -> Manifest:
            versions = [
                self._without(each, self._open(each), frozenset(users), moved)
                for each in manifest.versions
            ]
            return replace(manifest, versions=tuple(versions))

        after = self._change(rewrite, lambda after: self._remove_files(before, after))
        needed = self._list_files(after)
        names = [msgspec.json.encode(user) for user in users]
        for folder in (INDEX_DIR, PACK_DIR, MODEL_DIR):  # files of runs that failed
            rest = [name for name, _ in self.folder.list_files(folder) if name not in needed]
            self.folder.remove(
                [name for name in rest if any(each in self.folder.read(name) for each in names)]
            )

    def export(self, location: Location, which: str | int = CHAMPION) -> int:
        """Copy a version to another store, which then has this version alone.

        Args:
            location: The other store.
            which: The version: an alias or a number.

        Returns:
            The number of the version.

        Raises:
            UsageError: The other store has versions already.
            ModelCorruptedError: A fingerprint is damaged.
            TransientError: The other store cannot be written.
        """
        target = VersionedStore.open(location, self.key)
        if target.versions():
            raise UsageError(f"{target.folder}: has versions already. Give a new folder.")
        version = self.open_intact(which)
        origin = self.read_manifest().find(version.number)
        users = [*version.cards, *([] if version.global_card is None else [""])]
        copied = target.write_contents(version.read_contents(users))
        numbers = {user: placed.card.version for user, placed in _by_user(version, users)}
        placed = [
            replace(each, card=replace(each.card, version=numbers[each.card.user]))
            for each in copied
        ]
        note, period = ("", ("", "")) if origin is None else (origin.note, origin.period)
        draft = NewVersion(
            placed, None, note, period, version.number, ModelFacts.from_store(version)
        )
        return target.publish_placed(draft, CHAMPION)

    # Inner parts.

    @property
    def _path(self) -> str:
        return display_path(self.folder, MANIFEST_FILE)

    def _read_manifest(self) -> tuple[bytes, str | None]:
        try:
            content, etag = self.folder.get_with_etag(MANIFEST_FILE)
        except NotADirectoryError as error:
            raise UsageError(
                f"`{self.folder}` is a file, not a model store. Give a folder, or the name of a "
                "new one."
            ) from error
        except OSError as error:
            raise ModelCorruptedError(
                f"{self._path}: cannot be read ({error.strerror}). Restore it from a copy."
            ) from error
        if not content and (etag is not None or _is_empty_file(self.folder, MANIFEST_FILE)):
            raise ModelCorruptedError(f"{self._path}: is empty. Restore it from a copy.")
        return content, etag

    def _parse(self, content: bytes) -> Manifest:
        if not content:
            return self._read_unversioned()
        try:
            version = msgspec.json.decode(content, type=_FileVersion).version
            if version != MANIFEST_VERSION:
                age = "an older" if version < MANIFEST_VERSION else "a newer"
                raise ModelCorruptedError(
                    f"{self._path}: {age} version of morpheus wrote it (format {version}; this "
                    f"version reads format {MANIFEST_VERSION})."
                )
            file = msgspec.json.decode(content, type=_ManifestFile)
            if sha256(file.manifest).hexdigest() != file.sha256:
                raise ModelCorruptedError(
                    f"{self._path}: does not match its checksum. {RETRAIN_HINT}."
                )
            check_signature(file.manifest, file.signature, self._path, self.key, "manifest")
            return msgspec.json.decode(file.manifest, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelCorruptedError(
                f"{self._path}: is not the manifest of a model store. {RETRAIN_HINT}."
            ) from error

    def _dump(self, manifest: Manifest) -> bytes:
        text = msgspec.json.encode(manifest)
        signature = sign_text(text, self.key, "manifest")
        return msgspec.json.encode(
            _ManifestFile(MANIFEST_VERSION, sha256(text).hexdigest(), msgspec.Raw(text), signature)
        )

    def _read_unversioned(self) -> Manifest:
        """Return the manifest of a folder without versions: it has version 1."""
        store = ModelStore.find(str(self.folder), self.key)
        if store is None:
            self._check_is_new()
        if store is None or not (store.cards or store.global_card):
            return Manifest()
        until = store.trained_until
        created = until or datetime.fromtimestamp(0, UTC).isoformat()
        version = StoredVersion(
            1, created, ("",), len(store.cards), len(store.cards), period=("", until)
        )
        return Manifest(2, (version,), {CHAMPION: 1})

    def _write_first_manifest(self) -> None:
        """Give a new store its manifest, before it gets an index.

        So a store with an index and without a manifest is one that has lost it.
        """
        if not self._read_manifest()[0]:
            self._change(lambda manifest: manifest)

    def _change(
        self,
        change: Callable[[Manifest], Manifest],
        finish: Callable[[Manifest], None] | None = None,
    ) -> Manifest:
        """Replace the manifest by the one that follows from it, and return that.

        Args:
            change: Returns the manifest that follows.
            finish: Is called with it before another process can change a store on disk.
        """
        with self.folder.exclusive(MANIFEST_FILE):
            for _ in range(MAX_CAS_RETRIES):
                content, etag = self._read_manifest()
                before = self._parse(content)
                adopts = not content and bool(before.versions)
                after = change(before)
                if adopts:
                    after = self._adopt(after)
                is_same = after == before and bool(content)
                if is_same or self.folder.put_if_match(MANIFEST_FILE, self._dump(after), etag):
                    if adopts:
                        self.folder.remove([INDEX_FILE])
                    if not is_same:
                        self._remove_dead_indexes(after)
                    if finish is not None:
                        finish(after)
                    return after
        raise TransientError(
            f"{self._path}: other runs keep writing it. Run again, or give this run a folder of "
            "its own."
        )

    def _check_is_new(self) -> None:
        """Reject a store without a manifest that has indexes: its next version would be 1 again.

        Raises:
            ModelCorruptedError: It has one.
        """
        names = (name for name, _ in self.folder.list_files(INDEX_DIR))
        if any(_INDEX_NAME.fullmatch(name) for name in names):
            raise ModelCorruptedError(
                f"{self._path}: is missing, but there are files of versions beside it. Restore it "
                "from a copy."
            )

    def _remove_dead_indexes(self, manifest: Manifest) -> None:
        """Remove the indexes of runs that were killed, in a folder on disk.

        Indexes are written by the process that holds the lock, so no other run needs them.
        """
        if isinstance(self.folder, LocalStore):
            needed = {
                f"{INDEX_DIR}/{digest}.json"
                for each in manifest.versions
                for digest in each.indexes
            }
            listed = [name for name, _ in self.folder.list_files(INDEX_DIR)]
            self.folder.remove([name for name in listed if name not in needed])

    def _adopt(self, manifest: Manifest) -> Manifest:
        """Write the index of version 1 of a folder without versions."""
        store = ModelStore.open(str(self.folder), self.key)
        digest = self._write_index(_index_of_store(store))
        versions = tuple(
            replace(each, indexes=tuple(name or digest for name in each.indexes))
            for each in manifest.versions
        )
        return replace(manifest, versions=versions)

    def _resolve(self, manifest: Manifest, which: str | int) -> StoredVersion:
        text = str(which)
        number = int(text) if text.isdecimal() else manifest.aliases.get(text)
        found = None if number is None else manifest.find(number)
        if found is not None:
            return found
        if not manifest.versions:
            raise UsageError(
                f"{self.folder}: has no versions. Publish one with `train-ae --train_data_glob=... "
                f"--models_output_filename={self.folder}`."
            )
        aliases = sorted(manifest.aliases, key=lambda name: (name != CHAMPION, name))
        known = [*aliases, *(str(each.number) for each in manifest.versions)]
        what = f"version {text}" if text.isdecimal() else f"alias `{text}`"
        raise UsageError(
            f"{self.folder}: there is no {what}.{suggest(text, known)} There are "
            f"{list_names(known)}."
        )

    def _former(self, manifest: Manifest) -> list[StoredVersion]:
        """Return the versions that were champion before, the latest first."""
        now = manifest.aliases.get(CHAMPION)
        numbers = [each for each in reversed(manifest.former.get(CHAMPION, ())) if each != now]
        return [each for each in map(manifest.find, numbers) if each is not None]

    def _find_user(self, version: ModelVersion, user: str) -> Placed:
        placed = version.find_placed(user)
        if placed is None:
            raise UsageError(
                f"{self.folder}: version {version.number} has no fingerprint of {user!r}."
                f"{suggest(user, version.cards)}"
            )
        return placed

    def _open(self, version: StoredVersion, earlier: Sequence[StoredVersion] = ()) -> ModelVersion:
        """Open a version.

        Raises:
            ModelCorruptedError: An index is damaged.
        """
        texts: dict[str, _RawEntry] = {}
        newest = placed_global = None
        for digest in reversed(version.indexes):
            newest = self._read_index(digest, version.number)
            packs = newest.packs
            texts.update((user, (packs, raw)) for user, raw in newest.users.items())
            for raw in newest.shared:
                placed_global = _decode_entry((packs, raw), "")
        assert newest is not None  # noqa: S101 - a version has at least one index
        placed = PlacedModels(texts)
        return ModelVersion(
            self.folder,
            _PlacedCards(placed),
            None if placed_global is None else placed_global.card,
            newest.inputs,
            newest.trained_until,
            newest.empty_features,
            self.key,
            version.number,
            placed,
            placed_global,
            lambda: self._open_intact(earlier),
            indexes=version.indexes,
        )

    def _find_kept(self, manifest: Manifest, keep: int) -> dict[int, str]:
        now = datetime.now(UTC)
        kept = _find_kept(manifest, max(keep, 0), now)
        number = manifest.aliases.get(CHAMPION, 0)
        champions = [each for each in [manifest.find(number)] if each is not None]
        champions += manifest.lineage(number, CHAMPION)
        for opened in islice(self._open_intact(champions), 1):
            first = max(_list_aged(manifest, now), default=0) + 1
            accepted = self._find_accepted(manifest, opened.cards, first)
            kept = dict.fromkeys(accepted.values(), "anchor of accepted users") | kept
        return kept

    def _find_accepted(
        self, manifest: Manifest, cards: Mapping[str, ModelCard], first: int
    ) -> dict[str, int]:
        wanted = {user: card.accepted_until for user, card in cards.items() if card.accepted_until}
        found: dict[str, int] = {}
        for version in self._open_intact([x for x in manifest.versions if x.number >= first]):
            missing = wanted.keys() - found.keys()
            if not missing:
                break
            for user in missing & version.cards.keys():
                if version.cards[user].accepted_until == wanted[user]:
                    found[user] = version.number
        return found

    def _open_intact(self, versions: Sequence[StoredVersion]) -> Iterator[ModelVersion]:
        for version in versions:
            try:
                yield self._open(version)
            except ModelCorruptedError:
                continue

    def _read_index(self, digest: str, number: int) -> _Index:
        if not digest:
            return _index_of_store(ModelStore.open(str(self.folder), self.key))
        name = f"{INDEX_DIR}/{digest}.json"
        path = f"{display_path(self.folder, name)}: index of version {number}"
        try:
            content = self.folder.read(name)
        except OSError as error:
            raise ModelCorruptedError(
                f"{path} cannot be read ({error.strerror}). {RETRAIN_HINT}."
            ) from error
        if sha256(content).hexdigest() != digest:
            raise ModelCorruptedError(f"{path} does not match its checksum. {RETRAIN_HINT}.")
        try:
            return msgspec.json.decode(content, type=_Index)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelCorruptedError(f"{path} is damaged ({error}). {RETRAIN_HINT}.") from error

    def _write_index(self, index: _Index) -> str:
        users = dict(sorted(index.users.items()))
        content = msgspec.json.encode(replace(index, users=users))
        digest = sha256(content).hexdigest()
        self.folder.write(f"{INDEX_DIR}/{digest}.json", content)
        return digest

    def _without(
        self,
        stored: StoredVersion,
        version: ModelVersion,
        users: frozenset[str],
        moved: dict[str, Placed],
    ) -> StoredVersion:
        """Write a version again without some users, and return it.

        Args:
            stored: The version.
            version: The same, opened.
            users: The users.
            moved: Where fingerprints are now, by checksum; extended.
        """
        packs = {placed.pack for user, placed in version.placed.items() if user in users}
        rest = [placed for user, placed in version.placed.items() if user not in users]
        if version.placed_global is not None:
            rest.append(version.placed_global)
        affected = [each for each in rest if each.pack in packs and each.card.sha256 not in moved]
        contents = version.read_contents([each.card.user for each in affected])
        for each in self.write_contents(contents):
            moved[each.card.sha256] = each
        placed = [_move(each, moved.get(each.card.sha256)) for each in rest]
        index = _make_index(placed, stored.number, ModelFacts.from_store(version))
        rest_users = len(index.users)
        return replace(
            stored,
            indexes=(self._write_index(index),),
            users=rest_users,
            changed=min(stored.changed, rest_users),
        )

    def _remove_files(self, before: Collection[str], after: Manifest) -> None:
        """Remove files that were needed before, and that the manifest does not need.

        Other files that nothing needs are removed once they are `GC_GRACE` old, because a run in
        progress may have written them.
        """
        kept = self._list_files(after)
        cutoff = datetime.now(UTC) - GC_GRACE
        for folder in (INDEX_DIR, PACK_DIR, MODEL_DIR):
            listed = list(self.folder.list_files(folder))
            self.folder.remove(
                [
                    name
                    for name, modified in listed
                    if name not in kept and (name in before or modified < cutoff)
                ]
            )

    def _list_files(self, manifest: Manifest) -> set[str]:
        """Return the names of the files that the versions of a manifest need."""
        names = set[str]()
        for digest in {each for version in manifest.versions for each in version.indexes}:
            names.add(f"{INDEX_DIR}/{digest}.json")
            try:
                index = self._read_index(digest, 0)
            except ModelCorruptedError:
                continue
            names |= {f"{PACK_DIR}/{pack}.pack" for pack in index.packs}
            entries = [*index.users.items(), *(("", raw) for raw in index.shared)]
            for user, raw in entries:
                placed = _decode_entry((index.packs, raw), user)
                if not placed.pack:
                    names.add(model_path(placed.card.sha256))
        return names

    def _write_pack(self, fingerprints: Iterable[Fingerprint]) -> Iterator[Placed]:
        """Write fingerprints into one pack; returns nothing before it is complete."""
        contents = (
            (fingerprint.card, dump_fingerprint(fingerprint)) for fingerprint in fingerprints
        )
        return iter(self.write_contents(contents))

    def take_files(self, cards: Sequence[ModelCard], staging: str = "") -> Iterator[Placed]:
        """Return the place of fingerprints that `put_model` has written, for a new version.

        On disk they are written again, into one pack: 10,000 files are slow to sync. Objects stay.

        Args:
            cards: The cards that `put_model` returned.
            staging: The folder that has the files; empty if the store has them.

        Raises:
            ModelCorruptedError: A file has changed since it was written.
            TransientError: The folder cannot be written.
        """
        cards = [replace(card, version=0) for card in cards]
        if not staging:
            return map(Placed, cards)
        by_user = {card.user: Placed(card) for card in sorted(cards, key=lambda card: card.user)}
        files = ModelVersion(
            LocalStore(Path(staging)), {}, placed=by_user, placed_global=by_user.get("")
        )
        return iter(self.write_contents(files.read_contents(by_user)))

    def write_contents(self, contents: Iterable[tuple[ModelCard, bytes]]) -> list[Placed]:
        """Write the files of fingerprints into one pack.

        Args:
            contents: Card and bytes of each fingerprint.

        Raises:
            TransientError: The folder cannot be written.
        """
        parts: list[tuple[ModelCard, int]] = []
        first = next(iter(contents := iter(contents)), None)
        if first is None:
            return []
        whole, start = sha256(), 0
        with self.folder.new_file(PACK_DIR) as new:
            for card, content in _prepend(first, contents):
                digest = sha256(content).hexdigest()
                sizes = {"size": len(content), "sha256": digest, "version": 0}
                parts.append((replace(card, **sizes), start))
                new.file.write(content)
                whole.update(content)
                start += len(content)
            new.name_as(f"{whole.hexdigest()}.pack")
        return [Placed(card, whole.hexdigest(), start) for card, start in parts]

    def _check_files(self, placed: Iterable[Placed]) -> None:
        """Check that packs on disk are still there, before a version gets them.

        Raises:
            TransientError: Another process has removed one.
        """
        if not isinstance(self.folder, LocalStore):
            return
        for pack in sorted({each.pack for each in placed if each.pack}):
            path = self.folder.path / PACK_DIR / f"{pack}.pack"
            if not path.exists():
                raise TransientError(
                    f"{path}: was removed while a version with its fingerprints was being made, "
                    "for example by `morpheus models prune`. Run again."
                )

    def _add_version(self, manifest: Manifest, draft: NewVersion) -> StoredVersion:
        """Write the index of a new version, and return it."""
        self._check_files(draft.placed)
        number = draft.number or manifest.next_number
        parent = None
        if draft.base is not None and manifest.versions:
            parent = self._resolve(manifest, draft.base)
        base = None if parent is None else self._open(parent)
        changed = [each for each in draft.placed if draft.relabels or not _has(base, each)]
        cards = [each.card for each in changed]
        users = {card.user for card in cards if card.user}
        facts = ModelFacts.from_store(base)
        if draft.facts is not None:
            facts = draft.facts if base is None else facts.merge(draft.facts)
        index = _make_index(changed, number, facts.update(cards))
        before = () if parent is None else parent.indexes
        if base is not None and len(before) >= MAX_INDEXES:
            index, before = _join(base, index), ()
        indexes = (self._write_index(index), *before)
        known = set[str]() if base is None else base.placed.keys()
        return StoredVersion(
            number,
            datetime.now(UTC).isoformat(timespec="seconds"),
            indexes,
            len(known | users),
            len(users),
            None if parent is None else parent.number,
            draft.note,
            draft.period if any(draft.period) else _find_period(cards),
            draft.is_rollback,
        )


class _Leftovers(msgspec.Struct):
    """What a run has in a store before it publishes.

    Attributes:
        folder: The staging folder.
        number: The reserved number.
        created: Folder of the store, if the run has created it.
    """

    folder: TempFolder | None = None
    number: int | None = None
    created: Path | None = None

    def close(self) -> None:
        """Remove the staging folder."""
        if self.folder is not None:
            self.folder.close()
            self.folder = None

    def remove(self, versions: VersionedStore, process: int) -> None:
        """Remove all of it, and the folder of a store without a version."""
        if os.getpid() != process:  # in a copy of the process
            return
        self.close()
        if self.number is not None:
            with suppress(MorpheusError, OSError):  # what is left does no harm
                versions.release(self.number)
        if self.created is not None:
            with suppress(OSError):  # it has files
                self.created.rmdir()


@dataclass
class StagingFolder:
    """A folder for the files of one run's fingerprints, and the number of their version.

    The folder is removed when the run ends, also if it fails; that of a killed run by a later one.
    A run that fails gives the number back, if the store has no version yet.

    Attributes:
        versions: The store that the run publishes in.
    """

    versions: VersionedStore
    _left: _Leftovers = field(default_factory=_Leftovers, init=False, repr=False)

    def __post_init__(self) -> None:
        """Remove the rest when the run ends."""
        finalize(self, _Leftovers.remove, self._left, self.versions, os.getpid())

    def reserve(self) -> int | None:
        """Reserve the number of the version; see `VersionedStore.reserve`."""
        self.open()  # first, so that another run finds it: it may be the only one
        self._left.number = self.versions.reserve(self._is_alone)
        return self._left.number

    def _is_alone(self) -> bool:
        """Return whether no other run has a staging folder. Those of killed runs are removed."""
        store = self.versions.folder
        if not isinstance(store, LocalStore):
            return False
        return len([*store.path.glob(f".{MODEL_DIR}.*.part")]) == 1

    def open(self) -> str:
        """Create the folder, if it is not there yet; return its path, empty for an object store.

        Raises:
            TransientError: The folder of the store cannot be written.
        """
        store = self.versions.folder
        if not isinstance(store, LocalStore):
            return ""
        if self._left.folder is None:
            if not store.path.exists():
                self._left.created = store.path.absolute()
            try:
                make_folders(store.path)
                self._left.folder = TempFolder(store.path.absolute(), MODEL_DIR)
            except OSError as error:
                raise TransientError(
                    f"Cannot write into `{store}`: {error.strerror}. Free disk space, fix the "
                    "folder's permissions, or choose another path."
                ) from error
        return str(self._left.folder.path)

    def close(self) -> None:
        """Remove the folder with its content; the version is published."""
        self._left.close()
        self._left.number = None


class ModelFacts(msgspec.Struct, frozen=True):
    """What the fingerprints of a version fit; see `ModelStore`."""

    inputs: InputSpec | None = None
    trained_until: str = ""
    empty_features: tuple[str, ...] = ()

    @classmethod
    def from_store(cls, store: ModelStore | None) -> ModelFacts:
        """Return the facts of a store; None for none."""
        if store is None:
            return cls()
        return cls(store.inputs, store.trained_until, store.empty_features)

    def merge(self, newer: ModelFacts) -> ModelFacts:
        """Return the facts of a version that has the fingerprints of both."""
        return ModelFacts(
            newer.inputs or self.inputs,
            max(self.trained_until, newer.trained_until),
            tuple(name for name in self.empty_features if name in newer.empty_features),
        )

    def update(self, cards: Iterable[ModelCard]) -> ModelFacts:
        """Return the facts with the latest training event of these cards."""
        until = max([self.trained_until, *(card.last for card in cards)])
        return replace(self, trained_until=until)


class NewVersion(msgspec.Struct, frozen=True):
    """A version before it is published; see `VersionedStore.publish`.

    Attributes:
        relabels: Fingerprints that are equal to those of the base get the number of this version,
            too, because they were trained for it.
        is_rollback: See `StoredVersion`.
    """

    placed: Sequence[Placed]
    base: str | int | None = CHAMPION
    note: str = ""
    period: tuple[str, str] = ("", "")
    number: int | None = None
    facts: ModelFacts | None = None
    relabels: bool = False
    is_rollback: bool = False


class _RollbackSearch(msgspec.Struct):
    """The search for the fingerprint that a rollback of one user returns to, from the champion on.

    Attributes:
        user: The user.
        card: Card of the fingerprint in the champion.
        is_rollback: Whether the version at hand took fingerprints of some users back.
        after: Checksum of the fingerprint in the version at hand.
        skipped: Number of earlier changes of the user's fingerprint that rollbacks took back.
        found: The version with the fingerprint that a rollback returns to.
        is_done: Whether that is final.
    """

    user: str
    card: ModelCard
    is_rollback: bool
    after: str = ""
    skipped: int = 0
    found: ModelVersion | None = None
    is_done: bool = False

    def step(self, version: ModelVersion, is_rollback: bool) -> None:  # noqa: FBT001 - a fact of it
        """Go to the version before.

        Args:
            version: The version.
            is_rollback: Whether it took fingerprints of some users back.
        """
        placed = version.find_placed(self.user)
        if placed is None:
            return
        if placed.card.sha256 != (self.after or self.card.sha256):
            if self.is_rollback:
                self.skipped += 1
            elif self.skipped:
                self.skipped -= 1
            else:
                self.found, self.is_done = version, True
        if self.found is None and placed.card.version < self.card.version:
            # Used if the versions of what was taken back are gone, for example pruned.
            self.found = version
        self.after, self.is_rollback = placed.card.sha256, is_rollback


def _list_history(manifest: Manifest, champion: StoredVersion) -> list[tuple[StoredVersion, bool]]:
    """Return the versions that were champion, and those that they started from, the latest first.

    Each has whether it took fingerprints of users back; a version that is promoted again does not.
    """
    seen, history = set[int](), list[tuple[StoredVersion, bool]]()
    for number in (*manifest.former.get(CHAMPION, ()), champion.number):
        stored = manifest.find(number)
        if stored is not None:
            history.append((stored, stored.is_rollback and number not in seen))
            seen.add(number)
    parents = [each for each in manifest.lineage(champion.number) if each.number not in seen]
    return [*reversed(history), *((each, each.is_rollback) for each in parents)]


class _FileVersion(msgspec.Struct, frozen=True):
    version: int


def check_alias(name: str) -> None:
    """Reject a name that is no alias.

    Raises:
        UsageError: The name has other characters.
    """
    if not _ALIAS.fullmatch(name):
        raise UsageError(f"`{name}` is no alias. {_ALIAS_FORM}")


def check_new_version(folder: str, which: str, option: str = "") -> None:
    """Reject the number of a version as the name of a new one.

    Args:
        folder: The store.
        which: What the location names: an alias or a number.
        option: The option that gave it, for messages.

    Raises:
        UsageError: It is a number.
    """
    if which.isdecimal():
        where = f"{option}: " if option else ""
        raise UsageError(
            f"{where}`{folder}@{which}` names version {which}, but a run publishes a new version. "
            f"Give `{folder}`, or `{folder}@candidate` for an alias."
        )


def _find_kept(manifest: Manifest, keep: int, now: datetime) -> dict[int, str]:
    """Return the numbers of the versions that are kept, each with the reason."""
    kept = dict.fromkeys(_list_aged(manifest, now)[-1:], "anchor")
    versions = [*reversed(manifest.versions)]
    used = _list_champions(manifest)
    anchors = [each for each in manifest.versions if each.number in used]
    seen = set[int]()
    for version in anchors:  # the first of each period
        period = (version.created_at - datetime.fromtimestamp(0, UTC)) // ANCHOR_SPACING
        if now - version.created_at < ANCHOR_AGE and period not in seen:
            seen.add(period)
            kept[version.number] = "future anchor"
    kept |= {each.number: f"one of the latest {keep}" for each in versions[:keep]}
    former = [each for each in manifest.former.get(CHAMPION, ()) if manifest.find(each)]
    kept |= dict.fromkeys(former[-1:], "champion before")
    return kept | {number: name for name, number in sorted(manifest.aliases.items())}


def _list_aged(manifest: Manifest, now: datetime) -> list[int]:
    """Return the numbers of the former champions of at least `ANCHOR_AGE`, the latest last."""
    used = _list_champions(manifest)
    versions = [each for each in manifest.versions if each.number in used]
    return [each.number for each in versions if now - each.created_at >= ANCHOR_AGE]


def _list_champions(manifest: Manifest) -> set[int]:
    """Return the numbers of the versions that are champion, or were it before."""
    return {*manifest.former.get(CHAMPION, ()), manifest.aliases.get(CHAMPION, 0)}


def parse_time(text: str) -> datetime:
    """Read a time of a store, ISO 8601; without a time zone it is in UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _by_user(version: ModelVersion, users: Iterable[str]) -> Iterator[tuple[str, Placed]]:
    for user in users:
        placed = version.find_placed(user)
        if placed is not None:
            yield user, placed


def _check_contents(version: ModelVersion, users: Iterable[str]) -> None:
    """Read the fingerprints of users, which raises `ModelCorruptedError` if one is damaged."""
    for _ in version.read_contents(users):
        pass


def _move(placed: Placed, to: Placed | None) -> Placed:
    """Return a fingerprint at another place; at its own for None."""
    return placed if to is None else replace(placed, pack=to.pack, start=to.start)


def _has(base: ModelVersion | None, placed: Placed) -> bool:
    """Return whether a version has the same fingerprint."""
    known = None if base is None else base.find_placed(placed.card.user)
    return known is not None and known.card.sha256 == placed.card.sha256


def _make_index(placed: Sequence[Placed], number: int, facts: ModelFacts) -> _Index:
    packs = tuple(sorted({each.pack for each in placed if each.pack}))
    positions = {pack: position for position, pack in enumerate(packs)}
    entries = {
        each.card.user: msgspec.Raw(
            msgspec.json.encode(
                _Entry(
                    each.card.version or number,
                    replace(each.card, version=0),
                    positions.get(each.pack, -1),
                    each.start,
                )
            )
        )
        for each in placed
    }
    shared = (entries.pop(""),) if "" in entries else ()
    return _Index(packs, entries, shared, facts.inputs, facts.trained_until, facts.empty_features)


def _join(base: ModelVersion, index: _Index) -> _Index:
    """Return the index of a version with those that it started from."""
    rest = [placed for user, placed in base.placed.items() if user not in index.users]
    if base.placed_global is not None and not index.shared:
        rest.append(base.placed_global)
    new = [_decode_entry((index.packs, raw), user) for user, raw in index.users.items()]
    new += [_decode_entry((index.packs, raw), "") for raw in index.shared]
    facts = ModelFacts(index.inputs, index.trained_until, index.empty_features)
    return _make_index([*rest, *new], 0, facts)


def _index_of_store(store: ModelStore) -> _Index:
    """Return the index of a folder without versions."""
    cards = [store.cards[user] for user in store.cards]
    if store.global_card is not None:
        cards.append(store.global_card)
    return _make_index([Placed(card) for card in cards], 1, ModelFacts.from_store(store))


def _find_period(cards: Iterable[ModelCard]) -> tuple[str, str]:
    """Return the first and the last time of the training events of some cards."""
    cards = list(cards)
    first = min((card.first for card in cards if card.first), default="")
    return first, max((card.last for card in cards if card.last), default="")


def _prepend(
    first: tuple[ModelCard, bytes], rest: Iterable[tuple[ModelCard, bytes]]
) -> Iterator[tuple[ModelCard, bytes]]:
    yield first
    yield from rest


def find_models(location: str, key: bytes | None = None) -> ModelVersion | None:
    """Open a version of a store, or a folder without versions; None if there is none.

    Args:
        location: The folder, and `@` with an alias or a number. By default the champion.
        key: The key of a signed store; by default that of the environment.
    """
    folder, which = split_location(location)
    return VersionedStore.open(folder, key).find_version(which)


def open_models(location: str, key: bytes | None = None) -> ModelVersion:
    """Open a version as `find_models` does.

    Raises:
        ModelCorruptedError: There is none, or it is damaged.
        UsageError: There is no such version, or the key is missing or wrong.
    """
    found = find_models(location, key)
    if found is None:
        raise ModelCorruptedError(
            f"{location}: has no fingerprints. Give the folder that `train-ae "
            "--models_output_filename=...` wrote."
        )
    return found


def has_models(folder: Path) -> bool:
    """Return whether a folder on disk is a model store."""
    return any((folder / name).is_file() for name in (MANIFEST_FILE, INDEX_FILE))


def save_models(models: ModelVersion, location: Location) -> int:
    """Publish a version with the fingerprints of another store alone, and return its number.

    Args:
        models: The other store.
        location: The store, and `@` with the alias of the version. Default: `champion`.

    Raises:
        UsageError: The location names a number.
        ModelCorruptedError: A fingerprint is damaged.
        TransientError: The folder cannot be written.
    """
    folder, alias = split_location(fspath(location), takes="alias")
    check_new_version(folder, alias)
    target = VersionedStore.open(folder, models.key)
    users = sorted([*models.cards, *([] if models.global_card is None else [""])])
    placed = target.write_contents(models.read_contents(users))
    facts = ModelFacts.from_store(models)
    return target.publish_placed(NewVersion(placed, None, facts=facts), alias or CHAMPION)
