"""The model store: a folder of fingerprints, local or in an object store.

Each fingerprint is a safetensors file, named by its SHA-256: numbers are tensors, and text is JSON
in one more tensor. No file has raw rows or can run code. `index.json` has the card of each user,
and is replaced in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from morpheus.errors import ModelCorruptedError, TransientError
from morpheus.features.encoder import Category, Column, Encoder, Number
from morpheus.models.autoencoder import Autoencoder, NetworkConfig
from morpheus.models.batched_training import require_torch
from morpheus.models.calibration import CalibrationSet
from morpheus.models.profile import Fingerprint, ModelCard, Network, make_network_config
from morpheus.models.scoring import BaselineStats, Likelihoods, SurpriseModel, compute_offsets
from morpheus.storage.folder import Location, Store, open_store

INDEX_FILE = "index.json"
INDEX_VERSION = 3
MODEL_DIR = "fingerprints"
GC_GRACE = timedelta(days=1)
"""Minimum age of a file that is removed because no index has it: a run in progress may have written
it."""
MAX_CAS_RETRIES = 5
"""How often an index is written again because another run replaced it at the same time."""
RETRAIN_HINT = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"

_CARD_DECODER = msgspec.json.Decoder(ModelCard)


@dataclass(frozen=True)
class ModelStore:
    """A folder of fingerprints whose index was read; files are read when a user needs them.

    Attributes:
        folder: The folder.
        cards: Cards of the users.
        global_card: Card of the global model, if there is one.
    """

    folder: Store
    cards: Mapping[str, ModelCard]
    global_card: ModelCard | None = None

    @classmethod
    def open(cls, location: Location) -> ModelStore:
        """Read and check the index.

        Raises:
            ModelCorruptedError: There is no index, or it is damaged.
            UsageError: The bucket does not exist, or access is denied.
            TransientError: The object store does not answer.
        """
        folder = open_store(location)
        path = _display_path(folder, INDEX_FILE)
        try:
            index = load_index(folder.read(INDEX_FILE))
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise ModelCorruptedError(message + "--models_output_filename=...` wrote.") from error
        except msgspec.DecodeError as error:
            raise ModelCorruptedError(
                f"{path}: is no index of fingerprints. {RETRAIN_HINT}."
            ) from error
        if index is None:
            raise ModelCorruptedError(
                f"{path}: does not match its checksum, or another version of morpheus wrote it. "
                f"{RETRAIN_HINT}."
            )
        return cls(folder, index.cards, index.global_card)

    def load(self, user: str) -> Fingerprint | None:
        """Load the fingerprint of a user, or the global model; None if there is neither.

        Raises:
            ModelCorruptedError: Its file is missing or damaged.
        """
        card = self.cards.get(user, self.global_card)
        if card is None:
            return None
        content, name = self._read_content(card, user), self._describe(card, user)
        try:
            return load_fingerprint(content, card)
        except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise ModelCorruptedError(f"{name} is damaged. {RETRAIN_HINT}.") from error

    def copy(self, location: Location) -> None:
        """Copy all fingerprints to another folder, whose index is replaced in one step.

        Raises:
            ModelCorruptedError: A file is missing or damaged.
            TransientError: The folder cannot be written.
        """
        cards = list(self.cards.items())
        if self.global_card is not None:
            cards.append(("", self.global_card))
        for user, card in cards:
            open_store(location).write(_model_path(card.sha256), self._read_content(card, user))
        commit_index(location, self.cards, self.global_card)

    def _read_content(self, card: ModelCard, user: str) -> bytes:
        """Read the file of a card, and check its size and checksum."""
        name = self._describe(card, user)
        try:
            content = self.folder.read(_model_path(card.sha256))
        except OSError as error:
            raise ModelCorruptedError(
                f"{name} cannot be read ({error.strerror}). {RETRAIN_HINT}."
            ) from error
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise ModelCorruptedError(f"{name} does not match its checksum. {RETRAIN_HINT}.")
        return content

    def _describe(self, card: ModelCard, user: str) -> str:
        return f"{_display_path(self.folder, _model_path(card.sha256))}: fingerprint of {user!r}"


def put_model(location: Location, fingerprint: Fingerprint) -> ModelCard:
    """Write a fingerprint's file.

    Returns:
        The card for the index: the fingerprint is used once an index has it (`commit_index`).

    Raises:
        TransientError: The folder cannot be written.
    """
    content = dump_fingerprint(fingerprint)
    digest = sha256(content).hexdigest()
    card = msgspec.structs.replace(fingerprint.card, size=len(content), sha256=digest)
    open_store(location).write(_model_path(card.sha256), content)
    return card


def commit_index(
    location: Location, cards: Mapping[str, ModelCard], global_card: ModelCard | None = None
) -> None:
    """Replace the index of a folder in one step.

    Files that neither this index nor the one before it has are removed once they are `GC_GRACE`
    old.

    Args:
        location: The folder.
        cards: Cards of the users.
        global_card: Card of the global model, for users without their own.

    Raises:
        TransientError: The folder cannot be written.
    """
    folder = open_store(location)
    content = dump_index(cards, global_card)
    before = _swap_index(folder, content)
    kept = set(map(_model_path, find_referenced_digests(content) | find_referenced_digests(before)))
    cutoff = datetime.now(UTC) - GC_GRACE
    listed = folder.list_files(MODEL_DIR)
    folder.remove([name for name, modified in listed if name not in kept and modified < cutoff])


def _swap_index(folder: Store, content: bytes) -> bytes:
    """Write the index, and return the one before it."""
    for _ in range(MAX_CAS_RETRIES):
        before, etag = folder.get_with_etag(INDEX_FILE)
        if folder.put_if_match(INDEX_FILE, content, etag):
            return before
    path = _display_path(folder, INDEX_FILE)
    raise TransientError(
        f"{path}: other runs keep writing it. Train again, or give this run a folder of its own "
        "with `--models_output_filename=...`."
    )


def _model_path(digest: str) -> str:
    return f"{MODEL_DIR}/{digest}.safetensors"


def _display_path(folder: Store, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"


class CategorySpec(msgspec.Struct, frozen=True, tag="category", omit_defaults=True):
    """A category column in a file; see `features.encoder.Category`."""

    name: str
    vocabulary: tuple[str, ...] = msgspec.field(name="words")
    missing: str | None = None

    def to_column(self) -> Category:
        """Return the column."""
        return Category(self.name, self.vocabulary, self.missing)


class NumberSpec(msgspec.Struct, frozen=True, tag="number"):
    """A number column in a file; see `features.encoder.Number`."""

    name: str
    quantiles: tuple[float, ...] = msgspec.field(name="at")
    z: tuple[float, ...] = msgspec.field(name="to")

    def to_column(self) -> Number:
        """Return the column."""
        return Number(self.name, self.quantiles, self.z)


class ModelHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text and whole numbers of a fingerprint's file.

    Attributes:
        card: The card, before the file had a size and a checksum.
        columns: The columns.
        widths: Width of the hidden layers and of the bottleneck.
        events: Number of validation events.
        days: Days that they span.
        short_ema_p90: See `CalibrationSet`.
        network: `compact` or `reference`.
        redundant_columns: See `Fingerprint`; empty in files of old versions.
    """

    card: ModelCard
    columns: tuple[CategorySpec | NumberSpec, ...]
    widths: tuple[int, int]
    events: int
    days: int
    short_ema_p90: float = msgspec.field(name="hour")
    network: str = "compact"
    redundant_columns: tuple[int, ...] = msgspec.field(default=(), name="twins")


