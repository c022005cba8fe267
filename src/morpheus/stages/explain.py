"""`explain`: why an event is strange for its user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME, Explained
from morpheus.errors import UsageError
from morpheus.features.encoder import EncodedRows
from morpheus.models.change import changes
from morpheus.models.context import Strange
from morpheus.models.explanation import Background, Change, Explanation, Fact, decimals
from morpheus.models.familiar import Familiar
from morpheus.models.fingerprint import Fingerprint
from morpheus.models.past import Part, Past
from morpheus.models.sentence import sentence
from morpheus.models.witness import Witness
from morpheus.quoting import legible
from morpheus.records import Scored
from morpheus.stage import Stage, option

STRANGE = 0.99
"""An event before is strange if its surprise is above this share of the held-out risks."""
Texts = tuple[str | None, str | None, str | None]


@dataclass(frozen=True)
class Explain(Stage):
    """Say why events are strange: which columns, what would have been likelier, what came before.

    Takes events with scores and adds three columns. `reason` is one sentence for whoever looks into
    the event. `top_columns` are those that are most of its risk, now or in what came before.
    `explanation` is JSON text: of each of these columns the value seen, its probability given the
    event's other values, the likelier values with theirs, and its part of the event's surprise and
    `risk`; of the event, how much of its `risk` is its own, and how much is due to the hour, the
    day and the week before. Events of a user without a fingerprint, and those below --threshold,
    get none of the three.

    Example: `add-scores --label risk`, then `explain --threshold 30`
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
    prefix: str = option(
        "",
        "Put before the names of the three columns. Needed where the log has a column of such a "
        "name, as Duo's `reason`; sinks and reports find them under any.",
    )

    @property
    def added(self) -> Explained:
        """Names of the columns."""
        return Explained().prefixed(self.prefix)

    def check(self) -> None:
        """Refuse names that feature columns have."""
        self._spare(self.settings.columns)

    def __call__(self, batches: Iterator[Scored]) -> Iterator[Scored]:
        """Add the columns; what came before an event is remembered from batch to batch."""
        pasts: defaultdict[str | None, Past] = defaultdict(Past)
        ordinary: defaultdict[str | None, Familiar] = defaultdict(Familiar)
        for batch in batches:
            past, familiar = pasts[batch.user], ordinary[batch.user]
            self._spare(batch.own)
            texts: list[Texts] = [(None, None, None)] * batch.frame.height
            for event, why in self._explanations(batch, past, familiar):
                texts[event] = self._texts(why)
            columns = [
                pl.Series(name, [row[place] for row in texts], pl.String)
                for place, name in enumerate(self.added)
            ]
            frame = batch.frame.with_columns(columns)
            yield batch.become(Scored, frame=frame, losses=batch.losses)

    def _spare(self, columns: Iterable[str]) -> None:
        lost = next((name for name in columns if name in self.added), None)
        if lost is not None:
            raise UsageError(
                f"explain: the log has a column `{lost}` of its own, which would be lost. Give "
                f"`explain --prefix={self.prefix}why_`."
            )

    def _texts(self, why: Explanation) -> Texts:
        named = ", ".join(fact.column for fact in why.strangest(self.top))
        return sentence(why, self.top), named, msgspec.json.encode(why).decode()

    def _explanations(
        self, batch: Scored, past: Past, familiar: Familiar
    ) -> Iterator[tuple[int, Explanation]]:
        """Explain the events that are wanted, by their place in the batch."""
        known, rows = batch.fingerprint, batch.encoded
        if known is None or rows is None:
            return
        witness = _witness(known, rows)
        strange, shared = Strange.of(witness.strangeness), Strange.of(witness.shared)
        limit = float(np.quantile(known.held_out.risks, STRANGE))
        marked = (strange.total > limit)[rows.row_of]
        each = strange.at(rows.row_of), shared.at(rows.row_of), marked
        seconds = batch.frame[TIME].dt.epoch("ms").to_numpy() / 1000
        before = past.before(*each, seconds, known.held_out.hour)
        near = familiar.met(known, rows, marked, seconds)
        most = None if self.all_columns else self.top
        events = self._wanted(batch).tolist()
        parts = {event: before.parts(event, known.twins, most) for event in events}
        facts, background = Facts.of(witness, parts, batch.frame), Background.of(known.card)
        remedies = _changes(known, rows, [event for event in events if marked[event]], limit)
        for event in events:
            row = int(rows.row_of[event])
            columns, total = facts.of_event(event, parts[event]), decimals(strange.total[row])
            why = Explanation.of(total, columns, before.of_event(event), background)
            change = remedies.get(row, Change((), total, total, decimals(limit)))
            nearest = near.to(event, witness.strangeness[row])
            usual = witness.usual(row)
            yield event, msgspec.structs.replace(why, change=change, nearest=nearest, usual=usual)

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


@dataclass(frozen=True)
class Facts:
    """What is said of the columns of a batch's events.

    Attributes:
        names: Names of all columns.
        row_of: Which distinct row each event is, (rows,).
        facts: What is known of a column of a distinct row.
        values: Of each column that is shown, the text in each event.
    """

    names: Sequence[str]
    row_of: NDArray[np.intp]
    facts: Mapping[tuple[int, int], Fact]
    values: Mapping[int, Sequence[str | None]]

    @classmethod
    def of(
        cls, witness: Witness, parts: Mapping[int, Sequence[Part]], frame: pl.DataFrame
    ) -> Facts:
        """Ask a witness of the columns that are part of some events."""
        names, row_of = witness.encoder.names, witness.rows.row_of
        shown = np.zeros(witness.strangeness.shape, dtype=np.bool_)
        for event, columns in parts.items():
            shown[row_of[event], [part.column for part in columns]] = True
        nothing = pl.Series([None] * frame.height, dtype=pl.String)
        values = {
            c: frame.get_column(names[c], default=nothing).cast(pl.String).to_list()
            for c in np.flatnonzero(shown.any(0)).tolist()
        }
        return cls(names, row_of, dict(witness.facts(shown)), values)

    def of_event(self, event: int, parts: Sequence[Part]) -> tuple[Fact, ...]:
        """The facts of an event, with its values and what its columns add to its risk."""
        row = int(self.row_of[event])
        return tuple(
            msgspec.structs.replace(
                self.facts[row, part.column],
                value=_shown(self.values[part.column][event]),
                risk=part.risk,
                loudest=part.loudest,
                strange_before=part.strange_before,
                twins=tuple(self.names[twin] for twin in part.twins),
            )
            for part in parts
        )


def _changes(
    known: Fingerprint, rows: EncodedRows, events: Sequence[int], limit: float
) -> dict[int, Change]:
    """What would have made the rows of some events ordinary, by row."""
    strange = np.unique(rows.row_of[events]) if events else np.empty(0, np.intp)
    some = EncodedRows(rows.codes[strange], rows.numbers[strange], np.arange(len(strange)))
    return dict(zip(strange.tolist(), changes(known, some, limit), strict=True))


def _shown(value: str | None) -> str | None:
    return None if value is None else legible(value)


def _witness(known: Fingerprint, rows: EncodedRows) -> Witness:
    try:
        return Witness.of(known, rows)
    except ValueError as error:
        raise UsageError(
            "explain: what `train-ae --model=reference` learns says nothing of single columns. "
            "Leave `explain` out, or learn with `--model=compact`."
        ) from error
