"""The fingerprint of a user: what was learned about the user's behaviour, and how it scores events.

Sizes in shapes: D distinct rows, C columns, N number columns, B rows in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Protocol

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import ACTOR, ACTOR_OPTION
from morpheus.features.derived import DERIVED_VERSION
from morpheus.features.encoder import UNKNOWN, EncodedRows, Encoder, Number
from morpheus.models.autoencoder import Array, Autoencoder, KnownRows, NetworkConfig
from morpheus.models.calibration import CalibrationSet, ModelSummary
from morpheus.models.daily_usage import ColumnValues, DailyScorer, EventValues, encode_keys
from morpheus.models.scoring import (
    CONDITIONAL_STD_FLOOR,
    EVIDENCE_DECIMALS,
    RISK_DECIMALS,
    RISK_PER_NAT,
    BaselineStats,
    MaskedPredictions,
    Usage,
    combine_columns,
    divide_evidence,
)
from morpheus.models.training import iter_fixed_batches
from morpheus.text import quote_backtick

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
        summary: Summary for reports; None for the reference network.
        filled_columns: Columns that had a value in nearly all training events; see
            `find_filled_columns`.
        frozen_since: First day of a sustained rise of the scores, for which nothing is learned
            until a person decides, ISO 8601; empty for none.
        accepted_until: Time up to which a person has accepted the behaviour, ISO 8601; empty if
            no person has.
        version: Number of the version of the model store that published it; 0 before that.
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
    filled_columns: tuple[str, ...] = msgspec.field(default=(), name="filled")
    version: int = 0
    frozen_since: str = ""
    accepted_until: str = ""

    def __post_init__(self) -> None:
        """Reject text that is not a time: a damaged index would fail much later."""
        times = [datetime.fromisoformat(text) for text in (self.first, self.last) if text]
        if len({time.tzinfo is None for time in times}) > 1:
            raise ValueError("only one of two times has a time zone")

    @property
    def own_share(self) -> float:
        """Share of the training events that are the user's own."""
        return self.events / ((self.events + self.borrowed_events) or 1)


class FeatureSpec(msgspec.Struct, frozen=True):
    """A feature column as the options and the schema give it.

    Attributes:
        name: Name of the column.
        kind: `category`, `number` or `derived`; `auto` if the values decide.
    """

    name: str
    kind: str = "auto"


