"""Columns that say the same: each value of one goes with one value of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from morpheus.features.encoder import UNKNOWN, EncodedRows, Encoder, Number
from morpheus.models.autoencoder import Array, Autoencoder, NetworkConfig
from morpheus.models.calibration import CalibrationSet, ModelSummary
from morpheus.models.scoring import BaselineStats, MaskedPredictions, SurpriseModel
from morpheus.models.training import iter_fixed_batches


def find_redundant_columns(encoder: Encoder, rows: EncodedRows) -> tuple[int, ...]:
    """Find the columns that said the same all through a history.

    A column that never changed says nothing, and has no twin; nor has a column of numbers.

    Args:
        encoder: Of the columns.
        rows: The history, encoded by it.

    Returns:
        For each column the first one that says the same: itself, if none before it does.

    >>> import polars as pl
    >>> frame = pl.DataFrame({"error": [1, 1, 2, 2], "host": list("xyxy"), "message": list("aabb")})
    >>> frame = frame.cast(pl.String)
    >>> encoder = Encoder.fit(frame, frame.columns)
    >>> find_redundant_columns(encoder, encoder.encode(frame))
    (0, 1, 0)
    """
    first: dict[bytes, int] = {}
    found = []
    for c, column in enumerate(encoder.columns):
        turns = _canonical_codes(rows.codes[:, c])
        changed = bool(turns.any()) and not isinstance(column, Number)
        found.append(first.setdefault(turns.tobytes(), c) if changed else c)
    return tuple(found)


def _canonical_codes(codes: NDArray[np.int32]) -> NDArray[np.intp]:
    """Codes, numbered anew as they turn up, (D,): equal where columns say the same."""
    _, places, which = np.unique(codes, return_index=True, return_inverse=True)
    return np.asarray(places.argsort().argsort()[which])


def deduplicate_columns(
    order: Sequence[int], groups: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Columns, each with those later in the order that say the same, and that are left out.

    Args:
        order: Columns.
        groups: What `find_redundant_columns` found; empty if nothing is known of twins.

    >>> list(deduplicate_columns([2, 1, 0], (0, 1, 0)))
    [(2, [0]), (1, [])]
    """
    leads: dict[int, list[int]] = {}
    for column in order:
        leads.setdefault(groups[column] if groups else column, []).append(column)
    for lead, *others in leads.values():
        yield lead, others


SCOPE_OWN, SCOPE_PEER_GROUP, SCOPE_GLOBAL = "own", "peers", "everyone"
"""Rungs of the ladder: whose history a fingerprint is learnt from."""


@dataclass(frozen=True)
class ModelCard:
    """Describes a fingerprint to people: whose it is, and what it was learnt from.

    Attributes:
        user: Whose it is.
        events: Events of the user's own history.
        distinct: Distinct rows among them.
        first: Time of the first event, ISO 8601; empty where times are unknown.
        last: Time of the last event.
        epochs: Epochs of training.
        seed: Seed of the run that trained it.
        rung: Whose history it was learnt from: the user's OWN, filled up with that of PEERS, or
            that of EVERYONE.
        borrowed: Events of others that it was filled up with.
        size: Bytes of its file, once it has one.
        sha256: Checksum of its file.
        portrait: What it looks like; None for the reference network, and for fingerprints of old.
    """

    user: str
    events: int
    distinct: int
    first: str
    last: str
    epochs: int
    seed: int
    rung: str = SCOPE_OWN
    borrowed: int = 0
    size: int = 0
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    portrait: ModelSummary | None = None

    @property
    def own_share(self) -> float:
        """Share of what it was learnt from that is the user's own."""
        return self.events / ((self.events + self.borrowed) or 1)


class Network(Protocol):
    """What guesses every column of an event back."""

    @property
    def config(self) -> NetworkConfig:
        """Its sizes."""

    @property
    def weights(self) -> Array:
        """Its weights, in one vector."""

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C)."""


@dataclass(frozen=True)
class Fingerprint:
    """What was learnt of one user.

    Attributes:
        card: Describes it to people.
        encoder: How its columns become codes and numbers.
        net: The network.
        oov_rates: Share of held-out events that brought a new value, for each column, (C,); None
            where the network itself guesses at unseen values.
        baseline: What is usual of the loss of each column.
        calibration: What is usual of the scores of whole events.
        surprise_model: What speaks against the user; None for the reference network, which has none.
        redundant_columns: For each column the first one that says the same (`twins.twins`); empty if unknown.
    """

    card: ModelCard
    encoder: Encoder
    net: Network
    oov_rates: NDArray[np.float32] | None
    baseline: BaselineStats
    calibration: CalibrationSet
    surprise_model: SurpriseModel | None = None
    redundant_columns: tuple[int, ...] = ()

    def losses(self, rows: EncodedRows) -> NDArray[np.float32]:
        """Loss of each column of each distinct row, (distinct, C).

        Nats for the code; squared standard deviations are added in number columns. An unseen value
        costs -log of its column's novelty rate, and a known one -log of the rest more than the
        network says, so that the probabilities of all that can happen add up to one.
        """
        plain = raw_losses(self.net, rows)
        return plain if self.oov_rates is None else apply_oov_penalty(plain, self.oov_rates, rows)

    def column_anomaly(self, rows: EncodedRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How strange each column of each distinct row is for the user, (distinct, C); from 0 up.

        And the same once more, by way of values that others have too.

        Raises:
            ValueError: It was learnt with the reference network.
        """
        if (
            self.surprise_model is None
            or self.oov_rates is None
            or not isinstance(self.net, Autoencoder)
        ):
            raise ValueError("the reference network says nothing of columns")
        chances = self.surprise_model.likelihoods
        found = MaskedPredictions.predict(self.net, rows).compute_surprise(
            chances, self.oov_rates, rows
        )
        strangeness = self.surprise_model.column_anomaly(*found)
        return strangeness, strangeness * chances.seen_by_others[rows.codes + chances.offsets]


def make_network_config(
    encoder: Encoder,
    hidden: int = 64,
    bottleneck: int = 32,
    config_type: type[NetworkConfig] = NetworkConfig,
) -> NetworkConfig:
    """Size a network for an encoder's columns."""
    columns = encoder.columns
    numbers = tuple(c for c, column in enumerate(columns) if isinstance(column, Number))
    return config_type(tuple(column.n_codes for column in columns), numbers, hidden, bottleneck)


def measure_oov_rates(codes: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Share of events with an unseen value, (C,), half an event added against zero.

    Args:
        codes: Distinct rows, (D, C).
        counts: How many events each stands for, (D,).

    >>> measure_oov_rates(np.array([[2, 1], [2, 2]]), np.array([1, 2])).tolist()
    [0.125, 0.375]
    """
    new = counts @ (codes == UNKNOWN)
    return np.asarray((new + 0.5) / (counts.sum() + 1), dtype=np.float32)


def raw_losses(net: Network, rows: EncodedRows) -> NDArray[np.float32]:
    """Loss of each column of each distinct row as the network says, (D, C)."""
    losses = np.empty(rows.codes.shape, dtype=np.float32)
    for block, codes, numbers in iter_fixed_batches(rows):
        losses[block] = net.losses(codes, numbers)[: len(losses[block])]
    return losses


def apply_oov_penalty(
    losses: NDArray[np.float32], oov_rates: NDArray[np.float32], rows: EncodedRows
) -> NDArray[np.float32]:
    """Plain losses with the price of new values, (D, C); see `Fingerprint.losses`."""
    known = losses - np.log1p(-oov_rates)
    return np.where(rows.codes == UNKNOWN, -np.log(oov_rates), known).astype(np.float32)
