"""What flows through a chain: Events -> Fingerprinted -> Encoded -> Losses -> Scored -> Rows.

Each is a frozen value: some consecutive events of one user, in time order, with what is known of
them so far. `Summary` counts what happened to every event of a run.
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

from morpheus.columns import INDEX, RHYTHM, ROW, TIME
from morpheus.rhythm.cells import Cells

if TYPE_CHECKING:
    from morpheus.features.dictionary import Excerpt
    from morpheus.features.encoder import EncodedRows
    from morpheus.models.budget import Forecast, Level
    from morpheus.models.fingerprint import Card, Fingerprint
    from morpheus.suppressions.rules import Held


Next = TypeVar("Next", bound="Batch")


@dataclass(frozen=True)
class Watched:
    """Events that may become alerts.

    Attributes:
        level: How risky their user's held-out days were.
        margins: How far each is above the user's usual risk, (rows,).
        runs: Number of the run of events that each is in, (rows,).
        seconds: When the first and the last of all the user's events were.
        held: The suppression that holds each back, or `NO_RULE`, (rows,).
        ended: The suppression that would have, had it not ended, (rows,).
    """

    level: Level
    margins: NDArray[np.float64]
    runs: NDArray[np.int64]
    seconds: tuple[float, float]
    held: NDArray[np.intp]
    ended: NDArray[np.intp]

    def kept(self, rows: NDArray[np.bool_]) -> Watched:
        """Leave events out."""
        each = {name: getattr(self, name)[rows] for name in ("margins", "runs", "held", "ended")}
        return replace(self, **each)


@dataclass(frozen=True)
class Picture:
    """What events were like that `filter` has left out.

    Attributes:
        cells: How many there were, and when.
        tally: How many of them were riskier than held-out events, as `portrait.tally` counts.
    """

    cells: Cells
    tally: NDArray[np.int64]

    def joined(self, other: Picture) -> Picture:
        """These events and others of the same user."""
        return Picture(self.cells.joined(other.cells), self.tally + other.tally)


@dataclass(frozen=True)
class Spending:
    """What was to be spent on alerts, and what was.

    Attributes:
        forecast: How many alerts were to be expected.
        alerts: Runs of events that became alerts.
        held: Runs that did not, because suppressions hold all their events back.
    """

    forecast: Forecast
    alerts: int
    held: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive events of one user, in time order.

    Attributes:
        user: Whoever the user column names; None where it names nobody.
        frame: One row an event. The first columns are `ROW` and `INDEX` (integers), then the
            input's columns as text, null where an event has none, then `TIME` (datetime, UTC) and
            what stages have added.
        fingerprint: What was learnt of the user, once `train-ae` has run.
        card: The fingerprint's description; stays when the fingerprint itself has been let go.
        unscored: Why these events get no score, for a user without a fingerprint.
        scores: The score columns that `add-scores` has added to `frame`.
        excerpt: What the dictionary of all events read with these says of them; see
            `Encoder.encode`. None where there is none, and once they are encoded.
        encoded: The events as numbers, once `preprocess` has run; None without a fingerprint to
            encode with.
        filtered: How many events beside these `filter` has left out.
        picture: What these were like, if `Settings.pictured` asks for it.
        held: Those among them that suppressions hold back; nothing where none met any.
        watched: What `filter --alerts_per_day` knows of these events before it has seen everybody.
        spending: The account of the whole run's alerts; the last batch brings it.
    """

    user: str | None
    frame: pl.DataFrame
    fingerprint: Fingerprint | None = None
    card: Card | None = None
    unscored: str | None = None
    scores: tuple[str, ...] = ()
    excerpt: Excerpt | None = field(default=None, compare=False, repr=False)
    encoded: EncodedRows | None = None
    filtered: int = 0
    picture: Picture | None = None
    held: tuple[Held, ...] = ()
    watched: Watched | None = None
    spending: Spending | None = None

    @property
    def own(self) -> list[str]:
        """The log's columns; all of `frame`, where `serialize` has left `TIME` out."""
        every = self.frame.columns
        before = every[: every.index(TIME)] if TIME in every else every
        return [name for name in before if name not in {ROW, INDEX}]

    def become(self, kind: type[Next], **more: object) -> Next:
        """Make the record that follows: all that every batch has, and what is new."""
        common = {each.name: getattr(self, each.name) for each in fields(Batch)}
        return kind(**(common | more))


@dataclass(frozen=True, kw_only=True)
class Events(Batch):
    """Events as read; the user's first batch brings the history asked for, with the same columns.

    A user with history and no events is one batch of no rows.
    """

    history: pl.DataFrame | None = None


@dataclass(frozen=True, kw_only=True)
class Fingerprinted(Batch):
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
class Rows(Batch):
    """Events with the columns that a sink is to write, and no other."""