def dump_fingerprint(fingerprint: Fingerprint) -> bytes:
    """Encode a fingerprint. Equal fingerprints give equal bytes."""
    config = fingerprint.net.config
    header = ModelHeader(
        fingerprint.card,
        tuple(_to_spec(column) for column in fingerprint.encoder.columns),
        (config.hidden, config.bottleneck),
        fingerprint.calibration.events,
        fingerprint.calibration.days,
        fingerprint.calibration.short_ema_p90,
        _network_kind(fingerprint.net),
        fingerprint.redundant_columns,
    )
    tensors: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(msgspec.json.encode(header), dtype=np.uint8),
        "weights": np.asarray(fingerprint.net.weights, dtype=np.float16),
        **_baseline_tensors("usual", fingerprint.baseline),
        "scores": fingerprint.calibration.scores,
        "risks": fingerprint.calibration.risks,
        "peaks": fingerprint.calibration.session_maxima,
    }
    if fingerprint.oov_rates is not None:
        tensors["novelty"] = fingerprint.oov_rates
    if fingerprint.surprise_model is not None:
        tensors |= _baseline_tensors("habit", fingerprint.surprise_model.marginal_baseline)
        tensors |= _baseline_tensors("company", fingerprint.surprise_model.conditional_baseline)
        tensors["chances_habit"] = fingerprint.surprise_model.likelihoods.log_likelihood_ratio
        tensors["chances_others"] = fingerprint.surprise_model.likelihoods.population_prior
        tensors["chances_shared"] = fingerprint.surprise_model.likelihoods.seen_by_others
    return save(tensors)


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