class InputSpec(msgspec.Struct, frozen=True):
    """Everything about a run's input that its fingerprints depend on.

    Attributes:
        log_format: Name of the log format; empty for data frames.
        user_column: Name of the user column.
        features: The feature columns.
        timezone: Time zone of derived columns.
        derived_version: Version of the derived columns; see `features.derived.DERIVED_VERSION`.
        source: Word of the source, for messages.
        columns_file: Name of the feature list, for messages.
        pseudonyms: Columns whose values are pseudonyms.
        pseudonym_key_id: Identifies the key of the pseudonyms.
    """

    log_format: str
    user_column: str
    features: tuple[FeatureSpec, ...]
    timezone: str = "UTC"
    derived_version: int = DERIVED_VERSION
    source: str = ""
    columns_file: str = ""
    pseudonyms: tuple[str, ...] = ()
    pseudonym_key_id: str = ""

    def find_differences(self, other: InputSpec) -> list[str]:
        """Return why events of another input do not fit, each with what to do; empty if they do.

        Args:
            other: The input of a run that loads the fingerprints. For a data frame, only the user
                column counts, because a frame has other columns too.

        >>> from msgspec.structs import replace
        >>> learned = InputSpec("Okta", "actor", (FeatureSpec("city"),), source="from-file")
        >>> learned.find_differences(replace(learned, user_column="name"))
        ['They name users by `actor`, not by `name`: give `--userid_column_name=@actor`']
        """
        if "" in {self.log_format, other.log_format}:
            return list(self._compare_users(other))
        if formats := list(self._compare_formats(other)):
            return formats
        return [
            *self._compare_users(other),
            *self._compare_columns(other),
            *self._compare_kinds(other),
            *self._compare_derived(other),
            *self._compare_pseudonyms(other),
        ]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the feature columns, in order."""
        return tuple(feature.name for feature in self.features)

    def _compare_formats(self, other: InputSpec) -> Iterator[str]:
        if self.log_format != other.log_format:
            yield (
                f"They were trained on {self.log_format} events of `{self.source}`, not on "
                f"{other.log_format} events: start with `{self.source}`, with the same "
                "`--columns_file`"
            )

    def _compare_users(self, other: InputSpec) -> Iterator[str]:
        if self.user_column == other.user_column:
            return
        option = "--userid_column_name=" if other.log_format else "user="
        value = ACTOR_OPTION if self.user_column == ACTOR and other.log_format else self.user_column
        yield (
            f"They name users by `{self.user_column}`, not by `{other.user_column}`: give "
            f"`{option}{value}`"
        )

    def _compare_columns(self, other: InputSpec) -> Iterator[str]:
        missing = [name for name in self.feature_names if name not in other.feature_names]
        added = [name for name in other.feature_names if name not in self.feature_names]
        parts = []
        if missing:
            parts.append(f"this run does not read {len(missing)} of them: {list_names(missing)}")
        if added:
            parts.append(f"this run reads {len(added)} others: {list_names(added)}")
        if parts:
            file = f" of `{self.columns_file}`" if self.columns_file else ""
            fix = (
                f"give `--columns_file={self.columns_file}`"
                if self.columns_file
                else "leave --columns_file out"
            )
            number = len(self.features)
            yield (
                f"They were trained on {number} feature columns{file}; {'; '.join(parts)}: {fix}"
            )

    def _compare_kinds(self, other: InputSpec) -> Iterator[str]:
        kinds = {feature.name: feature.kind for feature in other.features}
        for name, kind in ((each.name, each.kind) for each in self.features):
            if kinds.get(name, kind) != kind:
                yield (
                    f"For them `{name}` was a column of the type `{kind}`, and here it is "
                    f"`{kinds[name]}`: give the same `--columns_file`"
                )

    def _compare_derived(self, other: InputSpec) -> Iterator[str]:
        if not any(feature.kind == "derived" for feature in self.features):
            return
        if self.timezone != other.timezone:
            yield (
                f"Their derived columns have the time zone `{self.timezone}`, not "
                f"`{other.timezone}`: give `--timezone={self.timezone}`"
            )
        if self.derived_version != other.derived_version:
            yield "Another version of morpheus computed their derived columns: train again"

    def _compare_pseudonyms(self, other: InputSpec) -> Iterator[str]:
        if self.pseudonyms != other.pseudonyms:
            columns = list_names(self.pseudonyms) if self.pseudonyms else "no columns"
            yield f"They were trained with pseudonyms in {columns}: give the same `--pseudonymize`"
        elif self.pseudonym_key_id != other.pseudonym_key_id:
            yield (
                "Their pseudonyms were made with another key: give the same `--pseudonym_key_file`"
            )


MAX_LISTED_NAMES = 8
"""Maximum number of names that a message lists."""


def list_names(names: Sequence[str]) -> str:
    """Return names for a message, the first few of many.

    >>> list_names(["city", "country"])
    '`city`, `country`'
    """
    quoted = ", ".join(quote_backtick(name) for name in names[:MAX_LISTED_NAMES])
    more = len(names) - MAX_LISTED_NAMES
    return f"{quoted} and {more} more" if more > 0 else quoted


MIN_FILLED = 0.95
"""Minimum share of training events with a value, for a column in which an event without a value is
unusual."""


def find_filled_columns(events: pl.DataFrame, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that have a value in nearly all events, in order.

    Args:
        events: The events.
        names: The columns; those that the events do not have are left out.
    """
    allowed = (1 - MIN_FILLED) * events.height
    nulls = {series.name: series.null_count() for series in events}
    return tuple(name for name in names if name in nulls and nulls[name] <= allowed)