@dataclass(frozen=True, kw_only=True)
class Spelt(Rows):
    """Rows that are text already; `frame` has no more than what is counted.

    Attributes:
        text: A file with what a sink writes for them, and for rows spelt with them that came
            before; whoever has taken it over removes it.
    """

    text: Path | None = None


@dataclass
class Reading:
    """What became of the records of one set of files.

    `read` counts every record found; those not refused, outside the period, duplicate, of another
    kind, of another user or, where there is only to be learnt from, of no user go on. `period` says
    which period was asked for; files and folders outside it were not opened.
    """

    period: str = ""
    files: int = 0
    skipped_files: int = 0
    outside_files: int = 0
    outside_folders: int = 0
    read: int = 0
    outside: int = 0
    refused: int = 0
    duplicates: int = 0
    other_kinds: int = 0
    other_users: int = 0
    userless: int = 0
    refusals: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        """Count a refused record; the first few reasons are kept to be shown."""
        self.refused += 1
        self.refusals = [*self.refusals, reason][:5]

    def add(self, other: Reading) -> None:
        """Add what became of the records of more files."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refusals = [*self.refusals, *other.refusals][:5]

    @property
    def kept(self) -> int:
        """Events that went on into the chain."""
        left_out = self.refused + self.outside + self.duplicates + self.other_kinds
        return self.read - left_out - self.other_users - self.userless


_COUNTS = tuple(one.name for one in fields(Reading) if one.type == "int")


@dataclass(frozen=True)
class Effort:
    """What a run took of a cluster.

    Attributes:
        workers: How many there were at the end.
        lost: Workers that were lost.
        tasks: Tasks of some users each.
        retries: How often one of them had to be begun again.
        slowest: Users who took longest, and their seconds, from the slowest.
    """

    workers: int
    lost: int
    tasks: int
    retries: int
    slowest: tuple[tuple[str | None, float], ...] = ()


@dataclass
class Summary:
    """What became of every event of a run.

    Attributes:
        input: The files that were scored.
        training: The files that were learnt from.
        users: Events that came through the chain, by user.
        to_sinks: Whether a sink stood there, so that they are written.
        cards: The fingerprints used, by user; None for a user without one.
        unscored: Users whose events got no score, with the reason.
        scored: Events with a score.
        filtered: Events that `filter` has left out.
        held: Events that each suppression has held back, by its title; `filtered` counts them, too.
        ended: Events that each would have held back, had it not ended.
        spending: The account of alerts, where `filter` had a budget.
        flagged: Events that break their user's rhythm; None where nothing looked at it.
        seconds: Wall time of the run.
        effort: What the run took of a cluster, where there was one.
        stopped: Whether Ctrl+C ended an input that has no end of its own.
        everybody: A sample of all users' histories, which the source takes before it hands out the
            first user if `Settings.survey` asks for it.
    """

    input: Reading = field(default_factory=Reading)
    training: Reading = field(default_factory=Reading)
    users: Counter[str | None] = field(default_factory=Counter)
    to_sinks: bool = True
    cards: dict[str, Card] = field(default_factory=dict)
    unscored: dict[str | None, str] = field(default_factory=dict)
    scored: int = 0
    filtered: int = 0
    held: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    spending: Spending | None = None
    flagged: int | None = None
    seconds: float = 0.0
    effort: Effort | None = field(default=None, compare=False)
    stopped: bool = False
    everybody: pl.DataFrame | None = field(default=None, compare=False, repr=False)

    def add(self, batch: Batch) -> None:
        """Count a batch that has come out of the chain."""
        if batch.card is not None and batch.user is not None:
            self.cards[batch.user] = batch.card
        self.filtered += batch.filtered
        for held in batch.held:
            self.held.update(held.back)
            self.ended.update(held.ended)
        self.spending = batch.spending or self.spending
        if batch.frame.is_empty():
            return
        self.users[batch.user] += batch.frame.height
        if batch.unscored is not None:
            self.unscored[batch.user] = batch.unscored
        elif batch.scores:
            self.scored += batch.frame.height
        if RHYTHM in batch.frame.columns:
            self.flagged = (self.flagged or 0) + int(batch.frame[RHYTHM].sum())

    def add_readings(self, other: Summary) -> None:
        """Add what was counted elsewhere while events were read."""
        self.input.add(other.input)
        self.training.add(other.training)


class Portion(Protocol):
    """All events of some users: a value, from which any process can read them."""

    def events(self, summary: Summary) -> Iterator[Batch]:
        """Read the events, user after user; what is found on the way is counted."""


@dataclass(frozen=True)
class Stream:
    """A portion that is being read already, which only this process can do."""

    batches: Iterator[Batch]

    def events(self, summary: Summary) -> Iterator[Batch]:  # noqa: ARG002 - counted by whoever reads
        """The events, once."""
        return self.batches
