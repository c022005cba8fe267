"""`explain`: why an event is strange for its user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME
from morpheus.errors import UsageError
from morpheus.features.encoder import EncodedRows
from morpheus.models.context import Context, Recent, Weighed
from morpheus.models.explanation import Background, Explanation, Fact, Preceding
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.sentence import sentence
from morpheus.models.witness import DECIMALS, Witness, decimals
from morpheus.quoting import legible
from morpheus.records import Scored
from morpheus.stage import Stage, option

ADDED = ("reason", "top_columns", "explanation")
STRANGE = 0.99
"""An event before is strange if its surprise is above this share of the held-out risks."""
Texts = tuple[str | None, str | None, str | None]


@dataclass(frozen=True)
class Explain(Stage):
    """Say why events are strange: which columns, what would have been likelier, what came before.

    Takes events with scores and adds three columns. `reason` is one sentence for whoever looks into
    the event. `top_columns` are its strangest columns, the strangest first. `explanation` is JSON
    text: of each of these columns the value seen, its probability given the event's other values,
    the likelier values with theirs, and its part of the event's surprise; of the event, how much of
    its `risk` is its own, and how much is due to the hour, the day and the week before. Events of a
    user without a fingerprint, and those below --threshold, get none of the three.

    Example: `add-scores --label risk`, then `explain --threshold 5`
    """

    name = "explain"
    takes = (Scored,)
    gives = Scored

    top: int = option(3, "Columns that are named, at most.", low=1)
    all_columns: bool = option(
        False, "Put every column into `explanation`, not only those named.", flag=True
    )
    label: str = option(
        RISK, "Score that --threshold is compared with, under the name that `add-scores` gave it."
    )
    threshold: float | None = option(
        None, "Explain only events whose --label is at least this. By default all."
    )

    def __call__(self, batches: Iterator[Scored]) -> Iterator[Scored]:
        """Add the columns; what came before an event is remembered from batch to batch."""
        past = Past()
        for batch in batches:
            texts: list[Texts] = [(None, None, None)] * batch.frame.height
            for event, why in self._explanations(batch, past):
                texts[event] = self._texts(why)
            columns = [
                pl.Series(name, [row[place] for row in texts], pl.String)
                for place, name in enumerate(ADDED)
            ]
            frame = batch.frame.with_columns(columns)
            yield batch.become(Scored, frame=frame, losses=batch.losses)

    def _texts(self, why: Explanation) -> Texts:
        named = ", ".join(fact.column for fact in why.strangest(self.top))
        return sentence(why, self.top), named, msgspec.json.encode(why).decode()

    def _explanations(self, batch: Scored, past: Past) -> Iterator[tuple[int, Explanation]]:
        """Explain the events that are wanted, by their place in the batch."""
        known, rows = batch.fingerprint, batch.encoded
        if known is None or rows is None:
            return
        witness = _witness(known, rows)
        surprise = witness.surprise[rows.row_of]
        strange = surprise > np.quantile(known.held_out.risks, STRANGE)
        preceding = past.before(surprise, strange, batch.frame[TIME])
        background = Background.of(known.card)
        events = self._wanted(batch)
        shown = witness.shown(
            np.unique(rows.row_of[events]), None if self.all_columns else self.top
        )
        facts = Facts.of(witness, shown, batch.frame)
        for event in events.tolist():
            row = int(rows.row_of[event])
            total, columns = facts.surprise[row], facts.of_event(row, event)
            others = decimals(total - sum(fact.strangeness for fact in columns))
            yield event, Explanation(total, columns, others, preceding.of_event(event), background)

    def _wanted(self, batch: Scored) -> NDArray[np.intp]:
        """Places of the events to explain."""
        if self.threshold is None:
            return np.arange(batch.frame.height)
        if self.label not in batch.scores or not batch.frame[self.label].dtype.is_numeric():
            raise UsageError(
                f"explain: --threshold needs numbers in `{self.label}`, but `add-scores` added "
                f"{', '.join(f'`{name}`' for name in batch.scores)}. Name one of these by --label, "
                f"or say `add-scores --label {self.label}`."
            )
        return np.flatnonzero(batch.frame[self.label].to_numpy() >= self.threshold)


@dataclass
class Past:
    """What is remembered of a user's earlier events."""

    context: Context = field(default_factory=Context)
    recent: Recent = field(default_factory=Recent)

    def before(
        self, surprise: NDArray[np.float64], strange: NDArray[np.bool_], times: pl.Series
    ) -> Before:
        """Look back from each event of a batch."""
        seconds = times.dt.epoch("ms").to_numpy() / 1000
        weighed = self.context.weighed(surprise, seconds)
        return Before(weighed, self.recent.before(strange, seconds))


@dataclass(frozen=True)
class Before:
    """What came before each event of a batch.

    Attributes:
        weighed: The risk, and what came before in it.
        strange: Strange events in the hour, the day and the week before, (3, rows).
    """

    weighed: Weighed
    strange: NDArray[np.int64]

    def of_event(self, event: int) -> Preceding:
        """The same of one event; what it is made of adds up in decimals."""
        risk = decimals(self.weighed.risk[event])
        hour, day, week = (decimals(part) for part in self.weighed.before[:, event])
        own, strange = decimals(risk - (hour + day + week)), self.strange[:, event].tolist()
        return Preceding(risk, own, hour, day, week, *strange)


@dataclass(frozen=True)
class Facts:
    """What is said of the columns of a batch's events.

    Attributes:
        surprise: Of each distinct row, (D,).
        columns: The facts of each distinct row, the strangest first, without the values.
        values: Of each column that is shown, the text in each event.
        told: The facts of rows and values that have been asked for: events repeat.
    """

    surprise: Sequence[float]
    columns: Mapping[int, Sequence[Fact]]
    values: Mapping[str, Sequence[str | None]]
    told: dict[tuple[int, tuple[str | None, ...]], tuple[Fact, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, witness: Witness, shown: NDArray[np.bool_], frame: pl.DataFrame) -> Facts:
        """Ask a witness of the columns shown, (D, C)."""
        names = [witness.encoder.names[c] for c in np.flatnonzero(shown.any(0))]
        nothing = pl.Series([None] * frame.height, dtype=pl.String)
        values = {name: frame.get_column(name, default=nothing) for name in names}
        return cls(
            witness.strangeness.sum(1).round(DECIMALS).tolist(),
            witness.facts(shown),
            {name: column.cast(pl.String).to_list() for name, column in values.items()},
        )

    def of_event(self, row: int, event: int) -> tuple[Fact, ...]:
        """The facts of an event that is like a distinct row, with its values."""
        facts = self.columns.get(row, ())
        values = tuple(self.values[fact.column][event] for fact in facts)
        if (row, values) not in self.told:
            self.told[row, values] = tuple(map(_with, facts, values))
        return self.told[row, values]


def _with(fact: Fact, value: str | None) -> Fact:
    return msgspec.structs.replace(fact, value=None if value is None else legible(value))


def _witness(known: Fingerprint, rows: EncodedRows) -> Witness:
    try:
        return Witness.of(known, rows)
    except ValueError as error:
        raise UsageError(
            "explain: what `train-ae --model=reference` learns says nothing of single columns. "
            "Leave `explain` out, or learn with `--model=compact`."
        ) from error
