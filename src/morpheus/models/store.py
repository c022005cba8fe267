"""The model store: a folder of fingerprints, local or in an object store.

Each fingerprint is a safetensors file, named by its SHA-256: numbers are tensors, and text is JSON
in one more tensor. No file has raw rows or can run code. `index.json` has the card of each user and
the description of the input, and is replaced in one step. With a key, the index is signed by
HMAC-SHA256; it has the checksum of each file, so the files are signed too.
"""

from __future__ import annotations

import hmac
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from morpheus.errors import ModelCorruptedError, TransientError, UsageError
from morpheus.features.encoder import Category, Column, Encoder, Number
from morpheus.models.autoencoder import Autoencoder, NetworkConfig
from morpheus.models.batched_training import require_torch
from morpheus.models.calibration import CalibrationSet
from morpheus.models.profile import (
    Fingerprint,
    InputSpec,
    ModelCard,
    Network,
    make_network_config,
)
from morpheus.models.scoring import BaselineStats, Usage, compute_offsets
from morpheus.storage.atomic import Location, Store, open_store
from morpheus.text import suggest_path

INDEX_FILE = "index.json"
INDEX_VERSION = 5
KEY_VARIABLE = "MORPHEUS_MODELS_KEY"
"""Environment variable with the key that signs model stores."""
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096
MODEL_DIR = "fingerprints"
GC_GRACE = timedelta(days=1)
"""Minimum age of a file that is removed because no index has it: a run in progress may have written
it."""
MAX_CAS_RETRIES = 5
"""How often an index is written again because another run replaced it at the same time."""
RETRAIN_HINT = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"

_CARD_DECODER = msgspec.json.Decoder(ModelCard)


def read_key(path: str | None = None) -> bytes | None:
    """Return the key that signs model stores: from a file or from `KEY_VARIABLE`; None without one.

    White space around the key does not count.

    Raises:
        UsageError: The file cannot be read, or the key is too short.
    """
    name = f"${KEY_VARIABLE}" if path is None else f"`{path}`"
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").encode()
        if not key:
            return None
    else:
        try:
            with Path(path).open("rb") as file:
                key = file.read(MAX_KEY_BYTES)
        except OSError as error:
            raise UsageError(
                f"--models_key_file: {name} cannot be read ({error.strerror}).{suggest_path(path)} "
                f"Give a file with at least {MIN_KEY_BYTES} random bytes."
            ) from error
    if len(key.strip()) < MIN_KEY_BYTES:
        raise UsageError(
            f"{name} has no key: a key has at least {MIN_KEY_BYTES} bytes. Make one with "
            "`openssl rand -hex 32`."
        )
    return key.strip()


