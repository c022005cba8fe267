"""`explain`: why an event is strange for its user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from morpheus.columns import RISK, TIME, ExplanationColumns
from morpheus.core.batch import Scored
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.features.encoder import EncodedRows
from morpheus.models.attribution import (
    ColumnAttribution,
    ColumnContribution,
    HistoryState,
    NormalEventIndex,
    find_counterfactuals,
)
from morpheus.models.explanation import (
    Baseline,
    ColumnReason,
    Counterfactual,
    Explanation,
    render_reason,
    round_decimals,
)
from morpheus.models.profile import Fingerprint
from morpheus.models.temporal import EventAnomaly
from morpheus.text import display_value

ANOMALY_QUANTILE = 0.99
"""An event before is strange if its surprise is above this share of the held-out risks."""
ExplanationTexts = tuple[str | None, str | None, str | None]


class ExplainState(State):
    """What explanations remember about one user.

    Attributes:
        history: Earlier events that add to the risk of the next ones.
        normal_events: The latest normal events, to compare an unusual one with.
    """

    max_bytes = 1 << 25

    history: HistoryState = msgspec.field(default_factory=HistoryState)
    normal_events: NormalEventIndex = msgspec.field(default_factory=NormalEventIndex)


@dataclass(frozen=True)
class Explain(Transform):
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
    needs = Requirements(model=True)

    top: int = option(3, "Columns that are named, at most.", min=1)
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
    def output_columns(self) -> ExplanationColumns:
        """Names of the columns."""
        return ExplanationColumns().with_prefix(self.prefix)

    def validate(self) -> None:
        """Refuse names that feature columns have."""
        self._check_column_clash(self.options.columns)

    def open(self, context: StageContext) -> ExplainState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ExplainState()

    def process(self, batch: Scored, state: ExplainState) -> Iterator[Scored]:
        """Add the columns, and remember the events."""
        self._check_column_clash(batch.log_columns)
        texts: list[ExplanationTexts] = [(None, None, None)] * batch.frame.height
        for event, explanation in self._explain_events(batch, state.history, state.normal_events):
            texts[event] = self._render_texts(explanation)
        columns = [
            pl.Series(name, [row[position] for row in texts], pl.String)
            for position, name in enumerate(self.output_columns)
        ]
        frame = batch.frame.with_columns(columns)
        yield batch.evolve(Scored, frame=frame, losses=batch.losses)

    def _check_column_clash(self, columns: Iterable[str]) -> None:
        lost = next((name for name in columns if name in self.output_columns), None)
        if lost is not None:
            raise UsageError(
                f"explain: the log has a column `{lost}` of its own, which would be lost. Give "
                f"`explain --prefix={self.prefix}why_`."
            )

    def _render_texts(self, explanation: Explanation) -> ExplanationTexts:
        named = ", ".join(fact.column for fact in explanation.top_columns(self.top))
        return (
            render_reason(explanation, self.top),
            named,
            msgspec.json.encode(explanation).decode(),
        )

    def _explain_events(
        self, batch: Scored, user_state: HistoryState, normal_events: NormalEventIndex
    ) -> Iterator[tuple[int, Explanation]]:
        """Explain the events that are wanted, by their place in the batch."""
        known, rows = batch.fingerprint, batch.encoded
        if known is None or rows is None:
            return
        witness = _attribute_columns(known, rows)
        strange, shared = (
            EventAnomaly.from_columns(witness.column_anomaly),
            EventAnomaly.from_columns(witness.shared_anomaly),
        )
        limit = float(np.quantile(known.calibration.risks, ANOMALY_QUANTILE))
        marked = (strange.total > limit)[rows.inverse]
        each = strange.take(rows.inverse), shared.take(rows.inverse), marked
        seconds = batch.frame[TIME].dt.epoch("ms").to_numpy() / 1000
        before = user_state.update(*each, seconds, known.calibration.short_ema_p90)
        near = normal_events.update(known, rows, marked, seconds)
        most = None if self.all_columns else self.top
        events = self._select_events(batch).tolist()
        parts = {
            event: before.rank_columns(event, known.redundant_columns, most) for event in events
        }
        facts, background = (
            EventAttributions.from_attribution(witness, parts, batch.frame),
            Baseline.from_card(known.card),
        )
        remedies = _find_counterfactuals(
            known, rows, [event for event in events if marked[event]], limit
        )
        for event in events:
            row = int(rows.inverse[event])
            columns, total = (
                facts.for_event(event, parts[event]),
                round_decimals(strange.total[row]),
            )
            why = Explanation.from_columns(
                total, columns, before.summarise_event(event), background
            )
            change = remedies.get(row, Counterfactual((), total, total, round_decimals(limit)))
            nearest = near.query(event, witness.column_anomaly[row])
            usual = witness.normal_columns(row)
            yield (
                event,
                msgspec.structs.replace(why, change=change, nearest=nearest, normal_columns=usual),
            )

    def _select_events(self, batch: Scored) -> NDArray[np.intp]:
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
class EventAttributions:
    """What is said of the columns of a batch's events.

    Attributes:
        names: Names of all columns.
        inverse: Which distinct row each event is, (rows,).
        reasons: What is known of a column of a distinct row.
        values: Of each column that is shown, the text in each event.
    """

    names: Sequence[str]
    inverse: NDArray[np.intp]
    reasons: Mapping[tuple[int, int], ColumnReason]
    values: Mapping[int, Sequence[str | None]]

    @classmethod
    def from_attribution(
        cls,
        attribution: ColumnAttribution,
        contributions: Mapping[int, Sequence[ColumnContribution]],
        frame: pl.DataFrame,
    ) -> EventAttributions:
        """Ask a witness of the columns that are part of some events."""
        names, row_of = attribution.encoder.names, attribution.rows.inverse
        shown = np.zeros(attribution.column_anomaly.shape, dtype=np.bool_)
        for event, columns in contributions.items():
            shown[row_of[event], [part.column for part in columns]] = True
        nothing = pl.Series([None] * frame.height, dtype=pl.String)
        values = {
            c: frame.get_column(names[c], default=nothing).cast(pl.String).to_list()
            for c in np.flatnonzero(shown.any(0)).tolist()
        }
        return cls(names, row_of, dict(attribution.iter_reasons(shown)), values)

    def for_event(
        self, event: int, contributions: Sequence[ColumnContribution]
    ) -> tuple[ColumnReason, ...]:
        """The facts of an event, with its values and what its columns add to its risk."""
        row = int(self.inverse[event])
        return tuple(
            msgspec.structs.replace(
                self.reasons[row, part.column],
                value=_display_optional(self.values[part.column][event]),
                risk=part.risk,
                dominant_contribution=part.dominant_contribution,
                anomalous_before=part.anomalous_before,
                redundant_columns=tuple(self.names[c] for c in part.redundant_columns),
            )
            for part in contributions
        )


def _find_counterfactuals(
    fingerprint: Fingerprint, rows: EncodedRows, events: Sequence[int], limit: float
) -> dict[int, Counterfactual]:
    """What would have made the rows of some events ordinary, by row."""
    strange = np.unique(rows.inverse[events]) if events else np.empty(0, np.intp)
    some = EncodedRows(rows.codes[strange], rows.numbers[strange], np.arange(len(strange)))
    return dict(zip(strange.tolist(), find_counterfactuals(fingerprint, some, limit), strict=True))


def _display_optional(value: str | None) -> str | None:
    return None if value is None else display_value(value)


def _attribute_columns(fingerprint: Fingerprint, rows: EncodedRows) -> ColumnAttribution:
    try:
        return ColumnAttribution.from_fingerprint(fingerprint, rows)
    except ValueError as error:
        raise UsageError(
            "explain: what `train-ae --model=reference` learns says nothing of single columns. "
            "Leave `explain` out, or learn with `--model=compact`."
        ) from error
