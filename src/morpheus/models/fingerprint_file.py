"""A fingerprint as bytes, and back.

Its numbers are tensors, its words JSON in one more tensor: no raw rows, and nothing that can run
code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from morpheus.features.categories import Category
from morpheus.features.encoder import Column, Encoder
from morpheus.features.numbers import Number
from morpheus.models.autoencoder import Autoencoder, NetworkConfig
from morpheus.models.calibration import CalibrationSet
from morpheus.models.evidence import Likelihoods, SurpriseModel, BaselineStats, compute_offsets
from morpheus.models.fingerprint import ModelCard, Fingerprint, Network, make_network_config


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


def _network_types(kind: str) -> tuple[type[NetworkConfig], Callable[[NetworkConfig, NDArray[np.float32]], Network]]:
    if kind == "compact":
        return NetworkConfig, Autoencoder
    from morpheus.models import reference  # noqa: PLC0415 - torch takes a second to import

    return reference.DfencoderConfig, reference.DfencoderNetwork


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