@dataclass(frozen=True)
class ModelStore:
    """A folder of fingerprints whose index was read; files are read when a user needs them.

    Attributes:
        folder: The folder.
        cards: Cards of the users.
        global_card: Card of the global model, if there is one.
        inputs: The input that the fingerprints fit; None if it is not known.
        trained_until: Time of the latest training event, ISO 8601; empty if it is not known.
        empty_features: Features without a value in any training event.
        key: The key that signs the store; None without one.
    """

    folder: Store
    cards: Mapping[str, ModelCard]
    global_card: ModelCard | None = None
    inputs: InputSpec | None = None
    trained_until: str = ""
    empty_features: tuple[str, ...] = ()
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def open(cls, location: Location, key: bytes | None = None) -> ModelStore:
        """Read and check the index.

        Args:
            location: The folder.
            key: The key of a signed store; by default that of the environment.

        Raises:
            ModelCorruptedError: There is no index, it is damaged, or another version wrote it.
            UsageError: The key is missing or wrong, the bucket does not exist, or access is denied.
            TransientError: The object store does not answer.
        """
        folder, key = open_store(location), key or read_key()
        path = display_path(folder, INDEX_FILE)
        try:
            content = folder.read(INDEX_FILE)
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise ModelCorruptedError(message + "--models_output_filename=...` wrote.") from error
        index = load_index(content, path, key)
        facts = (index.inputs, index.trained_until, index.empty_features)
        return cls(folder, index.cards, index.global_card, *facts, key)

    @property
    def location(self) -> str:
        """The folder, as `train-ae --pretrained_filename` takes it."""
        return str(self.folder)

    @classmethod
    def find(cls, location: Location, key: bytes | None = None) -> ModelStore | None:
        """Open a folder as `open` does; None if it has no index yet."""
        try:
            open_store(location).read(INDEX_FILE)
        except FileNotFoundError:
            return None
        except OSError:
            pass  # `open` says what is wrong
        return cls.open(location, key)

    def load(self, user: str) -> Fingerprint | None:
        """Load the fingerprint of a user, or the global model; None if there is neither.

        Raises:
            ModelCorruptedError: Its file is missing or damaged.
        """
        return self.load_own(user) if user in self.cards else self.load_global()

    def load_global(self) -> Fingerprint | None:
        """Load the global model; None if there is none.

        Raises:
            ModelCorruptedError: Its file is missing or damaged.
        """
        return None if self.global_card is None else self.load_own("")

    def load_own(self, user: str) -> Fingerprint:
        """Load the fingerprint of a user who has one; that of the empty user is the global model.

        Raises:
            ModelCorruptedError: Its file is missing or damaged.
        """
        card = self.cards[user] if user else self.global_card
        assert card is not None  # noqa: S101 - the callers have seen to it
        content, name = self._read_content(card, user), self._describe(card, user)
        try:
            fingerprint, owner = load_fingerprint(content, card)
        except (SafetensorError, KeyError, OverflowError, ValueError) as error:
            raise ModelCorruptedError(f"{name} is damaged ({error}). {RETRAIN_HINT}.") from error
        if not owner == card.user == user:
            raise ModelCorruptedError(f"{name} is that of another user, {owner!r}. {RETRAIN_HINT}.")
        return fingerprint

    def _read_content(self, card: ModelCard, user: str) -> bytes:
        """Read the file of a card, and check its size and checksum."""
        name = self._describe(card, user)
        try:
            content = self._read_bytes(card, user)
        except OSError as error:
            raise ModelCorruptedError(
                f"{name} cannot be read ({error.strerror}). {RETRAIN_HINT}."
            ) from error
        if len(content) < card.size:
            size = f"{len(content):,} of {card.size:,} bytes are there"
            raise ModelCorruptedError(f"{name} is cut off: {size}. {RETRAIN_HINT}.") from EOFError()
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise ModelCorruptedError(f"{name} does not match its checksum. {RETRAIN_HINT}.")
        return content

    def _read_bytes(self, card: ModelCard, user: str) -> bytes:  # noqa: ARG002 - `ModelVersion` needs it
        return self.folder.read(model_path(card.sha256))

    def _describe(self, card: ModelCard, user: str) -> str:
        return f"{display_path(self.folder, model_path(card.sha256))}: fingerprint of {user!r}"


class SavedModels(msgspec.Struct, frozen=True):
    """The fingerprints that a run has saved.

    Attributes:
        folder: The folder.
        trained: Number of users that were trained in this run.
        kept: Number of users whose older fingerprints were kept.
        version: Number of the new version.
        alias: Alias that names it, if the command gave one.
    """

    folder: str
    trained: int
    kept: int
    version: int
    alias: str = ""

    @property
    def location(self) -> str:
        """The store, with the alias if there is one, as `morpheus report --models` takes it."""
        return f"{self.folder}@{self.alias}" if self.alias else self.folder


def put_model(
    location: Location | Store, fingerprint: Fingerprint, *, durable: bool = True
) -> ModelCard:
    """Write a fingerprint's file.

    Args:
        location: The folder.
        fingerprint: The fingerprint.
        durable: The file must survive power loss. If not, it is written again into a pack.

    Returns:
        The card for the index: the fingerprint is used once an index has it (`commit_index`).

    Raises:
        TransientError: The folder cannot be written.
    """
    content = dump_fingerprint(fingerprint)
    digest = sha256(content).hexdigest()
    card = replace(fingerprint.card, size=len(content), sha256=digest)
    folder = open_store(location) if isinstance(location, str | PathLike) else location
    folder.write(model_path(card.sha256), content, durable=durable)
    return card


