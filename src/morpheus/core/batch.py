"""What flows through a chain: Events -> Fingerprinted -> Encoded -> Losses -> Scored -> Rows.

Each is a frozen value: some consecutive events of one user, in time order, with what is known of
them so far. `RunMetrics` counts what happened to every event of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import INDEX, ROW, TIME, TS_ANOMALY
from morpheus.seasonality.histogram import TimeHistogram

if TYPE_CHECKING:
    from morpheus.features.encoder import EncodedRows, EncodedSlice
    from morpheus.models.calibration import AlertForecast, UserThreshold
    from morpheus.models.profile import Fingerprint, ModelCard
    from morpheus.sources.source_state import PartitionState
    from morpheus.suppressions.rules import SuppressionCounts

BatchT = TypeVar("BatchT", bound="Batch")


@dataclass(frozen=True)
class AlertCandidates:
    """Events that may become alerts.

    Attributes:
        threshold: How risky their user's held-out days were.
        margins: How far each is above the user's usual risk, (rows,).
        session_ids: Number of the run of events that each is in, (rows,).
        time_range: When the first and the last of all the user's events were.
        suppressed_by: The suppression that holds each back, or `NO_MATCH`, (rows,).
        expired_rule: The suppression that would have, had it not ended, (rows,).
    """

    threshold: UserThreshold
    margins: NDArray[np.float64]
    session_ids: NDArray[np.int64]
    time_range: tuple[float, float]
    suppressed_by: NDArray[np.intp]
    expired_rule: NDArray[np.intp]

    def filter(self, rows: NDArray[np.bool_]) -> AlertCandidates:
        """Leave events out."""
        each = {
            name: getattr(self, name)[rows]
            for name in ("margins", "session_ids", "suppressed_by", "expired_rule")
        }
        return replace(self, **each)


@dataclass(frozen=True)
class DroppedStats:
    """What events were like that `filter` has left out.

    Attributes:
        histogram: How many there were, and when.
        exceedances: How many of them were riskier than held-out events, as `portrait.tally` counts.
    """

    histogram: TimeHistogram
    exceedances: NDArray[np.int64]

    def merge(self, other: DroppedStats) -> DroppedStats:
        """These events and others of the same user."""
        return DroppedStats(
            self.histogram.merge(other.histogram), self.exceedances + other.exceedances
        )


@dataclass(frozen=True)
class AlertBudgetReport:
    """What was to be spent on alerts, and what was.

    Attributes:
        forecast: How many alerts were to be expected.
        alerts: Runs of events that became alerts.
        suppressed: Runs that did not, because suppressions hold all their events back.
    """

    forecast: AlertForecast
    alerts: int
    suppressed: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive events of one user, in time order.

    Attributes:
        user: Whoever the user column names; None where it names nobody.
        frame: One row an event. The first columns are `ROW` and `INDEX_FILE` (integers), then the
            input's columns as text, null where an event has none, then `TIME` (datetime, UTC) and
            what stages have added.
        fingerprint: What was learnt of the user, once `train-ae` has run.
        card: The fingerprint's description; stays when the fingerprint itself has been let go.
        unscored_reason: Why these events get no score, for a user without a fingerprint.
        scores: The score columns that `add-scores` has added to `frame`.
        dict_codes: What the dictionary of all events read with these says of them; see
            `Encoder.encode`. None where there is none, and once they are encoded.
        encoded: The events as numbers, once `preprocess` has run; None without a fingerprint to
            encode with.
        filtered: How many events beside these `filter` has left out.
        dropped_stats: What these were like, if `PipelineOptions.keeps_dropped_stats` asks for it.
        suppressed: Those among them that suppressions hold back; nothing where none met any.
        candidates: What `filter --alerts_per_day` knows of these events before it has seen everybody.
        budget_report: The account of the whole run's alerts; the last batch brings it.
    """

    user: str | None
    frame: pl.DataFrame
    fingerprint: Fingerprint | None = None
    card: ModelCard | None = None
    unscored_reason: str | None = None
    scores: tuple[str, ...] = ()
    dict_codes: EncodedSlice | None = field(default=None, compare=False, repr=False)
    encoded: EncodedRows | None = None
    filtered: int = 0
    dropped_stats: DroppedStats | None = None
    suppressed: tuple[SuppressionCounts, ...] = ()
    candidates: AlertCandidates | None = None
    budget_report: AlertBudgetReport | None = None

    @property
    def log_columns(self) -> list[str]:
        """The log's columns; all of `frame`, where `serialize` has left `TIME` out."""
        every = self.frame.columns
        before = every[: every.index(TIME)] if TIME in every else every
        return [name for name in before if name not in {ROW, INDEX}]

    def evolve(self, kind: type[BatchT], **changes: object) -> BatchT:
        """Make the record that follows: all that every batch has, and what is new."""
        common = {each.name: getattr(self, each.name) for each in fields(Batch)}
        return kind(**(common | changes))


@dataclass(frozen=True, kw_only=True)
class Events(Batch):
    """Events as read; the user's first batch brings the history asked for, with the same columns.

    A user with history and no events is one batch of no rows.
    """

    history: pl.DataFrame | None = None


@dataclass(frozen=True, kw_only=True)
class WithModel(Batch):
    """Events whose user's fingerprint is known, or known to be missing."""


@dataclass(frozen=True, kw_only=True)
class Encoded(Batch):
    """Events as numbers."""


@dataclass(frozen=True, kw_only=True)
class Losses(Batch):
    """Events with the loss of each column.

    Attributes:
        losses: How badly each column was reconstructed, (rows, columns) in the order of the
            fingerprint's columns: nats for categories, squared standard deviations for numbers;
            NaN, of one column, for a user without a fingerprint.
    """

    losses: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scored(Batch):
    """Events with their scores, as columns of `frame`; `losses` as in `Losses`."""

    losses: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OutputRows(Batch):
    """Events with the columns that a sink is to write, and no other."""


