"""A fingerprint as bytes, and back.

Its numbers are tensors, its words JSON in one more tensor: no raw rows, and nothing that can run
code.
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


class CategorySpec(msgspec.Struct, frozen=True, tag="category", omit_defaults=True):
    """A category column of a fingerprint."""

    name: str
    words: tuple[str, ...]
    missing: str | None = None

    def to_column(self) -> Category:
        """The column it describes."""
        return Category(self.name, self.words, self.missing)


class NumberSpec(msgspec.Struct, frozen=True, tag="number"):
    """A number column of a fingerprint."""

    name: str
    at: tuple[float, ...]
    to: tuple[float, ...]

    def to_column(self) -> Number:
        """The column it describes."""
        return Number(self.name, self.at, self.to)


class ModelHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a fingerprint's file says in words and whole numbers.

    `events`, `days` and `hour` are those of the held-out part; `network` is `compact` or
    `reference`; files written before there were `twins` have none.
    """

    card: ModelCard
    columns: tuple[CategorySpec | NumberSpec, ...]
    widths: tuple[int, int]
    events: int
    days: int
    hour: float
    network: str = "compact"
    twins: tuple[int, ...] = ()


def dump_fingerprint(fingerprint: Fingerprint) -> bytes:
    """Write a fingerprint; the same one is the same bytes."""
    shape = fingerprint.net.config
    header = ModelHeader(
        fingerprint.card,
        tuple(_to_spec(column) for column in fingerprint.encoder.columns),
        (shape.hidden, shape.bottleneck),
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
    """Read a fingerprint, given its card.

    Raises:
        SafetensorError, DecodeError, KeyError, ValueError: The bytes are not what `dump_fingerprint` wrote.
    """
    tensors = load(content)
    header = msgspec.json.decode(tensors["header"].tobytes(), type=ModelHeader)
    encoder = Encoder(tuple(column.to_column() for column in header.columns))
    sizes, network = _network_types(header.network)
    shape = make_network_config(encoder, *header.widths, sizes)
    weights = tensors["weights"].astype(np.float32)
    vocabulary, columns = (sum(shape.code_counts),), (len(shape.code_counts),)
    if weights.shape != (shape.n_parameters,):
        raise ValueError("weights do not fit the columns")
    if len(header.twins) not in {0, len(shape.code_counts)}:
        raise ValueError("twins do not fit the columns")

    def part(name: str, size: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        tensor: NDArray[np.float32] = tensors[name]
        if tensor.dtype != np.float32 or tensor.ndim != 1 or size not in {None, tensor.shape}:
            raise ValueError(f"{name} does not fit the columns")
        return tensor

    def usual(name: str) -> BaselineStats:
        return BaselineStats(part(f"{name}_mean", columns), part(f"{name}_spread", columns))

    measured = part("scores"), part("risks"), part("peaks")
    held_out = CalibrationSet(*measured, header.events, header.days, header.hour)
    if header.network != "compact":
        return Fingerprint(card, encoder, network(shape, weights), None, usual("usual"), held_out)
    tables = [part(f"chances_{name}", vocabulary) for name in ("habit", "others", "shared")]
    chances = Likelihoods(tables[0], tables[1], tables[2], compute_offsets(shape.code_counts))
    return Fingerprint(
        card,
        encoder,
        network(shape, weights),
        part("novelty", columns),
        usual("usual"),
        held_out,
        SurpriseModel(chances, usual("habit"), usual("company")),
        header.twins,
    )


INDEX_VERSION = 3
_CARD_DECODER = msgspec.json.Decoder(ModelCard)


class LazyModelCards(Mapping[str, ModelCard]):
    """Cards by user.

    Args:
        texts: The JSON text of each.
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
    """The text of each user's card, and everyone's card if there is one."""

    users: dict[str, msgspec.Raw]
    everyone: ModelCard | None = None

    @property
    def cards(self) -> LazyModelCards:
        """Those of users."""
        return LazyModelCards(self.users)


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _DigestIndex(msgspec.Struct, frozen=True):
    users: dict[str, _Digest]
    everyone: _Digest | None = None


class _IndexFile(msgspec.Struct, frozen=True):
    """The file: `cards` as JSON text, and its SHA-256."""

    version: int
    sha256: str
    cards: msgspec.Raw


def dump_index(cards: Mapping[str, ModelCard], global_card: ModelCard | None) -> bytes:
    """Write an index, users in order."""
    users = {user: msgspec.Raw(msgspec.json.encode(card)) for user, card in sorted(cards.items())}
    text = msgspec.json.encode(ModelIndex(users, global_card))
    return msgspec.json.encode(
        _IndexFile(INDEX_VERSION, sha256(text).hexdigest(), msgspec.Raw(text))
    )


def load_index(content: bytes) -> ModelIndex | None:
    """Read an index; None if it is not as it was written, or by another version.

    Raises:
        msgspec.DecodeError: It is no index.
    """
    text = _extract_cards(content)
    return None if text is None else msgspec.json.decode(text, type=ModelIndex)


def find_referenced_digests(content: bytes) -> set[str]:
    """The checksums of all fingerprints that an index has; none if it is no index."""
    try:
        text = _extract_cards(content)
        names = _DigestIndex({}) if text is None else msgspec.json.decode(text, type=_DigestIndex)
    except msgspec.DecodeError:
        return set()
    return {one.sha256 for one in (*names.users.values(), names.everyone) if one is not None}


def _extract_cards(content: bytes) -> msgspec.Raw | None:
    file = msgspec.json.decode(content, type=_IndexFile)
    whole = sha256(file.cards).hexdigest() == file.sha256 and file.version == INDEX_VERSION
    return file.cards if whole else None


INDEX_FILE = "index.json"
MODEL_DIR = "fingerprints"
GC_GRACE = timedelta(days=1)
"""How long files stay that no index has: a run that is still learning may have written them."""
MAX_CAS_RETRIES = 5
"""How often an index is written anew because another run has written one meanwhile."""
RETRAIN_HINT = "Restore it from a copy, or train again with `train-ae --train_data_glob=...`"


@dataclass(frozen=True)
class ModelStore:
    """A folder of fingerprints, opened: the index is read, files only when a user needs one."""

    folder: Store
    cards: Mapping[str, ModelCard]
    global_card: ModelCard | None = None

    @classmethod
    def open(cls, location: Location) -> ModelStore:
        """Read and check the index.

        Raises:
            BrokenModel: There is no index, or it is not as it was written.
            UsageError: There is no such bucket, or it must not be read.
            Unavailable: S3 does not answer.
        """
        folder = open_store(location)
        named = _display_path(folder, INDEX_FILE)
        try:
            found = load_index(folder.read(INDEX_FILE))
        except OSError as error:
            message = f"{named}: cannot be read ({error.strerror}). Give the folder that `train-ae "
            raise ModelCorruptedError(message + "--models_output_filename=...` wrote.") from error
        except msgspec.DecodeError as error:
            raise ModelCorruptedError(
                f"{named}: is no index of fingerprints. {RETRAIN_HINT}."
            ) from error
        if found is None:
            raise ModelCorruptedError(
                f"{named}: does not match its checksum, or another version of morpheus wrote it. "
                f"{RETRAIN_HINT}."
            )
        return cls(folder, found.cards, found.everyone)

    def load(self, user: str) -> Fingerprint | None:
        """Read a user's fingerprint, or that of everyone; None where there is neither.

        Raises:
            BrokenModel: Its file is missing or is not as it was written.
        """
        card = self.cards.get(user, self.global_card)
        if card is None:
            return None
        content, named = self._read_content(card, user), self._describe(card, user)
        try:
            return load_fingerprint(content, card)
        except (SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise ModelCorruptedError(f"{named} is damaged. {RETRAIN_HINT}.") from error

    def copy(self, location: Location) -> None:
        """Write all fingerprints to another folder, whose own they replace in one step.

        Raises:
            BrokenModel: A file is missing or is not as it was written.
            Unavailable: The folder cannot be written.
        """
        whose = [
            *self.cards.items(),
            *([] if self.global_card is None else [("", self.global_card)]),
        ]
        for user, card in whose:
            open_store(location).write(_model_path(card.sha256), self._read_content(card, user))
        commit_index(location, self.cards, self.global_card)

    def _read_content(self, card: ModelCard, user: str) -> bytes:
        """What a card's file holds, checked against it."""
        named = self._describe(card, user)
        try:
            content = self.folder.read(_model_path(card.sha256))
        except OSError as error:
            raise ModelCorruptedError(
                f"{named} cannot be read ({error.strerror}). {RETRAIN_HINT}."
            ) from error
        if len(content) != card.size or sha256(content).hexdigest() != card.sha256:
            raise ModelCorruptedError(f"{named} does not match its checksum. {RETRAIN_HINT}.")
        return content

    def _describe(self, card: ModelCard, user: str) -> str:
        return f"{_display_path(self.folder, _model_path(card.sha256))}: fingerprint of {user!r}"


def put_model(location: Location, fingerprint: Fingerprint) -> ModelCard:
    """Write a fingerprint's file; it takes effect when an index has the card that is returned.

    Raises:
        Unavailable: The folder cannot be written.
    """
    content = dump_fingerprint(fingerprint)
    digest = sha256(content).hexdigest()
    card = msgspec.structs.replace(fingerprint.card, size=len(content), sha256=digest)
    open_store(location).write(_model_path(card.sha256), content)
    return card


def commit_index(
    location: Location, cards: Mapping[str, ModelCard], global_card: ModelCard | None = None
) -> None:
    """Make these the folder's fingerprints, in one step.

    Files are removed that neither this index nor the one before it has, once they are a day old.

    Args:
        location: The folder.
        cards: Those of users.
        global_card: That of everyone, for users who have none.

    Raises:
        Unavailable: The folder cannot be written.
    """
    folder = open_store(location)
    content = dump_index(cards, global_card)
    before = _swap_index(folder, content)
    kept = set(map(_model_path, find_referenced_digests(content) | find_referenced_digests(before)))
    old = datetime.now(UTC) - GC_GRACE
    listed = folder.list_files(MODEL_DIR)
    folder.remove([name for name, written in listed if name not in kept and written < old])


def _swap_index(folder: Store, content: bytes) -> bytes:
    """Write the index, and give what was there before."""
    for _ in range(MAX_CAS_RETRIES):
        before, mark = folder.get_with_etag(INDEX_FILE)
        if folder.put_if_match(INDEX_FILE, content, mark):
            return before
    raise TransientError(
        f"{_display_path(folder, INDEX_FILE)}: other runs keep writing it. Train again, or give this run a "
        "folder of its own with `--models_output_filename=...`."
    )


def _model_path(digest: str) -> str:
    return f"{MODEL_DIR}/{digest}.safetensors"


def _display_path(folder: Store, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"