def commit_index(
    location: Location, index: ModelIndex, *, key: bytes | None = None, keep: bool = False
) -> None:
    """Replace the index of a folder in one step.

    Files that neither this index nor the one before it has are removed once they are `GC_GRACE`
    old.

    Args:
        location: The folder.
        index: The new index.
        key: Signs the index; by default the key of the environment. None without one.
        keep: Keep the users and the global model of the index before it that `index` does not have.

    Raises:
        TransientError: The folder cannot be written.
    """
    folder, key = open_store(location), key or read_key()
    path = display_path(folder, INDEX_FILE)

    def merge(before: bytes) -> ModelIndex:
        return load_index(before, path, key).update(index) if keep and before else index

    content, before = _swap_index(folder, merge, key)
    kept = set(map(model_path, find_referenced_digests(content) | find_referenced_digests(before)))
    cutoff = datetime.now(UTC) - GC_GRACE
    listed = folder.list_files(MODEL_DIR)
    folder.remove([name for name, modified in listed if name not in kept and modified < cutoff])


def _swap_index(
    folder: Store, change: Callable[[bytes], ModelIndex], key: bytes | None
) -> tuple[bytes, bytes]:
    """Write the index that follows from the present one, and return both, the new one first."""
    path = display_path(folder, INDEX_FILE)
    for _ in range(MAX_CAS_RETRIES):
        before, etag = folder.get_with_etag(INDEX_FILE)
        content = dump_index(change(before), key)
        if folder.put_if_match(INDEX_FILE, content, etag):
            return content, before
    raise TransientError(
        f"{path}: other runs keep writing it. Train again, or give this run a folder of its own "
        "with `--models_output_filename=...`."
    )


def model_path(digest: str) -> str:
    """Return the name of the file of a fingerprint in a store without versions."""
    return f"{MODEL_DIR}/{digest}.safetensors"


def display_path(folder: Store, name: str) -> str:
    """Return the full path of a file of a store, for messages."""
    return f"{str(folder).rstrip('/')}/{name}"


class CategorySpec(msgspec.Struct, frozen=True, tag="category", omit_defaults=True):
    """A category column in a file; see `features.encoder.Category`."""

    name: str
    vocabulary: tuple[str, ...] = msgspec.field(name="words")
    missing: str | None = None

    def to_column(self) -> Category:
        """Return the column."""
        return Category(sys.intern(self.name), self.vocabulary, self.missing)


class NumberSpec(msgspec.Struct, frozen=True, tag="number"):
    """A number column in a file; see `features.encoder.Number`."""

    name: str
    quantiles: tuple[float, ...] = msgspec.field(name="at")
    z: tuple[float, ...] = msgspec.field(name="to")

    def to_column(self) -> Number:
        """Return the column."""
        return Number(sys.intern(self.name), self.quantiles, self.z)


class ModelHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text and whole numbers of a fingerprint's file.

    Attributes:
        card: The card, before the file had a size and a checksum.
        columns: The columns.
        widths: Width of the hidden layers and of the bottleneck.
        events: Number of validation events.
        typical_score: See `CalibrationSet`.
        network: `compact` or `reference`.
        new_days: See `Usage`.
        usage_events: Number of events of the history; see `Usage`.
        leads: See `Usage`; empty for the reference network.
    """

    card: ModelCard
    columns: tuple[CategorySpec | NumberSpec, ...]
    widths: tuple[int, int]
    events: int
    typical_score: float
    network: str = "compact"
    new_days: float = 0.0
    usage_events: int = 0
    leads: tuple[int, ...] = ()


def dump_fingerprint(fingerprint: Fingerprint) -> bytes:
    """Encode a fingerprint. Equal fingerprints give equal bytes."""
    config, usage, usual = fingerprint.net.config, fingerprint.usage, fingerprint.usual
    header = ModelHeader(
        replace(fingerprint.card, size=0, sha256="", version=0),
        tuple(_to_spec(column) for column in fingerprint.encoder.columns),
        (config.hidden, config.bottleneck),
        fingerprint.calibration.events,
        fingerprint.calibration.typical_score,
        _network_kind(fingerprint.net),
        *((usage.new_days, usage.events, tuple(usage.leads.tolist())) if usage else ()),
    )
    tensors: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(msgspec.json.encode(header), dtype=np.uint8),
        "weights": np.asarray(fingerprint.net.weights, dtype=np.float16),
        **_baseline_tensors("usual", fingerprint.baseline),
        "scores": fingerprint.calibration.scores,
        "risks": fingerprint.calibration.risks,
        "day_maxima": fingerprint.calibration.day_maxima,
    }
    if fingerprint.oov_rates is not None:
        tensors["novelty"] = fingerprint.oov_rates
    if usage is not None and usual is not None:
        tensors |= _baseline_tensors("conditional", usual)
        tensors |= {
            name: np.asarray(getattr(usage, name), dtype=np.float32) for name in _USAGE_TENSORS
        }
    return save(tensors)


_USAGE_TENSORS = ("counts", "new_share", "others", "novelty_prior")


def _baseline_tensors(name: str, baseline: BaselineStats) -> dict[str, NDArray[Any]]:
    return {f"{name}_mean": baseline.mean, f"{name}_spread": baseline.std}


def _network_kind(net: Network) -> str:
    return "compact" if isinstance(net, Autoencoder) else "reference"


def _network_types(
    kind: str,
) -> tuple[type[NetworkConfig], Callable[[NetworkConfig, NDArray[np.float32]], Network]]:
    if kind == "compact":
        return NetworkConfig, Autoencoder
    require_torch("a fingerprint that was trained with --model=reference")
    from morpheus.models.reference import DfencoderConfig, DfencoderNetwork  # noqa: PLC0415 - torch takes a second to import

    return DfencoderConfig, DfencoderNetwork


def _to_spec(column: Column) -> CategorySpec | NumberSpec:
    if isinstance(column, Category):
        return CategorySpec(column.name, column.vocabulary, column.missing)
    return NumberSpec(column.name, column.quantiles, column.z)


def load_fingerprint(content: bytes, card: ModelCard) -> tuple[Fingerprint, str]:
    """Decode a fingerprint.

    Args:
        content: What `dump_fingerprint` returned.
        card: The card from the index, with size and checksum.

    Returns:
        The fingerprint, and the user whose name the file has.

    Raises:
        SafetensorError, DecodeError, KeyError, ValueError: The bytes are not such a file.
    """
    tensors = load(content)
    header = msgspec.json.decode(tensors["header"].tobytes(), type=ModelHeader)
    encoder = Encoder(tuple(column.to_column() for column in header.columns))
    config_type, network_type = _network_types(header.network)
    config = make_network_config(encoder, *header.widths, config_type)
    weights = tensors["weights"].astype(np.float32)
    if weights.shape != (config.n_parameters,):
        raise ValueError("weights do not fit the columns")
    if not np.isfinite(weights).all():
        raise ValueError("a weight is not a number")
    reader = _TensorReader(tensors, config)
    scores = reader.read("scores"), reader.read("risks"), reader.read("day_maxima")
    calibration = CalibrationSet(*scores, header.events, header.typical_score)
    baseline, net = reader.read_baseline("usual"), network_type(config, weights)
    if header.network != "compact":
        plain = Fingerprint(card, encoder, net, None, baseline, calibration)
        return plain, header.card.user
    fingerprint = Fingerprint(
        card,
        encoder,
        net,
        reader.read("novelty", len(config.code_counts)),
        baseline,
        calibration,
        reader.read_usage(header),
        reader.read_baseline("conditional"),
    )
    return fingerprint, header.card.user


class _TensorReader(msgspec.Struct, frozen=True):
    """Reads the tensors of a file, and checks their shapes.

    Attributes:
        tensors: The tensors.
        config: Sizes of the network.
    """

    tensors: Mapping[str, NDArray[Any]]
    config: NetworkConfig

    def read(self, name: str, size: int | None = None) -> NDArray[np.float32]:
        tensor: NDArray[np.float32] = self.tensors[name]
        if tensor.dtype != np.float32 or tensor.ndim != 1 or size not in {None, len(tensor)}:
            raise ValueError(f"{name} does not fit the columns")
        if size is None and not len(tensor):
            raise ValueError(f"{name} has no values")
        if not np.isfinite(tensor).all():
            raise ValueError(f"a value of {name} is not a number")
        return tensor

    def read_baseline(self, name: str) -> BaselineStats:
        columns = len(self.config.code_counts)
        return BaselineStats(
            self.read(f"{name}_mean", columns), self.read(f"{name}_spread", columns)
        )

    def read_usage(self, header: ModelHeader) -> Usage:
        columns, codes = len(self.config.code_counts), sum(self.config.code_counts)
        leads = np.array(header.leads, dtype=np.intp)
        if len(leads) != columns or (leads < 0).any() or (leads > np.arange(columns)).any():
            raise ValueError("redundant columns do not fit the columns")
        usage = Usage(
            counts=self.read("counts", codes),
            new_share=self.read("new_share", columns).astype(np.float64),
            new_days=header.new_days,
            events=header.usage_events,
            others=self.read("others", codes),
            novelty_prior=self.read("novelty_prior", columns),
            offsets=compute_offsets(self.config.code_counts),
            leads=leads,
        )
        if not (usage.others > 0).all() or not 0 <= usage.new_days < math.inf or usage.events < 0:
            raise ValueError("counts of values do not fit the columns")
        return usage


class LazyModelCards(Mapping[str, ModelCard]):
    """Cards by user, decoded when used: a folder can have many users.

    Args:
        texts: JSON text of each card.
    """

    def __init__(self, texts: dict[str, msgspec.Raw]) -> None:
        self.texts = texts

    def __getitem__(self, user: str) -> ModelCard:
        text = self.texts[user]
        try:
            return _CARD_DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelCorruptedError(
                f"The card of {user!r} in an index of fingerprints is not one that morpheus wrote "
                f"({error}). Train again with `train-ae --train_data_glob=...`."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, user: object) -> bool:
        return user in self.texts

    def __repr__(self) -> str:
        return f"<cards of {len(self):,} users>"


class ModelIndex(msgspec.Struct, frozen=True):
    """The content of an index.

    Attributes:
        users: JSON text of each user's card.
        global_card: Card of the global model, if there is one.
        inputs: The input that the fingerprints fit; None if it is not known.
        trained_until: Time of the latest training event, ISO 8601; empty if it is not known.
        empty_features: Features without a value in any training event.
    """

    users: dict[str, msgspec.Raw]
    global_card: ModelCard | None = msgspec.field(default=None, name="everyone")
    inputs: InputSpec | None = None
    trained_until: str = ""
    empty_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject text that is not a time: a damaged index would fail much later."""
        if self.trained_until:
            datetime.fromisoformat(self.trained_until)

    @classmethod
    def from_cards(
        cls,
        cards: Mapping[str, ModelCard],
        global_card: ModelCard | None = None,
        inputs: InputSpec | None = None,
        trained_until: str = "",
        empty_features: tuple[str, ...] = (),
    ) -> ModelIndex:
        """Make the index of some cards; see above."""
        until = max([trained_until, *(card.last for card in cards.values())])
        users = {user: _encode_card(cards, user) for user in cards}
        return cls(users, global_card, inputs, until, empty_features)

    @property
    def cards(self) -> LazyModelCards:
        """Cards of the users."""
        return LazyModelCards(self.users)

    def update(self, newer: ModelIndex) -> ModelIndex:
        """Return an index with the cards of both; those of `newer` replace the others."""
        return ModelIndex(
            self.users | newer.users,
            newer.global_card or self.global_card,
            newer.inputs or self.inputs,
            max(self.trained_until, newer.trained_until),
            tuple(name for name in self.empty_features if name in newer.empty_features),
        )


