"""The fingerprint of a user: what was learned about the user's behaviour, and how it scores events.

Sizes in shapes: D distinct rows, C columns, N number columns, B rows in a batch.
"""

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

SCOPE_OWN, SCOPE_PEER_GROUP, SCOPE_GLOBAL = "own", "peers", "everyone"
"""Whose history a fingerprint is trained on: the user's own, also that of similar users, or that of
all users."""


class ModelCard(msgspec.Struct, frozen=True):
    """Describes a fingerprint to people: whose it is, and what it was trained on.

    Attributes:
        user: The user; empty for the global model.
        events: Events of the user's own history.
        distinct: Distinct rows among all events.
        first: Time of the first own event, ISO 8601; empty if times are unknown.
        last: Time of the last own event.
        epochs: Epochs of training.
        seed: Random seed of the run that trained it.
        training_data_scope: Whose history it was trained on: one of `SCOPE_OWN`, `SCOPE_PEER_GROUP`
            and `SCOPE_GLOBAL`.
        borrowed_events: Events of other users that were added.
        size: Size of its file in bytes; 0 before it is written.
        sha256: Checksum of its file; empty before it is written.
        summary: Summary for reports; None for the reference network and in files of old versions.
    """

    user: str
    events: int
    distinct: int
    first: str
    last: str
    epochs: int
    seed: int
    training_data_scope: str = msgspec.field(default=SCOPE_OWN, name="rung")
    borrowed_events: int = msgspec.field(default=0, name="borrowed")
    size: int = 0
    sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    summary: ModelSummary | None = msgspec.field(default=None, name="portrait")

    @property
    def own_share(self) -> float:
        """Share of the training events that are the user's own."""
        return self.events / ((self.events + self.borrowed_events) or 1)


class Network(Protocol):
    """A network that reconstructs every column of an event."""

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""

    @property
    def weights(self) -> Array:
        """The weights, in one vector."""

    def losses(self, codes: Array, numbers: Array) -> Array:
        """Loss of each column of (B, C) codes and (B, N) numbers, (B, C)."""


@dataclass(frozen=True)
class Fingerprint:
    """The behaviour profile of one user.

    Attributes:
        card: Describes it to people.
        encoder: Encodes the columns as codes and numbers.
        net: The network.
        oov_rates: Share of validation events with a new value, for each column, (C,); None if the
            network predicts new values itself.
        baseline: Normal loss of each column.
        calibration: Normal scores of whole events.
        surprise_model: Normal surprise of each column; None for the reference network.
        redundant_columns: For each column the first column with the same information
            (`find_redundant_columns`); empty if unknown.
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
        """Compute the loss of each column of each distinct row, (D, C).

        In nats for codes; number columns add the squared error in standard deviations. A new value
        costs -log of its column's rate of new values. A known value costs -log(1 - rate) more than
        the network says, so that the probabilities of all outcomes add up to one.
        """
        net = self.net.for_scoring() if isinstance(self.net, Autoencoder) else self.net
        losses = raw_losses(net, rows)
        return losses if self.oov_rates is None else apply_oov_penalty(losses, self.oov_rates, rows)

    def column_anomaly(self, rows: EncodedRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the anomaly of each column of each distinct row, from 0 up.

        Returns:
            The anomaly, and the part of it in values that other users have too, (D, C) each.

        Raises:
            ValueError: The fingerprint has a reference network, which cannot attribute.
        """
        net, oov_rates, model = self.compact_parts()
        likelihoods = model.likelihoods
        surprise = MaskedPredictions.predict(net, rows).compute_surprise(
            likelihoods, oov_rates, rows
        )
        anomaly = model.column_anomaly(*surprise)
        return anomaly, anomaly * likelihoods.seen_by_others[rows.codes + likelihoods.offsets]

    def compact_parts(self) -> tuple[Autoencoder, NDArray[np.float32], SurpriseModel]:
        """Return what column scores need: the network, rates of new values and surprise model.

        Raises:
            ValueError: The fingerprint has a reference network, which has none of these.
        """
        if (
            self.surprise_model is None
            or self.oov_rates is None
            or not isinstance(self.net, Autoencoder)
        ):
            raise ValueError("a reference network has no column scores")
        return self.net.for_scoring(), self.oov_rates, self.surprise_model


def make_network_config(
    encoder: Encoder,
    hidden: int = 64,
    bottleneck: int = 32,
    config_type: type[NetworkConfig] = NetworkConfig,
) -> NetworkConfig:
    """Choose the sizes of a network for the columns of an encoder."""
    columns = encoder.columns
    numbers = tuple(c for c, column in enumerate(columns) if isinstance(column, Number))
    return config_type(tuple(column.n_codes for column in columns), numbers, hidden, bottleneck)


def measure_oov_rates(codes: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the share of events with a new value, (C,).

    Half an event is added, so that no rate is zero.

    Args:
        codes: Distinct rows, (D, C).
        counts: Number of events for each of them, (D,).

    >>> measure_oov_rates(np.array([[2, 1], [2, 2]]), np.array([1, 2])).tolist()
    [0.125, 0.375]
    """
    new = counts @ (codes == UNKNOWN)
    return np.asarray((new + 0.5) / (counts.sum() + 1), dtype=np.float32)


def raw_losses(net: Network, rows: EncodedRows) -> NDArray[np.float32]:
    """Compute the loss of each column of each distinct row as the network gives it, (D, C)."""
    losses = np.empty(rows.codes.shape, dtype=np.float32)
    for block, codes, numbers in iter_fixed_batches(rows):
        losses[block] = net.losses(codes, numbers)[: len(losses[block])]
    return losses


def apply_oov_penalty(
    losses: NDArray[np.float32], oov_rates: NDArray[np.float32], rows: EncodedRows
) -> NDArray[np.float32]:
    """Add the cost of new values to raw losses, (D, C); see `Fingerprint.losses`."""
    known = losses - np.log1p(-oov_rates)
    return np.where(rows.codes == UNKNOWN, -np.log(oov_rates), known).astype(np.float32)


def find_redundant_columns(encoder: Encoder, rows: EncodedRows) -> tuple[int, ...]:
    """Find the columns that had the same information throughout a history.

    Two columns do if each value of one always occurs with the same value of the other. A column
    that never changed is not redundant, and neither is a number column.

    Args:
        encoder: Encoder of the columns.
        rows: The history, encoded by it.

    Returns:
        For each column the first column with the same information: itself, if there is none before
            it.

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
        canonical = _canonical_codes(rows.codes[:, c])
        changed = bool(canonical.any()) and not isinstance(column, Number)
        found.append(first.setdefault(canonical.tobytes(), c) if changed else c)
    return tuple(found)


def _canonical_codes(codes: NDArray[np.int32]) -> NDArray[np.intp]:
    """Renumber codes by first occurrence, (D,); equal if the information is the same."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.asarray(first.argsort().argsort()[inverse])


def deduplicate_columns(
    order: Sequence[int], groups: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield columns in an order, each with the later columns that have the same information.

    Args:
        order: Columns.
        groups: Result of `find_redundant_columns`; empty if it is unknown.

    >>> list(deduplicate_columns([2, 1, 0], (0, 1, 0)))
    [(2, [0]), (1, [])]
    """
    leads: dict[int, list[int]] = {}
    for column in order:
        leads.setdefault(groups[column] if groups else column, []).append(column)
    for lead, *redundant in leads.values():
        yield lead, redundant