Surprise = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Marginal and conditional surprise of each column in nats, each (D, C)."""


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
        usage: On which days the user had which values; None for the reference network.
        usual: Usual conditional surprise of each column; None for the reference network.
    """

    card: ModelCard
    encoder: Encoder
    net: Network
    oov_rates: NDArray[np.float32] | None
    baseline: BaselineStats
    calibration: CalibrationSet
    usage: Usage | None = None
    usual: BaselineStats | None = None

    def losses(self, rows: EncodedRows) -> NDArray[np.float32]:
        """Compute the loss of each column of each distinct row, (D, C).

        In nats for codes; number columns add the squared error in standard deviations. A new value
        costs -log of its column's rate of new values. A known value costs -log(1 - rate) more than
        the network says, so that the probabilities of all outcomes add up to one.
        """
        net = self.net.for_scoring() if isinstance(self.net, Autoencoder) else self.net
        losses = raw_losses(net, rows)
        return losses if self.oov_rates is None else apply_oov_penalty(losses, self.oov_rates, rows)

    def quantile_of_risks(self, share: float) -> float:
        """Return the risk that a share of the validation events does not exceed."""
        known: dict[float, float] = vars(self).setdefault("_quantiles", {})
        if share not in known:
            known[share] = float(np.quantile(self.calibration.risks, share))
        return known[share]

    @cached_property
    def scoring_parts(self) -> ScoringParts:
        """What risks need besides the events.

        Raises:
            ValueError: The fingerprint has a reference network, which has no risks.
        """
        if self.usage is None or self.usual is None or not isinstance(self.net, Autoencoder):
            raise ValueError("a reference network has no risks")
        learns = not self.card.frozen_since
        return ScoringParts(
            self.net.for_scoring(), self.usage, self.usual, self.calibration, learns=learns
        )

    @cached_property
    def known_losses(self) -> KnownRows:
        """Losses of some rows; see `models.bundles`."""
        return KnownRows(len(self.encoder.columns))

    def column_risks(self, rows: EncodedRows) -> NDArray[np.float64]:
        """Return the risk that each column adds to each distinct row, (D, C).

        It is that of an event on the day after the history, without earlier events.

        Raises:
            ValueError: The fingerprint has a reference network, which has no risks.
        """
        return self.scoring_parts.column_risks(rows)


class ScoringParts(msgspec.Struct, frozen=True, dict=True):
    """What risks need of a fingerprint.

    Attributes:
        net: The network.
        usage: On which days the user had which values.
        usual: Usual conditional surprise of each column.
        calibration: Usual risks.
        learns: Whether later days become usual; not for a frozen user.
    """

    net: Autoencoder
    usage: Usage
    usual: BaselineStats
    calibration: CalibrationSet
    learns: bool = True

    @cached_property
    def scorer(self) -> DailyScorer:
        """Scores events by the days before them."""
        maxima = self.calibration.day_maxima.astype(np.float64)
        return DailyScorer(self.usage, self.usual, maxima, learns=self.learns)

    def read_values(
        self,
        rows: EncodedRows,
        predictions: MaskedPredictions,
        column_values: ColumnValues,
        days: NDArray[np.int64],
    ) -> EventValues:
        """Return the values of a batch, and what the network predicts of them.

        Args:
            rows: The events, encoded.
            predictions: The predictions of the network.
            column_values: Returns the values of a column for some events.
            days: Number of the day of each event, (B,).
        """
        keys = encode_keys(self.usage, rows.codes, rows.inverse, column_values)
        return EventValues.from_predictions(self.usage, keys, rows, predictions, days)

    def surprise(self, rows: EncodedRows, predictions: MaskedPredictions) -> Surprise:
        """Return the marginal and the conditional surprise on the day after the history.

        Args:
            rows: Distinct rows.
            predictions: Their predictions.

        Returns:
            Surprise of each column in nats, (D, C) each; see `DailyScores` and
            `models.daily_usage`.
        """
        usage, positions = self.usage, rows.codes + self.usage.offsets
        known = np.where(rows.codes == UNKNOWN, 0, predictions.probability)
        novelty, others = usage.novelty, usage.others[positions]
        probability = (1 - novelty) * known + novelty * others
        return usage.marginal[positions], predictions.number_error**2 - np.log(probability)

    def column_risks(
        self, rows: EncodedRows, surprise: Surprise | None = None
    ) -> NDArray[np.float64]:
        """Return the risk that each column adds to each distinct row, (D, C).

        Args:
            rows: Distinct rows.
            surprise: Result of `surprise` for them; None to compute it.
        """
        marginal, conditional = surprise or self.surprise(
            rows, MaskedPredictions.predict(self.net, rows)
        )
        excess = self.usual.excess_z(conditional, CONDITIONAL_STD_FLOOR)
        columns = (marginal + excess).round(EVIDENCE_DECIMALS)
        evidence = combine_columns(columns, self.usage.leads)
        shares = divide_evidence(columns, self.usage.leads)
        risks = RISK_PER_NAT * np.maximum(evidence, 0)[:, None] * shares
        return np.asarray(risks.round(RISK_DECIMALS))


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
    pad = not (isinstance(net, Autoencoder) and net.any_rows)
    for block, codes, numbers in iter_fixed_batches(rows, pad=pad):
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
    """Return where each code occurs first, (D,); equal if the information is the same."""
    rows = np.arange(len(codes))
    first = np.empty(int(codes.max(initial=0)) + 1, dtype=np.intp)
    first[codes[::-1]] = rows[::-1]  # of several rows the last one written is kept
    return np.asarray(first[codes])