def _encode_card(cards: Mapping[str, ModelCard], user: str) -> msgspec.Raw:
    if isinstance(cards, LazyModelCards):
        return cards.texts[user]
    return msgspec.Raw(msgspec.json.encode(cards[user]))


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _DigestIndex(msgspec.Struct, frozen=True):
    users: dict[str, _Digest]
    global_card: _Digest | None = msgspec.field(default=None, name="everyone")


class _IndexFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file: the index as JSON text, the SHA-256 of the text, and its signature, if any."""

    version: int
    sha256: str
    cards: msgspec.Raw
    signature: str = ""


def dump_index(index: ModelIndex, key: bytes | None = None) -> bytes:
    """Encode an index, with users in alphabetical order, and sign it if there is a key."""
    users = dict(sorted(index.users.items()))
    text = msgspec.json.encode(replace(index, users=users))
    signature = sign_text(text, key)
    return msgspec.json.encode(
        _IndexFile(INDEX_VERSION, sha256(text).hexdigest(), msgspec.Raw(text), signature)
    )


def load_index(content: bytes, path: str = INDEX_FILE, key: bytes | None = None) -> ModelIndex:
    """Decode an index.

    Args:
        content: What `dump_index` returned.
        path: The file, for messages.
        key: The key of a signed index; None without one.

    Raises:
        ModelCorruptedError: It is damaged, or another version of morpheus wrote it.
        UsageError: The key is missing or wrong, or the index is not signed.
    """
    try:
        version = msgspec.json.decode(content, type=_IndexVersion).version
        if version != INDEX_VERSION:
            age = "an older" if version < INDEX_VERSION else "a newer"
            raise ModelCorruptedError(
                f"{path}: {age} version of morpheus wrote it (format {version}; this version reads "
                f"format {INDEX_VERSION}). Train again into a new folder with `train-ae "
                "--train_data_glob=... --models_output_filename=...`."
            )
        file = msgspec.json.decode(content, type=_IndexFile)
        if sha256(file.cards).hexdigest() != file.sha256:
            raise ModelCorruptedError(f"{path}: does not match its checksum. {RETRAIN_HINT}.")
        check_signature(file.cards, file.signature, path, key)
        return msgspec.json.decode(file.cards, type=ModelIndex)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorruptedError(
            f"{path}: is not an index of fingerprints. {RETRAIN_HINT}."
        ) from error


class _IndexVersion(msgspec.Struct, frozen=True):
    version: int


def sign_text(text: bytes | msgspec.Raw, key: bytes | None, kind: str = "index") -> str:
    """Return the signature of an index or of another kind of text; empty without a key."""
    if key is None:
        return ""
    return hmac.new(key, f"morpheus model {kind}\n".encode() + bytes(text), sha256).hexdigest()


def check_signature(
    text: msgspec.Raw, signature: str, path: str, key: bytes | None, kind: str = "index"
) -> None:
    """Check what `sign_text` returned.

    Raises:
        UsageError: The signature is wrong, the text is signed and there is no key, or there is a
            key and the text is not signed.
    """
    give = f"with `--models_key_file=...` or ${KEY_VARIABLE}"
    if key is None and signature:
        raise UsageError(f"{path}: is signed, and no key was given. Give the key {give}.")
    if key is not None and not signature:
        raise UsageError(
            f"{path}: is not signed, but a key was given. Leave the key out if you trust the "
            "folder, or train again with the key into a new folder."
        )
    if not hmac.compare_digest(sign_text(text, key, kind), signature):
        raise UsageError(
            f"{path}: was signed with another key, or has been changed. Give the right key {give}, "
            "or restore the folder from a copy."
        )


def find_referenced_digests(content: bytes) -> set[str]:
    """Return the checksums of all fingerprints in an index; none if it is not an index."""
    try:
        file = msgspec.json.decode(content, type=_IndexFile)
        if sha256(file.cards).hexdigest() != file.sha256 or file.version != INDEX_VERSION:
            return set()
        digests = msgspec.json.decode(file.cards, type=_DigestIndex)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return set()
    return {
        card.sha256 for card in (*digests.users.values(), digests.global_card) if card is not None
    }