@dataclass(frozen=True, kw_only=True)
class EncodedChunk(OutputRows):
    """Rows that are text already; `frame` has no more than what is counted.

    Attributes:
        path: A file with what a sink writes for them, and for rows spelt with them that came
            before; whoever has taken it over removes it.
    """

    path: Path | None = None


@dataclass
class ReadStats:
    """What became of the records of one set of files.

    `read` counts every record found; those not refused, outside the period, duplicate, of another
    kind, of another user or, where there is only to be learnt from, of no user go on. `period` says
    which period was asked for; files and folders outside it were not opened.
    """

    time_range: str = ""
    files: int = 0
    skipped_files: int = 0
    outside_files: int = 0
    outside_folders: int = 0
    read: int = 0
    outside_range: int = 0
    refused: int = 0
    duplicates: int = 0
    other_classes: int = 0
    other_users: int = 0
    no_user: int = 0
    refusals: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        """Count a refused record; the first few reasons are kept to be shown."""
        self.refused += 1
        self.refusals = [*self.refusals, reason][:5]

    def add(self, other: ReadStats) -> None:
        """Add what became of the records of more files."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals = [*self.refusals, *other.refusals][:5]

    @property
    def accepted(self) -> int:
        """Events that went on into the chain."""
        left_out = self.refused + self.outside_range + self.duplicates + self.other_classes
        return self.read - left_out - self.other_users - self.no_user


_COUNTS = tuple(one.name for one in fields(ReadStats) if one.type == "int")


@dataclass(frozen=True)
class ClusterStats:
    """What a run took of a cluster.

    Attributes:
        workers: How many there were at the end.
        lost_workers: Workers that were lost.
        tasks: Tasks of some users each.
        retries: How often one of them had to be begun again.
        slowest_users: Users who took longest, and their seconds, from the slowest.
    """

    workers: int
    lost_workers: int
    tasks: int
    retries: int
    slowest_users: tuple[tuple[str | None, float], ...] = ()


@dataclass
class RunMetrics:
    """What became of every event of a run.

    Attributes:
        input: The files that were scored.
        training: The files that were learnt from.
        users: Events that came through the chain, by user.
        has_sink: Whether a sink stood there, so that they are written.
        cards: The fingerprints used, by user; None for a user without one.
        unscored_reasons: Users whose events got no score, with the reason.
        scored: Events with a score.
        filtered: Events that `filter` has left out.
        suppressed: Events that each suppression has held back, by its title; `filtered` counts them, too.
        expired: Events that each would have held back, had it not ended.
        budget_report: The account of alerts, where `filter` had a budget.
        flagged: Events that break their user's rhythm; None where nothing looked at it.
        seconds: Wall time of the run.
        cluster_stats: What the run took of a cluster, where there was one.
        interrupted: Whether Ctrl+C ended an input that has no end of its own.
        population_sample: A sample of all users' histories, which the source takes before it hands out the
            first user if `PipelineOptions.needs_population` asks for it.
    """

    input: ReadStats = field(default_factory=ReadStats)
    training: ReadStats = field(default_factory=ReadStats)
    users: Counter[str | None] = field(default_factory=Counter)
    has_sink: bool = True
    cards: dict[str, ModelCard] = field(default_factory=dict)
    unscored_reasons: dict[str | None, str] = field(default_factory=dict)
    scored: int = 0
    filtered: int = 0
    suppressed: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    budget_report: AlertBudgetReport | None = None
    flagged: int | None = None
    seconds: float = 0.0
    cluster_stats: ClusterStats | None = field(default=None, compare=False)
    interrupted: bool = False
    population_sample: pl.DataFrame | None = field(default=None, compare=False, repr=False)

    def add(self, batch: Batch) -> None:
        """Count a batch that has come out of the chain."""
        if batch.card is not None and batch.user is not None:
            self.cards[batch.user] = batch.card
        self.filtered += batch.filtered
        for held in batch.suppressed:
            self.suppressed.update(held.suppressed)
            self.expired.update(held.expired)
        self.budget_report = batch.budget_report or self.budget_report
        if batch.frame.is_empty():
            return
        self.users[batch.user] += batch.frame.height
        if batch.unscored_reason is not None:
            self.unscored_reasons[batch.user] = batch.unscored_reason
        elif batch.scores:
            self.scored += batch.frame.height
        if TS_ANOMALY in batch.frame.columns:
            self.flagged = (self.flagged or 0) + int(batch.frame[TS_ANOMALY].sum())

    def add_read_stats(self, other: RunMetrics) -> None:
        """Add what was counted elsewhere while events were read."""
        self.input.add(other.input)
        self.training.add(other.training)


class Partition(Protocol):
    """All events of some users: a value, from which any process can read them."""

    def user_names(self) -> list[str | None]:
        """Name the users, in order; None for events without a user, no names where unknown."""

    def events(self, metrics: RunMetrics, state: PartitionState | None = None) -> Iterator[Batch]:
        """Read the events, user after user.

        Args:
            metrics: Counts what is found on the way.
            state: What is remembered of the users' earlier events; updated. None for nothing.
        """


@dataclass(frozen=True)
class StreamPartition:
    """A portion that is being read already, which only this process can do."""

    batches: Iterator[Batch]

    def user_names(self) -> list[str | None]:
        """Name nobody: the users are not known beforehand."""
        return []

    def events(
        self,
        metrics: RunMetrics,  # noqa: ARG002 - the reader counts
        state: PartitionState | None = None,  # noqa: ARG002 - the reader has it
    ) -> Iterator[Batch]:
        """The events, once."""
        return self.batches