def load_fingerprint(content: bytes, card: ModelCard) -> Fingerprint:
    """Decode a fingerprint.

    Args:
        content: What `dump_fingerprint` returned.
        card: The card from the index, with size and checksum.

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
    if len(header.redundant_columns) not in {0, len(config.code_counts)}:
        raise ValueError("redundant columns do not fit the columns")

    reader = _TensorReader(tensors, config)
    scores = reader.read("scores"), reader.read("risks"), reader.read("peaks")
    calibration = CalibrationSet(*scores, header.events, header.days, header.short_ema_p90)
    baseline, net = reader.read_baseline("usual"), network_type(config, weights)
    if header.network != "compact":
        return Fingerprint(card, encoder, net, None, baseline, calibration)
    return Fingerprint(
        card,
        encoder,
        net,
        reader.read("novelty", len(config.code_counts)),
        baseline,
        calibration,
        reader.read_surprise_model(),
        header.redundant_columns,
    )


@dataclass(frozen=True)
class _TensorReader:
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
        return tensor

    def read_baseline(self, name: str) -> BaselineStats:
        columns = len(self.config.code_counts)
        return BaselineStats(
            self.read(f"{name}_mean", columns), self.read(f"{name}_spread", columns)
        )

    def read_surprise_model(self) -> SurpriseModel:
        codes = sum(self.config.code_counts)
        likelihoods = Likelihoods(
            self.read("chances_habit", codes),
            self.read("chances_others", codes),
            self.read("chances_shared", codes),
            compute_offsets(self.config.code_counts),
        )
        marginal, conditional = self.read_baseline("habit"), self.read_baseline("company")
        return SurpriseModel(likelihoods, marginal, conditional)


class LazyModelCards(Mapping[str, ModelCard]):
    """Cards by user, decoded when used: a folder can have many users.

    Args:
        texts: JSON text of each card.
    """

    def __init__(self, texts: dict[str, msgspec.Raw]) -> None:
        self._texts = texts

    def __getitem__(self, user: str) -> ModelCard:
        text = self._texts[user]
        try:
            return _CARD_DECODER.decode(text)
        except msgspec.DecodeError as error:
            raise ModelCorruptedError(
                f"The card of {user!r} in an index of fingerprints is not one that morpheus wrote "
                f"({error}). Train again with `train-ae --train_data_glob=...`."
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, user: object) -> bool:
        return user in self._texts

    def __repr__(self) -> str:
        return f"<cards of {len(self):,} users>"


class ModelIndex(msgspec.Struct, frozen=True):
    """The content of an index.

    Attributes:
        users: JSON text of each user's card.
        global_card: Card of the global model, if there is one.
    """

    users: dict[str, msgspec.Raw]
    global_card: ModelCard | None = msgspec.field(default=None, name="everyone")

    @property
    def cards(self) -> LazyModelCards:
        """Cards of the users."""
        return LazyModelCards(self.users)


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _DigestIndex(msgspec.Struct, frozen=True):
    users: dict[str, _Digest]
    global_card: _Digest | None = msgspec.field(default=None, name="everyone")


class _IndexFile(msgspec.Struct, frozen=True):
    """The file: the cards as JSON text, and the SHA-256 of the text."""

    version: int
    sha256: str
    cards: msgspec.Raw


def dump_index(cards: Mapping[str, ModelCard], global_card: ModelCard | None) -> bytes:
    """Encode an index, with users in alphabetical order."""
    users = {user: msgspec.Raw(msgspec.json.encode(card)) for user, card in sorted(cards.items())}
    text = msgspec.json.encode(ModelIndex(users, global_card))
    return msgspec.json.encode(
        _IndexFile(INDEX_VERSION, sha256(text).hexdigest(), msgspec.Raw(text))
    )


def load_index(content: bytes) -> ModelIndex | None:
    """Decode an index; None if its checksum is wrong, or another version wrote it.

    Raises:
        msgspec.DecodeError: The content is not an index.
    """
    text = _extract_cards(content)
    return None if text is None else msgspec.json.decode(text, type=ModelIndex)


def find_referenced_digests(content: bytes) -> set[str]:
    """Return the checksums of all fingerprints in an index; none if it is not an index."""
    try:
        text = _extract_cards(content)
        digests = _DigestIndex({}) if text is None else msgspec.json.decode(text, type=_DigestIndex)
    except msgspec.DecodeError:
        return set()
    return {
        card.sha256 for card in (*digests.users.values(), digests.global_card) if card is not None
    }


def _extract_cards(content: bytes) -> msgspec.Raw | None:
    file = msgspec.json.decode(content, type=_IndexFile)
    intact = sha256(file.cards).hexdigest() == file.sha256 and file.version == INDEX_VERSION
    return file.cards if intact else None
